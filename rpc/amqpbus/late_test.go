package amqpbus_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// lateVar is an environment variable. It sets how long TestLateConfirm stalls the link, such as 2m. Default: one period of
// 14 s.
const lateVar = "ARMATURE_TEST_LATE"

// publishes returns a function that returns how many messages were published to a queue. The function counts with the
// trace of the broker.
func publishes(t *testing.T, url string) func(queue string) int {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err == nil {
		err = ch.QueueBind(q.Name, "publish.#", "amq.rabbitmq.trace", false, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	counts := map[string]int{}
	go func() {
		for d := range seen {
			keys, _ := d.Headers["routing_keys"].([]any)
			mu.Lock()
			for _, key := range keys {
				counts[fmt.Sprint(key)]++
			}
			mu.Unlock()
		}
	}()
	return func(queue string) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[queue]
	}
}

// TestLateConfirm: the network of a server stalls for 12.5 s of every 14 s, so confirmations are very late, but the
// connection stays open. Casts do not multiply: each message has at most one copy for each delivery attempt, and one for
// each lost connection. Attempts are counted, so the retries end. Each message is handled once or becomes one dead letter.
func TestLateConfirm(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes half a minute: left out with -short")
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
	broker := envtest.RabbitMQ(t)
	if _, err := broker.Ctl(t.Context(), "trace_on"); err != nil {
		t.Fatal(err)
	}
	published := publishes(t, broker.URL)
	p, via := proxyTo(t, broker.URL)
	srvBus, cliBus := open(t, via, "late"), open(t, broker.URL, "late")
	var mu sync.Mutex
	runs, done := map[int]int{}, map[int]int{}
	srv := rpc.NewServer(srvBus, rpc.ServerConfig{Interface: iface, Host: "h", MaxDeliveries: tries})
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
	begin := time.Now()
	for n := range casts {
		m := rpctest.Message(fmt.Sprint("late-", n), "cast fault.keep 1.0 at-least-once", strconv.Itoa(n))
		if err := cliBus.Publish(t.Context(), "fault.h", m); err != nil {
			t.Fatal(err)
		}
		waittest.Spend(length/2/casts, "the time between two casts")
	}
	waittest.Pass(t, time.Until(begin.Add(length)), "the network stalls most of the time")
	close(stop)
	wg.Wait()
	// All dead letters are published before they are read: a reader that ends while a dead letter arrives publishes this one again.
	waittest.Until(t, "all dead letters", func() bool { return published("late.fault.dlq") >= casts/2 })
	dead, letters := published("late.fault.dlq"), map[string]int{}
	for end := time.Now().Add(40 * time.Second); len(letters) < casts/2 && time.Now().Before(end); {
		if err := rpc.DeadLetters(t.Context(), cliBus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
			letters[l.ID]++
			if l.Failures != tries {
				t.Errorf("dead letter %s has %d failures, want %d", l.ID, l.Failures, tries)
			}
			return rpc.Drop
		}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := srv.Stop(ctx); err != nil {
		t.Error(err)
	}
	lost := int(srvBus.Capabilities().Stats().Reconnects) * casts
	copies := published("late.fault.h")
	t.Logf("%d copies, %d dead letters published, %v lost connections, runs %v, letters %v", copies, dead, srvBus.Capabilities().Stats().Reconnects, runs, letters)
	if most := casts/2 + casts/2*tries + lost; copies > most {
		t.Errorf("%d copies of %d casts, want at most %d", copies, casts, most)
	}
	if dead > casts/2+lost {
		t.Errorf("%d dead letters were published, want %d", dead, casts/2)
	}
	for n := range casts {
		id := fmt.Sprint("late-", n)
		if n%2 == 1 && (done[n] != 1 || letters[id] != 0) {
			t.Errorf("cast %d was handled %d times and has %d dead letters, want 1 and 0", n, done[n], letters[id])
		}
		if n%2 == 0 && (runs[n] < tries || runs[n] > tries+int(srvBus.Capabilities().Stats().Reconnects) || letters[id] != 1) {
			t.Errorf("cast %d was handled %d times and has %d dead letters, want %d and 1", n, runs[n], letters[id], tries)
		}
	}
	left, err := broker.Ctl(t.Context(), "list_queues", "name", "messages")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(left) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[0], "late.") && f[1] != "0" {
			t.Errorf("queue %s has %s messages at the end", f[0], f[1])
		}
	}
}
