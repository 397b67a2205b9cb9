package natsbus_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) {
	rpctest.ServeLost(dial) // a child of TestLost
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

// It needs a NATS server with JetStream.
func ExampleNew() { //nolint:testableexamples // as it says
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
		fmt.Println(err) // what was tried, for how long, without the password
		return
	}
	defer bus.Stop(ctx)
}

// BenchmarkCall compares a call with a bare request of nats.go, 16 at once.
func BenchmarkCall(b *testing.B) {
	url := envtest.URL(b, testenv.NATSVar)
	text := strings.Repeat("x", 1024)
	run := func(b *testing.B, f func() error) {
		b.Helper()
		b.SetParallelism(8) // times two cores
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := f(); err != nil {
					b.Error(err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	}
	b.Run("rpc", func(b *testing.B) {
		exchange := newExchange()
		serve(b, open(b, url, exchange), "a", func(s *rpc.Server) {
			rpc.Handle(s, echo, func(_ context.Context, v *string) (*string, error) { return v, nil })
		})
		c := client(b, open(b, url, exchange))
		run(b, func() error {
			_, err := rpc.Call(b.Context(), c, echo, rpc.Any, &text)
			return err
		})
	})
	b.Run("raw", func(b *testing.B) {
		server, err := nats.Connect(url)
		if err != nil {
			b.Fatal(err)
		}
		defer server.Close()
		sub := newExchange()
		if _, err := server.Subscribe(sub, func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
			b.Fatal(err)
		}
		c, err := nats.Connect(url)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		run(b, func() error {
			_, err := c.RequestWithContext(b.Context(), sub, []byte(text))
			return err
		})
	})
}

// BenchmarkCast compares an AtLeastOnce cast with JetStream's own publish, 64 at
// once. Both return when the message is stored.
func BenchmarkCast(b *testing.B) {
	url := envtest.URL(b, testenv.NATSVar)
	run := func(b *testing.B, f func() error) {
		b.Helper()
		b.SetParallelism(32) // times two cores
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := f(); err != nil {
					b.Error(err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "casts/s")
	}
	bus := func(b *testing.B) (*natsbus.Bus, string) {
		b.Helper()
		exchange := newExchange()
		bus := open(b, url, exchange)
		if err := bus.CreateTopic(b.Context(), "backup"); err != nil {
			b.Fatal(err)
		}
		return bus, exchange
	}
	b.Run("rpc", func(b *testing.B) {
		bus, _ := bus(b)
		c := client(b, bus)
		n := 1
		run(b, func() error { return rpc.Cast(b.Context(), c, keep, rpc.Any, &n) })
	})
	b.Run("raw", func(b *testing.B) {
		_, exchange := bus(b)
		conn, err := nats.Connect(url)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			b.Fatal(err)
		}
		run(b, func() error {
			_, err := js.Publish(b.Context(), exchange+".backup", []byte("1"))
			return err
		})
	})
}
