package watermillbus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/watermillbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// part is a publisher and a subscriber whose behavior the test defines.
type part struct {
	publish   func(topic string, m *message.Message) error
	subscribe func(ctx context.Context, topic string) (<-chan *message.Message, error)
	closed    func()
}

func (p part) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := p.publish(topic, m); err != nil {
			return err
		}
	}
	return nil
}

func (p part) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return p.subscribe(ctx, topic)
}

func (p part) Close() error {
	if p.closed != nil {
		p.closed()
	}
	return nil
}

func newBus(t *testing.T, p part, change func(*watermillbus.Config)) *watermillbus.Bus {
	t.Helper()
	open := func(rpcbus.Subscription) (message.Subscriber, error) { return p, nil }
	cfg := watermillbus.Config{Publisher: p, Subscriber: open, FanoutSubscriber: open}
	if change != nil {
		change(&cfg)
	}
	b, err := watermillbus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

const durable = "cast backup.start 1.0 at-least-once"

func newMessage(ctx context.Context, mark string) *message.Message {
	m := message.NewMessageWithContext(ctx, watermill.NewUUID(), message.Payload("{}"))
	m.Metadata["rpc"] = mark
	return m
}

// request returns a message in the form in which package rpc publishes it.
func request(envelope string) *rpcbus.Message {
	return rpctest.Message(watermill.NewUUID(), envelope, "{}")
}

func TestNew(t *testing.T) {
	t.Parallel()
	open := func(rpcbus.Subscription) (message.Subscriber, error) { return part{}, nil }
	for _, cfg := range []watermillbus.Config{
		{},
		{Publisher: part{}},
		{Subscriber: open, FanoutSubscriber: open},
		{Publisher: part{}, Subscriber: open},
	} {
		if _, err := watermillbus.New(cfg); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("New with parts missing: %v, want Invalid", err)
		}
	}
}

// TestPublish: Publish returns the right error for each outcome of the publisher.
func TestPublish(t *testing.T) {
	t.Parallel()
	down, broken := errors.New("not connected"), errors.New("broken pipe")
	tests := []struct {
		name  string
		mark  string
		fails []error // errors of the first attempts; later attempts succeed
		meta  string
		want  fault.Code
		tries int64
	}{
		{name: "success", tries: 1},
		{name: "may have been sent", fails: []error{broken}, want: fault.Unknown, tries: 1},
		{name: "may have been sent, durable", mark: durable, fails: []error{broken, broken}, tries: 3},
		{name: "certainly not sent", fails: []error{down, down}, tries: 3},
		{name: "a publisher that reports no consumer", mark: durable, fails: []error{rpc.ErrNoConsumer}, want: fault.Unavailable, tries: 1},
		{name: "metadata too long", meta: strings.Repeat("x", 100<<10), want: fault.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int64
				b := newBus(t, part{publish: func(string, *message.Message) error {
					if n := int(tries.Add(1)); n <= len(tt.fails) {
						return tt.fails[n-1]
					}
					return nil
				}}, func(c *watermillbus.Config) {
					c.NotSent = func(err error) bool { return errors.Is(err, down) }
				})
				m := request(tt.mark)
				m.Header = map[string]string{"more": tt.meta}
				err := b.Publish(t.Context(), "backup", m)
				if tt.want == 0 && err != nil || tt.want != 0 && fault.CodeOf(err) != tt.want {
					t.Errorf("Publish: %v, want %v", err, tt.want)
				}
				if tries.Load() != tt.tries {
					t.Errorf("%d attempts, want %d", tries.Load(), tt.tries)
				}
			})
		})
	}
}

// TestPublishHangs: if a publisher never returns, Publish still ends with its context, and Config.Sends limits
// the number of hanging calls.
func TestPublishHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		b := newBus(t, part{publish: func(string, *message.Message) error { <-gate; return nil }},
			func(c *watermillbus.Config) { c.Sends = 1 })
		for i, want := range []fault.Code{fault.Unknown, fault.Timeout} { // the publisher's second call does not begin
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begin := time.Now()
			err := b.Publish(ctx, "backup", request(durable))
			if fault.CodeOf(err) != want || time.Since(begin) != time.Second {
				t.Errorf("Publish %d: %v after %v, want %v after 1s", i, err, time.Since(begin), want)
			}
			cancel()
		}
		if err := b.Close(); fault.CodeOf(err) != fault.Timeout {
			t.Errorf("Close while a publisher hangs: %v, want Timeout", err)
		}
		close(gate)
	})
}

// TestLanes: all slots get messages, although a subscriber delivers one message at a time. A message whose
// handler runs when the subscription ends can still be acknowledged.
func TestLanes(t *testing.T) {
	t.Parallel()
	const slots = 5
	queue := make(chan string, 100)
	for i := range 2 * slots {
		queue <- strconv.Itoa(i)
	}
	var acked atomic.Int64
	var loops sync.WaitGroup
	t.Cleanup(loops.Wait)
	b := newBus(t, part{subscribe: func(ctx context.Context, _ string) (<-chan *message.Message, error) {
		out := make(chan *message.Message)
		loops.Go(func() {
			defer close(out)
			for {
				select {
				case id := <-queue:
					m := newMessage(ctx, durable)
					m.UUID = id
					out <- m
					select {
					case <-m.Acked():
						acked.Add(1)
					case <-m.Nacked():
						queue <- id
					case <-ctx.Done(): // as in some subscribers: the message is requeued although its handler may run
						queue <- id
						return
					}
				case <-ctx.Done():
					return
				}
			}
		})
		return out, nil
	}}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	in, err := b.Subscribe(ctx, rpcbus.Subscription{Topic: "backup", Slots: slots})
	if err != nil {
		t.Fatal(err)
	}
	var received []*rpcbus.Delivery
	for range slots {
		received = append(received, <-in)
	}
	cancel()
	if m, ok := <-in; ok {
		t.Errorf("got %s after the end, want the channel closed", m.ID)
	}
	for _, m := range received {
		if err := m.Ack(); err != nil {
			t.Error(err)
		}
	}
	loops.Wait() // the watermill subscriptions have also ended
	if acked.Load() != slots || len(queue) != slots {
		t.Errorf("%d acknowledged, %d left; want %d and %d", acked.Load(), len(queue), slots, slots)
	}
}

// TestRenewed: a subscription whose channel is closed is renewed. Of several failed renewals, only the first is
// logged as WARN. The empty message that comes from a deleted queue is not delivered.
func TestRenewed(t *testing.T) {
	t.Parallel()
	var opened atomic.Int64
	var log strings.Builder // read after the message has come, when no further line is written
	b := newBus(t, part{subscribe: func(ctx context.Context, _ string) (<-chan *message.Message, error) {
		switch opened.Add(1) {
		case 1:
			out := make(chan *message.Message, 1)
			out <- message.NewMessage("", nil)
			close(out)
			return out, nil
		case 2, 3, 4:
			return nil, errors.New("still away")
		default:
			out := make(chan *message.Message, 1)
			m := newMessage(ctx, durable)
			m.Metadata["again"] = "true"
			out <- m
			context.AfterFunc(ctx, func() { close(out) })
			return out, nil
		}
	}}, func(c *watermillbus.Config) {
		c.Redelivered = "again"
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	in, err := b.Subscribe(t.Context(), rpcbus.Subscription{Topic: "backup"})
	if err != nil {
		t.Fatal(err)
	}
	m := <-in
	if m.Kind != rpcbus.Cast || !m.Redelivered {
		t.Errorf("got %v, want the cast, marked as redelivered", m)
	}
	_ = m.Ack() // never fails
	if n := opened.Load(); n != 5 {
		t.Errorf("%d subscriptions, want 5", n)
	}
	if warn, debug := strings.Count(log.String(), "level=WARN"), strings.Count(log.String(), "level=DEBUG"); warn != 1 || debug != 2 {
		t.Errorf("%d warnings and %d lines at DEBUG, want 1 and 2:\n%s", warn, debug, &log)
	}
}

// TestClose: Close closes subscribers and publishers once, the publishers last. Messages that were not
// acknowledged are rejected.
func TestClose(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var order []string
	note := func(s string) func() {
		return func() {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, s)
		}
	}
	inHand := newMessage(t.Context(), durable)
	sub := part{closed: note("subscriber"), subscribe: func(ctx context.Context, _ string) (<-chan *message.Message, error) {
		out := make(chan *message.Message, 1)
		out <- inHand
		context.AfterFunc(ctx, func() { close(out) })
		return out, nil
	}}
	b := newBus(t, part{closed: note("publisher"), publish: func(string, *message.Message) error { return nil }},
		func(c *watermillbus.Config) {
			c.Subscriber = func(rpcbus.Subscription) (message.Subscriber, error) { return sub, nil }
			c.Fanout = part{closed: note("fanout")}
		})
	in, err := b.Subscribe(t.Context(), rpcbus.Subscription{Topic: "backup"})
	if err != nil {
		t.Fatal(err)
	}
	<-in
	for range 2 {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	select {
	case <-inHand.Nacked():
	default:
		t.Error("the unacknowledged message was not rejected")
	}
	if _, ok := <-in; ok {
		t.Error("a message from a closed bus")
	}
	if got := strings.Join(order, " "); got != "subscriber publisher fanout" {
		t.Errorf("closed %s, want subscriber, publisher, fanout", got)
	}
	if err := b.Publish(t.Context(), "backup", request("")); !errors.Is(err, rpc.ErrClosed) {
		t.Errorf("Publish: %v, want ErrClosed", err)
	}
	if _, err := b.Subscribe(t.Context(), rpcbus.Subscription{Topic: "backup"}); !errors.Is(err, rpc.ErrClosed) {
		t.Errorf("Subscribe: %v, want ErrClosed", err)
	}
	if err := b.CreateTopic(t.Context(), "backup"); !errors.Is(err, rpc.ErrClosed) {
		t.Errorf("CreateTopic: %v, want ErrClosed", err)
	}
}

// TestOpenFails: if one subscriber cannot be opened, Subscribe fails, and the subscriber that was already opened
// is closed.
func TestOpenFails(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	sub := part{closed: func() { close(closed) }, subscribe: func(ctx context.Context, _ string) (<-chan *message.Message, error) {
		out := make(chan *message.Message)
		context.AfterFunc(ctx, func() { close(out) })
		return out, nil
	}}
	b := newBus(t, part{}, func(c *watermillbus.Config) {
		c.Subscriber = func(rpcbus.Subscription) (message.Subscriber, error) { return sub, nil }
		c.FanoutSubscriber = func(rpcbus.Subscription) (message.Subscriber, error) { return nil, errors.New("access refused") }
	})
	_, err := b.Subscribe(t.Context(), rpcbus.Subscription{Topic: "backup", Mode: rpcbus.Live, Fanout: "backup.fanout"})
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "access refused") {
		t.Errorf("Subscribe: %v, want Unavailable with the reason", err)
	}
	<-closed
}

// shared keeps a gochannel open when the bus closes its subscriber.
type shared struct{ *gochannel.GoChannel }

func (shared) Close() error { return nil }

// A gochannel gives every subscriber its own copy of a message, so each topic may have only one subscription.
func ExampleNew() {
	ch := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	open := func(rpcbus.Subscription) (message.Subscriber, error) { return shared{ch}, nil }
	bus, err := watermillbus.New(watermillbus.Config{
		Publisher: ch, Subscriber: open, FanoutSubscriber: open, Lanes: 1,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bus.Close()

	iface := &rpc.Interface{Name: "clock", Version: rpc.Version{Major: 1}}
	double := rpc.Method[time.Duration, time.Duration]{Interface: iface, Name: "double", Since: rpc.Version{Major: 1}}
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "node-1"})
	rpc.Handle(srv, double, func(_ context.Context, d *time.Duration) (*time.Duration, error) {
		twice := 2 * *d
		return &twice, nil
	})
	ctx := context.Background()
	if err := srv.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop(ctx)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	d := time.Minute
	got, err := rpc.Call(ctx, client, double, "node-1", &d)
	fmt.Println(*got, err)
	// Output: 2m0s <nil>
}
