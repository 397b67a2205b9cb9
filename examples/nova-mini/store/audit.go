package store

import (
	"context"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/scheduler/placement"
)

// Need converts the resources of a server to amounts by resource class. It leaves out classes with the amount 0.
func Need(r compute.Resources) placement.Resources {
	out := placement.Resources{}
	for _, a := range r.Amounts() {
		if a.N > 0 {
			out[a.Class] = int64(a.N)
		}
	}
	return out
}

// Audit compares the claims with the servers and returns each difference. If repair is set, Audit corrects the
// claims. The rules are:
//
//   - A server on a host has a claim there, with its group and the amounts of its flavor. During a resize it has the
//     larger amount of the two flavors for each resource.
//   - A server with a task but without a host may have a claim: the server waits for a host, or is being deleted.
//   - Any other server has no claim.
//
// Audit skips claims that have changed within minAge; with minAge 0 it compares all claims. It is safe while all services run.
func (s *Store) Audit(ctx context.Context, repair bool, minAge time.Duration) ([]placement.Finding, error) {
	if minAge == 0 {
		minAge = -1 // compare claims of every age
	}
	return placement.Audit(ctx, repairs{s.claims, s}, placement.AuditConfig{Want: s.wanted, Repair: repair, MinAge: minAge})
}

// wanted returns the claims that the servers should have. If the caller names servers by ids, wanted returns only the claims of these servers.
func (s *Store) wanted(ctx context.Context, ids ...string) ([]placement.Claim, error) {
	query, args := `SELECT `+strings.Join(shownColumns(), ", ")+`, task_state FROM `+serversWithTasks, []any(nil)
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
			out = append(out, placement.Claim{Consumer: srv.ID, Group: srv.group(), Allocations: []placement.Allocation{{Provider: *srv.Host, Resources: Need(srv.Holds())}}})
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

// repairs is the store of claims for an audit. It makes a claim only if the server is still on the host of the claim.
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
