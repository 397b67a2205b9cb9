package placement

import (
	"context"

	"github.com/armature-go/armature/scheduler"
)

// weigher is a [scheduler.Weigher] for providers. The function prepare returns nil if the weigher does not apply to the request.
type weigher[R Requester, H Hosted] struct {
	name    string
	prepare func(*Request) func(*Provider) float64
}

func (w weigher[R, H]) Name() string { return w.name }

func (w weigher[R, H]) Prepare(_ context.Context, req R, _ []H) (func(H) float64, error) {
	f := w.prepare(req.Placement())
	if f == nil {
		return nil, nil //nolint:nilnil // the weigher does not apply
	}
	if f, ok := any(f).(func(H) float64); ok { // H is *Provider itself
		return f, nil
	}
	return func(h H) float64 { return f(h.Placement()) }, nil
}

// Weighers returns all ready-made weighers with their usual multipliers. Options.Multipliers replaces multipliers, and
// scheduler.ByName selects weighers. docs/scheduling.md lists the names of the weighers, and Nova's names for them.
func Weighers[R Requester, H Hosted](o Options) []scheduler.Weighted[R, H] {
	var out []scheduler.Weighted[R, H]
	for _, w := range []struct {
		name       string
		multiplier float64
		prepare    func(*Request) func(*Provider) float64
	}{
		{"ram", 1, freeOfClass(MemoryMB)},
		{"cpu", 1, freeOfClass(VCPU)},
		{"disk", 1, freeOfClass(DiskGB)},
		{"io_ops", -1, func(*Request) func(*Provider) float64 {
			return func(p *Provider) float64 { return float64(p.Tasks) }
		}},
		{"num_instances", 0, func(*Request) func(*Provider) float64 {
			return func(p *Provider) float64 { return float64(p.Consumers) }
		}},
		{"soft_affinity", 1, groupMembers(SoftAffinity)},
		{"soft_anti_affinity", -1, groupMembers(SoftAntiAffinity)},
	} {
		m, ok := o.Multipliers[w.name]
		if !ok {
			m = w.multiplier
		}
		out = append(out, scheduler.Weighted[R, H]{Weigher: weigher[R, H]{w.name, w.prepare}, Multiplier: m})
	}
	return out
}

func freeOfClass(class string) func(*Request) func(*Provider) float64 {
	return func(*Request) func(*Provider) float64 {
		return func(p *Provider) float64 {
			i := p.Inventories[class]
			return float64(freeOf(&i))
		}
	}
}

func groupMembers(policy Policy) func(*Request) func(*Provider) float64 {
	return func(q *Request) func(*Provider) float64 {
		if q.Group == nil || q.Group.Policy != policy {
			return nil
		}
		return func(p *Provider) float64 { return float64(max(q.Group.Members[p.ID], p.Members[q.Group.ID])) }
	}
}
