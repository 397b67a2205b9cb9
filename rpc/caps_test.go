package rpc_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

var errNoTable = errors.New("no services table")

// capSource has an AutoCaps whose answer the test sets. Each call takes a second.
type capSource struct {
	asked  atomic.Int64
	answer atomic.Pointer[rpc.Versions] // nil: AutoCaps fails
	log    logBuffer
}

// logBuffer is a log that the test reads while the client writes to it.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (s *capSource) set(v rpc.Versions) { s.answer.Store(&v) }

// client returns a client with the source, on a bus without a server. A sent message fails with ErrNoConsumer.
func (s *capSource) client(t *testing.T) *rpc.Client {
	t.Helper()
	var cfg rpc.ClientConfig
	cfg.Logger = slog.New(slog.NewTextHandler(&s.log, nil))
	cfg.AutoCaps = func(ctx context.Context, _ *rpc.Client) (rpc.Versions, error) {
		s.asked.Add(1)
		select {
		case <-time.After(time.Second): // in a synctest bubble
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if v := s.answer.Load(); v != nil {
			return *v, nil
		}
		return nil, errNoTable
	}
	return rpc.NewClient(rpctest.NewBus(t), cfg)
}

// callStart calls start, which needs version 2.1. The method lowest needs only 2.0.
func callStart(ctx context.Context, c *rpc.Client) error {
	_, err := rpc.Call(ctx, c, start, rpc.Any, new(string))
	return err
}

var lowest = rpc.Method[string, rpc.None]{Interface: iface, Name: "lowest", Since: rpc.Version{Major: 2}}

// sleep lets the time of a synctest bubble pass.
func sleep(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // in a synctest bubble

// TestCapsAwaited: the first messages wait for one shared call of AutoCaps, even those that need only the lowest version. Until the
// caps are known, Allows allows only the lowest version, and the client is not ready.
func TestCapsAwaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s capSource
		s.set(rpc.Versions{"backup": {iface.Version}})
		c := s.client(t)
		defer c.Close()
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c.Allows(iface, start.Since) {
			t.Error("2.1 is allowed before the client knows the caps")
		}
		if !c.Allows(iface, lowest.Since) {
			t.Error("the lowest version is not allowed before the client knows the caps")
		}
		if err := c.Check(t.Context()); !errors.Is(err, fault.Unavailable) {
			t.Errorf("Check before the client knows the caps: %v, want Unavailable", err)
		}
		began := time.Now()
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := callStart(short, c); !errors.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "version caps are not known") {
			t.Errorf("a message whose deadline passes before the caps are known: %v", err)
		}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				err := callStart(t.Context(), c)
				if i%2 == 0 {
					_, err = rpc.Call(t.Context(), c, lowest, rpc.Any, new(string))
				}
				if !errors.Is(err, rpc.ErrNoConsumer) {
					t.Errorf("message %d: %v, want it sent", i, err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took != time.Second {
			t.Errorf("the messages were sent after %v, want a second", took)
		}
		if n := s.asked.Load(); n != 1 {
			t.Errorf("AutoCaps was called %d times by 100 first messages, want once", n)
		}
		if err := c.Check(t.Context()); err != nil || !c.Allows(iface, start.Since) {
			t.Errorf("when the caps are known: check %v, allows 2.1: %v", err, c.Allows(iface, start.Since))
		}
	})
}

// TestErrorTime: the text of the error of a call that fails at once does not state how long the
// call took.
func TestErrorTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := rpc.NewClient(rpctest.NewBus(t), rpc.ClientConfig{})
		defer c.Close()
		const want = "call backup.lowest: publish to backup.calls: no server listens"
		if _, err := rpc.Call(t.Context(), c, lowest, rpc.Any, new(string)); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	})
}

// TestCapsUnknown: after 10 s without caps the client uses the lowest version until it knows the caps. It logs one warning.
func TestCapsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s capSource
		c := s.client(t)
		defer c.Close()
		began := time.Now()
		if _, err := rpc.Call(t.Context(), c, lowest, rpc.Any, new(string)); !errors.Is(err, rpc.ErrNoConsumer) || time.Since(began) != 10*time.Second {
			t.Errorf("the lowest version: %v after %v, want it sent after 10 s", err, time.Since(began))
		}
		began = time.Now()
		for range 3 {
			if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrVersionCap) || time.Since(began) != 0 {
				t.Errorf("2.1: %v after %v", err, time.Since(began))
			}
		}
		if err := c.Check(t.Context()); err != nil || c.Allows(iface, start.Since) {
			t.Errorf("without caps: check %v, allows 2.1: %v", err, c.Allows(iface, start.Since))
		}
		sleep(time.Minute)
		s.set(rpc.Versions{"backup": {iface.Version}})
		sleep(7 * time.Second) // the longest delay between two attempts, plus the attempt
		synctest.Wait()
		if !c.Allows(iface, start.Since) {
			t.Error("2.1 is not allowed although the caps are known")
		}
		if n := strings.Count(s.log.String(), "level=WARN"); n != 1 || !strings.Contains(s.log.String(), errNoTable.Error()) {
			t.Errorf("%d warnings, want one with the reason:\n%s", n, &s.log)
		}
		if !strings.Contains(s.log.String(), `level=INFO msg="version caps known"`) {
			t.Errorf("the log does not say that the caps are known:\n%s", &s.log)
		}
	})
}

// TestCapsFailing: while AutoCaps fails at once, not every message that needs more than the lowest version causes a call of
// AutoCaps. This holds whether the caps were never known or are old.
func TestCapsFailing(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			works := known
			c := rpc.NewClient(rpctest.NewBus(t), rpc.ClientConfig{Logger: slog.New(slog.DiscardHandler), AutoCaps: func(context.Context, *rpc.Client) (rpc.Versions, error) {
				if asked.Add(1); works {
					works = false
					return rpc.Versions{"backup": {lowest.Since}}, nil
				}
				return nil, errNoTable
			}})
			defer c.Close()
			_ = callStart(t.Context(), c)
			sleep(time.Minute)
			asked.Store(0)
			for range 1000 {
				if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrVersionCap) {
					t.Fatal(err)
				}
				sleep(time.Millisecond)
			}
			if n := asked.Load(); n < 2 || n > 15 {
				t.Errorf("caps known %v: %d calls of AutoCaps in one second, want about 10", known, n)
			}
		})
	}
}

// TestCapsClosed: Close ends a call of AutoCaps and waits for it.
func TestCapsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Bool
		c := rpc.NewClient(rpctest.NewBus(t), rpc.ClientConfig{AutoCaps: func(ctx context.Context, _ *rpc.Client) (rpc.Versions, error) {
			runs.Store(true)
			defer runs.Store(false)
			<-ctx.Done()
			sleep(time.Second)
			return nil, ctx.Err()
		}})
		failed := make(chan error, 1)
		go func() { failed <- callStart(t.Context(), c) }()
		synctest.Wait()
		_ = c.Close()
		if runs.Load() {
			t.Error("AutoCaps runs after Close")
		}
		if err := <-failed; !errors.Is(err, rpc.ErrClosed) {
			t.Errorf("a message that waits for the caps: %v, want ErrClosed", err)
		}
	})
}

// TestCapsChange: the client reads the caps every 10 s, even if it sends no message. The caps go down when an older server appears.
// Before the client refuses a message, it reads the caps again, so that they go up at once when the older server is gone. While
// AutoCaps fails, the last caps stay.
func TestCapsChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s capSource
		s.set(rpc.Versions{"backup": {iface.Version}})
		c := s.client(t)
		defer c.Close()
		if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrNoConsumer) {
			t.Errorf("all servers are new: %v", err)
		}
		s.set(rpc.Versions{"backup": {{Major: 2}}})
		sleep(11 * time.Second) // no message
		if c.Allows(iface, start.Since) {
			t.Error("11 s after an older server has appeared, 2.1 is allowed")
		}
		sleep(5 * time.Second)
		s.set(rpc.Versions{"backup": {iface.Version}})
		if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrNoConsumer) {
			t.Errorf("the older server is gone: %v, want the message sent", err)
		}
		s.answer.Store(nil)
		sleep(2 * time.Minute)
		if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrNoConsumer) {
			t.Errorf("while AutoCaps fails: %v, want the last caps", err)
		}
		if err := c.Reload(t.Context()); err != nil || !strings.Contains(s.log.String(), "version caps not refreshed, the last ones stay\" error=\"read the version caps: no services table") {
			t.Errorf("Reload: %v, want nil and the failure in the log:\n%s", err, s.log.String())
		}
		s.set(rpc.Versions{"backup": {{Major: 2}}})
		if err := c.Reload(t.Context()); err != nil || c.Allows(iface, start.Since) {
			t.Errorf("after a reload: %v; allows 2.1: %v", err, c.Allows(iface, start.Since))
		}
	})
}

// TestReloadClosed: Close ends a Reload that waits, and Reload of a closed client does nothing. A Reload without a deadline ends after 10 s.
func TestReloadClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := rpc.NewClient(rpctest.NewBus(t), rpc.ClientConfig{Logger: slog.New(slog.DiscardHandler), AutoCaps: func(ctx context.Context, _ *rpc.Client) (rpc.Versions, error) {
			asked.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		began, reloaded := time.Now(), make(chan error)
		reload := func() { reloaded <- c.Reload(context.WithoutCancel(t.Context())) }
		go reload()
		if err := <-reloaded; err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("Reload: %v after %v, want 10 s", err, time.Since(began))
		}
		go reload()
		synctest.Wait()
		began = time.Now()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-reloaded; err != nil || time.Since(began) > 0 {
			t.Errorf("Reload while the client is closed: %v after %v", err, time.Since(began))
		}
		before := asked.Load()
		go reload()
		if err := <-reloaded; err != nil || asked.Load() != before {
			t.Errorf("Reload of a closed client: %v, AutoCaps was called: %v", err, asked.Load() != before)
		}
	})
}

// TestCapsLogged: each change of the caps is logged once.
func TestCapsLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s capSource
		s.set(rpc.Versions{"backup": {{Major: 2}}, "restore": {{Major: 1}}})
		c := s.client(t)
		defer c.Close()
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, v := range []rpc.Versions{
			{"backup": {iface.Version}, "restore": {{Major: 1}}},
			{"backup": {}, "restore": {{Major: 1}}},
			{"backup": {{Major: 2}, {Major: 3, Minor: 4}}, "volume": {{Major: 1, Minor: 1}}},
		} {
			sleep(time.Minute)
			s.set(v)
		}
		sleep(time.Minute)
		var got []string
		for line := range strings.Lines(s.log.String()) {
			if _, rest, ok := strings.Cut(line, "level=INFO msg=\"version caps changed\" "); ok {
				got = append(got, strings.TrimSpace(rest))
			}
		}
		want := []string{
			"interface=backup from=2.0 to=" + iface.Version.String(), "interface=backup from=" + iface.Version.String() + " to=none",
			"interface=backup from=none to=\"2.0 and 3.4\"", "interface=restore from=1.0 to=lowest", "interface=volume from=lowest to=1.1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("logged %q, want %q", got, want)
		}
	})
}

// TestCapsOfMajors: with two major versions, an interface may have a cap for each. An interface that the answer does not name is
// capped at the lowest version of the oldest major version. An empty list forbids the interface.
func TestCapsOfMajors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		older := &rpc.Interface{Name: "majors", Version: rpc.Version{Major: 1, Minor: 4}}
		newer := &rpc.Interface{Name: "majors", Version: rpc.Version{Major: 2, Minor: 1}, Older: older}
		var s capSource
		c := s.client(t)
		defer c.Close()
		for _, tt := range []struct {
			caps  rpc.Versions
			allow string
		}{
			{nil, "1.0"},
			{rpc.Versions{"other": {{Major: 9}}}, "1.0"},
			{rpc.Versions{"majors": {{Major: 1, Minor: 3}}}, "1.0 1.3"},
			{rpc.Versions{"majors": {{Major: 1, Minor: 4}, {Major: 2}}}, "1.0 1.3 1.4 2.0"},
			{rpc.Versions{"majors": {{Major: 2, Minor: 1}}}, "2.0 2.1"},
			{rpc.Versions{"majors": {}}, ""},
		} {
			if tt.caps != nil { // in the first case no caps are known
				s.set(tt.caps)
				if err := c.Reload(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for _, i := range []*rpc.Interface{older, newer} {
				for minor := range i.Version.Minor + 2 {
					v := rpc.Version{Major: i.Version.Major, Minor: minor}
					if minor != 1 && minor != 2 || v.Major == 2 {
						if c.Allows(i, v) {
							got = append(got, v.String())
						}
					}
				}
			}
			if got := strings.Join(got, " "); got != tt.allow {
				t.Errorf("caps %v allow %q, want %q", tt.caps, got, tt.allow)
			}
		}
		m := rpc.Method[string, rpc.None]{Interface: older, Name: "m", Since: rpc.Version{Major: 1}}
		if err := rpc.Cast(t.Context(), c, m, rpc.Any, new(string)); !errors.Is(err, rpc.ErrVersionCap) || !strings.Contains(err.Error(), "no version in common") {
			t.Errorf("an empty list: %v", err)
		}
	})
}

// TestCapsRefused: after a server has refused a version, the client reads its caps again at once.
func TestCapsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		old := rpc.NewServer(bus, rpc.ServerConfig{Interface: &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 2}}})
		if err := old.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = old.Stop(t.Context()) }()
		var older atomic.Bool
		c := rpc.NewClient(bus, rpc.ClientConfig{CapsEvery: time.Hour, AutoCaps: func(context.Context, *rpc.Client) (rpc.Versions, error) {
			if older.Load() {
				return old.Versions(), nil
			}
			return rpc.Versions{"backup": {iface.Version}}, nil
		}})
		defer c.Close()
		if err := c.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		older.Store(true)
		if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrUnsupportedVersion) {
			t.Errorf("a call of a server that is older than the caps: %v", err)
		}
		sleep(time.Second)
		if err := callStart(t.Context(), c); !errors.Is(err, rpc.ErrVersionCap) {
			t.Errorf("after the refusal: %v, want ErrVersionCap", err)
		}
	})
}

// TestCapsByCall: AutoCaps calls a server through the client that is its argument. If the call needs only the lowest version,
// it does not wait for the caps. If it needs a later version, it is refused, because it would have to wait for the AutoCaps
// that makes it.
func TestCapsByCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &rpc.Interface{Name: "oracle", Version: rpc.Version{Major: 1, Minor: 1}}
		ask := rpc.Define(rpc.Method[rpc.None, rpc.Versions]{Interface: i, Name: "caps", Since: rpc.Version{Major: 1}})
		late := rpc.Define(rpc.Method[rpc.None, rpc.Versions]{Interface: i, Name: "late_caps", Since: rpc.Version{Major: 1, Minor: 1}})
		bus := rpctest.NewBus(t)
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: i})
		var noneInCommon atomic.Bool
		answer := func(context.Context, *rpc.None) (*rpc.Versions, error) {
			if noneInCommon.Load() {
				return &rpc.Versions{i.Name: {}}, nil
			}
			return new(srv.Versions()), nil
		}
		rpc.Handle(srv, ask, answer)
		rpc.Handle(srv, late, answer)
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = srv.Stop(t.Context()) }()
		for m, want := range map[string]error{ask.Name: nil, late.Name: rpc.ErrVersionCap} {
			var asked atomic.Pointer[error] // the error of the last AutoCaps; the client may also call AutoCaps in the background
			c := rpc.NewClient(bus, rpc.ClientConfig{Logger: slog.New(slog.DiscardHandler), AutoCaps: func(ctx context.Context, c *rpc.Client) (rpc.Versions, error) {
				method := ask
				if m == late.Name {
					method = late
				}
				v, err := rpc.Call(ctx, c, method, rpc.Any, &rpc.None{})
				if asked.Store(&err); err != nil {
					return nil, err
				}
				return *v, nil
			}})
			defer c.Close()
			began := time.Now()
			if _ = c.Reload(t.Context()); !errors.Is(*asked.Load(), want) || time.Since(began) > time.Second { // Reload never fails
				t.Errorf("%s: %v after %v, want %v", m, *asked.Load(), time.Since(began), want)
			}
			if c.Allows(i, i.Version) != (want == nil) {
				t.Errorf("%s: Allows 1.1 is %v", m, want != nil)
			}
			if want != nil {
				continue
			}
			for _, none := range []bool{true, false} { // even caps that forbid the interface do not keep the client from asking
				noneInCommon.Store(none)
				if err := c.Reload(t.Context()); err != nil || c.Allows(i, i.Version) == none {
					t.Errorf("%s: no version in common is %v: %v, Allows 1.1 is %v", m, none, err, c.Allows(i, i.Version))
				}
			}
		}
	})
}

// TestOlderRefused: an Older with another name, or with a major version that is not lower, is a programmer's error.
func TestOlderRefused(t *testing.T) {
	t.Parallel()
	for name, older := range map[string]*rpc.Interface{
		"another name": {Name: "restore", Version: rpc.Version{Major: 1}},
		"not lower":    {Name: "backup", Version: rpc.Version{Major: 2}},
	} {
		func() {
			defer func() {
				if p := recover(); p == nil {
					t.Errorf("%s: not refused", name)
				}
			}()
			rpc.NewServer(rpctest.NewBus(t), rpc.ServerConfig{Interface: &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 2, Minor: 1}, Older: older}})
		}()
	}
}

// BenchmarkCallWithCaps: calls with known caps. Compare with BenchmarkCall of the bus.
func BenchmarkCallWithCaps(b *testing.B) {
	for name, cfg := range map[string]rpc.ClientConfig{"none": {}, "auto": {AutoCaps: func(context.Context, *rpc.Client) (rpc.Versions, error) {
		return rpc.Versions{"backup": {iface.Version}}, nil
	}}} {
		b.Run(name, func(b *testing.B) {
			bus := rpctest.NewBus(b)
			srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
			rpc.Handle(srv, start, func(context.Context, *string) (*string, error) { return new("ok"), nil })
			if err := srv.Start(b.Context()); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = srv.Stop(context.WithoutCancel(b.Context())) }()
			c := rpc.NewClient(bus, cfg)
			defer c.Close()
			for b.Loop() {
				if err := callStart(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
