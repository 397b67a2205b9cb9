package membership_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/membership"
)

// lowerWait is so long that it does not end during a test.
const lowerWait = 50 * time.Second

// TestServeDelay: a process waits before it serves if RPC clients may send messages that it does not know. It does not wait if it starts,
// restarts or is upgraded as usual.
func TestServeDelay(t *testing.T) {
	t.Parallel()
	type event struct{ what, host, version string }
	tests := []struct {
		name   string
		events []event // the last event starts the process that may have to wait
		waits  bool
	}{
		{"the first process", []event{{"announce", "h1", "1.4"}}, false},
		{"the second process", []event{{"join", "h1", "1.4"}, {"announce", "h2", "1.4"}}, false},
		{"a restart", []event{{"join", "h1", "1.4"}, {"leave", "h1", ""}, {"announce", "h1", "1.4"}}, false},
		{"a restart after SIGKILL", []event{{"join", "h1", "1.4"}, {"announce", "h1", "1.4"}}, false},
		{"an upgrade", []event{{"join", "h1", "1.4"}, {"join", "h2", "1.4"}, {"leave", "h1", ""}, {"announce", "h1", "1.5"}}, false},
		{"the next major version too", []event{{"join", "h1", "1.4"}, {"announce", "h1", "1.4 2.0"}}, false},
		{"an older process returns", []event{{"join", "h1", "1.5"}, {"leave", "h1", ""}, {"announce", "h1", "1.4"}}, true},
		{"an older process returns after SIGKILL", []event{{"join", "h1", "1.5"}, {"announce", "h1", "1.4"}}, true},
		{"an older process returns on another host", []event{{"join", "h1", "1.5"}, {"announce", "h2", "1.4"}}, true},
		{"the newer process has left", []event{{"join", "h1", "1.5"}, {"leave", "h1", ""}, {"announce", "h2", "1.4"}}, true},
		{"the newer process was forced down", []event{{"join", "h1", "1.5"}, {"force down", "h1", ""}, {"announce", "h2", "1.4"}}, true},
		{"the newer process was silent, and then forced down", []event{{"join", "h1", "1.5"}, {"is silent", "h1", ""}, {"force down", "h1", ""}, {"announce", "h2", "1.4"}}, true},
		{"the older process was forced down for a time, so that caps went up", []event{{"join", "h1", "1.5"}, {"join", "h2", "1.4"}, {"time passes", "", ""}, {"force down", "h2", ""}, {"force up", "h2", ""}, {"announce", "h3", "1.4"}}, true},
		{"the newer process was removed", []event{{"another kind joins", "h0", ""}, {"join", "h1", "1.5"}, {"force down", "h1", ""}, {"remove", "h1", ""}, {"announce", "h2", "1.4"}}, true},
		{"the newer process was followed by an older one, which was removed", []event{{"another kind joins", "h0", ""}, {"join", "h1", "1.5"}, {"announce", "h1", "1.4"}, {"force down", "h1", ""}, {"remove", "h1", ""}, {"announce", "h1", "1.4"}}, true},
		{"the newer process left long ago, and was removed", []event{{"another kind joins", "h0", ""}, {"join", "h1", "1.5"}, {"leave", "h1", ""}, {"time passes", "", ""}, {"remove", "h1", ""}, {"announce", "h2", "1.4"}}, false},
		{"the newer process left long ago", []event{{"join", "h1", "1.5"}, {"leave", "h1", ""}, {"time passes", "", ""}, {"announce", "h2", "1.4"}}, false},
		{"all old processes return at once", []event{{"join", "h1", "1.5"}, {"join", "h2", "1.5"}, {"announce", "h1", "1.4"}, {"announce", "h2", "1.4"}}, true},
		{"the waiting process is killed and starts again", []event{{"join", "h1", "1.5"}, {"announce", "h1", "1.4"}, {"announce", "h1", "1.4"}}, true},
		{"the waiting process is stopped and starts again", []event{{"join", "h1", "1.5"}, {"announce", "h1", "1.4"}, {"leave", "h1", ""}, {"announce", "h1", "1.4"}}, true},
		{"another process starts while the first waits", []event{{"join", "h1", "1.5"}, {"announce", "h1", "1.4"}, {"announce", "h2", "1.4"}}, true},
		{"the wait has passed", []event{{"join", "h1", "1.5"}, {"announce", "h1", "1.4"}, {"time passes", "", ""}, {"announce", "h1", "1.4"}}, false},
		{"the wait of another process has passed", []event{{"join", "h1", "1.5"}, {"join", "h2", "1.5"}, {"announce", "h1", "1.4"}, {"time passes", "", ""}, {"announce", "h2", "1.4"}}, false},
		{"an older process was there all the time", []event{{"join", "h1", "1.5"}, {"join", "h2", "1.4"}, {"time passes", "", ""}, {"announce", "h3", "1.4"}}, false},
		{"the older process restarts, so that caps go up in between", []event{{"join", "h1", "1.5"}, {"join", "h2", "1.4"}, {"time passes", "", ""}, {"leave", "h2", ""}, {"announce", "h2", "1.4"}}, true},
		{"a major version is missing", []event{{"join", "h1", "1.4 2.0"}, {"announce", "h2", "1.4"}}, true},
		{"versions in a form of a later release", []event{{"join", "h1", "2-beta"}, {"announce", "h2", "1.4"}}, false},
	}
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d})
		for _, tt := range tests {
			if _, err := d.ExecContext(ctx, `DELETE FROM members`); err != nil {
				t.Fatal(err)
			}
			host := ""
			for _, e := range tt.events {
				var err error
				switch host = e.host; e.what {
				case "join":
					err = r.Join(ctx, serving(host, splitVersions(e.version)...))
				case "announce":
					err = r.Announce(ctx, serving(host, splitVersions(e.version)...))
				case "leave":
					err = r.Leave(ctx, "worker", host, "")
				case "force down":
					err = r.ForceDown(ctx, "worker", host, true)
				case "another kind joins":
					err = r.Join(ctx, membership.Self{Kind: "other", Host: host, Interfaces: map[string][]string{"other": {"1.0"}}})
				case "remove":
					err = r.Remove(ctx, "worker", host)
				case "force up":
					err = r.ForceDown(ctx, "worker", host, false)
				case "is silent":
					_, err = d.ExecContext(ctx, `UPDATE members SET seen_at = '2020-01-01 00:00:00' WHERE host = ?`, host)
				case "time passes":
					ageMembers(t, d, 2*lowerWait, nil)
				}
				if err != nil {
					t.Fatalf("%s: %v: %v", tt.name, e, err)
				}
			}
			got, err := r.ServeDelay(ctx, "worker", host, lowerWait)
			if err != nil || got > 0 != tt.waits || got > lowerWait {
				t.Errorf("%s: delay %v, %v; want a delay: %v", tt.name, got, err, tt.waits)
			}
		}
	})
}

func splitVersions(text string) []string {
	if len(text) > 3 && text[3] == ' ' {
		return []string{text[:3], text[4:]}
	}
	return []string{text}
}

// TestAnnouncementWaits: the announcement of an older process blocks for LowerWait, and logs one warning. If the announcement is canceled, it
// ends at once, and the member no longer counts for the version caps.
func TestAnnouncementWaits(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d})
		if err := r.Join(t.Context(), serving("h1", "1.5")); err != nil {
			t.Fatal(err)
		}
		start := func(ctx context.Context, wait time.Duration) (int, error) {
			log, lines := logtest.New()
			err := r.Member(membership.MemberConfig{Self: serving("h2", "1.4"), LowerWait: wait, Logger: log}).Announcement().Start(ctx)
			return lines.Count(slog.LevelWarn, "waiting before serving"), err
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := start(ctx, time.Hour)
			ended <- err
		}()
		waittest.Succeeds(t, "the announcement", func() error {
			m, err := r.Get(t.Context(), "worker", "h2")
			if err == nil && !m.Counts() {
				err = errors.New("the member does not count")
			}
			return err
		})
		select {
		case err := <-ended:
			t.Fatalf("the announcement did not wait: %v", err)
		default:
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		if m, err := r.Get(t.Context(), "worker", "h2"); err != nil || m.Counts() {
			t.Errorf("after the cancellation: %+v, %v", m, err)
		}
		const wait = 300 * time.Millisecond
		began := time.Now()
		if n, err := start(t.Context(), wait); err != nil || n != 1 || time.Since(began) < wait/2 {
			t.Errorf("%d warnings, %v, after %v", n, err, time.Since(began))
		}
		if n, err := start(t.Context(), wait); err != nil || n != 0 {
			t.Errorf("started again with the same versions: %d warnings, %v", n, err)
		}
	})
}

// BenchmarkServeDelay measures ServeDelay, which each host calls when it starts, for hosts with equal versions. The ratio is the time with
// 1,000 hosts divided by the time with 10 hosts.
func BenchmarkServeDelay(b *testing.B) {
	d, err := db.Open(b.Context(), db.Config{URL: dbtest.SQLite(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := db.Migrate(b.Context(), d, migrations...); err != nil {
		b.Fatal(err)
	}
	r := membership.New(membership.Config{DB: d})
	ask := func(hosts int) time.Duration {
		for i := range hosts {
			if err := r.Join(b.Context(), serving(fmt.Sprintf("h%d", i), "1.4")); err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		for range b.N {
			if _, err := r.ServeDelay(b.Context(), "worker", "h1", 0); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start)
	}
	few, many := ask(10), ask(1000)
	b.ReportMetric(float64(many)/float64(few), "ratio")
}
