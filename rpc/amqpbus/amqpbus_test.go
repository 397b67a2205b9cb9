package amqpbus_test

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(stormVar); url != "" {
		stormServer(url) // a child of TestStorm
		return
	}
	goleak.VerifyTestMain(m)
}

// open returns a started bus that is closed when the test ends.
func open(t testing.TB, url, exchange string) *amqpbus.Bus {
	t.Helper()
	b, err := amqpbus.New(amqpbus.Config{URLs: []string{url}, Exchange: exchange})
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
	url := envtest.URL(t, "ARMATURE_TEST_AMQP_URL")
	rpctest.TestBus(t, func(t *testing.T) (server, client rpc.Bus) {
		t.Helper()
		exchange := "test." + strings.ToLower(rand.Text())
		return open(t, url, exchange), open(t, url, exchange)
	})
}
