package rpc_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestAnswered: if a call fails at the server, the server answers with the error at once.
func TestAnswered(t *testing.T) { //nolint:tparallel // the cases share a server that ends with the test
	t.Parallel()
	unknown, wrong, broken := start, start, start
	unknown.Name, broken.Name = "unknown", "broken"
	other := rpc.Method[int, string]{Interface: iface, Name: "start", Since: start.Since}
	shout := rpc.Method[string, func()]{Interface: iface, Name: "shout", Since: start.Since}
	wrong.Interface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 3}}
	wrong.Since = wrong.Interface.Version
	bus := rpctest.NewBus(t)
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
	rpc.Handle(srv, start, upper)
	rpc.Handle(srv, broken, func(context.Context, *string) (*string, error) { panic("a bug") })
	rpc.Handle(srv, shout, func(context.Context, *string) (*func(), error) { f := func() {}; return &f, nil })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	c := rpc.NewClient(bus, rpc.ClientConfig{})
	defer c.Close()
	call := func(m rpc.Method[string, string]) func() error {
		return func() error {
			_, err := rpc.Call(t.Context(), c, m, rpc.Any, new(string))
			return err
		}
	}
	tests := []struct {
		name string
		call func() error
		code fault.Code
		text string
		is   error
	}{
		{"a panic", call(broken), fault.Internal, "panic in the handler", nil},
		{"an unknown method", call(unknown), fault.Unimplemented, "backup.unknown", rpc.ErrNoSuchMethod},
		{"another major version", call(wrong), fault.Unimplemented, "needs version 3.0, the server has 2.3", rpc.ErrUnsupportedVersion},
		{"a request of another type", func() error {
			_, err := rpc.Call(t.Context(), c, other, rpc.Any, new(int))
			return err
		}, fault.Invalid, "decode the request", nil},
		{"a result that cannot be encoded", func() error {
			_, err := rpc.Call(t.Context(), c, shout, rpc.Any, new(string))
			return err
		}, fault.Internal, "encode the response", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.call()
			if fault.CodeOf(err) != tt.code || !fault.IsRemote(err) || !strings.Contains(err.Error(), tt.text) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, remote %v; want the server's %v with %q", err, fault.IsRemote(err), tt.code, tt.text)
			}
		})
	}
}

// TestUnreadable: if the server cannot read a call, it answers with an error and dead-letters the call.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	bus := rpctest.NewBus(t)
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	replies, err := bus.Subscribe(t.Context(), rpcbus.Subscription{Topic: "reply.x", Mode: rpcbus.Private})
	if err != nil {
		t.Fatal(err)
	}
	for _, metadata := range []map[string]string{
		{"rpc": "call"},
		{"rpc": "call backup.start two"},
		{"rpc": "call backup.start 2.1 deadline=soon"},
		{"rpc": "call backup.start 2.1", "context": "{"},
	} {
		metadata["reply_to"] = "reply.x"
		if err := bus.Publish(t.Context(), "backup.calls", rpcbus.Decode("id", maps.All(metadata), nil)); err != nil {
			t.Fatal(err)
		}
		r := <-replies
		if r.Correlation != "id" || !strings.Contains(r.Header["error"], `"Invalid"`) {
			t.Errorf("the reply to %v is %v, want Invalid", metadata, r.Header)
		}
	}
	n := 0
	if err := rpc.DeadLetters(t.Context(), bus, iface, func(*rpc.DeadLetter) rpc.Verdict { n++; return rpc.Drop }); err != nil {
		t.Error(err)
	}
	if st := srv.Stats(); n != 4 || st.Malformed != 4 || st.DeadLettered != 4 {
		t.Errorf("%d dead letters, %+v; want 4", n, st)
	}
}

// TestNoReplyTopic: only another program can send a call without a reply topic, because a Client always sets one. If
// the handler fails, the server logs the error at DEBUG, so that the log at INFO stays empty.
func TestNoReplyTopic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus, log := rpctest.NewBus(t), new(logs)
		ran := false
		srv := startServer(t, bus, rpc.ServerConfig{Logger: log.logger()}, func(context.Context, *string) (*rpc.None, error) {
			ran = true
			return nil, fault.New(fault.Denied, "no")
		})
		if err := bus.Publish(t.Context(), "backup.calls", rpctest.Message("id", "call backup.keep 2.0", `"x"`)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !ran || srv.Stats().InFlight != 0 || log.has("level") {
			t.Errorf("handler ran: %v, %+v; want true, no running handler, and an empty log:\n%s", ran, srv.Stats(), &log.buf)
		}
	})
}

// TestLostRequest: a request is confirmed by the bus, but then lost. The call fails with ErrHeartbeatLost, long
// before its deadline. Without a heartbeat timeout, only the deadline ends the call.
func TestLostRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := &faulty{Bus: rpctest.NewBus(t), meet: func(string, *rpcbus.Message) (bool, error) { return false, nil }}
		for _, tt := range []struct {
			timeout, least, most time.Duration
			want                 error
		}{
			{10 * time.Second, 10 * time.Second, 12 * time.Second, rpc.ErrHeartbeatLost},
			{-1, time.Hour, time.Hour, fault.Timeout},
		} {
			c := rpc.NewClient(bus, rpc.ClientConfig{Timeout: time.Hour, HeartbeatTimeout: tt.timeout})
			begin := time.Now()
			_, err := rpc.Call(t.Context(), c, start, rpc.Any, new(string))
			if d := time.Since(begin); !errors.Is(err, tt.want) || d < tt.least || d > tt.most {
				t.Errorf("with a heartbeat timeout of %v: %v after %v, want %v after %v", tt.timeout, err, d, tt.want, tt.least)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// unsure is a bus that reports for each request, some time after Send, that the request may not have been sent.
type unsure struct {
	*faulty
	after time.Duration
}

func (u unsure) Send(ctx context.Context, topic string, m *rpcbus.Message, done func(error)) {
	err := u.Publish(ctx, topic, m)
	if m.Kind != rpcbus.Call || err != nil {
		done(err)
		return
	}
	time.AfterFunc(u.after, func() { done(fault.New(fault.Unknown, "the connection was lost")) })
}

// TestUnknown: if it is not known whether a request was sent, the call still waits for its reply for a short time.
// If the reply comes, the call returns it.
func TestUnknown(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name          string
		works, unsure time.Duration // how long the handler takes, and after which time the bus loses the connection
		swallow       bool
		want          error
		after         time.Duration
	}{
		{"the connection is lost after the reply", time.Second, 2 * time.Second, false, nil, time.Second},
		{"the connection is lost before the reply", 2 * time.Second, time.Second, false, nil, 2 * time.Second},
		{"the connection is lost long before the reply", time.Minute, time.Second, false, fault.Unknown, 4 * time.Second},
		{"the request was not sent", 0, time.Second, true, fault.Unknown, 4 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				bus := unsure{&faulty{Bus: rpctest.NewBus(t), meet: func(_ string, m *rpcbus.Message) (bool, error) {
					return !tt.swallow || m.Kind != rpcbus.Call, nil
				}}, tt.unsure}
				srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
				rpc.Handle(srv, start, func(context.Context, *string) (*string, error) {
					time.Sleep(tt.works) //nolint:forbidigo // in a synctest bubble
					return new(string), nil
				})
				if err := srv.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				c := rpc.NewClient(bus, rpc.ClientConfig{})
				begin := time.Now()
				_, err := rpc.Call(t.Context(), c, start, rpc.Any, new(string))
				if d := time.Since(begin); !errors.Is(err, tt.want) || d != tt.after {
					t.Errorf("%v after %v, want %v after %v", err, d, tt.want, tt.after)
				}
				pass(2 * time.Minute) // a later reply does no harm
				if err := c.Close(); err != nil {
					t.Error(err)
				}
				if err := srv.Stop(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestClosed: after Close, Cast and Fanout return ErrClosed at once.
func TestClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) { return &rpc.None{}, nil })
		c := rpc.NewClient(bus, rpc.ClientConfig{})
		if err := rpc.Cast(t.Context(), c, keep, rpc.Any, new(string)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := srv.Stop(t.Context()); err != nil {
				t.Errorf("Stop: %v", err)
			}
		}
		if err := srv.Start(t.Context()); !errors.Is(err, fault.Precondition) {
			t.Errorf("Start after Stop: %v, want Precondition", err)
		}
		begin := time.Now()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for name, err := range map[string]error{
			"Cast":   rpc.Cast(t.Context(), c, keep, rpc.Any, new(string)),
			"Fanout": rpc.Fanout(t.Context(), c, start, new(string)),
		} {
			if !errors.Is(err, rpc.ErrClosed) {
				t.Errorf("%s after Close: %v, want ErrClosed", name, err)
			}
		}
		if d := time.Since(begin); d > 0 {
			t.Errorf("the errors took %v", d)
		}
	})
}

// TestBusClosed: when the bus is closed, the waiting calls end. After that, client and server can
// be stopped without an error.
func TestBusClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
		rpc.Handle(srv, start, func(context.Context, *string) (*string, error) {
			time.Sleep(time.Second) //nolint:forbidigo // in a synctest bubble
			return new(string), nil
		})
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{Timeout: 20 * time.Second})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := rpc.Call(t.Context(), c, start, rpc.Any, new(string)); err == nil {
					t.Error("a call was answered over a closed bus")
				}
			})
		}
		synctest.Wait()
		if err := bus.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if _, err := rpc.Call(t.Context(), c, start, rpc.Any, new(string)); !errors.Is(err, rpc.ErrClosed) {
			t.Errorf("a call after Close: %v, want ErrClosed", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := srv.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
