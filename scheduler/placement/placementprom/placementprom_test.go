package placementprom_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/internal/promtest"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/scheduler/placement/placementprom"
)

type request struct{ placement.Request }

// broken is a store whose method Claim returns err.
type broken struct {
	placement.Store

	err error
}

func (b broken) Claim(context.Context, ...placement.Claim) error { return b.err }

// TestMetrics: claims are counted by result, and the enabled providers' amounts are added up.
func TestMetrics(t *testing.T) {
	t.Parallel()
	var store placement.Memory
	for i, p := range []placement.Provider{
		{ID: "a", Inventories: map[string]placement.Inventory{placement.VCPU: {Total: 4, Ratio: 2}, placement.MemoryMB: {Total: 100, Reserved: 10}}},
		{ID: "b", Inventories: map[string]placement.Inventory{placement.VCPU: {Total: 2}}},
		{ID: "c", Disabled: "a test", Inventories: map[string]placement.Inventory{placement.VCPU: {Total: 64}}},
	} {
		if _, err := store.Put(t.Context(), &p); err != nil {
			t.Fatalf("provider %d: %v", i, err)
		}
	}
	m := placementprom.New()
	m.AddProviders(func(ctx context.Context) ([]*placement.Provider, error) { return store.Providers(ctx) })
	rank, err := scheduler.New(scheduler.Config[*request, *placement.Provider]{})
	if err != nil {
		t.Fatal(err)
	}
	place := func(s placement.Store, consumer string, cores int64) error {
		p := placement.Placer[*request, *placement.Provider]{
			Scheduler: rank, Store: s, Observe: m.Observe,
			Hosts: func(ctx context.Context, _ bool) ([]*placement.Provider, error) { return store.Providers(ctx, "a") },
		}
		_, err := p.Place(t.Context(), &request{placement.Request{Consumer: consumer, Resources: placement.Resources{placement.VCPU: cores}}})
		return err
	}
	if err := place(&store, "one", 3); err != nil {
		t.Fatal(err)
	}
	if err := place(broken{&store, fmt.Errorf("claim: %w", placement.ErrNoRoom)}, "two", 1); err == nil {
		t.Error("a claim without room succeeded")
	}
	if err := place(broken{&store, errors.New("no answer")}, "three", 1); err == nil {
		t.Error("a claim without a store succeeded")
	}
	want := map[string]float64{
		"claims_total{result=ok}": 1, "claims_total{result=no_room}": 20, "claims_total{result=error}": 1, "claim_duration_seconds": 22,
		"providers{state=enabled}": 2, "providers{state=disabled}": 1,
		"capacity{class=VCPU}": 10, "used{class=VCPU}": 3, "capacity{class=MEMORY_MB}": 90, "used{class=MEMORY_MB}": 0,
	}
	if diff := cmp.Diff(want, promtest.Gather(t, "armature_placement_", m)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	m = placementprom.New()
	for range 2 { // without a function, and with one that fails
		if diff := cmp.Diff(map[string]float64{"claim_duration_seconds": 0}, promtest.Gather(t, "armature_placement_", m)); diff != "" {
			t.Errorf("without providers: -want +got:\n%s", diff)
		}
		m.AddProviders(func(context.Context) ([]*placement.Provider, error) { return nil, errors.New("no answer") })
	}
}
