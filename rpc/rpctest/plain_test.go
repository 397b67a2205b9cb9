package rpctest_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// plain is a bus with no more than it must have.
type plain struct{ bus rpc.Bus }

func (p plain) Publish(topic string, m ...*message.Message) error { return p.bus.Publish(topic, m...) }

func (p plain) Subscribe(ctx context.Context, s rpc.Subscription) (<-chan *message.Message, error) {
	return p.bus.Subscribe(ctx, s)
}

func (p plain) Close() error { return p.bus.Close() }

// TestPlainBus: clients and servers need nothing of a bus that it may do without.
func TestPlainBus(t *testing.T) {
	t.Parallel()
	rpctest.TestBus(t, func(t *testing.T) (server, client rpc.Bus) {
		t.Helper()
		b := plain{rpctest.NewBus(t)}
		return b, b
	})
}
