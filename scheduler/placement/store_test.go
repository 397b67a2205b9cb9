package placement_test

import (
	"testing"
	"testing/fstest"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/scheduler/placement/placementtest"
)

// migrations end with columns of a later release, so that all tests show that this release works with such columns.
var migrations = []db.Migrations{placement.Migrations, {Files: fstest.MapFS{"00001_next.sql": {Data: []byte(`
ALTER TABLE placement_providers ADD COLUMN next_release VARCHAR(10);
ALTER TABLE placement_inventories ADD COLUMN next_release VARCHAR(10);
ALTER TABLE placement_consumers ADD COLUMN next_release VARCHAR(10);
ALTER TABLE placement_allocations ADD COLUMN next_release VARCHAR(10);
ALTER TABLE placement_aggregates ADD COLUMN next_release VARCHAR(10);
ALTER TABLE placement_groups ADD COLUMN next_release VARCHAR(10);`)}}}}

func TestMemory(t *testing.T) {
	t.Parallel()
	placementtest.TestStore(t, func(*testing.T) placement.Store { return &placement.Memory{} })
}

func TestSQL(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		placementtest.TestStore(t, func(t *testing.T) placement.Store { return placement.NewSQL(open(t, dbtest.SQLite(t))) })
	})
	t.Run("mysql", func(t *testing.T) {
		t.Parallel()
		placementtest.TestStore(t, func(t *testing.T) placement.Store { return placement.NewSQL(open(t, dbtest.MySQL(t))) })
	})
}

// open returns a migrated database, which is closed when the test ends.
func open(t testing.TB, url string) *sqlx.DB {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := db.Migrate(t.Context(), d, migrations...); err != nil {
		t.Fatal(err)
	}
	return d
}
