package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// Begin calls write and begins an operation on a resource, in one transaction: either both take effect, or neither. After the commit
// it notifies a runner, see [Process.Notify]. If write is nil, Begin only begins the operation.
//
// A resource has one open operation at a time. If an operation on a child resource and the operations on its parent must exclude each other, give
// Begin the id of the parent. While such an operation is open, other operations on the parent fail with ErrBusy. An operation that preempts, such as a
// deletion, ends the open operation. The OnEnd of the ended operation is not called, so the deletion itself must write the state of
// the child. If Begin gets the id of the child instead, the operations of a parent and of all its children may run at the same time.
//
// Errors: those of operation.Begin and of write, and of the database.
func Begin[D, O any](ctx context.Context, p *Process[O], k operation.Kind[D], resource string, data *D, write func(ctx context.Context, tx *sqlx.Tx) error) error {
	id := ""
	err := db.Tx(ctx, p.DB, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		if write != nil {
			if err := write(ctx, tx); err != nil {
				return err
			}
		}
		id, err = operation.Begin(ctx, p.Operations, k, resource, data)
		return err
	})
	if err == nil {
		p.Notify(ctx, id)
	}
	return err
}

// NewScheduler returns a scheduler of members: a request gets a member that is up and that no operator has disabled. The parameter cfg
// adds filters and weighers. The default of its Picker is scheduler.Shuffle. NewScheduler panics if cfg is wrong, which is a programmer's error.
func NewScheduler[R any](cfg scheduler.Config[R, membership.Member]) *scheduler.Scheduler[R, membership.Member] {
	up := scheduler.FilterFunc("not_up", func(_ R, m membership.Member) scheduler.Verdict {
		if why := m.Unfit(); why != "" {
			return scheduler.Reject("%s", why)
		}
		return scheduler.Pass
	})
	cfg.Filters = slices.Concat([]scheduler.Filter[R, membership.Member]{up}, cfg.Filters)
	if cfg.Picker == nil {
		cfg.Picker = scheduler.Shuffle
	}
	s, err := scheduler.New(cfg)
	if err != nil {
		panic("component: NewScheduler: " + err.Error())
	}
	return s
}

// AvoidHost returns a weigher that ranks last the member of the host that a request names, such as a host that was tried before and did not
// answer.
func AvoidHost[R any](host func(req R) string) scheduler.Weighted[R, membership.Member] {
	return scheduler.Weighted[R, membership.Member]{Multiplier: 1, Weigher: scheduler.WeigherFunc("avoid", func(req R, m membership.Member) float64 {
		if m.Host == host(req) {
			return 0
		}
		return 1
	})}
}

// Choose returns the member of a kind that a scheduler ranks best for a request. Errors: Unavailable, with the number of members that each filter
// has rejected and one of its reasons, if no member is fit, because one may come back; those of membership.Registry.List.
func Choose[R, O any](ctx context.Context, p *Process[O], s *scheduler.Scheduler[R, membership.Member], kind string, req R) (membership.Member, error) {
	members, err := p.Members.List(ctx, kind)
	if err != nil {
		return membership.Member{}, err
	}
	began := time.Now()
	d, err := s.Rank(ctx, req, members)
	seen := scheduler.Observation{Duration: time.Since(began), Hosts: len(members), Feasible: d.Feasible, Counts: d.Counts}
	if err != nil && !errors.Is(err, scheduler.ErrNoValidHost) {
		seen.Err = err
	}
	p.ObserveDecision(ctx, seen)
	switch {
	case errors.Is(err, scheduler.ErrNoValidHost):
		return membership.Member{}, fault.New(fault.Unavailable, "%w%s", err, firstReasons(d))
	case err != nil:
		return membership.Member{}, err
	}
	return d.Ranked[0].Host, nil
}

// firstReasons returns the first reason of each filter of a decision, such as " (not_up rejects h1: no heartbeat for 2m0s)", or "" if the decision has no
// reasons.
func firstReasons(d *scheduler.Decision[membership.Member]) string {
	var parts []string
	said := map[string]bool{}
	for _, r := range d.Rejected() {
		if r.Reason != "" && !said[r.Filter] {
			said[r.Filter] = true
			parts = append(parts, fmt.Sprintf("%s rejects %s: %s", r.Filter, r.Host, r.Reason))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// ObserveDecision adds a decision to the metrics. It is for scheduler.Config.Observe of schedulers that are called without [Choose]. It is safe
// for concurrent use.
func (p *Process[O]) ObserveDecision(ctx context.Context, o scheduler.Observation) {
	p.tell.decided.Observe(ctx, o)
}

// BuiltIn returns a registry with one driver that has no options, for [Driver].
func BuiltIn[D driver.Driver](name string, d D) *driver.Registry[D] {
	r := new(driver.Registry[D])
	none := func(options json.RawMessage) error { return driver.ParseOptions(options, new(struct{})) }
	r.AddChecked(name, none, func(context.Context, json.RawMessage) (D, error) { return d, nil })
	return r
}
