package store

import (
	"context"
	"errors"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/operation"
)

// Claims returns the store of the servers' claims on hosts. A claim succeeds only while the server waits for a host;
// otherwise it fails with [compute.ErrStale]. A claim and a deletion of one server never run at the same time, because both lock the
// server's operation.
func (s *Store) Claims() placement.Store { return claims{s.claims, s} }

type claims struct {
	*placement.SQL

	store *Store
}

func (c claims) Claim(ctx context.Context, list ...placement.Claim) error {
	return db.Tx(ctx, c.store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		for _, claim := range list {
			op, err := c.store.ops.Lock(ctx, tx, claim.Consumer)
			switch {
			case errors.Is(err, fault.NotFound):
				return compute.ErrStale
			case err != nil:
				return err
			case !choosesHost(op.Kind) || op.State != operation.Running || op.StepName != StepSchedule && op.StepName != "":
				return compute.ErrStale
			}
		}
		return c.ClaimTx(ctx, tx, list...)
	})
}

// choosesHost reports whether operations of a kind choose a host for the server.
func choosesHost(kind string) bool {
	return kind == Create.Name || actionOf(kind).Info().Schedules
}

// ReleaseClaim releases the claim of a server, if the server has one.
func (s *Store) ReleaseClaim(ctx context.Context, id string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error { return s.release(ctx, tx, id) })
}

// release is ReleaseClaim in a transaction.
func (s *Store) release(ctx context.Context, tx *sqlx.Tx, serverID string) error {
	return s.claims.ClaimTx(ctx, tx, placement.Claim{Consumer: serverID, Generation: placement.Any})
}
