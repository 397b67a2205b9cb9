package amqpbus_test

import (
	"context"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func dial(ctx context.Context, url, exchange string) (bus.Bus, error) {
	b, err := amqpbus.New(amqpbus.Config{URLs: []string{url}, Exchange: exchange})
	if err != nil {
		return nil, err
	}
	return b, b.Start(ctx)
}

// TestLost: when a server process is killed, its calls fail within 2 s, whether it is restarted or not.
func TestLost(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	rpctest.TestLost(t, dial, func(t *testing.T) rpctest.Broker {
		t.Helper()
		p, via := proxyTo(t, url)
		return rpctest.Broker{URL: url, ServerURL: via, Keeps: true, Outage: func(d time.Duration) {
			p.stall()
			p.cut()
			waittest.Spend(d, "the outage")
			p.resume()
		}}
	})
}
