package placement

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
)

// Placer chooses hosts and claims them. All fields but Claim are required. A Placer is safe for concurrent use. Any
// number of placers in any number of processes may use one store.
type Placer[R Requester, H Hosted] struct {
	Scheduler *scheduler.Scheduler[R, H]
	Store     Store
	// Hosts returns the candidates. If fresh is set, it must read their current state. Otherwise it may return
	// what is known, such as the hosts of a scheduler.Fleet.
	Hosts func(ctx context.Context, fresh bool) ([]H, error)
	// Claim returns what a request claims on a host. Default: its Resources, all from the host, with its Group, as
	// a new claim of its Consumer.
	Claim func(req R, host H) Claim
}

// Placed is the result of [Placer.Place].
type Placed[H Hosted] struct {
	Host H
	// Alternates are the hosts to try next, best first, if the work fails on Host. They are not claimed.
	Alternates []H
	// Decision is the one that chose the host.
	Decision *scheduler.Decision[H]
	// AlreadyClaimed reports that the consumer had a claim before, such as from a call whose reply was lost. Host
	// is the host of that claim, which the Decision did not choose.
	AlreadyClaimed bool
	// Refused has, for each better host, why it could not be claimed.
	Refused []error
}

const (
	// maxRounds is how many decisions Place makes if others claim the room between the decision and the claim. In
	// each round another request was placed.
	maxRounds = 20
	// maxRefused is after how many hosts without room Place reads the hosts' state again.
	maxRefused = 5
)

// Place chooses a host for the request and claims it. If the host has no room any more, Place tries the next best
// one, and then decides again from fresh state. A consumer that has a claim keeps it, so Place may be repeated.
//
// Errors: scheduler.ErrNoValidHost if no host is feasible by fresh state; Placed then has the decision. Placed is nil
// with all other errors: Unavailable if others claimed the room first 20 times; those of the store, of Hosts and of
// the filters.
func (p *Placer[R, H]) Place(ctx context.Context, req R) (*Placed[H], error) {
	var last error
	for round, fresh := 0, false; round < maxRounds; round++ {
		hosts, err := p.Hosts(ctx, fresh)
		if err != nil {
			return nil, err
		}
		d, err := p.Scheduler.Rank(ctx, req, hosts)
		switch {
		case err == nil:
			placed := &Placed[H]{Decision: d}
			if last, err = p.claimRanked(ctx, req, placed); err != nil {
				return nil, err
			}
			if last == nil {
				return placed, nil
			}
		case !errors.Is(err, scheduler.ErrNoValidHost):
			return nil, err
		case fresh:
			return &Placed[H]{Decision: d}, err
		}
		fresh = true
	}
	return nil, fault.New(fault.Unavailable, "every host that had room was taken by others, %d times: %w", maxRounds, last)
}

// claimRanked claims the best host of a decision that has room. If none has, refused says why the last one has not.
func (p *Placer[R, H]) claimRanked(ctx context.Context, req R, placed *Placed[H]) (refused, err error) {
	ranked := placed.Decision.Ranked
	for i, r := range ranked {
		err := p.Store.Claim(ctx, p.claim(req, r.Host))
		switch {
		case err == nil:
			placed.Host = r.Host
			for _, a := range ranked[i+1:] {
				placed.Alternates = append(placed.Alternates, a.Host)
			}
			return nil, nil
		case !mayTryNextHost(err):
			return nil, fmt.Errorf("claim on %s: %w", r.Host.Name(), err)
		case errors.Is(err, ErrChanged):
			if err := p.findClaim(ctx, req, placed); err != nil || placed.AlreadyClaimed {
				return nil, err
			}
		}
		if placed.Refused = append(placed.Refused, err); len(placed.Refused) == maxRefused {
			break
		}
	}
	return placed.Refused[len(placed.Refused)-1], nil
}

// findClaim looks for a claim that the consumer has already.
func (p *Placer[R, H]) findClaim(ctx context.Context, req R, placed *Placed[H]) error {
	c := p.claim(req, placed.Decision.Ranked[0].Host)
	have, err := p.Store.Claims(ctx, c.Consumer)
	if err != nil || len(have) == 0 || have[0].Generation == 0 || c.Generation != 0 {
		return err
	}
	hosts, err := p.Hosts(ctx, true)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(hosts, func(h H) bool { return h.Placement().ID == have[0].Host })
	if i < 0 {
		return fault.New(fault.NotFound, "%s has its claim on %s, which is not a candidate", c.Consumer, have[0].Host)
	}
	placed.Host, placed.AlreadyClaimed = hosts[i], true
	return nil
}

// mayTryNextHost reports whether another host may have room after an error of a claim.
func mayTryNextHost(err error) bool {
	return errors.Is(err, ErrNoRoom) || errors.Is(err, ErrGroup) || errors.Is(err, ErrChanged) || errors.Is(err, fault.NotFound)
}

// claim returns what a request claims on a host.
func (p *Placer[R, H]) claim(req R, h H) Claim {
	if p.Claim != nil {
		return p.Claim(req, h)
	}
	q := req.Placement()
	return Claim{Consumer: q.Consumer, Group: q.Group, Allocations: []Allocation{{Provider: h.Placement().ID, Resources: q.Resources}}}
}

// Finding is a difference that [Audit] has found.
type Finding struct {
	// Kind is "orphaned": a consumer has a claim and should have none; "missing": a consumer should have a claim and
	// has none; "different": a consumer has another claim than it should have; "miscounted": what is used of a
	// provider is not the sum of its claims.
	Kind string `json:"kind"`
	// Claim is the claim that exists, or the claim that is missing. Want is the claim that should exist instead of a
	// different one. Provider is the miscounted provider.
	Claim    Claim     `json:"claim,omitzero"`
	Want     *Claim    `json:"want,omitempty"`
	Provider *Provider `json:"provider,omitempty"`
	// Err is why the difference could not be repaired.
	Err error `json:"-"`
	// Repaired reports whether it was repaired.
	Repaired bool `json:"repaired"`
}

// AuditConfig configures an [Audit]. Want is required.
type AuditConfig struct {
	// Want returns the claims that the given consumers should have by the component's own records, or all claims if
	// no consumer is given. It is called once after the claims were read, and again for a consumer before its
	// claim is repaired. Allocations, Host and Group.ID count.
	Want func(ctx context.Context, consumers ...string) ([]Claim, error)
	// Repair changes the claims to what they should be. Default: Audit changes nothing.
	Repair bool
	// MinAge is the age that a claim must have to count as orphaned or different, because a component may claim
	// before it writes its own record. It should be longer than this ever takes. Default 5 minutes. Negative:
	// claims of every age count.
	MinAge time.Duration
}

// Audit compares the claims in a store with the claims that should exist. With Repair it releases orphaned claims,
// makes missing ones, corrects different ones and counts again what is used. Claims younger than MinAge are neither
// findings nor changed. Changes at the same time are safe: a repair fails if the claim has changed, or if Want no
// longer returns the same. A repair that finds no room has the error in its Finding. The error of Audit is that of
// reading.
func Audit(ctx context.Context, s Store, cfg AuditConfig) ([]Finding, error) {
	have, err := s.Claims(ctx)
	if err != nil {
		return nil, err
	}
	now, err := s.Now(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.MinAge == 0 {
		cfg.MinAge = 5 * time.Minute
	}
	want, err := cfg.Want(ctx)
	if err != nil {
		return nil, err
	}
	out := compareClaims(have, want, now.Add(-cfg.MinAge))
	if cfg.Repair {
		for i := range out {
			out[i].Err = out[i].repair(ctx, s, cfg)
			out[i].Repaired = out[i].Err == nil
		}
	}
	wrong, err := s.Recount(ctx, !cfg.Repair)
	for _, p := range wrong {
		out = append(out, Finding{Kind: "miscounted", Provider: p, Repaired: cfg.Repair})
	}
	return out, err
}

// compareClaims returns the differences between the claims that exist and those that should. Claims that have changed
// after youngest are left out, because the component may be creating their consumers.
func compareClaims(have, want []Claim, youngest time.Time) (out []Finding) {
	missing := map[string]*Claim{}
	for i := range want {
		missing[want[i].Consumer] = &want[i]
	}
	for _, c := range have {
		w := missing[c.Consumer]
		delete(missing, c.Consumer)
		switch {
		case c.At.After(youngest):
		case w == nil || len(w.Allocations) == 0:
			out = append(out, Finding{Kind: "orphaned", Claim: c})
		case !sameClaim(&c, w):
			out = append(out, Finding{Kind: "different", Claim: c, Want: w})
		}
	}
	for i := range want {
		if w := missing[want[i].Consumer]; w != nil && len(w.Allocations) > 0 {
			out = append(out, Finding{Kind: "missing", Claim: *w})
		}
	}
	return out
}

// repair changes a claim to what it should be, if Want still returns the same.
func (f *Finding) repair(ctx context.Context, s Store, cfg AuditConfig) error {
	now, err := cfg.Want(ctx, f.Claim.Consumer)
	if err != nil {
		return err
	}
	now = slices.DeleteFunc(now, func(c Claim) bool { return c.Consumer != f.Claim.Consumer || len(c.Allocations) == 0 })
	should := Claim{Consumer: f.Claim.Consumer}
	switch f.Kind {
	case "different":
		should = *f.Want
	case "missing":
		should = f.Claim
	}
	is := Claim{Consumer: f.Claim.Consumer}
	if len(now) > 0 {
		is = now[0]
	}
	if !sameClaim(&is, &should) {
		return fmt.Errorf("consumer %s: what should be: %w", f.Claim.Consumer, ErrChanged)
	}
	should.Generation = f.Claim.Generation
	if f.Kind == "missing" {
		should.Generation = 0
	}
	if should.Group != nil { // its policy is not checked, because the consumer is on that host already
		should.Group = &Group{ID: should.Group.ID}
	}
	return s.Claim(ctx, should)
}
