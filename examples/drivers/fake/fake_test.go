package fake_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

func open(t testing.TB, cfg fake.Config) *fake.Driver {
	t.Helper()
	if cfg.Host == "" {
		cfg.Host = "h1"
	}
	d, err := fake.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func ids(t *testing.T, d compute.Driver) string {
	t.Helper()
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range list {
		out = append(out, i.ID)
	}
	return strings.Join(out, ",")
}

// TestKilledWhileWriting: a half-written file is not a server. After the last server is destroyed, no file is left.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, fake.Config{Dir: dir})
	if err := d.Spawn(t.Context(), compute.Spec{ID: "s1"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".half-s2"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = open(t, fake.Config{Dir: dir})
	if got := ids(t, d); got != "s1" {
		t.Errorf("after a restart the driver has %q, want s1", got)
	}
	if err := d.Destroy(t.Context(), "s1"); err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*.json")); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".half-s2")); err == nil {
		t.Error("the half file is left")
	}
}

// TestFaults: calls fail as a server's metadata or the options define.
func TestFaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		crashed := 0
		d := open(t, fake.Config{
			Dir: dir, Crash: func() { crashed++ },
			Faults: map[string]string{"resources": "fail Unavailable 1; slow 1s on h2", "list": "slow 1m"},
		})
		n := 0
		spawn := func(ctx context.Context, how string) (string, error) {
			n++
			id := fmt.Sprintf("s%d", n)
			return id, d.Spawn(ctx, compute.Spec{ID: id, Metadata: map[string]string{"fake:spawn": how}})
		}
		has := func(id string) compute.PowerState {
			i, err := d.Get(t.Context(), id)
			if err != nil {
				return compute.NoState
			}
			return i.Power
		}
		for _, tt := range []struct {
			how   string
			code  fault.Code
			ok    bool
			state compute.PowerState
			took  time.Duration
		}{
			{"", 0, true, compute.Running, 0},
			{"slow 2s", 0, true, compute.Running, 2 * time.Second},
			{"slow 2s; fail", fault.Internal, false, compute.NoState, 2 * time.Second},
			{"fail exhausted on h0,h1", fault.Exhausted, false, compute.NoState, 0},
			{"fail on h2", 0, true, compute.Running, 0},
			{"fail Conflict after", fault.Conflict, false, compute.Running, 0},
			{"wrong CRASHED", 0, true, compute.Crashed, 0},
			{"hang", fault.Timeout, false, compute.NoState, time.Hour},
			{"hang after", fault.Timeout, false, compute.Running, time.Hour},
			{"sometimes", fault.Invalid, false, compute.NoState, 0},
			{"slow soon", fault.Invalid, false, compute.NoState, 0},
			{"fail on", fault.Invalid, false, compute.NoState, 0},
			{"wrong ASLEEP", fault.Invalid, false, compute.NoState, 0},
			{"fail -1", fault.Invalid, false, compute.NoState, 0},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			began := time.Now()
			id, err := spawn(ctx, tt.how)
			cancel()
			if (err == nil) != tt.ok || err != nil && fault.CodeOf(err) != tt.code || has(id) != tt.state || time.Since(began) != tt.took {
				t.Errorf("%q: %v after %v, the server is %v; want %v, %v, %v", tt.how, err, time.Since(began), has(id), tt.code, tt.took, tt.state)
			}
		}
		var errs []string
		for range 4 {
			err := d.Spawn(t.Context(), compute.Spec{ID: "twice", Metadata: map[string]string{"fake:spawn": "fail 2; crash 1"}})
			errs = append(errs, strconv.FormatBool(err == nil))
		}
		if got := strings.Join(errs, " "); got != "false false true true" || crashed != 1 {
			t.Errorf("fail 2; crash 1: %s, %d crashes", got, crashed)
		}
		for want := range 2 {
			if _, err := d.Resources(t.Context()); (err == nil) != (want == 1) || want == 0 && fault.CodeOf(err) != fault.Unavailable {
				t.Errorf("resources, time %d: %v", want, err)
			}
		}
		began := time.Now()
		if ids(t, d); time.Since(began) != time.Minute {
			t.Errorf("list took %v", time.Since(began))
		}
	})
}

// TestCountsSurvive: the count of a fault survives the crash that the fault causes. A program with two faults "crash" of
// limit 1 crashes twice, and then the repeated call succeeds.
func TestCountsSurvive(t *testing.T) {
	t.Parallel()
	p := launch(t, map[string]string{"host": "h1", "dir": t.TempDir()})
	spec := compute.Spec{ID: "s1", Metadata: map[string]string{"fake:spawn": "crash after 1; crash 1"}}
	waittest.Succeeds(t, "a call after both crashes", func() error {
		err := p.Driver().Spawn(t.Context(), spec)
		if c := fault.CodeOf(err); err != nil && c != fault.Unknown && c != fault.Unavailable {
			t.Fatal(err)
		}
		return err
	})
	if n := p.Status().Restarts; n != 2 {
		t.Errorf("%d crashes, want 2: before the effect and after it", n)
	}
	if got := ids(t, p.Driver()); got != "s1" {
		t.Errorf("the driver has the servers %s", got)
	}
}

// launch starts this binary as the driver's program.
func launch(t testing.TB, opts map[string]string) *driver.Plugin[compute.Driver] {
	t.Helper()
	raw, err := json.Marshal(opts)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := driver.Launch(t.Context(), compute.Kind, driver.PluginConfig{
		Program: self, Args: []string{"-test.run=^$"}, Options: raw, MinDelay: time.Millisecond, MaxDelay: time.Millisecond, MaxCrashes: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestDies: a guest with the metadata fake:dies crashes after this time, and listeners get an event.
func TestDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := open(t, fake.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		var heard []compute.EventType
		ended := make(chan error)
		go func() {
			ended <- d.Events(ctx, func(e compute.Event) error { heard = append(heard, e.Type); return nil })
		}()
		synctest.Wait()
		if err := d.Spawn(ctx, compute.Spec{ID: "s1", Metadata: map[string]string{"fake:dies": "10s"}}); err != nil {
			t.Fatal(err)
		}
		<-time.After(11 * time.Second)
		if i, err := d.Get(ctx, "s1"); err != nil || i.Power != compute.Crashed {
			t.Errorf("after 11 s: %+v, %v", i, err)
		}
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if got := fmt.Sprint(heard); got != "[began started crashed]" {
			t.Errorf("heard %s", got)
		}
		if err := d.Spawn(t.Context(), compute.Spec{ID: "s2", Metadata: map[string]string{"fake:dies": "never"}}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("dies never: %v", err)
		}
	})
}

// TestDiesLater: a guest with the metadata fake:dies also crashes if its driver is opened again before this time, and a guest that is
// paused at this time crashes when it runs again.
func TestDiesLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := fake.Config{Dir: t.TempDir()}
		first := open(t, cfg)
		for id, dies := range map[string]string{"runs": "10s", "late": "20s", "paused": "10s"} {
			if err := first.Spawn(t.Context(), compute.Spec{ID: id, Metadata: map[string]string{"fake:dies": dies}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := first.Pause(t.Context(), "paused"); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Second)
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		d := open(t, cfg)
		power := func(when string, want ...compute.PowerState) {
			t.Helper()
			<-time.After(time.Millisecond)
			synctest.Wait()
			for i, id := range []string{"runs", "late", "paused"} {
				if s, err := d.Get(t.Context(), id); err != nil || s.Power != want[i] {
					t.Errorf("%s: %s is %v, want %v; %v", when, id, s.Power, want[i], err)
				}
			}
		}
		<-time.After(4 * time.Second)
		power("after 9 s", compute.Running, compute.Running, compute.Paused)
		<-time.After(2 * time.Second)
		power("after 11 s", compute.Crashed, compute.Running, compute.Paused)
		if err := d.Unpause(t.Context(), "paused"); err != nil {
			t.Fatal(err)
		}
		power("unpaused", compute.Crashed, compute.Running, compute.Crashed)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		<-time.After(10 * time.Second)
		d = open(t, cfg)
		power("opened after its time", compute.Crashed, compute.Crashed, compute.Crashed)
	})
}

// TestEventStorm: a listener that is too slow is cut off, and the driver still works.
func TestEventStorm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := open(t, fake.Config{EventStorm: 1000})
		n := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Events(ctx, func(compute.Event) error { n++; return nil }); !errors.Is(err, context.DeadlineExceeded) || n < 990 || n > 1001 {
			t.Errorf("%d events in a second, %v", n, err)
		}
		slow := make(chan struct{})
		ended := make(chan error)
		go func() {
			ended <- d.Events(t.Context(), func(e compute.Event) error {
				if e.Type == compute.EventStopped {
					<-slow
				}
				return nil
			})
		}()
		synctest.Wait()
		if err := d.Spawn(t.Context(), compute.Spec{ID: "s1"}); err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			if err := errors.Join(d.PowerOff(t.Context(), "s1", 0), d.PowerOn(t.Context(), "s1")); err != nil {
				t.Fatal(err)
			}
		}
		close(slow)
		if err := <-ended; fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("the slow listener: %v", err)
		}
	})
}

// TestLiveMigrate: a server moves between the drivers of sibling directories.
func TestLiveMigrate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := open(t, fake.Config{Host: "a", Dir: filepath.Join(dir, "a")}), open(t, fake.Config{Host: "b", Dir: filepath.Join(dir, "b")})
	ctx := t.Context()
	if err := a.Spawn(ctx, compute.Spec{ID: "s1", Name: "one"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.LiveMigrate(ctx, "s1", "b"); err != nil {
			t.Error(err)
		}
	}
	if ids(t, a) != "" || ids(t, b) != "s1" {
		t.Errorf("a has %q, b has %q", ids(t, a), ids(t, b))
	}
	if i, err := b.Get(ctx, "s1"); err != nil || i.Name != "one" || i.Power != compute.Running {
		t.Errorf("on b: %+v, %v", i, err)
	}
	for range 2 {
		if err := b.LiveMigrate(ctx, "s1", "a"); err != nil {
			t.Error(err)
		}
	}
	if ids(t, a) != "s1" || ids(t, b) != "" {
		t.Errorf("and back: a has %q, b has %q", ids(t, a), ids(t, b))
	}
	for host, want := range map[string]fault.Code{"c": fault.NotFound, "a": fault.Invalid, "../x": fault.Invalid} {
		if err := a.LiveMigrate(ctx, "s1", host); fault.CodeOf(err) != want {
			t.Errorf("to %s: %v, want %v", host, err, want)
		}
	}
	if err := a.LiveMigrate(ctx, "s2", "b"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a server that does not exist: %v", err)
	}
}

// TestOpen: Open refuses wrong options with Invalid, and the error names the option. The other options take effect.
func TestOpen(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, options, says string
	}{
		{"no host", `{}`, "host"},
		{"unknown option", `{"host": "h", "color": "red"}`, "color"},
		{"not a number", `{"host": "h", "vcpus": "many"}`, "vcpus"},
		{"not a fault", `{"host": "h", "fault_spawn": "explode"}`, "option fault_spawn: fault \"explode\""},
		{"not a method", `{"host": "h", "fault_explode": "fail"}`, "the method does not exist; use one of: spawn,"},
		{"not text", `{"host": {"a": 1}}`, "option host"},
		{"not an object", `[]`, "options"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if d, err := fake.Open(t.Context(), json.RawMessage(tt.options)); d != nil || !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want Invalid that says %s", err, tt.says)
			}
		})
	}
	d, err := fake.Open(t.Context(), json.RawMessage(`{"host": "h", "vcpus": "3", "memory_mib": "4", "disk_gib": "5", "event_storm": "6"}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Resources(t.Context()); err != nil || got != (compute.Resources{VCPUs: 3, MemoryMiB: 4, DiskGiB: 5}) {
		t.Errorf("resources %+v, %v", got, err)
	}
	if _, err := fake.New(fake.Config{Host: "h", Dir: "/dev/null/x"}); err == nil {
		t.Error("no error for a directory that cannot be created")
	}
}

// BenchmarkList lists 10,000 servers of a driver program.
func BenchmarkList(b *testing.B) {
	p := launch(b, map[string]string{"host": "h1"})
	for i := range 10_000 {
		if err := p.Driver().Spawn(b.Context(), compute.Spec{ID: fmt.Sprintf("0f7ab3c4-1d2e-4f50-8a9b-%012d", i), Name: fmt.Sprintf("server-%d", i)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if list, err := p.Driver().List(b.Context()); err != nil || len(list) != 10_000 {
			b.Fatalf("%d, %v", len(list), err)
		}
	}
}

// TestNegativeOptions: negative amounts are refused, and the error names the option.
func TestNegativeOptions(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"vcpus", "memory_mib", "disk_gib", "event_storm"} {
		for value, wants := range map[string]fault.Code{"-1": fault.Invalid, "0": 0} {
			d, err := fake.Open(t.Context(), options(t, map[string]string{"host": "h1", name: value}))
			if err == nil {
				_ = d.Close()
			}
			f, _ := errors.AsType[*fault.Error](err)
			if wants == 0 && err != nil || wants != 0 && (fault.CodeOf(err) != wants || f == nil || f.Meta["option"] != name) {
				t.Errorf("%s = %s: %v", name, value, err)
			}
		}
	}
	if _, err := fake.Hosts("1e3"); err == nil || !strings.Contains(err.Error(), `"1e3" is not an integer`) {
		t.Errorf("hosts = 1e3: %v", err)
	}
}
