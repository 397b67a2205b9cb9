package schedulertest_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/scheduler/schedulertest"
)

type (
	request  = placement.Request
	provider = placement.Provider
	sim      = schedulertest.Sim[*request, *provider]
)

// cloud is a simulation of placement's own filters, with affinity and anti-affinity groups,
// over hosts of several sizes.
func cloud(t *testing.T, filters []scheduler.Filter[*request, *provider]) sim {
	t.Helper()
	s, err := scheduler.New(scheduler.Config[*request, *provider]{
		Filters: filters, Weighers: placement.Weighers[*request, *provider](placement.Options{}),
		Picker: scheduler.Subset(3), Rand: rand.New(rand.NewPCG(1, 2)),
	})
	if err != nil {
		t.Fatal(err)
	}
	classes := []string{placement.VCPU, placement.MemoryMB, placement.DiskGB, "CUSTOM_X"}
	var groups map[string]*placement.Group
	return sim{
		Scheduler: s,
		Steps:     300,
		Fleet: func(r *rand.Rand) []*provider {
			groups = map[string]*placement.Group{}
			hosts := make([]*provider, 1+r.IntN(15))
			for i := range hosts {
				p := &provider{ID: fmt.Sprintf("n%02d", i), Zone: fmt.Sprint("z", r.IntN(2)), Inventories: map[string]placement.Inventory{}}
				for _, c := range classes {
					p.Inventories[c] = placement.Inventory{Total: r.Int64N(20), Ratio: float64(r.IntN(3)), Reserved: 0}
				}
				hosts[i] = p
			}
			return hosts
		},
		Request: func(r *rand.Rand) *request {
			q := &request{Resources: placement.Resources{}, Consumer: strconv.FormatUint(r.Uint64(), 10)}
			for _, c := range classes {
				if n := r.Int64N(4); n > 0 {
					q.Resources[c] = n
				}
			}
			if r.IntN(3) == 0 {
				q.Zone = fmt.Sprint("z", r.IntN(2))
			}
			if r.IntN(2) == 0 {
				id := fmt.Sprint("g", r.IntN(4))
				if groups[id] == nil {
					groups[id] = &placement.Group{ID: id, Policy: []placement.Policy{placement.Affinity, placement.AntiAffinity}[r.IntN(2)], MaxPerHost: 1 + r.Int64N(2), Members: map[string]int64{}}
				}
				q.Group = groups[id]
			}
			return q
		},
		Fits: func(q *request, p *provider) error {
			for c, n := range q.Resources {
				i := p.Inventories[c]
				if total := float64(i.Total) * max(i.Ratio, 1); i.Ratio == 0 && i.Used+n > i.Total || float64(i.Used+n) > total {
					return fmt.Errorf("%s: %d and %d of %g", c, i.Used, n, total)
				}
			}
			if q.Zone != "" && q.Zone != p.Zone {
				return errors.New("wrong zone")
			}
			if g := q.Group; g != nil {
				all := int64(0)
				for _, n := range g.Members {
					all += n
				}
				if here := g.Members[p.ID]; g.Policy == placement.Affinity && all > 0 && here == 0 || g.Policy == placement.AntiAffinity && here >= g.MaxPerHost {
					return fmt.Errorf("group with %s: %v", g.Policy, g.Members)
				}
			}
			if p.Tasks >= 8 || p.Consumers >= 50 {
				return errors.New("too many")
			}
			return nil
		},
		Place: func(q *request, p *provider) *provider {
			if q.Group != nil {
				q.Group.Members[p.ID]++
			}
			n := p.With(q)
			n.Tasks = 0
			return n
		},
		Remove: func(q *request, p *provider) *provider {
			out := *p
			out.Inventories = map[string]placement.Inventory{}
			for c, i := range p.Inventories {
				i.Used -= q.Resources[c]
				out.Inventories[c] = i
			}
			out.Consumers--
			if g := q.Group; g != nil {
				if g.Members[p.ID]--; g.Members[p.ID] == 0 {
					delete(g.Members, p.ID)
				}
				out.Members = maps.Clone(p.Members)
				out.Members[g.ID]--
			}
			return &out
		},
		Check: func(hosts []*provider, placed []schedulertest.Placed[*request]) error {
			on := map[*placement.Group]map[string]int64{}
			for _, p := range placed {
				if g := p.Request.Group; g != nil {
					if on[g] == nil {
						on[g] = map[string]int64{}
					}
					on[g][p.Host]++
				}
			}
			for g, hosts := range on {
				for host, n := range hosts {
					if g.Policy == placement.Affinity && len(hosts) > 1 || g.Policy == placement.AntiAffinity && n > g.MaxPerHost {
						return fmt.Errorf("group %s with %s has %d on %s: %v", g.ID, g.Policy, n, host, hosts)
					}
				}
			}
			for _, h := range hosts {
				for c, i := range h.Inventories {
					if i.Free() < 0 {
						return fmt.Errorf("%s is over its %s: %+v", h.ID, c, i)
					}
				}
			}
			return nil
		},
	}
}

func all() []scheduler.Filter[*request, *provider] {
	return placement.Filters[*request, *provider](placement.Options{})
}

// TestFilters: placement's filters never over-commit, never reject a host that fits, and keep the policies of groups,
// even with an old state of the hosts.
func TestFilters(t *testing.T) {
	t.Parallel()
	for _, stale := range []int{0, 7} {
		s := cloud(t, all())
		s.Stale = stale
		schedulertest.Run(t, s)
	}
}

// TestFound: Run finds a missing filter, a filter that is too strict, and a broken rule of Check. The error about a wrong
// choice has the host and the decision.
func TestFound(t *testing.T) {
	t.Parallel()
	without := func(name string) []scheduler.Filter[*request, *provider] {
		var out []scheduler.Filter[*request, *provider]
		for _, f := range all() {
			if f.Name() != name {
				out = append(out, f)
			}
		}
		return out
	}
	strict := scheduler.FilterFunc("strict", func(_ *request, p *provider) scheduler.Verdict {
		if p.Consumers >= 2 {
			return scheduler.Reject("enough")
		}
		return scheduler.Pass
	})
	broken := cloud(t, all())
	broken.Check = func(hosts []*provider, _ []schedulertest.Placed[*request]) error {
		for _, h := range hosts {
			if h.Consumers > 3 {
				return errors.New("more than three on " + h.ID)
			}
		}
		return nil
	}
	for _, tt := range []struct {
		name  string
		sim   sim
		stale int
		want  []string
	}{
		{"no filter for a class", cloud(t, without(placement.VCPU)), 0, []string{"was chosen for", "does not fit: VCPU", "hosts"}},
		{"no filter for a class, and an old state", cloud(t, without(placement.VCPU)), 5, []string{"was chosen for", "does not fit: VCPU", "hosts"}},
		{"no filter for groups", cloud(t, without("anti_affinity")), 0, []string{"was chosen for", "anti-affinity"}},
		{"too strict a filter", cloud(t, append(all(), strict)), 0, []string{"no host was found for", "fits:", "enough"}},
		{"a broken rule of Check", broken, 0, []string{"more than three on n"}},
	} {
		tt.sim.Stale = tt.stale
		var err error
		for seed := range uint64(50) {
			if _, err = tt.sim.Run(t.Context(), seed); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%s: no fault was found in 50 runs", tt.name)
			continue
		}
		for _, part := range append(tt.want, "step ") {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q is missing in: %v", tt.name, part, err)
			}
		}
	}
}

// TestSeed: the same seed gives the same run.
func TestSeed(t *testing.T) {
	t.Parallel()
	a, err := cloud(t, all()).Run(t.Context(), 42)
	b, err2 := cloud(t, all()).Run(t.Context(), 42)
	if a != b || err != nil || err2 != nil || a.Placed == 0 || a.NoValidHost == 0 || a.Removed == 0 {
		t.Errorf("%+v, %v and %+v, %v", a, err, b, err2)
	}
}
