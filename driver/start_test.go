package driver_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// TestNewStartsNothing: a plugin that is not started has neither a process nor a directory, and its status is NotStarted.
// New finds errors of the configuration.
func TestNewStartsNothing(t *testing.T) {
	t.Parallel()
	ran := filepath.Join(t.TempDir(), "ran")
	dir, sockets := installPrograms(t, "good", "touch=touch "+ran), socketDir(t)
	quiet := slog.New(slog.DiscardHandler)
	opened := 0
	var drivers driver.Registry[echoer]
	drivers.Add("inside", func(context.Context, json.RawMessage) (echoer, error) { opened++; return nil, errors.New("it opens") })
	open := filepath.Join(dir, "armature-echo-open")
	if err := errors.Join(os.WriteFile(open, nil, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cfg  driver.PluginConfig
		code fault.Code // the code of the error; not used if says is empty
		says string     // a part of the error; empty: New returns no error
	}{
		{"good", driver.PluginConfig{}, fault.Internal, ""},
		{"touch", driver.PluginConfig{}, fault.Internal, ""},
		{"inside", driver.PluginConfig{}, fault.Internal, ""},
		{"none", driver.PluginConfig{}, fault.NotFound, "built in: inside"},
		{"open", driver.PluginConfig{}, fault.Denied, "can be written by"},
		{"good", driver.PluginConfig{SHA256: strings.Repeat("0", 64)}, fault.Denied, "has the SHA-256"},
		{"good", driver.PluginConfig{SHA256: "abc"}, fault.Invalid, "plugin_sha256"},
		{"good", driver.PluginConfig{User: "no-such-user"}, fault.Invalid, "plugin_user"},
		{"inside", driver.PluginConfig{User: "root"}, fault.Invalid, "plugin_user"},
	} {
		tt.cfg.Dir, tt.cfg.SocketDir, tt.cfg.Logger = dir, sockets, quiet
		p, err := drivers.New(echoKind, tt.name, tt.cfg)
		if tt.says != "" {
			if p != nil || fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v, want %v with %q", tt.name, err, tt.code, tt.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if st := p.Status(); st.State != driver.NotStarted || st.PID != 0 || fault.CodeOf(p.Check(t.Context())) != fault.Unavailable || p.Driver() != nil {
			t.Errorf("%s: before the start it is %+v, ready: %v", tt.name, st, p.Check(t.Context()))
		}
		if err := errors.Join(p.Close(t.Context()), p.Stop(t.Context())); err != nil {
			t.Errorf("%s: close without a start: %v", tt.name, err)
		}
		if err := p.Start(t.Context()); fault.CodeOf(err) != fault.Precondition || p.Status().State != driver.Closed {
			t.Errorf("%s: start after close: %v, %s", tt.name, err, p.Status().State)
		}
	}
	if left, err := os.ReadDir(sockets); len(left) > 0 || err != nil || opened > 0 {
		t.Errorf("without a start there are %v, %v, and %d open drivers", left, err, opened)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a program was executed")
	}
}

// TestStartAgain: a start that fails, or is canceled, leaves no process and no directory, and may be repeated.
func TestStartAgain(t *testing.T) {
	t.Parallel()
	flag := filepath.Join(t.TempDir(), "flag")
	good := filepath.Join(installPrograms(t, "good"), "armature-echo-good")
	dir, sockets := installPrograms(t, "late=[ -e "+flag+" ] || { echo no library >&2; exit 7; }; exec "+good, "waits=[ -e "+flag+" ] || exec sleep 1000; exec "+good), socketDir(t)
	empty := func(what string) {
		t.Helper()
		if left, err := os.ReadDir(sockets); len(left) > 0 || err != nil {
			t.Errorf("%s leaves %v, %v", what, left, err)
		}
	}
	made := map[string]*driver.Plugin[echoer]{}
	for _, name := range []string{"late", "waits"} {
		p, err := driver.New(echoKind, driver.PluginConfig{Program: name, Dir: dir, SocketDir: sockets, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		made[name] = p
	}
	if err := made["late"].Start(t.Context()); err == nil || !strings.Contains(err.Error(), "no library") {
		t.Errorf("a program that ends: %v", err)
	}
	empty("a program that ends")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if began := time.Now(); fault.CodeOf(made["waits"].Start(ctx)) != fault.Canceled || time.Since(began) > 10*time.Second {
		t.Errorf("a canceled start took %v", time.Since(began))
	}
	empty("a canceled start")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, p := range made {
		if err := errors.Join(p.Start(t.Context()), p.Start(t.Context())); err != nil {
			t.Errorf("%s: start again: %v", name, err)
			continue
		}
		if got, err := p.Driver().Echo(t.Context(), "x"); got != "x" || err != nil || p.Status().Restarts != 0 {
			t.Errorf("%s: %q, %v, %+v", name, got, err, p.Status())
		}
		if err := p.Close(t.Context()); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
	empty("a closed driver")
}

// TestCloseWhileStarting: Close ends a running start.
func TestCloseWhileStarting(t *testing.T) {
	t.Parallel()
	dir, sockets := installPrograms(t, "waits=exec sleep 1000"), socketDir(t)
	p, err := driver.New(echoKind, driver.PluginConfig{Program: "waits", Dir: dir, SocketDir: sockets, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- p.Start(t.Context()) }()
	waittest.Until(t, "the start", func() bool { left, err := os.ReadDir(sockets); return err == nil && len(left) > 0 })
	if err := p.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := <-failed; fault.CodeOf(err) != fault.Canceled {
		t.Errorf("start: %v", err)
	}
	if left, err := os.ReadDir(sockets); len(left) > 0 || err != nil {
		t.Errorf("the failed start leaves %v, %v", left, err)
	}
}

// TestCloseOfHungBuiltIn: the open function or the Close of a driver in this process does not return. The plugin's Close
// abandons the driver when its context ends. If the open function returns later, the driver is closed then.
func TestCloseOfHungBuiltIn(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"open", "close"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			resume, entered, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var r driver.Registry[echoer]
			r.Add("hung", func(context.Context, json.RawMessage) (echoer, error) {
				if where == "open" {
					close(entered)
					<-resume
				}
				return hungDriver{where, entered, resume, closed}, nil
			})
			p, err := r.New(echoKind, "hung", driver.PluginConfig{Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			started := make(chan error, 1)
			go func() { started <- p.Start(t.Context()) }()
			if where == "open" {
				<-entered
			} else if err := <-started; err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if err := p.Close(ctx); fault.CodeOf(err) != fault.Timeout || !strings.Contains(err.Error(), "did not close in time") {
				t.Errorf("close: %v, want Timeout", err)
			}
			close(resume)
			<-closed
			if err := p.Close(t.Context()); err != nil {
				t.Errorf("the second close: %v", err)
			}
		})
	}
}

// hungDriver is a driver that hangs.
type hungDriver struct {
	where                   string
	entered, resume, closed chan struct{}
}

func (hungDriver) Info(context.Context) (driver.Info, error)         { return driver.Info{Name: "hung"}, nil }
func (hungDriver) Echo(context.Context, string) (string, error)      { return "", nil }
func (hungDriver) Count(context.Context, int, func(int) error) error { return nil }

func (d hungDriver) Close() error {
	if d.where == "close" {
		close(d.entered)
		<-d.resume
	}
	close(d.closed)
	return nil
}
