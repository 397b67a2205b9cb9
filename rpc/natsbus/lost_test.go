package natsbus_test

import (
	"context"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func dial(ctx context.Context, url, exchange string) (bus.Bus, error) {
	b, err := natsbus.New(natsbus.Config{URLs: []string{url}, Exchange: exchange})
	if err != nil {
		return nil, err
	}
	return b, b.Start(ctx)
}

// TestLost: when a server process is killed, its calls fail within 2 s, whether it is restarted or not.
func TestLost(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.NATSVar)
	rpctest.TestLost(t, dial, func(t *testing.T) rpctest.Broker {
		t.Helper()
		p := newProxy(t, url)
		return rpctest.Broker{URL: url, ServerURL: p.url, Outage: p.outage}
	})
}

// TestLostBroker: if NATS is killed and restarted while a call is handled, the call gets its reply.
func TestLostBroker(t *testing.T) {
	t.Parallel()
	broker := envtest.NATS(t)
	gate, began := make(chan struct{}), make(chan struct{}, 2)
	serve(t, open(t, broker.URL, ""), "a", func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, v *string) (*string, error) { began <- struct{}{}; <-gate; return v, nil })
	})
	c := client(t, open(t, broker.URL, ""))
	var calls []*rpc.Pending[string]
	for _, host := range []string{"a", rpc.Any} {
		p, err := rpc.Go(limited(t), c, echo, host, new(string))
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, p)
		receive(t, began, "the call")
	}
	waittest.Pass(t, 300*time.Millisecond, "NATS confirms the calls")
	broker.Kill()
	waittest.Pass(t, 2*time.Second, "the outage of NATS")
	if err := broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	waittest.Pass(t, 2*time.Second, "by this time the calls of a killed server have failed")
	close(gate)
	for _, p := range calls {
		if _, err := p.Wait(limited(t)); err != nil {
			t.Errorf("a call that was handled while NATS could not be reached: %v, want its reply", err)
		}
	}
}
