package rpctest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

// InFlight checks a bus that limits the unacknowledged bytes of one subscription. The parameter budget is this limit in bytes: the
// messages of all running handlers of a server must not exceed it in total. The parameter size is the size of a large message in
// bytes, and atOnce is how many handlers of large messages must at least run at once. Handlers of small messages must run in all
// slots of the server. After the large messages are acknowledged, the next ones must be delivered.
func InFlight(t *testing.T, b bus.Bus, budget, size, atOnce int) {
	t.Helper()
	const slots = 64
	iface := &rpc.Interface{Name: "inflight", Version: rpc.Version{Major: 1}}
	blobs := rpc.Method[string, rpc.None]{Interface: iface, Name: "blobs", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
	var now, most atomic.Int64
	entered := make(chan struct{}, 1000)
	var gate atomic.Pointer[chan struct{}]
	srv := rpc.NewServer(b, rpc.ServerConfig{Interface: iface, Host: "h", MaxInFlight: slots})
	rpc.Handle(srv, blobs, func(ctx context.Context, s *string) (*rpc.None, error) {
		n := now.Add(int64(len(*s)))
		for {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		shut := *gate.Load() // read before the send to entered, because after that the test may begin the next round
		entered <- struct{}{}
		select {
		case <-shut:
		case <-ctx.Done():
		}
		now.Add(-int64(len(*s)))
		return &rpc.None{}, nil
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background()) //nolint:errcheck // the test is over
	client := rpc.NewClient(b, rpc.ClientConfig{})
	defer client.Close() //nolint:errcheck // it never fails
	for round, tt := range []struct{ messages, size, atOnce int }{{3 * slots, 1, slots}, {20, size, atOnce}, {3 * slots, 1, slots}} {
		shut := make(chan struct{})
		gate.Store(&shut)
		most.Store(0)
		text := strings.Repeat("x", tt.size)
		for range tt.messages {
			if err := rpc.Cast(t.Context(), client, blobs, "h", &text); err != nil {
				t.Fatal(err)
			}
		}
		open := sync.OnceFunc(func() { close(shut) })
		defer open()
		for i := range tt.atOnce {
			select {
			case <-entered:
			case <-time.After(10 * time.Second):
				t.Fatalf("round %d: %d of %d messages of %d bytes are handled at once, want %d", round, i, tt.messages, tt.size, tt.atOnce)
			}
		}
		if tt.size > 1 {
			waittest.Pass(t, 300*time.Millisecond, "in this time the bus would deliver a message beyond the budget")
		}
		if n := most.Load(); n > int64(budget) {
			t.Errorf("round %d: %d bytes in flight, want at most %d", round, n, budget)
		}
		open()
		for i := range tt.messages - tt.atOnce {
			select {
			case <-entered:
			case <-time.After(20 * time.Second):
				t.Fatalf("round %d: %d of the last %d messages came", round, i, tt.messages-tt.atOnce)
			}
		}
		t.Logf("round %d: at most %d bytes at once", round, most.Load())
	}
}
