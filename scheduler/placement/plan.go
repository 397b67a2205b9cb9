package placement

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
)

// claimPlan says what claims change: claims of consumers, members of groups and what is used of providers. It
// is made of the claims and of what the consumers have, and of nothing else, so all stores decide alike. A store
// reads what the consumers have, makes the plan, checks and changes each group and each provider, and writes
// the consumers' claims: all of it or nothing. Each list is sorted, so that two claims that change the same
// rows lock them in the same order.
type claimPlan struct {
	consumers []consumerChange
	groups    []groupChange
	providers []providerChange
}

// consumerChange replaces what a consumer has with what it is to have.
type consumerChange struct{ have, want *Claim }

// done reports whether the consumer already has what it is to have, which counts as claimed. If not, the error
// is ErrChanged if the consumer does not have what the caller has read.
func (c consumerChange) done() (bool, error) {
	switch have, want := c.have.Generation, c.want.Generation; {
	case sameClaim(c.have, c.want) && (have > 0 || len(c.want.Allocations) == 0):
		return true, nil
	case want == Any, want == have:
		return false, nil
	case have == 0:
		return false, fmt.Errorf("claim of %s, generation %d: there is none: %w", c.want.Consumer, want, ErrChanged)
	default:
		return false, fmt.Errorf("claim of %s, generation %d: it has generation %d: %w", c.want.Consumer, want, have, ErrChanged)
	}
}

// groupChange is a group with a hard policy that consumers join on their hosts.
type groupChange struct {
	id      string
	joining []*Claim
}

// check returns ErrGroup if the policy forbids one of the hosts. hosts are those of the members that the plan
// does not change, with the number of members on each; check adds the joining ones.
func (g *groupChange) check(hosts map[string]int64) error {
	for _, c := range g.joining {
		if err := c.Group.allows(c.host(), hosts); err != nil {
			return err
		}
		hosts[c.host()]++
	}
	return nil
}

// providerChange changes what is used of one provider.
type providerChange struct {
	id         string
	generation int64 // that the provider must have, or 0
	classes    []classChange
}

// classChange changes what is used of one resource class.
type classChange struct {
	class   string
	delta   int64
	amounts []int64 // what single consumers newly get, for the limits per consumer
}

// newPlan returns the plan of changes, and sorts them. ErrChanged: two claims want different generations of a
// provider.
func newPlan(changes []consumerChange) (*claimPlan, error) {
	slices.SortFunc(changes, func(a, b consumerChange) int { return cmp.Compare(a.want.Consumer, b.want.Consumer) })
	plan := &claimPlan{consumers: changes}
	providers := map[string]*providerChange{}
	groups := map[string]*groupChange{}
	for _, c := range changes {
		if err := c.addAllocations(providers); err != nil {
			return nil, err
		}
		if g := c.want.Group; g != nil && g.hasHardPolicy() && len(c.want.Allocations) > 0 {
			if groups[g.ID] == nil {
				groups[g.ID] = &groupChange{id: g.ID}
			}
			groups[g.ID].joining = append(groups[g.ID].joining, c.want)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(groups)) {
		plan.groups = append(plan.groups, *groups[id])
	}
	for _, id := range slices.Sorted(maps.Keys(providers)) {
		p := providers[id]
		// Without a generation to check, a class that stays as it is needs no look at the provider.
		p.classes = slices.DeleteFunc(p.classes, func(cc classChange) bool { return cc.delta == 0 && p.generation == 0 })
		if len(p.classes) > 0 {
			slices.SortFunc(p.classes, func(a, b classChange) int { return cmp.Compare(a.class, b.class) })
			plan.providers = append(plan.providers, *p)
		}
	}
	return plan, nil
}

// addAllocations adds to providers what a consumer gives back and what it gets.
func (c consumerChange) addAllocations(providers map[string]*providerChange) error {
	for _, a := range c.have.Allocations {
		for class, n := range a.Resources {
			changeOf(providers, a.Provider).class(class).delta -= n
		}
	}
	for _, a := range c.want.Allocations {
		p := changeOf(providers, a.Provider)
		if p.generation != 0 && a.Generation != 0 && p.generation != a.Generation {
			return fmt.Errorf("claim of %s: provider %s at generations %d and %d: %w", c.want.Consumer, a.Provider, p.generation, a.Generation, ErrChanged)
		}
		p.generation = max(p.generation, a.Generation)
		for class, n := range a.Resources {
			cc := p.class(class)
			cc.delta += n
			if c.have.amount(a.Provider, class) != n {
				cc.amounts = append(cc.amounts, n)
			}
		}
	}
	return nil
}

// changeOf returns the change of a provider and adds it if there is none.
func changeOf(providers map[string]*providerChange, id string) *providerChange {
	p := providers[id]
	if p == nil {
		p = &providerChange{id: id}
		providers[id] = p
	}
	return p
}

// class returns the change of a class and adds it if there is none. The result is valid until the next call.
func (p *providerChange) class(name string) *classChange {
	i := slices.IndexFunc(p.classes, func(cc classChange) bool { return cc.class == name })
	if i < 0 {
		i = len(p.classes)
		p.classes = append(p.classes, classChange{class: name})
	}
	return &p.classes[i]
}

// changesClaimOf reports whether the plan changes the claim of a consumer.
func (p *claimPlan) changesClaimOf(consumer string) bool {
	return slices.ContainsFunc(p.consumers, func(c consumerChange) bool { return c.want.Consumer == consumer })
}

// check returns why a provider cannot take the change: ErrNoRoom or ErrChanged.
func (p *providerChange) check(have *Provider) error {
	if p.generation != 0 && p.generation != have.Generation {
		return fmt.Errorf("provider %s: generation %d, chosen at %d: %w", p.id, have.Generation, p.generation, ErrChanged)
	}
	for i := range p.classes {
		if err := p.classes[i].check(have); err != nil {
			return err
		}
	}
	return nil
}

// check returns ErrNoRoom if the provider cannot take the change of the class.
func (cc *classChange) check(have *Provider) error {
	i, ok := have.Inventories[cc.class]
	if !ok {
		return fmt.Errorf("provider %s has no %s: %w", have.ID, cc.class, ErrNoRoom)
	}
	for _, n := range cc.amounts {
		if format, bound := i.unit(n); format != "" {
			return fmt.Errorf("provider %s: %s: "+format+": %w", have.ID, cc.class, n, bound, ErrNoRoom)
		}
	}
	if free := i.Free(); cc.delta > 0 && cc.delta > free {
		return fmt.Errorf("provider %s: %s: needs %d, %d free: %w", have.ID, cc.class, cc.delta, free, ErrNoRoom)
	}
	return nil
}

// notFound returns the error for a provider that does not exist.
func (p *providerChange) notFound() error {
	return fault.New(fault.NotFound, "provider %s does not exist", p.id)
}

// appliedTo returns the provider with the change, which check has allowed.
func (p *providerChange) appliedTo(have *Provider) *Provider {
	out := *have
	out.Inventories = maps.Clone(have.Inventories)
	for _, cc := range p.classes {
		i := out.Inventories[cc.class]
		i.Used += cc.delta
		out.Inventories[cc.class] = i
	}
	return &out
}

// errLost means that a claim failed because of another claim, and that it may succeed now.
var errLost = errors.New("another claim was first")

// rejection returns why only so many classes of the change were applied to a provider that now is as have says,
// with these classes applied. It is errLost if the provider has enough for all of them by now.
func (p *providerChange) rejection(have *Provider, applied int) error {
	if p.generation != 0 && p.generation != have.Generation {
		return p.check(have)
	}
	var short []error
	for i := range p.classes {
		if err := p.classes[i].check(have); err != nil {
			short = append(short, err)
		}
	}
	switch missed := len(p.classes) - applied; {
	case len(short) < missed:
		return fmt.Errorf("provider %s: %w: %w", p.id, errLost, ErrChanged)
	case len(short) == missed:
		return short[0]
	}
	// A class that was applied can look short, because it had just enough: then it is not known which one was.
	names := make([]string, len(p.classes))
	for i, cc := range p.classes {
		names[i] = fmt.Sprintf("%d %s", cc.delta, cc.class)
	}
	return fmt.Errorf("provider %s has no room for %s together: %w", p.id, strings.Join(names, ", "), ErrNoRoom)
}
