package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/service/quota"
)

// KeyPair is a public key of a user, with a name.
type KeyPair struct {
	ID          int64     `db:"id"`
	UserID      string    `db:"user_id"`
	Name        string    `db:"name"`
	Type        string    `db:"type"` // ssh or x509
	PublicKey   string    `db:"public_key"`
	Fingerprint string    `db:"fingerprint"`
	CreatedAt   time.Time `db:"created_at"`
}

func noKeyPair(user, name string) error {
	return fault.New(fault.NotFound, "Keypair %s not found for user %s", name, user)
}

// KeyPairs returns a page of a user's key pairs. The marker is the name of a key pair. Errors: Invalid if the user has no key pair of this name.
func (s *Store) KeyPairs(ctx context.Context, user string, q listing.Query) ([]KeyPair, error) {
	p := db.Page{From: "key_pairs", Key: "name"}.Select(q)
	p.Within, p.WithinArgs = "user_id = ?", []any{user}
	out, _, err := db.List[KeyPair](ctx, s.db, p)
	return out, noMarker(err, q.Marker)
}

// noMarker returns err, with Nova's text if err means that the marker does not exist.
func noMarker(err error, marker string) error {
	if fault.CodeOf(err) == fault.Invalid && fault.From(err).Reason == "MarkerNotFound" {
		return fault.New(fault.Invalid, "Marker %.255s could not be found.", marker)
	}
	return err
}

// KeyPair returns a key pair of a user. Errors: NotFound.
func (s *Store) KeyPair(ctx context.Context, user, name string) (*KeyPair, error) {
	k := new(KeyPair)
	err := s.get(ctx, s.db, k, noKeyPair(user, name), `SELECT `+db.Columns[KeyPair]()+` FROM key_pairs WHERE user_id = ? AND name = ?`, user, name)
	return k, err
}

// CheckKeyPair returns the error that CreateKeyPair would return now, or nil. With this check a caller generates a key, which is expensive, only if
// CreateKeyPair is likely to succeed.
func (s *Store) CheckKeyPair(ctx context.Context, user, name string) error {
	used, err := s.keys.Usage(ctx, user)
	if err != nil {
		return err
	}
	for _, u := range used {
		if u.Limit != quota.Unlimited && u.Used >= u.Limit {
			return tooManyKeyPairs()
		}
	}
	switch _, err := s.KeyPair(ctx, user, name); {
	case err == nil:
		return fault.New(fault.Conflict, "Key pair '%s' already exists.", name)
	case !errors.Is(err, fault.NotFound):
		return err
	}
	return nil
}

func tooManyKeyPairs() error { return fault.New(fault.Denied, "Quota exceeded, too many key pairs.") }

// CreateKeyPair adds a key pair. It sets ID and CreatedAt. Errors: Denied if the user already has as many key pairs as [Limits] allow; Conflict
// if the user has a key pair of this name.
func (s *Store) CreateKeyPair(ctx context.Context, k *KeyPair) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		k.ID, k.CreatedAt = randomID(), now
		_, err := tx.NamedExecContext(ctx, `INSERT INTO key_pairs (id, user_id, name, type, public_key, fingerprint, created_at)
			VALUES (:id, :user_id, :name, :type, :public_key, :fingerprint, :created_at)`, k)
		if err = db.Error(err); err != nil && fault.CodeOf(err) == fault.Conflict {
			return fault.New(fault.Conflict, "Key pair '%s' already exists.", k.Name)
		}
		if err == nil {
			err = s.keys.Reserve(ctx, tx, quota.Claim{Consumer: k.consumer(), Project: k.UserID, Amounts: map[string]int64{KeyPairs: 1}})
		}
		if errors.Is(err, quota.ErrExceeded) {
			return tooManyKeyPairs()
		}
		return err
	})
}

// consumer returns the name under which the quota counts the key pair. The quota of key pairs is a quota of the user, not of the project.
func (k *KeyPair) consumer() string { return "key_pair/" + strconv.FormatInt(k.ID, 10) }

// DeleteKeyPair removes a key pair. Servers keep the key. Errors: NotFound.
func (s *Store) DeleteKeyPair(ctx context.Context, user, name string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		k := new(KeyPair)
		err := s.get(ctx, tx, k, noKeyPair(user, name), `SELECT `+db.Columns[KeyPair]()+` FROM key_pairs WHERE user_id = ? AND name = ? FOR UPDATE`, user, name)
		if err == nil {
			err = db.ExecOne(ctx, tx, noKeyPair(user, name), `DELETE FROM key_pairs WHERE user_id = ? AND name = ?`, user, name)
		}
		if err == nil {
			err = s.keys.Release(ctx, tx, k.consumer())
		}
		return err
	})
}

// randomID returns a random number from 1 to 2^53, so that every JSON client can represent it exactly.
func randomID() int64 {
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails
	return int64(binary.BigEndian.Uint64(raw[:])>>11) + 1
}
