package membershipprom_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/promtest"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/membershipprom"
)

// TestMetrics: members are counted by kind and state. Without the database there are no values, and the collection does not fail.
func TestMetrics(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, []db.Migrations{membership.Migrations}, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d})
		m := membershipprom.New(r)
		if got := promtest.Gather(t, "", m); len(got) != 0 {
			t.Errorf("without members: %v", got)
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
		if got := promtest.Gather(t, "", m); len(got) != 0 {
			t.Errorf("the database was read again within 30 s: %v", got)
		}
		<-time.After(30 * time.Second)
		if err := errors.Join(r.Heartbeat(t.Context(), "worker", "a", ""), r.Heartbeat(t.Context(), "worker", "b", ""), r.Heartbeat(t.Context(), "runner", "a", "")); err != nil {
			t.Fatal(err)
		}
		want := map[string]float64{
			"members{kind=worker,state=up}": 1, "members{kind=worker,state=disabled}": 1, "members{kind=worker,state=down}": 1,
			"members{kind=runner,state=up}": 1, "members{kind=runner,state=disabled}": 0, "members{kind=runner,state=down}": 0,
		}
		if diff := cmp.Diff(want, promtest.Gather(t, "armature_membership_", m)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		<-time.After(30 * time.Second)
		if got := promtest.Gather(t, "", m); len(got) != 0 {
			t.Errorf("without a database: %v", got)
		}
	})
}
