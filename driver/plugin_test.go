package driver_test

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
)

// TestCalls: the driver gets a call's argument, request and deadline, and the worker gets the result.
func TestCalls(t *testing.T) {
	t.Parallel()
	d := launchPlugin(t, driver.PluginConfig{}).Driver()
	ctx := t.Context()
	if got, err := d.Echo(ctx, "hello"); err != nil || got != "hello" {
		t.Errorf("echo: %q, %v", got, err)
	}
	info, err := d.Info(ctx)
	if err != nil || info.Name != "echo" || info.Version != "1.2" || !info.Has("count") {
		t.Errorf("info: %+v, %v", info, err)
	}
	who := reqctx.With(ctx, reqctx.Request{ID: "req-1", ProjectID: "Zürich", Roles: []string{"a", "b"}})
	if got, err := d.Echo(who, "who"); err != nil || got != "req-1 Zürich [a b]" {
		t.Errorf("who: %q, %v", got, err)
	}
	// The metadata have the form of package reqctx, and also the names that older programs read.
	const onWire = `{"request_id":"req-1","project_id":"Zürich","roles":["a","b"],"id":"req-1"}`
	if got, err := d.Echo(who, "metadata"); err != nil || got != onWire {
		t.Errorf("the metadata of a call: %s, %v", got, err)
	}
	if got, err := d.Echo(ctx, "metadata"); err != nil || got != "" {
		t.Errorf("the metadata of a call without a request: %s, %v", got, err)
	}
	if got, err := d.Echo(ctx, "who"); err != nil || got != "  []" {
		t.Errorf("a call without a request: %q, %v", got, err)
	}
	soon, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if got, err := d.Echo(soon, "deadline"); err != nil || got != "true" {
		t.Errorf("deadline: %q, %v", got, err)
	}
	var sum int
	if err := d.Count(ctx, 5, func(i int) error { sum += i; return nil }); err != nil || sum != 10 {
		t.Errorf("count: %d, %v", sum, err)
	}
}

// TestErrors: errors keep their code, reason and Meta, and have the name of the driver.
func TestErrors(t *testing.T) {
	t.Parallel()
	d := launchPlugin(t, driver.PluginConfig{}).Driver()
	tests := []struct {
		ask    string
		code   fault.Code
		text   string
		reason error
	}{
		{"plain:it is broken", fault.Internal, "it is broken", nil},
		{"room:no room at all", fault.Precondition, "host h1: no room at all", errNoRoom},
		{"unavailable", fault.Unavailable, "not yet", nil},
		{"panic:button", fault.Internal, "Echo panicked: panic button", nil},
		{"broken error", fault.Internal, "Echo panicked: runtime error: invalid memory address or nil pointer dereference", nil},
		{"room:Grüße\n\x00", fault.Precondition, "host h1: Grüße\n\x00", errNoRoom},
	}
	for _, tt := range tests {
		_, err := d.Echo(t.Context(), tt.ask)
		if err == nil || fault.CodeOf(err) != tt.code || err.Error() != tt.text || !fault.IsRemote(err) {
			t.Errorf("%s: %v %q, want %v %q, remote", tt.ask, fault.CodeOf(err), err, tt.code, tt.text)
		}
		if tt.reason != nil && !errors.Is(err, tt.reason) {
			t.Errorf("%s: the reason is lost: %v", tt.ask, err)
		}
	}
	_, err := d.Echo(t.Context(), "room:x")
	if f := fault.From(err); f.Meta["need"] != "3" {
		t.Errorf("details %v", f.Meta)
	}
	if err := d.Count(t.Context(), 7, func(int) error { return nil }); !errors.Is(err, errNoRoom) {
		t.Errorf("a stream's error: %v", err)
	}
}

// TestContext: the driver's context ends by a cancellation and by a deadline.
func TestContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := launchPlugin(t, driver.PluginConfig{Options: options(t, echoOptions{Dir: dir})}).Driver()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := d.Echo(ctx, "sleep:1h")
	if !errors.Is(err, context.DeadlineExceeded) || fault.CodeOf(err) != fault.Timeout {
		t.Errorf("deadline: %v", err)
	}
	waittest.Until(t, "the driver to see the deadline", exists(dir, "canceled"))

	ctx, cancel = context.WithCancel(t.Context())
	n := 0
	err = d.Count(ctx, 100, func(int) error {
		if n++; n == 100 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 100 {
		t.Errorf("cancel of a stream: %v after %d", err, n)
	}
}

func options(t testing.TB, o echoOptions) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestVersions: a worker accepts programs of its own protocol and of the previous one.
func TestVersions(t *testing.T) {
	t.Parallel()
	dir := installPrograms(t, "good", "old", "new", "other")
	for name, want := range map[string]string{
		"good": "3", "old": "2",
		"new":   dir + "/armature-echo-new: it has protocol 4, but this worker supports only 3 and 2: install an earlier program, or upgrade the worker",
		"other": dir + `/armature-echo-other: it is a driver of the kind "volume", want echo`,
	} {
		p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: name, Dir: dir})
		var got string
		if err != nil {
			got = err.Error()
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%s: code %v", name, fault.CodeOf(err))
			}
		} else {
			got = strconv.Itoa(p.Driver().(*echoClient).protocol)
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
}

// TestClose: running calls end, streams are canceled, the driver is closed, and new calls are
// refused.
func TestClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launchPlugin(t, driver.PluginConfig{Options: options(t, echoOptions{Dir: dir})})
	call, stream := make(chan error), make(chan error)
	counted := make(chan struct{})
	go func() {
		_, err := p.Driver().Echo(t.Context(), "sleep:300ms")
		call <- err
	}()
	go func() {
		stream <- p.Driver().Count(t.Context(), 100, func(i int) error {
			if i == 99 {
				close(counted)
			}
			return nil
		})
	}()
	<-counted
	waittest.Until(t, "the call", exists(dir, "asleep"))
	closed := make(chan error)
	go func() { closed <- p.Close(t.Context()) }()
	if err := <-stream; fault.CodeOf(err) != fault.Canceled {
		t.Errorf("the stream: %v", err)
	}
	if err := <-call; err != nil {
		t.Errorf("the call: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if !exists(dir, "closed")() {
		t.Error("the driver was not closed")
	}
	if _, err := p.Driver().Echo(t.Context(), "x"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a call after Close: %v", err)
	}
	if err := p.Driver().Close(); err != nil {
		t.Errorf("close of the driver, after: %v", err)
	}
	if st := p.Status(); st.State != driver.Closed || st.PID != 0 {
		t.Errorf("status %+v", st)
	}
	if err := p.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("check: %v", err)
	}
}

// TestLaunchByName: a name means the built-in driver with this name. If no such driver exists, the name means a program.
func TestLaunchByName(t *testing.T) {
	t.Parallel()
	var r driver.Registry[echoer]
	r.Add("mem", openEcho)
	dir := installPrograms(t, "acme", "zeta")
	for _, name := range []string{"mem", "acme", dir + "/armature-echo-zeta"} {
		p, err := r.Launch(t.Context(), echoKind, name, driver.PluginConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Driver().Echo(t.Context(), "x"); got != "x" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if st := p.Status(); st.State != driver.Up || (st.PID != 0) != (name != "mem") || p.Check(t.Context()) != nil {
			t.Errorf("%s: status %+v, check %v", name, st, p.Check(t.Context()))
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]string{
		"akme":    `echo driver "akme" does not exist: ` + dir + `/armature-echo-akme is missing; in that directory: acme, zeta; built in: mem; the nearest is acme`,
		"../acme": `"../acme" is neither the name of a driver (lower-case letters, digits, - and _) nor an absolute path`,
		"/nil":    `the driver's program /nil: lstat /nil: no such file or directory`,
	} {
		if _, err := r.Launch(t.Context(), echoKind, name, driver.PluginConfig{Dir: dir}); err == nil || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", name, err, want)
		}
	}
	if _, err := r.Launch(t.Context(), echoKind, "x", driver.PluginConfig{}); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("no directory: %v", err)
	}
}

// TestBuiltInTakesNoPin: options that have an effect on a program only are refused for a driver in this process.
func TestBuiltInTakesNoPin(t *testing.T) {
	t.Parallel()
	var drivers driver.Registry[echoer]
	drivers.Add("echo", openEcho)
	for option, cfg := range map[string]driver.PluginConfig{
		"plugin_sha256":         {SHA256: strings.Repeat("0", 64)},
		"plugin_user":           {User: "nobody"},
		"plugin_max_files":      {MaxFiles: 10},
		"plugin_max_memory_mib": {MaxMemoryMiB: 10},
	} {
		if _, err := drivers.Launch(t.Context(), echoKind, "echo", cfg); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), option) {
			t.Errorf("%s: %v, want Invalid with the option", option, err)
		}
	}
	if _, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: installPrograms(t, "good"), SHA256: "abc"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a malformed checksum: %v, want Invalid", err)
	}
}
