package placement

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// Errors of a [Store]. Their texts name the provider, the group or the consumer, and the amounts or the generations.
var (
	// ErrNoRoom means that the provider has not enough free resources, or that the amount is not within the limits Min,
	// Max and Step of the inventory. Another provider may accept the claim.
	ErrNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "not enough room left")
	// ErrGroup means that the group's policy forbids the host.
	ErrGroup = fault.Sentinel(fault.Exhausted, "GroupPolicy", "the group's policy forbids the host")
	// ErrChanged means that another process has changed the claim or the provider after the caller had read it.
	ErrChanged = fault.Sentinel(fault.Conflict, "ConcurrentUpdate", "changed by another process")
)

// Any is the generation that matches every generation: the change is made even if another process has changed the claim or
// the provider.
const Any = -1

// Allocation is the part of a claim on one provider: the amounts that the consumer has reserved there.
type Allocation struct {
	Provider string `json:"provider"`
	// Generation is the provider's generation that the decision used. The claim fails with ErrChanged if the provider
	// has another generation. 0: every generation is accepted.
	Generation int64     `json:"generation,omitempty"`
	Resources  Resources `json:"resources"`
}

// Claim is the complete set of resources that are reserved for a consumer, or, as an argument, the set to reserve.
type Claim struct {
	Consumer string `json:"consumer"`
	// Generation is the generation of the consumer's present claim as the caller has read it. Each change of the claim
	// adds 1. 0: the consumer has no claim. [Any]: every generation is accepted.
	Generation int64 `json:"generation"`
	// Allocations are the parts of the claim, one for each provider. Empty: the claim is released.
	Allocations []Allocation `json:"allocations"`
	// Host is the provider with which the group's policy is checked, for a claim on several providers. Default: the provider
	// of the first allocation.
	Host string `json:"host,omitempty"`
	// Group is the consumer's group, if any. A claim that a Store returns has the group's ID only.
	Group *Group `json:"group,omitempty"`
	// At is the time of the last change of the claim. The Store sets it.
	At time.Time `json:"at,omitzero"`
}

// host returns the provider with which the group's policy is checked.
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

// Store keeps providers and claims. The claims on a provider never exceed its capacity, unless the capacity shrinks. This
// also holds if many processes claim at the same time, and if processes are killed. [SQL] and [Memory] implement it;
// placementtest.TestStore checks an implementation. All methods are safe for concurrent use, and block until the store has
// answered or ctx ends. Besides the errors below they may fail with Unavailable, or with Unknown if the change may have
// been made. After both errors the call may be repeated.
type Store interface {
	// Put adds or replaces a provider and returns it with its new generation. The generation grows by 1 if a field
	// changes other than the heartbeat, the tasks and the failures. Put ignores Used, Consumers, Members and At of p. It
	// uses only the names of the aggregates of p. Errors: Precondition if p lacks an inventory that is in use (a capacity
	// below the used amount is not an error); Invalid if p is not valid; NotFound if an aggregate does not exist;
	// ErrChanged if the stored generation is not that of p. In p, 0 stands for a new provider, and [Any] for every
	// generation.
	Put(ctx context.Context, p *Provider) (*Provider, error)
	// Remove removes a provider. It is not an error if the provider does not exist. Error: Precondition if the provider is in use.
	Remove(ctx context.Context, id string) error
	// Providers returns the providers with the given IDs, without those that do not exist, or all providers if no ID is
	// given. They are sorted by ID. The caller owns them.
	Providers(ctx context.Context, ids ...string) ([]*Provider, error)
	// PutAggregate adds or replaces an aggregate. Error: Invalid if its name is not valid, or its metadata are too large.
	PutAggregate(ctx context.Context, a Aggregate) error
	// RemoveAggregate removes an aggregate, and removes all providers from it. It is not an error if the aggregate does not exist.
	RemoveAggregate(ctx context.Context, name string) error

	// Claim makes all claims or none. Each claim replaces the consumer's present one. A provider above its capacity does not
	// fail the call if the claims do not increase the provider's used amount. If a consumer already has the wanted claim,
	// the claim counts as made, so that a call with an unknown outcome can be repeated. Errors: ErrNoRoom, ErrGroup,
	// ErrChanged; NotFound if a provider does not exist; Invalid if a claim is not valid.
	Claim(ctx context.Context, claims ...Claim) error
	// Claims returns the claims of the given consumers, sorted by consumer. A consumer without a claim has a Claim of
	// generation 0. If no consumer is given, Claims returns all claims. The caller owns them.
	Claims(ctx context.Context, consumers ...string) ([]Claim, error)
	// Now returns the time of the store's clock. Compare Claim.At with this time, because the clocks of processes may differ.
	Now(ctx context.Context) (time.Time, error)
	// Recount sets the used amounts of each provider to the sums of its claims. It returns the providers whose amounts
	// were different, in their old state. Amounts become different only if the tables are changed by hand. If dry is true,
	// Recount changes nothing.
	Recount(ctx context.Context, dry bool) ([]*Provider, error)
}

// Release releases the claim of a consumer. It is not an error if the consumer has no claim. Errors: those of [Store].Claim.
func Release(ctx context.Context, s Store, consumer string) error {
	return s.Claim(ctx, Claim{Consumer: consumer, Generation: Any})
}

// Move replaces the claim of next.Consumer by next, usually on another host, and gives the replaced claim to another consumer,
// holder, in one transaction. next.Generation is ignored. Both hosts stay claimed until the caller confirms the move with a
// [Release] of holder, or undoes it with [Revert]. The parameter holder is an ID without a claim, such as the ID of the
// move. If the move is already made, for example by a call with an unknown outcome, Move returns nil. Errors: those of
// Store.Claim; Precondition if the consumer has no claim, or if the holder has one and the move is not made; Invalid if holder is
// the consumer.
func Move(ctx context.Context, s Store, holder string, next Claim) error {
	if holder == next.Consumer {
		return fault.New(fault.Invalid, "move of %s: the holder must not be the consumer itself", next.Consumer)
	}
	return retryOn(ctx, ErrChanged, func() error {
		have, err := s.Claims(ctx, next.Consumer, holder)
		if err != nil {
			return err
		}
		present, held := have[0], have[1]
		if present.Consumer != next.Consumer {
			present, held = held, present
		}
		switch {
		case held.Generation > 0 && sameClaim(&present, &next):
			return nil
		case held.Generation > 0:
			return fault.New(fault.Precondition, "move of %s: the holder %s has a claim already", next.Consumer, holder)
		case present.Generation == 0:
			return fault.New(fault.Precondition, "move of %s: the consumer has no claim", next.Consumer)
		}
		claim := next
		claim.Generation = present.Generation
		return s.Claim(ctx, claim, Claim{Consumer: holder, Allocations: present.Allocations, Host: present.Host})
	})
}

// Revert undoes a [Move]: the holder's claim replaces the consumer's claim, and the holder has no claim afterwards. If
// the holder has no claim, Revert changes nothing and returns nil. The parameter group is the consumer's group or nil. The group's policy is
// not checked, because the consumer was on that host before. Errors: those of Store.Claim; Invalid if holder is the consumer.
func Revert(ctx context.Context, s Store, consumer, holder string, group *Group) error {
	if holder == consumer {
		return fault.New(fault.Invalid, "revert of %s: the holder must not be the consumer itself", consumer)
	}
	return retryOn(ctx, ErrChanged, func() error {
		have, err := s.Claims(ctx, consumer, holder)
		if err != nil {
			return err
		}
		present, held := have[0], have[1]
		if present.Consumer != consumer {
			present, held = held, present
		}
		if held.Generation == 0 {
			return nil
		}
		if group != nil {
			group = &Group{ID: group.ID}
		}
		return s.Claim(ctx,
			Claim{Consumer: consumer, Generation: present.Generation, Allocations: held.Allocations, Host: held.Host, Group: group},
			Claim{Consumer: holder, Generation: held.Generation})
	})
}

// maxAttempts is how often retryOn calls its function at most.
const maxAttempts = 20

// retryOn calls f again while f fails with the error target, at most maxAttempts times, with a random back-off of up to 100 ms.
// It returns the last error of f, or the context's.
func retryOn(ctx context.Context, target error, f func() error) (err error) {
	for attempt := range maxAttempts {
		if err = f(); !errors.Is(err, target) {
			return err
		}
		if !backoff.Sleep(ctx, backoff.FullJitter(attempt+1, time.Millisecond, 100*time.Millisecond)) {
			return ctx.Err()
		}
	}
	return err
}

// checkClaims returns Invalid if a claim is not valid, or if two claims have the same consumer.
func checkClaims(claims []Claim) error {
	seen := map[string]bool{}
	for i := range claims {
		c := &claims[i]
		if seen[c.Consumer] {
			return fault.New(fault.Invalid, "two claims of %s in one call", c.Consumer)
		}
		seen[c.Consumer] = true
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

// check returns Invalid if the claim is not valid.
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
			return fault.New(fault.Invalid, "claim of %s: provider %s is listed twice", c.Consumer, a.Provider)
		}
		providers[a.Provider] = true
	}
	if c.Host != "" && !providers[c.Host] {
		return fault.New(fault.Invalid, "claim of %s: its host %s is not among the providers", c.Consumer, c.Host)
	}
	return nil
}

// check returns Invalid if the allocation is not valid.
func (a *Allocation) check(consumer string) error {
	if err := checkName("provider", a.Provider); err != nil {
		return err
	}
	if len(a.Resources) == 0 {
		return fault.New(fault.Invalid, "claim of %s: the allocation of provider %s has no resources", consumer, a.Provider)
	}
	for class, n := range a.Resources {
		if !nameRule.MatchString(class) {
			return fault.New(fault.Invalid, "claim of %s: the resource class %q is not valid: use 1 to 255 characters of A-Z, 0-9 and _", consumer, class)
		}
		if n <= 0 || n > 1<<53 {
			return fault.New(fault.Invalid, "claim of %s: the amount %d of %s is not between 1 and 2^53", consumer, n, class)
		}
	}
	return nil
}

// amount returns the claim's amount of a class of a provider.
func (c *Claim) amount(provider, class string) int64 {
	for _, a := range c.Allocations {
		if a.Provider == provider {
			return a.Resources[class]
		}
	}
	return 0
}

// sameClaim reports whether two claims have the same allocations, host and group.
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

// checkHost returns ErrGroup if the group's policy forbids a host. The parameter others has the number of the other
// members on each host.
func (g *Group) checkHost(host string, others map[string]int64) error {
	switch most := max(g.MaxPerHost, 1); {
	case g.Policy == Affinity && len(others) > 0 && others[host] == 0:
		return fmt.Errorf("group %s is on host %s, not on %s: %w", g.ID, slices.Min(slices.Collect(maps.Keys(others))), host, ErrGroup)
	case g.Policy == AntiAffinity && others[host] >= most:
		return fmt.Errorf("group %s: host %s has %d of at most %d members: %w", g.ID, host, others[host], most, ErrGroup)
	}
	return nil
}
