package rpc_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// skewed is a bus between processes whose clocks differ: the receiver's clock is ahead of the sender's by the field
// ahead, which may be negative.
type skewed struct {
	rpcbus.Bus

	ahead time.Duration
	calls atomic.Int64
}

func (s *skewed) Subscribe(ctx context.Context, sub rpcbus.Subscription) (<-chan *rpcbus.Delivery, error) {
	if receive := sub.Receive; receive != nil {
		sub.Receive = func(d *rpcbus.Delivery) {
			d.Message = s.seen(d.Message)
			receive(d)
		}
		return s.Bus.Subscribe(ctx, sub)
	}
	in, err := s.Bus.Subscribe(ctx, sub)
	if err != nil {
		return nil, err
	}
	out := make(chan *rpcbus.Delivery)
	go func() {
		defer close(out)
		for d := range in {
			d.Message = s.seen(d.Message)
			select {
			case out <- d:
			case <-ctx.Done():
				_ = d.Nack()
			}
		}
	}()
	return out, nil
}

// seen returns a copy of a message with its times shifted to the receiver's clock.
func (s *skewed) seen(m *rpcbus.Message) *rpcbus.Message {
	c := *m
	if !m.Deadline.IsZero() {
		s.calls.Add(1)
		c.Deadline = m.Deadline.Add(-s.ahead)
	}
	var e struct {
		Code   string            `json:"code"`
		Reason string            `json:"reason"`
		Msg    string            `json:"msg"`
		Meta   map[string]string `json:"meta"`
	}
	if raw := m.Header["error"]; raw != "" && json.Unmarshal([]byte(raw), &e) == nil && e.Meta["now"] != "" {
		now, _ := time.Parse(time.RFC3339Nano, e.Meta["now"])
		e.Meta["now"] = now.Add(s.ahead).Format(time.RFC3339Nano)
		changed, _ := json.Marshal(e)
		c.Header = maps.Clone(m.Header)
		c.Header["error"] = string(changed)
	}
	return &c
}

// TestSkew: a server answers calls although its clock is an hour ahead or behind. If the clocks agree, the server
// does not handle a call that comes after its deadline.
func TestSkew(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{time.Hour, -time.Hour, 2 * time.Minute, 0} {
		synctest.Test(t, func(t *testing.T) {
			bus := &skewed{Bus: rpctest.NewBus(t), ahead: ahead}
			srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "a", MaxInFlight: 1, Logger: slog.New(slog.DiscardHandler)})
			var ran atomic.Int64
			gate := make(chan struct{})
			rpc.Handle(srv, start, func(_ context.Context, s *string) (*string, error) {
				ran.Add(1)
				if *s == "slow" {
					<-gate
				}
				return s, nil
			})
			if err := srv.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := rpc.NewClient(bus, rpc.ClientConfig{Logger: slog.New(slog.DiscardHandler)})
			text := "x"
			begin := time.Now()
			if got, err := rpc.Call(t.Context(), c, start, "a", &text); err != nil || *got != "x" {
				t.Errorf("ahead %v: %v", ahead, err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("ahead %v: the call took %v", ahead, took)
			}
			want := int64(1)
			if ahead > 0 {
				want = 2 // the first request came after its deadline by the server's clock; the second has a deadline by that clock
			}
			if n := bus.calls.Load(); n != want {
				t.Errorf("ahead %v: %d requests, want %d", ahead, n, want)
			}
			slow := "slow"
			p, err := rpc.Go(t.Context(), c, start, "a", &slow)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			short, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := rpc.Call(short, c, start, "a", &text); fault.CodeOf(err) != fault.Timeout {
				t.Errorf("ahead %v: a call that waits for a slot: %v", ahead, err)
			}
			time.Sleep(time.Second) //nolint:forbidigo // in a synctest bubble
			close(gate)
			if _, err := p.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if n := ran.Load(); ahead >= 0 && n != 2 {
				t.Errorf("ahead %v: the handler ran %d times, want 2: the deadline of the waiting call has passed", ahead, n)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if err := srv.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSkewLogged: a client that calls a server with a wrong clock logs one WARN a minute, and not one for each call.
func TestSkewLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := &skewed{Bus: rpctest.NewBus(t), ahead: time.Hour}
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "a", Logger: slog.New(slog.DiscardHandler)})
		rpc.Handle(srv, start, func(_ context.Context, s *string) (*string, error) { return s, nil })
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		log, lines := logtest.New()
		c := rpc.NewClient(bus, rpc.ClientConfig{Logger: log})
		call := func(n int) {
			for range n {
				if _, err := rpc.Call(t.Context(), c, start, "a", new(string)); err != nil {
					t.Error(err)
				}
			}
		}
		want := func(warn, debug int) {
			t.Helper()
			const text = "server clock disagrees"
			if w, d := lines.Count(slog.LevelWarn, text), lines.Count(slog.LevelDebug, text); w != warn || d != debug {
				t.Errorf("%d WARN, %d DEBUG, want %d, %d", w, d, warn, debug)
			}
		}
		call(5)
		want(1, 4)
		time.Sleep(time.Minute) //nolint:forbidigo // in a synctest bubble
		call(2)
		want(2, 5)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := srv.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
