package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// ConsoleToken is what a token of a console allows: to connect to the console of a server, while the server is on this host and its console has
// this address.
type ConsoleToken struct {
	ServerID    string              `db:"server_id"`
	ComputeHost string              `db:"compute_host"`
	Type        compute.ConsoleType `db:"console_type"`
	Host        string              `db:"host"`
	Port        int                 `db:"port"`
	// URLBase is the URL for clients without the token.
	URLBase   string    `db:"url_base"`
	ExpiresAt time.Time `db:"expires_at"`
}

// hashToken returns what the database has of a token. The token has 128 random bits, so a hash without a salt is enough. Tokens are looked up by
// their hashes, so the time of a look-up says nothing about the tokens that exist.
func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// AddConsoleToken makes a token, which is valid for ttl, and sets ExpiresAt. Only its hash is stored.
func (s *Store) AddConsoleToken(ctx context.Context, t *ConsoleToken, ttl time.Duration) (token string, err error) {
	token = rand.Text()
	return token, s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		t.ExpiresAt = now.Add(ttl)
		_, err := db.Exec(ctx, tx, `INSERT INTO console_tokens (token_hash, server_id, compute_host, console_type, host, port, url_base, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			hashToken(token), t.ServerID, t.ComputeHost, t.Type, t.Host, t.Port, t.URLBase, t.ExpiresAt)
		return err
	})
}

// errNoToken is the error for a token that is not valid.
var errNoToken = fault.Sentinel(fault.NotFound, "NoConsoleToken", "Token not found")

// ConsoleToken returns what a token allows. Errors: NotFound, if the token does not exist or is over, or if its server is deleted, soft-deleted or on
// another host.
func (s *Store) ConsoleToken(ctx context.Context, token string) (*ConsoleToken, error) {
	now, err := db.Now(ctx, s.db)
	if err != nil {
		return nil, err
	}
	out := new(ConsoleToken)
	err = s.get(ctx, s.db, out, errNoToken, `SELECT t.server_id, t.compute_host, t.console_type, t.host, t.port, t.url_base, t.expires_at
		FROM console_tokens t JOIN servers s ON s.id = t.server_id AND s.host = t.compute_host AND s.vm_state <> ? WHERE t.token_hash = ? AND t.expires_at > ?`,
		compute.VMSoftDeleted, hashToken(token), now)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// OnHost reports whether a server exists, is on a host, and is not soft-deleted.
func (s *Store) OnHost(ctx context.Context, id, host string) (bool, error) {
	srv, err := s.Server(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil && srv.Host != nil && *srv.Host == host && srv.VMState != compute.VMSoftDeleted, err
}

// PruneConsoleTokens removes the tokens that are over.
func (s *Store) PruneConsoleTokens(ctx context.Context) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		_, err := db.Exec(ctx, tx, `DELETE FROM console_tokens WHERE expires_at <= ?`, now)
		return err
	})
}
