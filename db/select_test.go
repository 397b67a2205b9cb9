package db_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
)

// matchesText reports whether a condition on a text column must select the text.
func matchesText(c listing.Condition, text *string) bool {
	return text != nil && slices.ContainsFunc(c.Values, func(v any) bool {
		switch v := v.(type) {
		case *regexp.Regexp:
			return v.MatchString(*text)
		case string:
			return *text == v || c.Operator == listing.Prefix && strings.HasPrefix(*text, v)
		}
		return false
	})
}

// TestSelect: conditions select the same rows on both databases, and the pages of a query have each of these rows once and in order,
// while other rows are inserted and deleted.
func TestSelect(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	base := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	one := func(column string, op listing.Operator, values ...any) listing.Condition {
		return listing.Condition{Name: column, Column: column, Operator: op, Values: values}
	}
	text := func(c listing.Condition) func(thing) bool {
		return func(row thing) bool { return matchesText(c, row.Name) }
	}
	type test struct {
		c       listing.Condition
		matches func(thing) bool
	}
	var tests []test
	for _, v := range []string{"", "a", "A", "a ", "é", "e", "z_%", `o'"\`, "%", "_"} {
		for _, op := range []listing.Operator{listing.Equal, listing.Prefix, listing.In} {
			c := one("name", op, v)
			tests = append(tests, test{c, text(c)})
		}
	}
	c := one("name", listing.In, "a", "aa", "")
	tests = append(tests, test{c, text(c)})
	for _, expr := range []string{"a", "^a$", "A", "(?i)A", "é|z", "", "z_", `\\`, "x{1000}", "^$", "a|"} {
		c := one("things.name", listing.Regexp, regexp.MustCompile(expr))
		tests = append(tests, test{c, text(c)})
	}
	tests = append(tests,
		test{one("n", listing.Equal, int64(1)), func(r thing) bool { return r.N != nil && *r.N == 1 }},
		test{one("n", listing.In, int64(1), int64(-2)), func(r thing) bool { return r.N != nil && (*r.N == 1 || *r.N == -2) }},
		test{one("n", listing.AtLeast, int64(1)), func(r thing) bool { return r.N != nil && *r.N >= 1 }},
		test{one("n", listing.AtMost, int64(1<<63-1)), func(r thing) bool { return r.N != nil }},
		test{one("at", listing.AtLeast, base.Add(time.Microsecond)), func(r thing) bool { return r.At != nil && !r.At.Before(base.Add(time.Microsecond)) }},
		test{one("at", listing.AtMost, base.Add(time.Microsecond)), func(r thing) bool { return r.At != nil && !r.At.After(base.Add(time.Microsecond)) }},
		test{one("at", listing.Equal, base), func(r thing) bool { return r.At != nil && r.At.Equal(base) }},
		test{one("n", listing.In), func(thing) bool { return false }},
	)
	dbtest.Each(t, only(pages), func(t *testing.T, d *sqlx.DB) {
		r := rand.New(rand.NewPCG(seed, 1))
		var all []thing
		for i := range 300 {
			all = append(all, randomThing(r, i))
		}
		insertThings(t.Context(), t, d, all...)
		for i, tt := range tests {
			kind := []string{"a", "B"}[i%2]
			want := slices.DeleteFunc(slices.Clone(all), func(row thing) bool { return !tt.matches(row) || row.Kind != kind })
			sort := []db.SortKey{{Column: []string{"created_at", "name", "n", "at"}[i%4], Desc: i%3 == 0}}
			slices.SortFunc(want, compareBy(append(slices.Clone(sort), db.SortKey{Column: "id", Desc: sort[0].Desc})))
			query := listing.Query{Conditions: []listing.Condition{tt.c}, Sort: sort, Limit: 7}
			page := db.Page{From: "things", Key: "id", Where: "kind = ?", Args: []any{kind}}
			var got []thing
			for more := true; more; {
				var rows []thing
				var err error
				if rows, more, err = db.List[thing](t.Context(), d, page.Select(query)); err != nil || len(rows) > 7 {
					t.Fatalf("%+v: %d rows, %v", tt.c, len(rows), err)
				}
				got = append(got, rows...)
				extra := randomThing(r, 1000+len(got))
				extra.Kind = "ä" // the page does not have it
				insertThings(t.Context(), t, d, extra)
				if more {
					query.Marker = rows[len(rows)-1].ID
				}
				if _, err := d.ExecContext(t.Context(), "DELETE FROM things WHERE id = ?", extra.ID); err != nil {
					t.Fatal(err)
				}
			}
			if diff := gocmp.Diff(idsOf(want), idsOf(got)); diff != "" {
				t.Errorf("%+v by %+v (-want +got):\n%s", tt.c, sort, diff)
			}
		}
	})
}

// TestPrefix: a prefix selects each text that begins with the prefix, even if the next character sorts before a space.
func TestPrefix(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	tables := fstest.MapFS{"0001_names.sql": {Data: []byte("CREATE TABLE names (id VARCHAR(36) NOT NULL PRIMARY KEY, name VARCHAR(50));\nCREATE INDEX names_name ON names (name, id);\n")}}
	type row struct {
		ID   string  `db:"id"`
		Name *string `db:"name"`
	}
	letters := []string{"a", "A", "b", "é", "%", "_", "!", `\`, "'", " ", "\t", "\n", "\x01", "\x1f", "\u00a0", "\ud7ff", "\ue000", "\U0010ffff", "\x00"}
	dbtest.Each(t, only(tables), func(t *testing.T, d *sqlx.DB) {
		r := rand.New(rand.NewPCG(seed, 1))
		word := func(n int) string {
			out := make([]string, n)
			for i := range out {
				out[i] = letters[r.IntN(len(letters))]
			}
			return strings.Join(out, "")
		}
		all := []row{{"null", nil}, {"tab", new("ab\tc")}, {"control", new("ab\x01")}, {"exact", new("ab")}, {"space", new("ab ")}}
		for i := range 1000 {
			all = append(all, row{strconv.Itoa(i), new(word(r.IntN(6)))})
		}
		for some := range slices.Chunk(all, 200) {
			if _, err := d.NamedExecContext(t.Context(), "INSERT INTO names (id, name) VALUES (:id, :name)", some); err != nil {
				t.Fatal(err)
			}
		}
		prefixes := []string{"", "ab", "ab ", "ab\t", "%", "_", "!", `\`, "a%", "\x01", "\x00", "ab\x00", "\ue000", "\ufffd"}
		for range 100 {
			prefixes = append(prefixes, word(1+r.IntN(3)))
		}
		for _, prefix := range prefixes {
			var want []string
			for _, one := range all {
				if one.Name != nil && strings.HasPrefix(*one.Name, prefix) {
					want = append(want, one.ID)
				}
			}
			query := listing.Query{Limit: 2000, Conditions: []listing.Condition{{Name: "name", Column: "names.name", Operator: listing.Prefix, Values: []any{prefix}}}}
			rows, _, err := db.List[row](t.Context(), d, db.Page{From: "names", Key: "id"}.Select(query))
			if err != nil {
				t.Fatalf("%q: %v", prefix, err)
			}
			got := make([]string, 0, len(rows))
			for _, one := range rows {
				got = append(got, one.ID)
			}
			slices.Sort(want)
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%q: %q, want %q", prefix, got, want)
			}
		}
	})
}

func idsOf(list []thing) []string {
	out := []string{}
	for _, row := range list {
		out = append(out, row.ID)
	}
	return out
}

// TestSelectGone: if the marker's row was deleted between two pages, the error is the documented one.
func TestSelectGone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(pages), func(t *testing.T, d *sqlx.DB) {
		insertThings(t.Context(), t, d, randomThing(rand.New(rand.NewPCG(1, 1)), 1))
		page := db.Page{From: "things", Key: "id"}.Select(listing.Query{Marker: "gone", Limit: 1})
		_, _, err := db.List[thing](t.Context(), d, page)
		if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != fault.Invalid || e.Reason != "MarkerNotFound" || fault.UserMessage(err) != "marker [gone] not found" {
			t.Errorf("%+v", err)
		}
	})
}

// TestWrongSelect: a condition that the page cannot apply is an error, and never ignored.
func TestWrongSelect(t *testing.T) {
	t.Parallel()
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.SQLite(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := db.Migrate(t.Context(), d, only(pages)...); err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile("a")
	things := func(ctx context.Context, p db.Page) error { _, _, err := db.List[thing](ctx, d, p); return err }
	names := func(ctx context.Context, p db.Page) error {
		p.Columns = "name"
		_, _, err := db.List[string](ctx, d, p)
		return err
	}
	for _, tt := range []struct {
		c    listing.Condition
		list func(context.Context, db.Page) error
		says string
	}{
		{listing.Condition{Name: "state", Values: []any{"a"}}, things, "the filter state has no column"},
		{listing.Condition{Name: "x", Column: `n" OR 1=1 --`, Values: []any{"a"}}, things, "is not the name of a column"},
		{listing.Condition{Name: "x", Column: "n"}, things, "has no value"},
		{listing.Condition{Name: "x", Column: "n", Operator: "like", Values: []any{int64(1)}}, things, `the operator "like" cannot compare a int64`},
		{listing.Condition{Name: "x", Column: "name", Operator: listing.AtLeast, Values: []any{"a"}}, things, "cannot compare a string"},
		{listing.Condition{Name: "x", Column: "name", Operator: listing.Regexp, Values: []any{"a"}}, things, "cannot compare a string"},
		{listing.Condition{Name: "x", Column: "name", Values: []any{re}}, things, "cannot compare a *regexp.Regexp"},
		{listing.Condition{Name: "x", Column: "n", Operator: listing.Regexp, Values: []any{re}}, things, "no text field for the column n"},
		{listing.Condition{Name: "x", Column: "other", Operator: listing.Regexp, Values: []any{re}}, things, "no text field for the column other"},
		{listing.Condition{Name: "x", Column: "name", Operator: listing.Regexp, Values: []any{re}}, names, "no text field for the column name"},
	} {
		err := tt.list(t.Context(), db.Page{From: "things", Key: "id"}.Select(listing.Query{Conditions: []listing.Condition{tt.c}, Limit: 1}))
		if fault.CodeOf(err) != fault.Internal || !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("%+v: %v, want %s", tt.c, err, tt.says)
		}
	}
}
