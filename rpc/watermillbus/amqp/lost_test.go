//go:build !race

package amqp_test

import (
	"errors"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
)

// TestConnectionLost: watermill-amqp does not survive the loss of a connection. After it, every call fails at once with
// ErrConnectionLost, and Failed reports the loss.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	broker := envtest.RabbitMQ(t)
	b := open(t, broker.URL, newExchange())
	in, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	cast := rpctest.Message("1", "cast t.keep 1.0 at-least-once", "{}")
	if err := b.Publish(t.Context(), "t", cast); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check before: %v", err)
	}
	_ = (<-in).Ack() // never fails
	broker.Kill()
	select {
	case err := <-b.Failed():
		if !errors.Is(err, amqp.ErrConnectionLost) {
			t.Errorf("Failed: %v, want ErrConnectionLost", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the failure was not reported")
	}
	if err := broker.Restart(t.Context()); err != nil { // the bus does not connect again
		t.Fatal(err)
	}
	begin := time.Now()
	_, subErr := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"})
	for what, err := range map[string]error{
		"Publish": b.Publish(t.Context(), "t", cast), "Subscribe": subErr, "CreateTopic": b.CreateTopic(t.Context(), "t"), "Check": b.Check(t.Context()),
	} {
		if !errors.Is(err, amqp.ErrConnectionLost) || fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: %v, want ErrConnectionLost", what, err)
		}
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("the errors took %v", d)
	}
}
