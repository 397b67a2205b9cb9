package operation

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// LeaderConfig configures a [Leader]. Store, Name and Host are required.
type LeaderConfig struct {
	Store *Store
	// Name is the name of the work that only one process at a time may do, such as "volume-audit".
	Name string
	// Host is the name of this process, for operators.
	Host string
	// Lease is the length of the lease. If the leader does not renew its lease for this time, another process can lead.
	// Default 15 s.
	Lease time.Duration
}

// Leader is a process's candidacy for work that only one process at a time may do. The leader holds a lease like that of an
// operation. Leader is safe for concurrent use.
type Leader struct {
	cfg   LeaderConfig
	owner string
}

// NewLeader returns a candidacy. It starts nothing.
func NewLeader(cfg LeaderConfig) *Leader {
	cfg.Lease = cmp.Or(cfg.Lease, 15*time.Second)
	return &Leader{cfg, cfg.Host + "/" + rand.Text()[:8]}
}

// Only returns a function for service.Loop. The function calls f if this process is the leader or can become the leader; otherwise
// it does nothing. The context of f ends when the lease is lost. The parameter token of f is the fencing token: each later leader
// has a higher one. So a resource that stores the highest token can reject an earlier leader that still runs. The process keeps
// the lease between two calls of the function if the time between them is shorter than LeaderConfig.Lease.
func (l *Leader) Only(f func(ctx context.Context, token int64) error) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		token, err := l.acquireLease(ctx)
		if err != nil || token == 0 {
			return err
		}
		held, lose := context.WithCancelCause(ctx)
		defer lose(nil)
		done := make(chan struct{})
		defer func() { lose(nil); <-done }()
		go func() {
			defer close(done)
			keepLease(held, l.cfg.Lease, func(ctx context.Context) (bool, error) {
				token, err := l.acquireLease(ctx)
				return token != 0, err
			}, lose)
		}()
		return f(held, token)
	}
}

// acquireLease acquires or renews the lease, and returns the fencing token, or 0 if another process leads.
func (l *Leader) acquireLease(ctx context.Context) (token int64, err error) {
	err = db.Tx(ctx, l.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		token = 0
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		var have []struct {
			Owner string
			Fence int64
			Until time.Time
		}
		if err := tx.SelectContext(ctx, &have, `SELECT owner, fence, until FROM operation_leases WHERE name = ? FOR UPDATE`, l.cfg.Name); err != nil {
			return db.Error(err)
		}
		until := now.Add(l.cfg.Lease)
		switch {
		case len(have) == 0:
			token = 1
			_, err = db.Exec(ctx, tx, `INSERT INTO operation_leases (name, owner, fence, until) VALUES (?, ?, 1, ?)`, l.cfg.Name, l.owner, until)
			return err
		case have[0].Owner == l.owner:
			token = have[0].Fence
		case have[0].Until.After(now):
			return nil
		default:
			token = have[0].Fence + 1
		}
		_, err = db.Exec(ctx, tx, `UPDATE operation_leases SET owner = ?, fence = ?, until = ? WHERE name = ?`, l.owner, token, until, l.cfg.Name)
		return err
	})
	if errors.Is(err, fault.Conflict) { // another process has inserted the row first
		return 0, nil
	}
	return token, err
}
