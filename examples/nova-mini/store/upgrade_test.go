package store_test

import (
	"fmt"
	"io/fs"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// TestSchemas: the migrations for the libraries' tables are the schemas that the libraries export, unchanged.
func TestSchemas(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"00002_placement.sql": placement.Schema, "00005_operation.sql": operation.Schema, "00006_membership.sql": membership.Schema,
		"00008_operation_requests.sql": operation.Schema2, "00011_member_instance.sql": membership.Schema2, "00012_operation_steps.sql": operation.Schema3,
	} {
		got, err := fs.ReadFile(store.Migrations(), name)
		if err != nil || string(got) != want {
			t.Errorf("%s is not the library's schema, %v", name, err)
		}
	}
}

// TestUpgrade migrates a database of the first release. Claims of before package placement still exist and count. Tasks
// of before package operation go on as operations. Services keep their numbers and the reasons for which they are disabled.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	first, err := fs.ReadFile(store.Migrations(), "00001_init.sql")
	if err != nil {
		t.Fatal(err)
	}
	dbtest.Each(t, fstest.MapFS{"00001_init.sql": {Data: first}}, func(t *testing.T, d *sqlx.DB) {
		for _, q := range []string{
			`INSERT INTO hosts (id, name, driver, driver_version) VALUES (1, 'h1', 'fake', '1')`,
			`INSERT INTO inventories (host, class, total, reserved, ratio, used) VALUES ('h1', 'VCPU', 4, 0, 2, 3), ('h1', 'MEMORY_MB', 2048, 0, 1, 512), ('h1', 'DISK_GB', 10, 0, 1, 0)`,
			`INSERT INTO allocations (server_id, class, host, amount) VALUES ('s1', 'VCPU', 'h1', 3), ('s1', 'MEMORY_MB', 'h1', 512), ('s1', 'DISK_GB', 'h1', 0)`,
		} {
			if _, err := d.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		for i, task := range []string{"scheduling", "deleting", "rebooting_hard", "", ""} {
			var state *string
			if task != "" {
				state = &task
			}
			d.MustExecContext(t.Context(), `INSERT INTO servers (id, name, project_id, user_id, request_id, image_ref, flavor_id, vcpus, memory_mib, disk_gib, metadata,
				vm_state, task_state, host, generation, attempts, tried, fault_code, fault_message, lease, due_at, task_since, created_at, updated_at)
				VALUES (?, 'n', 'p', 'u', 'req-1', '', '1', 1, 1, 1, '{}', 'active', ?, 'h1', 1, 1, '[]', 0, '', '', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))`,
				fmt.Sprintf("server-%d", i), state)
		}
		for id, why := range map[string]string{"server-3": "No valid host was found. 0 of 2 hosts: 2 MEMORY_MB", "server-4": "host h1: disk on fire"} {
			d.MustExecContext(t.Context(), `UPDATE servers SET fault_message = ?, fault_at = UTC_TIMESTAMP(6) WHERE id = ?`, why, id)
		}
		d.MustExecContext(t.Context(), `INSERT INTO services (id, binary_name, host, disabled, disabled_reason, seen_at) VALUES (7, 'nova-compute', 'h1', TRUE, 'fan', UTC_TIMESTAMP(6))`)
		if err := db.Migrate(t.Context(), d, store.Migrations()); err != nil {
			t.Fatal(err)
		}
		s := store.New(d)
		ops, err := s.Operations().List(t.Context(), operation.Filter{Open: true})
		kinds := map[string]string{}
		for _, o := range ops {
			kinds[o.Resource] = o.Kind + " " + string(o.State) + " " + o.RequestID
		}
		if diff := cmp.Diff(map[string]string{
			"server-0": "server.create running req-1", "server-1": "server.delete running req-1", "server-2": "server.hard_reboot running req-1",
		}, kinds); err != nil || diff != "" {
			t.Errorf("operations after the upgrade, %v (-want +got):\n%s", err, diff)
		}
		if list, err := s.Services(t.Context(), time.Minute); err != nil || len(list) != 1 || list[0].Number != 7 || !list[0].Up || list[0].DisabledReason != "fan" {
			t.Errorf("services after the upgrade: %+v, %v", list, err)
		}
		for id, want := range map[string][2]string{
			"server-0": {"", ""},
			"server-3": {"No valid host was found. There are not enough hosts available.", "No valid host was found. 0 of 2 hosts: 2 MEMORY_MB"},
			"server-4": {"Build of instance server-4 aborted.", "host h1: disk on fire"},
		} {
			if srv, err := s.Server(t.Context(), id); err != nil || srv.FaultMessage != want[0] || srv.FaultDetails != want[1] {
				t.Errorf("%s after the upgrade has the fault %q, %q, %v; want %q", id, srv.FaultMessage, srv.FaultDetails, err, want)
			}
		}
		d.MustExecContext(t.Context(), `DELETE FROM servers`)
		addHost(t, s, "h1", 4)
		hosts, err := s.Hosts(t.Context(), time.Minute)
		if err != nil || len(hosts) != 1 || hosts[0].Consumers != 1 || hosts[0].Inventories[compute.VCPU].Free() != 1 || hosts[0].Inventories[compute.MemoryMB].Free() != 3*512 {
			t.Fatalf("%+v, %v", hosts[0].Provider, err)
		}
		claims, err := s.Claims().Claims(t.Context(), "s1")
		if err != nil || claims[0].Generation != 1 || claims[0].Host != "h1" || claims[0].Allocations[0].Resources[compute.VCPU] != 3 {
			t.Errorf("%+v, %v", claims, err)
		}
		if wrong, err := s.Claims().Recount(t.Context(), true); err != nil || len(wrong) > 0 {
			t.Errorf("counted wrong: %+v, %v", wrong, err)
		}
	})
}
