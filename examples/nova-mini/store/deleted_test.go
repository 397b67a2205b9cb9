package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/listing"
)

// TestPowerStates: a list that is sorted by the power state has the order of the values that Server.PowerState returns.
func TestPowerStates(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.New(d)
		states := []string{
			compute.VMBuilding, compute.VMActive, compute.VMStopped, compute.VMError, compute.VMResized, compute.VMResized, compute.VMPaused, compute.VMSuspended,
			compute.VMRescued, compute.VMShelved, compute.VMOffloaded, compute.VMSoftDeleted,
		}
		for i, state := range states {
			srv := &store.Server{ID: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i), Name: "s", ProjectID: "p"}
			if err := s.CreateServer(t.Context(), srv); err != nil {
				t.Fatal(err)
			}
			resize := db.JSONOf(&store.Resize{Running: i == 5})
			var stored *compute.PowerState // nil: the power state follows from vm_state
			if state == compute.VMRescued {
				stored = new(compute.Crashed)
			}
			if _, err := d.ExecContext(t.Context(), `UPDATE servers SET vm_state = ?, resize = ?, power_state = ? WHERE id = ?`, state, resize, stored, srv.ID); err != nil {
				t.Fatal(err)
			}
		}
		q := store.ServerQuery{SoftDeleted: true, In: store.AllProjects(), Query: listing.Query{Limit: 100, Sort: []listing.SortKey{{Column: "power_state"}}}}
		list, err := s.Servers(t.Context(), q)
		if err != nil || len(list) != len(states) {
			t.Fatalf("%d servers, %v", len(list), err)
		}
		seen := map[compute.PowerState]bool{}
		for i := range list {
			seen[list[i].PowerState()] = true
			if i > 0 && list[i].PowerState() < list[i-1].PowerState() {
				t.Errorf("%s (%v) is after %s (%v)", list[i].VMState, list[i].PowerState(), list[i-1].VMState, list[i-1].PowerState())
			}
		}
		if len(seen) < 6 || !seen[compute.Crashed] {
			t.Errorf("only the power states %v", seen)
		}
	})
}

// TestDeletedNetworks: a deleted server has no network interfaces, as in Nova, because its ports are deleted before.
func TestDeletedNetworks(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.New(d)
		wanted := &network.Wanted{Interfaces: []network.Interface{{Port: network.Port{ID: "p", Addresses: []network.Address{{IP: "10.0.0.5"}}}}}}
		srv := &store.Server{ID: "00000000-0000-4000-8000-000000000000", Name: "s", ProjectID: "p", Networks: db.JSONOf(wanted)}
		if err := s.CreateServer(t.Context(), srv); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ExecContext(t.Context(), `UPDATE servers SET networks = ? WHERE id = ?`, db.JSONOf(wanted), srv.ID); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Server(t.Context(), srv.ID); err != nil || got.Networks.V == nil {
			t.Fatalf("before the deletion: %+v, %v", got, err)
		}
		if err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Remove(ctx, tx, srv.ID) }); err != nil {
			t.Fatal(err)
		}
		list, err := s.Servers(t.Context(), store.ServerQuery{Deleted: true, In: store.AllProjects(), Query: listing.Query{Limit: 9}})
		if err != nil || len(list) != 1 || list[0].Networks.V != nil {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// TestDeletedColumns: the table of deleted servers has all columns of the table of servers.
func TestDeletedColumns(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		all := columns(t, d)
		for _, column := range all {
			if name, ok := strings.CutPrefix(column, "servers."); ok {
				if strings.HasSuffix(name, " MUL") { // the tables have different indexes
					name = strings.TrimSuffix(name, "MUL")
				}
				if !slices.ContainsFunc(all, func(c string) bool { return strings.HasPrefix(c, "deleted_servers."+name) }) {
					t.Errorf("servers has the column %s, and deleted_servers does not", name)
				}
			}
		}
	})
}
