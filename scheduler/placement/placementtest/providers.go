package placementtest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
)

var ignoreAt = cmpopts.IgnoreFields(placement.Provider{}, "At")

func testProvider(b bench) {
	if err := b.PutAggregate(b.Context(), placement.Aggregate{Name: "fast", Metadata: map[string]string{"ssd": "true"}}); err != nil {
		b.Fatal(err)
	}
	p := &placement.Provider{
		ID: "n1", Zone: "z", Traits: []string{"CUSTOM_A", "HW_B"}, Aggregates: []*placement.Aggregate{{Name: "fast"}},
		Inventories:  map[string]placement.Inventory{placement.VCPU: {Total: 8, Reserved: 1, Ratio: 1.5, Min: 1, Max: 4, Step: 1, Used: 77}},
		Platforms:    []placement.Platform{{Arch: "x86_64", Type: "qemu", Mode: "hvm"}},
		Capabilities: map[string]string{"k": "v"}, Tasks: 2, Consumers: 99, Disabled: "broken",
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
		b.Error("At is zero")
	}
	got.Tasks = 5
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
		b.Errorf("put with generation Any: %+v", next)
	}
	if _, err := b.Put(b.Context(), &placement.Provider{ID: "n2", Generation: 1}); !errors.Is(err, placement.ErrChanged) {
		b.Errorf("generation 1 of a provider that does not exist: %v", err)
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
		b.Errorf("%d Puts made the provider, want 1; generation %d, want 12", made.Load(), b.provider("any").Generation)
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
		b.Errorf("an aggregate that is too large: %v", err)
	}
	for want, p := range map[string]placement.Provider{
		`provider "": a name has 1 to 255 bytes, and no control characters`:                                              {},
		`provider "a\nb": a name has 1 to 255 bytes, and no control characters`:                                          {ID: "a\nb"},
		`provider n: resource class "vcpu": a name has only A-Z, 0-9 and _`:                                              {ID: "n", Inventories: map[string]placement.Inventory{"vcpu": {}}},
		`provider n: VCPU: total -1, reserved 0, min 0, max 0, step 0: none may be negative, nor reserved above total`:   {ID: "n", Inventories: inv(placement.Inventory{Total: -1})},
		`provider n: VCPU: total 1, reserved 2, min 0, max 0, step 0: none may be negative, nor reserved above total`:    {ID: "n", Inventories: inv(placement.Inventory{Total: 1, Reserved: 2})},
		`provider n: VCPU: total 1 with the ratio -1: want a ratio of at least 0, and a capacity below 2^62`:             {ID: "n", Inventories: inv(placement.Inventory{Total: 1, Ratio: -1})},
		`provider n: VCPU: total 9000000000 with the ratio 1e+12: want a ratio of at least 0, and a capacity below 2^62`: {ID: "n", Inventories: inv(placement.Inventory{Total: 9e9, Ratio: 1e12})},
		`provider n: trait "sse": a name has only A-Z, 0-9 and _`:                                                        {ID: "n", Traits: []string{"sse"}},
		`provider n: traits B, A: traits must be sorted and unique`:                                                      {ID: "n", Traits: []string{"B", "A"}},
		`provider n: traits A, A: traits must be sorted and unique`:                                                      {ID: "n", Traits: []string{"A", "A"}},

		"provider \"a\\xff\": a name has 1 to 255 bytes, and no control characters": {ID: "a\xff"},
		`provider n: 75321 bytes as JSON, at most 65535 are allowed`:                {ID: "n", Traits: many},
	} {
		if _, err := b.Put(b.Context(), &p); !errors.Is(err, fault.Invalid) || err.Error() != want {
			b.Errorf("%v, want Invalid: %s", err, want)
		}
	}
	_, err := b.Put(b.Context(), &placement.Provider{ID: "n", Aggregates: []*placement.Aggregate{{Name: "none"}}})
	if !errors.Is(err, fault.NotFound) || err.Error() != "provider n: aggregate none does not exist" {
		b.Errorf("an aggregate that does not exist: %v", err)
	}
}

func testInventory(b bench) {
	p := b.host("n1", 4)
	b.must(placement.Claim{Consumer: "c", Allocations: []placement.Allocation{vcpusOf("n1", 3)}})
	p.Inventories = map[string]placement.Inventory{placement.VCPU: {Total: 2}, "CUSTOM_X": {Total: 1}}
	p = b.put(p)
	if i := p.Inventories[placement.VCPU]; i.Used != 3 || i.Free() != -1 {
		b.Errorf("smaller: %+v", i)
	}
	if _, ok := p.Inventories[placement.MemoryMB]; ok {
		b.Error("the inventory without users was not removed")
	}
	delete(p.Inventories, placement.VCPU)
	if _, err := b.Put(b.Context(), p); !errors.Is(err, fault.Precondition) || err.Error() != "provider n1: the inventory of VCPU cannot be removed, 3 are used" {
		b.Errorf("without a used inventory: %v", err)
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
	b.must(placement.Claim{Consumer: "c", Allocations: []placement.Allocation{vcpusOf("n1", 3)}})
	if err := b.Remove(b.Context(), "n1"); !errors.Is(err, fault.Precondition) || err.Error() != "provider n1 cannot be removed, 3 VCPU are used" {
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
	b.refuses(fault.NotFound, "provider n1 does not exist", placement.Claim{Consumer: "d", Allocations: []placement.Allocation{vcpusOf("n1", 1)}})
}
