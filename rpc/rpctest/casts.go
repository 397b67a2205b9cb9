package rpctest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

func testCast(b *bench) {
	got := make(chan int, 10)
	register := func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) { got <- n.N; return nil, nil })
	}
	first := b.serve("a", 0, register)
	b.serve("b", 0, register)
	c := b.newClient()
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 1}); err != nil {
		b.Fatal(err)
	}
	if n := receiveValue(b, got, "the cast"); n != 1 {
		b.Errorf("got %d, want 1", n)
	}
	if err := first.Stop(b.ctx()); err != nil {
		b.Fatal(err)
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 2}); err != nil {
		b.Fatalf("cast to a server that is down: %v", err)
	}
	b.serve("a", 0, register)
	if n := receiveValue(b, got, "the cast to the server that was down"); n != 2 {
		b.Errorf("got %d, want 2", n)
	}
	// One more cast shows that no copy of the earlier casts is queued before it.
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 3}); err != nil {
		b.Fatal(err)
	}
	if n := receiveValue(b, got, "the last cast"); n != 3 {
		b.Errorf("got %d, want 3", n)
	}
}

func testFanout(b *bench) {
	ev := rpc.Method[note, rpc.None]{Interface: iface, Name: "event", Since: rpc.Version{Major: 1}}
	c := b.newClient()
	if err := rpc.Fanout(b.ctx(), c, ev, &note{}); err != nil {
		b.Errorf("without a server: %v", err)
	}
	got := make(chan string, 10)
	for _, host := range []string{"a", "b", "c"} {
		b.serve(host, 0, func(s *rpc.Server) {
			rpc.Handle(s, ev, func(_ context.Context, n *note) (*rpc.None, error) {
				got <- fmt.Sprint(host, n.N)
				return nil, nil
			})
		})
	}
	seen := map[string]int{}
	for i := range 2 {
		if err := rpc.Fanout(b.ctx(), c, ev, &note{N: i}); err != nil {
			b.Fatal(err)
		}
		for range 3 {
			seen[receiveValue(b, got, "the fanout")]++
		}
	}
	want := map[string]int{"a0": 1, "b0": 1, "c0": 1, "a1": 1, "b1": 1, "c1": 1}
	if diff := cmp.Diff(want, seen); diff != "" {
		b.Errorf("copies (-want +got):\n%s", diff)
	}
}

func testSlots(b *bench) {
	const slots = 3
	var now, most atomic.Int64
	gate, entered := make(chan struct{}), make(chan string, 100)
	handler := func(host string) func(*rpc.Server) {
		return func(s *rpc.Server) {
			rpc.Handle(s, keep, func(_ context.Context, _ *note) (*rpc.None, error) {
				n := now.Add(1)
				for {
					if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
						break
					}
				}
				entered <- host
				if host == "busy" {
					<-gate
				}
				now.Add(-1)
				return nil, nil
			})
		}
	}
	b.serve("busy", slots, handler("busy"))
	c := b.newClient()
	const total = 4 * slots
	for i := range total {
		if err := rpc.Cast(b.ctx(), c, keep, rpc.Any, &note{N: i}); err != nil {
			b.Fatal(err)
		}
	}
	for range slots {
		receiveValue(b, entered, "the first handlers")
	}
	b.serve("idle", slots, handler("idle"))
	for range total - slots {
		if host := receiveValue(b, entered, "the rest at the idle server"); host != "idle" {
			b.Errorf("a server without a free slot got a message")
		}
	}
	close(gate)
	if n := most.Load(); n > 2*slots {
		b.Errorf("%d handlers ran at once, want at most %d", n, 2*slots)
	}
}

func testBusy(b *bench) {
	const slots, total = 3, 30
	gate, entered := make(chan struct{}), make(chan string, total)
	handler := func(host string) func(*rpc.Server) {
		return func(s *rpc.Server) {
			rpc.Handle(s, echo, func(_ context.Context, n *note) (*note, error) {
				entered <- host
				if host == "busy" {
					<-gate
				}
				return n, nil
			})
		}
	}
	b.serve("busy", slots, handler("busy"))
	c := b.newClient()
	var calls []*rpc.Pending[note]
	for i := range total {
		p, err := rpc.Go(b.ctx(), c, echo, rpc.Any, &note{N: i})
		if err != nil {
			b.Fatal(err)
		}
		calls = append(calls, p)
	}
	for range slots {
		receiveValue(b, entered, "the first handlers")
	}
	b.serve("idle", slots, handler("idle"))
	for range total - slots {
		if host := receiveValue(b, entered, "the rest at the idle server"); host != "idle" {
			b.Errorf("a server without a free slot got a call")
		}
	}
	close(gate)
	for i, p := range calls {
		if n, err := p.Wait(b.ctx()); err != nil || n.N != i {
			b.Errorf("call %d: %v, %v", i, n, err)
		}
	}
}

func testRedelivery(b *bench) {
	got := make(chan int, 10)
	var attempts atomic.Int64
	b.serve("a", 1, func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
			got <- n.N
			if n.N == 1 && attempts.Add(1) < 3 {
				return nil, fault.New(fault.Unavailable, "not yet")
			}
			if n.N == 2 {
				return nil, fault.New(fault.Invalid, "never")
			}
			return nil, nil
		})
	})
	c := b.newClient()
	for i := range 2 {
		if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: i + 1}); err != nil {
			b.Fatal(err)
		}
	}
	seen := map[int]int{}
	for range 4 {
		seen[receiveValue(b, got, "the deliveries")]++
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 3}); err != nil {
		b.Fatal(err)
	}
	seen[receiveValue(b, got, "the last delivery")]++
	if diff := cmp.Diff(map[int]int{1: 3, 2: 1, 3: 1}, seen); diff != "" {
		b.Errorf("deliveries (-want +got):\n%s", diff)
	}
}

func testRequeue(b *bench) {
	const total = 50
	ctx, cancel := context.WithCancel(b.ctx())
	first, err := b.server.Subscribe(ctx, bus.Subscription{Topic: "requeue", Slots: 10})
	if err != nil {
		b.Fatal(err)
	}
	for i := range total {
		if err := b.client.Publish(b.ctx(), "requeue", rawMessage(b, i)); err != nil {
			b.Fatal(err)
		}
	}
	seen := map[string]int{}
	for range 5 {
		m := receiveValue(b, first, "a message")
		seen[string(m.Payload)]++
		endDelivery(b, m, true)
	}
	held := receiveValue(b, first, "a message to requeue")
	cancel()
	for m := range first { // closed when the subscription has ended
		endDelivery(b, m, false)
	}
	endDelivery(b, held, false)
	second, err := b.server.Subscribe(b.ctx(), bus.Subscription{Topic: "requeue", Slots: 10})
	if err != nil {
		b.Fatal(err)
	}
	for range total - 5 {
		m := receiveValue(b, second, "the rest")
		seen[string(m.Payload)]++
		endDelivery(b, m, true)
	}
	for i := range total {
		if n := seen[strconv.Itoa(i)]; n != 1 {
			b.Errorf("message %d was delivered %d times, want once", i, n)
		}
	}
}

func testRestarts(b *bench) {
	const total, lives, slots = 1500, 25, 8
	var mu sync.Mutex
	ran := map[int]int{}
	all := make(chan struct{})
	handle := func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
			waittest.Spend(5*time.Millisecond, "the work of the cast")
			mu.Lock()
			defer mu.Unlock()
			if ran[n.N]++; len(ran) == total && ran[n.N] == 1 {
				close(all)
			}
			return nil, nil
		})
	}
	c := b.newClient()
	var stats rpc.ServerStats
	for life := range lives {
		s := rpc.NewServer(b.server, rpc.ServerConfig{Interface: iface, Host: "a", MaxInFlight: slots})
		handle(s)
		if err := s.Start(b.ctx()); err != nil {
			b.Fatal(err)
		}
		if life == 0 {
			var wg sync.WaitGroup
			for g := range 16 {
				wg.Go(func() {
					for n := g; n < total; n += 16 {
						if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: n}); err != nil {
							b.Errorf("cast %d: %v", n, err)
						}
					}
				})
			}
			wg.Wait()
		}
		waittest.Spend(10*time.Millisecond, "the life of the server") // the server runs for this time
		if err := s.Stop(b.ctx()); err != nil {
			b.Errorf("stop: %v", err)
		}
		st := s.Stats()
		stats.Redelivered += st.Redelivered
		stats.DeadLettered += st.DeadLettered
	}
	mu.Lock()
	b.Logf("%d of %d casts ran in %d lives of the server", len(ran), total, lives)
	mu.Unlock()
	last := b.serve("a", slots, handle)
	receiveValue(b, all, "the last cast")
	st := last.Stats()
	if n := stats.Redelivered + st.Redelivered; n > 0 {
		b.Errorf("%d casts were counted as lost with a server, although each server was stopped in order", n)
	}
	if n := stats.DeadLettered + st.DeadLettered; n > 0 {
		b.Errorf("%d dead letters", n)
	}
	mu.Lock()
	defer mu.Unlock()
	for n, times := range ran {
		if times != 1 {
			b.Errorf("cast %d ran %d times", n, times)
		}
	}
}

func testDuplicate(b *bench) {
	got := make(chan int, 10)
	srv := b.serve("a", 1, func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) { got <- n.N; return nil, nil })
	})
	send := func(id string, n int) {
		m := Message(id, "cast suite.keep 1.3 at-least-once", fmt.Sprintf(`{"N":%d}`, n))
		if err := b.client.Publish(b.ctx(), "suite.a", m); err != nil {
			b.Fatal(err)
		}
	}
	send("twice", 1)
	send("twice", 1)
	send("once", 2)
	for _, want := range []int{1, 2} {
		if n := receiveValue(b, got, "the messages"); n != want {
			b.Errorf("got %d, want %d", n, want)
		}
	}
	waittest.Until(b, "a duplicate is counted", func() bool { return srv.Stats().Duplicate > 0 }) // a bus without order may deliver it last
	if n := srv.Stats().Duplicate; n != 1 {
		b.Errorf("%d duplicates were counted, want 1", n)
	}
}

func testDead(b *bench) {
	var fixed atomic.Bool
	got := make(chan int, 10)
	srv := startServer(b, b.server, rpc.ServerConfig{Interface: iface, Host: "a", MaxDeliveries: 2}, func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
			if !fixed.Load() {
				return nil, fault.New([]fault.Code{fault.Exhausted, fault.Invalid}[n.N%2], "not %d", n.N)
			}
			got <- n.N
			return nil, nil
		})
	})
	c := b.newClient()
	for n := range 2 {
		if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: n}); err != nil {
			b.Fatal(err)
		}
	}
	garbage := Message("garbage", "what is this", "?")
	if err := b.client.Publish(b.ctx(), "suite.a", garbage); err != nil {
		b.Fatal(err)
	}
	waittest.Until(b, "three dead letters", func() bool { return srv.Stats().DeadLettered >= 3 })
	// A broker may refuse the dead letter, as RabbitMQ does while a new queue has no
	// leader. The message is then delivered once more.
	if st := srv.Stats(); st.DeadLettered != 3 || st.Malformed < 1 || st.Redelivered < 1 {
		b.Fatalf("%+v, want 3 dead letters, 1 malformed, 1 redelivered, or more of each", st)
	}
	seen := map[string]rpc.DeadLetter{}
	show := func(l *rpc.DeadLetter) rpc.Verdict { seen[l.Info.Method+string(l.Payload)] = *l; return rpc.Keep }
	if err := rpc.DeadLetters(b.ctx(), b.client, iface, show); err != nil {
		b.Fatal(err)
	}
	for key, want := range map[string]rpc.DeadLetter{
		`keep{"N":0,"Text":""}`: {Reason: "Exhausted", Failures: 2},
		`keep{"N":1,"Text":""}`: {Reason: "Invalid", Failures: 1},
		"?":                     {ID: "garbage", Reason: "malformed"},
	} {
		l := seen[key]
		if !strings.Contains(l.Reason, want.Reason) || l.Failures != want.Failures || l.Topic != "suite.a" || l.Server != "a" ||
			want.ID != "" && l.ID != want.ID || l.DiedAt.IsZero() {
			b.Errorf("dead letter %s: %+v, want %+v", key, l, want)
		}
	}
	fixed.Store(true)
	n := 0
	err := rpc.DeadLetters(b.ctx(), b.client, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		n++
		if l.Info.Method == "keep" {
			return rpc.Requeue
		}
		return rpc.Drop
	})
	if err != nil || n != 3 {
		b.Fatalf("%d dead letters, error %v; want the 3 that were kept", n, err)
	}
	if a := receiveValue(b, got, "a requeued dead letter") + receiveValue(b, got, "the other one"); a != 1 {
		b.Errorf("the sum of the numbers in the requeued messages is %d, want 1", a)
	}
	if err := rpc.DeadLetters(b.ctx(), b.client, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		b.Errorf("dead letter %s still exists", l.ID)
		return rpc.Keep
	}); err != nil {
		b.Error(err)
	}
}
