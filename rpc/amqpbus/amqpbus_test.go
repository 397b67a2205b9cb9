package amqpbus_test

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) {
	rpctest.ServeLost(dial) // the server process of TestLost
	if url := os.Getenv(stormVar); url != "" {
		stormServer(url) // the server process of TestStorm
		return
	}
	goleak.VerifyTestMain(m)
}

// open returns a started bus that is closed when the test ends.
func open(t testing.TB, url, exchange string) *amqpbus.Bus {
	t.Helper()
	return openWith(t, amqpbus.Config{URLs: []string{url}, Exchange: exchange})
}

func openWith(t testing.TB, cfg amqpbus.Config) *amqpbus.Bus {
	t.Helper()
	b, err := amqpbus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Stop(context.Background()) }) // never fails
	return b
}

func TestBus(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	rpctest.TestBus(t, func(t *testing.T) (server, client bus.Bus) {
		t.Helper()
		exchange := "test." + strings.ToLower(rand.Text())
		return open(t, url, exchange), open(t, url, exchange)
	})
}

// TestBusQuorum: the rules of the contract also hold with quorum queues, in this test on one broker. An existing
// queue keeps its type.
func TestBusQuorum(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	rpctest.TestBus(t, func(t *testing.T) (server, client bus.Bus) {
		t.Helper()
		cfg := amqpbus.Config{URLs: []string{url}, Exchange: "test." + strings.ToLower(rand.Text()), Quorum: true}
		return openWith(t, cfg), openWith(t, cfg)
	}, "restarts") // RabbitMQ marks the messages that a quorum queue sends while the consumer is being canceled
	exchange := "test." + strings.ToLower(rand.Text())
	quorum, classic := openWith(t, amqpbus.Config{URLs: []string{url}, Exchange: exchange, Quorum: true}), open(t, url, exchange)
	if err := quorum.CreateTopic(t.Context(), "topic"); err != nil {
		t.Fatal(err)
	}
	if err := classic.CreateTopic(t.Context(), "topic"); !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), exchange+".topic") {
		t.Errorf("CreateTopic without Config.Quorum on a quorum queue: %v, want Precondition with the name of the queue", err)
	}
}
