package amqp_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
)

func open(t *testing.T, broker, exchange string) *amqp.Bus {
	t.Helper()
	b, err := amqp.New(amqp.Config{URL: broker, Exchange: exchange, Logger: slog.New(slog.DiscardHandler)})
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
		if _, err := amqp.New(amqp.Config{URL: broker}); fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q): %v, want Invalid without the password", broker, err)
		}
	}
	b, err := amqp.New(amqp.Config{URL: "amqp://u:hunter2@" + envtest.DeadAddr(t)})
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

// TestScheme: urlbus opens the bus only for a program that registers it.
func TestScheme(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(envtest.URL(t, testenv.AMQPVar))
	if err != nil {
		t.Fatal("the URL of the broker cannot be read")
	}
	u.Scheme = "watermill-amqp"
	if _, err := urlbus.Open(u.String(), urlbus.Config{}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("without the package: %v, want Invalid", err)
	}
	b, err := urlbus.Open(u.String(), urlbus.Config{
		Exchange: newExchange(), Logger: slog.New(slog.DiscardHandler),
		Schemes: map[string]urlbus.Opener{"watermill-amqp": func(url string, cfg urlbus.Config) (urlbus.Bus, error) {
			return amqp.New(amqp.Config{URL: url, Exchange: cfg.Exchange, Logger: cfg.Logger})
		}},
	})
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
}
