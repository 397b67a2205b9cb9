package placement

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
)

// Memory is a [Store] in memory, for one process and for tests. The zero value
// is ready for use. A Memory must not be copied.
type Memory struct {
	mu         sync.Mutex
	providers  map[string]*Provider
	aggregates map[string]Aggregate
	claims     map[string]*Claim
}

// Put implements [Store].
func (m *Memory) Put(_ context.Context, p *Provider) (*Provider, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.providers[p.ID]
	next, err := p.toStored(have)
	if err != nil {
		return nil, err
	}
	for _, a := range next.Aggregates {
		if _, ok := m.aggregates[a.Name]; !ok {
			return nil, fault.New(fault.NotFound, "provider %s: aggregate %s does not exist", p.ID, a.Name)
		}
	}
	if m.providers == nil {
		m.providers = map[string]*Provider{}
	}
	m.providers[p.ID] = next
	return m.viewLocked(next), nil
}

// viewLocked returns a copy of a provider with its consumers counted and its aggregates resolved.
func (m *Memory) viewLocked(p *Provider) *Provider {
	out := *p
	out.At, out.Inventories, out.Aggregates = time.Now(), maps.Clone(p.Inventories), nil
	for _, a := range p.Aggregates {
		if known, ok := m.aggregates[a.Name]; ok {
			out.Aggregates = append(out.Aggregates, &known)
		}
	}
	for _, c := range m.claims {
		if c.Host == p.ID {
			out.addConsumers(c.group(), 1)
		}
	}
	return &out
}

// Remove implements [Store].
func (m *Memory) Remove(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.providers[id]; p != nil {
		for class, i := range p.Inventories {
			if i.Used > 0 {
				return fault.New(fault.Precondition, "provider %s cannot be removed, %[3]d %[2]s are used", id, class, i.Used)
			}
		}
	}
	delete(m.providers, id)
	return nil
}

// Providers implements [Store].
func (m *Memory) Providers(_ context.Context, ids ...string) ([]*Provider, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(ids) == 0 {
		ids = slices.Collect(maps.Keys(m.providers))
	}
	ids = slices.Sorted(slices.Values(ids))
	out := []*Provider{}
	for _, id := range slices.Compact(ids) {
		if p := m.providers[id]; p != nil {
			out = append(out, m.viewLocked(p))
		}
	}
	return out, nil
}

// PutAggregate implements [Store].
func (m *Memory) PutAggregate(_ context.Context, a Aggregate) error {
	if err := a.check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.aggregates == nil {
		m.aggregates = map[string]Aggregate{}
	}
	m.aggregates[a.Name] = Aggregate{a.Name, maps.Clone(a.Metadata)}
	return nil
}

// RemoveAggregate implements [Store].
func (m *Memory) RemoveAggregate(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.aggregates, name)
	for id, p := range m.providers {
		if slices.ContainsFunc(p.Aggregates, func(a *Aggregate) bool { return a.Name == name }) {
			m.providers[id] = p.without(name)
		}
	}
	return nil
}

// Claim implements [Store].
func (m *Memory) Claim(_ context.Context, claims ...Claim) error {
	if err := checkClaims(claims); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var changes []consumerChange
	for i := range claims {
		change := consumerChange{m.claimLocked(claims[i].Consumer), &claims[i]}
		done, err := change.done()
		if err != nil {
			return err
		}
		if !done {
			changes = append(changes, change)
		}
	}
	plan, err := newPlan(changes)
	if err != nil {
		return err
	}
	if err := m.checkLocked(plan); err != nil {
		return err
	}
	for i := range plan.providers {
		p := &plan.providers[i]
		m.providers[p.id] = p.appliedTo(m.providers[p.id])
	}
	for _, c := range plan.consumers {
		m.setLocked(c)
	}
	return nil
}

// claimLocked returns the claim of a consumer, or one of generation 0 if the consumer has no claim.
func (m *Memory) claimLocked(consumer string) *Claim {
	if c := m.claims[consumer]; c != nil {
		return c
	}
	return &Claim{Consumer: consumer}
}

// checkLocked returns the error of the first group or provider that does not allow its change.
func (m *Memory) checkLocked(plan *claimPlan) error {
	for i := range plan.groups {
		hosts := map[string]int64{}
		for _, c := range m.claims {
			if c.group() == plan.groups[i].id && !plan.changesClaimOf(c.Consumer) {
				hosts[c.Host]++
			}
		}
		if err := plan.groups[i].check(hosts); err != nil {
			return err
		}
	}
	for i := range plan.providers {
		p := &plan.providers[i]
		have := m.providers[p.id]
		if have == nil {
			return p.notFound()
		}
		if err := p.check(have); err != nil {
			return err
		}
	}
	return nil
}

// setLocked writes the claim of a consumer.
func (m *Memory) setLocked(c consumerChange) {
	if len(c.want.Allocations) == 0 {
		delete(m.claims, c.want.Consumer)
		return
	}
	if m.claims == nil {
		m.claims = map[string]*Claim{}
	}
	m.claims[c.want.Consumer] = c.want.kept(c.have.Generation + 1)
}

// kept returns a copy of the claim as a store keeps it: with the given generation, the current time, and only the ID of
// the group.
func (c *Claim) kept(generation int64) *Claim {
	out := &Claim{Consumer: c.Consumer, Generation: generation, Host: c.host(), At: time.Now()}
	for _, a := range c.Allocations {
		out.Allocations = append(out.Allocations, Allocation{Provider: a.Provider, Resources: maps.Clone(a.Resources)})
	}
	if c.Group != nil {
		out.Group = &Group{ID: c.Group.ID}
	}
	return out
}

// Claims implements [Store].
func (m *Memory) Claims(_ context.Context, consumers ...string) ([]Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(consumers) == 0 {
		consumers = slices.Collect(maps.Keys(m.claims))
	}
	consumers = slices.Sorted(slices.Values(consumers))
	out := []Claim{}
	for _, id := range slices.Compact(consumers) {
		c := m.claims[id]
		if c == nil {
			out = append(out, Claim{Consumer: id})
			continue
		}
		k := c.kept(c.Generation)
		k.At = c.At
		out = append(out, *k)
	}
	return out, nil
}

// Recount implements [Store]. It finds nothing, because the amounts cannot be changed by hand.
func (m *Memory) Recount(context.Context, bool) ([]*Provider, error) { return nil, nil }

// Now implements [Store]: it is this machine's clock.
func (m *Memory) Now(context.Context) (time.Time, error) { return time.Now(), nil }
