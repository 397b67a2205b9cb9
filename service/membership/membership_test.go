package membership_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// migrations end with the addition of a column, as a later release may make it. So all tests also show that this release works with
// such a column.
var migrations = []db.Migrations{membership.Migrations, {Files: fstest.MapFS{"1_next.sql": {Data: []byte("ALTER TABLE members ADD COLUMN next_release VARCHAR(10);")}}}}

func self(host string, version int) membership.Self {
	return membership.Self{Kind: "worker", Host: host, Version: version, Data: `{"zone": "a"}`}
}

// age sets the time of a member's last heartbeat. The parameter by is the age of the heartbeat.
func age(t *testing.T, d *sqlx.DB, host string, by time.Duration) {
	t.Helper()
	now, err := db.Now(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ExecContext(t.Context(), `UPDATE members SET seen_at = ? WHERE host = ?`, now.Add(-by), host); err != nil {
		t.Fatal(err)
	}
}

// TestMembers: Get reports whether a member is up, and the reason if it is not. The result depends on the database's
// clock and on the commands of operators.
func TestMembers(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d, DownAfter: 30 * time.Second})
		for _, host := range []string{"h1", "h2"} {
			if err := r.Join(ctx, self(host, 3)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Join(ctx, membership.Self{Kind: "api", Host: "h1"}); err != nil {
			t.Fatal(err)
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		is := func(what string, up bool, why string) *membership.Member {
			t.Helper()
			m, err := r.Get(ctx, "worker", "h1")
			if err != nil || m.Up != up || !strings.Contains(m.Why, why) {
				t.Fatalf("%s: %+v, %v; want up %v, because %q", what, m, err, up, why)
			}
			if unfit := m.Unfit(); (unfit == "") != (m.Up && !m.Disabled) || !strings.Contains(unfit, why) || m.Name() != "h1" {
				t.Errorf("%s: %s is unfit because %q", what, m.Name(), unfit)
			}
			return m
		}
		first := is("joined", true, "")
		if first.Version != 3 || first.Data != `{"zone": "a"}` || first.ID == "" || time.Since(first.CreatedAt).Abs() > time.Minute {
			t.Errorf("the member is %+v", first)
		}
		age(t, d, "h1", 29*time.Second)
		is("last heartbeat 29 s ago", true, "")
		age(t, d, "h1", 40*time.Second)
		is("last heartbeat 40 s ago", false, "last seen 40s ago")
		must(r.Heartbeat(ctx, "worker", "h1", ""))
		is("seen again", true, "")
		must(r.Leave(ctx, "worker", "h1", ""))
		is("left", false, "it was stopped")
		must(r.Join(ctx, self("h1", 4)))
		if m := is("back", true, ""); m.ID != first.ID || m.Version != 4 || !m.CreatedAt.Equal(first.CreatedAt) || !m.JoinedAt.After(first.JoinedAt) {
			t.Errorf("the member came back as %+v, was %+v", m, first)
		}
		must(r.ForceDown(ctx, "worker", "h1", true))
		must(r.Heartbeat(ctx, "worker", "h1", ""))
		is("forced down, and alive", false, "an operator")
		must(r.Join(ctx, self("h1", 4)))
		is("forced down, and started again", false, "an operator")
		must(r.ForceDown(ctx, "worker", "h1", false))
		is("no longer forced down", true, "")
		must(r.Disable(ctx, "worker", "h1", "broken fan"))
		must(r.Join(ctx, self("h1", 4)))
		if m := is("disabled", true, ""); !m.Disabled || m.DisabledReason != "broken fan" {
			t.Errorf("disabled: %+v", m)
		}
		must(r.Enable(ctx, "worker", "h1"))
		if m := is("enabled", true, ""); m.Disabled || m.DisabledReason != "" {
			t.Errorf("enabled: %+v", m)
		}
		if err := r.Remove(ctx, "worker", "h1"); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("removal of a member that is up: %v", err)
		}
		must(r.Leave(ctx, "worker", "h1", ""))
		must(r.Remove(ctx, "worker", "h1"))
		for what, err := range map[string]error{
			"heartbeat": r.Heartbeat(ctx, "worker", "h1", ""), "remove": r.Remove(ctx, "worker", "h1"), "disable": r.Disable(ctx, "worker", "h1", ""),
			"enable": r.Enable(ctx, "worker", "h1"), "force down": r.ForceDown(ctx, "worker", "h1", true),
		} {
			if fault.CodeOf(err) != fault.NotFound || !strings.Contains(err.Error(), "member worker on host h1 does not exist") {
				t.Errorf("%s of a member that does not exist: %v", what, err)
			}
		}
		must(r.Leave(ctx, "worker", "h1", ""))
		for kind, want := range map[string][]string{"": {"api h1", "worker h2"}, "worker": {"worker h2"}, "none": nil} {
			list, err := r.List(ctx, kind)
			var got []string
			for _, m := range list {
				got = append(got, m.Kind+" "+m.Host)
			}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("list of %q: %v (-want +got):\n%s", kind, err, diff)
			}
		}
		if err := r.Join(ctx, membership.Self{Kind: "worker"}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("join without a host: %v", err)
		}
	})
}

// TestMinVersion: MinVersion returns the lowest version of the members that are up or may come back. A new member does
// not start while another member has a version below MemberConfig.MinVersion.
func TestMinVersion(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d})
		least := func(want int) {
			t.Helper()
			if got, err := r.MinVersion(ctx, "worker"); got != want || err != nil {
				t.Errorf("MinVersion = %d, %v; want %d", got, err, want)
			}
		}
		least(0)
		for i, host := range []string{"old", "new", "newer"} {
			if err := r.Join(ctx, self(host, 5+i)); err != nil {
				t.Fatal(err)
			}
		}
		least(5)
		age(t, d, "old", time.Hour)
		least(5)
		late := r.Member(membership.MemberConfig{Self: self("newest", 8), MinVersion: 6})
		if err := late.Start(ctx); fault.CodeOf(err) != fault.Precondition || !strings.Contains(err.Error(), "start worker: a member of this kind has version 5") {
			t.Errorf("with a member that is too old: %v", err)
		}
		if err := r.ForceDown(ctx, "worker", "old", true); err != nil {
			t.Error(err)
		}
		least(6)
		if err := late.Start(ctx); err != nil {
			t.Error(err)
		}
		defer late.Stop(ctx)
		if err := r.Leave(ctx, "worker", "new", ""); err != nil {
			t.Error(err)
		}
		least(7)
	})
}

// logBuffer collects log lines. It is safe for concurrent use.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestMember: a part joins, sends heartbeats, joins again after an operator has removed the member, and leaves. It is
// not ready while its heartbeats cannot be written.
func TestMember(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := membership.New(membership.Config{DB: d, DownAfter: 300 * time.Millisecond})
		out := new(logBuffer)
		p := r.Member(membership.MemberConfig{Self: self("h1", 1), Every: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(out, nil))})
		if err := p.Check(ctx); fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "has not joined yet") {
			t.Errorf("before Start: %v", err)
		}
		if err := p.Start(ctx); err != nil {
			t.Fatal(err)
		}
		until := func(what string, f func() bool) { t.Helper(); waittest.Until(t, what, f) }
		m, err := r.Get(ctx, "worker", "h1")
		if err != nil {
			t.Fatal(err)
		}
		until("a heartbeat", func() bool {
			got, err := r.Get(ctx, "worker", "h1")
			return err == nil && got.SeenAt.After(m.SeenAt)
		})
		if _, err := d.ExecContext(ctx, `DELETE FROM members`); err != nil {
			t.Fatal(err)
		}
		until("the member to join again", func() bool { _, err := r.Get(ctx, "worker", "h1"); return err == nil })
		if err := p.Check(ctx); err != nil {
			t.Error(err)
		}
		if _, err := d.ExecContext(ctx, `ALTER TABLE members RENAME TO away`); err != nil {
			t.Fatal(err)
		}
		until("Check to fail", func() bool { return fault.CodeOf(p.Check(ctx)) == fault.Unavailable })
		if !strings.Contains(out.String(), "heartbeat failed") {
			t.Errorf("the log:\n%s", out)
		}
		if _, err := d.ExecContext(ctx, `ALTER TABLE away RENAME TO members`); err != nil {
			t.Fatal(err)
		}
		until("Check to succeed again", func() bool { return p.Check(ctx) == nil })
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
		if m, err := r.Get(ctx, "worker", "h1"); err != nil || m.Up || !m.Departed {
			t.Errorf("after Stop: %+v, %v", m, err)
		}
	})
}

var _ interface {
	service.Part
	service.Checker
} = (*membership.MemberPart)(nil)

// BenchmarkHeartbeats writes the heartbeats of 10,000 members to one database, one every 10 s for each member. It
// reports the CPU time of this process in percent of a core.
func BenchmarkHeartbeats(b *testing.B) {
	const members, rate = 10_000, 1000
	d, err := db.Open(b.Context(), db.Config{URL: dbtest.MySQL(b), MaxOpen: 16})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := db.Migrate(b.Context(), d, migrations...); err != nil {
		b.Fatal(err)
	}
	r := membership.New(membership.Config{DB: d})
	jobs := make(chan int, members)
	var wg sync.WaitGroup
	run := func(callers int, f func(i int) error) {
		for range callers {
			wg.Go(func() {
				for i := range jobs {
					if err := f(i); err != nil {
						b.Error(err)
					}
				}
			})
		}
	}
	run(16, func(i int) error { return r.Join(b.Context(), self(fmt.Sprintf("host-%05d", i), 1)) })
	for i := range members {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
	jobs = make(chan int, members)
	run(256, func(i int) error { return r.Heartbeat(b.Context(), "worker", fmt.Sprintf("host-%05d", i), "") })
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ResetTimer()
	began, used := time.Now(), cpu()
	tick := time.NewTicker(20 * time.Millisecond) // so that the clock is read seldom
	defer tick.Stop()
	n := 0
	for n < max(b.N, 3*rate) { // at least 3 s
		<-tick.C
		for range rate / 50 {
			jobs <- n % members
			n++
		}
	}
	close(jobs)
	wg.Wait()
	took := time.Since(began)
	b.ReportMetric(float64(n)/took.Seconds(), "heartbeats/s")
	b.ReportMetric(100*float64(cpu()-used)/float64(took), "%core")
	b.ReportMetric(0, "ns/op")
}
