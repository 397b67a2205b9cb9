package membershipprom_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/promtest"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/membershipprom"
)

func metricsOf(r *membership.Registry) *membershipprom.Metrics {
	m := membershipprom.New()
	m.Add(r)
	return m
}

// TestMetrics: members are counted by kind and state. Without the database the collection has no values, and does not
// fail.
func TestMetrics(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, []db.Migrations{membership.Migrations}, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d})
		for what, m := range map[string]*membershipprom.Metrics{"members": metricsOf(r), "a registry": membershipprom.New()} {
			if got := promtest.Gather(t, "", m); len(got) != 0 {
				t.Errorf("without %s: %v", what, got)
			}
		}
		for _, self := range []membership.Self{{Kind: "worker", Host: "a"}, {Kind: "worker", Host: "b"}, {Kind: "worker", Host: "c"}, {Kind: "runner", Host: "a"}} {
			if err := r.Join(t.Context(), self); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Disable(t.Context(), "worker", "b", "a test"); err != nil {
			t.Fatal(err)
		}
		if err := r.ForceDown(t.Context(), "worker", "c", true); err != nil {
			t.Fatal(err)
		}
		if err := r.Disable(t.Context(), "worker", "c", "a member that is down counts as down"); err != nil {
			t.Fatal(err)
		}
		want := map[string]float64{
			"members{kind=worker,state=up}": 1, "members{kind=worker,state=disabled}": 1, "members{kind=worker,state=down}": 1,
			"members{kind=runner,state=up}": 1, "members{kind=runner,state=disabled}": 0, "members{kind=runner,state=down}": 0,
		}
		if diff := cmp.Diff(want, promtest.Gather(t, "armature_membership_", metricsOf(r))); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if got := promtest.Gather(t, "", metricsOf(r)); len(got) != 0 {
			t.Errorf("without a database: %v", got)
		}
	})
}

// TestAge: the database is read at most once in 30 s. If the database fails, the last counts are used for this time.
func TestAge(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		d, err := db.Open(t.Context(), db.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := db.Migrate(t.Context(), d, membership.Migrations); err != nil {
			t.Fatal(err)
		}
		r := membership.New(membership.Config{DB: d})
		m := metricsOf(r)
		count := func() float64 { return promtest.Gather(t, "", m)["armature_membership_members{kind=worker,state=up}"] }
		for i, host := range []string{"a", "b"} {
			if err := r.Join(t.Context(), membership.Self{Kind: "worker", Host: host}); err != nil {
				t.Fatal(err)
			}
			if got := count(); got != 1 {
				t.Errorf("member %d: %v counted, want 1", i, got)
			}
		}
		<-time.After(30 * time.Second)
		if got := count(); got != 2 {
			t.Errorf("after 30 s: %v", got)
		}
		d.Close()
		if got := count(); got != 2 {
			t.Errorf("without the database: %v", got)
		}
		<-time.After(30 * time.Second)
		if got := promtest.Gather(t, "", m); len(got) != 0 {
			t.Errorf("without the database, after 30 s: %v", got)
		}
	})
}
