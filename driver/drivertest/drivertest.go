// Package drivertest checks whether a driver follows the rules of its kind. It runs the
// driver in the process of the test, and as a program: over the real connection, and through crashes.
//
// A component writes the rules once, beside its driver interface:
//
//	var cases = []drivertest.Case[volume.Driver]{{
//		Name: "delete twice",
//		Rule: "A worker that was killed after a delete repeats it, so deleting an object that does not exist is not an error.",
//		Run: func(e *drivertest.Env[volume.Driver]) { ... },
//	}}
//
// and a vendor runs them with two functions:
//
//	func TestMain(m *testing.M) { drivertest.Main(m, volume.Kind, acme.Open) }
//
//	func TestRules(t *testing.T) {
//		drivertest.Run(t, volume.Kind, acme.Open, drivertest.Config{Options: options}, cases)
//	}
//
// [RunProgram] checks a program that a vendor has written in another language, in a test. For a
// command use [Launch] and [Check].
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

// T has the methods of a test that a rule needs. A *testing.T is a T. Fatalf ends the rule's
// goroutine, so no other goroutine may call it.
type T interface {
	Context() context.Context
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Case is a rule that all drivers of a kind must follow.
type Case[D driver.Driver] struct {
	// Name is short and unique.
	Name string
	// Rule is the text of the rule, with its reason. It is logged when the rule is broken.
	Rule string
	// Need are the capabilities that the rule needs. For a driver without one of them, the rule is skipped.
	Need []driver.Capability
	// Crashes reports that the rule kills the driver during its work. Such a rule is skipped in process,
	// because only a program can be restarted.
	Crashes bool
	// Run checks the rule. It must remove every object that it has made.
	Run func(e *Env[D])
}

// Env is a driver under test. Its methods are for the rule's goroutine alone; those of the driver itself may be called
// from several goroutines.
type Env[D driver.Driver] struct {
	T

	d       D
	info    driver.Info
	plugin  *driver.Plugin[D]      // nil: in process
	restart func(old D) (D, error) // used in process only
	open    func(options json.RawMessage) error
	options json.RawMessage
}

// Driver returns the driver. After [Env.Restart] it may be another driver.
func (e *Env[D]) Driver() D { return e.d }

// Info returns the driver's answer to Info at the beginning of the rule.
func (e *Env[D]) Info() driver.Info { return e.info }

// Restart restarts the driver: a program is killed and restarted, a driver in process
// is closed and opened. Then Driver may return another driver.
func (e *Env[D]) Restart() {
	e.Helper()
	if e.plugin != nil {
		e.Crash(0)
		return
	}
	d, err := e.restart(e.d)
	if err != nil {
		e.Fatalf("reopen the driver: %v", err)
	}
	e.d = d
}

// Options returns the options with which the driver was opened.
func (e *Env[D]) Options() json.RawMessage { return e.options }

// Open opens another instance of the driver with other options, closes it, and returns the first error. It
// is for rules about options.
func (e *Env[D]) Open(options json.RawMessage) error { return e.open(options) }

// Crash waits for the duration, kills the driver's program, and blocks until the program is restarted, at most a
// minute. It is for rules with Crashes.
func (e *Env[D]) Crash(after time.Duration) {
	e.Helper()
	before := e.plugin.Status()
	select {
	case <-time.After(after):
	case <-e.Context().Done():
	}
	if program, err := os.FindProcess(before.PID); err == nil && before.PID != 0 {
		_ = program.Kill() // the only error means that the process has ended
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
	// Options are the driver's options.
	Options json.RawMessage
	// Plugin configures the driver's program. A run replaces its Options and its limits of crashes and of
	// restart delays. Run also replaces Program and Args.
	Plugin driver.PluginConfig
	// Skip has the reasons for known violations, by names of rules. These rules are skipped, and
	// the reason is logged.
	Skip map[string]string
}

// Main lets the test binary also be the driver's program. Call it in TestMain. If a worker has started the binary, Main
// serves the driver, otherwise it runs the tests. Main does not return.
func Main[D driver.Driver](m *testing.M, k driver.Kind[D], open func(context.Context, json.RawMessage) (D, error)) {
	if os.Getenv("ARMATURE_DRIVER") != "" {
		driver.Serve(k, open)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Run checks a driver that is written in Go, in two subtests: in process, and as a program. The program is the test binary
// itself, see [Main].
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
		runCases(t, e, cfg, cases)
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

// RunProgram checks the driver program cfg.Plugin.Program, with one subtest for each rule.
func RunProgram[D driver.Driver](t *testing.T, k driver.Kind[D], cfg Config, cases []Case[D]) {
	t.Helper()
	e, closeDriver, err := Launch(t, k, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDriver()
	runCases(t, e, cfg, cases)
}

// Launch starts the program cfg.Plugin.Program for [Check]. It is for a command, which has no *testing.T. The returned function
// ends the program.
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

// logWriter writes a program's log into the log of the test.
type logWriter struct{ t T }

func (w logWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // after the end of the test Logf would panic
		w.t.Logf("%s", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// runCases checks each rule in a subtest.
func runCases[D driver.Driver](t *testing.T, e *Env[D], cfg Config, cases []Case[D]) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("The rule: %s", c.Rule)
				}
			}()
			if skipped := Check(t, e, cfg, c); skipped != "" {
				t.Skip(skipped)
			}
		})
	}
}

// Check checks one rule. It reports violations to t. If the rule is skipped, Check returns the reason.
func Check[D driver.Driver](t T, e *Env[D], cfg Config, c Case[D]) (skipped string) {
	t.Helper()
	if reason, ok := cfg.Skip[c.Name]; ok {
		return "known: " + reason
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
