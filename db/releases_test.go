package db_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// release is the program of one release of a component. As in the guide docs/database.md, the component replaces the column gib
// by the column bytes.
type release struct {
	name       string
	migrations []db.Migrations
	insert     string // a statement with the parameters :id, :gib and :bytes
	update     string
	read       string // a query for the size in bytes
}

// volumeReleases are the releases before, during and after the three releases of the guide.
func volumeReleases() []release {
	files := fstest.MapFS{}
	upTo := func(name, text string) []db.Migrations {
		files[name] = &fstest.MapFile{Data: []byte(text)}
		return []db.Migrations{{Name: "volumes", Files: maps.Clone(files)}}
	}
	before := upTo("00001_init.sql", `CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, gib BIGINT NOT NULL DEFAULT 0);
`)
	expanded := upTo("00002_expand.sql", `ALTER TABLE volumes ADD COLUMN bytes BIGINT;
`)
	indexed := upTo("00003_contract.sql", `CREATE INDEX volumes_bytes ON volumes (bytes);
`)
	dropped := upTo("00004_drop.sql", `-- +db breaks 2
ALTER TABLE volumes DROP COLUMN gib;
`)
	const both, onlyBytes = "INSERT INTO volumes (id, gib, bytes) VALUES (:id, :gib, :bytes)", "INSERT INTO volumes (id, bytes) VALUES (:id, :bytes)"
	const setBoth, setBytes = "UPDATE volumes SET gib = :gib, bytes = :bytes WHERE id = :id", "UPDATE volumes SET bytes = :bytes WHERE id = :id"
	const readGib, readBytes = "SELECT gib * 1073741824 FROM volumes WHERE id = ?", "SELECT bytes FROM volumes WHERE id = ?"
	return []release{
		{"before", before, "INSERT INTO volumes (id, gib) VALUES (:id, :gib)", "UPDATE volumes SET gib = :gib WHERE id = :id", readGib},
		{"expand", expanded, both, setBoth, readGib},
		{"migrate", expanded, both, setBoth, readBytes},
		{"contract", indexed, onlyBytes, setBytes, readBytes},
		{"after", dropped, onlyBytes, setBytes, readBytes},
	}
}

// sizesInBytes is the data migration of the release "expand".
var sizesInBytes = db.DataMigration{
	Name: "sizes in bytes",
	Left: func(ctx context.Context, q sqlx.QueryerContext) (n int64, err error) {
		err = sqlx.GetContext(ctx, q, &n, "SELECT COUNT(*) FROM volumes WHERE bytes IS NULL OR bytes <> gib * 1073741824")
		return n, err
	},
	Batch: func(ctx context.Context, tx *sqlx.Tx, n int) (int, error) {
		var ids []string
		err := tx.SelectContext(ctx, &ids, "SELECT id FROM volumes WHERE bytes IS NULL OR bytes <> gib * 1073741824 ORDER BY id LIMIT ? FOR UPDATE", n)
		for _, id := range ids {
			if err == nil {
				_, err = tx.ExecContext(ctx, "UPDATE volumes SET bytes = gib * 1073741824 WHERE id = ?", id)
			}
		}
		return len(ids), err
	},
}

func checkError(r db.UpgradeResults) error {
	if code := r.ExitCode(); code != 0 {
		return fmt.Errorf("exit code %d, want 0", code)
	}
	return nil
}

// volume is a row, with the size that was written last.
type volume struct {
	mu  sync.Mutex
	gib int64 // 0: not inserted
}

// work inserts, changes and reads volumes n times, as a process of this release. Each volume must have the size that was written
// last, by a process of any release.
func (r release) work(ctx context.Context, d *sqlx.DB, seed uint64, volumes []volume, n int) error {
	if _, err := db.Check(ctx, d, r.migrations...); err != nil {
		return fmt.Errorf("start of release %s: %w", r.name, err)
	}
	rnd := rand.New(rand.NewPCG(seed, seed))
	one := func(i int) error {
		v := &volumes[i]
		v.mu.Lock()
		defer v.mu.Unlock()
		id := fmt.Sprintf("volume-%d", i)
		if v.gib > 0 {
			var got int64
			if err := db.Error(d.GetContext(ctx, &got, r.read, id)); err != nil {
				return fmt.Errorf("release %s reads %s: %w", r.name, id, err)
			}
			if got != v.gib<<30 {
				return fmt.Errorf("release %s reads %d bytes of %s, want %d GiB", r.name, got, id, v.gib)
			}
		}
		query, gib := r.update, 1+rnd.Int64N(1000)
		if v.gib == 0 {
			query = r.insert
		}
		err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.NamedExecContext(ctx, query, map[string]any{"id": id, "gib": gib, "bytes": gib << 30})
			return err
		})
		if err != nil {
			return fmt.Errorf("release %s writes %s: %w", r.name, id, err)
		}
		v.gib = gib
		return nil
	}
	for range n {
		if err := one(rnd.IntN(len(volumes))); err != nil {
			return err
		}
	}
	return nil
}

// TestThreeReleases: a column is replaced by another one while processes of two releases always run beside each other, with the schema
// of the newer one. No statement fails, and each process reads the sizes that any other process has written.
func TestThreeReleases(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dbtest.EachURL(t, func(t *testing.T, url string) {
		d, list, volumes, seed := mustOpen(t, url), volumeReleases(), make([]volume, 60), seed // a seed for each database
		must := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		must("db sync of the first release", db.Migrate(t.Context(), d, list[0].migrations...))
		must("the first release", list[0].work(t.Context(), d, seed, volumes, 40))
		for i := 1; i < len(list); i++ {
			older, newer := list[i-1], list[i]
			if newer.name == "migrate" { // all processes without the new column have ended
				if got := db.CheckUpgrade(t.Context(), db.DataCheck(d, sizesInBytes)); got.ExitCode() != 2 {
					t.Errorf("upgrade check of release %s before the data are migrated: exit code %d, want 2", newer.name, got.ExitCode())
				}
			}
			var stop atomic.Bool
			var wg sync.WaitGroup
			var mu sync.Mutex
			var failed error
			start := func(r release, seed uint64) {
				wg.Go(func() {
					for !stop.Load() {
						if err := r.work(t.Context(), d, seed, volumes, 20); err != nil {
							mu.Lock()
							failed = errors.Join(failed, err)
							mu.Unlock()
							return
						}
						seed++
					}
				})
			}
			start(older, seed+uint64(10*i))
			if newer.name == "migrate" {
				reports := db.MigrateData(t.Context(), d, 0, sizesInBytes)
				must("data migration", reports[0].Err)
				if reports.Done() == 0 || reports.ExitCode() != 0 {
					t.Errorf("data migration: %+v, want rows and exit code 0", reports)
				}
				must("upgrade check", checkError(db.CheckUpgrade(t.Context(), db.DataCheck(d, sizesInBytes))))
			}
			must("db sync of release "+newer.name, db.Migrate(t.Context(), d, newer.migrations...))
			if i > 1 { // list[i-2] may start with the newest schema, unless a migration breaks it
				_, err := db.Check(t.Context(), d, list[i-2].migrations...)
				if breaks := newer.name == "after"; (err != nil) != breaks {
					t.Errorf("check of release %s with the schema of %s: %v", list[i-2].name, newer.name, err)
				} else if want := "at version 4, and its migration 00004_drop.sql does not work with version 2 of this program: upgrade the program"; breaks && (!errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), want)) {
					t.Errorf("%v, want Precondition with %q", err, want)
				}
			}
			must("release "+newer.name, newer.work(t.Context(), d, seed+uint64(10*i+5), volumes, 120))
			stop.Store(true)
			wg.Wait()
			must("release "+older.name+" beside "+newer.name, failed)
		}
	})
}
