package placement_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

// Place chooses a host for a request, and claims the request's resources on that host. So no
// other scheduler gives them to another request.
func ExamplePlacer() {
	ctx := context.Background()
	store := &placement.Memory{} // NewSQL in production
	for id, vcpus := range map[string]int64{"node-1": 4, "node-2": 8} {
		if _, err := store.Put(ctx, &placement.Provider{
			ID: id, Traits: []string{"HW_CPU_X86_AVX"},
			Inventories: map[string]placement.Inventory{"VCPU": {Total: vcpus, Ratio: 1}},
		}); err != nil {
			fmt.Println(err)
			return
		}
	}
	options := placement.Options{}
	filters, err := scheduler.ByName(placement.Filters[*placement.Request, *placement.Provider](options), []string{"disabled", "VCPU", "traits"})
	if err != nil {
		fmt.Println(err)
		return
	}
	weighers, err := scheduler.ByName(placement.Weighers[*placement.Request, *placement.Provider](options), []string{"cpu"})
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := scheduler.New(scheduler.Config[*placement.Request, *placement.Provider]{Filters: filters, Weighers: weighers})
	if err != nil {
		fmt.Println(err)
		return
	}
	placer := &placement.Placer[*placement.Request, *placement.Provider]{
		Scheduler: s,
		Store:     store,
		Hosts:     func(ctx context.Context, _ bool) ([]*placement.Provider, error) { return store.Providers(ctx) },
	}
	for _, consumer := range []string{"server-1", "server-2", "server-3"} {
		placed, err := placer.Place(ctx, &placement.Request{
			Consumer: consumer, Resources: placement.Resources{"VCPU": 4}, Required: []string{"HW_CPU_X86_AVX"},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(consumer, "on", placed.Host.ID)
	}
	placed, err := placer.Place(ctx, &placement.Request{Consumer: "server-4", Resources: placement.Resources{"VCPU": 4}})
	fmt.Println(err)
	for _, r := range placed.Decision.Rejected() {
		fmt.Println(r.Host, r.Filter+":", r.Reason)
	}
	// Output:
	// server-1 on node-2
	// server-2 on node-1
	// server-3 on node-2
	// no valid host: 0 of 2 hosts: 2 VCPU
	// node-1 VCPU: needs 4, 0 free
	// node-2 VCPU: needs 4, 0 free
}

// A claim may need several providers. The claim gets all its resources or none.
func ExampleStore() {
	ctx := context.Background()
	var store placement.Store = &placement.Memory{}
	for id, inv := range map[string]map[string]placement.Inventory{
		"node-1":  {"VCPU": {Total: 4}},
		"storage": {"DISK_GB": {Total: 100}},
	} {
		if _, err := store.Put(ctx, &placement.Provider{ID: id, Inventories: inv}); err != nil {
			fmt.Println(err)
			return
		}
	}
	claim := func(consumer string, gib int64) error {
		return store.Claim(ctx, placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{
			{Provider: "node-1", Resources: placement.Resources{"VCPU": 1}},
			{Provider: "storage", Resources: placement.Resources{"DISK_GB": gib}},
		}})
	}
	fmt.Println(claim("server-1", 80))
	err := claim("server-2", 40)
	fmt.Println(errors.Is(err, placement.ErrNoRoom), err)
	fmt.Println(placement.Release(ctx, store, "server-1"), claim("server-2", 40))
	// Output:
	// <nil>
	// true provider storage: DISK_GB: needs 40, 20 free: not enough room left
	// <nil> <nil>
}

// A server moves from one host to another. During the move both hosts are claimed. Then the move ends, or is
// undone.
func ExampleMove() {
	ctx := context.Background()
	store := &placement.Memory{}
	for _, id := range []string{"node-1", "node-2"} {
		if _, err := store.Put(ctx, &placement.Provider{ID: id, Inventories: map[string]placement.Inventory{"VCPU": {Total: 4}}}); err != nil {
			fmt.Println(err)
			return
		}
	}
	on := func(host string) placement.Claim {
		return placement.Claim{Consumer: "server-1", Allocations: []placement.Allocation{{Provider: host, Resources: placement.Resources{"VCPU": 3}}}}
	}
	used := func() {
		hosts, err := store.Providers(ctx)
		fmt.Println(hosts[0].Inventories["VCPU"].Used, hosts[1].Inventories["VCPU"].Used, err)
	}
	fmt.Println(store.Claim(ctx, on("node-1")))

	// "move-7" is an ID without a claim. It gets the server's claim on node-1.
	err := placement.Move(ctx, store, "move-7", on("node-2"))
	fmt.Println(err)
	used()

	// The server runs on node-2: the claim of the move is released.
	err = placement.Release(ctx, store, "move-7")
	fmt.Println(err)
	used()

	// Another move fails half way: the server gets the claim of the move.
	fmt.Println(placement.Move(ctx, store, "move-8", on("node-1")))
	err = placement.Revert(ctx, store, "server-1", "move-8", nil)
	fmt.Println(err)
	used()
	// Output:
	// <nil>
	// <nil>
	// 3 3 <nil>
	// <nil>
	// 0 3 <nil>
	// <nil>
	// <nil>
	// 0 3 <nil>
}
