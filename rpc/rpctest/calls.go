package rpctest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
)

func testCall(b *bench) {
	b.serve("a", 0, func(s *rpc.Server) { rpc.Handle(s, echo, echoNote) })
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
		b.Error("the result came before the handler returned")
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
		b.Errorf("error %v (remote %v), want the server's errNoWay with its text", err, fault.IsRemote(err))
	}
	if _, err = rpc.Call(b.ctx(), c, echo, rpc.Any, &note{}); fault.CodeOf(err) != fault.Internal || !fault.IsRemote(err) {
		b.Errorf("after a panic: %v, want the server's Internal", err)
	}
	unknown := rpc.Method[note, note]{Interface: iface, Name: "unknown", Since: rpc.Version{Major: 1}}
	if _, err = rpc.Call(b.ctx(), c, unknown, rpc.Any, &note{}); !errors.Is(err, rpc.ErrNoSuchMethod) || !fault.IsRemote(err) {
		b.Errorf("unknown method: %v, want ErrNoSuchMethod from the server", err)
	}
	newer := echo
	newer.Since.Minor = iface.Version.Minor + 1
	if _, err = rpc.Call(b.ctx(), c, newer, rpc.Any, &note{}); !errors.Is(err, rpc.ErrUnsupportedVersion) || !fault.IsRemote(err) {
		b.Errorf("newer method: %v, want ErrUnsupportedVersion from the server", err)
	}
	for _, v := range []rpc.Version{newer.Since, {Major: iface.Version.Major + 1}} {
		later := &rpc.Interface{Name: iface.Name, Version: v} // the interface of a later release, which has one more method
		unknown = rpc.Method[note, note]{Interface: later, Name: "unknown", Since: v}
		if _, err = rpc.Call(b.ctx(), c, unknown, rpc.Any, &note{}); !errors.Is(err, rpc.ErrUnsupportedVersion) || !fault.IsRemote(err) {
			b.Errorf("unknown method of the later version %s: %v, want ErrUnsupportedVersion from the server", v, err)
		}
	}
}

var (
	first  = &rpc.Interface{Name: "majors", Version: rpc.Version{Major: 1, Minor: 4}}
	second = &rpc.Interface{Name: "majors", Version: rpc.Version{Major: 2}, Older: first}
	// Both major versions have a method with the same name, with different types.
	echo1 = rpc.Method[note, note]{Interface: first, Name: "echo", Since: rpc.Version{Major: 1, Minor: 2}}
	echo2 = rpc.Method[string, string]{Interface: second, Name: "echo", Since: rpc.Version{Major: 2}}
	keep1 = rpc.Method[note, rpc.None]{Interface: first, Name: "keep", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
	keep2 = rpc.Method[string, rpc.None]{Interface: second, Name: "keep", Since: rpc.Version{Major: 2}}
)

func testMajors(b *bench) {
	kept := make(chan string, 2)
	startServer(b, b.server, rpc.ServerConfig{Interface: second, Host: "a"}, func(s *rpc.Server) {
		rpc.Handle(s, echo1, echoNote)
		rpc.Handle(s, echo2, func(_ context.Context, s *string) (*string, error) { return s, nil })
		rpc.Handle(s, keep1, func(_ context.Context, n *note) (*rpc.None, error) { kept <- n.Text; return &rpc.None{}, nil })
		rpc.Handle(s, keep2, func(_ context.Context, s *string) (*rpc.None, error) { kept <- *s; return &rpc.None{}, nil })
	})
	both := map[int]*rpc.Client{1: nil, 2: nil} // the key is the major version that the client is pinned to
	for major := range both {
		both[major] = newClient(b, b.client, rpc.ClientConfig{Caps: rpc.Versions{"majors": {{Major: major, Minor: 9}}}})
	}
	for _, host := range []string{rpc.Any, "a"} {
		if got, err := rpc.Call(b.ctx(), both[1], echo1, host, &note{N: 1}); err != nil || got.N != 1 {
			b.Errorf("1.2 on %q: %v, %v", host, got, err)
		}
		text := "two"
		if got, err := rpc.Call(b.ctx(), both[2], echo2, host, &text); err != nil || *got != text {
			b.Errorf("2.0 on %q: %v, %v", host, got, err)
		}
	}
	text := "two"
	if err := errors.Join(rpc.Cast(b.ctx(), both[1], keep1, "a", &note{Text: "one"}), rpc.Cast(b.ctx(), both[2], keep2, "a", &text)); err != nil {
		b.Error(err)
	}
	if got := map[string]bool{receiveValue(b, kept, "a cast"): true, receiveValue(b, kept, "the other cast"): true}; !got["one"] || !got["two"] {
		b.Errorf("the casts of both versions: %v", got)
	}
	if _, err := rpc.Call(b.ctx(), both[1], echo2, rpc.Any, &text); !errors.Is(err, rpc.ErrVersionCap) {
		b.Errorf("2.0 by a client that is pinned to 1: %v, want ErrVersionCap", err)
	}
	for i, want := range map[*rpc.Interface]rpc.Version{first: {Major: 1, Minor: 4}, second: {Major: 2}} {
		d, err := rpc.Describe(b.ctx(), b.newClient(), i, "a")
		if err != nil || d.Version != want || len(d.Methods) != 2 || d.Methods[0].Since.Major != want.Major {
			b.Errorf("describe %s: %+v, %v", want, d, err)
		}
	}
	third := echo2
	third.Interface, third.Since = &rpc.Interface{Name: "majors", Version: rpc.Version{Major: 3}}, rpc.Version{Major: 3}
	if _, err := rpc.Call(b.ctx(), b.newClient(), third, "a", &text); !errors.Is(err, rpc.ErrUnsupportedVersion) || !strings.Contains(err.Error(), "the server has 1.4 and 2.0") {
		b.Errorf("3.0: %v, want ErrUnsupportedVersion with both versions", err)
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
			<-ctx.Done() // until the deadline passes
			waittest.Spend(50*time.Millisecond, "work that ends after the deadline")
			return n, nil
		})
	})
	want := reqctx.Request{
		ID: reqctx.NewID(), GlobalID: reqctx.NewID(), UserID: "u", ProjectID: "p", DomainID: "d", SystemScope: "all", Roles: []string{"a,b", "c"},
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	c := b.newClient()
	if _, err := rpc.Describe(b.ctx(), c, iface, rpc.Any); err != nil { // this first call connects the client, which may take longer than the deadline of the next call
		b.Fatal(err)
	}
	deadline := time.Now().Add(3 * time.Second)
	ctx, cancel := context.WithDeadline(reqctx.With(b.ctx(), want), deadline)
	defer cancel()
	_, err := rpc.Call(ctx, c, echo, rpc.Any, &note{})
	if fault.CodeOf(err) != fault.Timeout || fault.IsRemote(err) {
		b.Errorf("error %v, want the client's own Timeout", err)
	}
	s := receiveValue(b, got, "the call")
	if d := s.deadline.Sub(deadline).Abs(); d > time.Millisecond {
		b.Errorf("the handler's deadline is off by %v", d)
	}
	if diff := cmp.Diff(want, s.req); diff != "" {
		b.Errorf("request context (-want +got):\n%s", diff)
	}
}

func testNoConsumer(b *bench) {
	b.serve("a", 0, func(s *rpc.Server) { rpc.Handle(s, echo, echoNote) })
	c := b.newClient()
	_, callErr := rpc.Call(b.ctx(), c, echo, "missing", &note{})
	for what, err := range map[string]error{"call": callErr, "cast": rpc.Cast(b.ctx(), c, keep, "missing", &note{})} {
		if !errors.Is(err, rpc.ErrNoConsumer) || fault.CodeOf(err) != fault.Unavailable {
			b.Errorf("%s: %v, want ErrNoConsumer, Unavailable", what, err)
		}
	}
	if _, err := rpc.Call(b.ctx(), c, echo, "a", &note{}); err != nil {
		b.Errorf("the next call, to a running server: %v", err)
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
	receiveValue(b, entered, "the first call")
	short, cancel := context.WithTimeout(b.ctx(), 100*time.Millisecond)
	defer cancel()
	if _, err := rpc.Call(short, c, echo, "a", &note{}); fault.CodeOf(err) != fault.Timeout {
		b.Errorf("the waiting call: %v, want Timeout", err)
	}
	if err := rpc.Cast(b.ctx(), c, keep, "a", &note{}); err != nil {
		b.Fatal(err)
	}
	close(gate)
	if _, err := busy.Wait(b.ctx()); err != nil {
		b.Errorf("the running call: %v", err)
	}
	receiveValue(b, entered, "the cast behind the expired call")
	if n := ran.Load(); n != 1 {
		b.Errorf("the handler ran %d times, want 1", n)
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
			case <-time.After(caseTimeout):
				ended <- errors.New("the handler was not canceled")
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
		receiveValue(b, entered, "the call")
		cancel()
		if err := receiveValue(b, ended, "the end of the handler"); !errors.Is(err, context.Canceled) {
			b.Errorf("the handler of a canceled call to %q: %v", host, err)
		}
		if _, err := p.Wait(b.ctx()); fault.CodeOf(err) != fault.Canceled {
			b.Errorf("canceled call: %v", err)
		}
	}
	if n := srv.Stats().Canceled; n != 2 {
		b.Errorf("%d calls were counted as canceled, want 2", n)
	}
}

func testHeartbeat(b *bench) {
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
	c := newClient(b, b.client, rpc.ClientConfig{HeartbeatTimeout: 1500 * time.Millisecond})
	start := time.Now()
	busy, err := rpc.Go(b.ctx(), c, echo, "a", &note{N: 1})
	if err != nil {
		b.Fatal(err)
	}
	receiveValue(b, entered, "the first call")
	// The second call waits for the slot of the first call, and gets no heartbeats.
	_, err = rpc.Call(b.ctx(), c, echo, "a", &note{N: 2})
	if !errors.Is(err, rpc.ErrHeartbeatLost) || fault.CodeOf(err) != fault.Unknown {
		b.Errorf("the call that waits for a slot: %v, want ErrHeartbeatLost", err)
	}
	select {
	case <-busy.Done():
		_, err := busy.Wait(b.ctx())
		b.Errorf("the call ended although its handler runs: %v", err)
	case <-time.After(time.Until(start.Add(4500 * time.Millisecond))):
	}
	close(gate)
	if got, err := busy.Wait(b.ctx()); err != nil || got.N != 1 {
		b.Errorf("the call whose handler ran: %v, %v", got, err)
	}
}
