package rpctest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

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
	c := b.newClient()
	p, err := rpc.Go(b.ctx(), c, echo, "a", &note{N: 5})
	if err != nil {
		b.Fatal(err)
	}
	receiveValue(b, entered, "the call")
	stopped := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { stopped <- s.Stop(b.ctx()) })
	waittest.Succeeds(b, "Stop to end the intake", func() error {
		ctx, cancel := context.WithTimeout(b.ctx(), time.Second)
		defer cancel()
		if _, err := rpc.Describe(ctx, c, iface, "a"); err == nil {
			return errors.New("the server answers")
		}
		return nil
	})
	select {
	case err := <-stopped:
		b.Fatalf("Stop did not wait for the handler: %v", err)
	default:
	}
	close(gate)
	if got, err := p.Wait(b.ctx()); err != nil || got.N != 5 {
		b.Errorf("a call in flight at Stop: %v, %v; want its result", got, err)
	}
	if err := receiveValue(b, stopped, "the end of Stop"); err != nil {
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
			rpc.Handle(s, echo, echoNote)
			rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) {
				if _, dup := casts.LoadOrStore(n.N, true); dup {
					b.Errorf("cast %d was handled twice although nothing failed", n.N)
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
	receiveValue(b, all, "the last of the casts")
	if n := c.Stats().Late; n != 0 {
		b.Errorf("%d replies came twice or late", n)
	}
}

func testClose(b *bench) {
	in, err := b.client.Subscribe(b.ctx(), bus.Subscription{Topic: "close", Slots: 1})
	if err != nil {
		b.Fatal(err)
	}
	for range 2 {
		if err := b.client.Close(); err != nil {
			b.Errorf("Close: %v", err)
		}
	}
	if m, ok := <-in; ok {
		b.Errorf("message %v on the channel of a closed bus", m.ID)
	}
	if err := b.client.Publish(b.ctx(), "close", rawMessage(b, 1)); !errors.Is(err, rpc.ErrClosed) {
		b.Errorf("Publish: %v, want ErrClosed", err)
	}
	if _, err := b.client.Subscribe(b.ctx(), bus.Subscription{Topic: "close", Slots: 1}); !errors.Is(err, rpc.ErrClosed) {
		b.Errorf("Subscribe: %v, want ErrClosed", err)
	}
}

func testGone(b *bench) {
	register := func(s *rpc.Server) {
		rpc.Handle(s, echo, echoNote)
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
		for end := time.Now().Add(caseTimeout); time.Now().Before(end); { // each bus documents how soon the topic ends
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
	receiveValue(b, entered, "the call")
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
		Methods: []rpc.Signature{{Name: "echo", Since: echo.Since}, {Name: "keep", Since: keep.Since, Delivery: rpc.AtLeastOnce}},
		Running: []rpc.Running{{Method: "echo", Kind: "call", RequestID: "req-1"}},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		b.Errorf("description (-want +got):\n%s", diff)
	}
	if _, err := p.Wait(b.ctx()); err != nil {
		b.Error(err)
	}
}

// testStopFull stops one of two full servers while calls wait at it.
func testStopFull(b *bench) {
	const calls, slots = 40, 2
	work := func(_ context.Context, n *note) (*note, error) {
		waittest.Spend(100*time.Millisecond, "the work of the call")
		return n, nil
	}
	first := b.serve("a", slots, func(s *rpc.Server) { rpc.Handle(s, echo, work) })
	b.serve("b", slots, func(s *rpc.Server) { rpc.Handle(s, echo, work) })
	c := b.newClient()
	var ended atomic.Int64
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			if _, err := rpc.Call(b.ctx(), c, echo, rpc.Any, &note{N: i}); err != nil {
				b.Errorf("call %d: %v", i, err)
			}
			ended.Add(1)
		})
	}
	waittest.Until(b, "the first replies", func() bool { return ended.Load() >= 2*slots })
	if err := first.Stop(b.ctx()); err != nil {
		b.Error(err)
	}
	wg.Wait()
}

// testHosts sends casts to hosts with unusual names, all served at once. A bus may have to write such names in another form.
// Each host must get only its own casts, so no two names may be written in the same form.
func testHosts(b *bench) {
	c := b.newClient()
	hosts := []string{"50%", "a%20b", "%s%s", "a_b-c:d", "a.b", "a~b", "a/b", `a\b`, "a.~b"}
	got, servers := make([]chan int, len(hosts)), make([]*rpc.Server, len(hosts))
	for i, host := range hosts {
		got[i] = make(chan int, 10)
		servers[i] = b.serve(host, 1, func(s *rpc.Server) {
			rpc.Handle(s, keep, func(_ context.Context, n *note) (*rpc.None, error) { got[i] <- n.N; return nil, nil })
		})
	}
	for i, host := range hosts {
		for n := range 2 {
			if err := rpc.Cast(b.ctx(), c, keep, host, &note{N: 10*i + n}); err != nil {
				b.Errorf("cast to %s: %v", host, err)
			}
		}
	}
	for i, host := range hosts {
		for n := range 2 {
			if g := receiveValue(b, got[i], "the cast to "+host); g != 10*i+n {
				b.Errorf("host %s got %d, want %d", host, g, 10*i+n)
			}
		}
		if err := servers[i].Stop(b.ctx()); err != nil {
			b.Error(err)
		}
		if len(got[i]) > 0 {
			b.Errorf("host %s got a cast twice, or a cast of another host", host)
		}
	}
}
