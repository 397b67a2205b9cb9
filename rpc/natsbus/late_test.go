package natsbus_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// lateVar is an environment variable. It sets how long TestLateConfirm stalls the link, such as 2m. Default:
// one period of 14 s.
const lateVar = "ARMATURE_TEST_LATE"

// TestLateConfirm: the network of a server stalls for 12.5 s of every 14 s, so JetStream's answers are late.
// Casts do not multiply. Attempts are counted, so the retries end. Each message is handled once or becomes one
// dead letter.
func TestLateConfirm(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute: left out with -short")
	}
	const casts, tries = 10, 6 // the handler always fails for every second cast
	const open1, period = 1500 * time.Millisecond, 14 * time.Second
	length := period
	if v := os.Getenv(lateVar); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("%s: %v", lateVar, err)
		}
	}
	url := envtest.URL(t, testenv.NATSVar)
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	var mu sync.Mutex
	ids := map[string]bool{} // one for each message in JetStream; a message that is sent again has the same id
	if _, err := conn.Subscribe("late.backup.h", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		ids[m.Header.Get("Nats-Msg-Id")] = true
	}); err != nil {
		t.Fatal(err)
	}
	var lost atomic.Int64
	p := newProxy(t, url)
	openBus := func(url string, log *slog.Logger) *natsbus.Bus {
		b, err := natsbus.New(natsbus.Config{URLs: []string{url}, Exchange: "late", Logger: log})
		if err == nil {
			err = b.Start(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
	srvBus := openBus(p.url, slog.New(counter{&lost, slog.DiscardHandler}))
	cliBus := openBus(url, slog.New(slog.DiscardHandler))
	runs, done := map[int]int{}, map[int]int{}
	srv := rpc.NewServer(srvBus, rpc.ServerConfig{Interface: iface, Host: "h", MaxDeliveries: tries, Logger: slog.New(slog.DiscardHandler)})
	rpc.Handle(srv, keep, func(_ context.Context, n *int) (*rpc.None, error) {
		mu.Lock()
		defer mu.Unlock()
		runs[*n]++
		if *n%2 == 0 {
			return nil, fault.New(fault.Exhausted, "not now")
		}
		done[*n]++
		return &rpc.None{}, nil
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, phase := range []struct {
				set func()
				d   time.Duration
			}{{p.resume, open1}, {p.stall, period - open1}} {
				phase.set()
				select {
				case <-time.After(phase.d):
				case <-stop:
					p.resume()
					return
				}
			}
		}
	})
	end := time.Now().Add(length)
	for n := range casts {
		m := rpctest.Message(fmt.Sprint("late-", n), "cast backup.keep 1.0 at-least-once", strconv.Itoa(n))
		if err := cliBus.Publish(t.Context(), "backup.h", m); err != nil {
			t.Fatal(err)
		}
		waittest.Spend(length/2/casts, "the time between two casts")
	}
	waittest.Pass(t, time.Until(end), "the link stalls and works again")
	close(stop)
	wg.Wait()
	letters := map[string]int{}
	for end := time.Now().Add(60 * time.Second); len(letters) < casts/2 && time.Now().Before(end); {
		if err := rpc.DeadLetters(t.Context(), cliBus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
			letters[l.ID]++
			return rpc.Drop
		}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if err := srv.Stop(ctx); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d messages, %d lost connections, runs %v, letters %v", len(ids), lost.Load(), runs, letters)
	if most := casts/2 + casts/2*tries + int(lost.Load())*casts; len(ids) > most {
		t.Errorf("%d copies of %d casts, want at most %d", len(ids), casts, most)
	}
	for n := range casts {
		id := fmt.Sprint("late-", n)
		if n%2 == 1 && (done[n] != 1 || letters[id] != 0) {
			t.Errorf("cast %d was handled %d times and has %d dead letters, want 1 and 0", n, done[n], letters[id])
		}
		if n%2 == 0 && (runs[n] > tries || letters[id] != 1) {
			t.Errorf("cast %d was handled %d times and has %d dead letters, want %d at most and 1", n, runs[n], letters[id], tries)
		}
	}
}

// counter is a log handler that counts the lost connections.
type counter struct {
	lost *atomic.Int64
	slog.Handler
}

func (c counter) Enabled(context.Context, slog.Level) bool { return true }

func (c counter) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "lost the connection") {
		c.lost.Add(1)
	}
	return nil
}
