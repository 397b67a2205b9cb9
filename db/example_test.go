package db_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing/fstest"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
)

var errNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "no room")

func Example() {
	ctx := context.Background()
	migrations := fstest.MapFS{ // a program embeds its files
		"0001_hosts.sql": {Data: []byte(`-- +goose Up
			CREATE TABLE hosts (name VARCHAR(255) NOT NULL PRIMARY KEY, free BIGINT NOT NULL);`)},
		"0002_first.sql": {Data: []byte(`-- +goose Up
			INSERT INTO hosts (name, free) VALUES ('node-1', 3);`)},
	}
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	if err := db.Migrate(ctx, d, only(migrations)...); err != nil {
		fmt.Println(err)
		return
	}
	var name string
	err = db.Error(d.GetContext(ctx, &name, "SELECT name FROM hosts WHERE name = ?", "node-2"))
	fmt.Println(errors.Is(err, fault.NotFound))
	// Output: true
}

// A claim: the check and the change are one transaction. Tx repeats the transaction
// if it conflicts with another one.
func ExampleTx() {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	d.MustExecContext(ctx, "CREATE TABLE hosts (name VARCHAR(255) NOT NULL PRIMARY KEY, free BIGINT NOT NULL)")
	d.MustExecContext(ctx, "INSERT INTO hosts (name, free) VALUES ('node-1', 3)")

	claim := func(host string, n int) error {
		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			var free int
			if err := tx.GetContext(ctx, &free, "SELECT free FROM hosts WHERE name = ? FOR UPDATE", host); err != nil {
				return err
			}
			if free < n {
				return fmt.Errorf("claim %d on %s: %w", n, host, errNoRoom)
			}
			_, err := tx.ExecContext(ctx, "UPDATE hosts SET free = ? WHERE name = ?", free-n, host)
			return err
		})
	}
	fmt.Println(claim("node-1", 2))
	fmt.Println(claim("node-1", 2))
	fmt.Println(errors.Is(claim("node-2", 1), fault.NotFound))
	// Output:
	// <nil>
	// claim 2 on node-1: no room
	// true
}

// open returns a database in memory for an example.
func open(ctx context.Context, statements ...string) *sqlx.DB {
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		panic(err)
	}
	for _, s := range statements {
		d.MustExecContext(ctx, s)
	}
	return d
}

// A volume is deleted only if it is available or failed. Otherwise the error says
// which status it has.
func ExampleUpdateIf() {
	ctx := context.Background()
	d := open(ctx,
		"CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, status VARCHAR(20) NOT NULL, host VARCHAR(50), version BIGINT NOT NULL)",
		"INSERT INTO volumes (id, status, version) VALUES ('v1', 'available', 1), ('v2', 'in-use', 1)")
	defer d.Close()

	remove := func(id string) error {
		return db.UpdateIf(ctx, d, db.Update{
			Table: "volumes",
			Key:   db.Values{"id": id},
			If:    db.Values{"status": []string{"available", "error"}, "host": nil},
			Set:   db.Values{"status": "deleting", "version": db.Expr("version + 1")},
		})
	}
	fmt.Println(remove("v1"))
	err := remove("v2")
	fmt.Println(err)
	fmt.Println(fault.CodeOf(err), fault.From(err).Meta["status"])
	fmt.Println(fault.CodeOf(remove("v3")))
	// Output:
	// <nil>
	// volumes id=v2: status is in-use, want one of available, error
	// Conflict in-use
	// NotFound
}

// All volumes, two at a time, the largest first.
func ExampleList() {
	ctx := context.Background()
	d := open(ctx,
		"CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, size BIGINT)",
		"INSERT INTO volumes (id, size) VALUES ('a', 1), ('b', 8), ('c', NULL), ('d', 8), ('e', 3)")
	defer d.Close()

	type Volume struct {
		ID   string
		Size *int64
	}
	marker := ""
	for more := true; more; {
		var page []Volume
		var err error
		page, more, err = db.List[Volume](ctx, d, db.Page{
			From: "volumes",
			Sort: []db.SortKey{{Column: "size", Desc: true}},
			Key:  "id", Marker: marker, Limit: 2,
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, v := range page {
			fmt.Print(v.ID)
			marker = v.ID
		}
		fmt.Println()
	}
	_, _, err := db.List[Volume](ctx, d, db.Page{From: "volumes", Key: "id", Marker: "gone", Limit: 2})
	fmt.Println(err)
	// Output:
	// db
	// ea
	// c
	// marker [gone] not found
}

// The two largest volumes whose name begins with db.
func ExamplePage_Select() {
	ctx := context.Background()
	d := open(ctx,
		"CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, name VARCHAR(255) NOT NULL, size BIGINT NOT NULL)",
		"INSERT INTO volumes (id, name, size) VALUES ('a', 'db-1', 1), ('b', 'web', 8), ('c', 'db-2', 3), ('d', 'old-db', 9), ('e', 'db-3', 2)")
	defer d.Close()

	type Volume struct {
		ID   string
		Name string
		Size int64
	}
	// In an API service, package service/api reads the query from the request: r.List.
	query := listing.Query{
		Conditions: []listing.Condition{{Name: "name", Column: "name", Operator: listing.Regexp, Values: []any{regexp.MustCompile("^db")}}},
		Sort:       []listing.SortKey{{Column: "size", Desc: true}},
		Limit:      2,
	}
	page, more, err := db.List[Volume](ctx, d, db.Page{From: "volumes", Key: "id"}.Select(query))
	fmt.Println(page, more, err)
	// Output:
	// [{c db-2 3} {e db-3 2}] true <nil>
}

// Volumes that were deleted long ago move to the history, in small transactions.
// Their tags are deleted.
func ExamplePurge() {
	ctx := context.Background()
	d := open(ctx,
		"CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, deleted_at DATETIME(6))",
		"CREATE TABLE volumes_history (id VARCHAR(36) NOT NULL, deleted_at DATETIME(6), archived_at DATETIME DEFAULT CURRENT_TIMESTAMP)",
		"CREATE TABLE tags (volume_id VARCHAR(36) NOT NULL REFERENCES volumes (id), tag VARCHAR(20) NOT NULL)",
		"INSERT INTO volumes (id, deleted_at) VALUES ('a', '2020-01-01'), ('b', NULL), ('c', '2020-01-02')",
		"INSERT INTO tags (volume_id, tag) VALUES ('a', 'x'), ('b', 'y')")
	defer d.Close()

	n, err := db.Purge(ctx, d, db.Retention{
		Table:   "volumes",
		Where:   "deleted_at < ?",
		Args:    []any{time.Now().AddDate(0, -3, 0)},
		History: "volumes_history",
		Parts:   []db.Part{{Table: "tags", Column: "volume_id"}}, // they have no history
		Pause:   10 * time.Millisecond,
	})
	fmt.Println(n, err)
	// Output: 2 <nil>
}

// A column is new. The program writes the column. The data migration fills the
// column in older rows while the program runs.
func ExampleMigrateData() {
	ctx := context.Background()
	d := open(ctx,
		"CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, gib BIGINT, bytes BIGINT)",
		"INSERT INTO volumes (id, gib) VALUES ('a', 1), ('b', 8), ('c', 3)")
	defer d.Close()

	bytes := db.DataMigration{
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
	reports := db.MigrateData(ctx, d, 2, bytes) // at most two rows, now
	fmt.Println(reports.Done(), reports[0].Left, reports.ExitCode())
	reports = db.MigrateData(ctx, d, 0, bytes)
	fmt.Println(reports.Done(), reports[0].Left, reports.ExitCode())

	checks := db.CheckUpgrade(ctx, db.DataCheck(d, bytes)) // a check of the next version
	fmt.Println(checks.ExitCode())
	// Output:
	// 2 1 1
	// 1 0 0
	// 0
}

// The Prometheus client has a collector for the metrics of the connection pool.
func Example_metrics() {
	ctx := context.Background()
	d := open(ctx)
	defer d.Close()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewDBStatsCollector(d.DB, "nova"))

	families, err := metrics.Gather()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "go_sql_open_connections" {
				fmt.Println(f.GetName(), m.GetLabel()[0].GetValue(), m.GetGauge().GetValue())
			}
		}
	}
	// Output: go_sql_open_connections nova 1
}

// A request that has written reads from the primary, other requests from a replica.
func ExampleReaders() {
	ctx := context.Background()
	primary := open(ctx, "CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY)")
	defer primary.Close()
	replica := open(ctx, "CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY)") // it does not have the latest rows yet
	defer replica.Close()
	readers := db.NewReaders(primary, replica)

	volumes := func(ctx context.Context) (n int) {
		if err := sqlx.GetContext(ctx, readers.For(ctx), &n, "SELECT COUNT(*) FROM volumes"); err != nil {
			panic(err)
		}
		return n
	}
	request := db.WithSession(ctx)
	err := db.Tx(request, primary, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO volumes (id) VALUES ('a')")
		return err
	})
	fmt.Println(err, volumes(request), volumes(db.WithSession(ctx)))
	// Output: <nil> 1 0
}

// ExecOne returns the given error if no row matches. The column tags stores a Go map as JSON.
func ExampleExecOne() {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	d.MustExecContext(ctx, "CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, tags TEXT NOT NULL)")

	type volume struct {
		ID   string                     `db:"id"`
		Tags db.JSON[map[string]string] `db:"tags"`
	}
	v := volume{ID: "v1", Tags: db.JSONOf(map[string]string{"disk": "fast"})}
	if _, err := d.NamedExecContext(ctx, "INSERT INTO volumes (id, tags) VALUES (:id, :tags)", v); err != nil {
		fmt.Println(err)
		return
	}
	if err := d.GetContext(ctx, &v, "SELECT * FROM volumes WHERE id = ?", "v1"); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(v.Tags.V["disk"])

	errNoVolume := fault.New(fault.NotFound, "volume v2 does not exist")
	fmt.Println(db.ExecOne(ctx, d, errNoVolume, "UPDATE volumes SET tags = ? WHERE id = ?", v.Tags, "v2"))
	// Output:
	// fast
	// volume v2 does not exist
}
