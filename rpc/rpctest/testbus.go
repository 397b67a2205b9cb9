package rpctest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wm "github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
)

// Opener gives a case of [TestBus] the two ends of a bus on which nobody else
// is: what a server's process and what a client's process would open. They may
// be the same value. The opener closes them when the test ends.
type Opener func(t *testing.T) (server, client rpc.Bus)

// TestBus runs every rule that a bus has to keep as a sub-test. A failure
// prints the rule. without names the rules that a bus is known not to keep; a
// name that is no rule's fails.
func TestBus(t *testing.T, open Opener, without ...string) { //nolint:tparallel // whoever calls it decides
	t.Helper()
	for _, name := range without {
		if !slices.ContainsFunc(rules, func(r rule) bool { return r.name == name }) {
			t.Errorf("there is no rule %q to do without", name)
		}
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if slices.Contains(without, r.name) {
				t.Skipf("this bus does not keep the rule: %s", r.rule)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the rule: %s", r.rule)
				}
			})
			server, client := open(t)
			r.run(&bench{T: t, server: server, client: client})
		})
	}
}

var iface = &rpc.Interface{Name: "suite", Version: rpc.Version{Major: 1, Minor: 3}}

type note struct {
	N    int
	Text string
}

var (
	echo     = rpc.Method[note, note]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	keep     = rpc.Method[note, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1, Minor: 3}, Delivery: rpc.AtLeastOnce}
	errNoWay = fault.Sentinel(fault.Precondition, "NoWay", "no way")
)

// patience bounds every wait of the suite. A bus that needs so long is broken.
const patience = 20 * time.Second

type bench struct {
	*testing.T
	server, client rpc.Bus
}

func (b *bench) serve(host string, slots int, register func(*rpc.Server)) *rpc.Server {
	b.Helper()
	return start(b, b.server, rpc.ServerConfig{Interface: iface, Host: host, MaxInFlight: slots}, register)
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	b.Cleanup(cancel)
	return ctx
}

func (b *bench) newClient() *rpc.Client { return newClient(b, b.client, rpc.ClientConfig{}) }

// receive waits for a value.
func receive[T any](b *bench, ch <-chan T, what string) T {
	b.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		b.Fatalf("%s did not happen within %v", what, patience)
		panic("unreachable")
	}
}

func message(b *bench, n int) *wm.Message {
	m := wm.NewMessageWithContext(b.ctx(), fmt.Sprintf("id-%d", n), wm.Payload(strconv.Itoa(n)))
	m.Metadata[rpc.MetaRPC] = "cast suite.raw 1.0 at-least-once"
	return m
}

func settle(b *bench, m *wm.Message, ack bool) {
	b.Helper()
	if err := rpc.Settle(m, ack); err != nil {
		b.Errorf("settle message %s: %v", m.UUID, err)
	}
}

func echoes(_ context.Context, n *note) (*note, error) { return n, nil }

type rule struct {
	name, rule string
	run        func(*bench)
}

var rules = []rule{
	{"call", "a call reaches a server and its result comes back, unchanged and to the caller that asked", testCall},
	{"go", "Go returns before the result is there, and the result comes back by message", testGo},
	{"errors", "an error comes back with its code, reason and text, marked as the peer's", testErrors},
	{"context", "the caller's deadline and its request context reach the handler, its cancellation does not stop the call from being counted as canceled", testContext},
	{"cast", "a cast reaches one server only, and one that is sent before the server is back waits for it", testCast},
	{"fanout", "a fanout reaches every server, and none is no error", testFanout},
	{"noconsumer", "a message for a topic that does not exist fails at once, and not executed", testNoConsumer},
	{"expired", "a call that waits until its caller has given up is never run", testExpired},
	{"slots", "a busy server takes no more than it has slots for; an idle one gets the rest", testSlots},
	{"redelivery", "a message that is given back is delivered again, and one that is acknowledged is not", testRedelivery},
	{"requeue", "what a subscriber has not received when its subscription ends goes to the next", testRequeue},
	{"stop", "a server that stops answers what it has taken", testStop},
	{"load", "nothing is lost, doubled or mixed up under load", testLoad},
	{"cancel", "the caller's cancellation reaches the handler's context", testCancel},
	{"beat", "a long call is kept alive by its server's signs of life, and fails as silent without", testBeat},
	{"gone", "when the last server of a topic has left, a call fails at once, and a cast waits", testGone},
	{"duplicate", "a message that comes twice is handled once", testDuplicate},
	{"dead", "what no server can do becomes a dead letter, which can be shown, sent again and dropped", testDead},
	{"describe", "every server answers ping and describe", testDescribe},
	{"close", "a closed bus fails with ErrClosed, at once, and may be closed again", testClose},
}

func testCall(b *bench) {
	b.serve("a", 0, func(s *rpc.Server) { rpc.Handle(s, echo, echoes) })
	c := b.newClient()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			want := &note{N: i, Text: strings.Repeat("ü€\x00", 1000)}
			host := []string{rpc.Any, "a"}[i%2]
			got, err := rpc.Call(b.ctx(), c, echo, host, want)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				b.Errorf("call %d: error %v (-want +got):\n%s", i, err, diff)
			}
		})
	}
	wg.Wait()
}

func testGo(b *bench) {
	gate := make(chan struct{})
	b.serve("a", 0, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(ctx context.Context, n *note) (*note, error) {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return n, nil
		})
	})
	p, err := rpc.Go(b.ctx(), b.newClient(), echo, rpc.Any, &note{N: 7})
	if err != nil {
		b.Fatal(err)
	}
	select {
	case <-p.Done():
		b.Error("the result is there before the handler returned")
	default:
	}
	close(gate)
	if got, err := p.Wait(b.ctx()); err != nil || got.N != 7 {
		b.Errorf("result %v, error %v; want 7", got, err)
	}
}

func testErrors(b *bench) {
	b.serve("a", 0, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, n *note) (*note, error) {
			if n.N == 0 {
				panic("no number")
			}
			return nil, fmt.Errorf("note %d: %w", n.N, errNoWay)
		})
	})
	c := b.newClient()
	_, err := rpc.Call(b.ctx(), c, echo, rpc.Any, &note{N: 3})
	if !errors.Is(err, errNoWay) || !errors.Is(err, fault.Precondition) || !fault.IsRemote(err) || !strings.Contains(err.Error(), "note 3: no way") {
		b.Errorf("error %v (remote %v), want the peer's errNoWay with its text", err, fault.IsRemote(err))
	}
	if _, err = rpc.Call(b.ctx(), c, echo, rpc.Any, &note{}); fault.CodeOf(err) != fault.Internal || !fault.IsRemote(err) {
		b.Errorf("after a panic: %v, want the peer's Internal", err)
	}
	unknown := rpc.Method[note, note]{Interface: iface, Name: "unknown", Since: rpc.Version{Major: 1}}
	if _, err = rpc.Call(b.ctx(), c, unknown, rpc.Any, &note{}); !errors.Is(err, rpc.ErrNoSuchMethod) || !fault.IsRemote(err) {
		b.Errorf("unknown method: %v, want ErrNoSuchMethod from the peer", err)
	}
	newer := echo
	newer.Since.Minor = iface.Version.Minor + 1
	if _, err = rpc.Call(b.ctx(), c, newer, rpc.Any, &note{}); !errors.Is(err, rpc.ErrUnsupportedVersion) || !fault.IsRemote(err) {
		b.Errorf("newer method: %v, want ErrUnsupportedVersion from the peer", err)
	}
}

func testContext(b *bench) {
	type seen struct {
		deadline time.Time
		req      reqctx.Request
	}
	got := make(chan seen, 1)
	b.serve("a", 0, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(ctx context.Context, n *note) (*note, error) {
			d, _ := ctx.Deadline()
			got <- seen{d, reqctx.From(ctx)}
			<-ctx.Done() // the deadline passes
			<-time.After(50 * time.Millisecond)
			return n, nil
		})
	})
	want := reqctx.Request{
		ID: reqctx.NewID(), GlobalID: reqctx.NewID(), UserID: "u", ProjectID: "p", Roles: []string{"a,b", "c"},
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	deadline := time.Now().Add(500 * time.Millisecond)
	ctx, cancel := context.WithDeadline(reqctx.With(b.ctx(), want), deadline)
	defer cancel()
	_, err := rpc.Call(ctx, b.newClient(), echo, rpc.Any, &note{})
	if fault.CodeOf(err) != fault.Timeout || fault.IsRemote(err) {
		b.Errorf("error %v, want the client's own Timeout", err)
	}
	s := receive(b, got, "the call")
	if d := s.deadline.Sub(deadline).Abs(); d > time.Millisecond {
		b.Errorf("the handler's deadline is off by %v", d)
	}
	if diff := cmp.Diff(want, s.req); diff != "" {
		b.Errorf("request context (-want +got):\n%s", diff)
	}
}

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
	if n := receive(b, got, "the cast"); n != 1 {
		b.Errorf("got %d, want 1", n)
	}
	if err := first.Stop(b.ctx()); err != nil {
		b.Fatal(err)
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 2}); err != nil {
		b.Fatalf("cast to a server that is away: %v", err)
	}
	b.serve("a", 0, register)
	if n := receive(b, got, "the cast to the server that was away"); n != 2 {
		b.Errorf("got %d, want 2", n)
	}
	// A further message behind it shows that no third copy of the others is on its way.
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 3}); err != nil {
		b.Fatal(err)
	}
	if n := receive(b, got, "the last cast"); n != 3 {
		b.Errorf("got %d, want 3", n)
	}
}

func testFanout(b *bench) {
	ev := rpc.Method[note, rpc.None]{Interface: iface, Name: "event", Since: rpc.Version{Major: 1}}
	c := b.newClient()
	if err := rpc.Fanout(b.ctx(), c, ev, &note{}); err != nil {
		b.Errorf("nobody listens: %v", err)
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
			seen[receive(b, got, "the fanout")]++
		}
	}
	want := map[string]int{"a0": 1, "b0": 1, "c0": 1, "a1": 1, "b1": 1, "c1": 1}
	if diff := cmp.Diff(want, seen); diff != "" {
		b.Errorf("copies (-want +got):\n%s", diff)
	}
}

func testNoConsumer(b *bench) {
	b.serve("a", 0, func(s *rpc.Server) { rpc.Handle(s, echo, echoes) })
	c := b.newClient()
	_, callErr := rpc.Call(b.ctx(), c, echo, "nobody", &note{})
	for what, err := range map[string]error{"call": callErr, "cast": rpc.Cast(b.ctx(), c, keep, "nobody", &note{})} {
		if !errors.Is(err, rpc.ErrNoConsumer) || fault.CodeOf(err) != fault.Unavailable {
			b.Errorf("%s: %v, want ErrNoConsumer, Unavailable", what, err)
		}
	}
	if _, err := rpc.Call(b.ctx(), c, echo, "a", &note{}); err != nil {
		b.Errorf("the next call, to one that is there: %v", err)
	}
}

func testExpired(b *bench) {
	var ran atomic.Int64
	entered, gate := make(chan struct{}, 1), make(chan struct{})
	b.serve("a", 1, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, n *note) (*note, error) {
			ran.Add(1)
			entered <- struct{}{}
			<-gate
			return n, nil
		})
		rpc.Handle(s, keep, func(context.Context, *note) (*rpc.None, error) { entered <- struct{}{}; return nil, nil })
	})
	c := b.newClient()
	busy, err := rpc.Go(b.ctx(), c, echo, "a", &note{})
	if err != nil {
		b.Fatal(err)
	}
	receive(b, entered, "the first call")
	short, cancel := context.WithTimeout(b.ctx(), 100*time.Millisecond)
	defer cancel()
	if _, err := rpc.Call(short, c, echo, "a", &note{}); fault.CodeOf(err) != fault.Timeout {
		b.Errorf("the call that waits: %v, want Timeout", err)
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{}); err != nil {
		b.Fatal(err)
	}
	close(gate)
	if _, err := busy.Wait(b.ctx()); err != nil {
		b.Errorf("the call that was running: %v", err)
	}
	receive(b, entered, "the cast behind the expired call")
	if n := ran.Load(); n != 1 {
		b.Errorf("the handler ran %d times, want 1", n)
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
		receive(b, entered, "the first handlers")
	}
	b.serve("idle", slots, handler("idle"))
	for range total - slots {
		if host := receive(b, entered, "the rest at the idle server"); host != "idle" {
			b.Errorf("a server without a free slot took a message")
		}
	}
	close(gate)
	if n := most.Load(); n > 2*slots {
		b.Errorf("%d handlers ran at once, want at most %d", n, 2*slots)
	}
}

func testRedelivery(b *bench) {
	got := make(chan int, 10)
	var tries atomic.Int64
	b.serve("a", 1, func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
			got <- n.N
			if n.N == 1 && tries.Add(1) < 3 {
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
		seen[receive(b, got, "the deliveries")]++
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{N: 3}); err != nil {
		b.Fatal(err)
	}
	seen[receive(b, got, "the last delivery")]++
	if diff := cmp.Diff(map[int]int{1: 3, 2: 1, 3: 1}, seen); diff != "" {
		b.Errorf("deliveries (-want +got):\n%s", diff)
	}
}

func testRequeue(b *bench) {
	const total = 50
	ctx, cancel := context.WithCancel(b.ctx())
	first, err := b.server.Subscribe(ctx, rpc.Subscription{Topic: "requeue", Slots: 10})
	if err != nil {
		b.Fatal(err)
	}
	for i := range total {
		if err := b.client.Publish("requeue", message(b, i)); err != nil {
			b.Fatal(err)
		}
	}
	seen := map[string]int{}
	for range 5 {
		m := receive(b, first, "a message")
		seen[string(m.Payload)]++
		settle(b, m, true)
	}
	held := receive(b, first, "a message to give back")
	cancel()
	for m := range first { // closed, because the subscription has ended
		settle(b, m, false)
	}
	settle(b, held, false)
	second, err := b.server.Subscribe(b.ctx(), rpc.Subscription{Topic: "requeue", Slots: 10})
	if err != nil {
		b.Fatal(err)
	}
	for range total - 5 {
		m := receive(b, second, "the rest")
		seen[string(m.Payload)]++
		settle(b, m, true)
	}
	for i := range total {
		if n := seen[strconv.Itoa(i)]; n != 1 {
			b.Errorf("message %d was taken %d times, want once", i, n)
		}
	}
}

func testStop(b *bench) {
	entered, gate := make(chan struct{}, 1), make(chan struct{})
	s := b.serve("a", 0, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(ctx context.Context, n *note) (*note, error) {
			entered <- struct{}{}
			select {
			case <-gate:
				return n, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	})
	p, err := rpc.Go(b.ctx(), b.newClient(), echo, "a", &note{N: 5})
	if err != nil {
		b.Fatal(err)
	}
	receive(b, entered, "the call")
	stopped := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { stopped <- s.Stop(b.ctx()) })
	select {
	case err := <-stopped:
		b.Fatalf("Stop did not wait for the handler: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if got, err := p.Wait(b.ctx()); err != nil || got.N != 5 {
		b.Errorf("a call in flight at Stop: %v, %v; want its answer", got, err)
	}
	if err := receive(b, stopped, "the end of Stop"); err != nil {
		b.Errorf("Stop: %v", err)
	}
}

func testLoad(b *bench) {
	const callers, each = 16, 50
	var casts sync.Map
	var handled atomic.Int64
	all := make(chan struct{})
	for _, host := range []string{"a", "b"} {
		b.serve(host, 8, func(s *rpc.Server) {
			rpc.Handle(s, echo, echoes)
			rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
				if _, dup := casts.LoadOrStore(n.N, true); dup {
					b.Errorf("cast %d was run twice although nothing failed", n.N)
				}
				if handled.Add(1) == callers*each {
					close(all)
				}
				return nil, nil
			})
		})
	}
	c := b.newClient()
	var wg sync.WaitGroup
	for g := range callers {
		wg.Go(func() {
			for i := range each {
				n := g*each + i
				got, err := rpc.Call(b.ctx(), c, echo, rpc.Any, &note{N: n})
				if err != nil || got.N != n {
					b.Errorf("call %d: %v, %v", n, got, err)
					return
				}
				if err := rpc.Cast(b.ctx(), c, keep, rpc.Any, &note{N: n}); err != nil {
					b.Errorf("cast %d: %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	receive(b, all, "the last of the casts")
	if n := c.Stats().Late; n != 0 {
		b.Errorf("%d replies came twice or late", n)
	}
}

func testClose(b *bench) {
	in, err := b.client.Subscribe(b.ctx(), rpc.Subscription{Topic: "close", Slots: 1})
	if err != nil {
		b.Fatal(err)
	}
	for range 2 {
		if err := b.client.Close(); err != nil {
			b.Errorf("Close: %v", err)
		}
	}
	if m, ok := <-in; ok {
		b.Errorf("message %v on the channel of a closed bus", m.UUID)
	}
	if err := b.client.Publish("close", message(b, 1)); !errors.Is(err, rpc.ErrClosed) {
		b.Errorf("Publish: %v, want ErrClosed", err)
	}
	if _, err := b.client.Subscribe(b.ctx(), rpc.Subscription{Topic: "close", Slots: 1}); !errors.Is(err, rpc.ErrClosed) {
		b.Errorf("Subscribe: %v, want ErrClosed", err)
	}
}

func testCancel(b *bench) {
	entered, ended := make(chan struct{}, 1), make(chan error, 1)
	srv := b.serve("a", 0, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(ctx context.Context, n *note) (*note, error) {
			entered <- struct{}{}
			select {
			case <-ctx.Done():
				ended <- ctx.Err()
			case <-time.After(patience):
				ended <- errors.New("it was not cancelled")
			}
			return n, nil
		})
	})
	c := b.newClient()
	for _, host := range []string{"a", rpc.Any} {
		ctx, cancel := context.WithCancel(b.ctx())
		p, err := rpc.Go(ctx, c, echo, host, &note{})
		if err != nil {
			b.Fatal(err)
		}
		receive(b, entered, "the call")
		cancel()
		if err := receive(b, ended, "the end of the handler"); !errors.Is(err, context.Canceled) {
			b.Errorf("the handler of a cancelled call to %q: %v", host, err)
		}
		if _, err := p.Wait(b.ctx()); fault.CodeOf(err) != fault.Canceled {
			b.Errorf("cancelled call: %v", err)
		}
	}
	if n := srv.Stats().Canceled; n != 2 {
		b.Errorf("%d calls were counted as cancelled, want 2", n)
	}
}

func testBeat(b *bench) {
	entered, gate := make(chan struct{}, 1), make(chan struct{})
	b.serve("a", 1, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(ctx context.Context, n *note) (*note, error) {
			entered <- struct{}{}
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return n, nil
		})
	})
	c := newClient(b, b.client, rpc.ClientConfig{Silence: 500 * time.Millisecond})
	start := time.Now()
	busy, err := rpc.Go(b.ctx(), c, echo, "a", &note{N: 1})
	if err != nil {
		b.Fatal(err)
	}
	receive(b, entered, "the first call")
	// It waits behind the other, in silence.
	_, err = rpc.Call(b.ctx(), c, echo, "a", &note{N: 2})
	if !errors.Is(err, rpc.ErrSilent) || fault.CodeOf(err) != fault.Unknown {
		b.Errorf("a call that nobody works on: %v, want ErrSilent", err)
	}
	select {
	case <-busy.Done():
		_, err := busy.Wait(b.ctx())
		b.Errorf("a call that is worked on ended: %v", err)
	case <-time.After(time.Until(start.Add(1500 * time.Millisecond))):
	}
	close(gate)
	if got, err := busy.Wait(b.ctx()); err != nil || got.N != 1 {
		b.Errorf("a call that was worked on: %v, %v", got, err)
	}
}

func testGone(b *bench) {
	register := func(s *rpc.Server) {
		rpc.Handle(s, echo, echoes)
		rpc.Handle(s, keep, func(context.Context, *note) (*rpc.None, error) { return nil, nil })
	}
	s := b.serve("a", 0, register)
	c := b.newClient()
	for _, host := range []string{"a", rpc.Any} {
		if _, err := rpc.Call(b.ctx(), c, echo, host, &note{}); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Stop(b.ctx()); err != nil {
		b.Fatal(err)
	}
	for _, host := range []string{"a", rpc.Any} {
		var err error
		for end := time.Now().Add(patience); time.Now().Before(end); { // the bus says how soon
			ctx, cancel := context.WithTimeout(b.ctx(), time.Second)
			start := time.Now()
			_, err = rpc.Call(ctx, c, echo, host, &note{})
			cancel()
			if errors.Is(err, rpc.ErrNoConsumer) && time.Since(start) < time.Second {
				break
			}
		}
		if !errors.Is(err, rpc.ErrNoConsumer) {
			b.Errorf("call to %q after the last server left: %v, want ErrNoConsumer", host, err)
		}
		if err := rpc.Cast(b.ctx(), c, keep, host, &note{}); err != nil {
			b.Errorf("cast to %q after the last server left: %v", host, err)
		}
	}
}

func testDuplicate(b *bench) {
	got := make(chan int, 10)
	srv := b.serve("a", 1, func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) { got <- n.N; return nil, nil })
	})
	send := func(id string, n int) {
		m := wm.NewMessageWithContext(b.ctx(), id, wm.Payload(fmt.Sprintf(`{"N":%d}`, n)))
		m.Metadata[rpc.MetaRPC] = "cast suite.keep 1.3 at-least-once"
		if err := b.client.Publish("suite.a", m); err != nil {
			b.Fatal(err)
		}
	}
	send("twice", 1)
	send("twice", 1)
	send("once", 2)
	for _, want := range []int{1, 2} {
		if n := receive(b, got, "the messages"); n != want {
			b.Errorf("got %d, want %d", n, want)
		}
	}
	if n := srv.Stats().Duplicate; n != 1 {
		b.Errorf("%d duplicates were counted, want 1", n)
	}
}

func testDead(b *bench) {
	var fixed atomic.Bool
	got := make(chan int, 10)
	srv := start(b, b.server, rpc.ServerConfig{Interface: iface, Host: "a", MaxTries: 2}, func(s *rpc.Server) {
		rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
			if !fixed.Load() {
				return nil, fault.New([]fault.Code{fault.Unavailable, fault.Invalid}[n.N%2], "not %d", n.N)
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
	garbage := wm.NewMessageWithContext(b.ctx(), "garbage", wm.Payload("?"))
	garbage.Metadata[rpc.MetaRPC] = "what is this"
	if err := b.client.Publish("suite.a", garbage); err != nil {
		b.Fatal(err)
	}
	for end := time.Now().Add(patience); srv.Stats().DeadLettered < 3 && time.Now().Before(end); {
		<-time.After(10 * time.Millisecond)
	}
	if st := srv.Stats(); st.DeadLettered != 3 || st.Malformed != 1 || st.Redelivered != 1 {
		b.Fatalf("%+v, want 3 dead letters, 1 malformed, 1 redelivered", st)
	}
	seen := map[string]rpc.DeadLetter{}
	show := func(l *rpc.DeadLetter) rpc.Verdict { seen[l.Info.Method+string(l.Payload)] = *l; return rpc.Keep }
	if err := rpc.DeadLetters(b.ctx(), b.client, iface, show); err != nil {
		b.Fatal(err)
	}
	for key, want := range map[string]rpc.DeadLetter{
		`keep{"N":0,"Text":""}`: {Reason: "Unavailable", Failures: 2},
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
		b.Fatalf("%d letters, error %v; want the 3 that were kept", n, err)
	}
	if a := receive(b, got, "a letter sent again") + receive(b, got, "the other"); a != 1 {
		b.Errorf("the sum of what was sent again is %d, want 1", a)
	}
	if err := rpc.DeadLetters(b.ctx(), b.client, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		b.Errorf("letter %s is still there", l.ID)
		return rpc.Keep
	}); err != nil {
		b.Error(err)
	}
}

func testDescribe(b *bench) {
	entered, gate := make(chan struct{}, 1), make(chan struct{})
	b.serve("a", 7, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, n *note) (*note, error) { entered <- struct{}{}; <-gate; return n, nil })
		rpc.Handle(s, keep, func(context.Context, *note) (*rpc.None, error) { return nil, nil })
	})
	c := b.newClient()
	p, err := rpc.Go(reqctx.With(b.ctx(), reqctx.Request{ID: "req-1"}), c, echo, "a", &note{})
	if err != nil {
		b.Fatal(err)
	}
	receive(b, entered, "the call")
	if _, err := rpc.Ping(b.ctx(), c, iface, "a"); err != nil {
		b.Errorf("ping: %v", err)
	}
	d, err := rpc.Describe(b.ctx(), c, iface, rpc.Any)
	close(gate)
	if err != nil {
		b.Fatal(err)
	}
	for i := range d.Running {
		d.Running[i].Since = time.Time{}
	}
	d.Running = slices.DeleteFunc(d.Running, func(r rpc.Running) bool { return r.Method != "echo" })
	want := &rpc.Description{
		Interface: "suite", Version: iface.Version, Host: "a", Slots: 7,
		Methods: []rpc.Described{{Name: "echo", Since: echo.Since}, {Name: "keep", Since: keep.Since, Delivery: rpc.AtLeastOnce}},
		Running: []rpc.Running{{Method: "echo", Kind: rpc.KindCall, RequestID: "req-1"}},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		b.Errorf("description (-want +got):\n%s", diff)
	}
	if _, err := p.Wait(b.ctx()); err != nil {
		b.Error(err)
	}
}
