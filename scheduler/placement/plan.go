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

// claimPlan says what a call of Claim changes: claims of consumers, members of groups and used amounts of providers. It
// depends only on the new claims and on the consumers' present claims, so all stores decide alike. A store reads the
// consumers' present claims and makes the plan. Then it checks the groups, checks and changes the providers, and writes the
// consumers' claims, all or nothing. Each list is sorted, so that two calls that change the same rows lock them in the same
// order.
type claimPlan struct {
	consumers []consumerChange
	groups    []groupChange
	providers []providerChange
}

// consumerChange replaces a consumer's present claim with the wanted one.
type consumerChange struct{ have, want *Claim }

// done reports whether the present claim already equals the wanted one; then nothing is to be done. Otherwise the error is
// ErrChanged if the present claim is not the one that the caller has read.
func (c consumerChange) done() (bool, error) {
	switch have, want := c.have.Generation, c.want.Generation; {
	case sameClaim(c.have, c.want) && (have > 0 || len(c.want.Allocations) == 0):
		return true, nil
	case want == Any, want == have:
		return false, nil
	case have == 0:
		return false, fmt.Errorf("claim of %s, generation %d: the claim does not exist: %w", c.want.Consumer, want, ErrChanged)
	default:
		return false, fmt.Errorf("claim of %s, generation %d: the present generation is %d: %w", c.want.Consumer, want, have, ErrChanged)
	}
}

// groupChange is a group with a hard policy, and the claims whose consumers join it.
type groupChange struct {
	id      string
	joining []*Claim
}

// check returns ErrGroup if the policy forbids the host of a joining consumer. The parameter hosts has the number of members
// on each host, without the consumers that the plan changes. The method check adds the joining consumers to hosts.
func (g *groupChange) check(hosts map[string]int64) error {
	for _, c := range g.joining {
		if err := c.Group.checkHost(c.host(), hosts); err != nil {
			return err
		}
		hosts[c.host()]++
	}
	return nil
}

// providerChange changes the used amounts of one provider.
type providerChange struct {
	id         string
	generation int64 // the generation that the provider must have; 0: any
	classes    []classChange
}

// classChange changes the used amount of one resource class.
type classChange struct {
	class   string
	delta   int64
	amounts []int64 // new amounts of single consumers, which must be within the limits of the inventory
}

// newPlan sorts changes and returns their plan. It fails with ErrChanged if two claims name different generations of one
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
		// A class whose used amount does not change needs no statement, unless a generation is to be checked.
		p.classes = slices.DeleteFunc(p.classes, func(cc classChange) bool { return cc.delta == 0 && p.generation == 0 })
		if len(p.classes) > 0 {
			slices.SortFunc(p.classes, func(a, b classChange) int { return cmp.Compare(a.class, b.class) })
			plan.providers = append(plan.providers, *p)
		}
	}
	return plan, nil
}

// addAllocations adds the released and the new amounts of a consumer to providers.
func (c consumerChange) addAllocations(providers map[string]*providerChange) error {
	for _, a := range c.have.Allocations {
		for class, n := range a.Resources {
			changeOf(providers, a.Provider).class(class).delta -= n
		}
	}
	for _, a := range c.want.Allocations {
		p := changeOf(providers, a.Provider)
		if p.generation != 0 && a.Generation != 0 && p.generation != a.Generation {
			return fmt.Errorf("claim of %s: the claims name the generations %[3]d and %[4]d of provider %[2]s: %[5]w", c.want.Consumer, a.Provider, p.generation, a.Generation, ErrChanged)
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

// changeOf returns the change of a provider, and adds an empty one if the provider has none.
func changeOf(providers map[string]*providerChange, id string) *providerChange {
	p := providers[id]
	if p == nil {
		p = &providerChange{id: id}
		providers[id] = p
	}
	return p
}

// class returns the change of a class, and adds an empty one if the class has none. The result is valid until the next
// call.
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

// check returns ErrNoRoom or ErrChanged if the provider does not allow the change.
func (p *providerChange) check(have *Provider) error {
	if p.generation != 0 && p.generation != have.Generation {
		return fmt.Errorf("provider %s: the present generation is %d, the decision used %d: %w", p.id, have.Generation, p.generation, ErrChanged)
	}
	for i := range p.classes {
		if err := p.classes[i].check(have); err != nil {
			return err
		}
	}
	return nil
}

// check returns ErrNoRoom if the provider does not allow the change of the class.
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

// appliedTo returns a copy of the provider with the change, which check has allowed.
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

// errLost means that another claim was first, and that this claim may succeed if it is repeated.
var errLost = errors.New("another claim was first")

// rejection returns the error if the database has applied the change to only some of the classes. The parameter applied is the number
// of these classes, and have is the provider afterwards. The error is errLost if the provider now has room for a class
// that the database has refused.
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
	// A class whose change was applied may have no room now, because it had just enough before. Then the class that was
	// refused is not known.
	names := make([]string, len(p.classes))
	for i, cc := range p.classes {
		names[i] = fmt.Sprintf("%d %s", cc.delta, cc.class)
	}
	return fmt.Errorf("provider %s: not all of %s fit: %w", p.id, strings.Join(names, ", "), ErrNoRoom)
}
