package amqpbus_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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
	iface = &rpc.Interface{Name: "fault", Version: rpc.Version{Major: 1}}
	add   = rpc.Method[int, int]{Interface: iface, Name: "add", Since: rpc.Version{Major: 1}}
	keep  = rpc.Method[int, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
)

// ledger counts the sent casts and the handled casts.
type ledger struct {
	mu   sync.Mutex
	sent map[int]bool
	got  map[int]int
	more chan struct{}
}

func (l *ledger) handle(_ context.Context, n *int) (*rpc.None, error) {
	l.mu.Lock()
	l.got[*n]++
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return &rpc.None{}, nil
}

// count returns the number of sent casts.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sent)
}

// wait waits until all sent casts are handled.
func (l *ledger) wait(t *testing.T) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		l.mu.Lock()
		missing := 0
		for n := range l.sent {
			if l.got[n] == 0 {
				missing++
			}
		}
		l.mu.Unlock()
		if missing == 0 {
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("%d of %d confirmed casts were never handled", missing, len(l.sent))
		}
	}
}

// load sends casts and calls until stop is closed. It records each confirmed cast in the ledger. A call may fail, but only with
// Unknown, Unavailable or Timeout. No call may get the reply to another call.
func load(t *testing.T, url, exchange string, l *ledger, stop <-chan struct{}) (calls, failed int64) {
	t.Helper()
	srvBus, cliBus := open(t, url, exchange), open(t, url, exchange)
	srv := rpc.NewServer(srvBus, rpc.ServerConfig{Interface: iface, Host: "h"})
	rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) { m := *n + 1; return &m, nil })
	rpc.Handle(srv, keep, l.handle)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := rpc.NewClient(cliBus, rpc.ClientConfig{})
	var next, done, bad atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := int(next.Add(1))
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // longer than any restart takes
				if err := rpc.Cast(ctx, client, keep, "h", &n); err != nil {
					t.Errorf("cast %d: %v", n, err)
				} else {
					l.mu.Lock()
					l.sent[n] = true
					l.mu.Unlock()
				}
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
				m, err := rpc.Call(ctx, client, add, rpc.Any, &n)
				cancel()
				switch {
				case err == nil && *m != n+1:
					t.Errorf("call %d was answered with %d", n, *m)
				case err == nil:
					done.Add(1)
				default:
					bad.Add(1)
					switch fault.CodeOf(err) {
					case fault.Unknown, fault.Unavailable, fault.Timeout:
					default:
						t.Errorf("call %d: %v, want Unknown, Unavailable or Timeout", n, err)
					}
				}
			}
		})
	}
	wg.Wait()
	l.wait(t)
	if _, err := rpc.Call(t.Context(), client, add, "h", new(int)); err != nil {
		t.Errorf("a call after the load: %v", err)
	}
	_ = client.Close() // never fails
	if err := srv.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	return done.Load(), bad.Load()
}

func newLedger() *ledger {
	return &ledger{sent: make(map[int]bool), got: make(map[int]int), more: make(chan struct{}, 1)}
}

// TestCutSockets: the connections are reset repeatedly under load. No confirmed cast of an AtLeastOnce method is lost.
func TestCutSockets(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	p, via := proxyTo(t, url)
	stop := make(chan struct{})
	l := newLedger()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stop)
		for cuts, seen := 0, 0; cuts < 5; {
			if err := waittest.Poll(time.Minute, func() error {
				if n := l.count(); n > seen {
					seen = n
					return nil
				}
				return errors.New("nothing was sent since the last cut")
			}); err != nil {
				t.Error(err)
				return
			}
			waittest.Spend(300*time.Millisecond, "the work between two faults") // lets some of the work be done
			if p.cut() > 0 {
				cuts++
			}
		}
	})
	calls, failed := load(t, via, "cut."+t.Name(), l, stop)
	wg.Wait()
	t.Logf("%d casts, %d calls, %d calls failed", len(l.sent), calls, failed)
	if len(l.sent) == 0 || calls == 0 {
		t.Error("nothing was sent")
	}
}

// TestBrokerKilled: the broker is killed under load and restarted. No confirmed cast is lost.
func TestBrokerKilled(t *testing.T) {
	t.Parallel()
	broker := envtest.RabbitMQ(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	l := newLedger()
	wg.Go(func() {
		defer close(stop)
		for range 50 { // some casts are handled before the broker is killed
			<-l.more
		}
		broker.Kill()
		if err := broker.Restart(t.Context()); err != nil {
			t.Errorf("restart the broker: %v", err)
		}
		for range 50 {
			select {
			case <-l.more:
			case <-time.After(30 * time.Second):
				t.Error("no cast was handled after the broker came back")
				return
			}
		}
	})
	calls, failed := load(t, broker.URL, "kill", l, stop)
	wg.Wait()
	t.Logf("%d casts, %d calls, %d calls failed", len(l.sent), calls, failed)
}

// TestLateConsumer: a queue is deleted, and its consumer reconnects later than the publisher. The publisher waits for the consumer.
func TestLateConsumer(t *testing.T) {
	t.Parallel()
	broker := envtest.RabbitMQ(t)
	pSrv, viaSrv := proxyTo(t, broker.URL)
	pCli, viaCli := proxyTo(t, broker.URL)
	srvBus, cliBus := open(t, viaSrv, "late"), open(t, viaCli, "late")
	srv := rpc.NewServer(srvBus, rpc.ServerConfig{Interface: iface, Host: "h"})
	l := newLedger()
	rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) { m := *n + 1; return &m, nil })
	rpc.Handle(srv, keep, l.handle)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	client := rpc.NewClient(cliBus, rpc.ClientConfig{})
	defer client.Close()
	n := 7
	if err := rpc.Cast(t.Context(), client, keep, "h", &n); err != nil {
		t.Fatal(err)
	}
	pSrv.stall()
	pSrv.cut()
	queues, err := broker.Ctl(t.Context(), "list_queues", "name")
	if err != nil {
		t.Fatal(err)
	}
	for q := range strings.FieldsSeq(queues) {
		if !strings.HasPrefix(q, "late.") || strings.HasPrefix(q, "late.reply.") {
			continue
		}
		if _, err := broker.Ctl(t.Context(), "delete_queue", q); err != nil && !strings.Contains(err.Error(), "not found") { // the queue may have been deleted with its connection
			t.Fatal(err)
		}
	}
	pCli.cut()
	within(t, "the publisher is back", cliBus.Check)
	time.AfterFunc(time.Second, pSrv.resume)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := rpc.Cast(ctx, client, keep, "h", &n); err != nil {
		t.Errorf("cast: %v", err)
	}
	if m, err := rpc.Call(ctx, client, add, "h", &n); err != nil || *m != 8 {
		t.Errorf("call: %v, %v", m, err)
	}
}

// TestBadBroker: New and Start say what is wrong with a URL or a broker, at once or after ConnectTimeout. The error never contains the
// password.
func TestBadBroker(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	at := url[strings.LastIndex(url, "@")+1:]
	const password = "s3cr3t-pw"
	tests := []struct {
		name, url string
		want      fault.Code
		says      string
	}{
		{"no broker", "amqp://u:" + password + "@127.0.0.1:1/", fault.Unavailable, "127.0.0.1:1"},
		{"wrong password", "amqp://guest:" + password + "@" + at, fault.Unauthenticated, "127.0.0.1"},
		{"wrong scheme", "http://u:" + password + "@" + at, fault.Invalid, "http"},
		{"no host", "amqp://u:" + password + "@/", fault.Invalid, "host"},
		{"not a URL", "amqp://u:" + password + "%zz@h/", fault.Invalid, "URL 1 of 1"},
		{"bad port", "amqp://u:" + password + "@h:x/", fault.Invalid, "URL 1 of 1"},
		{"empty", "", fault.Invalid, "scheme"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timeout := 300 * time.Millisecond
			if tt.want == fault.Unauthenticated {
				timeout = 10 * time.Second // RabbitMQ takes 3 s to refuse a password
			}
			b, err := amqpbus.New(amqpbus.Config{URLs: []string{tt.url}, ConnectTimeout: timeout})
			if err == nil {
				err = b.Start(t.Context())
			}
			if fault.CodeOf(err) != tt.want || err == nil || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("error %v (%v), want %v with %q", err, fault.CodeOf(err), tt.want, tt.says)
			}
			if strings.Contains(fmt.Sprint(err), password) {
				t.Errorf("the error has the password: %v", err)
			}
		})
	}
}

// TestAway: while the broker cannot be reached, a cast fails at its deadline, and Check fails. When the broker is back, both
// connections are restored.
func TestAway(t *testing.T) {
	t.Parallel()
	broker := envtest.RabbitMQ(t)
	b := open(t, broker.URL, "away")
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	broker.Kill()
	client := rpc.NewClient(b, rpc.ClientConfig{})
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := rpc.Cast(ctx, client, keep, "h", new(int))
	if c := fault.CodeOf(err); c != fault.Timeout && c != fault.Unknown {
		t.Errorf("cast: %v, want Timeout", err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Check: %v, want Unavailable", err)
	}
	if err := broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := rpc.Cast(ctx, client, keep, "absent", new(int)); !errors.Is(err, rpc.ErrNoConsumer) {
		t.Errorf("cast after the broker came back: %v, want ErrNoConsumer", err)
	}
	waittest.Succeeds(t, "the other connection to be restored", func() error { return b.Check(ctx) })
}

// TestFanoutBesideOthers: the first fanout on a topic declares an exchange, while other goroutines publish on the same channel. The
// bus must not declare the exchange on that channel, because amqp091 would write frames of the declaration between the frames of a
// message.
func TestFanoutBesideOthers(t *testing.T) {
	t.Parallel()
	b := openWith(t, amqpbus.Config{URLs: []string{envtest.URL(t, testenv.AMQPVar)}, Exchange: "beside." + strings.ToLower(rand.Text()), Channels: 1})
	if err := b.CreateTopic(t.Context(), "casts"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var ended atomic.Bool
	for g := range 4 {
		wg.Go(func() {
			for n := 0; !ended.Load(); n++ {
				if err := b.Publish(t.Context(), "casts", rpctest.Message(fmt.Sprintf("%d-%d", g, n), "cast a.b 1.0 at-most-once", "1")); err != nil {
					t.Errorf("a cast beside fanouts: %v", err)
					return
				}
			}
		})
	}
	for n := range 200 {
		if err := b.Publish(t.Context(), fmt.Sprintf("topic%d", n), rpctest.Message(fmt.Sprintf("f-%d", n), "fanout a.b 1.0 at-most-once", "1")); err != nil {
			t.Errorf("fanout %d: %v", n, err)
			break
		}
	}
	ended.Store(true)
	wg.Wait()
}

// TestCloseBeforeConfirm: if RabbitMQ may have accepted a message when the bus is closed, Publish returns Unknown. ErrClosed would say
// that the message was not sent.
func TestCloseBeforeConfirm(t *testing.T) {
	t.Parallel()
	p, url := proxyTo(t, envtest.URL(t, testenv.AMQPVar))
	b := open(t, url, "close."+strings.ToLower(rand.Text()))
	if err := b.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	once := sync.Once{}
	p.mu.Lock()
	p.look = func(data []byte) { // the message passes, but RabbitMQ's answer does not
		if bytes.Contains(data, []byte("marker")) {
			once.Do(func() { p.stall(); close(sent) })
		}
	}
	p.mu.Unlock()
	outcome := make(chan error, 1)
	go func() {
		m := &bus.Message{ID: "1", Kind: bus.Cast, Interface: "i", Method: "m", Durable: true, Payload: []byte(`"marker"`)}
		outcome <- b.Publish(t.Context(), "t", m)
	}()
	<-sent
	_ = b.Close()
	if err := <-outcome; bus.OutcomeOf(err) != bus.Unknown {
		t.Errorf("Publish: %v, want Unknown", err)
	}
}
