package placement

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/armature-go/armature/fault"
)

// Errors of a [Store]. Their texts name the provider, and the numbers.
var (
	// ErrNoRoom means that a provider has not enough left. Another one may.
	ErrNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "not enough room left")
	// ErrGroup means that the group's policy forbids the host.
	ErrGroup = fault.Sentinel(fault.Exhausted, "GroupPolicy", "the group's policy forbids the host")
	// ErrChanged means that something is no longer as the caller read it.
	ErrChanged = fault.Sentinel(fault.Conflict, "ConcurrentUpdate", "changed meanwhile")
)

// Any is the generation of a caller who does not mind what was there before.
const Any = -1

// Allocation is what a consumer has of one provider.
type Allocation struct {
	Provider string `json:"provider"`
	// Generation is the provider's, as it was when it was chosen: the claim fails
	// with ErrChanged if it has another one by then. 0: it may have changed.
	Generation int64     `json:"generation,omitempty"`
	Resources  Resources `json:"resources"`
}

// Claim is what a consumer has, or shall have.
type Claim struct {
	Consumer string `json:"consumer"`
	// Generation is that of the consumer's claim as it was read: counted up with
	// each change, 0 if it has none. [Any]: whatever it is.
	Generation int64 `json:"generation"`
	// Allocations are all that it has, from one or several providers. None: the
	// claim is dropped.
	Allocations []Allocation `json:"allocations"`
	// Host is the provider that counts for the group. Default: the first one.
	Host string `json:"host,omitempty"`
	// Group is the group that the consumer belongs to, if any. Of a claim that
	// was read only ID is set.
	Group *Group `json:"group,omitempty"`
	// At is when the claim was last changed; the store sets it.
	At time.Time `json:"at,omitzero"`
}

// host returns the provider that counts for the group.
func (c *Claim) host() string {
	if c.Host == "" && len(c.Allocations) > 0 {
		return c.Allocations[0].Provider
	}
	return c.Host
}

func (c *Claim) group() string {
	if c.Group == nil {
		return ""
	}
	return c.Group.ID
}

// Store keeps providers and claims. What claims hold of a provider is never more
// than its capacity, unless that shrinks, whoever else claims at the same time,
// and whatever process is killed. placementtest.TestStore judges an
// implementation; there are [SQL] and [Memory]. All methods are safe for
// concurrent use, and may fail with Unavailable, or Unknown, when what was asked
// for may have been done: everything may be repeated then.
type Store interface {
	// Put adds or replaces a provider and returns it with its new generation,
	// which is another one if anything has changed but signs of life, tasks and
	// failures. Of its aggregates only the names count. An inventory may become
	// too small for what is used, but not vanish: Precondition. Others: Invalid;
	// NotFound if there is no such aggregate; ErrChanged if the generation is not
	// that of p, where 0 stands for a new one and [Any] for whichever.
	Put(ctx context.Context, p *Provider) (*Provider, error)
	// Remove removes a provider. Precondition if it is used. That there is none is
	// no error.
	Remove(ctx context.Context, id string) error
	// Providers returns those with the given IDs, without those that there are
	// not, or all if no ID is given, by ID. They are the caller's.
	Providers(ctx context.Context, ids ...string) ([]*Provider, error)
	// PutAggregate adds or replaces an aggregate, RemoveAggregate removes one from
	// all providers, too. That there is none is no error.
	PutAggregate(ctx context.Context, a Aggregate) error
	RemoveAggregate(ctx context.Context, name string) error

	// Claim makes the claims as given, all or none. A provider in which a claim
	// makes the excess no larger may be over its capacity. A claim that is as
	// asked for already counts as made, so that one whose outcome is unknown can
	// be made again. Errors: ErrNoRoom, ErrGroup, ErrChanged; NotFound for a
	// provider that there is not; Invalid.
	Claim(ctx context.Context, claims ...Claim) error
	// Claims returns the claims of the given consumers, one of generation 0 for
	// one without, or all claims if no consumer is given, by consumer.
	Claims(ctx context.Context, consumers ...string) ([]Claim, error)
	// Now returns the clock by which Claim.At is set: the clocks of the processes may differ.
	Now(ctx context.Context) (time.Time, error)
	// Recount makes what providers believe to be used the sum of the claims, and
	// returns those that were wrong, as they were. Only repairs by hand in the
	// tables can make it necessary. With dry it changes nothing.
	Recount(ctx context.Context, dry bool) ([]*Provider, error)
}

// Release drops a consumer's claim. That it has none is no error.
func Release(ctx context.Context, s Store, consumer string) error {
	return s.Claim(ctx, Claim{Consumer: consumer, Generation: Any})
}

// Move claims for a consumer on another host and hands what it has now to
// holder, in one transaction: both sides are claimed until [Release] of the
// holder ends the move, or [Revert] undoes it. The holder is an ID that claims
// nothing else, such as the move's own. A move that was made already, by a caller
// who did not learn of it, counts as made. Errors are those of Store.Claim;
// Precondition if the consumer has no claim.
func Move(ctx context.Context, s Store, holder string, to Claim) error {
	return again(ctx, ErrChanged, func() error {
		have, err := s.Claims(ctx, to.Consumer, holder)
		if err != nil {
			return err
		}
		mine, held := have[0], have[1]
		if mine.Consumer != to.Consumer {
			mine, held = held, mine
		}
		switch {
		case held.Generation > 0 && same(&mine, &to):
			return nil
		case held.Generation > 0:
			return fault.New(fault.Precondition, "move of %s: %s holds a claim already", to.Consumer, holder)
		case mine.Generation == 0:
			return fault.New(fault.Precondition, "move of %s: it has no claim", to.Consumer)
		}
		next := to
		next.Generation = mine.Generation
		return s.Claim(ctx, next, Claim{Consumer: holder, Allocations: mine.Allocations, Host: mine.Host})
	})
}

// Revert undoes a [Move]: the consumer has again what the holder has, and
// nothing else. Without a claim of the holder it does nothing. group is the
// consumer's, or nil; its policy is not asked, for the consumer was there before.
func Revert(ctx context.Context, s Store, consumer, holder string, group *Group) error {
	return again(ctx, ErrChanged, func() error {
		have, err := s.Claims(ctx, consumer, holder)
		if err != nil {
			return err
		}
		mine, held := have[0], have[1]
		if mine.Consumer != consumer {
			mine, held = held, mine
		}
		if held.Generation == 0 {
			return nil
		}
		if group != nil {
			group = &Group{ID: group.ID}
		}
		return s.Claim(ctx,
			Claim{Consumer: consumer, Generation: mine.Generation, Allocations: held.Allocations, Host: held.Host, Group: group},
			Claim{Consumer: holder, Generation: held.Generation})
	})
}

// changes is how often what was read may change before it can be used.
const changes = 20

// again runs f again, after a random pause, as long as it fails with lost: what
// it read has changed before it could use it.
func again(ctx context.Context, lost error, f func() error) (err error) {
	gap := time.Millisecond
	for range changes {
		if err = f(); !errors.Is(err, lost) {
			return err
		}
		t := time.NewTimer(rand.N(gap))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		gap = min(2*gap, 100*time.Millisecond)
	}
	return err
}

// check returns an error with code Invalid if the claims make no sense.
func check(claims []Claim) error {
	seen := map[string]bool{}
	for i := range claims {
		c := &claims[i]
		if err := id("consumer", c.Consumer); err != nil {
			return err
		}
		if seen[c.Consumer] {
			return fault.New(fault.Invalid, "two claims of %s at once", c.Consumer)
		}
		seen[c.Consumer] = true
		if c.Group != nil {
			if err := id("group", c.Group.ID); err != nil {
				return err
			}
		}
		providers := map[string]bool{}
		for _, a := range c.Allocations {
			if err := id("provider", a.Provider); err != nil {
				return err
			}
			if providers[a.Provider] {
				return fault.New(fault.Invalid, "claim of %s: provider %s twice", c.Consumer, a.Provider)
			}
			providers[a.Provider] = true
			if len(a.Resources) == 0 {
				return fault.New(fault.Invalid, "claim of %s: nothing of provider %s", c.Consumer, a.Provider)
			}
			for class, n := range a.Resources {
				if n <= 0 || n > 1<<53 || !nameRule.MatchString(class) {
					return fault.New(fault.Invalid, "claim of %s: %d of %q", c.Consumer, n, class)
				}
			}
		}
		if c.Host != "" && !providers[c.Host] {
			return fault.New(fault.Invalid, "claim of %s: its host %s is not among the providers", c.Consumer, c.Host)
		}
	}
	return nil
}

// same reports whether a claim is as asked for already.
func same(have, want *Claim) bool {
	if len(have.Allocations) != len(want.Allocations) || have.host() != want.host() || have.group() != want.group() {
		return false
	}
	for _, a := range want.Allocations {
		if !slices.ContainsFunc(have.Allocations, func(b Allocation) bool {
			return b.Provider == a.Provider && maps.Equal(b.Resources, a.Resources)
		}) {
			return false
		}
	}
	return true
}

// change is what claims do to one provider.
type change struct {
	provider   string
	generation int64
	classes    []classChange // by class
}

type classChange struct {
	class   string
	delta   int64
	amounts []int64 // that consumers newly have
}

// pair is a claim that is to be made, and what there is.
type pair struct{ have, want *Claim }

// made reports whether the claim is as asked for, which counts as made. If not,
// it returns ErrChanged if what there is is not what the caller has read.
func (p pair) made() (bool, error) {
	switch {
	case same(p.have, p.want) && (p.have.Generation > 0 || len(p.want.Allocations) == 0):
		return true, nil
	case p.want.Generation == Any, p.want.Generation == p.have.Generation:
		return false, nil
	case p.have.Generation == 0:
		return false, fmt.Errorf("claim of %s, generation %d: there is none: %w", p.want.Consumer, p.want.Generation, ErrChanged)
	}
	return false, fmt.Errorf("claim of %s, generation %d: it has generation %d: %w", p.want.Consumer, p.want.Generation, p.have.Generation, ErrChanged)
}

// plan returns what the claims change, by provider: always in the same order, so
// that claims do not wait for each other in a circle.
func plan(pairs []pair) ([]change, error) {
	type key struct{ provider, class string }
	deltas, amounts, generations := map[key]int64{}, map[key][]int64{}, map[string]int64{}
	for _, p := range pairs {
		before := map[key]int64{}
		for _, a := range p.have.Allocations {
			for class, n := range a.Resources {
				before[key{a.Provider, class}] = n
				deltas[key{a.Provider, class}] -= n
			}
		}
		for _, a := range p.want.Allocations {
			if g := generations[a.Provider]; g != 0 && a.Generation != 0 && g != a.Generation {
				return nil, fmt.Errorf("claim of %s: provider %s at generations %d and %d: %w", p.want.Consumer, a.Provider, g, a.Generation, ErrChanged)
			}
			generations[a.Provider] = max(generations[a.Provider], a.Generation)
			for class, n := range a.Resources {
				k := key{a.Provider, class}
				deltas[k] += n
				if before[k] != n {
					amounts[k] = append(amounts[k], n)
				}
			}
		}
	}
	byProvider := map[string]*change{}
	for k, delta := range deltas {
		c := byProvider[k.provider]
		if c == nil {
			c = &change{provider: k.provider, generation: generations[k.provider]}
			byProvider[k.provider] = c
		}
		if delta != 0 || generations[k.provider] != 0 {
			c.classes = append(c.classes, classChange{k.class, delta, amounts[k]})
		}
	}
	var out []change
	for _, c := range byProvider {
		if len(c.classes) == 0 {
			continue
		}
		slices.SortFunc(c.classes, func(a, b classChange) int { return cmp.Compare(a.class, b.class) })
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b change) int { return cmp.Compare(a.provider, b.provider) })
	return out, nil
}

// fits returns why a provider cannot take a change, or nil.
func (c *change) fits(p *Provider) error {
	if c.generation != 0 && c.generation != p.Generation {
		return fmt.Errorf("provider %s: generation %d, chosen at %d: %w", p.ID, p.Generation, c.generation, ErrChanged)
	}
	for _, cc := range c.classes {
		i, ok := p.Inventories[cc.class]
		if !ok {
			return fmt.Errorf("provider %s has no %s: %w", p.ID, cc.class, ErrNoRoom)
		}
		for _, n := range cc.amounts {
			if format, bound := i.unit(n); format != "" {
				return fmt.Errorf("provider %s: %s: "+format+": %w", p.ID, cc.class, n, bound, ErrNoRoom)
			}
		}
		if free := i.Free(); cc.delta > 0 && cc.delta > free {
			return fmt.Errorf("provider %s: %s: needs %d, %d free: %w", p.ID, cc.class, cc.delta, free, ErrNoRoom)
		}
	}
	return nil
}

// allows returns why the group's policy forbids a host, or nil. others are the
// hosts of the other members, with how many are there.
func (g *Group) allows(host string, others map[string]int64) error {
	if g == nil {
		return nil
	}
	switch most := max(g.MaxPerHost, 1); {
	case g.Policy == Affinity && len(others) > 0 && others[host] == 0:
		return fmt.Errorf("group %s is on %s, not on %s: %w", g.ID, slices.Min(slices.Collect(maps.Keys(others))), host, ErrGroup)
	case g.Policy == AntiAffinity && others[host] >= most:
		return fmt.Errorf("group %s has %d of at most %d on %s: %w", g.ID, others[host], most, host, ErrGroup)
	}
	return nil
}
