package amqpbus_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

var (
	blob1 = rpc.Method[string, int]{Interface: iface, Name: "blob", Since: rpc.Version{Major: 1}}
	blobs = rpc.Method[string, rpc.None]{Interface: iface, Name: "blobs", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
	bulk  = rpc.Method[int, string]{Interface: iface, Name: "bulk", Since: rpc.Version{Major: 1}}
)

// TestBrokerLimit: RabbitMQ refuses a message that is too large, and closes the channel. The message fails at once with
// ErrTooLarge, and the error has both sizes. None of 2,000 concurrent calls fails.
func TestBrokerLimit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		limit, size int // in bytes
	}{{1 << 20, 3 << 20}, {32 << 10, 48 << 10}} {
		t.Run(strconv.Itoa(tt.limit), func(t *testing.T) {
			t.Parallel()
			broker := envtest.RabbitMQ(t, fmt.Sprint("max_message_size = ", tt.limit))
			srvBus, cliBus := open(t, broker.URL, "limit"), open(t, broker.URL, "limit")
			srv := rpc.NewServer(srvBus, rpc.ServerConfig{Interface: iface, Host: "h"})
			rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) { m := *n + 1; return &m, nil })
			rpc.Handle(srv, blob1, func(_ context.Context, s *string) (*int, error) { n := len(*s); return &n, nil })
			rpc.Handle(srv, blobs, func(context.Context, *string) (*rpc.None, error) { return nil, nil })
			rpc.Handle(srv, bulk, func(_ context.Context, n *int) (*string, error) { s := strings.Repeat("x", *n); return &s, nil })
			if err := srv.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer srv.Stop(context.Background())
			client := rpc.NewClient(cliBus, rpc.ClientConfig{})
			defer client.Close()
			large := strings.Repeat("x", tt.size)
			refused := func(what string, want error, err error, since time.Time) {
				t.Helper()
				if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), strconv.Itoa(tt.limit)) || !strings.Contains(fmt.Sprint(err), strconv.Itoa(tt.size)[:2]) {
					t.Errorf("%s of %d bytes: %v (%v), want %v with both sizes", what, tt.size, err, fault.CodeOf(err), want)
				}
				if d := time.Since(since); d > 5*time.Second {
					t.Errorf("%s: the error took %v", what, d)
				}
			}
			var failed, next atomic.Int64
			var slowest atomic.Int64
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for n := int(next.Add(1)); n <= 2000; n = int(next.Add(1)) {
						ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
						begin := time.Now()
						if m, err := rpc.Call(ctx, client, add, rpc.Any, &n); err != nil || *m != n+1 {
							failed.Add(1)
							t.Errorf("healthy call %d: %v, %v", n, m, err)
						}
						if d := int64(time.Since(begin)); d > slowest.Load() {
							slowest.Store(d)
						}
						cancel()
					}
				})
			}
			waittest.Until(t, "100 calls", func() bool { return next.Load() >= 100 }) // so that the refusals come while other calls run
			for range 3 {
				begin := time.Now()
				_, err := rpc.Call(t.Context(), client, blob1, "h", &large)
				refused("call", rpc.ErrTooLarge, err, begin)
				begin = time.Now()
				refused("cast", rpc.ErrTooLarge, rpc.Cast(t.Context(), client, blobs, "h", &large), begin)
				begin = time.Now()
				refused("fanout", rpc.ErrTooLarge, rpc.Fanout(t.Context(), client, blobs, &large), begin)
				begin = time.Now()
				_, err = rpc.Call(t.Context(), client, bulk, "h", &tt.size)
				refused("reply", rpc.ErrReplyTooLarge, err, begin)
			}
			wg.Wait()
			t.Logf("%d of 2000 healthy calls failed, the slowest took %v", failed.Load(), time.Duration(slowest.Load()))
			if n := cliBus.Capabilities().Stats().Reconnects + srvBus.Capabilities().Stats().Reconnects; n != 0 {
				t.Errorf("%d connections were lost", n)
			}
			fits := large[:tt.limit-2]
			if n, err := rpc.Call(t.Context(), client, blob1, "h", &fits); err != nil || *n != len(fits) {
				t.Errorf("a call of exactly the limit: %v", err)
			}
		})
	}
}

// TestLargeReceived: messages above the limit of a server become dead letters with their complete payload. The server has at
// most one copy of a message in memory.
func TestLargeReceived(t *testing.T) { //nolint:paralleltest // the test measures the memory of the process
	url := envtest.URL(t, testenv.AMQPVar)
	const letters, size = 4, 12 << 20
	exchange := "large." + strings.ToLower(t.Name())
	big := openWith(t, amqpbus.Config{URLs: []string{url}, Exchange: exchange, MaxMessage: 64 << 20})
	small := open(t, url, exchange)
	for _, topic := range []string{"fault.h", "fault.dlq"} {
		if err := big.CreateTopic(t.Context(), topic); err != nil {
			t.Fatal(err)
		}
	}
	for n := range letters {
		m := rpctest.Message(fmt.Sprint("large-", n), "cast fault.blobs 1.0 at-least-once", `"`+strings.Repeat("x", size)+`"`)
		if err := big.Publish(t.Context(), "fault.h", m); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	srv := rpc.NewServer(small, rpc.ServerConfig{Interface: iface, Host: "h"})
	rpc.Handle(srv, blobs, func(context.Context, *string) (*rpc.None, error) {
		t.Error("a message above the limit was handled")
		return nil, nil
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "all dead letters", func() bool { return srv.Stats().DeadLettered >= letters })
	if st := srv.Stats(); st.DeadLettered != letters {
		t.Errorf("%+v, want %d dead letters", st, letters)
	}
	defer srv.Stop(context.Background())
	runtime.ReadMemStats(&now)
	allocated := now.TotalAlloc - before.TotalAlloc
	runtime.GC()
	runtime.ReadMemStats(&now)
	t.Logf("%d MiB received, %d MiB allocated meanwhile, %d MiB in use at the end", letters*size>>20, allocated>>20, (int64(now.HeapAlloc)-int64(before.HeapAlloc))>>20)
	if stays := int64(now.HeapAlloc) - int64(before.HeapAlloc); stays > 2*size {
		t.Errorf("%d bytes more than before are in use at the end", stays)
	}
	client := rpc.NewClient(big, rpc.ClientConfig{})
	defer client.Close()
	text := strings.Repeat("x", bus.DefaultMaxMessage)
	begin := time.Now()
	if _, err := rpc.Call(t.Context(), client, blob1, "h", &text); !errors.Is(err, rpc.ErrTooLarge) || !fault.IsRemote(err) || time.Since(begin) > 5*time.Second {
		t.Errorf("a call after %v: %v, want the server's ErrTooLarge", time.Since(begin), err)
	}
	whole := 0
	for end := time.Now().Add(30 * time.Second); whole < letters && time.Now().Before(end); {
		if err := rpc.DeadLetters(t.Context(), big, iface, func(l *rpc.DeadLetter) rpc.Verdict {
			if strings.HasPrefix(l.ID, "large-") && len(l.Payload) == size+2 && strings.Contains(l.Reason, strconv.Itoa(bus.DefaultMaxMessage)) {
				whole++
			}
			return rpc.Drop
		}); err != nil {
			t.Fatal(err)
		}
	}
	if whole != letters {
		t.Errorf("%d complete dead letters, want %d", whole, letters)
	}
}

// TestInFlight: the bus does not exceed Config.MaxInFlight, see rpctest.InFlight. After 6 large messages, the rest of the
// budget is smaller than Config.MaxMessage, so RabbitMQ may send no further message.
func TestInFlight(t *testing.T) {
	t.Parallel()
	const budget = 16 << 20
	b := openWith(t, amqpbus.Config{URLs: []string{envtest.URL(t, testenv.AMQPVar)}, Exchange: "inflight", MaxInFlight: budget})
	rpctest.InFlight(t, b, budget, 2<<20, 6)
}

// TestLargeAway: while the broker cannot be reached, a large message waits until its deadline, until the broker is back, or
// until the bus is closed.
func TestLargeAway(t *testing.T) {
	t.Parallel()
	p, via := proxyTo(t, envtest.URL(t, testenv.AMQPVar))
	b := open(t, via, "large.away")
	if err := b.CreateTopic(t.Context(), "fault.h"); err != nil {
		t.Fatal(err)
	}
	client := rpc.NewClient(b, rpc.ClientConfig{})
	defer client.Close()
	text := strings.Repeat("x", 1<<20)
	if err := rpc.Cast(t.Context(), client, blobs, "h", &text); err != nil {
		t.Fatal(err)
	}
	p.stall()
	p.cut()
	failed := make(chan error, 1)
	castInBackground := func() {
		begun := make(chan struct{})
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			close(begun)
			failed <- rpc.Cast(ctx, client, blobs, "h", &text)
		}()
		<-begun
	}
	castUntilDeadline := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		begin := time.Now()
		err := rpc.Cast(ctx, client, blobs, "h", &text)
		if c := fault.CodeOf(err); c != fault.Timeout && c != fault.Unknown || time.Since(begin) > 3*time.Second {
			t.Errorf("cast while the broker cannot be reached: %v (%v) after %v, want Timeout or Unknown at its deadline", err, c, time.Since(begin))
		}
		select {
		case err := <-failed:
			t.Errorf("cast while the broker cannot be reached ended with %v before a later cast with a deadline, want it to wait", err)
		default:
		}
	}
	castInBackground()
	castUntilDeadline()
	p.resume()
	select {
	case err := <-failed:
		if err != nil {
			t.Errorf("cast when the broker is back: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the cast does not end when the broker is back")
	}
	p.stall()
	p.cut()
	castInBackground()
	castUntilDeadline()
	begin := time.Now()
	_ = b.Close()
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("Close took %v", d)
	}
	select {
	case err := <-failed:
		if c := fault.CodeOf(err); c != fault.Unavailable && c != fault.Unknown {
			t.Errorf("cast on a bus that was closed meanwhile: %v (%v), want Unavailable or Unknown", err, c)
		}
	case <-time.After(5 * time.Second):
		t.Error("the cast does not end when the bus is closed")
	}
}

// TestLargeReconnects: Stats.Reconnects also counts the connection for large messages.
func TestLargeReconnects(t *testing.T) {
	t.Parallel()
	p, via := proxyTo(t, envtest.URL(t, testenv.AMQPVar))
	b := open(t, via, "large.reconnects")
	if err := b.CreateTopic(t.Context(), "fault.h"); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), "fault.h", rpctest.Message("large", "cast fault.blobs 1.0 at-least-once", `"`+strings.Repeat("x", 1<<20)+`"`)); err != nil {
		t.Fatal(err)
	}
	p.cut()
	waittest.Until(t, "three connections to be restored", func() bool { return b.Capabilities().Stats().Reconnects >= 3 })
}
