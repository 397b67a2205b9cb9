package placement

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
)

// Memory is a [Store] in memory, for one process and for tests. The zero value
// is ready.
type Memory struct {
	mu         sync.Mutex
	providers  map[string]*Provider
	aggregates map[string]Aggregate
	claims     map[string]*Claim
}

// Put is as [Store] says.
func (m *Memory) Put(_ context.Context, p *Provider) (*Provider, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.providers[p.ID]
	next, err := p.replaces(have)
	if err != nil {
		return nil, err
	}
	for _, a := range next.Aggregates {
		if _, ok := m.aggregates[a.Name]; !ok {
			return nil, fault.New(fault.NotFound, "provider %s: there is no aggregate %s", p.ID, a.Name)
		}
	}
	if m.providers == nil {
		m.providers = map[string]*Provider{}
	}
	m.providers[p.ID] = next
	return m.show(next), nil
}

// replaces returns p as it is kept when it takes the place of have, or of none if
// that is nil.
func (p *Provider) replaces(have *Provider) (*Provider, error) {
	next := *p
	next.Inventories, next.Aggregates = maps.Clone(p.Inventories), nil
	for _, a := range p.Aggregates {
		next.Aggregates = append(next.Aggregates, &Aggregate{Name: a.Name})
	}
	next.At, next.Consumers, next.Members = time.Time{}, 0, nil
	if have == nil {
		if p.Generation != 0 && p.Generation != Any {
			return nil, fmt.Errorf("provider %s, generation %d: there is none: %w", p.ID, p.Generation, ErrChanged)
		}
		have = &Provider{}
	} else if p.Generation != Any && p.Generation != have.Generation {
		return nil, fmt.Errorf("provider %s, generation %d: it has generation %d: %w", p.ID, p.Generation, have.Generation, ErrChanged)
	}
	for class, old := range have.Inventories {
		i, ok := next.Inventories[class]
		if !ok && old.Used > 0 {
			return nil, fault.New(fault.Precondition, "provider %s: %s cannot go, %d of it are used", p.ID, class, old.Used)
		}
		if ok {
			i.Used = old.Used
			next.Inventories[class] = i
		}
	}
	for class, i := range next.Inventories {
		if _, ok := have.Inventories[class]; !ok {
			i.Used = 0
			next.Inventories[class] = i
		}
	}
	next.Generation = have.Generation
	if have.Generation == 0 || next.differs(have) {
		next.Generation++
	}
	return &next, nil
}

// differs reports whether providers differ in what counts for their generation.
func (p *Provider) differs(q *Provider) bool {
	names := func(p *Provider) (out []string) {
		for _, a := range p.Aggregates {
			out = append(out, a.Name)
		}
		return out
	}
	return p.Zone != q.Zone || p.Disabled != q.Disabled || p.Version != q.Version ||
		!maps.Equal(p.Inventories, q.Inventories) || !slices.Equal(p.Traits, q.Traits) || !slices.Equal(names(p), names(q)) ||
		!slices.Equal(p.Platforms, q.Platforms) || !maps.Equal(p.Capabilities, q.Capabilities)
}

// show returns a provider as others see it.
func (m *Memory) show(p *Provider) *Provider {
	out := *p
	out.At, out.Inventories, out.Aggregates = time.Now(), maps.Clone(p.Inventories), nil
	for _, a := range p.Aggregates {
		if known, ok := m.aggregates[a.Name]; ok {
			out.Aggregates = append(out.Aggregates, &known)
		}
	}
	for _, c := range m.claims {
		if c.Host == p.ID {
			out.count(c.group(), 1)
		}
	}
	return &out
}

// count adds n consumers, of a group unless it is "".
func (p *Provider) count(group string, n int64) {
	p.Consumers += n
	if group == "" {
		return
	}
	if p.Members == nil {
		p.Members = map[string]int64{}
	}
	p.Members[group] += n
}

// Remove is as [Store] says.
func (m *Memory) Remove(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.providers[id]; p != nil {
		for class, i := range p.Inventories {
			if i.Used > 0 {
				return fault.New(fault.Precondition, "provider %s: %s: %d are used", id, class, i.Used)
			}
		}
	}
	delete(m.providers, id)
	return nil
}

// Providers is as [Store] says.
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
			out = append(out, m.show(p))
		}
	}
	return out, nil
}

// PutAggregate is as [Store] says.
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

// RemoveAggregate is as [Store] says.
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

// without returns the provider outside of an aggregate.
func (p *Provider) without(aggregate string) *Provider {
	out := *p
	out.Aggregates = slices.DeleteFunc(slices.Clone(p.Aggregates), func(a *Aggregate) bool { return a.Name == aggregate })
	out.Generation++
	return &out
}

// Claim is as [Store] says.
func (m *Memory) Claim(_ context.Context, claims ...Claim) error {
	if err := check(claims); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var pairs []pair
	for i := range claims {
		have := m.claims[claims[i].Consumer]
		if have == nil {
			have = &Claim{Consumer: claims[i].Consumer}
		}
		p := pair{have, &claims[i]}
		done, err := p.made()
		if err != nil {
			return err
		}
		if !done {
			pairs = append(pairs, p)
		}
	}
	changes, err := plan(pairs)
	if err != nil {
		return err
	}
	for i := range changes {
		p := m.providers[changes[i].provider]
		if p == nil {
			return fault.New(fault.NotFound, "there is no provider %s", changes[i].provider)
		}
		if err := changes[i].fits(p); err != nil {
			return err
		}
	}
	moving := map[string]bool{}
	for _, p := range pairs {
		moving[p.want.Consumer] = true
	}
	others := map[string]map[string]int64{}
	for _, c := range m.claims {
		if g := c.group(); g != "" && !moving[c.Consumer] {
			if others[g] == nil {
				others[g] = map[string]int64{}
			}
			others[g][c.Host]++
		}
	}
	for _, p := range pairs {
		if p.want.Group == nil || len(p.want.Allocations) == 0 {
			continue
		}
		g, host := p.want.group(), p.want.host()
		if err := p.want.Group.allows(host, others[g]); err != nil {
			return err
		}
		if others[g] == nil {
			others[g] = map[string]int64{}
		}
		others[g][host]++
	}
	for _, c := range changes {
		p := *m.providers[c.provider]
		p.Inventories = maps.Clone(p.Inventories)
		for _, cc := range c.classes {
			i := p.Inventories[cc.class]
			i.Used += cc.delta
			p.Inventories[cc.class] = i
		}
		m.providers[c.provider] = &p
	}
	for _, p := range pairs {
		m.set(p)
	}
	return nil
}

func (m *Memory) set(p pair) {
	if len(p.want.Allocations) == 0 {
		delete(m.claims, p.want.Consumer)
		return
	}
	if m.claims == nil {
		m.claims = map[string]*Claim{}
	}
	m.claims[p.want.Consumer] = p.want.kept(p.have.Generation + 1)
}

// kept returns the claim as a store keeps it.
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

// Claims is as [Store] says.
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

// Recount is as [Store] says. There is nothing to repair here.
func (m *Memory) Recount(context.Context, bool) ([]*Provider, error) { return nil, nil }

// Now implements [Store]: it is this machine's clock.
func (m *Memory) Now(context.Context) (time.Time, error) { return time.Now(), nil }
