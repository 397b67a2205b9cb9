package natsbus_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/natsbus"
)

var (
	iface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
	keep  = rpc.Method[int, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
	echo  = rpc.Method[string, string]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
)

// patience bounds every wait.
const patience = 30 * time.Second

func limited(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come within %v", what, patience)
		panic("unreachable")
	}
}

// serve starts a server that is stopped when the test ends.
func serve(t testing.TB, b rpc.Bus, host string, register func(*rpc.Server)) {
	t.Helper()
	s := rpc.NewServer(b, rpc.ServerConfig{Interface: iface, Host: host, Logger: slog.New(slog.DiscardHandler)})
	register(s)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop the server: %v", err)
		}
	})
}

func client(t testing.TB, b rpc.Bus) *rpc.Client {
	t.Helper()
	c := rpc.NewClient(b, rpc.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() }) // never fails
	return c
}

// TestKilled: the server is killed and restarted under load, and no cast that
// was confirmed is lost; calls meanwhile end by their deadlines.
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
			if err := b.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable {
				<-time.After(100 * time.Millisecond) // the loss is seen by its own time
				if err := b.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable {
					t.Errorf("Check while the server is dead: %v, want Unavailable", err)
				}
			}
			if err := broker.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		next <- n
	}
	close(next)
	close(stop)
	wg.Wait()
	lost := 0
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		lost = 0
		sure.Range(func(n, _ any) bool {
			if _, ok := handled.Load(n); !ok {
				lost++
			}
			return true
		})
		if lost == 0 {
			break
		}
	}
	distinct := 0
	handled.Range(func(any, any) bool { distinct++; return true })
	t.Logf("%d kills: %d casts confirmed, %d not, %d lost, %d handled, %d of them twice; %d calls answered, %d failed",
		kills, confirmed.Load(), unconfirmed.Load(), lost, distinct, runs.Load()-int64(distinct), answered.Load(), failed.Load())
	if lost != 0 || confirmed.Load() == 0 || answered.Load() == 0 {
		t.Errorf("%d confirmed casts were lost", lost)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check at the end: %v", err)
	}
}

// TestHung: a server that hangs costs a message its own time and no more, and
// nothing when it goes on.
func TestHung(t *testing.T) {
	t.Parallel()
	broker := envtest.NATS(t)
	b := open(t, broker.URL, "")
	in, err := b.Subscribe(t.Context(), rpc.Subscription{Topic: "t", Slots: 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Pause(); err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{"cast t.keep 1.0 at-least-once", "cast t.keep 1.0", "fanout t.keep 1.0"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		m := newMessage(t, mark, mark)
		m.SetContext(ctx)
		begin := time.Now()
		err := b.Publish("t", m)
		if d := time.Since(begin); !errors.Is(err, fault.Unknown) || d > 2*time.Second {
			t.Errorf("%s: %v after %v, want Unknown after 300ms", mark, err, d)
		}
		cancel()
	}
	if err := broker.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish("t", durable(t, "last")); err != nil {
		t.Errorf("Publish to a server that goes on: %v", err)
	}
	for id := ""; id != "last"; {
		m := receive(t, in, "the last message")
		id = m.UUID
		if err := rpc.Settle(m, true); err != nil {
			t.Error(err)
		}
	}
}

// TestStreamDeleted: a stream that is deleted under a server comes back.
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
	for n := 0; ; n++ { // a stream that is being deleted may still take some
		if err := rpc.Cast(limited(t), c, keep, "a", &n); err != nil && !errors.Is(err, rpc.ErrNoConsumer) {
			t.Fatalf("cast %v after the stream was deleted: %v", time.Since(begin), err)
		}
		select {
		case <-got:
			t.Logf("it was back after %v", time.Since(begin))
			return
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("it is not back after %v: %v", time.Since(begin), b.Check(t.Context()))
		}
	}
}

// TestCut: connections that are cut or go silent lose nothing, and what was in
// hand can be acknowledged over the next one.
func TestCut(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.NATSVar)
	exchange := newExchange()
	p := newProxy(t, url)
	cut, b := open(t, p.url, exchange), open(t, url, exchange)
	in, err := cut.Subscribe(t.Context(), rpc.Subscription{Topic: "t", Slots: 5})
	if err != nil {
		t.Fatal(err)
	}
	send := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			if err := b.Publish("t", durable(t, id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send("1", "2")
	hand := []*message.Message{receive(t, in, "message 1"), receive(t, in, "message 2")}
	p.cut()
	send("3")
	hand = append(hand, receive(t, in, "message 3 after the cut"))
	for _, m := range hand {
		if err := rpc.Settle(m, true); err != nil {
			t.Errorf("acknowledge %s after the cut: %v", m.UUID, err)
		}
	}
	// One is in hand when its holder falls silent: it goes to another.
	send("4")
	if m := receive(t, in, "message 4"); m.UUID != "4" {
		t.Errorf("got %s, want 4: what was acknowledged came again", m.UUID)
	}
	p.stall()
	other, err := b.Subscribe(t.Context(), rpc.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	m := receive(t, other, "message 4 from the one that fell silent")
	if m.UUID != "4" {
		t.Errorf("got %s, want 4", m.UUID)
	}
	if err := rpc.Settle(m, true); err != nil {
		t.Error(err)
	}
	p.cut()
}

// TestHeld: a message that is worked on for longer than NATS waits stays with who
// has it, also after the subscription has ended.
func TestHeld(t *testing.T) {
	t.Parallel()
	b := open(t, envtest.URL(t, testenv.NATSVar), newExchange())
	ctx, cancel := context.WithCancel(t.Context())
	first, err := b.Subscribe(ctx, rpc.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish("t", durable(t, "long")); err != nil {
		t.Fatal(err)
	}
	m := receive(t, first, "the message")
	cancel()
	second, err := b.Subscribe(t.Context(), rpc.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-second:
		t.Errorf("%s came again while it was worked on", m.UUID)
	case <-time.After(14 * time.Second): // ackWait is 10 s
	}
	if err := rpc.Settle(m, false); err != nil {
		t.Fatal(err)
	}
	if m = receive(t, second, "the message that was given back"); m.Metadata[rpc.MetaRedelivered] == "" {
		t.Error("it is not marked as redelivered")
	}
	if err := rpc.Settle(m, true); err != nil {
		t.Error(err)
	}
}

// TestPassedOn: what waits for a busy subscriber of a Live topic goes to one that
// has time, and what it gives back or leaves behind is not lost either.
func TestPassedOn(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	a, b := open(t, url, exchange), open(t, url, exchange)
	ctx, cancel := context.WithCancel(t.Context())
	busy, err := a.Subscribe(ctx, rpc.Subscription{Topic: "t.calls", Mode: rpc.Live})
	if err != nil {
		t.Fatal(err)
	}
	const total = 20
	for i := range total {
		if err := b.Publish("t.calls", newMessage(t, strconv.Itoa(i), "call t.echo 1.0")); err != nil {
			t.Fatal(err)
		}
	}
	hand := receive(t, busy, "the first")
	idle, err := b.Subscribe(t.Context(), rpc.Subscription{Topic: "t.calls", Mode: rpc.Live})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{hand.UUID: 1}
	take := func(what string) {
		t.Helper()
		m := receive(t, idle, what)
		seen[m.UUID]++
		if err := rpc.Settle(m, true); err != nil {
			t.Error(err)
		}
	}
	for range total / 2 {
		take("what the busy one had")
	}
	cancel()
	for range total/2 - 1 {
		take("what the busy one left")
	}
	if err := rpc.Settle(hand, false); err != nil {
		t.Error(err)
	}
	take("what the busy one gave back")
	seen[hand.UUID]--
	for id, n := range seen {
		if n != 1 {
			t.Errorf("message %s came %d times, want once", id, n)
		}
	}
	if len(seen) != total {
		t.Errorf("%d of %d messages came", len(seen), total)
	}
}

func newMessage(t *testing.T, id, mark string) *message.Message {
	t.Helper()
	m := message.NewMessageWithContext(limited(t), id, message.Payload("{}"))
	m.Metadata[rpc.MetaRPC] = mark
	return m
}

func durable(t *testing.T, id string) *message.Message {
	t.Helper()
	return newMessage(t, id, "cast t.keep 1.0 at-least-once")
}

// proxy is between a bus and its server.
type proxy struct {
	url  string
	mu   sync.Mutex
	open []net.Conn
	gate chan struct{} // closed when traffic may flow; nil at first
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal("the URL of the server cannot be read")
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := u.Host
	u.Host = l.Addr().String()
	p := &proxy{url: u.String(), gate: make(chan struct{})}
	close(p.gate)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := new(net.Dialer).DialContext(t.Context(), "tcp", host)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, c, s)
			p.mu.Unlock()
			wg.Go(func() { p.pipe(c, s) })
			wg.Go(func() { p.pipe(s, c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		wg.Wait()
	})
	return p
}

func (p *proxy) pipe(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		<-gate
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// cut closes all connections; new ones work.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		_ = c.Close()
	}
	p.open = nil
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// stall stops the traffic, new connections' too, until cut.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

// TestStartFails: what is wrong is said in one line, without the password.
func TestStartFails(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	broker := envtest.URL(t, testenv.NATSVar)
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal("the URL of the server cannot be read")
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, url string
		want      fault.Code
		text      string
	}{
		{"no server", "nats://u:" + secret + "@" + dead, fault.Unavailable, dead},
		{"wrong password", "nats://armature:" + secret + "@" + u.Host, fault.Denied, u.Host},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, err := natsbus.New(natsbus.Config{URLs: []string{tt.url}, ConnectTimeout: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			err = b.Start(t.Context())
			if fault.CodeOf(err) != tt.want || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\n") ||
				!strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "gave up after") {
				t.Errorf("Start: %v, want one line with %v, %s, for how long, and no password", err, tt.want, tt.text)
			}
			if err := b.Publish("t", durable(t, "1")); !errors.Is(err, rpc.ErrClosed) {
				t.Errorf("Publish afterwards: %v, want ErrClosed", err)
			}
		})
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for _, cfg := range []natsbus.Config{
		{},
		{URLs: []string{"amqp://u:hunter2@h"}},
		{URLs: []string{"nats://h", "nats://u:hunter2%zz@h"}},
		{URLs: []string{"nats://u:hunter2@"}},
		{URLs: []string{"nats://h"}, Exchange: "a..b"},
		{URLs: []string{"nats://h"}, Exchange: "a b"},
	} {
		_, err := natsbus.New(cfg)
		if fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q): %v, want Invalid without the password", cfg.URLs, err)
		}
	}
}

// TestInvalid: what NATS cannot carry is refused, at once.
func TestInvalid(t *testing.T) {
	t.Parallel()
	b := open(t, envtest.URL(t, testenv.NATSVar), newExchange())
	if _, err := b.Subscribe(t.Context(), rpc.Subscription{Topic: "t"}); err != nil {
		t.Fatal(err)
	}
	long := durable(t, "long")
	long.Payload = make([]byte, 2<<20)
	if err := b.Publish("t", long); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("2 MiB: %v, want Invalid", err)
	}
	for _, topic := range []string{"", "a..b", "a b", "a.*", ">", "a\n"} {
		if err := b.Publish(topic, durable(t, "1")); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("publish to %q: %v, want Invalid", topic, err)
		}
		if _, err := b.Subscribe(t.Context(), rpc.Subscription{Topic: topic}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("subscribe to %q: %v, want Invalid", topic, err)
		}
	}
}
