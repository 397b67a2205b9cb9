package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
)

func TestMain(m *testing.M) {
	switch mode := os.Getenv("SERVICE_TEST_CHILD"); mode {
	case "":
	case "socket":
		os.Exit(socketModes(os.Getenv("SERVICE_TEST_SOCKET")))
	default:
		os.Exit(child(mode))
	}
	goleak.VerifyTestMain(m)
}

var errBoom = errors.New("boom")

// journal records the calls of the parts, in order.
type journal struct {
	mu   sync.Mutex
	list []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, fmt.Sprintf(format, args...))
}

func (j *journal) entries() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.list)
}

// fakePart calls its functions, and records each call in its journal.
type fakePart struct {
	name    string
	j       *journal
	onStart func(ctx context.Context) error
	onStop  func(ctx context.Context) error
	check   func() error
	failed  chan error
}

func (p *fakePart) Start(ctx context.Context) error {
	p.j.add("start %s", p.name)
	if p.onStart != nil {
		return p.onStart(ctx)
	}
	return nil
}

func (p *fakePart) Stop(ctx context.Context) error {
	p.j.add("stop %s", p.name)
	if p.onStop != nil {
		return p.onStop(ctx)
	}
	return nil
}

func (p *fakePart) Failed() <-chan error { return p.failed }

func (p *fakePart) Check(context.Context) error {
	if p.check != nil {
		return p.check()
	}
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newApp(parts ...*fakePart) *service.App {
	return appWith(service.Config{Name: "app"}, parts...)
}

func appWith(cfg service.Config, parts ...*fakePart) *service.App {
	cfg.Logger, cfg.NoSignals = quiet(), true
	app := service.New(cfg)
	for _, p := range parts {
		app.Add(p.name, p)
	}
	return app
}

// stopWhenReady makes a context that ends as soon as app is ready, inside a
// synctest bubble.
func stopWhenReady(t *testing.T, app *service.App) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		select {
		case <-app.Started():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx
}

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		app := newApp(&fakePart{name: "a", j: j}, &fakePart{name: "b", j: j}, &fakePart{name: "c", j: j})
		if err := app.Run(stopWhenReady(t, app)); err != nil {
			t.Errorf("Run = %v, want nil: it was asked to stop", err)
		}
		want := []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}
		if diff := cmp.Diff(want, j.entries()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	j := new(journal)
	app := newApp(&fakePart{name: "a", j: j},
		&fakePart{name: "b", j: j, onStart: func(context.Context) error { return errBoom }},
		&fakePart{name: "c", j: j})
	err := app.Run(t.Context())
	if !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "start b") {
		t.Errorf("Run = %v, want boom and the part's name", err)
	}
	if diff := cmp.Diff([]string{"start a", "start b", "stop a"}, j.entries()); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// TestStopWhileStarting: a start that takes long ends when the App is stopped, and Run returns no
// error.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		app := newApp(&fakePart{name: "a", j: j}, &fakePart{name: "slow", j: j, onStart: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := app.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if diff := cmp.Diff([]string{"start a", "start slow", "stop a"}, j.entries()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestFailerDrains(t *testing.T) {
	t.Parallel()
	j := new(journal)
	failed := make(chan error, 1)
	failed <- errBoom
	app := newApp(&fakePart{name: "a", j: j}, &fakePart{name: "b", j: j, failed: failed})
	err := app.Run(t.Context())
	if !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "b: boom") {
		t.Errorf("Run = %v, want boom and the part's name", err)
	}
	if got := j.entries(); !slices.Contains(got, "stop a") || !slices.Contains(got, "stop b") {
		t.Errorf("not drained: %v", got)
	}
}

func TestClosedFailedChannelIsNoFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan error)
		close(failed)
		app := newApp(&fakePart{name: "a", j: new(journal), failed: failed})
		if err := app.Run(stopWhenReady(t, app)); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

func TestStopErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		app := newApp(&fakePart{name: "a", j: j}, &fakePart{name: "b", j: j, onStop: func(context.Context) error { return errBoom }})
		err := app.Run(stopWhenReady(t, app))
		if !errors.Is(err, errBoom) || !strings.Contains(err.Error(), "stop b") {
			t.Errorf("Run = %v, want boom and the part's name", err)
		}
		if !slices.Contains(j.entries(), "stop a") {
			t.Error("a is not stopped after b's Stop failed")
		}
	})
}

// TestDrainIsOneDeadline: all parts share one deadline. If one part uses up the time, the context of the next
// part has ended already, and a part that ignores its context is abandoned a second later.
func TestDrainIsOneDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		release := make(chan struct{})
		late := func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("wait: %w", ctx.Err()) }
		app := appWith(service.Config{Name: "app", DrainTimeout: 10 * time.Second},
			&fakePart{name: "first", j: j, onStop: func(ctx context.Context) error { j.add("left: %v", ctx.Err()); return nil }},
			&fakePart{name: "hung", j: j, onStop: func(context.Context) error { <-release; return nil }},
			&fakePart{name: "late", j: j, onStop: late})
		ctx := stopWhenReady(t, app)
		begin := time.Now()
		err := app.Run(ctx)
		close(release)
		if !errors.Is(err, fault.Timeout) || !strings.HasSuffix(err.Error(), ": late, hung") {
			t.Errorf("Run = %v, want Timeout naming late and hung", err)
		}
		if took := time.Since(begin); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("took %v, want 10 s and one for the hung part", took)
		}
		if want := "left: context deadline exceeded"; !slices.Contains(j.entries(), want) {
			t.Errorf("first was not stopped with the ended deadline: %v", j.entries())
		}
	})
}

// TestDrainContextIsAlive: the context of the parts' Stop is not the one
// that was canceled to stop the App.
func TestDrainContextIsAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		app := newApp(&fakePart{name: "a", j: new(journal), onStop: func(ctx context.Context) error {
			end, ok := ctx.Deadline()
			if left := time.Until(end); ctx.Err() != nil || !ok || left != 60*time.Second {
				t.Errorf("Stop's context: error %v, deadline in %v; want the 60 s default", ctx.Err(), left)
			}
			return nil
		}})
		if err := app.Run(stopWhenReady(t, app)); err != nil {
			t.Error(err)
		}
	})
}

func TestReadyThroughTheLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := new(journal)
		var app *service.App
		see := func(what string) func(context.Context) error {
			return func(ctx context.Context) error { j.add("%s: %v", what, app.Ready(ctx)); return nil }
		}
		var broken error
		p := &fakePart{name: "a", j: new(journal), onStart: see("start"), onStop: see("stop"), check: func() error { return broken }}
		app = appWith(service.Config{Name: "app", DrainDelay: 5 * time.Second}, p)
		_ = see("before")(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error)
		go func() { result <- app.Run(ctx) }()
		synctest.Wait()
		_ = see("running")(t.Context())
		broken = errBoom
		if err := app.Ready(t.Context()); !errors.Is(err, fault.Unavailable) || !errors.Is(err, errBoom) {
			t.Errorf("Ready = %v, want Unavailable and boom", err)
		} else if f, ok := errors.AsType[*fault.Error](err); !ok || f.Error() != "app is not ready: a" {
			t.Errorf("clients read %v; want the names of the checks only", f)
		}
		_ = see("check")(t.Context())
		broken = nil

		cancel()
		synctest.Wait()
		_ = see("delay")(t.Context())
		<-time.After(4 * time.Second)
		if slices.Contains(p.j.entries(), "stop a") {
			t.Error("stopped before the drain delay was over")
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
		_ = see("after")(t.Context())
		want := []string{
			"before: app is not started", "start: app is starting", "running: <nil>", "check: a: boom",
			"delay: app is draining", "stop: app is draining", "after: app is stopped",
		}
		if diff := cmp.Diff(want, j.entries()); diff != "" {
			t.Errorf("readiness (-want +got):\n%s", diff)
		}
	})
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	j := new(journal)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ran := newApp()
	if err := ran.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := ran.Run(ctx); !errors.Is(err, fault.Precondition) {
		t.Errorf("second Run = %v, want Precondition", err)
	}
	bad := appWith(service.Config{DrainDelay: time.Minute, DrainTimeout: time.Minute})
	if err := bad.Run(ctx); !errors.Is(err, fault.Invalid) {
		t.Errorf("Run with a delay as long as the timeout = %v, want Invalid", err)
	}
	for name, f := range map[string]func(){
		"no name": func() { newApp(&fakePart{j: j}) },
		"nil":     func() { service.New(service.Config{}).Add("a", nil) },
		"twice":   func() { newApp(&fakePart{name: "a", j: j}, &fakePart{name: "a", j: j}) },
		"late":    func() { ran.Add("a", &fakePart{name: "a", j: j}) },
		"loop":    func() { service.Loop(0, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestLogNamesPartsAndCause(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	app := service.New(service.Config{Name: "app", NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	failed := make(chan error, 1)
	failed <- errBoom
	app.Add("bad", &fakePart{name: "bad", j: new(journal), failed: failed})
	_ = app.Run(t.Context())
	for _, want := range []string{"msg=draining service=app", `reason="run bad: boom"`, "msg=stopped"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %s:\n%s", want, &out)
		}
	}
}

func Example() {
	app := service.New(service.Config{Name: "hello"})
	ctx, cancel := context.WithCancel(context.Background())
	app.Add("work", service.Loop(time.Millisecond, func(context.Context) error {
		cancel() // one call is enough for this example
		return nil
	}))
	fmt.Println("stopped:", app.Run(ctx))
	// Output: stopped: <nil>
}

// awayPart is a part whose Start returns the error err, until the call with the number in needs.
type awayPart struct {
	attempts, needs int
	err             error
}

func (p *awayPart) Start(context.Context) error {
	if p.attempts++; p.attempts < p.needs {
		return p.err
	}
	return nil
}

func (*awayPart) Stop(context.Context) error { return nil }

// TestStartWaits: a part whose Start returns Unavailable is started again until it works. One warning
// and the error of Ready name the part for which the App waits, with its label.
func TestStartWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		app := service.New(service.Config{Name: "app", NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		p := &awayPart{needs: 20, err: fault.New(fault.Unavailable, "dial: refused")}
		app.AddLabeled("database", "option connection of [database]", p)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		begin := time.Now()
		go func() { ended <- app.Run(ctx) }()
		synctest.Wait()
		if err := app.Ready(ctx); err == nil || !strings.Contains(err.Error(), "app is starting: start database (option connection of [database]): dial: refused") ||
			fault.UserMessage(err) != "app is starting" {
			t.Errorf("Ready = %v, for users %q", err, fault.UserMessage(err))
		}
		<-app.Started()
		if took := time.Since(begin); p.attempts != 20 || took < 20*time.Second || took > 100*time.Second {
			t.Errorf("started after %d attempts and %v", p.attempts, took)
		}
		if err := app.Ready(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := strings.Count(out.String(), "level=WARN"); n != 1 || !strings.Contains(out.String(), `part=database label="option connection of [database]" error="dial: refused"`) {
			t.Errorf("%d warnings:\n%s", n, &out)
		}
	})
}

// TestStartWaitsForAnother: if the reason of the waiting changes, the log has one warning for each reason.
func TestStartWaitsForAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		app := service.New(service.Config{Name: "app", NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		attempts := 0
		app.Add("host", service.Funcs{OnStart: func(context.Context) error {
			switch attempts++; {
			case attempts > 30:
				return nil
			case attempts > 5 && attempts%2 == 0:
				return fault.Sentinel(fault.Unavailable, "Held", "held by process 7")
			default:
				return fault.New(fault.Unavailable, "no peer, attempt %d", attempts)
			}
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- app.Run(ctx) }()
		<-app.Started()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := strings.Count(out.String(), "level=WARN"); n != 2 || !strings.Contains(out.String(), "no peer") || !strings.Contains(out.String(), "held by process 7") {
			t.Errorf("%d warnings, want one of each reason:\n%s", n, &out)
		}
	})
}

// TestStartGivesUp: an error other than Unavailable ends the start at once. The error has the label, and no log line about a drain follows.
// An App that waits can be stopped.
func TestStartGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		app := service.New(service.Config{Name: "app", NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		app.Add("first", &awayPart{})
		app.AddLabeled("bus", "option transport_url", &awayPart{needs: 2, err: fault.New(fault.Unauthenticated, "the user is refused")})
		begin := time.Now()
		err := app.Run(t.Context())
		if err == nil || err.Error() != "start bus (option transport_url): the user is refused" || time.Since(begin) > 0 || strings.Contains(out.String(), "draining") {
			t.Errorf("Run = %v after %v\n%s", err, time.Since(begin), &out)
		}
		app = service.New(service.Config{Name: "app", NoSignals: true, Logger: slog.New(slog.DiscardHandler)})
		app.Add("bus", &awayPart{needs: 1 << 30, err: fault.New(fault.Unavailable, "away")})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := app.Run(ctx); err != nil {
			t.Errorf("Run of an App that is stopped while it waits = %v, want nil", err)
		}
	})
}
