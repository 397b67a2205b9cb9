package natsbus_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) {
	rpctest.ServeLost(dial) // the server process of TestLost
	goleak.VerifyTestMain(m)
}

// open returns a started bus that is closed when the test ends.
func open(t testing.TB, url, exchange string) *natsbus.Bus {
	t.Helper()
	b, err := natsbus.New(natsbus.Config{URLs: []string{url}, Exchange: exchange})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Stop(context.Background()) }) // never fails
	return b
}

func newExchange() string { return "test." + strings.ToLower(rand.Text()) }

func TestBus(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.NATSVar)
	rpctest.TestBus(t, func(t *testing.T) (server, client rpcbus.Bus) {
		t.Helper()
		exchange := newExchange()
		return open(t, url, exchange), open(t, url, exchange)
	})
}

// The bus needs a NATS server with JetStream.
func ExampleNew() { //nolint:testableexamples // it needs a server
	bus, err := natsbus.New(natsbus.Config{
		URLs:     []string{"nats://user:password@nats-1:4222", "nats://user:password@nats-2:4222"},
		Exchange: "backup",
		Replicas: 3,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	if err := bus.Start(ctx); err != nil {
		fmt.Println(err) // the error names the servers and the time, and has no password
		return
	}
	defer bus.Stop(ctx)
}
