package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestDefine: Methods returns the defined methods. A server without a handler for one of them does not start, and its error
// names the missing handlers. With rpctest.Partial it starts.
func TestDefine(t *testing.T) {
	t.Parallel()
	volumes := &rpc.Interface{Name: "volumes", Version: rpc.Version{Major: 1}}
	method := func(name string, d rpc.Delivery) rpc.Method[string, string] {
		return rpc.Define(rpc.Method[string, string]{Interface: volumes, Name: name, Since: rpc.Version{Major: 1}, Delivery: d})
	}
	create, resize, remove := method("create", rpc.AtMostOnce), method("resize", rpc.AtLeastOnce), method("remove", rpc.AtMostOnce)
	want := []rpc.Signature{{Name: "create", Since: create.Since}, {Name: "remove", Since: create.Since}, {Name: "resize", Since: create.Since, Delivery: rpc.AtLeastOnce}}
	if diff := cmp.Diff(want, volumes.Methods(), cmpopts.IgnoreFields(rpc.Signature{}, "Request", "Response")); diff != "" {
		t.Errorf("methods (-want +got):\n%s", diff)
	}

	b := rpctest.NewBus(t)
	srv := rpc.NewServer(b, rpc.ServerConfig{Interface: volumes})
	rpc.Handle(srv, create, upper)
	err := srv.Start(t.Context())
	if fault.CodeOf(err) != fault.Precondition || !strings.HasSuffix(fmt.Sprint(err), "volumes: methods without a handler: remove, resize") {
		t.Fatalf("Start without two handlers: %v, want Precondition and their names", err)
	}
	rpc.Handle(srv, resize, upper)
	rpc.Handle(srv, remove, upper)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatalf("Start with all handlers: %v", err)
	}
	if err := srv.Stop(t.Context()); err != nil {
		t.Error(err)
	}

	c := rpctest.Serve(t, volumes, func(s *rpc.Server) { rpc.Handle(s, create, upper) })
	text := "x"
	if got, err := rpc.Call(t.Context(), c, create, rpc.Any, &text); err != nil || *got != "X" {
		t.Errorf("a partial server: %v", err)
	}
	if _, err := rpc.Call(t.Context(), c, remove, rpc.Any, &text); !errors.Is(err, rpc.ErrNoSuchMethod) {
		t.Errorf("a method without a handler: %v, want ErrNoSuchMethod", err)
	}
}

// TestDefineMisuse: a wrong definition panics when the program starts.
func TestDefineMisuse(t *testing.T) {
	t.Parallel()
	i := &rpc.Interface{Name: "volumes", Version: rpc.Version{Major: 1}}
	good := rpc.Method[string, string]{Interface: i, Name: "create", Since: i.Version}
	rpc.Define(good)
	none, dotted, newer, foreign, durable := good, good, good, good, good
	durable.Delivery = rpc.AtLeastOnce
	other := rpc.Method[int, string]{Interface: i, Name: "create", Since: i.Version}
	none.Interface = nil
	dotted.Name = "a.b"
	newer.Name, newer.Since.Minor = "newer", 1
	foreign.Name = "foreign"
	for what, f := range map[string]func(){
		"twice":                    func() { rpc.Define(good) },
		"without an interface":     func() { rpc.Define(none) },
		"a name with a dot":        func() { rpc.Define(dotted) },
		"newer than the interface": func() { rpc.Define(newer) },
		"a handler of another type": func() {
			rpc.Handle(rpc.NewServer(rpctest.NewBus(t), rpc.ServerConfig{Interface: i}), other, func(context.Context, *int) (*string, error) { return nil, nil })
		},
		"a handler of another delivery": func() {
			rpc.Handle(rpc.NewServer(rpctest.NewBus(t), rpc.ServerConfig{Interface: i}), durable, upper)
		},
		"an undefined method": func() { rpc.Handle(rpc.NewServer(rpctest.NewBus(t), rpc.ServerConfig{Interface: i}), foreign, upper) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			f()
		}()
	}
}

// BenchmarkInterceptors measures a call through five interceptors of the client and five of the server.
func BenchmarkInterceptors(b *testing.B) {
	pass := func(ctx context.Context, _ rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
		return next(ctx, req)
	}
	list := []rpc.Interceptor{pass, pass, pass, pass, pass}
	on := rpctest.NewBus(b)
	srv := rpc.NewServer(on, rpc.ServerConfig{Interface: iface, Interceptors: list})
	rpc.Handle(srv, start, upper)
	if err := srv.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer srv.Stop(context.Background())
	c := rpc.NewClient(on, rpc.ClientConfig{Interceptors: list})
	defer c.Close()
	text := "x"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rpc.Call(b.Context(), c, start, rpc.Any, &text); err != nil {
			b.Fatal(err)
		}
	}
}
