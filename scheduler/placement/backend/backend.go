// Package backend has what a scheduler needs for back ends that give capacity
// away in pieces, such as arrays of volumes: the rules of Cinder's capacity
// filter and weighers, and formulas that a back end brings with it, as Cinder's
// driver filter and goodness weigher evaluate them.
//
//	type Pool struct{ *backend.Backend }      // the component's own host
//	type Volume struct{ backend.Request }     // and request
//
//	s, err := scheduler.New(scheduler.Config[*Volume, *Pool]{
//		Filters:  backend.Filters[*Volume, *Pool](),
//		Weighers: backend.Weighers[*Volume, *Pool](),
//	})
//
// Formulas are not code: they cannot call, loop or reach anything but the values
// they are given, and their size and memory are bounded.
package backend

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"github.com/armature-go/armature/scheduler"
)

// Backend is a pool of capacity as it last reported itself. A component embeds a
// pointer to it in its own host type. One that others may see is not changed.
type Backend struct {
	ID string `json:"id"`
	// TotalGB, FreeGB and ProvisionedGB are capacities in GiB: what there is, what
	// is free of it, and the sizes of all that was given away, which with thin
	// provisioning may be more than there is. TotalGB and FreeGB may be infinite,
	// or NaN if the back end does not know.
	TotalGB       float64 `json:"total_capacity_gb"`
	FreeGB        float64 `json:"free_capacity_gb"`
	ProvisionedGB float64 `json:"provisioned_capacity_gb"`
	AllocatedGB   float64 `json:"allocated_capacity_gb"` // by this component
	// ReservedPercent of TotalGB is not given away.
	ReservedPercent float64 `json:"reserved_percentage"`
	// Thin says that the back end provisions thin, up to MaxRatio times TotalGB.
	Thin     bool    `json:"thin_provisioning_support"`
	MaxRatio float64 `json:"max_over_subscription_ratio"`

	// Capabilities are what else the back end tells of itself.
	Capabilities map[string]any `json:"capabilities,omitempty"`
	// Filter says in a formula whether the back end takes a request, Goodness how
	// well, from 0 to 100. Empty: it does not mind, and 0. They know stats, the
	// fields above by their JSON names; capabilities; volume.size and the other
	// Properties of the request; extra, its Specs; and qos, its QoS. Texts that are
	// numbers count as such.
	Filter   string `json:"filter_function,omitempty"`
	Goodness string `json:"goodness_function,omitempty"`
}

// Name returns the ID, so that a Backend is a scheduler.Host.
func (b *Backend) Name() string { return b.ID }

// Backend returns b: what embeds it is a [Hosted].
func (b *Backend) Backend() *Backend { return b }

// Request asks for capacity. A component embeds it in its own request type.
type Request struct {
	SizeGB float64 `json:"size"`
	// Thick asks for capacity that is really there.
	Thick bool `json:"thick,omitempty"`
	// ExistsOn is the back end that has it already, which needs no room for it.
	ExistsOn   string            `json:"exists_on,omitempty"`
	Properties map[string]any    `json:"properties,omitempty"`
	Specs      map[string]string `json:"specs,omitempty"`
	QoS        map[string]string `json:"qos,omitempty"`
}

// Capacity returns q: what embeds it is a [Requester].
func (q *Request) Capacity() *Request { return q }

// Hosted is a host with a Backend.
type Hosted interface {
	Name() string
	Backend() *Backend
}

// Requester is a request with a Request.
type Requester interface{ Capacity() *Request }

func unknown(gb float64) bool { return math.IsNaN(gb) || math.IsInf(gb, 0) }

// unreserved returns what is free and not reserved.
func (b *Backend) unreserved() float64 {
	return b.FreeGB - math.Floor(b.TotalGB*b.ReservedPercent/100)
}

// fits is Cinder's CapacityFilter.
func (b *Backend) fits(q *Request) scheduler.Verdict {
	if q.ExistsOn != "" && q.ExistsOn == b.ID || unknown(b.FreeGB) {
		return scheduler.Pass
	}
	short := func(free float64) scheduler.Verdict {
		return scheduler.RejectNumbers("needs %d GiB, %d GiB free", int64(math.Ceil(q.SizeGB)), int64(math.Floor(free)))
	}
	if unknown(b.TotalGB) {
		switch {
		case b.ReservedPercent != 0:
			return scheduler.Reject("its total capacity is not known, so %g%% of it cannot be reserved", b.ReservedPercent)
		case q.SizeGB > b.FreeGB:
			return short(b.FreeGB)
		}
		return scheduler.Pass
	}
	if b.TotalGB <= 0 {
		return scheduler.Reject("has no capacity at all")
	}
	free := b.unreserved()
	if !b.Thin || q.Thick {
		if q.SizeGB > free {
			return short(free)
		}
		return scheduler.Pass
	}
	switch ratio := (b.ProvisionedGB + q.SizeGB) / b.TotalGB; {
	case b.MaxRatio < 1:
		return scheduler.Reject("provisions thin, but only up to %g times its capacity", b.MaxRatio)
	case ratio > b.MaxRatio:
		return scheduler.Reject("would have given away %.4g times its capacity, %.4g times at most", ratio, b.MaxRatio)
	case q.SizeGB > free*b.MaxRatio:
		return short(free * b.MaxRatio)
	}
	return scheduler.Pass
}

// virtual is how much more Cinder's CapacityWeigher believes can be given away.
func (b *Backend) virtual(q *Request) float64 {
	switch {
	case unknown(b.FreeGB), unknown(b.TotalGB):
		return -1 // behind all that know
	case b.Thin && !q.Thick:
		return math.Floor(b.TotalGB*b.MaxRatio - b.ProvisionedGB - math.Floor(b.TotalGB*b.ReservedPercent/100))
	}
	return math.Floor(b.unreserved())
}

// Filters returns the filters "capacity" and "driver", which is the back end's
// own formula: one that fails, or is no truth, turns the back end away.
func Filters[R Requester, H Hosted]() []scheduler.Filter[R, H] {
	f := &formulas{}
	return []scheduler.Filter[R, H]{
		scheduler.FilterFunc("capacity", func(req R, h H) scheduler.Verdict { return h.Backend().fits(req.Capacity()) }),
		scheduler.FilterFunc("driver", func(req R, h H) scheduler.Verdict {
			b := h.Backend()
			if b.Filter == "" {
				return scheduler.Pass
			}
			out, err := f.eval(b.Filter, b, req.Capacity())
			if err != nil {
				return scheduler.Reject("its formula %q fails: %v", b.Filter, err)
			}
			if yes, ok := out.(bool); !ok {
				return scheduler.Reject("its formula %q says %v, not true or false", b.Filter, out)
			} else if !yes {
				return scheduler.Reject("its formula says no: %s", b.Filter)
			}
			return scheduler.Pass
		}),
	}
}

// Weighers returns the weighers "capacity", which prefers what has most left to
// give; "allocated_capacity", with a multiplier of -1, which prefers what has
// given away least; and "goodness", the back end's own formula, between 0 and
// 100: one that fails, or is beyond, counts 0.
func Weighers[R Requester, H Hosted]() []scheduler.Weighted[R, H] {
	f := &formulas{}
	return []scheduler.Weighted[R, H]{
		{Multiplier: 1, Weigher: scheduler.WeigherFunc("capacity", func(req R, h H) float64 { return h.Backend().virtual(req.Capacity()) })},
		{Multiplier: -1, Weigher: scheduler.WeigherFunc("allocated_capacity", func(_ R, h H) float64 { return h.Backend().AllocatedGB })},
		{Multiplier: 1, Weigher: goodness[R, H]{f}},
	}
}

type goodness[R Requester, H Hosted] struct{ *formulas }

func (goodness[R, H]) Name() string { return "goodness" }

// Bounds are fixed, so that a goodness counts as much whatever the others' is.
func (goodness[R, H]) Bounds() (low, high float64) { return 0, 100 }

func (g goodness[R, H]) Prepare(_ context.Context, req R, _ []H) (func(H) float64, error) {
	return func(h H) float64 {
		b := h.Backend()
		if b.Goodness == "" {
			return 0
		}
		out, err := g.eval(b.Goodness, b, req.Capacity())
		if x, ok := number(out); err == nil && ok && x >= 0 && x <= 100 {
			return x
		}
		return 0
	}, nil
}

// formulas are those that have been compiled.
type formulas struct {
	mu   sync.Mutex
	done map[string]*vm.Program
}

// Bounds of a formula.
const (
	maxLength   = 4096 // bytes
	maxFormulas = 1000 // that are kept
)

func (f *formulas) compile(text string) (*vm.Program, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.done[text]; p != nil {
		return p, nil
	}
	if len(text) > maxLength {
		return nil, fmt.Errorf("it has %d bytes, %d at most", len(text), maxLength)
	}
	p, err := expr.Compile(text, expr.Env(map[string]any{
		"stats": map[string]any{}, "capabilities": map[string]any{}, "volume": map[string]any{}, "extra": map[string]any{}, "qos": map[string]any{},
	}), expr.DisableAllBuiltins(), expr.EnableBuiltin("abs"), expr.EnableBuiltin("max"), expr.EnableBuiltin("min"))
	if err != nil {
		return nil, err
	}
	if f.done == nil || len(f.done) >= maxFormulas {
		f.done = map[string]*vm.Program{}
	}
	f.done[text] = p
	return p, nil
}

// eval evaluates a formula.
func (f *formulas) eval(text string, b *Backend, q *Request) (any, error) {
	p, err := f.compile(text)
	if err != nil {
		return nil, err
	}
	volume := values(q.Properties)
	volume["size"] = q.SizeGB
	return expr.Run(p, map[string]any{
		"stats": map[string]any{
			"total_capacity_gb": b.TotalGB, "free_capacity_gb": b.FreeGB, "provisioned_capacity_gb": b.ProvisionedGB,
			"allocated_capacity_gb": b.AllocatedGB, "reserved_percentage": b.ReservedPercent, "thin_provisioning_support": b.Thin,
			"max_over_subscription_ratio": b.MaxRatio,
		},
		"capabilities": values(b.Capabilities), "volume": volume, "extra": values(q.Specs), "qos": values(q.QoS),
	})
}

// values are those of a map, with numbers for texts that are such.
func values[V any](m map[string]V) map[string]any {
	out := make(map[string]any, len(m)+1)
	for k, v := range m {
		out[k] = v
		if s, ok := any(v).(string); ok {
			if x, err := strconv.ParseFloat(s, 64); err == nil {
				out[k] = x
			}
		}
	}
	return out
}

// number returns a formula's result as a number.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}
