// Package drivertest runs the rules of one kind of driver against a driver: in
// process, and as a program, over the real wire and through crashes.
//
// A component writes the rules once, beside its driver interface:
//
//	var cases = []drivertest.Case[volume.Driver]{{
//		Name: "delete twice",
//		Rule: "A worker that was killed after a delete makes it again, so to delete what is not there is no error.",
//		Run: func(e *drivertest.Env[volume.Driver]) { ... },
//	}}
//
// and a vendor runs them with ten lines:
//
//	func TestMain(m *testing.M) { drivertest.Main(m, volume.Kind, acme.Open) }
//
//	func TestRules(t *testing.T) {
//		drivertest.Run(t, volume.Kind, acme.Open, drivertest.Config{Options: options}, cases)
//	}
//
// The program of a vendor in another language is run by [RunProgram], in a test or
// by a command.
package drivertest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
)

// T is what a rule needs of a test; a *testing.T is one. Fatalf ends the rule's
// goroutine, so only that calls it.
type T interface {
	Context() context.Context
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Case is a rule that drivers of a kind keep.
type Case[D driver.Driver] struct {
	// Name is short and unique.
	Name string
	// Rule says what a driver must do, and why. It is told when the rule is broken.
	Rule string
	// Need are capabilities without which the rule does not apply.
	Need []driver.Capability
	// Crashes tells that the rule kills the driver in the middle of its work, which
	// only a program survives.
	Crashes bool
	// Run checks the rule. It leaves nothing behind.
	Run func(e *Env[D])
}

// Env is a driver under test. A rule calls its methods from one goroutine.
type Env[D driver.Driver] struct {
	T

	d       D
	info    driver.Info
	plugin  *driver.Plugin[D]      // nil: in process
	restart func(old D) (D, error) // in process
	open    func(options json.RawMessage) error
	options json.RawMessage
}

// Driver returns the driver. After [Env.Restart] it may be another one.
func (e *Env[D]) Driver() D { return e.d }

// Info is what the driver said that it is and can do when it was opened.
func (e *Env[D]) Info() driver.Info { return e.info }

// Restart ends the driver and starts it again: a program is killed, in process it
// is closed and opened anew.
func (e *Env[D]) Restart() {
	e.Helper()
	if e.plugin != nil {
		e.Crash(0)
		return
	}
	d, err := e.restart(e.d)
	if err != nil {
		e.Fatalf("open the driver again: %v", err)
	}
	e.d = d
}

// Options are those that the driver was opened with.
func (e *Env[D]) Options() json.RawMessage { return e.options }

// Open opens another driver of the same make with other options, closes it, and returns the error of
// that. It is for rules about options.
func (e *Env[D]) Open(options json.RawMessage) error { return e.open(options) }

// Crash kills the driver's program after a while, and waits until it is up again.
// It is for rules with Crashes.
func (e *Env[D]) Crash(after time.Duration) {
	e.Helper()
	before := e.plugin.Status()
	select {
	case <-time.After(after):
	case <-e.Context().Done():
	}
	if program, err := os.FindProcess(before.PID); err == nil && before.PID != 0 {
		_ = program.Kill() // its only error: it has ended
	}
	for end := time.Now().Add(time.Minute); ; {
		if st := e.plugin.Status(); st.Restarts > before.Restarts && st.State == driver.Up {
			return
		} else if time.Now().After(end) {
			e.Fatalf("the driver's program is not up a minute after it was killed: %v", st.Err)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-e.Context().Done():
		}
	}
}

// Config configures a run.
type Config struct {
	// Options are given to the driver.
	Options json.RawMessage
	// Plugin configures the program, where that is run: its Options are those above,
	// and its crashes are not counted.
	Plugin driver.PluginConfig
	// Skip names rules that the driver is known to break, with the reason. They are
	// not run, and logged.
	Skip map[string]string
}

// Main makes a test binary the driver's program, too: in TestMain, it serves the
// driver if a worker has started the binary, and runs the tests if not. It does not
// return.
func Main[D driver.Driver](m *testing.M, k driver.Kind[D], open func(context.Context, json.RawMessage) (D, error)) {
	if os.Getenv("ARMATURE_DRIVER") != "" {
		driver.Serve(k, open)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Run checks a driver that is written in Go: in process, and as the program that
// [Main] makes of the test.
func Run[D driver.Driver](t *testing.T, k driver.Kind[D], open func(context.Context, json.RawMessage) (D, error), cfg Config, cases []Case[D]) {
	t.Helper()
	t.Run("in process", func(t *testing.T) {
		e := &Env[D]{restart: func(old D) (D, error) {
			if err := old.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			return open(t.Context(), cfg.Options)
		}, options: cfg.Options, open: func(options json.RawMessage) error {
			d, err := open(t.Context(), options)
			if err != nil {
				return err
			}
			return d.Close()
		}}
		var err error
		if e.d, err = open(t.Context(), cfg.Options); err != nil {
			t.Fatalf("open the driver: %v", err)
		}
		defer func() {
			if err := e.d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}()
		run(t, e, cfg, cases)
	})
	t.Run("program", func(t *testing.T) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cfg.Plugin.Program, cfg.Plugin.Args = self, []string{"-test.run=^$"}
		RunProgram(t, k, cfg, cases)
	})
}

// RunProgram checks the driver that is the program cfg.Plugin.Program.
func RunProgram[D driver.Driver](t *testing.T, k driver.Kind[D], cfg Config, cases []Case[D]) {
	t.Helper()
	e, closeDriver, err := Launch(t, k, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDriver()
	run(t, e, cfg, cases)
}

// Launch starts a program for [Check], where there is no *testing.T. The function
// that it returns ends it.
func Launch[D driver.Driver](t T, k driver.Kind[D], cfg Config) (*Env[D], func(), error) {
	t.Helper()
	p := cfg.Plugin
	p.Options, p.MaxCrashes, p.MinDelay, p.MaxDelay = cfg.Options, 1<<30, time.Millisecond, 10*time.Millisecond
	if p.Logger == nil {
		p.Logger = slog.New(slog.NewTextHandler(logWriter{t}, nil))
	}
	plugin, err := driver.Launch(t.Context(), k, p)
	if err != nil {
		if len(p.Args) > 0 && strings.Contains(err.Error(), "PASS") {
			err = fmt.Errorf("%w; TestMain must call drivertest.Main", err)
		}
		return nil, nil, err
	}
	e := &Env[D]{T: t, d: plugin.Driver(), plugin: plugin, options: cfg.Options, open: func(options json.RawMessage) error {
		p := p
		p.Options = options
		plugin, err := driver.Launch(t.Context(), k, p)
		if err != nil {
			return err
		}
		return plugin.Close(context.WithoutCancel(t.Context()))
	}}
	return e, func() {
		if err := plugin.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close: %v", err)
		}
	}, nil
}

// logWriter writes a program's log into the test's.
type logWriter struct{ t T }

func (w logWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // else the test is over
		w.t.Logf("%s", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func run[D driver.Driver](t *testing.T, e *Env[D], cfg Config, cases []Case[D]) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("The rule: %s", c.Rule)
				}
			}()
			if why := Check(t, e, cfg, c); why != "" {
				t.Skip(why)
			}
		})
	}
}

// Check checks one rule, or returns why it does not apply.
func Check[D driver.Driver](t T, e *Env[D], cfg Config, c Case[D]) (skipped string) {
	t.Helper()
	if why, ok := cfg.Skip[c.Name]; ok {
		return "known: " + why
	}
	if c.Crashes && e.plugin == nil {
		return "only a program survives a crash"
	}
	e.T = t
	var err error
	if e.info, err = e.d.Info(t.Context()); err != nil {
		t.Fatalf("Info: %v", err)
	}
	for _, n := range c.Need {
		if !slices.Contains(e.info.Capabilities, n) {
			return "the driver does not have the capability " + string(n)
		}
	}
	c.Run(e)
	return ""
}
