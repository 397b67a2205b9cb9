package rpctest_test

import (
	"context"
	"testing"

	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// plain is a bus that has only the methods of bus.Bus, and that declares no limit of the message
// size.
type plain struct{ bus bus.Bus }

func (p plain) Publish(ctx context.Context, topic string, m *bus.Message) error {
	return p.bus.Publish(ctx, topic, m)
}

func (p plain) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	done(p.bus.Publish(ctx, topic, m))
}

func (p plain) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	return p.bus.Subscribe(ctx, s)
}

func (p plain) CreateTopic(ctx context.Context, topic string) error {
	return p.bus.CreateTopic(ctx, topic)
}

func (p plain) Capabilities() bus.Capabilities {
	return bus.Capabilities{NoConsumer: true, LiveTopics: true}
}

func (p plain) Close() error { return p.bus.Close() }

// TestPlainBus: clients and servers work over a bus that has only the methods of bus.Bus and no
// MaxMessage.
func TestPlainBus(t *testing.T) {
	t.Parallel()
	rpctest.TestBus(t, func(t *testing.T) (server, client bus.Bus) {
		t.Helper()
		b := plain{rpctest.NewBus(t)}
		return b, b
	})
}
