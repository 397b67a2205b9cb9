package rpccaps_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var migrations = []db.Migrations{membership.Migrations}

// v parses versions.
func v(texts ...string) []rpc.Version {
	out := []rpc.Version{}
	for _, text := range texts {
		var one rpc.Version
		if err := one.UnmarshalText([]byte(text)); err != nil {
			panic(err)
		}
		out = append(out, one)
	}
	return out
}

// member is a row of the table members.
type member struct {
	kind, host string
	serves     map[string][]string // nil: no report
	then       func(ctx context.Context, r *membership.Registry, m member) error
}

func leave(ctx context.Context, r *membership.Registry, m member) error {
	return r.Leave(ctx, m.kind, m.host, "")
}

func forceDown(ctx context.Context, r *membership.Registry, m member) error {
	return r.ForceDown(ctx, m.kind, m.host, true)
}

func comeBack(ctx context.Context, r *membership.Registry, m member) error {
	return errors.Join(r.ForceDown(ctx, m.kind, m.host, true), r.ForceDown(ctx, m.kind, m.host, false))
}

// TestCommon: the caps are the versions that all members that count serve.
func TestCommon(t *testing.T) {
	t.Parallel()
	volume := func(versions ...string) map[string][]string { return map[string][]string{"volume": versions} }
	tests := []struct {
		name       string
		members    []member
		unreported rpc.Versions
		want       rpc.Versions
	}{
		{name: "no member", want: rpc.Versions{}},
		{name: "no member, but the versions of a release without reports", unreported: rpc.Versions{"volume": v("1.3")}, want: rpc.Versions{"volume": v("1.3")}},
		{
			name:    "the oldest counts",
			members: []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", volume("1.2"), nil}, {"w", "h3", volume("1.5"), nil}},
			want:    rpc.Versions{"volume": v("1.2")},
		},
		{
			name:    "the oldest has left",
			members: []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", volume("1.2"), leave}},
			want:    rpc.Versions{"volume": v("1.4")},
		},
		{
			name:    "the oldest was forced down",
			members: []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", volume("1.2"), forceDown}},
			want:    rpc.Versions{"volume": v("1.4")},
		},
		{
			name:    "the oldest was forced down and comes back",
			members: []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", volume("1.2"), comeBack}},
			want:    rpc.Versions{"volume": v("1.2")},
		},
		{
			name:    "a member that reports no versions has the lowest of each interface of its kind",
			members: []member{{"w", "h1", map[string][]string{"volume": {"1.4"}, "backup": {"2.1"}}, nil}, {"w", "h2", nil, nil}, {"api", "h1", map[string][]string{"api": {"1.7"}}, nil}},
			want:    rpc.Versions{"volume": v("1.0"), "backup": v("2.0"), "api": v("1.7")},
		},
		{
			name:       "a member that reports no versions, and the versions of its release are known",
			members:    []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", nil, nil}},
			unreported: rpc.Versions{"volume": v("1.3")},
			want:       rpc.Versions{"volume": v("1.3")},
		},
		{
			name:    "a member that reports no versions has left",
			members: []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", nil, leave}},
			want:    rpc.Versions{"volume": v("1.4")},
		},
		{
			name:    "two major versions beside one",
			members: []member{{"w", "h1", volume("1.4", "2.0"), nil}, {"w", "h2", volume("1.3"), nil}},
			want:    rpc.Versions{"volume": v("1.3")},
		},
		{
			name:    "two major versions everywhere",
			members: []member{{"w", "h1", volume("1.4", "2.0"), nil}, {"w", "h2", volume("1.5", "2.2"), nil}},
			want:    rpc.Versions{"volume": v("1.4", "2.0")},
		},
		{
			name:    "one major version was dropped",
			members: []member{{"w", "h1", volume("1.4", "2.0"), nil}, {"w", "h2", volume("2.2"), nil}},
			want:    rpc.Versions{"volume": v("2.0")},
		},
		{
			name:    "no version in common",
			members: []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", volume("2.2"), nil}},
			want:    rpc.Versions{"volume": {}},
		},
		{
			name:    "two major versions beside a member that reports none",
			members: []member{{"w", "h1", volume("2.0", "1.4"), nil}, {"w", "h2", nil, nil}},
			want:    rpc.Versions{"volume": v("1.0")},
		},
		{
			name:    "an interface that only one of the members serves",
			members: []member{{"w", "h1", map[string][]string{"volume": {"1.4"}, "backup": {"1.1"}}, nil}, {"w", "h2", volume("1.4"), nil}},
			want:    rpc.Versions{"volume": v("1.4"), "backup": v("1.1")},
		},
		{
			name:    "versions in the form of a later release",
			members: []member{{"w", "h1", volume("1.4", "2-beta"), nil}, {"w", "h2", volume("one"), nil}},
			want:    rpc.Versions{"volume": v("1.0")},
		},
		{
			name:       "a report without a usable version counts as no report",
			members:    []member{{"w", "h1", volume("1.4"), nil}, {"w", "h2", volume("0.5", "+1.9"), nil}, {"w", "h3", volume(), nil}},
			unreported: rpc.Versions{"volume": v("1.3")},
			want:       rpc.Versions{"volume": v("1.3")},
		},
		{
			name:    "several minor versions of a major one",
			members: []member{{"w", "h1", volume("1.2", "2.1", "1.4", "1.3"), nil}, {"w", "h2", volume("1.5", "1.5", "2.0"), nil}},
			want:    rpc.Versions{"volume": v("1.4", "2.0")},
		},
	}
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d})
		for _, tt := range tests {
			if _, err := d.ExecContext(t.Context(), `DELETE FROM members`); err != nil {
				t.Fatal(err)
			}
			for _, m := range tt.members {
				err := r.Join(t.Context(), membership.Self{Kind: m.kind, Host: m.host, Interfaces: m.serves})
				if err == nil && m.then != nil {
					err = m.then(t.Context(), r, m)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			caps := rpccaps.New(rpccaps.Config{Members: r, Unreported: tt.unreported})
			got, err := caps.Read(t.Context(), nil)
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
			}
			if answer, err := caps.Answer(t.Context(), nil); err != nil || cmp.Diff(got, *answer) != "" {
				t.Errorf("%s: Answer %v, %v; Read %v", tt.name, answer, err, got)
			}
		}
	})
}

// TestLog: a member that keeps the caps low, and a report that cannot be used, are each logged once. They are logged again only after a
// change.
func TestLog(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		var lines bytes.Buffer // only this goroutine logs
		r := membership.New(membership.Config{DB: d})
		caps := rpccaps.New(rpccaps.Config{Members: r, Unreported: rpc.Versions{"volume": v("1.2")}, Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		join := func(host string, versions ...string) func(context.Context) error {
			return func(ctx context.Context) error {
				return r.Join(ctx, membership.Self{Kind: "w", Host: host, Interfaces: map[string][]string{"volume": versions}})
			}
		}
		leaveHost := func(ctx context.Context) error { return r.Leave(ctx, "w", "h2", "") }
		for _, step := range []struct {
			do         func(context.Context) error
			low, wrong int // the number of lines so far
			says       string
		}{
			{join("h1", "1.4"), 0, 0, ""},
			{join("h2", "1.3"), 1, 0, "level=INFO msg=\"member keeps the version caps of an interface low\" member=w host=h2 interface=volume versions=[1.3] newest=1.4"},
			{join("h3", "1.4"), 1, 0, ""},
			{leaveHost, 1, 0, ""},
			{join("h2", "0.5"), 2, 1, `level=WARN msg="member reports no usable version of an interface, it counts as a member without a report" member=w host=h2 interface=volume versions="[\"0.5\"]"`},
			{join("h2", "1.4"), 2, 1, ""},
			{join("h2", "1.3"), 3, 1, ""},
		} {
			if err := step.do(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if _, err := caps.Read(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
			}
			text := lines.String()
			if low, wrong := strings.Count(text, "caps of an interface low"), strings.Count(text, "no usable version"); low != step.low || wrong != step.wrong || !strings.Contains(text, step.says) {
				t.Errorf("%d lines about low caps and %d about wrong reports, want %d and %d with %s:\n%s", low, wrong, step.low, step.wrong, step.says, text)
			}
		}
	})
}

// The interfaces of a component: the conductor has the database, and the volume service asks the conductor.
var (
	conductor = &rpc.Interface{Name: "conductor", Version: rpc.Version{Major: 1, Minor: 3}}
	askCaps   = rpccaps.Define(conductor)
)

// volumeOf returns the interface of a release. It has a method that all releases have, and from 1.5 on a second one.
func volumeOf(minor int) (i *rpc.Interface, create, clone rpc.Method[rpc.None, rpc.None]) {
	i = &rpc.Interface{Name: "volume", Version: rpc.Version{Major: 1, Minor: minor}}
	create = rpc.Method[rpc.None, rpc.None]{Interface: i, Name: "create", Since: rpc.Version{Major: 1}}
	clone = rpc.Method[rpc.None, rpc.None]{Interface: i, Name: "clone", Since: rpc.Version{Major: 1, Minor: min(minor, 5)}}
	return i, create, clone
}

// eachBus runs f for the in-memory bus, RabbitMQ and NATS. The function open returns a started bus.
func eachBus(t *testing.T, f func(t *testing.T, open func() urlbus.Bus)) {
	t.Helper()
	for name, variable := range map[string]string{"memory": "", "rabbit": testenv.AMQPVar, "nats": testenv.NATSVar} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := "memory://"
			if variable != "" {
				url = envtest.URL(t, variable)
			}
			f(t, func() urlbus.Bus {
				b, err := urlbus.Open(url, urlbus.Config{Exchange: "caps-" + strings.ToLower(rand.Text()), Logger: slog.New(slog.DiscardHandler)})
				if err == nil {
					err = b.Start(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = b.Stop(context.Background()) }) // the bus is no longer used
				return b
			})
		})
	}
}

// worker is a process of the volume service.
type worker struct {
	server   *rpc.Server
	member   *membership.MemberPart
	versions service.Part // the announcement of the member's versions
}

// startWorker starts a volume service of a release, in the documented order of parts.
func startWorker(t *testing.T, b urlbus.Bus, r *membership.Registry, host string, minor int, handled *atomic.Int64) *worker {
	t.Helper()
	i, create, clone := volumeOf(minor)
	w := &worker{server: rpc.NewServer(b, rpc.ServerConfig{Interface: i, Host: host})}
	done := func(context.Context, *rpc.None) (*rpc.None, error) { handled.Add(1); return &rpc.None{}, nil }
	rpc.Handle(w.server, create, done)
	if minor >= 5 {
		rpc.Handle(w.server, clone, done)
	}
	w.member = r.Member(membership.MemberConfig{Self: membership.Self{Kind: "volume", Host: host, Interfaces: rpccaps.Of(w.server)}, LowerWait: time.Millisecond})
	w.versions = w.member.Announcement()
	for _, p := range []service.Part{w.versions, w.server, w.member} {
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *worker) stop(t *testing.T) {
	t.Helper()
	for _, p := range []service.Part{w.member, w.server, w.versions} {
		if err := p.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}
}

// TestRolling: hosts are upgraded and rolled back one by one. One client has the database, and another client asks the conductor. Both
// send the new method only while every server knows it, and always send the old method. No server gets a message that it does not know.
func TestRolling(t *testing.T) {
	t.Parallel()
	eachBus(t, func(t *testing.T, open func() urlbus.Bus) {
		dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
			b := open()
			r := membership.New(membership.Config{DB: d})
			caps := rpccaps.New(rpccaps.Config{Members: r})
			srv := rpc.NewServer(b, rpc.ServerConfig{Interface: conductor})
			rpc.Handle(srv, askCaps, func(ctx context.Context, _ *rpc.None) (*rpc.Versions, error) {
				return rpccaps.New(rpccaps.Config{Members: r}).Answer(ctx, nil) // a new Caps repeats no earlier answer
			})
			if err := srv.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = srv.Stop(context.WithoutCancel(t.Context())) }()
			clients := map[string]*rpc.Client{
				"with the database": rpc.NewClient(b, rpc.ClientConfig{AutoCaps: caps.Read}),
				"via the conductor": rpc.NewClient(b, rpc.ClientConfig{AutoCaps: rpccaps.Ask(askCaps, nil)}),
			}
			for _, c := range clients {
				defer c.Close()
			}
			newest, create, clone := volumeOf(5)
			check := func(what string, want bool) {
				t.Helper()
				for name, c := range clients {
					if err := c.Reload(t.Context()); err != nil {
						t.Error(err)
					}
					if got := c.Allows(newest, clone.Since); got != want {
						t.Errorf("%s: the client %s allows clone: %v, want %v", what, name, got, want)
					}
					_, err := rpc.Call(t.Context(), c, clone, rpc.Any, &rpc.None{})
					if want && err != nil || !want && !errors.Is(err, rpc.ErrVersionCap) {
						t.Errorf("%s: clone by the client %s: %v", what, name, err)
					}
					if _, err := rpc.Call(t.Context(), c, create, rpc.Any, &rpc.None{}); err != nil {
						t.Errorf("%s: create by the client %s: %v", what, name, err)
					}
				}
			}
			var handled atomic.Int64
			w1, w2 := startWorker(t, b, r, "h1", 4, &handled), startWorker(t, b, r, "h2", 4, &handled)
			check("both old", false)
			w1.stop(t)
			w1 = startWorker(t, b, r, "h1", 5, &handled)
			check("one old", false)
			w2.stop(t)
			check("the old one is gone", true)
			w2 = startWorker(t, b, r, "h2", 5, &handled)
			check("both new", true)
			w1.stop(t)
			w1 = startWorker(t, b, r, "h1", 4, &handled)
			check("one rolled back", false)
			if err := r.ForceDown(t.Context(), "volume", "h1", true); err != nil {
				t.Fatal(err)
			}
			w1.stop(t)
			check("the old one was forced down", true)
			if err := r.ForceDown(t.Context(), "volume", "h1", false); err != nil {
				t.Fatal(err)
			}
			w1 = startWorker(t, b, r, "h1", 4, &handled)
			check("it comes back", false)
			w1.stop(t)
			w2.stop(t)
			if handled.Load() == 0 {
				t.Error("no message was handled")
			}
		})
	})
}

// TestAnswer: all requests within a second get the result of one read. A later request gets the result of a new read.
func TestAnswer(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d})
		caps := rpccaps.New(rpccaps.Config{Members: r})
		join := func(host, version string) {
			t.Helper()
			if err := r.Join(t.Context(), membership.Self{Kind: "volume", Host: host, Interfaces: map[string][]string{"volume": {version}}}); err != nil {
				t.Fatal(err)
			}
		}
		is := func(what, want string) {
			t.Helper()
			if got, err := caps.Answer(t.Context(), nil); err != nil || cmp.Diff(rpc.Versions{"volume": v(want)}, *got) != "" {
				t.Errorf("%s: %v, %v; want %s", what, got, err, want)
			}
		}
		join("h1", "1.4")
		is("the first request", "1.4")
		join("h2", "1.3")
		is("within the second", "1.4")
		waittest.Pass(t, 1100*time.Millisecond, "an answer is repeated for a second")
		is("after it", "1.3")
	})
}

// TestApp: an App with a client is not ready until the client knows its caps. A reload, as by SIGHUP, reads the caps again. If the
// database fails during a reload, the parts after the client are still reloaded.
func TestApp(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d})
		caps := rpccaps.New(rpccaps.Config{Members: r})
		open, quiet := make(chan struct{}), slog.New(slog.DiscardHandler)
		c := rpc.NewClient(rpctest.NewBus(t), rpc.ClientConfig{CapsEvery: time.Hour, Logger: quiet, AutoCaps: func(ctx context.Context, c *rpc.Client) (rpc.Versions, error) {
			<-open
			return caps.Read(ctx, c)
		}})
		reloaded := 0
		app := service.New(service.Config{NoSignals: true, Logger: quiet})
		app.Add("client", c)
		app.Add("after it", service.Funcs{OnReload: func(context.Context) error { reloaded++; return nil }})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- app.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		<-app.Started()
		if err := app.Ready(ctx); err == nil || !strings.Contains(err.Error(), "version caps are not known yet") {
			t.Errorf("ready without caps: %v", err)
		}
		join := func(host, version string) {
			t.Helper()
			if err := r.Join(ctx, membership.Self{Kind: "volume", Host: host, Interfaces: map[string][]string{"volume": {version}}}); err != nil {
				t.Fatal(err)
			}
		}
		join("h1", "1.5")
		close(open)
		waittest.Succeeds(t, "the App to be ready", func() error { return app.Ready(ctx) })
		newest, _, clone := volumeOf(5)
		if !c.Allows(newest, clone.Since) {
			t.Error("clone is not allowed, although all members have 1.5")
		}
		join("h2", "1.4")
		if err := app.Reload(ctx); err != nil || c.Allows(newest, clone.Since) || reloaded != 1 {
			t.Errorf("after a reload: %v; allows clone: %v; the part after the client was reloaded %d times", err, c.Allows(newest, clone.Since), reloaded)
		}
		if _, err := d.ExecContext(ctx, `ALTER TABLE members RENAME TO away`); err != nil {
			t.Fatal(err)
		}
		if err := app.Reload(ctx); err != nil || reloaded != 2 {
			t.Errorf("a reload without the table: %v; the part after the client was reloaded %d times", err, reloaded)
		}
	})
}

// TestUnreachable: if neither the database nor a conductor can be reached, a client sends messages of the lowest version after
// CapsWait, and logs one warning. If the release of the conductor does not have the method version_caps, the caps are the versions of
// that release.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	d, err := db.New(db.Config{URL: "mysql://user:password@" + envtest.DeadAddr(t) + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() }) // after the subtests
	caps := rpccaps.New(rpccaps.Config{Members: membership.New(membership.Config{DB: d})})
	volume, create, clone := volumeOf(5)
	for name, auto := range map[string]func(context.Context, *rpc.Client) (rpc.Versions, error){
		"database": caps.Read, "conductor": rpccaps.Ask(askCaps, rpc.Versions{"volume": v("1.5")}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log, lines := logtest.New()
			b := rpctest.NewBus(t)
			c := rpc.NewClient(b, rpc.ClientConfig{AutoCaps: auto, CapsWait: 500 * time.Millisecond, Logger: log})
			defer c.Close()
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.Check(t.Context()); !errors.Is(err, fault.Unavailable) {
				t.Errorf("ready without caps: %v", err)
			}
			if err := rpc.Cast(t.Context(), c, create, rpc.Any, &rpc.None{}); err != nil && !errors.Is(err, rpc.ErrNoConsumer) {
				t.Errorf("the lowest version: %v", err)
			}
			for range 2 {
				if err := rpc.Cast(t.Context(), c, clone, rpc.Any, &rpc.None{}); !errors.Is(err, rpc.ErrVersionCap) {
					t.Errorf("1.5: %v", err)
				}
			}
			if err := c.Check(t.Context()); err != nil {
				t.Errorf("not ready after the wait: %v", err)
			}
			if n := lines.Count(slog.LevelWarn, "version caps not known"); n != 1 {
				t.Errorf("%d warnings, want one", n)
			}
			if name == "database" {
				return
			}
			before := rpc.NewServer(b, rpc.ServerConfig{Interface: conductor}) // this server does not know the method
			if err := before.Start(rpctest.Partial(t.Context())); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = before.Stop(context.WithoutCancel(t.Context())) }()
			waittest.Until(t, "the client to know the versions of the previous release", func() bool { return c.Allows(volume, clone.Since) })
		})
	}
}
