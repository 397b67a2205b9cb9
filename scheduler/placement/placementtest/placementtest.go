// Package placementtest judges implementations of [placement.Store].
package placementtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestStore runs every rule of a [placement.Store] as a subtest of its own, in
// parallel. open returns an empty store; it is called once for each rule.
func TestStore(t *testing.T, open func(t *testing.T) placement.Store) { //nolint:tparallel // the caller says so
	t.Helper()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if t.Failed() {
					t.Logf("the rule %s: %s", r.name, r.text)
				}
			}()
			r.run(bench{t, open(t)})
		})
	}
}

type rule struct {
	name, text string
	run        func(b bench)
}

var rules = []rule{
	{"provider", "a provider is read back as it was put, with its generation, which changes with it, but not by signs of life, and which a writer must know", testProvider},
	{"provider race", "of many who put a new provider at once one makes it, or all of those who do not mind", testProviderRace},
	{"refused", "a provider that makes no sense is refused, and says why", testRefused},
	{"inventory", "an inventory may become too small for what is used, but not vanish", testInventory},
	{"aggregate", "providers share aggregates; what changes in one is seen by all", testAggregate},
	{"remove", "a provider that is used stays", testRemove},
	{"claim", "a claim takes all it asks for, or nothing", testClaim},
	{"units", "what one consumer may have is bounded", testUnits},
	{"several", "a claim of several providers is one", testSeveral},
	{"generation", "a claim can ask that the provider be as it was when it was chosen", testGeneration},
	{"again", "a claim whose outcome is unknown can be made again", testAgain},
	{"change", "a claim can be changed by who knows its generation, in place", testChange},
	{"release", "a release can be repeated", testRelease},
	{"overfull", "a provider over its capacity takes nothing more, but gives", testOverfull},
	{"move", "a move holds both sides until it ends, and can be undone", testMove},
	{"affinity", "members of a group with affinity share a host", testAffinity},
	{"anti-affinity", "members of a group with anti-affinity do not, up to a number", testAntiAffinity},
	{"soft", "a soft policy forbids nothing", testSoft},
	{"invalid", "a claim that makes no sense is refused", testInvalid},
	{"race", "of many who claim the same at once as many get it as there is room for", testRace},
	{"group race", "of many members who claim the same host at once no more get it than the policy allows", testGroupRace},
	{"storm", "whatever many do at once, in the end the use is the sum of the claims, and was never above the capacity", testStorm},
}

// bench is a store with what tests say often.
type bench struct {
	*testing.T
	placement.Store
}

func (b bench) put(p *placement.Provider) *placement.Provider {
	b.Helper()
	out, err := b.Put(b.Context(), p)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// host puts a provider with so many VCPU.
func (b bench) host(id string, vcpus int64) *placement.Provider {
	b.Helper()
	return b.put(&placement.Provider{ID: id, Inventories: map[string]placement.Inventory{placement.VCPU: {Total: vcpus}, placement.MemoryMB: {Total: 1 << 20}}})
}

func of(provider string, r placement.Resources) placement.Allocation {
	return placement.Allocation{Provider: provider, Resources: r}
}

func cpus(provider string, n int64) placement.Allocation {
	return of(provider, placement.Resources{placement.VCPU: n})
}

// must claims, or fails the test.
func (b bench) must(claims ...placement.Claim) {
	b.Helper()
	if err := b.Claim(b.Context(), claims...); err != nil {
		b.Fatal(err)
	}
}

// refuses claims and wants an error, with a text if that is not "".
func (b bench) refuses(want error, text string, claims ...placement.Claim) {
	b.Helper()
	err := b.Claim(b.Context(), claims...)
	if !errors.Is(err, want) || text != "" && err.Error() != text {
		b.Errorf("claim: %v; want %v, %q", err, want, text)
	}
}

func (b bench) provider(id string) *placement.Provider {
	b.Helper()
	list, err := b.Providers(b.Context(), id)
	if err != nil || len(list) != 1 {
		b.Fatalf("provider %s: %v, %v", id, list, err)
	}
	return list[0]
}

// used wants so many VCPU to be used.
func (b bench) used(want map[string]int64) {
	b.Helper()
	for id, n := range want {
		if got := b.provider(id).Inventories[placement.VCPU].Used; got != n {
			b.Errorf("%s: %d VCPU are used, want %d", id, got, n)
		}
	}
}

func (b bench) claim(consumer string) placement.Claim {
	b.Helper()
	list, err := b.Claims(b.Context(), consumer)
	if err != nil || len(list) != 1 {
		b.Fatalf("claim of %s: %v, %v", consumer, list, err)
	}
	return list[0]
}

// settled wants the uses to be the sums of the claims.
func (b bench) settled() {
	b.Helper()
	claims, err := b.Claims(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	sums := map[string]map[string]int64{}
	hosts := map[string]int64{}
	for _, c := range claims {
		hosts[c.Host]++
		for _, a := range c.Allocations {
			if sums[a.Provider] == nil {
				sums[a.Provider] = map[string]int64{}
			}
			for class, n := range a.Resources {
				sums[a.Provider][class] += n
			}
		}
	}
	providers, err := b.Providers(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range providers {
		for class, i := range p.Inventories {
			if i.Used != sums[p.ID][class] {
				b.Errorf("%s: %d %s are used, the claims have %d", p.ID, i.Used, class, sums[p.ID][class])
			}
		}
		if p.Consumers != hosts[p.ID] {
			b.Errorf("%s has %d consumers, the claims say %d", p.ID, p.Consumers, hosts[p.ID])
		}
	}
}

var ignoreAt = cmpopts.IgnoreFields(placement.Provider{}, "At")

func testProvider(b bench) {
	if err := b.PutAggregate(b.Context(), placement.Aggregate{Name: "fast", Metadata: map[string]string{"ssd": "true"}}); err != nil {
		b.Fatal(err)
	}
	p := &placement.Provider{
		ID: "n1", Zone: "z", Traits: []string{"CUSTOM_A", "HW_B"}, Aggregates: []*placement.Aggregate{{Name: "fast"}},
		Inventories:  map[string]placement.Inventory{placement.VCPU: {Total: 8, Reserved: 1, Ratio: 1.5, Min: 1, Max: 4, Step: 1, Used: 77}},
		Platforms:    []placement.Platform{{Arch: "x86_64", Type: "qemu", Mode: "hvm"}},
		Capabilities: map[string]string{"k": "v"}, Version: 7, Tasks: 2, Consumers: 99, Disabled: "broken", Failures: 1.5,
	}
	got := b.put(p)
	want := *p
	want.Generation, want.Consumers = 1, 0
	want.Inventories = map[string]placement.Inventory{placement.VCPU: {Total: 8, Reserved: 1, Ratio: 1.5, Min: 1, Max: 4, Step: 1}}
	want.Aggregates = []*placement.Aggregate{{Name: "fast", Metadata: map[string]string{"ssd": "true"}}}
	if diff := cmp.Diff(&want, got, ignoreAt); diff != "" {
		b.Errorf("put (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&want, b.provider("n1"), ignoreAt); diff != "" {
		b.Errorf("read (-want +got):\n%s", diff)
	}
	if got.At.IsZero() {
		b.Error("it does not say of when it is")
	}
	got.Tasks, got.Failures = 5, 0
	if same := b.put(got); same.Generation != 1 || same.Tasks != 5 {
		b.Errorf("with more tasks: %+v", same)
	}
	got.Zone = "y"
	if next := b.put(got); next.Generation != 2 || next.Zone != "y" {
		b.Errorf("in another zone: %+v", next)
	}
	for _, g := range []int64{0, 1, 3} {
		got.Generation = g
		if _, err := b.Put(b.Context(), got); !errors.Is(err, placement.ErrChanged) {
			b.Errorf("generation %d: %v, want ErrChanged", g, err)
		}
	}
	got.Generation, got.Zone = placement.Any, "x"
	if next := b.put(got); next.Generation != 3 || next.Zone != "x" {
		b.Errorf("put whatever there is: %+v", next)
	}
	if _, err := b.Put(b.Context(), &placement.Provider{ID: "n2", Generation: 1}); !errors.Is(err, placement.ErrChanged) {
		b.Errorf("generation 1 of what there is not: %v", err)
	}
	b.put(&placement.Provider{ID: "n0", Generation: placement.Any})
	all, err := b.Providers(b.Context())
	if err != nil || len(all) != 2 || all[0].ID != "n0" || all[1].ID != "n1" {
		b.Errorf("all: %v, %v", all, err)
	}
	some, err := b.Providers(b.Context(), "n1", "none", "n1")
	if err != nil || len(some) != 1 {
		b.Errorf("one of three: %v, %v", some, err)
	}
}

func testProviderRace(b bench) {
	var wg sync.WaitGroup
	var made atomic.Int64
	for i := range 12 {
		wg.Go(func() {
			_, err := b.Put(b.Context(), &placement.Provider{ID: "new", Zone: strconv.Itoa(i)})
			switch {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, placement.ErrChanged):
				b.Errorf("put: %v", err)
			}
			if _, err := b.Put(b.Context(), &placement.Provider{ID: "any", Generation: placement.Any, Zone: strconv.Itoa(i)}); err != nil {
				b.Errorf("put any: %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 || b.provider("any").Generation != 12 {
		b.Errorf("%d made it, want 1; generation %d, want 12", made.Load(), b.provider("any").Generation)
	}
}

func testRefused(b bench) {
	inv := func(i placement.Inventory) map[string]placement.Inventory {
		return map[string]placement.Inventory{placement.VCPU: i}
	}
	var many []string
	for i := range 300 {
		many = append(many, fmt.Sprintf("T%0247d", i))
	}
	if err := b.PutAggregate(b.Context(), placement.Aggregate{Name: "a", Metadata: map[string]string{"k": strings.Repeat("x", 70_000)}}); !errors.Is(err, fault.Invalid) {
		b.Errorf("an aggregate that does not fit: %v", err)
	}
	for want, p := range map[string]placement.Provider{
		`provider "": a name has 1 to 255 bytes, and no control characters`:     {},
		`provider "a\nb": a name has 1 to 255 bytes, and no control characters`: {ID: "a\nb"},
		`provider n: resource class "vcpu": not in capitals, digits and _`:      {ID: "n", Inventories: map[string]placement.Inventory{"vcpu": {}}},
		`provider n: VCPU: total -1, reserved 0, min 0, max 0, step 0`:          {ID: "n", Inventories: inv(placement.Inventory{Total: -1})},
		`provider n: VCPU: total 1, reserved 2, min 0, max 0, step 0`:           {ID: "n", Inventories: inv(placement.Inventory{Total: 1, Reserved: 2})},
		`provider n: VCPU: 1 times the ratio -1`:                                {ID: "n", Inventories: inv(placement.Inventory{Total: 1, Ratio: -1})},
		`provider n: VCPU: 9000000000 times the ratio 1e+12`:                    {ID: "n", Inventories: inv(placement.Inventory{Total: 9e9, Ratio: 1e12})},
		`provider n: trait "sse": not in capitals, digits and _`:                {ID: "n", Traits: []string{"sse"}},
		`provider n: traits B, A: not sorted, or twice the same`:                {ID: "n", Traits: []string{"B", "A"}},
		`provider n: traits A, A: not sorted, or twice the same`:                {ID: "n", Traits: []string{"A", "A"}},

		"provider \"a\\xff\": a name has 1 to 255 bytes, and no control characters": {ID: "a\xff"},
		`provider n: it has 75321 bytes as JSON, at most 65535 fit`:                 {ID: "n", Traits: many},
	} {
		if _, err := b.Put(b.Context(), &p); !errors.Is(err, fault.Invalid) || err.Error() != want {
			b.Errorf("%v, want Invalid: %s", err, want)
		}
	}
	_, err := b.Put(b.Context(), &placement.Provider{ID: "n", Aggregates: []*placement.Aggregate{{Name: "none"}}})
	if !errors.Is(err, fault.NotFound) || err.Error() != "provider n: aggregate none does not exist" {
		b.Errorf("an aggregate that there is not: %v", err)
	}
}

func testInventory(b bench) {
	p := b.host("n1", 4)
	b.must(placement.Claim{Consumer: "c", Allocations: []placement.Allocation{cpus("n1", 3)}})
	p.Inventories = map[string]placement.Inventory{placement.VCPU: {Total: 2}, "CUSTOM_X": {Total: 1}}
	p = b.put(p)
	if i := p.Inventories[placement.VCPU]; i.Used != 3 || i.Free() != -1 {
		b.Errorf("smaller: %+v", i)
	}
	if _, ok := p.Inventories[placement.MemoryMB]; ok {
		b.Error("an inventory that nobody uses is still there")
	}
	delete(p.Inventories, placement.VCPU)
	if _, err := b.Put(b.Context(), p); !errors.Is(err, fault.Precondition) || err.Error() != "provider n1: VCPU cannot go, 3 of it are used" {
		b.Errorf("without what is used: %v", err)
	}
	b.used(map[string]int64{"n1": 3})
}

func testAggregate(b bench) {
	ctx := b.Context()
	for range 2 {
		if err := b.PutAggregate(ctx, placement.Aggregate{Name: "a", Metadata: map[string]string{"k": "1"}}); err != nil {
			b.Fatal(err)
		}
	}
	for _, id := range []string{"n1", "n2"} {
		b.put(&placement.Provider{ID: id, Aggregates: []*placement.Aggregate{{Name: "a"}}})
	}
	if err := b.PutAggregate(ctx, placement.Aggregate{Name: "a", Metadata: map[string]string{"k": "2"}}); err != nil {
		b.Fatal(err)
	}
	for _, id := range []string{"n1", "n2"} {
		if p := b.provider(id); len(p.Aggregates) != 1 || p.Aggregates[0].Metadata["k"] != "2" {
			b.Errorf("%s: %+v", id, p.Aggregates)
		}
	}
	for range 2 {
		if err := b.RemoveAggregate(ctx, "a"); err != nil {
			b.Fatal(err)
		}
	}
	if p := b.provider("n1"); len(p.Aggregates) != 0 || p.Generation != 2 {
		b.Errorf("without the aggregate: %+v", p)
	}
	if err := b.PutAggregate(ctx, placement.Aggregate{}); !errors.Is(err, fault.Invalid) {
		b.Errorf("an aggregate without a name: %v", err)
	}
}

func testRemove(b bench) {
	b.host("n1", 4)
	b.must(placement.Claim{Consumer: "c", Allocations: []placement.Allocation{cpus("n1", 3)}})
	if err := b.Remove(b.Context(), "n1"); !errors.Is(err, fault.Precondition) || err.Error() != "provider n1: VCPU: 3 are used" {
		b.Errorf("remove: %v", err)
	}
	if err := placement.Release(b.Context(), b, "c"); err != nil {
		b.Fatal(err)
	}
	for range 2 {
		if err := b.Remove(b.Context(), "n1"); err != nil {
			b.Fatal(err)
		}
	}
	if list, err := b.Providers(b.Context()); len(list) != 0 || err != nil {
		b.Errorf("left: %v, %v", list, err)
	}
	b.refuses(fault.NotFound, "provider n1 does not exist", placement.Claim{Consumer: "d", Allocations: []placement.Allocation{cpus("n1", 1)}})
}

func testClaim(b bench) {
	b.put(&placement.Provider{ID: "n1", Inventories: map[string]placement.Inventory{
		placement.VCPU: {Total: 4, Reserved: 1, Ratio: 2.5}, placement.MemoryMB: {Total: 1000},
	}})
	two := placement.Resources{placement.VCPU: 5, placement.MemoryMB: 600}
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{of("n1", two)}})
	b.refuses(placement.ErrNoRoom, "provider n1: VCPU: needs 5, 2 free: not enough room left",
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{of("n1", placement.Resources{placement.VCPU: 5, placement.MemoryMB: 1})}})
	b.refuses(placement.ErrNoRoom, "provider n1: MEMORY_MB: needs 600, 400 free: not enough room left",
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{of("n1", placement.Resources{placement.VCPU: 1, placement.MemoryMB: 600})}})
	b.refuses(placement.ErrNoRoom, "provider n1 has no CUSTOM_X: not enough room left",
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{of("n1", placement.Resources{"CUSTOM_X": 1, placement.VCPU: 1})}})
	b.must(placement.Claim{Consumer: "b", Allocations: []placement.Allocation{of("n1", placement.Resources{placement.VCPU: 2, placement.MemoryMB: 400})}})
	b.refuses(placement.ErrNoRoom, "", placement.Claim{Consumer: "d", Allocations: []placement.Allocation{cpus("n1", 1)}})
	p := b.provider("n1")
	if p.Inventories[placement.VCPU].Free() != 0 || p.Inventories[placement.MemoryMB].Free() != 0 || p.Consumers != 2 || p.Generation != 1 {
		b.Errorf("%+v", p)
	}
	c := b.claim("a")
	want := placement.Claim{Consumer: "a", Generation: 1, Host: "n1", Allocations: []placement.Allocation{of("n1", two)}, At: c.At}
	if diff := cmp.Diff(want, c); diff != "" || c.At.IsZero() {
		b.Errorf("claim (-want +got):\n%s", diff)
	}
	if got := b.claim("d"); got.Generation != 0 || len(got.Allocations) != 0 {
		b.Errorf("what was refused: %+v", got)
	}
	b.settled()
}

func testUnits(b bench) {
	b.put(&placement.Provider{ID: "n1", Inventories: map[string]placement.Inventory{
		placement.VCPU: {Total: 100, Min: 2, Max: 8, Step: 2}, placement.MemoryMB: {Total: 100},
	}})
	for n, want := range map[int64]string{
		1:  "provider n1: VCPU: needs 1, at least 2 for each consumer: not enough room left",
		3:  "provider n1: VCPU: needs 3, not a multiple of 2: not enough room left",
		10: "provider n1: VCPU: needs 10, at most 8 for each consumer: not enough room left",
	} {
		b.refuses(placement.ErrNoRoom, want, placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", n)}})
	}
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 2)}},
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{cpus("n1", 8)}})
	b.used(map[string]int64{"n1": 10})
}

func testSeveral(b bench) {
	b.host("n1", 4)
	b.host("n2", 2)
	three := placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 2), cpus("n2", 3)}}
	b.refuses(placement.ErrNoRoom, "provider n2: VCPU: needs 3, 2 free: not enough room left", three)
	b.used(map[string]int64{"n1": 0, "n2": 0})
	three.Allocations[1] = cpus("n2", 2)
	three.Host = "n2"
	b.must(three)
	b.used(map[string]int64{"n1": 2, "n2": 2})
	if p := b.provider("n2"); p.Consumers != 1 || b.provider("n1").Consumers != 0 {
		b.Errorf("the consumer's host is n2: %+v", p)
	}
	// Two claims at once are one, too.
	b.refuses(placement.ErrNoRoom, "", placement.Claim{Consumer: "b", Allocations: []placement.Allocation{cpus("n1", 1)}},
		placement.Claim{Consumer: "c", Allocations: []placement.Allocation{cpus("n1", 2)}})
	b.used(map[string]int64{"n1": 2})
	b.settled()
}

func testGeneration(b bench) {
	p := b.host("n1", 4)
	at := func(consumer string, g int64) placement.Claim {
		return placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{{Provider: "n1", Generation: g, Resources: placement.Resources{placement.VCPU: 1}}}}
	}
	b.must(at("a", p.Generation))
	b.must(at("b", p.Generation)) // claims change no generation
	p.Traits = []string{"CUSTOM_X"}
	p = b.put(p)
	b.refuses(placement.ErrChanged, "provider n1: generation 2, chosen at 1: changed meanwhile", at("c", 1))
	b.must(at("c", p.Generation))
	b.used(map[string]int64{"n1": 3})
}

func testAgain(b bench) {
	b.host("n1", 4)
	b.host("n2", 4)
	c := placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 3)}, Group: &placement.Group{ID: "g", Policy: placement.AntiAffinity}}
	for range 3 {
		b.must(c)
	}
	if got := b.claim("a"); got.Generation != 1 || got.Group == nil || got.Group.ID != "g" {
		b.Errorf("%+v", got)
	}
	b.used(map[string]int64{"n1": 3})
	c.Allocations = []placement.Allocation{cpus("n2", 3)}
	b.refuses(placement.ErrChanged, "claim of a, generation 0: it has generation 1: changed meanwhile", c)
	b.used(map[string]int64{"n1": 3, "n2": 0})
}

func testChange(b bench) {
	b.host("n1", 4)
	b.host("n2", 4)
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 3)}})
	grow := placement.Claim{Consumer: "a", Generation: 1, Allocations: []placement.Allocation{cpus("n1", 4)}}
	b.must(grow)
	b.must(grow) // again
	if c := b.claim("a"); c.Generation != 2 {
		b.Errorf("%+v", c)
	}
	b.refuses(placement.ErrNoRoom, "provider n1: VCPU: needs 1, 0 free: not enough room left",
		placement.Claim{Consumer: "a", Generation: 2, Allocations: []placement.Allocation{cpus("n1", 5)}})
	b.refuses(placement.ErrChanged, "", placement.Claim{Consumer: "a", Generation: 1, Allocations: []placement.Allocation{cpus("n1", 1)}})
	b.refuses(placement.ErrChanged, "claim of none, generation 1: there is none: changed meanwhile",
		placement.Claim{Consumer: "none", Generation: 1, Allocations: []placement.Allocation{cpus("n1", 1)}})
	b.must(placement.Claim{Consumer: "a", Generation: 2, Allocations: []placement.Allocation{cpus("n2", 1)}})
	b.used(map[string]int64{"n1": 0, "n2": 1})
	b.must(placement.Claim{Consumer: "a", Generation: placement.Any, Allocations: []placement.Allocation{cpus("n2", 2)}},
		placement.Claim{Consumer: "b", Generation: placement.Any, Allocations: []placement.Allocation{cpus("n2", 2)}})
	b.used(map[string]int64{"n2": 4})
	if c := b.claim("b"); c.Generation != 1 || b.provider("n2").Consumers != 2 {
		b.Errorf("%+v", c)
	}
	b.settled()
}

func testRelease(b bench) {
	b.host("n1", 4)
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 3)}})
	b.refuses(placement.ErrChanged, "", placement.Claim{Consumer: "a", Generation: 7})
	for range 3 {
		if err := placement.Release(b.Context(), b, "a"); err != nil {
			b.Fatal(err)
		}
	}
	b.used(map[string]int64{"n1": 0})
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 4)}})
	b.settled()
}

func testOverfull(b bench) {
	p := b.host("n1", 10)
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{cpus("n1", 6)}},
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{cpus("n1", 4)}})
	p.Inventories[placement.VCPU] = placement.Inventory{Total: 5}
	b.put(p)
	b.refuses(placement.ErrNoRoom, "provider n1: VCPU: needs 1, -5 free: not enough room left",
		placement.Claim{Consumer: "c", Allocations: []placement.Allocation{cpus("n1", 1)}})
	// Less is allowed although it is still too much, and so is a swap.
	b.must(placement.Claim{Consumer: "a", Generation: 1, Allocations: []placement.Allocation{cpus("n1", 5)}})
	b.must(placement.Claim{Consumer: "a", Generation: 2, Allocations: []placement.Allocation{cpus("n1", 4)}},
		placement.Claim{Consumer: "b", Generation: 1, Allocations: []placement.Allocation{cpus("n1", 5)}})
	b.used(map[string]int64{"n1": 9})
	// Another class of the same provider has room.
	b.must(placement.Claim{Consumer: "c", Allocations: []placement.Allocation{of("n1", placement.Resources{placement.MemoryMB: 1})}})
	b.settled()
}

func testMove(b bench) {
	ctx := b.Context()
	b.host("n1", 4)
	b.host("n2", 4)
	group := &placement.Group{ID: "g", Policy: placement.AntiAffinity}
	b.must(placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{cpus("n1", 3)}, Group: group})
	to := placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{cpus("n2", 3)}, Group: group}
	for range 2 { // the second time it has been done
		if err := placement.Move(ctx, b, "move-1", to); err != nil {
			b.Fatal(err)
		}
		b.used(map[string]int64{"n1": 3, "n2": 3})
	}
	if err := placement.Move(ctx, b, "move-1", placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{cpus("n2", 1)}}); !errors.Is(err, fault.Precondition) {
		b.Errorf("another move with the same holder: %v", err)
	}
	if p := b.provider("n2"); p.Members["g"] != 1 || b.provider("n1").Members["g"] != 0 {
		b.Errorf("the member is on n2: %+v", p)
	}
	for range 2 {
		if err := placement.Revert(ctx, b, "vm", "move-1", group); err != nil {
			b.Fatal(err)
		}
		b.used(map[string]int64{"n1": 3, "n2": 0})
	}
	if c := b.claim("vm"); c.Host != "n1" || c.Group == nil || b.claim("move-1").Generation != 0 {
		b.Errorf("after it was undone: %+v", c)
	}
	if err := placement.Move(ctx, b, "move-2", to); err != nil {
		b.Fatal(err)
	}
	if err := placement.Release(ctx, b, "move-2"); err != nil {
		b.Fatal(err)
	}
	b.used(map[string]int64{"n1": 0, "n2": 3})
	// Within a host both sides count, too.
	if err := placement.Move(ctx, b, "move-3", placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{cpus("n2", 2)}, Group: group}); !errors.Is(err, placement.ErrNoRoom) {
		b.Errorf("a move within a host without room for both: %v", err)
	}
	if err := placement.Move(ctx, b, "move-3", placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{cpus("n2", 1)}, Group: group}); err != nil {
		b.Error(err)
	}
	b.used(map[string]int64{"n2": 4})
	if err := placement.Move(ctx, b, "move-4", placement.Claim{Consumer: "none", Allocations: []placement.Allocation{cpus("n1", 1)}}); !errors.Is(err, fault.Precondition) {
		b.Errorf("a move of what has no claim: %v", err)
	}
	b.settled()
}

func member(id, host string, g *placement.Group) placement.Claim {
	return placement.Claim{Consumer: id, Allocations: []placement.Allocation{cpus(host, 1)}, Group: g}
}

func testAffinity(b bench) {
	b.host("n1", 8)
	b.host("n2", 8)
	g := &placement.Group{ID: "g", Policy: placement.Affinity}
	b.must(member("a", "n1", g))
	b.refuses(placement.ErrGroup, "group g is on n1, not on n2: the group's policy forbids the host", member("b", "n2", g))
	b.must(member("b", "n1", g))
	b.must(member("x", "n2", &placement.Group{ID: "other", Policy: placement.Affinity}))
	// All together may move, one alone may not.
	toN2 := func(id string) placement.Claim { c := member(id, "n2", g); c.Generation = 1; return c }
	b.refuses(placement.ErrGroup, "", toN2("a"))
	b.must(toN2("a"), toN2("b"))
	b.used(map[string]int64{"n1": 0, "n2": 3})
	b.settled()
}

func testAntiAffinity(b bench) {
	b.host("n1", 8)
	b.host("n2", 8)
	g := &placement.Group{ID: "g", Policy: placement.AntiAffinity}
	b.must(member("a", "n1", g))
	b.refuses(placement.ErrGroup, "group g has 1 of at most 1 on n1: the group's policy forbids the host", member("b", "n1", g))
	b.refuses(placement.ErrGroup, "", member("b", "n2", g), member("c", "n2", g))
	b.must(member("b", "n2", g))
	grow := member("b", "n2", g)
	grow.Generation, grow.Allocations = 1, []placement.Allocation{cpus("n2", 2)}
	b.must(grow) // a member is not in its own way
	g.MaxPerHost = 2
	b.must(member("c", "n1", g))
	b.refuses(placement.ErrGroup, "group g has 2 of at most 2 on n1: the group's policy forbids the host", member("d", "n1", g))
	if err := placement.Release(b.Context(), b, "a"); err != nil {
		b.Fatal(err)
	}
	b.must(member("d", "n1", g))
	if p := b.provider("n1"); p.Members["g"] != 2 || p.Consumers != 2 {
		b.Errorf("%+v", p)
	}
	b.settled()
}

func testSoft(b bench) {
	b.host("n1", 8)
	b.host("n2", 8)
	for _, policy := range []placement.Policy{placement.SoftAffinity, placement.SoftAntiAffinity} {
		g := &placement.Group{ID: string(policy), Policy: policy}
		for i, host := range []string{"n1", "n1", "n2"} {
			b.must(member(fmt.Sprint(policy, i), host, g))
		}
		if n := b.provider("n1").Members[g.ID]; n != 2 {
			b.Errorf("%s: n1 has %d members, want 2", policy, n)
		}
	}
}

func testInvalid(b bench) {
	b.host("n1", 8)
	claim := func(a ...placement.Allocation) placement.Claim { return placement.Claim{Consumer: "a", Allocations: a} }
	for want, c := range map[string]placement.Claim{
		`consumer "": a name has 1 to 255 bytes, and no control characters`: {Allocations: []placement.Allocation{cpus("n1", 1)}},
		`provider "": a name has 1 to 255 bytes, and no control characters`: claim(cpus("", 1)),
		`claim of a: provider n1 twice`:                                     claim(cpus("n1", 1), cpus("n1", 1)),
		`claim of a: nothing of provider n1`:                                claim(of("n1", nil)),
		`claim of a: 0 of "VCPU"`:                                           claim(cpus("n1", 0)),
		`claim of a: -1 of "VCPU"`:                                          claim(cpus("n1", -1)),
		`claim of a: 9223372036854775807 of "VCPU"`:                         claim(cpus("n1", 1<<63-1)),
		`claim of a: 1 of "x"`:                                              claim(of("n1", placement.Resources{"x": 1})),
		`claim of a: its host n2 is not among the providers`:                {Consumer: "a", Host: "n2", Allocations: []placement.Allocation{cpus("n1", 1)}},
		`group "": a name has 1 to 255 bytes, and no control characters`:    {Consumer: "a", Group: &placement.Group{}, Allocations: []placement.Allocation{cpus("n1", 1)}},
	} {
		b.refuses(fault.Invalid, want, c)
	}
	b.refuses(fault.Invalid, "two claims of a at once", claim(cpus("n1", 1)), claim(cpus("n1", 1)))
	b.used(map[string]int64{"n1": 0})
}

func testRace(b bench) {
	b.host("n1", 10)
	var wg sync.WaitGroup
	var got, full atomic.Int64
	for i := range 40 {
		wg.Go(func() {
			switch err := b.Claim(b.Context(), placement.Claim{Consumer: fmt.Sprint("c", i), Allocations: []placement.Allocation{of("n1", placement.Resources{placement.VCPU: 1, placement.MemoryMB: 1})}}); {
			case err == nil:
				got.Add(1)
			case errors.Is(err, placement.ErrNoRoom):
				full.Add(1)
			default:
				b.Errorf("claim: %v", err)
			}
		})
	}
	wg.Wait()
	if got.Load() != 10 || full.Load() != 30 {
		b.Errorf("%d got it, %d found no room; want 10 and 30", got.Load(), full.Load())
	}
	b.settled()
}

func testGroupRace(b bench) {
	for i := range 3 {
		b.host(fmt.Sprint("n", i), 100)
	}
	anti := &placement.Group{ID: "anti", Policy: placement.AntiAffinity, MaxPerHost: 2}
	near := &placement.Group{ID: "near", Policy: placement.Affinity}
	var wg sync.WaitGroup
	var got atomic.Int64
	for i := range 30 {
		wg.Go(func() {
			host := fmt.Sprint("n", i%3)
			switch err := b.Claim(b.Context(), member(fmt.Sprint("anti", i), host, anti)); {
			case err == nil:
				got.Add(1)
			case !errors.Is(err, placement.ErrGroup):
				b.Errorf("anti-affinity: %v", err)
			}
			if err := b.Claim(b.Context(), member(fmt.Sprint("near", i), host, near)); err != nil && !errors.Is(err, placement.ErrGroup) {
				b.Errorf("affinity: %v", err)
			}
		})
	}
	wg.Wait()
	if got.Load() != 6 {
		b.Errorf("%d members with anti-affinity, want 2 on each of 3 hosts", got.Load())
	}
	hosts := 0
	for i := range 3 {
		p := b.provider(fmt.Sprint("n", i))
		if p.Members["anti"] != 2 {
			b.Errorf("%s has %d of anti", p.ID, p.Members["anti"])
		}
		if p.Members["near"] > 0 {
			hosts++
			if p.Members["near"] != 10 {
				b.Errorf("%s has %d of near, want 10", p.ID, p.Members["near"])
			}
		}
	}
	if hosts != 1 {
		b.Errorf("the group with affinity is on %d hosts", hosts)
	}
	b.settled()
}

func testStorm(b bench) {
	seed := rand.Uint64()
	b.Logf("seed %d", seed)
	const hosts, size = 4, 20
	for i := range hosts {
		b.host(fmt.Sprint("n", i), size)
	}
	var workers, watch sync.WaitGroup
	done := make(chan struct{})
	looks := 0
	watch.Go(func() {
		for {
			list, err := b.Providers(b.Context())
			if err != nil {
				b.Errorf("look: %v", err)
				return
			}
			for _, p := range list {
				if i := p.Inventories[placement.VCPU]; i.Used > size || i.Used < 0 {
					b.Errorf("%s uses %d of %d", p.ID, i.Used, size)
				}
			}
			looks++
			select {
			case <-done:
				return
			default:
			}
		}
	})
	var counts [4]atomic.Int64
	for w := range 6 {
		workers.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for range 60 {
				host := func() string { return fmt.Sprint("n", r.IntN(hosts)) }
				consumer := fmt.Sprint("c", r.IntN(20))
				var err error
				op := r.IntN(4)
				switch op {
				case 0:
					err = b.Claim(b.Context(), placement.Claim{Consumer: consumer, Generation: placement.Any, Allocations: []placement.Allocation{cpus(host(), 1+r.Int64N(8))}})
				case 1:
					a, c := r.IntN(hosts), r.IntN(hosts-1)
					if c >= a {
						c++
					}
					err = b.Claim(b.Context(), placement.Claim{Consumer: consumer, Generation: placement.Any, Allocations: []placement.Allocation{
						cpus(fmt.Sprint("n", a), 1+r.Int64N(8)), cpus(fmt.Sprint("n", c), 1+r.Int64N(8)),
					}})
				case 2:
					err = placement.Release(b.Context(), b, consumer)
				case 3:
					if err = placement.Move(b.Context(), b, "m"+consumer, placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{cpus(host(), 1+r.Int64N(8))}}); err == nil {
						if r.IntN(2) == 0 {
							err = placement.Release(b.Context(), b, "m"+consumer)
						} else {
							err = placement.Revert(b.Context(), b, consumer, "m"+consumer, nil)
						}
					}
				}
				switch {
				case err == nil:
					counts[op].Add(1)
				case !errors.Is(err, placement.ErrNoRoom) && !errors.Is(err, fault.Precondition) && !errors.Is(err, placement.ErrChanged):
					b.Errorf("operation %d: %v", op, err)
				}
			}
		})
	}
	workers.Wait()
	close(done)
	watch.Wait()
	b.Logf("%d claims, %d of two providers, %d releases, %d moves; looked %d times", counts[0].Load(), counts[1].Load(), counts[2].Load(), counts[3].Load(), looks)
	b.settled()
}
