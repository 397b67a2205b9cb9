package rpc_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/membus"
)

// Client and server import these variables.
var (
	greeter = &rpc.Interface{Name: "greeter", Version: rpc.Version{Major: 1}}
	greet   = rpc.Define(rpc.Method[string, string]{Interface: greeter, Name: "greet", Since: rpc.Version{Major: 1}})
)

// A server and a client in one process, over the in-memory bus.
func Example() {
	ctx := context.Background()
	bus := membus.New()
	defer bus.Close()

	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: greeter, Host: "node-1"})
	rpc.Handle(srv, greet, func(_ context.Context, name *string) (*string, error) {
		if *name == "" {
			return nil, fault.New(fault.Invalid, "the name is empty")
		}
		out := "Hello, " + strings.ToUpper(*name)
		return &out, nil
	})
	if err := srv.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop(ctx)

	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	name := "world"
	reply, err := rpc.Call(ctx, client, greet, rpc.Any, &name)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(*reply)

	_, err = rpc.Call(ctx, client, greet, "node-1", new(string))
	fmt.Println(err, fault.CodeOf(err), fault.IsRemote(err))
	// Output:
	// Hello, WORLD
	// call greeter.greet on node-1: the name is empty Invalid true
}

// Go sends a request and does not wait for the reply. Here two requests are open at the same time, and the Wait of each
// Pending returns its reply.
func ExampleGo() {
	ctx := context.Background()
	bus := membus.New()
	defer bus.Close()
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: greeter})
	rpc.Handle(srv, greet, upper)
	if err := srv.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop(ctx)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	var all []*rpc.Pending[string]
	for _, name := range []string{"a", "b"} {
		p, err := rpc.Go(ctx, client, greet, rpc.Any, &name)
		if err != nil {
			fmt.Println(err)
			return
		}
		all = append(all, p)
	}
	for _, p := range all {
		reply, err := p.Wait(ctx)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(*reply)
	}
	// Output:
	// A
	// B
}
