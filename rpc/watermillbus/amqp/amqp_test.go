package amqp_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
)

func open(t *testing.T, broker, exchange string) *amqp.Bus {
	t.Helper()
	b, err := amqp.New(amqp.Config{URLs: []string{broker}, Exchange: exchange, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = b.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func newExchange() string { return "test." + strings.ToLower(rand.Text()) }

func TestBus(t *testing.T) {
	t.Parallel()
	broker := envtest.URL(t, testenv.AMQPVar)
	rpctest.TestBus(t, func(t *testing.T) (server, client bus.Bus) {
		t.Helper()
		exchange := newExchange()
		return open(t, broker, exchange), open(t, broker, exchange)
	}, "busy", "restarts")
}

// TestStart: the errors of New and Start say what is wrong, without the password.
func TestStart(t *testing.T) {
	t.Parallel()
	for _, broker := range []string{"", "nats://u:hunter2@h", "amqp://u:hunter2@"} {
		if _, err := amqp.New(amqp.Config{URLs: []string{broker}}); fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q): %v, want Invalid without the password", broker, err)
		}
	}
	b, err := amqp.New(amqp.Config{URLs: []string{"amqp://u:hunter2@" + envtest.DeadAddr(t)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), "t", &bus.Message{}); !errors.Is(err, bus.ErrNotStarted) {
		t.Errorf("Publish before Start: %v, want ErrNotStarted", err)
	}
	if err := b.Start(t.Context()); fault.CodeOf(err) != fault.Unavailable || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Start: %v, want Unavailable without the password", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Check after Close: %v, want ErrClosed", err)
	}
}

// schemes are the buses that a program registers with urlbus, by URL scheme.
var schemes = map[string]urlbus.Opener{"watermill-amqp": func(at urlbus.Broker, cfg urlbus.Config) (urlbus.Bus, error) {
	return amqp.New(amqp.Config{URLs: at.URLs, TLS: at.TLS, Exchange: cfg.Exchange, Quorum: cfg.Quorum, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger})
}}

// TestScheme: urlbus opens the bus only for a program that registers it.
func TestScheme(t *testing.T) {
	t.Parallel()
	url := "watermill-" + envtest.URL(t, testenv.AMQPVar)
	if _, err := urlbus.Open(url, urlbus.Config{}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("without the package: %v, want Invalid", err)
	}
	b, err := urlbus.Open(url, urlbus.Config{Exchange: newExchange(), Logger: slog.New(slog.DiscardHandler), Schemes: schemes})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer b.Stop(context.Background())
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := urlbus.Open("watermill-amqp://u:hunter2@a,b/", urlbus.Config{Schemes: schemes}); fault.CodeOf(err) != fault.Invalid ||
		!strings.Contains(err.Error(), "2 brokers are given") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("two brokers: %v, want Invalid", err)
	}
}

// TestQuorumAndTLS: with Quorum the bus subscribes to the quorum queues of amqpbus. Without Quorum, RabbitMQ refuses the subscription. If a
// URL requires TLS, the bus connects with TLS or not at all.
func TestQuorumAndTLS(t *testing.T) {
	t.Parallel()
	broker, exchange := envtest.URL(t, testenv.AMQPVar), newExchange()
	own, err := amqpbus.New(amqpbus.Config{URLs: []string{broker}, Exchange: exchange, Quorum: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := own.CreateTopic(t.Context(), "jobs"); err != nil {
		t.Fatal(err)
	}
	for _, quorum := range []bool{true, false} {
		b, err := urlbus.Open("watermill-"+broker, urlbus.Config{Exchange: exchange, Quorum: quorum, Logger: slog.New(slog.DiscardHandler), Schemes: schemes})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err = b.Subscribe(ctx, bus.Subscription{Topic: "jobs", Mode: bus.Shared, Slots: 1})
		if (err == nil) != quorum {
			t.Errorf("subscribe to a quorum queue with Quorum %v: %v", quorum, err)
		}
		cancel()
		_ = b.Stop(t.Context())
	}
	b, err := urlbus.Open("watermill-"+broker+"?ssl=1", urlbus.Config{Exchange: exchange, Logger: slog.New(slog.DiscardHandler), Schemes: schemes})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("TLS on a port without TLS: %v, want Unavailable", err)
	}
	_ = b.Stop(t.Context())
}
