// Package placementtest has the suite that checks implementations of [placement.Store].
//
//	placementtest.TestStore(t, func(t *testing.T) placement.Store { return placement.NewSQL(openDatabase(t)) })
package placementtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestStore checks every rule of a [placement.Store] in a subtest of its own, in
// parallel. The function open returns an empty store, and is called once for each rule. A
// failure prints the rule.
func TestStore(t *testing.T, open func(t *testing.T) placement.Store) { //nolint:tparallel // the caller decides
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
	{"provider", "a provider is read as it was put; its generation grows with each change, but not with tasks and failures; a Put with another generation fails", testProvider},
	{"provider race", "of many Puts of a new provider at once, exactly one succeeds; with the generation Any all succeed", testProviderRace},
	{"refused", "a provider that is not valid is refused, and the error says why", testRefused},
	{"inventory", "the capacity of an inventory may become less than the used amount, but a used inventory cannot be removed", testInventory},
	{"aggregate", "providers share aggregates; a change of an aggregate shows in all its providers", testAggregate},
	{"remove", "a provider that is used cannot be removed", testRemove},
	{"claim", "a claim gets all its resources or none", testClaim},
	{"units", "the minimum, the maximum and the step of an inventory limit each consumer", testUnits},
	{"several", "a claim of several providers is made as a whole or not at all, and so are several claims", testSeveral},
	{"generation", "a claim fails if it names another generation of its provider", testGeneration},
	{"again", "a claim with an unknown outcome can be repeated", testAgain},
	{"change", "a caller that knows the generation of a claim can change it", testChange},
	{"release", "a release can be repeated", testRelease},
	{"overfull", "a provider above its capacity gives no more resources, and accepts releases", testOverfull},
	{"move", "a move claims both hosts until it ends, and can be undone", testMove},
	{"affinity", "members of a group with affinity share a host", testAffinity},
	{"anti-affinity", "members of a group with anti-affinity do not share a host, beyond MaxPerHost", testAntiAffinity},
	{"soft", "a soft policy forbids no host", testSoft},
	{"invalid", "a claim that is not valid is refused", testInvalid},
	{"race", "of many claims of one provider at once, exactly as many succeed as fit", testRace},
	{"group race", "of many members that claim the same host at once, no more succeed than the policy allows", testGroupRace},
	{"storm", "after many concurrent calls the used amounts are the sums of the claims, and were never above the capacity", testStorm},
}

// bench is a store with the helpers of the tests.
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

// host puts a provider with the given number of VCPU, and with 1 TiB of memory.
func (b bench) host(id string, vcpus int64) *placement.Provider {
	b.Helper()
	return b.put(&placement.Provider{ID: id, Inventories: map[string]placement.Inventory{placement.VCPU: {Total: vcpus}, placement.MemoryMB: {Total: 1 << 20}}})
}

func allocationOf(provider string, r placement.Resources) placement.Allocation {
	return placement.Allocation{Provider: provider, Resources: r}
}

func vcpusOf(provider string, n int64) placement.Allocation {
	return allocationOf(provider, placement.Resources{placement.VCPU: n})
}

// must makes the claims. An error fails the test.
func (b bench) must(claims ...placement.Claim) {
	b.Helper()
	if err := b.Claim(b.Context(), claims...); err != nil {
		b.Fatal(err)
	}
}

// refuses makes the claims and expects the error want. Unless text is empty, the error must have this text.
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

// used checks the used VCPU of providers.
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

// wantUsedSums checks that the used amounts are the sums of the claims.
func (b bench) wantUsedSums() {
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
			b.Errorf("%s has %d consumers, the claims have %d", p.ID, p.Consumers, hosts[p.ID])
		}
	}
}

func testClaim(b bench) {
	b.put(&placement.Provider{ID: "n1", Inventories: map[string]placement.Inventory{
		placement.VCPU: {Total: 4, Reserved: 1, Ratio: 2.5}, placement.MemoryMB: {Total: 1000},
	}})
	two := placement.Resources{placement.VCPU: 5, placement.MemoryMB: 600}
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{allocationOf("n1", two)}})
	b.refuses(placement.ErrNoRoom, "provider n1: VCPU: needs 5, 2 free: not enough room left",
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{allocationOf("n1", placement.Resources{placement.VCPU: 5, placement.MemoryMB: 1})}})
	b.refuses(placement.ErrNoRoom, "provider n1: MEMORY_MB: needs 600, 400 free: not enough room left",
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{allocationOf("n1", placement.Resources{placement.VCPU: 1, placement.MemoryMB: 600})}})
	b.refuses(placement.ErrNoRoom, "provider n1 has no CUSTOM_X: not enough room left",
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{allocationOf("n1", placement.Resources{"CUSTOM_X": 1, placement.VCPU: 1})}})
	b.must(placement.Claim{Consumer: "b", Allocations: []placement.Allocation{allocationOf("n1", placement.Resources{placement.VCPU: 2, placement.MemoryMB: 400})}})
	b.refuses(placement.ErrNoRoom, "", placement.Claim{Consumer: "d", Allocations: []placement.Allocation{vcpusOf("n1", 1)}})
	p := b.provider("n1")
	if p.Inventories[placement.VCPU].Free() != 0 || p.Inventories[placement.MemoryMB].Free() != 0 || p.Consumers != 2 || p.Generation != 1 {
		b.Errorf("%+v", p)
	}
	c := b.claim("a")
	want := placement.Claim{Consumer: "a", Generation: 1, Host: "n1", Allocations: []placement.Allocation{allocationOf("n1", two)}, At: c.At}
	if diff := cmp.Diff(want, c); diff != "" || c.At.IsZero() {
		b.Errorf("claim (-want +got):\n%s", diff)
	}
	if got := b.claim("d"); got.Generation != 0 || len(got.Allocations) != 0 {
		b.Errorf("after the refused claim: %+v", got)
	}
	b.wantUsedSums()
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
		b.refuses(placement.ErrNoRoom, want, placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", n)}})
	}
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 2)}},
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{vcpusOf("n1", 8)}})
	b.used(map[string]int64{"n1": 10})
}

func testSeveral(b bench) {
	b.host("n1", 4)
	b.host("n2", 2)
	three := placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 2), vcpusOf("n2", 3)}}
	b.refuses(placement.ErrNoRoom, "provider n2: VCPU: needs 3, 2 free: not enough room left", three)
	b.used(map[string]int64{"n1": 0, "n2": 0})
	three.Allocations[1] = vcpusOf("n2", 2)
	three.Host = "n2"
	b.must(three)
	b.used(map[string]int64{"n1": 2, "n2": 2})
	if p := b.provider("n2"); p.Consumers != 1 || b.provider("n1").Consumers != 0 {
		b.Errorf("the consumer's host is n2: %+v", p)
	}
	// Two claims of one call are made together or not at all.
	b.refuses(placement.ErrNoRoom, "", placement.Claim{Consumer: "b", Allocations: []placement.Allocation{vcpusOf("n1", 1)}},
		placement.Claim{Consumer: "c", Allocations: []placement.Allocation{vcpusOf("n1", 2)}})
	b.used(map[string]int64{"n1": 2})
	b.wantUsedSums()
}

func testGeneration(b bench) {
	p := b.host("n1", 4)
	at := func(consumer string, g int64) placement.Claim {
		return placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{{Provider: "n1", Generation: g, Resources: placement.Resources{placement.VCPU: 1}}}}
	}
	b.must(at("a", p.Generation))
	b.must(at("b", p.Generation)) // claims do not change the generation of the provider
	p.Traits = []string{"CUSTOM_X"}
	p = b.put(p)
	b.refuses(placement.ErrChanged, "provider n1: the present generation is 2, the decision used 1: changed by another process", at("c", 1))
	b.must(at("c", p.Generation))
	b.used(map[string]int64{"n1": 3})
}

func testAgain(b bench) {
	b.host("n1", 4)
	b.host("n2", 4)
	c := placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 3)}, Group: &placement.Group{ID: "g", Policy: placement.AntiAffinity}}
	for range 3 {
		b.must(c)
	}
	if got := b.claim("a"); got.Generation != 1 || got.Group == nil || got.Group.ID != "g" {
		b.Errorf("%+v", got)
	}
	b.used(map[string]int64{"n1": 3})
	c.Allocations = []placement.Allocation{vcpusOf("n2", 3)}
	b.refuses(placement.ErrChanged, "claim of a, generation 0: the present generation is 1: changed by another process", c)
	b.used(map[string]int64{"n1": 3, "n2": 0})
}

func testChange(b bench) {
	b.host("n1", 4)
	b.host("n2", 4)
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 3)}})
	grow := placement.Claim{Consumer: "a", Generation: 1, Allocations: []placement.Allocation{vcpusOf("n1", 4)}}
	b.must(grow)
	b.must(grow) // again
	if c := b.claim("a"); c.Generation != 2 {
		b.Errorf("%+v", c)
	}
	b.refuses(placement.ErrNoRoom, "provider n1: VCPU: needs 1, 0 free: not enough room left",
		placement.Claim{Consumer: "a", Generation: 2, Allocations: []placement.Allocation{vcpusOf("n1", 5)}})
	b.refuses(placement.ErrChanged, "", placement.Claim{Consumer: "a", Generation: 1, Allocations: []placement.Allocation{vcpusOf("n1", 1)}})
	b.refuses(placement.ErrChanged, "claim of none, generation 1: the claim does not exist: changed by another process",
		placement.Claim{Consumer: "none", Generation: 1, Allocations: []placement.Allocation{vcpusOf("n1", 1)}})
	b.must(placement.Claim{Consumer: "a", Generation: 2, Allocations: []placement.Allocation{vcpusOf("n2", 1)}})
	b.used(map[string]int64{"n1": 0, "n2": 1})
	b.must(placement.Claim{Consumer: "a", Generation: placement.Any, Allocations: []placement.Allocation{vcpusOf("n2", 2)}},
		placement.Claim{Consumer: "b", Generation: placement.Any, Allocations: []placement.Allocation{vcpusOf("n2", 2)}})
	b.used(map[string]int64{"n2": 4})
	if c := b.claim("b"); c.Generation != 1 || b.provider("n2").Consumers != 2 {
		b.Errorf("%+v", c)
	}
	b.wantUsedSums()
}

func testRelease(b bench) {
	b.host("n1", 4)
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 3)}})
	b.refuses(placement.ErrChanged, "", placement.Claim{Consumer: "a", Generation: 7})
	for range 3 {
		if err := placement.Release(b.Context(), b, "a"); err != nil {
			b.Fatal(err)
		}
	}
	b.used(map[string]int64{"n1": 0})
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 4)}})
	b.wantUsedSums()
}

func testOverfull(b bench) {
	p := b.host("n1", 10)
	b.must(placement.Claim{Consumer: "a", Allocations: []placement.Allocation{vcpusOf("n1", 6)}},
		placement.Claim{Consumer: "b", Allocations: []placement.Allocation{vcpusOf("n1", 4)}})
	p.Inventories[placement.VCPU] = placement.Inventory{Total: 5}
	b.put(p)
	b.refuses(placement.ErrNoRoom, "provider n1: VCPU: needs 1, -5 free: not enough room left",
		placement.Claim{Consumer: "c", Allocations: []placement.Allocation{vcpusOf("n1", 1)}})
	// A smaller claim is allowed although the provider is still above its capacity, and so is a swap.
	b.must(placement.Claim{Consumer: "a", Generation: 1, Allocations: []placement.Allocation{vcpusOf("n1", 5)}})
	b.must(placement.Claim{Consumer: "a", Generation: 2, Allocations: []placement.Allocation{vcpusOf("n1", 4)}},
		placement.Claim{Consumer: "b", Generation: 1, Allocations: []placement.Allocation{vcpusOf("n1", 5)}})
	b.used(map[string]int64{"n1": 9})
	// Another class of the same provider is not above its capacity.
	b.must(placement.Claim{Consumer: "c", Allocations: []placement.Allocation{allocationOf("n1", placement.Resources{placement.MemoryMB: 1})}})
	b.wantUsedSums()
}

func testMove(b bench) {
	ctx := b.Context()
	b.host("n1", 4)
	b.host("n2", 4)
	group := &placement.Group{ID: "g", Policy: placement.AntiAffinity}
	b.must(placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{vcpusOf("n1", 3)}, Group: group})
	to := placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{vcpusOf("n2", 3)}, Group: group}
	for range 2 { // the second call finds the move made
		if err := placement.Move(ctx, b, "move-1", to); err != nil {
			b.Fatal(err)
		}
		b.used(map[string]int64{"n1": 3, "n2": 3})
	}
	if err := placement.Move(ctx, b, "move-1", placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{vcpusOf("n2", 1)}}); !errors.Is(err, fault.Precondition) {
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
		b.Errorf("after Revert: %+v", c)
	}
	if err := placement.Move(ctx, b, "move-2", to); err != nil {
		b.Fatal(err)
	}
	if err := placement.Release(ctx, b, "move-2"); err != nil {
		b.Fatal(err)
	}
	b.used(map[string]int64{"n1": 0, "n2": 3})
	// A move within a host also claims both amounts, the old one and the new one.
	if err := placement.Move(ctx, b, "move-3", placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{vcpusOf("n2", 2)}, Group: group}); !errors.Is(err, placement.ErrNoRoom) {
		b.Errorf("a move within a host without room for both: %v", err)
	}
	if err := placement.Move(ctx, b, "move-3", placement.Claim{Consumer: "vm", Allocations: []placement.Allocation{vcpusOf("n2", 1)}, Group: group}); err != nil {
		b.Error(err)
	}
	b.used(map[string]int64{"n2": 4})
	if err := placement.Move(ctx, b, "move-4", placement.Claim{Consumer: "none", Allocations: []placement.Allocation{vcpusOf("n1", 1)}}); !errors.Is(err, fault.Precondition) {
		b.Errorf("a move of a consumer without a claim: %v", err)
	}
	for what, err := range map[string]error{"move": placement.Move(ctx, b, "vm", to), "revert": placement.Revert(ctx, b, "vm", "vm", group)} {
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), what+" of vm") {
			b.Errorf("%s with the consumer as the holder: %v, want Invalid", what, err)
		}
	}
	b.wantUsedSums()
}

func testInvalid(b bench) {
	b.host("n1", 8)
	claim := func(a ...placement.Allocation) placement.Claim { return placement.Claim{Consumer: "a", Allocations: a} }
	for want, c := range map[string]placement.Claim{
		`consumer "": a name has 1 to 255 bytes, and no control characters`:                          {Allocations: []placement.Allocation{vcpusOf("n1", 1)}},
		`provider "": a name has 1 to 255 bytes, and no control characters`:                          claim(vcpusOf("", 1)),
		`claim of a: provider n1 is listed twice`:                                                    claim(vcpusOf("n1", 1), vcpusOf("n1", 1)),
		`claim of a: the allocation of provider n1 has no resources`:                                 claim(allocationOf("n1", nil)),
		`claim of a: the amount 0 of VCPU is not between 1 and 2^53`:                                 claim(vcpusOf("n1", 0)),
		`claim of a: the amount -1 of VCPU is not between 1 and 2^53`:                                claim(vcpusOf("n1", -1)),
		`claim of a: the amount 9223372036854775807 of VCPU is not between 1 and 2^53`:               claim(vcpusOf("n1", 1<<63-1)),
		`claim of a: the resource class "x" is not valid: use 1 to 255 characters of A-Z, 0-9 and _`: claim(allocationOf("n1", placement.Resources{"x": 1})),
		`claim of a: its host n2 is not among the providers`:                                         {Consumer: "a", Host: "n2", Allocations: []placement.Allocation{vcpusOf("n1", 1)}},
		`group "": a name has 1 to 255 bytes, and no control characters`:                             {Consumer: "a", Group: &placement.Group{}, Allocations: []placement.Allocation{vcpusOf("n1", 1)}},
	} {
		b.refuses(fault.Invalid, want, c)
	}
	b.refuses(fault.Invalid, "two claims of a in one call", claim(vcpusOf("n1", 1)), claim(vcpusOf("n1", 1)))
	b.used(map[string]int64{"n1": 0})
}

func testRace(b bench) {
	b.host("n1", 10)
	var wg sync.WaitGroup
	var got, full atomic.Int64
	for i := range 40 {
		wg.Go(func() {
			switch err := b.Claim(b.Context(), placement.Claim{Consumer: fmt.Sprint("c", i), Allocations: []placement.Allocation{allocationOf("n1", placement.Resources{placement.VCPU: 1, placement.MemoryMB: 1})}}); {
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
		b.Errorf("%d claims succeeded, %d found no room; want 10 and 30", got.Load(), full.Load())
	}
	b.wantUsedSums()
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
	checks := 0
	watch.Go(func() {
		for {
			list, err := b.Providers(b.Context())
			if err != nil {
				b.Errorf("Providers: %v", err)
				return
			}
			for _, p := range list {
				if i := p.Inventories[placement.VCPU]; i.Used > size || i.Used < 0 {
					b.Errorf("%s uses %d of %d", p.ID, i.Used, size)
				}
			}
			checks++
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
					err = b.Claim(b.Context(), placement.Claim{Consumer: consumer, Generation: placement.Any, Allocations: []placement.Allocation{vcpusOf(host(), 1+r.Int64N(8))}})
				case 1:
					a, c := r.IntN(hosts), r.IntN(hosts-1)
					if c >= a {
						c++
					}
					err = b.Claim(b.Context(), placement.Claim{Consumer: consumer, Generation: placement.Any, Allocations: []placement.Allocation{
						vcpusOf(fmt.Sprint("n", a), 1+r.Int64N(8)), vcpusOf(fmt.Sprint("n", c), 1+r.Int64N(8)),
					}})
				case 2:
					err = placement.Release(b.Context(), b, consumer)
				case 3:
					if err = placement.Move(b.Context(), b, "m"+consumer, placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{vcpusOf(host(), 1+r.Int64N(8))}}); err == nil {
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
	b.Logf("%d claims, %d of two providers, %d releases, %d moves; %d checks", counts[0].Load(), counts[1].Load(), counts[2].Load(), counts[3].Load(), checks)
	b.wantUsedSums()
}
