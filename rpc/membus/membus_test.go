package membus_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBus(t *testing.T) {
	t.Parallel()
	rpctest.TestBus(t, func(t *testing.T) (server, client rpcbus.Bus) {
		t.Helper()
		b := rpctest.NewBus(t)
		return b, b
	})
}

var (
	iface = &rpc.Interface{Name: "clock", Version: rpc.Version{Major: 1}}
	wait  = rpc.Method[time.Duration, rpc.None]{Interface: iface, Name: "wait", Since: rpc.Version{Major: 1}}
)

// TestFakeClock: a service runs on the bus inside a synctest bubble, in which an hour
// passes at once.
func TestFakeClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := rpctest.Serve(t, iface, func(s *rpc.Server) {
			rpc.Handle(s, wait, func(ctx context.Context, d *time.Duration) (*rpc.None, error) {
				select {
				case <-time.After(*d):
					return &rpc.None{}, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			})
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		d := 59 * time.Minute
		if _, err := rpc.Call(ctx, client, wait, rpc.Any, &d); err != nil {
			t.Error(err)
		}
		start := time.Now()
		if _, err := rpc.Call(ctx, client, wait, rpc.Any, &d); !errors.Is(err, fault.Timeout) || time.Since(start) != time.Minute {
			t.Errorf("error %v after %v, want Timeout after the remaining minute", err, time.Since(start))
		}
	})
}

func ExampleNew() {
	bus := membus.New()
	defer bus.Close()
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
	rpc.Handle(srv, wait, func(_ context.Context, d *time.Duration) (*rpc.None, error) {
		return nil, fault.New(fault.Invalid, "%v is too long", *d)
	})
	ctx := context.Background()
	if err := srv.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop(ctx)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	d := time.Hour
	_, err := rpc.Call(ctx, client, wait, rpc.Any, &d)
	fmt.Println(err, fault.CodeOf(err))
	// Output: call clock.wait: 1h0m0s is too long Invalid
}
