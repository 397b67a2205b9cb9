package component

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/scheduler/placement/placementprom"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// Host is a member with its resources. The ID of the provider is the host name of the member. The filter "not_up" rejects a host whose member
// is not up, and "disabled" one that an operator has disabled.
type Host struct {
	*placement.Provider

	Member membership.Member
}

// PlacementConfig configures a [Placement]. Kind is required.
type PlacementConfig[R placement.Requester] struct {
	// Kind is the kind of the members that are hosts: the name of the RPC interface that they serve.
	Kind string
	// Options configure the filters and weighers of package placement. All of them are used; a filter or weigher that does not apply to a
	// request has no effect.
	Options placement.Options
	// Filters and Weighers are added to those of package placement.
	Filters  []scheduler.Filter[R, *Host]
	Weighers []scheduler.Weighted[R, *Host]
	// Subset is the number of best hosts of which one is chosen at random, so that several processes do not all choose the same one. Default 1.
	Subset int
}

// Placement chooses hosts by their resources, and claims the resources. It is safe for concurrent use.
type Placement[R placement.Requester] struct {
	// Claims are the claims in the database.
	Claims *placement.SQL

	kind        string
	log         *slog.Logger
	members     *membership.Registry
	fleet       scheduler.Fleet[*Host]
	placer      placement.Placer[R, *Host]
	retryPlacer placement.Placer[R, *Host] // for requests that wait already: their decisions are not measured
	signal      func(ctx context.Context) error
	freed       atomic.Bool // set when resources were freed that requests may wait for
}

const (
	// refreshInterval is the time between two reads of the hosts. A decision uses the last read, which may be out of
	// date. Therefore the claim checks the host again.
	refreshInterval = 2 * time.Second
	// maxHostAge is the highest age of the state of a host. An older state is not used.
	maxHostAge = 5 * refreshInterval
	// roomPoll is the longest time between two attempts of a request that waits for room.
	roomPoll = 15 * time.Second
	// maxRanked is how many hosts a decision ranks.
	maxRanked = 10
)

// NewPlacement returns a placement. It adds to the process a loop that reads the hosts, and the metrics of the placement. The
// component's Migrations must contain [placement.Migrations]. NewPlacement panics if the configuration is wrong, if the process has no
// database, or if the process has a placement already: these are programmers' errors.
func NewPlacement[R placement.Requester, O any](p *Process[O], cfg PlacementConfig[R]) *Placement[R] {
	p.needDatabase("NewPlacement")
	if cfg.Kind == "" {
		panic("component: NewPlacement: no Kind: set the name of the interface that the hosts serve")
	}
	schedule := scheduler.Config[R, *Host]{
		Filters:  slices.Concat([]scheduler.Filter[R, *Host]{scheduler.Fresh[R, *Host](maxHostAge), notUp[R]()}, placement.Filters[R, *Host](cfg.Options), cfg.Filters),
		Weighers: slices.Concat(placement.Weighers[R, *Host](cfg.Options), cfg.Weighers), Picker: scheduler.Subset(max(cfg.Subset, 1)),
		MaxRanked: maxRanked,
	}
	retry, err := scheduler.New(schedule)
	if err != nil {
		panic("component: NewPlacement: " + err.Error())
	}
	schedule.Observe = p.ObserveDecision
	rank, err := scheduler.New(schedule)
	if err != nil {
		panic("component: NewPlacement: " + err.Error())
	}
	pl := &Placement[R]{Claims: placement.NewSQL(p.DB), kind: cfg.Kind, log: p.Log, members: p.Members}
	pl.signal = func(ctx context.Context) error { return p.signalRoom(ctx, cfg.Kind) }
	metrics := placementprom.New()
	metrics.AddProviders(pl.providers)
	if err := p.Metrics.Register(metrics); err != nil {
		panic("component: NewPlacement: the process has a placement already: " + err.Error())
	}
	pl.placer = placement.Placer[R, *Host]{Scheduler: rank, Store: liveClaims{pl.Claims, p.Members, cfg.Kind}, Hosts: pl.Hosts, Observe: metrics.Observe}
	pl.retryPlacer = pl.placer
	pl.retryPlacer.Scheduler = retry
	p.Add(cfg.Kind+" hosts", service.Loop(refreshInterval, pl.poll))
	return pl
}

// notUp returns the filter that rejects hosts whose members are not up, by the clock of the database.
func notUp[R any]() scheduler.Filter[R, *Host] {
	return scheduler.FilterFunc("not_up", func(_ R, h *Host) scheduler.Verdict {
		if !h.Member.Up {
			return scheduler.Reject("%s", h.Member.Why)
		}
		return scheduler.Pass
	})
}

// poll reads the hosts, and lets requests that wait for room try again if room was freed.
func (pl *Placement[R]) poll(ctx context.Context) error {
	err := pl.refresh(ctx)
	if err == nil && pl.freed.Swap(false) {
		if err = pl.signal(ctx); err != nil {
			pl.freed.Store(true)
		}
	}
	return err
}

// refresh reads the hosts: the members of the kind that have resources.
func (pl *Placement[R]) refresh(ctx context.Context) error {
	began := time.Now()
	members, err := pl.members.List(ctx, pl.kind)
	if err != nil {
		return err
	}
	byHost := make(map[string]membership.Member, len(members))
	for _, m := range members {
		byHost[m.Host] = m
	}
	providers, err := pl.Claims.Providers(ctx)
	if err != nil {
		return err
	}
	var hosts []*Host
	for _, one := range providers {
		if m, ok := byHost[one.ID]; ok {
			hosts = append(hosts, &Host{applyMemberState(one, &m), m})
		}
	}
	pl.fleet.Report(hosts...)
	pl.fleet.Forget(time.Since(began)) // hosts that are no longer members
	return nil
}

// applyMemberState returns a copy of a provider. The copy is disabled if an operator has disabled the member.
func applyMemberState(p *placement.Provider, m *membership.Member) *placement.Provider {
	out := *p
	if m.Disabled {
		out.Disabled = "disabled: " + m.DisabledReason
	}
	return &out
}

// Hosts returns all hosts. If fresh is set, Hosts reads them now. Otherwise it returns those of the last read; the process reads them
// every 2 s. The caller must not change the hosts. Errors are those of the database. If fresh is set and no host is up, the error is
// Unavailable, because this is an outage and not a lack of room.
func (pl *Placement[R]) Hosts(ctx context.Context, fresh bool) ([]*Host, error) {
	if !fresh {
		return pl.fleet.Hosts(), nil
	}
	if err := pl.refresh(ctx); err != nil {
		return nil, err
	}
	hosts := pl.fleet.Hosts()
	if !slices.ContainsFunc(hosts, func(h *Host) bool { return h.Member.Up }) {
		return nil, fault.New(fault.Unavailable, "none of the %d hosts of kind %s is up", len(hosts), pl.kind)
	}
	return hosts, nil
}

// providers returns the resources of all hosts, for metrics.
func (pl *Placement[R]) providers(context.Context) ([]*placement.Provider, error) {
	hosts := pl.fleet.Hosts()
	out := make([]*placement.Provider, len(hosts))
	for i, h := range hosts {
		out[i] = h.Provider
	}
	return out, nil
}

// Place chooses a host for a request and claims its resources, see [placement.Placer.Place]. It is idempotent by the request's
// Consumer. If no host is feasible, the log and the Meta of the error have the reasons, see [scheduler.ErrNoValidHost].
func (pl *Placement[R]) Place(ctx context.Context, req R) (*Host, error) {
	placed, err := pl.placer.Place(ctx, req)
	if errors.Is(err, scheduler.ErrNoValidHost) {
		pl.log.InfoContext(ctx, "no valid host", "kind", pl.kind, "consumer", req.Placement().Consumer, "decision", placed.Decision.String())
	}
	if err != nil {
		return nil, err
	}
	return pl.placed(placed, req), nil
}

// placed adds a claim to the hosts in memory, until they are read again, and returns the claim's host.
func (pl *Placement[R]) placed(placed *placement.Placed[*Host], req R) *Host {
	if !placed.AlreadyClaimed {
		pl.fleet.Update(placed.Host.Name(), func(h *Host) *Host { return &Host{h.With(req.Placement()), h.Member} })
	}
	return placed.Host
}

// PlaceOrWait is [Placement.Place] for a step that waits for room instead of failing. If no host is feasible, the error is
// [operation.WaitFor]. Then the step is called again when [Placement.Release], or the report of a host with more resources, has freed
// room, and at the latest after 15 s. The Limit of the step bounds the wait. When room is free, all waiting requests try again, in the
// order of their priorities.
func (pl *Placement[R]) PlaceOrWait(ctx context.Context, op *operation.Op, req R) (*Host, error) {
	placer := &pl.placer
	if op.Waits > 0 {
		placer = &pl.retryPlacer
	}
	placed, err := placer.Place(ctx, req)
	if errors.Is(err, scheduler.ErrNoValidHost) {
		if op.Waits == 0 { // once for each request
			pl.log.InfoContext(ctx, "no valid host, request waits for room", "kind", pl.kind, "consumer", req.Placement().Consumer, "operation", op.ID, "decision", placed.Decision.String())
		}
		return nil, operation.WaitFor(roomOf(pl.kind), roomPoll)
	}
	if err != nil {
		return nil, err
	}
	if op.Waits > 0 {
		pl.log.InfoContext(ctx, "request has room after waiting", "kind", pl.kind, "consumer", req.Placement().Consumer, "operation", op.ID, "host", placed.Host.Name())
	}
	return pl.placed(placed, req), nil
}

// Release ends the claim of a consumer, in the transaction of the context (see db.Tx) if it has one. Within 2 s after the commit,
// requests that wait for room try again. A missing claim is not an error. Errors are those of [placement.SQL.Claim].
func (pl *Placement[R]) Release(ctx context.Context, d *sqlx.DB, consumer string) error {
	err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
		return pl.Claims.ClaimTx(ctx, tx, placement.Claim{Consumer: consumer, Generation: placement.Any})
	})
	if err != nil {
		return err
	}
	db.AfterCommit(ctx, d, func() { pl.freed.Store(true) })
	return nil
}

// roomOf returns the peer for operation.WaitFor: the name by which operations that wait for room of
// a kind are signaled.
func roomOf(kind string) string { return "room of " + kind }

// signalRoom makes the operations that wait for room of a kind continue.
func (p *Process[O]) signalRoom(ctx context.Context, kind string) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	r := p.runner
	if r == nil {
		r = operation.NewRunner(operation.RunnerConfig{Store: p.Operations, Host: p.Host, Logger: p.Log})
	}
	return r.Signal(ctx, roomOf(kind))
}

// liveClaims is a store of claims. Before each claim it reads from the registry whether the host accepts work, because the hosts
// in memory may be out of date.
type liveClaims struct {
	placement.Store

	members *membership.Registry
	kind    string
}

// Claim implements placement.Store. Errors: placement.ErrChanged, if the host does not accept work.
func (c liveClaims) Claim(ctx context.Context, claims ...placement.Claim) error {
	for i := range claims {
		for _, a := range claims[i].Allocations {
			m, err := c.members.Get(ctx, c.kind, a.Provider)
			if err != nil && !errors.Is(err, fault.NotFound) {
				return err
			}
			reason := "it has left"
			if err == nil {
				reason = m.Unfit()
			}
			if reason != "" {
				return fmt.Errorf("host %s accepts no work: %s: %w", a.Provider, reason, placement.ErrChanged)
			}
		}
	}
	return c.Store.Claim(ctx, claims...)
}

// resourcesMessage has the resources of a host.
type resourcesMessage struct {
	Kind     string              `json:"kind"`
	Provider *placement.Provider `json:"provider"`
}

// Resources adds the part that reports the resources of this host. The parameter kind is the kind of a [Placement]. The function read returns the resources; the
// part sets their ID to the name of the host. The part writes the resources at its start, when they have changed (checked every report_interval), and once a minute. Its start waits
// until a process with the database answers, because a process without a database asks such a process to write. Only this part calls read, one call at a time,
// and only this part reads the result. Errors after the start are logged once, and the report is repeated.
func (p *Process[O]) Resources(kind string, read func(ctx context.Context) (*placement.Provider, error)) {
	if p.reports[p.Host] {
		panic("component: Resources: the resources of host " + p.Host + " are reported already: report all classes at once")
	}
	if p.reports == nil {
		p.reports = map[string]bool{}
	}
	p.reports[p.Host] = true
	r := &resourceReport[O]{p: p, kind: kind, read: read, host: p.Host}
	r.loop = service.Loop(p.base.ReportInterval, func(ctx context.Context) error { return r.report(ctx) })
	p.addPart(phaseRunner, p.named(kind+" resources"), p.read.label("host"), r) // starts when the host is a member
}

// resourceReport is the part of [Process.Resources].
type resourceReport[O any] struct {
	p          *Process[O]
	kind, host string
	read       func(ctx context.Context) (*placement.Provider, error)
	loop       *service.LoopPart
	last       []byte    // what was reported, as JSON, because read may change its result later
	at         time.Time // the time of the last report
}

// Unchanged resources are reported again after maxReportAge, because an operator may have removed them.
const maxReportAge = time.Minute

func (r *resourceReport[O]) Start(ctx context.Context) error {
	if err := r.report(ctx); err != nil {
		return err
	}
	return r.loop.Start(ctx)
}

func (r *resourceReport[O]) Stop(ctx context.Context) error { return r.loop.Stop(ctx) }

func (r *resourceReport[O]) report(ctx context.Context) error {
	have, err := r.read(ctx)
	if err != nil {
		return err
	}
	if have == nil {
		return errors.New("the function given to Process.Resources has returned no provider")
	}
	now := *have
	now.ID, now.Generation = r.host, placement.Any
	text, err := json.Marshal(&now)
	if err != nil || bytes.Equal(r.last, text) && time.Since(r.at) < maxReportAge {
		return err
	}
	if r.p.DB != nil {
		err = r.p.putResources(ctx, r.kind, &now)
	} else {
		limited, cancel := context.WithTimeout(ctx, remoteTimeout)
		defer cancel()
		_, err = rpc.Call(limited, r.p.Client, reportResources, rpc.Any, &resourcesMessage{r.kind, &now})
		err = translateUnanswered(ctx, err)
	}
	if err == nil {
		r.last, r.at = text, time.Now()
	}
	return err
}

// putResources writes the resources of a host. If the host is new or has more resources than before, requests that wait for room try
// again. Precondition: the host is not a member of the kind.
func (p *Process[O]) putResources(ctx context.Context, kind string, provider *placement.Provider) error {
	if _, err := p.Members.Get(ctx, kind, provider.ID); errors.Is(err, fault.NotFound) {
		return fault.New(fault.Precondition, "host %s reports resources and is not a member of kind %s", provider.ID, kind)
	} else if err != nil {
		return err
	}
	store := placement.NewSQL(p.DB)
	had, err := store.Providers(ctx, provider.ID)
	if err != nil {
		return err
	}
	if _, err := store.Put(ctx, provider); err != nil || len(had) > 0 && !hasMore(provider, had[0]) {
		return err
	}
	if err := p.signalRoom(ctx, kind); err != nil { // without the signal the requests try again within 15 s
		p.Log.WarnContext(ctx, "requests that wait for room not notified", "kind", kind, "error", err)
	}
	return nil
}

// hasMore reports whether the provider p has more to offer than before: a higher capacity of a
// class, or it is no longer disabled. The parameter had is its earlier state.
func hasMore(p, had *placement.Provider) bool {
	for class, i := range p.Inventories {
		if i.Capacity() > had.Inventories[class].Capacity() {
			return true
		}
	}
	return had.Disabled != "" && p.Disabled == ""
}
