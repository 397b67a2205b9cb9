package membership_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/membership"
)

// serving describes a member of version 1 that serves one interface.
func serving(host string, versions ...string) membership.Self {
	return membership.Self{Kind: "worker", Host: host, Version: 1, Interfaces: map[string][]string{"volume": versions}}
}

// These are the statements by which a member of the release without interface versions joins and leaves.
const (
	insertBefore = `INSERT INTO members (kind, host, id, version, data, instance, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
		VALUES ('worker', ?, ?, 1, '', '', FALSE, '', FALSE, FALSE, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))`
	updateBefore = `UPDATE members SET version = 1, data = '', instance = '', departed = FALSE, joined_at = UTC_TIMESTAMP(6), seen_at = UTC_TIMESTAMP(6)
		WHERE kind = 'worker' AND host = ?`
)

// TestServes: a member has the versions of the process that has joined last. The previous release does not know versions. A process of
// that release has none, even if its row still has the versions of a newer process. A report in the form of a later release also
// counts as no report.
func TestServes(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d})
		exec := func(query string, args ...any) {
			t.Helper()
			if _, err := d.ExecContext(ctx, query, args...); err != nil {
				t.Fatal(err)
			}
		}
		is := func(what, host string, want ...string) {
			t.Helper()
			m, err := r.Get(ctx, "worker", host)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, m.Interfaces["volume"]); diff != "" || !m.Counts() || !m.Up {
				t.Errorf("%s: counts %v, up %v; versions (-want +got):\n%s", what, m.Counts(), m.Up, diff)
			}
		}
		join := func(s membership.Self) {
			t.Helper()
			if err := r.Join(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		exec(insertBefore, "h1", "an id")
		is("a member of the previous release", "h1")
		join(serving("h1", "1.4", "2.0"))
		is("upgraded", "h1", "1.4", "2.0")
		exec(updateBefore, "h1")
		is("back to the previous release", "h1")
		join(serving("h1", "2.0"))
		is("upgraded again", "h1", "2.0")
		join(membership.Self{Kind: "worker", Host: "h1"})
		is("a service that reports no versions", "h1")
		join(serving("h2", "1.1"))
		for _, next := range []string{`{"a later form": 1}`, `not JSON`, `{"interfaces": {"volume": {"a later": "form"}}}`} {
			exec(`UPDATE members SET serves = ? WHERE host = 'h2'`, next)
			is(next, "h2")
		}
		join(serving("h2", "1.1"))
		exec(`UPDATE members SET serves = REPLACE(serves, '"joined_at"', '"later": [7], "joined_at"') WHERE host = 'h2'`)
		is("a field of a later release", "h2", "1.1")
		if err := r.Join(ctx, serving("h3", strings.Repeat("9", 5000))); !errors.Is(err, fault.Invalid) {
			t.Errorf("versions that do not fit: %v", err)
		}
	})
}

// TestAnnouncement: the versions of a process count from before the process serves until after it has served. The process is up only
// in between. The announcement of an older process replaces the versions of the newer process before the older process serves.
func TestAnnouncement(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d})
		is := func(what string, counts, up bool, versions ...string) {
			t.Helper()
			m, err := r.Get(ctx, "worker", "h1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(versions, m.Interfaces["volume"]); m.Counts() != counts || m.Up != up || diff != "" {
				t.Errorf("%s: counts %v, up %v (%s), want %v and %v; versions (-want +got):\n%s", what, m.Counts(), m.Up, m.Why, counts, up, diff)
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		newer := r.Member(membership.MemberConfig{Self: serving("h1", "1.5")})
		must(newer.Announcement().Start(ctx))
		is("announced", true, false, "1.5")
		must(newer.Start(ctx))
		is("joined", true, true, "1.5")
		must(newer.Stop(ctx))
		is("left, and still serves", true, false, "1.5")
		must(newer.Announcement().Stop(ctx))
		is("served", false, false, "1.5")

		older := r.Member(membership.MemberConfig{Self: serving("h1", "1.4"), LowerWait: time.Millisecond})
		must(older.Announcement().Start(ctx))
		is("rolled back, does not serve yet", true, false, "1.4")
		must(older.Start(ctx))

		// The next process starts on the same host before the previous process has stopped.
		next := r.Member(membership.MemberConfig{Self: serving("h1", "1.5")})
		must(next.Announcement().Start(ctx))
		must(next.Start(ctx))
		must(older.Stop(ctx))
		must(older.Announcement().Stop(ctx))
		is("the last process has left after the next one has joined", true, true, "1.5")

		must(r.ForceDown(ctx, "worker", "h1", true))
		is("forced down", false, false, "1.5")
		must(r.ForceDown(ctx, "worker", "h1", false))
		is("no longer forced down", true, true, "1.5")
		age(t, d, "h1", time.Hour)
		is("without heartbeats for an hour", true, false, "1.5")
		age(t, d, "h1", -time.Hour)
		is("with a heartbeat an hour in the future", true, false, "1.5")
		must(next.Stop(ctx))
		must(next.Announcement().Stop(ctx))

		if got, err := r.MinVersion(ctx, "worker"); err != nil || got != 0 {
			t.Errorf("MinVersion without a member that counts: %v, %v", got, err)
		}
		must(next.Announcement().Start(ctx))
		if got, err := r.MinVersion(ctx, "worker"); err != nil || got != 1 {
			t.Errorf("MinVersion with an announced member: %v, %v", got, err)
		}
		held := serving("h2", "1.5")
		held.Instance = membership.Instance{ID: "i-1"}
		must(r.Join(ctx, held))
		held.Instance.ID = "i-2"
		held.Interfaces = nil
		if err := r.Announce(ctx, held); !errors.Is(err, membership.ErrHeld) {
			t.Errorf("the announcement of a second process: %v", err)
		}
	})
}
