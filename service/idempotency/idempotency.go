// Package idempotency keeps the replies of requests with the header Idempotency-Key in the component's database, so that a client may repeat a
// POST whose answer was lost. A component uses it with one field of the route and one call in the transaction of its handler:
//
//	keys := idempotency.New(idempotency.Config{DB: d})
//	app.Add("idempotency", service.Loop(10*time.Minute, keys.Prune))
//	api.HandleRoute(mux, api.Route{Pattern: "POST /v3/volumes", Idempotency: keys}, func(ctx context.Context, r *api.Request[newVolume]) (out oneVolume, err error) {
//		err = db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//			out, err = insertVolume(ctx, tx, r.Body)
//			if err != nil {
//				return err
//			}
//			return r.Keep(ctx, out)
//		})
//		return out, err
//	})
//
// The documentation of api.Route describes the header. The database has no key of a client, and no reply that can be read
// without the client's key, because a reply may have a secret, such as a generated password.
//
// The table is that of [Migrations].
package idempotency

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// Migrations creates the table, on MySQL, MariaDB and SQLite. A component gives them to [db.Migrate] and [db.Check], before its own.
var Migrations = db.Embedded("idempotency", migrations)

//go:embed migrations/*.sql
var migrations embed.FS

// DefaultLifetime is how long a reply is kept by default.
const DefaultLifetime = 24 * time.Hour

// Config configures a [Store]. DB is required.
type Config struct {
	// DB is the database with the table. The caller closes it.
	DB *sqlx.DB
	// Lifetime is how long a reply is kept, by the database's clock. After that time the key of the reply is free, and a request with this
	// key is executed again. Default 24 h.
	Lifetime time.Duration
}

// Store keeps replies. It implements [api.Replies], and is safe for concurrent use.
type Store struct {
	cfg Config
}

// New returns a Store. It panics without a DB or with a negative Lifetime, because these are programmers' errors.
func New(cfg Config) *Store {
	if cfg.DB == nil || cfg.Lifetime < 0 {
		panic(fmt.Sprintf("idempotency: Config needs a DB and a Lifetime that is not below 0; it has %v", cfg.Lifetime))
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = DefaultLifetime
	}
	return &Store{cfg}
}

// Find returns the reply that was kept for a key, or nil. Errors: Internal, if the row cannot be read; those of the database.
func (s *Store) Find(ctx context.Context, key api.ReplyKey) (*api.KeptReply, error) {
	var row struct {
		Reply   []byte    `db:"reply"`
		Expires time.Time `db:"expires_at"`
	}
	err := db.Error(s.cfg.DB.GetContext(ctx, &row, "SELECT reply, expires_at FROM idempotency_replies WHERE id = ?", idOf(key)))
	switch {
	case errors.Is(err, fault.NotFound):
		return nil, nil //nolint:nilnil // nil: no reply
	case err != nil:
		return nil, fmt.Errorf("find the reply of an idempotency key: %w", err)
	}
	now, err := db.Now(ctx, s.cfg.DB)
	switch {
	case err != nil:
		return nil, fmt.Errorf("find the reply of an idempotency key: %w", err)
	case !row.Expires.After(now):
		return nil, nil //nolint:nilnil // nil: no reply
	}
	out, err := decryptReply(key, row.Reply)
	if err != nil {
		return nil, fault.New(fault.Internal, "the reply that was kept for an idempotency key cannot be read, row %s: %w", idOf(key), err)
	}
	return out, nil
}

// Keep writes the reply of a request in the transaction of [db.Tx] that ctx carries. If another transaction is keeping a reply for the
// key, Keep waits for its end.
//
// Errors: Conflict, if the key has a reply, in which case the transaction must be rolled back; Internal, if ctx carries no transaction on
// Config.DB; those of the database.
func (s *Store) Keep(ctx context.Context, key api.ReplyKey, reply api.KeptReply) error {
	outside := false
	db.AfterCommit(ctx, s.cfg.DB, func() { outside = true })
	if outside { // AfterCommit has called the function now
		return fault.New(fault.Internal, "Keep of a reply was called outside of a transaction of db.Tx: call it in the transaction in which the handler writes its rows, with the context of this transaction")
	}
	sealed, err := encryptReply(key, reply)
	if err != nil {
		return fault.New(fault.Internal, "keep the reply of an idempotency key: %w", err)
	}
	return db.Tx(ctx, s.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, "INSERT INTO idempotency_replies (id, reply, expires_at) VALUES (?, ?, ?)", idOf(key), sealed, now.Add(s.cfg.Lifetime))
		if !errors.Is(err, fault.Conflict) {
			return err
		}
		taken := fault.New(fault.Conflict, "The idempotency key has been used by another request.")
		return db.ExecOne(ctx, tx, taken, "UPDATE idempotency_replies SET reply = ?, expires_at = ? WHERE id = ? AND expires_at <= ?", sealed, now.Add(s.cfg.Lifetime), idOf(key), now)
	})
}

// Prune removes expired replies. Call it in a loop, in any number of processes. Errors are those of [db.Purge].
func (s *Store) Prune(ctx context.Context) error {
	now, err := db.Now(ctx, s.cfg.DB)
	if err != nil {
		return err
	}
	_, err = db.Purge(ctx, s.cfg.DB, db.Retention{Table: "idempotency_replies", Where: "expires_at <= ?", Args: []any{now}})
	return err
}

// hashOf returns a hash of a key for one purpose.
func hashOf(purpose string, key api.ReplyKey) [sha256.Size]byte {
	return sha256.Sum256([]byte(purpose + "\x00" + key.Scope + "\x00" + key.Key))
}

// idOf returns the id of a key's row.
func idOf(key api.ReplyKey) string {
	sum := hashOf("id", key)
	return hex.EncodeToString(sum[:])
}

// sealer returns the cipher for the reply of a key.
func sealer(key api.ReplyKey) (cipher.AEAD, error) {
	secret := hashOf("reply", key)
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// encryptReply returns the text of a reply for the database.
func encryptReply(key api.ReplyKey, reply api.KeptReply) ([]byte, error) {
	plain, err := json.Marshal(reply)
	if err != nil {
		return nil, err
	}
	c, err := sealer(key)
	if err != nil {
		return nil, err
	}
	return c.Seal(nil, nil, plain, nil), nil //nolint:gosec // the cipher makes a random nonce
}

// decryptReply returns the reply in a text of encryptReply.
func decryptReply(key api.ReplyKey, sealed []byte) (*api.KeptReply, error) {
	c, err := sealer(key)
	if err != nil {
		return nil, err
	}
	plain, err := c.Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, err
	}
	out := new(api.KeptReply)
	return out, json.Unmarshal(plain, out)
}
