package natsbus_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestLargeReceived: a server with a lower limit than the sender handles no message above its own limit. A cast
// becomes a dead letter with its complete payload, and a call fails at once.
func TestLargeReceived(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.NATSVar)
	const limit, size = 64 << 10, 200 << 10
	exchange := newExchange()
	small, err := natsbus.New(natsbus.Config{URLs: []string{url}, Exchange: exchange, MaxMessage: limit})
	if err == nil {
		err = small.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = small.Close() })
	big := open(t, url, exchange)
	texts := rpc.Method[string, rpc.None]{Interface: iface, Name: "texts", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
	srv := rpc.NewServer(small, rpc.ServerConfig{Interface: iface, Host: "h", Logger: slog.New(slog.DiscardHandler)})
	never := func() { t.Error("a message above the limit was handled") }
	rpc.Handle(srv, texts, func(context.Context, *string) (*rpc.None, error) { never(); return nil, nil })
	rpc.Handle(srv, echo, func(_ context.Context, s *string) (*string, error) { never(); return s, nil })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	c := client(t, big)
	text := strings.Repeat("x", size)
	begin := time.Now()
	if _, err := rpc.Call(limited(t), c, echo, "h", &text); !errors.Is(err, rpc.ErrTooLarge) || !errors.Is(err, fault.Invalid) || !fault.IsRemote(err) {
		t.Errorf("call: %v, want the server's ErrTooLarge", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the error of the call took %v", d)
	}
	if err := rpc.Cast(limited(t), c, texts, "h", &text); err != nil {
		t.Fatal(err)
	}
	until(t, "two dead letters", func() bool { return srv.Stats().DeadLettered == 2 })
	whole := 0
	if err := rpc.DeadLetters(limited(t), big, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		if len(l.Payload) == size+2 && strings.Contains(l.Reason, "65536") {
			whole++
		}
		return rpc.Drop
	}); err != nil || whole != 2 {
		t.Errorf("%d complete dead letters, error %v; want those of the call and the cast", whole, err)
	}
}

// TestInFlight: the bus does not exceed Config.MaxInFlight, see rpctest.InFlight. The bus counts each requested
// message as 1 MiB, which is the limit of NATS.
func TestInFlight(t *testing.T) {
	t.Parallel()
	const budget = 4 << 20
	b, err := natsbus.New(natsbus.Config{URLs: []string{envtest.URL(t, testenv.NATSVar)}, Exchange: newExchange(), MaxInFlight: budget})
	if err == nil {
		err = b.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	rpctest.InFlight(t, b, budget, 512<<10, 4)
}
