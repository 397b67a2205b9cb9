package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	iface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 2, Minor: 3}}
	start = rpc.Method[string, string]{Interface: iface, Name: "start", Since: rpc.Version{Major: 2, Minor: 1}}
	keep  = rpc.Method[string, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 2}, Delivery: rpc.AtLeastOnce}
)

func upper(_ context.Context, s *string) (*string, error) {
	out := strings.ToUpper(*s)
	return &out, nil
}

func TestVersionAccepts(t *testing.T) {
	t.Parallel()
	v := rpc.Version{Major: 2, Minor: 3}
	tests := []struct {
		need rpc.Version
		want bool
	}{
		{rpc.Version{Major: 2, Minor: 3}, true},
		{rpc.Version{Major: 2, Minor: 0}, true},
		{rpc.Version{Major: 2, Minor: 4}, false},
		{rpc.Version{Major: 1, Minor: 0}, false},
		{rpc.Version{Major: 3, Minor: 0}, false},
	}
	for _, tt := range tests {
		if got := v.Accepts(tt.need); got != tt.want {
			t.Errorf("%v.Accepts(%v) = %v", v, tt.need, got)
		}
	}
}

// TestCaps: a client sends no message above its cap, and Allows returns false for such a message.
func TestCaps(t *testing.T) {
	t.Parallel()
	bus := rpctest.NewBus(t) // the bus has no server, so a sent message fails with another error
	tests := []struct {
		limit rpc.Version
		allow bool
	}{
		{rpc.Version{Major: 2, Minor: 1}, true},
		{rpc.Version{Major: 2, Minor: 0}, false},
		{rpc.Version{Major: 3, Minor: 9}, false},
	}
	for _, tt := range tests {
		c := rpc.NewClient(bus, rpc.ClientConfig{Caps: rpc.Versions{"backup": {tt.limit}}})
		defer c.Close()
		if got := c.Allows(iface, start.Since); got != tt.allow {
			t.Errorf("cap %v: Allows = %v, want %v", tt.limit, got, tt.allow)
		}
		want := rpc.ErrVersionCap
		if tt.allow {
			want = rpc.ErrNoConsumer
		}
		_, callErr := rpc.Call(t.Context(), c, start, rpc.Any, new(string))
		p, goErr := rpc.Go(t.Context(), c, start, rpc.Any, new(string))
		if goErr == nil {
			_, goErr = p.Wait(t.Context())
		}
		for what, err := range map[string]error{
			"call": callErr, "go": goErr, "cast": rpc.Cast(t.Context(), c, start, rpc.Any, new(string)),
		} {
			if !errors.Is(err, want) {
				t.Errorf("cap %v: %s: %v, want %v", tt.limit, what, err, want)
			}
		}
	}
}

// TestInterceptors: the first interceptor is the outermost, in client and server, for all kinds of messages.
func TestInterceptors(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var trace []string
	note := func(name string) rpc.Interceptor {
		return func(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
			mu.Lock()
			trace = append(trace, name+" "+info.Kind+" "+info.String())
			mu.Unlock()
			resp, err := next(ctx, req)
			mu.Lock()
			trace = append(trace, fmt.Sprintf("%s %T", name, resp))
			mu.Unlock()
			return resp, err
		}
	}
	bus := rpctest.NewBus(t)
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "h", Interceptors: []rpc.Interceptor{note("s1"), note("s2")}})
	rpc.Handle(srv, start, upper)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	c := rpc.NewClient(bus, rpc.ClientConfig{Interceptors: []rpc.Interceptor{note("c1"), note("c2")}})
	defer c.Close()
	req := "x"
	if got, err := rpc.Call(t.Context(), c, start, "h", &req); err != nil || *got != "X" {
		t.Fatalf("call: %v, %v", got, err)
	}
	want := []string{
		"c1 call backup.start on h", "c2 call backup.start on h", "s1 call backup.start", "s2 call backup.start",
		"s2 *string", "s1 *string", "c2 *string", "c1 *string",
	}
	if !slices.Equal(trace, want) {
		t.Errorf("trace %q,\nwant %q", trace, want)
	}
}

// TestStopCutsOff: if the context of Stop ends while a handler runs, Stop cancels the handler, and
// the error of Stop names the handler's method and request.
func TestStopCutsOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
		rpc.Handle(srv, start, func(ctx context.Context, _ *string) (*string, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := srv.Start(t.Context()); !errors.Is(err, fault.Precondition) {
			t.Errorf("second Start: %v, want Precondition", err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{Timeout: time.Hour})
		defer c.Close()
		ctx := reqctx.With(t.Context(), reqctx.Request{ID: "req-7"})
		p, err := rpc.Go(ctx, c, start, rpc.Any, new(string))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		err = srv.Stop(short)
		if !errors.Is(err, fault.Timeout) || !strings.Contains(fmt.Sprint(err), "start (request req-7)") {
			t.Errorf("Stop: %v, want a Timeout that names the method and the request", err)
		}
		if d := time.Since(began); d < time.Minute || d > time.Minute+2*time.Second {
			t.Errorf("Stop took %v, want between one minute and 1 s more", d)
		}
		if _, err := p.Wait(t.Context()); !errors.Is(err, fault.Canceled) || !fault.IsRemote(err) {
			t.Errorf("the caller gets %v, want the server's Canceled", err)
		}
		if err := srv.Stop(t.Context()); err != nil {
			t.Errorf("second Stop: %v", err)
		}
	})
}

// TestPending: Wait may be called again after the context of the first Wait has ended.
func TestPending(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := rpctest.Serve(t, iface, func(s *rpc.Server) {
			rpc.Handle(s, start, func(_ context.Context, s *string) (*string, error) {
				time.Sleep(30 * time.Second) //nolint:forbidigo // in a synctest bubble
				return s, nil
			})
		})
		req := "again"
		p, err := rpc.Go(t.Context(), c, start, rpc.Any, &req)
		if err == nil {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err = p.Wait(ctx)
		}
		if !errors.Is(err, fault.Timeout) {
			t.Fatalf("first Wait: %v, want Timeout", err)
		}
		if got, err := p.Wait(t.Context()); err != nil || *got != "again" {
			t.Errorf("second Wait: %v, %v", got, err)
		}
	})
}

// TestLateReply: a reply that comes after the end of its call is counted, and does not reach
// another call.
func TestLateReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := rpctest.Serve(t, iface, func(s *rpc.Server) {
			rpc.Handle(s, start, func(context.Context, *string) (*string, error) {
				time.Sleep(30 * time.Second) //nolint:forbidigo // in a synctest bubble
				return nil, nil
			})
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := rpc.Call(ctx, c, start, rpc.Any, new(string)); !errors.Is(err, fault.Timeout) || fault.IsRemote(err) {
			t.Errorf("call: %v, want the client's own Timeout", err)
		}
		time.Sleep(2 * time.Minute) //nolint:forbidigo // in a synctest bubble
		if n := c.Stats().Late; n != 1 {
			t.Errorf("%d late replies, want 1", n)
		}
	})
}

// TestRedeliveryBackOff: the delay before each redelivery of a failed cast doubles.
func TestRedeliveryBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var times []time.Time
		c := rpctest.Serve(t, iface, func(s *rpc.Server) {
			rpc.Handle(s, keep, func(context.Context, *string) (*rpc.None, error) {
				mu.Lock()
				defer mu.Unlock()
				times = append(times, time.Now())
				if len(times) < 10 {
					return nil, errors.New("not yet")
				}
				return nil, nil
			})
		})
		if err := rpc.Cast(t.Context(), c, keep, "host", new(string)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // in a synctest bubble
		mu.Lock()
		defer mu.Unlock()
		if len(times) != 10 {
			t.Fatalf("%d deliveries, want 10", len(times))
		}
		for i := 1; i < len(times); i++ {
			gap, most := times[i].Sub(times[i-1]), min(100*time.Millisecond<<(i-1), 30*time.Second)
			if gap < most/2 || gap > most {
				t.Errorf("delay %d is %v, want %v to %v", i, gap, most/2, most)
			}
		}
	})
}

// TestClosedClient: after Close all calls fail with ErrClosed, including calls that wait at that
// time.
func TestClosedClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
		rpc.Handle(srv, start, func(ctx context.Context, _ *string) (*string, error) { <-ctx.Done(); return nil, ctx.Err() })
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{})
		p, err := rpc.Go(t.Context(), c, start, rpc.Any, new(string))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 2 {
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if _, err := p.Wait(t.Context()); err == nil {
			t.Error("a call that waited at Close succeeded")
		}
		_, err = rpc.Call(t.Context(), c, start, rpc.Any, new(string))
		if !errors.Is(err, rpc.ErrClosed) {
			t.Errorf("call: %v, want ErrClosed", err)
		}
		if _, err = rpc.Go(t.Context(), c, start, rpc.Any, new(string)); !errors.Is(err, rpc.ErrClosed) {
			t.Errorf("go: %v, want ErrClosed", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = srv.Stop(ctx) // Stop cuts off the handler, see TestStopCutsOff
	})
}

// TestMisuse: the functions that set up a server panic on a programmer's error.
func TestMisuse(t *testing.T) { //nolint:tparallel // the cases share a bus that ends with the test
	t.Parallel()
	bus := rpctest.NewBus(t)
	other, newer := start, start
	other.Interface = &rpc.Interface{Name: "other"}
	newer.Since.Minor = 9
	tests := []struct {
		name string
		f    func()
	}{
		{"no interface", func() { rpc.NewServer(bus, rpc.ServerConfig{}) }},
		{"host fanout", func() { rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "fanout"}) }},
		{"twice", func() {
			s := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
			rpc.Handle(s, start, upper)
			rpc.Handle(s, start, upper)
		}},
		{"other interface", func() { rpc.Handle(rpc.NewServer(bus, rpc.ServerConfig{Interface: iface}), other, upper) }},
		{"newer than the interface", func() { rpc.Handle(rpc.NewServer(bus, rpc.ServerConfig{Interface: iface}), newer, upper) }},
		{"after start", func() {
			s := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
			if err := s.Start(t.Context()); err != nil {
				t.Error(err)
			}
			defer s.Stop(context.Background())
			rpc.Handle(s, start, upper)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			tt.f()
		})
	}
}

// FuzzServer sends messages of any kind to a server. The server must neither die nor stop serving.
func FuzzServer(f *testing.F) {
	f.Add("call backup.start 2.1 beat=1ns", "", "{}", "reply.x", "", []byte(`"x"`))
	f.Add("cast backup.start 2.1 at-least-once deadline=2026-01-01T00:00:00Z", "7", "", "", "", []byte(`{`))
	f.Add("reply backup.start x.y deadline=never", "-1", "{", "", "", []byte{0})
	f.Add("cast backup.nope -1.2 beat=x", "99999999999999999999", "[]", "", "id", []byte(nil))
	f.Add("cancel backup.@cancel 2.0", "", "", "reply.x", "id", []byte("null"))
	f.Add("cast backup.@describe 2.0 at-least-once more", "", "null", "reply.x", "", []byte("null"))
	f.Add("cast  . ", "", "", "", "", []byte("null"))
	f.Fuzz(func(t *testing.T, mark, failures, from, replyTo, about string, payload []byte) {
		bus := rpctest.NewBus(t)
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Logger: slog.New(slog.DiscardHandler)})
		rpc.Handle(srv, start, upper)
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond) // a reply to a missing topic would be sent again until replyTimeout
			defer cancel()
			_ = srv.Stop(ctx)
		}()
		m := rpcbus.Decode("id", maps.All(map[string]string{
			"rpc": mark, "failures": failures, "context": from, "reply_to": replyTo, "correlation_id": about,
		}), payload)
		to := "backup"
		if m.Kind == rpcbus.Fanout {
			to = "backup.fanout"
		}
		if err := bus.Publish(t.Context(), to, m); errors.Is(err, fault.Invalid) {
			return // no broker accepts the message
		} else if err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{})
		defer c.Close()
		req := "y"
		if got, err := rpc.Call(t.Context(), c, start, rpc.Any, &req); err != nil || *got != "Y" {
			t.Errorf("a call after the message: %v, %v", got, err)
		}
	})
}

// FuzzReply answers a client's call with a message of any kind. The call must end with a response
// or an error.
func FuzzReply(f *testing.F) {
	f.Add("reply", "", "", []byte(`"x"`))
	f.Add("reply", `{"code":"NotFound","reason":"r","msg":"m","meta":{"a":"b"}}`, "", []byte(nil))
	f.Add("reply", `{"code":99}`, "more", []byte(`{`))
	f.Add("beat", "", "", []byte(nil))
	f.Add("", "null", "reply_to", []byte(`[[[[`))
	f.Fuzz(func(t *testing.T, mark, fail, key string, payload []byte) {
		bus := rpctest.NewBus(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		in, err := bus.Subscribe(ctx, rpcbus.Subscription{Topic: "backup.calls", Mode: rpcbus.Live})
		if err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{Timeout: time.Minute, Logger: slog.New(slog.DiscardHandler)})
		defer c.Close()
		p, err := rpc.Go(t.Context(), c, start, rpc.Any, new(string))
		if err != nil {
			t.Fatal(err)
		}
		m := <-in
		for _, mark := range []string{mark, "reply"} { // a message that is not a reply must not end the call
			r := rpcbus.Decode("id", maps.All(map[string]string{key: "x", "rpc": mark, "correlation_id": m.ID, "error": fail}), payload)
			if r.Kind == rpcbus.Fanout {
				continue
			}
			if err := bus.Publish(t.Context(), m.ReplyTo, r); errors.Is(err, fault.Invalid) {
				return // no broker accepts the message
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if got, err := p.Wait(t.Context()); (got == nil) == (err == nil) {
			t.Errorf("response %v, error %v", got, err)
		}
	})
}
