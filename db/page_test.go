package db_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

var pages = fstest.MapFS{"0001_pages.sql": {Data: []byte(`-- +goose Up
CREATE TABLE things (id VARCHAR(36) NOT NULL PRIMARY KEY, kind VARCHAR(20) NOT NULL,
	n BIGINT, name VARCHAR(50), x DOUBLE, at DATETIME(6), created_at DATETIME(6) NOT NULL);
CREATE INDEX things_created ON things (created_at, id);
CREATE INDEX things_n ON things (n, id);
`)}}

// thing is a row of things.
type thing struct {
	ID        string     `db:"id"`
	Kind      string     `db:"kind"`
	N         *int64     `db:"n"`
	Name      *string    `db:"name"`
	X         *float64   `db:"x"`
	At        *time.Time `db:"at"`
	CreatedAt time.Time  `db:"created_at"`
}

// randomThing returns a thing. Each column has few values, so that many rows are equal.
func randomThing(r *rand.Rand, id int) thing {
	base := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	maybe := func() bool { return r.IntN(4) > 0 }
	out := thing{
		ID:        fmt.Sprintf("%08x-%d", r.Uint32(), id),
		Kind:      []string{"a", "B", "ä"}[r.IntN(3)],
		CreatedAt: base.Add(time.Duration(r.IntN(20)) * time.Microsecond),
	}
	if maybe() {
		out.N = new(int64(r.IntN(5) - 2))
	}
	if maybe() {
		out.Name = new([]string{"", "a", "A", "aa", "é", "z_%", `o'"\`}[r.IntN(7)])
	}
	if maybe() {
		out.X = new([]float64{0, 0.1, 1.0 / 3, -1e300, 1e-300}[r.IntN(5)])
	}
	if maybe() {
		out.At = new(base.Add(time.Duration(r.IntN(3)) * time.Microsecond))
	}
	return out
}

// insertThings adds rows in batches.
func insertThings(ctx context.Context, t *testing.T, q sqlx.ExtContext, list ...thing) {
	t.Helper()
	for some := range slices.Chunk(list, 200) {
		if _, err := sqlx.NamedExecContext(ctx, q, `INSERT INTO things (id, kind, n, name, x, at, created_at)
			VALUES (:id, :kind, :n, :name, :x, :at, :created_at)`, some); err != nil {
			t.Fatal(err)
		}
	}
}

// compareBy returns a comparison for the order that a page must have.
func compareBy(keys []db.SortKey) func(a, b thing) int {
	return func(a, b thing) int {
		for _, k := range keys {
			c := 0
			null := func(a, b bool) bool { // reports whether a NULL decides the order
				if !a && !b {
					return false
				}
				switch {
				case a && b:
				case a:
					c = -1
				default:
					c = 1
				}
				if k.Desc {
					c = -c
				}
				return true
			}
			decided := false
			switch k.Column {
			case "n":
				if decided = null(a.N == nil, b.N == nil); !decided {
					c = cmp.Compare(*a.N, *b.N)
				}
			case "name":
				if decided = null(a.Name == nil, b.Name == nil); !decided {
					c = strings.Compare(*a.Name, *b.Name)
				}
			case "x":
				if decided = null(a.X == nil, b.X == nil); !decided {
					c = cmp.Compare(*a.X, *b.X)
				}
			case "at":
				if decided = null(a.At == nil, b.At == nil); !decided {
					c = a.At.Compare(*b.At)
				}
			case "kind":
				c = strings.Compare(a.Kind, b.Kind)
			case "created_at":
				c = a.CreatedAt.Compare(b.CreatedAt)
			case "id":
				c = strings.Compare(a.ID, b.ID)
			}
			if !decided && k.Desc {
				c = -c
			}
			if c != 0 {
				return c
			}
		}
		return 0
	}
}

// randomSort returns a random order, and the total order that List makes of it.
func randomSort(r *rand.Rand) (sort, total []db.SortKey) {
	cols := []string{"n", "name", "x", "at", "kind", "created_at"}
	r.Shuffle(len(cols), func(i, j int) { cols[i], cols[j] = cols[j], cols[i] })
	for _, c := range cols[:r.IntN(4)] {
		sort = append(sort, db.SortKey{Column: c, Desc: r.IntN(2) > 0})
	}
	end := db.SortKey{Column: "id"}
	if n := len(sort); n > 0 {
		end.Desc = sort[n-1].Desc
	}
	return sort, append(slices.Clip(sort), end)
}

// TestPages: for random rows and random orders, all pages together have all rows in the
// right order.
func TestPages(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(pages), func(t *testing.T, d *sqlx.DB) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		var all []thing
		for i := range 300 {
			all = append(all, randomThing(r, i))
		}
		insertThings(t.Context(), t, d, all...)
		total := 0
		for range 60 {
			sort, keys := randomSort(r)
			p := db.Page{From: "things", Sort: sort, Key: "id", Limit: 1 + r.IntN(80)}
			want := slices.Clone(all)
			if r.IntN(2) > 0 {
				p.Where, p.Args = "kind = ? OR n IS NULL", []any{"a"}
				want = slices.DeleteFunc(want, func(a thing) bool { return a.Kind != "a" && a.N != nil })
			}
			list := db.List[thing]
			if r.IntN(2) > 0 {
				list = func(ctx context.Context, q sqlx.QueryerContext, p db.Page) ([]thing, bool, error) {
					return db.ListFunc(ctx, q, p, func(a *thing) bool { return a.X != nil })
				}
				want = slices.DeleteFunc(want, func(a thing) bool { return a.X == nil })
			}
			slices.SortFunc(want, compareBy(keys))
			var got []thing
			for more := true; more; {
				var rows []thing
				var err error
				if rows, more, err = list(t.Context(), d, p); err != nil {
					t.Fatalf("%+v: %v", p, err)
				}
				if len(rows) > p.Limit || more && len(rows) < p.Limit {
					t.Fatalf("%+v: %d rows, more: %t", p, len(rows), more)
				}
				got = append(got, rows...)
				if len(rows) > 0 {
					p.Marker = rows[len(rows)-1].ID
				}
				total++
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Fatalf("order %+v, where %q, limit %d (-want +got):\n%s", sort, p.Where, p.Limit, diff)
			}
		}
		t.Logf("%d pages in 60 orders", total)
	})
}

// TestPagesWhileWriting: a client reads all pages while rows are inserted and deleted. It gets
// each of the other rows exactly once, in order.
func TestPagesWhileWriting(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(pages), func(t *testing.T, d *sqlx.DB) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		var stay []thing
		for i := range 300 {
			stay = append(stay, randomThing(r, i))
		}
		insertThings(t.Context(), t, d, stay...)
		id, pagesRead := 1000, 0
		var going []string
		for range 10 {
			sort, keys := randomSort(r)
			p := db.Page{From: "things", Sort: sort, Key: "id", Limit: 20}
			var got []thing
			for more := true; more; {
				var rows []thing
				var err error
				if rows, more, err = db.List[thing](t.Context(), d, p); err != nil {
					t.Fatal(err)
				}
				pagesRead++
				got = append(got, rows...)
				if len(rows) > 0 {
					p.Marker = rows[len(rows)-1].ID
				}
				for range 3 {
					id++
					n := randomThing(r, id)
					insertThings(t.Context(), t, d, n)
					going = append(going, n.ID)
				}
				if i := r.IntN(len(going)); len(going) > 10 && going[i] != p.Marker { // the marker's row must exist
					d.MustExecContext(t.Context(), "DELETE FROM things WHERE id = ?", going[i])
					going = slices.Delete(going, i, i+1)
				}
			}
			seen := map[string]int{}
			for _, row := range got {
				seen[row.ID]++
			}
			for _, row := range stay {
				if seen[row.ID] != 1 {
					t.Fatalf("order %+v: row %s was returned %d times, want once", sort, row.ID, seen[row.ID])
				}
			}
			only := slices.DeleteFunc(got, func(row thing) bool {
				return !slices.ContainsFunc(stay, func(s thing) bool { return s.ID == row.ID })
			})
			if !slices.IsSortedFunc(only, compareBy(keys)) {
				t.Fatalf("order %+v: the rows are not in this order", sort)
			}
		}
		t.Logf("%d pages while %d rows were inserted", pagesRead, id-1000)
	})
}

// TestPageLimits: List returns the right rows or errors for empty pages, markers that do not exist or are outside of
// Within, joins, and wrong fields.
func TestPageLimits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(pages), func(t *testing.T, d *sqlx.DB) {
		d.MustExecContext(t.Context(), "CREATE TABLE numbered (id BIGINT NOT NULL PRIMARY KEY, tag VARCHAR(9) NOT NULL)")
		d.MustExecContext(t.Context(), "INSERT INTO numbered (id, tag) VALUES (12, 'a'), (13, 'a'), (14, 'b')")
		insertThings(t.Context(), t, d, thing{ID: "1", Kind: "a", Name: new("z"), CreatedAt: time.Now().UTC()})
		page := func(change func(p *db.Page)) ([]int64, bool, error) {
			p := db.Page{Columns: "id", From: "numbered", Key: "id", Limit: 10}
			change(&p)
			return db.List[int64](t.Context(), d, p)
		}
		rows, more, err := page(func(p *db.Page) { p.Marker, p.Where = "12", "id <> 12" })
		if err != nil || more || !slices.Equal(rows, []int64{13, 14}) {
			t.Errorf("after a marker that does not match Where: %v, %t, %v; want 13 and 14", rows, more, err)
		}
		rows, _, err = page(func(p *db.Page) { p.Marker = "14" })
		if err != nil || rows == nil || len(rows) > 0 {
			t.Errorf("after the last row: %v, %v; want an empty list", rows, err)
		}
		rows, more, err = page(func(p *db.Page) { p.Limit = 0 })
		if err != nil || len(rows) > 0 || !more {
			t.Errorf("a page with limit 0: %v, %t, %v; want no row, and more", rows, more, err)
		}
		within := func(p *db.Page) { p.Within, p.WithinArgs = "tag = ? OR tag = ?", []any{"a", "c"} }
		rows, more, err = page(func(p *db.Page) { within(p); p.Marker, p.Limit = "12", 1 })
		if err != nil || more || !slices.Equal(rows, []int64{13}) {
			t.Errorf("within tag a, after 12: %v, %t, %v; want 13 and no more", rows, more, err)
		}
		if _, _, err = page(func(p *db.Page) { within(p); p.Marker = "14" }); err == nil || err.Error() != "marker [14] not found" {
			t.Errorf("a marker outside of Within: %v, want not found", err)
		}
		_, _, err = db.List[string](t.Context(), d, db.Page{Columns: "name", From: "things", Key: "name", Limit: 9, Marker: "z "})
		if err == nil || err.Error() != "marker [z ] not found" {
			t.Errorf("a marker with a space at its end: %v, want not found", err)
		}
		for _, marker := range []string{"15", "12abc", "0x0c", "x"} {
			_, _, err := page(func(p *db.Page) { p.Marker = marker })
			if want := "marker [" + marker + "] not found"; fault.CodeOf(err) != fault.Invalid || err.Error() != want || fault.From(err).Reason != "MarkerNotFound" {
				t.Errorf("marker %s: %v, want Invalid, %s", marker, err, want)
			}
		}
		for name, change := range map[string]func(p *db.Page){
			"negative limit": func(p *db.Page) { p.Limit = -1 },
			"no table":       func(p *db.Page) { p.From = "" },
			"no key":         func(p *db.Page) { p.Key = "" },
			"an injection":   func(p *db.Page) { p.Sort = []db.SortKey{{Column: `id"; DROP TABLE numbered --`}} },
		} {
			if _, _, err := page(change); fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%s: %v, want Invalid", name, err)
			}
		}
		_, _, err = page(func(p *db.Page) { p.Key, p.Marker = "tag", "a" })
		if err == nil || fault.CodeOf(err) != fault.Internal || !strings.Contains(err.Error(), "tag is not unique in numbered") {
			t.Errorf("a key that is not unique: %v, want Internal", err)
		}
		rows, _, err = page(func(p *db.Page) {
			p.Columns, p.From = "a.id", "numbered a JOIN numbered b ON a.id = b.id"
			p.Key, p.Marker, p.Sort = "a.id", "12", []db.SortKey{{Column: "b.tag", Desc: true}}
		})
		if err != nil || len(rows) != 0 {
			t.Errorf("a join, descending: %v, %v; want no row after a, 12", rows, err)
		}
	})
}

// TestPagePlans: a page in the middle is read with an index and without the rows before
// it. MariaDB counts the rows that it reads, SQLite explains its plan.
func TestPagePlans(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var log lines
		d, err := db.Open(t.Context(), db.Config{
			URL: url, MaxOpen: 1, // the counters belong to the connection
			SlowQuery: 1, Logger: slog.New(slog.NewJSONHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := db.Migrate(t.Context(), d, only(pages)...); err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(1, 0))
		var list []thing
		for i := range 5000 {
			a := randomThing(r, i)
			a.CreatedAt = a.CreatedAt.Add(time.Duration(i/3) * time.Second)
			a.N = new(int64(i / 3))
			list = append(list, a)
		}
		insertThings(t.Context(), t, d, list...)
		for name, sort := range map[string][]db.SortKey{
			"oldest first":              {{Column: "created_at"}},
			"newest first":              {{Column: "created_at", Desc: true}},
			"a column with NULLs":       {{Column: "n"}},
			"a column with NULLs, desc": {{Column: "n", Desc: true}},
			"the key":                   nil,
			"the key, desc":             {{Column: "id", Desc: true}},
		} {
			p := db.Page{From: "things", Sort: sort, Key: "id", Marker: list[2500].ID, Limit: 10}
			touched := func() (n int) {
				if err := d.GetContext(t.Context(), &n, `SELECT SUM(variable_value) FROM information_schema.session_status
					WHERE variable_name LIKE 'Handler_read_%' AND variable_name NOT LIKE '%tmp' AND variable_name NOT LIKE '%rnd%'`); err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := 0
			if d.DriverName() == "mysql" {
				d.MustExecContext(t.Context(), "ANALYZE TABLE things")
				before = touched()
			}
			rows, more, err := db.List[thing](t.Context(), d, p)
			if err != nil || len(rows) != 10 || !more {
				t.Fatalf("%s: %d rows, %v", name, len(rows), err)
			}
			if d.DriverName() == "mysql" {
				n := touched() - before
				t.Logf("%s: %d rows touched", name, n)
				if n > 40 {
					t.Errorf("%s: a page of 10 of 5,000 touched %d rows", name, n)
				}
				continue
			}
			logged := strings.Split(strings.TrimSpace(log.drain()), "\n")
			var last struct{ Query string }
			if err := json.Unmarshal([]byte(logged[len(logged)-1]), &last); err != nil {
				t.Fatal(err)
			}
			var plan []struct {
				ID, Parent, NotUsed int
				Detail              string
			}
			if err := d.SelectContext(t.Context(), &plan, "EXPLAIN QUERY PLAN "+last.Query,
				make([]any, strings.Count(last.Query, "?"))...); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %v", name, plan)
			if len(plan) != 1 || !strings.HasPrefix(plan[0].Detail, "SEARCH things USING INDEX") {
				t.Errorf("%s: the plan is %v, want one search in an index", name, plan)
			}
		}
	})
}

// TestMarkerFrom: the marker's row may be in another table, such as one with deleted rows.
func TestMarkerFrom(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		for _, query := range []string{
			"CREATE TABLE present (id VARCHAR(9) PRIMARY KEY, n INTEGER NOT NULL, project VARCHAR(9) NOT NULL)",
			"CREATE TABLE past (id VARCHAR(9) PRIMARY KEY, n INTEGER NOT NULL, project VARCHAR(9) NOT NULL)",
			"INSERT INTO present VALUES ('a', 1, 'p'), ('c', 3, 'p'), ('d', 4, 'q')", "INSERT INTO past VALUES ('b', 2, 'p'), ('x', 2, 'q')",
		} {
			if _, err := d.ExecContext(t.Context(), query); err != nil {
				t.Fatal(err)
			}
		}
		p := db.Page{
			Columns: "id", From: "present", MarkerFrom: "(SELECT * FROM present UNION ALL SELECT * FROM past) every", Within: "project = ?", WithinArgs: []any{"p"},
			Sort: []db.SortKey{{Column: "n"}}, Key: "id", Limit: 5,
		}
		for marker, want := range map[string]string{"": "a c", "a": "c", "b": "c", "c": ""} {
			p.Marker = marker
			rows, _, err := db.List[string](t.Context(), d, p)
			if got := strings.Join(rows, " "); err != nil || got != want {
				t.Errorf("marker %q: %q, %v; want %q", marker, got, err, want)
			}
		}
		for _, marker := range []string{"d", "x", "nothing"} { // the rows of another project
			p.Marker = marker
			if _, _, err := db.List[string](t.Context(), d, p); !errors.Is(err, fault.Invalid) {
				t.Errorf("marker %q: %v, want Invalid", marker, err)
			}
		}
	})
}
