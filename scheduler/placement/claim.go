package placement

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/armature-go/armature/fault"
)

// Errors of a [Store]. Their texts name the provider and the amounts.
var (
	// ErrNoRoom means that the provider does not have enough left. Another provider may have.
	ErrNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "not enough room left")
	// ErrGroup means that the group's policy forbids the host.
	ErrGroup = fault.Sentinel(fault.Exhausted, "GroupPolicy", "the group's policy forbids the host")
	// ErrChanged means that a claim or a provider is not as the caller has read it.
	ErrChanged = fault.Sentinel(fault.Conflict, "ConcurrentUpdate", "changed meanwhile")
)

// Any is the generation of a caller that accepts every generation.
const Any = -1

// Allocation is what a consumer has of one provider.
type Allocation struct {
	Provider string `json:"provider"`
	// Generation is the provider's generation at the time of the decision: the claim fails with
	// ErrChanged if the provider has another one. 0: any generation.
	Generation int64     `json:"generation,omitempty"`
	Resources  Resources `json:"resources"`
}

// Claim is what a consumer has or is to have.
type Claim struct {
	Consumer string `json:"consumer"`
	// Generation is the generation of the consumer's claim as the caller has read it. Each change of the claim
	// adds 1. 0: the consumer has no claim. [Any]: the claim may have changed.
	Generation int64 `json:"generation"`
	// Allocations are all that the consumer has, from one or several providers. None: the claim is released.
	Allocations []Allocation `json:"allocations"`
	// Host is the provider that counts for the group. Default: the provider of the first allocation.
	Host string `json:"host,omitempty"`
	// Group is the consumer's group, if any. A claim that a Store returns has the group's ID only.
	Group *Group `json:"group,omitempty"`
	// At is the time of the last change of the claim, which the store sets.
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

// Store keeps providers and claims. The claims on a provider never exceed its capacity, unless the capacity
// shrinks: this holds for claims at the same time and for processes that are killed. placementtest.TestStore
// judges an implementation; there are [SQL] and [Memory]. All methods are safe for concurrent use. They may fail
// with Unavailable, or with Unknown if the change may have been made. Every call may be repeated then.
type Store interface {
	// Put adds or replaces a provider and returns it with its generation. The generation grows by 1 if anything
	// but heartbeats, tasks and failures changes. Of the provider's aggregates only the names count. Errors:
	// Precondition if an inventory that is used is removed (it may shrink below what is used); Invalid; NotFound
	// if an aggregate does not exist; ErrChanged if the stored generation is not that of p: 0 stands for a new
	// provider, [Any] for every generation.
	Put(ctx context.Context, p *Provider) (*Provider, error)
	// Remove removes a provider. A provider that does not exist is not an error. Precondition: it is used.
	Remove(ctx context.Context, id string) error
	// Providers returns the providers with the given IDs that exist, or all if no ID is given, sorted by ID. The
	// caller may change them.
	Providers(ctx context.Context, ids ...string) ([]*Provider, error)
	// PutAggregate adds or replaces an aggregate. RemoveAggregate removes one, also from all providers; an
	// aggregate that does not exist is not an error.
	PutAggregate(ctx context.Context, a Aggregate) error
	RemoveAggregate(ctx context.Context, name string) error

	// Claim makes all claims or none. A provider may stay above its capacity if the claims do not take more of
	// it. A consumer that already has what it is to have counts as claimed, so that a claim with an unknown
	// outcome can be repeated. Errors: ErrNoRoom, ErrGroup, ErrChanged; NotFound for a provider that does not
	// exist; Invalid.
	Claim(ctx context.Context, claims ...Claim) error
	// Claims returns the claims of the given consumers, sorted by consumer, with generation 0 for a consumer
	// without a claim. It returns all claims if no consumer is given.
	Claims(ctx context.Context, consumers ...string) ([]Claim, error)
	// Now returns the time of the clock that sets Claim.At, because the clocks of processes may differ.
	Now(ctx context.Context) (time.Time, error)
	// Recount sets what is used of each provider to the sum of its claims, and returns the providers that
	// differed, as they were. They differ only after changes by hand in the tables. With dry nothing is changed.
	Recount(ctx context.Context, dry bool) ([]*Provider, error)
}

// Release releases the claim of a consumer. A consumer without a claim is not an error.
func Release(ctx context.Context, s Store, consumer string) error {
	return s.Claim(ctx, Claim{Consumer: consumer, Generation: Any})
}

// Move gives a consumer the claim to, on another host, and gives the consumer's present claim to holder, in one
// transaction. Both hosts are claimed until [Release] of the holder ends the move, or [Revert] undoes it.
// holder is an ID without a claim, such as the ID of the move. A move that is already made, such as by a call
// with an unknown outcome, counts as made. Errors are those of Store.Claim; Precondition if the consumer has no
// claim, or if the holder has another one.
func Move(ctx context.Context, s Store, holder string, to Claim) error {
	return retryOn(ctx, ErrChanged, func() error {
		have, err := s.Claims(ctx, to.Consumer, holder)
		if err != nil {
			return err
		}
		mine, held := have[0], have[1]
		if mine.Consumer != to.Consumer {
			mine, held = held, mine
		}
		switch {
		case held.Generation > 0 && sameClaim(&mine, &to):
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

// Revert undoes a [Move]: the consumer gets the holder's claim back instead of its own. A holder without a
// claim is not an error: nothing is changed. group is the consumer's group or nil; its policy is not checked,
// because the consumer was on that host before.
func Revert(ctx context.Context, s Store, consumer, holder string, group *Group) error {
	return retryOn(ctx, ErrChanged, func() error {
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

// maxRetries is how often a claim is tried whose premises change before it can be made.
const maxRetries = 20

// retryOn runs f until it does not fail with target, at most 20 times, with a random back-off of up to 100 ms. The
// error is the last one of f, or the context's.
func retryOn(ctx context.Context, target error, f func() error) (err error) {
	delay := time.Millisecond
	for range maxRetries {
		if err = f(); !errors.Is(err, target) {
			return err
		}
		t := time.NewTimer(rand.N(delay))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		delay = min(2*delay, 100*time.Millisecond)
	}
	return err
}

// checkClaims returns Invalid if claims are malformed, or if two of them are of one consumer.
func checkClaims(claims []Claim) error {
	seen := map[string]bool{}
	for i := range claims {
		c := &claims[i]
		if seen[c.Consumer] {
			return fault.New(fault.Invalid, "two claims of %s at once", c.Consumer)
		}
		seen[c.Consumer] = true
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

// check returns Invalid if the claim is malformed.
func (c *Claim) check() error {
	if err := checkName("consumer", c.Consumer); err != nil {
		return err
	}
	if c.Group != nil {
		if err := checkName("group", c.Group.ID); err != nil {
			return err
		}
	}
	providers := map[string]bool{}
	for _, a := range c.Allocations {
		if err := a.check(c.Consumer); err != nil {
			return err
		}
		if providers[a.Provider] {
			return fault.New(fault.Invalid, "claim of %s: provider %s twice", c.Consumer, a.Provider)
		}
		providers[a.Provider] = true
	}
	if c.Host != "" && !providers[c.Host] {
		return fault.New(fault.Invalid, "claim of %s: its host %s is not among the providers", c.Consumer, c.Host)
	}
	return nil
}

// check returns Invalid if the allocation is malformed.
func (a *Allocation) check(consumer string) error {
	if err := checkName("provider", a.Provider); err != nil {
		return err
	}
	if len(a.Resources) == 0 {
		return fault.New(fault.Invalid, "claim of %s: nothing of provider %s", consumer, a.Provider)
	}
	for class, n := range a.Resources {
		if n <= 0 || n > 1<<53 || !nameRule.MatchString(class) {
			return fault.New(fault.Invalid, "claim of %s: %d of %q", consumer, n, class)
		}
	}
	return nil
}

// amount returns what the claim has of a class of a provider.
func (c *Claim) amount(provider, class string) int64 {
	for _, a := range c.Allocations {
		if a.Provider == provider {
			return a.Resources[class]
		}
	}
	return 0
}

// sameClaim reports whether a consumer has what it is to have.
func sameClaim(have, want *Claim) bool {
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

// hasHardPolicy reports whether the store must check the policy.
func (g *Group) hasHardPolicy() bool { return g.Policy == Affinity || g.Policy == AntiAffinity }

// allows returns ErrGroup if the group's policy forbids a host. others are the hosts of the other members, with
// the number of members on each.
func (g *Group) allows(host string, others map[string]int64) error {
	switch most := max(g.MaxPerHost, 1); {
	case g.Policy == Affinity && len(others) > 0 && others[host] == 0:
		return fmt.Errorf("group %s is on %s, not on %s: %w", g.ID, slices.Min(slices.Collect(maps.Keys(others))), host, ErrGroup)
	case g.Policy == AntiAffinity && others[host] >= most:
		return fmt.Errorf("group %s has %d of at most %d on %s: %w", g.ID, others[host], most, host, ErrGroup)
	}
	return nil
}
