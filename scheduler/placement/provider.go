package placement

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/armature-go/armature/fault"
)

// toStored returns p in the form in which a store keeps it. The parameter have is the stored provider that p replaces, or nil if
// p is new. The errors are those of [Store].Put.
func (p *Provider) toStored(have *Provider) (*Provider, error) {
	next := *p
	next.Inventories, next.Aggregates = maps.Clone(p.Inventories), nil
	for _, a := range p.Aggregates {
		next.Aggregates = append(next.Aggregates, &Aggregate{Name: a.Name})
	}
	next.At, next.Consumers, next.Members = time.Time{}, 0, nil
	if have == nil {
		if p.Generation != 0 && p.Generation != Any {
			return nil, fmt.Errorf("provider %s, generation %d: the provider does not exist: %w", p.ID, p.Generation, ErrChanged)
		}
		have = &Provider{}
	} else if p.Generation != Any && p.Generation != have.Generation {
		return nil, fmt.Errorf("provider %s, generation %d: the present generation is %d: %w", p.ID, p.Generation, have.Generation, ErrChanged)
	}
	if err := next.keepUsed(have); err != nil {
		return nil, err
	}
	next.Generation = have.Generation
	if have.Generation == 0 || next.differs(have) {
		next.Generation++
	}
	return &next, nil
}

// keepUsed sets the used amount of each inventory of p to the used amount in the stored provider. The parameter have is the stored
// provider. The amounts that the caller has set have no effect. Errors: Precondition if p lacks an inventory that is in use.
func (p *Provider) keepUsed(have *Provider) error {
	for class, old := range have.Inventories {
		if _, ok := p.Inventories[class]; !ok && old.Used > 0 {
			return fault.New(fault.Precondition, "provider %s: the inventory of %s cannot be removed, %d are used", p.ID, class, old.Used)
		}
	}
	for class, i := range p.Inventories {
		i.Used = have.Inventories[class].Used
		p.Inventories[class] = i
	}
	return nil
}

// differs reports whether p differs from q in a field whose change makes a new generation.
func (p *Provider) differs(q *Provider) bool {
	names := func(p *Provider) (out []string) {
		for _, a := range p.Aggregates {
			out = append(out, a.Name)
		}
		return out
	}
	return p.Zone != q.Zone || p.Disabled != q.Disabled ||
		!maps.Equal(p.Inventories, q.Inventories) || !slices.Equal(p.Traits, q.Traits) || !slices.Equal(names(p), names(q)) ||
		!slices.Equal(p.Platforms, q.Platforms) || !maps.Equal(p.Capabilities, q.Capabilities)
}

// addConsumers adds n to the number of consumers. If the consumers belong to a group, addConsumers also adds n to the number of
// the group's members. An empty group means none.
func (p *Provider) addConsumers(group string, n int64) {
	p.Consumers += n
	if group == "" {
		return
	}
	if p.Members == nil {
		p.Members = map[string]int64{}
	}
	p.Members[group] += n
}

// without returns a copy of the provider in the next generation, from which one aggregate is removed. The parameter aggregate is
// the name of the aggregate.
func (p *Provider) without(aggregate string) *Provider {
	out := *p
	out.Aggregates = slices.DeleteFunc(slices.Clone(p.Aggregates), func(a *Aggregate) bool { return a.Name == aggregate })
	out.Generation++
	return &out
}
