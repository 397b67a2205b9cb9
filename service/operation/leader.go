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
	// Name is what there is one leader of, such as "volume-audit".
	Name string
	// Host is this process's name, for people.
	Host string
	// Lease is how long a leader may be silent before there may be another one.
	// Default 15 s.
	Lease time.Duration
}

// Leader is a process's candidacy for being the one that does something, by the same kind
// of lease that operations have. It is safe for concurrent use.
type Leader struct {
	cfg   LeaderConfig
	owner string
}

// NewLeader returns a candidacy.
func NewLeader(cfg LeaderConfig) *Leader {
	cfg.Lease = cmp.Or(cfg.Lease, 15*time.Second)
	return &Leader{cfg, cfg.Host + "/" + rand.Text()[:8]}
}

// Only returns a function for service.Loop that calls f if this process is the leader or
// can become it, and does nothing if it is not. f's context ends when the lease can no
// longer be renewed. fence is higher for whoever leads later: what takes it along can
// turn away a leader that was thought dead. The lease is kept between calls if they
// come more often than it ends.
func (l *Leader) Only(f func(ctx context.Context, fence int64) error) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		fence, err := l.lead(ctx)
		if err != nil || fence == 0 {
			return err
		}
		held, lose := context.WithCancelCause(ctx)
		defer lose(nil)
		done := make(chan struct{})
		defer func() { lose(nil); <-done }()
		go func() {
			defer close(done)
			l.renew(held, lose)
		}()
		return f(held, fence)
	}
}

// lead takes or renews the lease, and returns the fence, or 0 if somebody else leads.
func (l *Leader) lead(ctx context.Context) (fence int64, err error) {
	err = db.Tx(ctx, l.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		fence = 0
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
			fence = 1
			_, err = exec(ctx, tx, `INSERT INTO operation_leases (name, owner, fence, until) VALUES (?, ?, 1, ?)`, l.cfg.Name, l.owner, until)
			return err
		case have[0].Owner == l.owner:
			fence = have[0].Fence
		case have[0].Until.After(now):
			return nil
		default:
			fence = have[0].Fence + 1
		}
		_, err = exec(ctx, tx, `UPDATE operation_leases SET owner = ?, fence = ?, until = ? WHERE name = ?`, l.owner, fence, until, l.cfg.Name)
		return err
	})
	if errors.Is(err, fault.Conflict) { // two were the first at once
		return 0, nil
	}
	return fence, err
}

func (l *Leader) renew(ctx context.Context, lose context.CancelCauseFunc) {
	tick := time.NewTicker(l.cfg.Lease / 3)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begin := time.Now()
		call, cancel := context.WithTimeout(ctx, l.cfg.Lease/3)
		fence, err := l.lead(call)
		cancel()
		switch {
		case err == nil && fence == 0:
			lose(errLost)
			return
		case err == nil:
			last = begin
		case time.Since(last) > l.cfg.Lease*2/3:
			lose(errLost)
			return
		}
	}
}

// Resign gives the lease up, so that another process can lead at once. It is for the stop
// of a process.
func (l *Leader) Resign(ctx context.Context) error {
	_, err := exec(ctx, l.cfg.Store.db, `UPDATE operation_leases SET owner = '', until = UTC_TIMESTAMP(6) WHERE name = ? AND owner = ?`, l.cfg.Name, l.owner)
	return err
}
