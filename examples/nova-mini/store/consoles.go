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

// ConsoleToken is the permission that a token gives: to connect to the console of a server. The console listens on the port Port of the address Host. The
// permission ends at ExpiresAt, or earlier when the server is deleted or soft-deleted, or leaves the compute host ComputeHost.
type ConsoleToken struct {
	ServerID    string              `db:"server_id"`
	ComputeHost string              `db:"compute_host"`
	Type        compute.ConsoleType `db:"console_type"`
	Host        string              `db:"host"`
	Port        int                 `db:"port"`
	// URLBase is the URL for clients, without the token.
	URLBase   string    `db:"url_base"`
	ExpiresAt time.Time `db:"expires_at"`
}

// hashToken returns the hash under which the database stores a token. A token has at least 128 random bits, so the hash needs no salt. Tokens are looked up by
// their hashes, so the time of a look-up says nothing about the existing tokens.
func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// AddConsoleToken makes a token that is valid for ttl, and sets ExpiresAt. The database stores only the hash of the token.
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

// ConsoleToken returns the permission that a token gives. Errors: NotFound if the token does not exist or has expired, or if its server is deleted,
// soft-deleted or on another host.
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

// OnHost reports whether a server exists, is on the given host, and is not soft-deleted.
func (s *Store) OnHost(ctx context.Context, id, host string) (bool, error) {
	srv, err := s.Server(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil && srv.Host != nil && *srv.Host == host && srv.VMState != compute.VMSoftDeleted, err
}

// PruneConsoleTokens removes the expired tokens.
func (s *Store) PruneConsoleTokens(ctx context.Context) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		_, err := db.Exec(ctx, tx, `DELETE FROM console_tokens WHERE expires_at <= ?`, now)
		return err
	})
}
