package store_test

import (
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// columns returns the columns of all tables and views, except the tables of migrations.
func columns(t *testing.T, d *sqlx.DB) (list []string) {
	t.Helper()
	query := `SELECT CONCAT(table_name, '.', column_name, ' ', column_type, ' ', is_nullable, ' ', COALESCE(column_default, ''), ' ', column_key)
		FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name NOT LIKE '%_migrations' ORDER BY 1`
	if d.DriverName() != "mysql" {
		query = `SELECT m.name || '.' || c.name || ' ' || c.type || ' ' || c."notnull" || ' ' || COALESCE(c.dflt_value, '') || ' ' || c.pk
			FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type IN ('table', 'view') AND m.name NOT LIKE '%_migrations' ORDER BY 1`
	}
	if err := d.SelectContext(t.Context(), &list, query); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestTakeOver: a database of the previous release, whose own migrations had a copy of the libraries' SQL, is upgraded to the schema of a
// new database, and keeps its rows. A database of an older release is refused.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	old := []db.Migrations{{Files: os.DirFS("testdata/version13")}}
	older := fstest.MapFS{}
	for _, name := range []string{"00001_init.sql", "00002_placement.sql"} {
		text, err := os.ReadFile("testdata/version13/" + name)
		if err != nil {
			t.Fatal(err)
		}
		older[name] = &fstest.MapFile{Data: text}
	}
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		if err := db.Migrate(t.Context(), d, old...); err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{
			`ALTER TABLE schema_migrations DROP COLUMN breaks`, // the previous release has neither column
			`ALTER TABLE schema_migrations DROP COLUMN done`,
			`INSERT INTO hosts (id, name, driver, driver_version) VALUES (1, 'h1', 'fake', '1')`,
			`INSERT INTO service_numbers (id, kind, host) VALUES (7, 'nova-compute', 'h1')`,
			`INSERT INTO members (kind, host, id, version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
				VALUES ('nova-compute', 'h1', 'm1', 1, '', TRUE, 'fan', FALSE, FALSE, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))`,
			`INSERT INTO placement_providers (id, generation, data) VALUES ('h1', 1, '{}')`,
			`INSERT INTO placement_inventories (provider, class, total, reserved, ratio, min_unit, max_unit, step_size, capacity, used, generation) VALUES ('h1', 'VCPU', 4, 0, 1, 0, 0, 0, 4, 3, 1)`,
			`INSERT INTO placement_consumers (id, generation, host, group_id, changed_at) VALUES ('s1', 1, 'h1', '', UTC_TIMESTAMP(6))`,
			`INSERT INTO placement_allocations (consumer, provider, class, amount) VALUES ('s1', 'h1', 'VCPU', 3)`,
		} {
			if _, err := d.ExecContext(t.Context(), q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		for range 2 { // the second call changes nothing
			if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
				t.Fatal(err)
			}
		}
		if warning, err := db.Check(t.Context(), d, store.Migrations()...); warning != "" || err != nil {
			t.Errorf("Check: %q, %v", warning, err)
		}
		s := store.New(d)
		if list, err := s.Services(t.Context(), time.Minute); err != nil || len(list) != 1 || list[0].Number != 7 || !list[0].Up || list[0].DisabledReason != "fan" {
			t.Errorf("services after the upgrade: %+v, %v", list, err)
		}
		claims, err := s.Claims().Claims(t.Context(), "s1")
		if err != nil || len(claims) != 1 || claims[0].Host != "h1" || claims[0].Allocations[0].Resources[compute.VCPU] != 3 {
			t.Errorf("claims after the upgrade: %+v, %v", claims, err)
		}
		if _, err := s.Operations().List(t.Context(), operation.Filter{}); err != nil {
			t.Error(err)
		}
		got := columns(t, d)
		t.Run("fresh", func(t *testing.T) {
			url := dbtest.SQLite
			if d.DriverName() == "mysql" {
				url = dbtest.MySQL
			}
			empty, err := db.Open(t.Context(), db.Config{URL: url(t)})
			if err != nil {
				t.Fatal(err)
			}
			defer empty.Close()
			if err := db.Migrate(t.Context(), empty, store.Migrations()...); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(columns(t, empty), got); diff != "" {
				t.Errorf("columns of a new database (-) and of an upgraded database (+):\n%s", diff)
			}
		})
	})
	dbtest.Each(t, []db.Migrations{{Files: older}}, func(t *testing.T, d *sqlx.DB) {
		if err := db.Migrate(t.Context(), d, store.Migrations()...); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("a database of an older release: %v, want Precondition", err)
		}
	})
}
