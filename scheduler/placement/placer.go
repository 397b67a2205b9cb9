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

// Placer chooses hosts and claims them. All fields except Claim and Observe are required. A Placer is safe for concurrent use, and
// any number of placers in any number of processes may use one store. So Hosts and Claim must also be safe for concurrent use.
type Placer[R Requester, H Hosted] struct {
	Scheduler *scheduler.Scheduler[R, H]
	Store     Store
	// Hosts returns the candidate hosts. If fresh is true, Hosts must read the current state of the hosts. Otherwise it may
	// return known states, such as those of a scheduler.Fleet.
	Hosts func(ctx context.Context, fresh bool) ([]H, error)
	// Claim returns the claim of a request on a host. Generation 0 makes a new claim: if the consumer already has a claim, Place
	// returns the host of that claim. Default: a new claim of the request's Consumer, with its Resources, all from the host, and its
	// Group.
	Claim func(req R, host H) Claim
	// Observe is called after each claim that Place has made or has tried to make, in the goroutine of Place. It must not block. It is
	// for metrics, see package placementprom. Default: claims are not observed.
	Observe func(ctx context.Context, o Observation)
}

// Observation is the result of a claim.
type Observation struct {
	// Err is nil, or the store's error: ErrNoRoom, ErrGroup, ErrChanged, or another one.
	Err error
	// Duration is how long the store took.
	Duration time.Duration
}

// Placed is the result of [Placer.Place].
type Placed[H Hosted] struct {
	Host H
	// Decision is the decision that chose the host.
	Decision *scheduler.Decision[H]
	// AlreadyClaimed reports that the consumer had a claim before the call, for example from a call whose reply was
	// lost. Then Host is the host of that claim, and not the choice of the Decision.
	AlreadyClaimed bool
	// Refused has the errors of the claims on the hosts that were ranked before Host in this decision, in the order of
	// the hosts. Place makes a new decision after 5 refused claims.
	Refused []error
}

const (
	// maxRounds is the number of decisions after which Place gives up because no ranked host accepted the claim. The usual
	// cause is another placer that claimed the host first. So each such failure means that another placer has succeeded, and the
	// placers together make progress.
	maxRounds = 20
	// maxRefused is the number of refused claims after which Place reads the hosts' current state.
	maxRefused = 5
)

// Place chooses a host for the request and claims it. If the host does not accept the claim, for example because it has no
// room any more, Place tries the next best hosts, and then makes a new decision from the hosts' current state. Place is
// idempotent: if the consumer has a claim already, Place returns the host of that claim. Place blocks as long as Hosts, the
// filters and the store do.
//
// Errors:
//
//   - scheduler.ErrNoValidHost: no host is feasible in its current state. Placed is not nil and has the decision. With all
//     other errors Placed is nil.
//   - ErrChanged: Placer.Claim set a Generation, and the claim has changed since it was read.
//   - Unavailable: no ranked host accepted the claim in 20 decisions. It wraps the error of the last claim.
//   - NotFound: the consumer has a claim on a host that is not a candidate host.
//   - The errors of the store, of Hosts, of the filters and of the weighers.
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
	return nil, fault.New(fault.Unavailable, "place the request: in %d decisions, no ranked host accepted the claim; try again: %w", maxRounds, last)
}

// claimRanked claims the best ranked host that accepts the claim. If the consumer already has a claim, it sets placed to the
// host of that claim. If no host accepts the claim, refused is the error of the last host that it tried.
func (p *Placer[R, H]) claimRanked(ctx context.Context, req R, placed *Placed[H]) (refused, err error) {
	ranked := placed.Decision.Ranked
	for _, r := range ranked {
		c := p.claim(req, r.Host)
		start := time.Now()
		err := p.Store.Claim(ctx, c)
		if p.Observe != nil {
			p.Observe(ctx, Observation{Err: err, Duration: time.Since(start)})
		}
		switch {
		case err == nil:
			placed.Host = r.Host
			return nil, nil
		case !mayTryNextHost(err):
			return nil, fmt.Errorf("claim on %s: %w", r.Host.Name(), err)
		case errors.Is(err, ErrChanged):
			if err := p.findClaim(ctx, c, err, placed); err != nil || placed.AlreadyClaimed {
				return nil, err
			}
		}
		if placed.Refused = append(placed.Refused, err); len(placed.Refused) == maxRefused {
			break
		}
	}
	return placed.Refused[len(placed.Refused)-1], nil
}

// findClaim sets placed to the host of the claim that the consumer already has, if c is a new claim. If c has an old generation of
// the consumer's claim, every host would refuse c, so findClaim returns the parameter refused, which is the error of c.
func (p *Placer[R, H]) findClaim(ctx context.Context, c Claim, refused error, placed *Placed[H]) error {
	have, err := p.Store.Claims(ctx, c.Consumer)
	switch {
	case err != nil:
		return err
	case c.Generation > 0 && (len(have) == 0 || have[0].Generation != c.Generation):
		return fmt.Errorf("place the request: %w", refused)
	case c.Generation != 0 || len(have) == 0 || have[0].Generation == 0:
		return nil
	}
	hosts, err := p.Hosts(ctx, true)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(hosts, func(h H) bool { return h.Placement().ID == have[0].Host })
	if i < 0 {
		return fault.New(fault.NotFound, "place the request: %s has its claim on %s, which is not a candidate host", c.Consumer, have[0].Host)
	}
	placed.Host, placed.AlreadyClaimed = hosts[i], true
	return nil
}

// mayTryNextHost reports whether another host may succeed after the error of a claim. After ErrChanged, findClaim finds out whether
// the consumer's own claim has changed.
func mayTryNextHost(err error) bool {
	return errors.Is(err, ErrNoRoom) || errors.Is(err, ErrGroup) || errors.Is(err, ErrChanged) || errors.Is(err, fault.NotFound)
}

// claim returns the claim of a request on a host.
func (p *Placer[R, H]) claim(req R, h H) Claim {
	if p.Claim != nil {
		return p.Claim(req, h)
	}
	q := req.Placement()
	return Claim{Consumer: q.Consumer, Group: q.Group, Allocations: []Allocation{{Provider: h.Placement().ID, Resources: q.Resources}}}
}

// Finding is a difference that [Audit] has found.
type Finding struct {
	// Kind is one of these:
	//
	//   - "orphaned": a consumer has a claim and should have none.
	//   - "missing": a consumer should have a claim and has none.
	//   - "different": a consumer's claim is not the one that it should have.
	//   - "miscounted": the used amounts of a provider are not the sums of its claims.
	Kind string `json:"kind"`
	// Claim is the existing claim; for "missing" it is the claim that should exist. Want is set for "different" only: the
	// claim that should exist. Provider is set for "miscounted" only: the provider with its amounts before the repair.
	Claim    Claim     `json:"claim,omitzero"`
	Want     *Claim    `json:"want,omitempty"`
	Provider *Provider `json:"provider,omitempty"`
	// Err is the error of the repair. Nil: the repair succeeded, or AuditConfig.Repair is not set.
	Err error `json:"-"`
	// Repaired reports whether the difference was repaired.
	Repaired bool `json:"repaired"`
}

// AuditConfig configures an [Audit]. Want is required.
type AuditConfig struct {
	// Want returns the claims that the given consumers should have by the component's own records, or all such claims
	// if no consumer is given. Want is called once after the claims were read, and again for each consumer before the
	// consumer's claim is repaired. Audit compares Allocations, Host and Group.ID.
	Want func(ctx context.Context, consumers ...string) ([]Claim, error)
	// Repair makes Audit change the claims to those of Want. Default: Audit changes nothing.
	Repair bool
	// MinAge is the age from which a claim may count as orphaned or different. The age is the time since the claim's last change.
	// A component may claim before it writes its own record, so MinAge should be longer than the time from the claim to the
	// record. Default 5 minutes. Negative: every claim may count. A missing claim counts at once, unless it was made while
	// Audit called Want.
	MinAge time.Duration
}

// Audit compares the claims in a store with the claims that should exist. With AuditConfig.Repair it releases orphaned
// claims, makes missing ones, corrects different ones, and recounts the used amounts. Claims that changed less than MinAge
// ago are neither reported nor changed. Other processes may change claims during the audit: a repair fails with ErrChanged
// if the claim has changed, or if Want no longer returns the same claim. The error of a repair is in its Finding.
//
// Errors: those of the store and of Want. If Store.Recount fails, Audit returns its error together with the findings so
// far, some of which may be repaired. With any other error the findings are nil.
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
	if out, err = dropMadeMeanwhile(ctx, s, out); err != nil {
		return nil, err
	}
	if cfg.Repair {
		for i := range out {
			out[i].Err = out[i].repair(ctx, s, cfg)
			out[i].Repaired = out[i].Err == nil
		}
	}
	miscounted, err := s.Recount(ctx, !cfg.Repair)
	for _, p := range miscounted {
		out = append(out, Finding{Kind: "miscounted", Provider: p, Repaired: cfg.Repair})
	}
	return out, err
}

// compareClaims returns the differences between the existing claims and the wanted ones. It skips existing claims that
// changed after changedBefore, because the component may still be writing their records.
func compareClaims(have, want []Claim, changedBefore time.Time) (out []Finding) {
	missing := map[string]*Claim{}
	for i := range want {
		missing[want[i].Consumer] = &want[i]
	}
	for _, c := range have {
		w := missing[c.Consumer]
		delete(missing, c.Consumer)
		switch {
		case c.At.After(changedBefore):
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

// dropMadeMeanwhile removes the findings of missing claims that were made after Audit had read the claims.
func dropMadeMeanwhile(ctx context.Context, s Store, found []Finding) ([]Finding, error) {
	var missing []string
	for i := range found {
		if found[i].Kind == "missing" {
			missing = append(missing, found[i].Claim.Consumer)
		}
	}
	made := map[string]bool{}
	for part := range slices.Chunk(missing, 1000) { // SQLite allows 32,766 parameters of a statement
		claims, err := s.Claims(ctx, part...)
		if err != nil {
			return nil, err
		}
		for i := range claims {
			made[claims[i].Consumer] = claims[i].Generation != 0
		}
	}
	return slices.DeleteFunc(found, func(f Finding) bool { return f.Kind == "missing" && made[f.Claim.Consumer] }), nil
}

// repair makes the claim that should exist, or releases an orphaned claim, if Want still returns the same claim. Otherwise it
// returns ErrChanged.
func (f *Finding) repair(ctx context.Context, s Store, cfg AuditConfig) error {
	wanted, err := cfg.Want(ctx, f.Claim.Consumer)
	if err != nil {
		return err
	}
	wanted = slices.DeleteFunc(wanted, func(c Claim) bool { return c.Consumer != f.Claim.Consumer || len(c.Allocations) == 0 })
	repaired := Claim{Consumer: f.Claim.Consumer}
	switch f.Kind {
	case "different":
		repaired = *f.Want
	case "missing":
		repaired = f.Claim
	}
	current := Claim{Consumer: f.Claim.Consumer}
	if len(wanted) > 0 {
		current = wanted[0]
	}
	if !sameClaim(&current, &repaired) {
		return fmt.Errorf("consumer %s: the wanted claim has changed: %w", f.Claim.Consumer, ErrChanged)
	}
	repaired.Generation = f.Claim.Generation
	if f.Kind == "missing" {
		repaired.Generation = 0
	}
	if repaired.Group != nil { // its policy is not checked, because the consumer is on that host already
		repaired.Group = &Group{ID: repaired.Group.ID}
	}
	return s.Claim(ctx, repaired)
}
