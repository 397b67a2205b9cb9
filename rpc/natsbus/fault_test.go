package natsbus_test

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
)

var (
	iface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
	keep  = rpc.Method[int, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
	echo  = rpc.Method[string, string]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
)

// waitTimeout bounds each wait of a test.
const waitTimeout = 30 * time.Second

func limited(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	t.Cleanup(cancel)
	return ctx
}

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(waitTimeout):
		t.Fatalf("%s did not come within %v", what, waitTimeout)
		panic("unreachable")
	}
}

// until waits until ok returns true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx := limited(t); !ok(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", waitTimeout, what)
		}
	}
}

// serve starts a server that is stopped when the test ends.
func serve(t testing.TB, b bus.Bus, host string, register func(*rpc.Server)) {
	t.Helper()
	s := rpc.NewServer(b, rpc.ServerConfig{Interface: iface, Host: host, Logger: slog.New(slog.DiscardHandler)})
	register(s)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop the server: %v", err)
		}
	})
}

func client(t testing.TB, b bus.Bus) *rpc.Client {
	t.Helper()
	c := rpc.NewClient(b, rpc.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() }) // never fails
	return c
}

// TestKilled: NATS is killed and restarted under load. No confirmed cast is lost, and calls end at their deadlines or before.
func TestKilled(t *testing.T) {
	t.Parallel()
	broker := envtest.NATS(t)
	const casters, kills = 16, 3
	total := 8000
	if testing.Short() {
		total = 2000
	}
	var handled sync.Map
	var runs, confirmed, unconfirmed, answered, failed atomic.Int64
	for _, host := range []string{"a", "b"} {
		serve(t, open(t, broker.URL, ""), host, func(s *rpc.Server) {
			rpc.Handle(s, keep, func(_ context.Context, n *int) (*rpc.None, error) {
				runs.Add(1)
				handled.Store(*n, true)
				return nil, nil
			})
			rpc.Handle(s, echo, func(_ context.Context, v *string) (*string, error) { return v, nil })
		})
	}
	b := open(t, broker.URL, "")
	c := client(t, b)
	next := make(chan int)
	var wg sync.WaitGroup
	var sure sync.Map
	for range casters {
		wg.Go(func() {
			for n := range next {
				if err := rpc.Cast(limited(t), c, keep, rpc.Any, &n); err == nil {
					confirmed.Add(1)
					sure.Store(n, true)
				} else {
					unconfirmed.Add(1)
				}
			}
		})
	}
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				begin := time.Now()
				text := "x"
				if _, err := rpc.Call(ctx, c, echo, rpc.Any, &text); err == nil {
					answered.Add(1)
				} else {
					failed.Add(1)
				}
				if d := time.Since(begin); d > 6*time.Second {
					t.Errorf("a call with a deadline of 5 s took %v", d)
				}
				cancel()
			}
		})
	}
	for n := range total {
		if n > 0 && n%(total/(kills+1)) == 0 {
			broker.Kill()
			until(t, "Check fails while the server is dead", func() bool { return fault.CodeOf(b.Check(t.Context())) == fault.Unavailable })
			if err := broker.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		next <- n
	}
	close(next)
	close(stop)
	wg.Wait()
	until(t, "every confirmed cast is handled", func() bool {
		lost := 0
		sure.Range(func(n, _ any) bool {
			if _, ok := handled.Load(n); !ok {
				lost++
			}
			return lost == 0
		})
		return lost == 0
	})
	distinct := 0
	handled.Range(func(any, any) bool { distinct++; return true })
	t.Logf("%d kills: %d casts confirmed, %d not confirmed, %d handled, %d of them twice; %d calls answered, %d failed",
		kills, confirmed.Load(), unconfirmed.Load(), distinct, runs.Load()-int64(distinct), answered.Load(), failed.Load())
	if confirmed.Load() == 0 || answered.Load() == 0 {
		t.Error("no cast was confirmed, or no call answered")
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check at the end: %v", err)
	}
}

// TestHung: while NATS hangs, publishing fails at its deadline. After NATS resumes, messages are delivered.
func TestHung(t *testing.T) {
	t.Parallel()
	broker := envtest.NATS(t)
	b := open(t, broker.URL, "")
	in, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t", Slots: 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Pause(); err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{"cast t.keep 1.0 at-least-once", "cast t.keep 1.0", "fanout t.keep 1.0"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		begin := time.Now()
		err := b.Publish(ctx, "t", rpctest.Message(mark, mark, "{}"))
		if d := time.Since(begin); !errors.Is(err, fault.Unknown) || d > 2*time.Second {
			t.Errorf("%s: %v after %v, want Unknown after 300ms", mark, err, d)
		}
		cancel()
	}
	if err := broker.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(limited(t), "t", durable("last")); err != nil {
		t.Errorf("Publish after NATS resumes: %v", err)
	}
	for id := ""; id != "last"; {
		m := receive(t, in, "the last message")
		id = m.ID
		if err := m.Ack(); err != nil {
			t.Error(err)
		}
	}
}

// TestStreamDeleted: a stream is deleted while a server consumes it. The bus creates the stream again.
func TestStreamDeleted(t *testing.T) {
	t.Parallel()
	broker := envtest.NATS(t)
	b := open(t, broker.URL, "")
	got := make(chan int, 10)
	serve(t, b, "a", func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *int) (*rpc.None, error) { got <- *n; return nil, nil })
	})
	conn, err := nats.Connect(broker.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(limited(t), "armature~backup~a"); err != nil {
		t.Fatal(err)
	}
	c := client(t, b)
	begin := time.Now()
	for n := 0; ; n++ { // a stream that is being deleted may still accept casts
		if err := rpc.Cast(limited(t), c, keep, "a", &n); err != nil && !errors.Is(err, rpc.ErrNoConsumer) {
			t.Fatalf("cast %v after the stream was deleted: %v", time.Since(begin), err)
		}
		select {
		case <-got:
			t.Logf("the stream works again after %v", time.Since(begin))
			return
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("the stream does not work after %v: %v", time.Since(begin), b.Check(t.Context()))
		}
	}
}

// TestCut: a connection is cut, and the next connection stalls. No message is lost. A message that was received over a lost
// connection can be acknowledged over the next one.
func TestCut(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute: left out with -short")
	}
	url := envtest.URL(t, testenv.NATSVar)
	exchange := newExchange()
	p := newProxy(t, url)
	cut, b := open(t, p.url, exchange), open(t, url, exchange)
	in, err := cut.Subscribe(t.Context(), bus.Subscription{Topic: "t", Slots: 5})
	if err != nil {
		t.Fatal(err)
	}
	send := func(by bus.Bus, ids ...string) {
		t.Helper()
		for _, id := range ids {
			if err := by.Publish(limited(t), "t", durable(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(b, "1", "2")
	received := []*bus.Delivery{receive(t, in, "message 1"), receive(t, in, "message 2")}
	p.cut()
	send(b, "3")
	received = append(received, receive(t, in, "message 3 after the cut"))
	for _, m := range received {
		if err := m.Ack(); err != nil {
			t.Errorf("acknowledge %s after the cut: %v", m.ID, err)
		}
	}
	// The connection stalls while its subscriber has message 4, so NATS delivers message 4 to another subscriber. Message 4
	// was published over the same connection as the earlier acknowledgements. So NATS has these acknowledgements when message
	// 4 comes. Otherwise the stall could hold back an acknowledgement, and NATS would redeliver an older message.
	send(cut, "4")
	if m := receive(t, in, "message 4"); m.ID != "4" {
		t.Errorf("got %s, want 4: an acknowledged message was redelivered", m.ID)
	}
	p.stall()
	other, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	m := receive(t, other, "message 4 of the stalled subscriber")
	if m.ID != "4" {
		t.Errorf("got %s, want 4", m.ID)
	}
	if err := m.Ack(); err != nil {
		t.Error(err)
	}
	p.cut()
}

// TestLongHandler: a message is not redelivered while its handler runs, because the bus sends JetStream's in-progress
// acknowledgements. This holds even if the handler takes longer than AckWait and the subscription has ended.
func TestLongHandler(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute: left out with -short")
	}
	b := open(t, envtest.URL(t, testenv.NATSVar), newExchange())
	ctx, cancel := context.WithCancel(t.Context())
	first, err := b.Subscribe(ctx, bus.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(limited(t), "t", durable("long")); err != nil {
		t.Fatal(err)
	}
	m := receive(t, first, "the message")
	cancel()
	second, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-second:
		t.Errorf("%s was redelivered while it was handled", m.ID)
	case <-time.After(14 * time.Second): // ackWait is 10 s
	}
	if err := m.Nack(); err != nil {
		t.Fatal(err)
	}
	if m = receive(t, second, "the requeued message"); !m.Redelivered {
		t.Error("the message is not marked as redelivered")
	}
	if err := m.Ack(); err != nil {
		t.Error(err)
	}
}

// TestRequeuedDelivered: messages that wait for a busy subscriber of a Live topic are delivered to an idle subscriber. When
// the busy subscriber ends, the idle one also gets the messages that the busy one has requeued or not yet received.
func TestRequeuedDelivered(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	a, b := open(t, url, exchange), open(t, url, exchange)
	ctx, cancel := context.WithCancel(t.Context())
	busy, err := a.Subscribe(ctx, bus.Subscription{Topic: "t.calls", Mode: bus.Live})
	if err != nil {
		t.Fatal(err)
	}
	const total = 20
	for i := range total {
		b.Send(limited(t), "t.calls", rpctest.Message(strconv.Itoa(i), "call t.echo 1.0", "{}"), func(err error) {
			if err != nil && t.Context().Err() == nil {
				t.Error(err)
			}
		})
	}
	first := receive(t, busy, "the first message")
	idle, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t.calls", Mode: bus.Live})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{first.ID: 1}
	receiveNext := func(what string) {
		t.Helper()
		m := receive(t, idle, what)
		seen[m.ID]++
		if err := m.Ack(); err != nil {
			t.Error(err)
		}
	}
	for range total / 2 {
		receiveNext("a message that waited for the busy subscriber")
	}
	cancel()
	for range total/2 - 1 {
		receiveNext("a message that the busy subscriber did not receive")
	}
	if err := first.Nack(); err != nil {
		t.Error(err)
	}
	receiveNext("the message that the busy subscriber requeued")
	seen[first.ID]--
	for id, n := range seen {
		if n != 1 {
			t.Errorf("message %s came %d times, want once", id, n)
		}
	}
	if len(seen) != total {
		t.Errorf("%d of %d messages came", len(seen), total)
	}
}

func durable(id string) *bus.Message {
	return rpctest.Message(id, "cast t.keep 1.0 at-least-once", "{}")
}

// TestOldestFirst: DeadLetters returns the dead letters in the order of their arrival.
func TestOldestFirst(t *testing.T) {
	t.Parallel()
	b := open(t, envtest.URL(t, testenv.NATSVar), newExchange())
	const dlq, total = "backup.dlq", 200
	if err := b.CreateTopic(limited(t), dlq); err != nil {
		t.Fatal(err)
	}
	for i := range total {
		letter := rpctest.Message(strconv.Itoa(i), "cast backup.keep 1.0 at-least-once", "{}")
		letter.Dead = &bus.Dead{Reason: "test", Topic: "backup", At: time.Now()}
		if err := b.Publish(limited(t), dlq, letter); err != nil {
			t.Fatal(err)
		}
	}
	next := 0
	if err := rpc.DeadLetters(limited(t), b, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		if l.ID != strconv.Itoa(next) {
			t.Errorf("dead letter %s came as number %d", l.ID, next)
		}
		next++
		return rpc.Drop
	}); err != nil {
		t.Fatal(err)
	}
	if next != total {
		t.Errorf("%d dead letters, want %d", next, total)
	}
}
