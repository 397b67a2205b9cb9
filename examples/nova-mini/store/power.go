package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// PowerRule says what follows from the power state of a guest. The rules are Nova's.
type PowerRule int

// The rules.
const (
	PowerFits  PowerRule = iota // nothing follows
	PowerOdd                    // the power state does not fit, and the server stays as it is: the cause may be temporary
	PowerStops                  // the server is stopped, as by a client
	PowerForce                  // the server is stopped although it is stopped or paused already, see ActData.Force
)

// powerRule returns the rule for a server without a task. Servers in the other states, such as a rescued one, stay as they are.
func powerRule(vmState string, is compute.PowerState) PowerRule {
	off := is == compute.Shutdown || is == compute.Crashed
	switch {
	case vmState == Active && (off || is == compute.Suspended):
		return PowerStops
	case vmState == Active && (is == compute.Paused || is == compute.NoState):
		return PowerOdd
	case vmState == Stopped && !off && is != compute.NoState, vmState == compute.VMPaused && off:
		return PowerForce
	case vmState == compute.VMSoftDeleted && is != compute.Shutdown && is != compute.NoState:
		return PowerOdd
	}
	return PowerFits
}

// Guest is what the database knows of the guest of a server.
type Guest struct {
	ServerID string `db:"id"`
	VMState  string `db:"vm_state"`
	// Power is that of [Server.PowerState].
	Power     compute.PowerState `db:"power_state"`
	UpdatedAt time.Time          `db:"updated_at"`
	// Busy reports whether the server has a task.
	Busy bool `db:"busy"`
}

// Version identifies the present state of the server. Each operation on the server changes it when the operation begins and when it ends.
func (g *Guest) Version() string { return versionOf(g.UpdatedAt) }

func versionOf(updated time.Time) string { return updated.UTC().Format(time.RFC3339Nano) }

// Agrees reports whether nothing has to be done if the guest has a power state.
func (g *Guest) Agrees(is compute.PowerState) bool {
	rule := powerRule(g.VMState, is)
	return g.Power == is && !rule.stops()
}

// Guests returns the guests of the servers that the database places on a host, by server id. If ids is not nil, it returns only those among the ids.
func (s *Store) Guests(ctx context.Context, host string, ids []string) (map[string]*Guest, error) {
	out := map[string]*Guest{}
	query, args := `SELECT s.id, s.vm_state, s.updated_at, `+computed["power_state"]+` AS power_state, o.id IS NOT NULL AS busy
		FROM servers s LEFT JOIN operation_current o ON o.resource = s.id WHERE s.host = ?`, []any{host}
	if ids != nil {
		if len(ids) == 0 {
			return out, nil
		}
		in, more, err := sqlx.In(` AND s.id IN (?)`, ids)
		if err != nil {
			return nil, err
		}
		query, args = query+in, append(args, more...)
	}
	var list []*Guest
	if err := s.db.SelectContext(ctx, &list, query, args...); err != nil {
		return nil, db.Error(err)
	}
	for _, g := range list {
		out[g.ServerID] = g
	}
	return out, nil
}

// SeenPower is the power state of a guest that a compute service has read from its driver.
type SeenPower struct {
	ServerID string
	// Host and Instance are those of the compute service, see HoldsHost.
	Host, Instance string
	// Version is the Guest.Version that the compute service had got before it asked the driver.
	Version string
	Power   compute.PowerState
}

// errStop means that a transaction is to be repeated, with a stop of the server. The stop must begin first, because the operation is locked before the server.
var errStop = errors.New("the server must be stopped")

// SetPower stores the power state of a guest. If the server must then be stopped, SetPower also begins the operation of a stop, the same operation that a client begins, with a request ID of its
// own. The result rule says what follows from the power state, and stale reports whether SetPower has changed nothing, because the Version is not that of the server: then an operation has begun or
// ended since the compute service has asked, or the server has moved or was deleted. The error of a process that does not own the host is membership.ErrHeld.
func (s *Store) SetPower(ctx context.Context, seen SeenPower) (rule PowerRule, stale bool, err error) {
	ctx = reqctx.With(ctx, reqctx.Request{ID: reqctx.NewID()}) // os-instance-actions lists a stop by the ID of its request
	rule, err = s.setPower(ctx, seen, PowerFits)
	if errors.Is(err, errStop) {
		rule, err = s.setPower(ctx, seen, rule)
	}
	switch {
	case errors.Is(err, errUnchanged), errors.Is(err, errStop), errors.Is(err, fault.Conflict), errors.Is(err, fault.NotFound): // Conflict: another operation has begun
		return rule, true, nil
	}
	return rule, false, err
}

// stops reports whether a server must be stopped.
func (r PowerRule) stops() bool { return r == PowerStops || r == PowerForce }

// setPower is one transaction of SetPower. The parameter begin is PowerFits, or the rule for whose stop an operation begins. Errors: errStop; errUnchanged.
func (s *Store) setPower(ctx context.Context, seen SeenPower, begin PowerRule) (rule PowerRule, err error) {
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		if err := s.HoldsHost(ctx, seen.Host, seen.Instance); err != nil {
			return err
		}
		if begin.stops() {
			if err := s.beginOperation(ctx, tx, seen.ServerID, compute.Stop, &ActData{Force: begin == PowerForce}); err != nil {
				return err
			}
		}
		var same bool
		if rule, same, err = s.compareGuest(ctx, tx, seen, begin); err != nil || same {
			return err
		}
		_, err := db.Exec(ctx, tx, `UPDATE servers SET power_state = ?, updated_at = ? WHERE id = ?`, seen.Power, now, seen.ServerID)
		return err
	})
	return rule, err
}

// compareGuest locks a server and returns the rule for its guest. The result same reports that the database has the guest's power state already. Errors: those of setPower.
func (s *Store) compareGuest(ctx context.Context, tx *sqlx.Tx, seen SeenPower, begin PowerRule) (rule PowerRule, same bool, err error) {
	srv, err := s.lockServer(ctx, tx, seen.ServerID)
	if err != nil {
		return PowerFits, false, err
	}
	if srv.Host == nil || *srv.Host != seen.Host || versionOf(srv.UpdatedAt) != seen.Version {
		return PowerFits, false, errUnchanged
	}
	rule = powerRule(srv.VMState, seen.Power)
	switch {
	case rule.stops() && begin != rule:
		return rule, false, errStop
	case rule.stops():
		return rule, false, nil
	}
	return rule, srv.Power != nil && *srv.Power == seen.Power, checkIdle(ctx, tx, seen.ServerID, begin)
}

// checkIdle returns errUnchanged if a server that need not be stopped has an operation, such as the stop of the parameter begin.
func checkIdle(ctx context.Context, tx *sqlx.Tx, id string, begin PowerRule) error {
	var open []string
	if err := tx.SelectContext(ctx, &open, `SELECT id FROM operation_current WHERE resource = ?`, id); err != nil {
		return db.Error(err)
	}
	if begin.stops() || len(open) > 0 {
		return errUnchanged
	}
	return nil
}

// ValidPower reports whether a power state is one of package compute.
func ValidPower(p compute.PowerState) bool {
	return slices.Contains([]compute.PowerState{compute.NoState, compute.Running, compute.Paused, compute.Shutdown, compute.Crashed, compute.Suspended}, p)
}
