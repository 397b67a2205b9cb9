package rpc_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestServerLost: for each way in which the client's probes may be answered, a call ends with the right result.
func TestServerLost(t *testing.T) {
	t.Parallel()
	away := fault.New(fault.Timeout, "the broker cannot be reached")
	tests := []struct {
		name string
		// probe returns the error of a probe. Its parameter is the time from the call to the probe.
		probe func(time.Duration) error
		mute  bool // the server does not answer probes
		old   bool // the server names no instance, as a server of an older release
		want  error
		most  time.Duration // how long the call may take; the handler takes 10 s
	}{
		{name: "gone", probe: func(time.Duration) error { return rpc.ErrNoConsumer }, want: rpc.ErrServerLost, most: 2 * time.Second},
		{name: "gone later", probe: func(d time.Duration) error {
			if d > 3*time.Second {
				return rpc.ErrNoConsumer
			}
			return nil
		}, want: rpc.ErrServerLost, most: 5 * time.Second},
		{name: "gone for every other second", probe: func(d time.Duration) error {
			if d%(2*time.Second) < time.Second {
				return rpc.ErrNoConsumer
			}
			return nil
		}, most: 10 * time.Second},
		{name: "the broker cannot be reached", probe: func(time.Duration) error { return away }, most: 10 * time.Second},
		{name: "gone, but every other probe does not reach the broker", probe: func(d time.Duration) error {
			if d%time.Second < 500*time.Millisecond {
				return away
			}
			return rpc.ErrNoConsumer
		}, most: 10 * time.Second},
		{name: "paused, and its connection is dropped later", probe: func(d time.Duration) error {
			if d > 4*time.Second {
				return rpc.ErrNoConsumer
			}
			return nil
		}, mute: true, most: 10 * time.Second},
		{name: "a server of an older release", probe: func(time.Duration) error { return rpc.ErrNoConsumer }, old: true, most: 10 * time.Second},
	}
	for _, tt := range tests {
		for _, host := range []string{"a", rpc.Any} {
			t.Run(tt.name+"/"+host, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var begin time.Time
					var probes atomic.Int64
					bus := &faulty{Bus: rpctest.NewBus(t), meet: func(_ string, m *rpcbus.Message) (bool, error) {
						if tt.old {
							m.Instance = ""
						}
						if m.Kind != rpcbus.Probe {
							return true, nil
						}
						probes.Add(1)
						err := tt.probe(time.Since(begin))
						return err == nil && !tt.mute, err
					}}
					var ended atomic.Bool
					srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "a"})
					rpc.Handle(srv, start, func(ctx context.Context, s *string) (*string, error) {
						select {
						case <-time.After(10 * time.Second):
						case <-ctx.Done():
							ended.Store(true)
						}
						return s, nil
					})
					if err := srv.Start(t.Context()); err != nil {
						t.Fatal(err)
					}
					c := rpc.NewClient(bus, rpc.ClientConfig{})
					begin = time.Now()
					_, err := rpc.Call(t.Context(), c, start, host, new(string))
					took := time.Since(begin)
					if !errors.Is(err, tt.want) || took > tt.most {
						t.Errorf("%v after %v, want %v within %v", err, took, tt.want, tt.most)
					}
					synctest.Wait()
					lost := uint64(0)
					if tt.want != nil {
						lost = 1
						if fault.CodeOf(err) != fault.Unknown || !strings.Contains(err.Error(), "may have been executed") {
							t.Errorf("%v, want Unknown with the text \"may have been executed\"", err)
						}
					}
					if n := c.Stats().Lost; n != lost || ended.Load() != (lost > 0) {
						t.Errorf("%d calls were counted as lost, want %d; the handler was canceled: %v", n, lost, ended.Load())
					}
					if n := probes.Load(); !tt.old && (n == 0 || n > 110) || tt.old && n > 0 {
						t.Errorf("%d probes in %v", n, took)
					}
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
}

// TestShortCalls: short calls cause no probes, and only the first call causes a heartbeat: the client learns the server's instance from it.
func TestShortCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var probes, beats atomic.Int64
		bus := &faulty{Bus: rpctest.NewBus(t), meet: func(_ string, m *rpcbus.Message) (bool, error) {
			if m.Kind == rpcbus.Probe {
				probes.Add(1)
			}
			if m.Kind == rpcbus.Heartbeat {
				beats.Add(1)
			}
			return true, nil
		}}
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "a"})
		rpc.Handle(srv, start, func(_ context.Context, s *string) (*string, error) {
			time.Sleep(50 * time.Millisecond) //nolint:forbidigo // in a synctest bubble
			return s, nil
		})
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{})
		for range 100 {
			if _, err := rpc.Call(t.Context(), c, start, "a", new(string)); err != nil {
				t.Fatal(err)
			}
		}
		if n := probes.Load(); n != 0 {
			t.Errorf("%d probes, want none", n)
		}
		if n := beats.Load(); n != 1 {
			t.Errorf("%d heartbeats, want only one, of the first call", n)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := srv.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
