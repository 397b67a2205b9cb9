package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/scheduler/placement"
)

// Need returns what of a host's inventories is claimed for r.
func Need(r compute.Resources) placement.Resources {
	out := placement.Resources{}
	for _, a := range r.Amounts() {
		if a.N > 0 {
			out[a.Class] = int64(a.N)
		}
	}
	return out
}

// Audit compares the claims with the servers, and repairs them if it is told to:
// a server on a host has a claim there, of what its flavor says, or both of those of a resize; one that waits
// for a host, or is deleted before it has one, may have a claim; any other has
// none. Claims that have changed within minAge are left alone. It is safe while all services run.
func (s *Store) Audit(ctx context.Context, repair bool, minAge time.Duration) ([]placement.Finding, error) {
	if minAge == 0 {
		minAge = -1 // no age is too young
	}
	return placement.Audit(ctx, repairs{s.claims, s}, placement.AuditConfig{Want: s.wanted, Repair: repair, MinAge: minAge})
}

// wanted returns the claims that there should be, of all servers or of some.
func (s *Store) wanted(ctx context.Context, ids ...string) ([]placement.Claim, error) {
	query, args := `SELECT * FROM `+serversWithTasks, []any(nil)
	if len(ids) > 0 {
		var err error
		if query, args, err = sqlx.In(query+` WHERE id IN (?)`, ids); err != nil {
			return nil, err
		}
	}
	var servers []Server
	if err := s.db.SelectContext(ctx, &servers, query, args...); err != nil {
		return nil, db.Error(err)
	}
	var out []placement.Claim
	var between []string
	for i := range servers {
		switch srv := &servers[i]; {
		case srv.Host != nil:
			out = append(out, placement.Claim{Consumer: srv.ID, Allocations: []placement.Allocation{{Provider: *srv.Host, Resources: Need(srv.Holds())}}})
		case srv.Task() != "":
			between = append(between, srv.ID)
		}
	}
	if len(between) == 0 {
		return out, nil
	}
	have, err := s.claims.Claims(ctx, between...)
	return append(out, have...), err
}

// repairs are the claims, of which an audit makes one only while the server is on
// its host.
type repairs struct {
	*placement.SQL

	store *Store
}

func (r repairs) Claim(ctx context.Context, list ...placement.Claim) error {
	return db.Tx(ctx, r.store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		for _, c := range list {
			if len(c.Allocations) == 0 {
				continue
			}
			var id string
			if err := r.store.get(ctx, tx, &id, compute.ErrStale, `SELECT id FROM servers WHERE id = ? AND host = ? FOR UPDATE`, c.Consumer, c.Allocations[0].Provider); err != nil {
				return err
			}
		}
		return r.ClaimTx(ctx, tx, list...)
	})
}
