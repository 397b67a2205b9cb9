package rpc_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
)

// A component defines its methods with rpc.Define. These examples do not, because each of their servers has only one of the
// methods.
var (
	backups = &rpc.Interface{Name: "backups", Version: rpc.Version{Major: 1}}
	reload  = rpc.Method[rpc.None, rpc.None]{Interface: backups, Name: "reload", Since: rpc.Version{Major: 1}}
	remove  = rpc.Method[string, rpc.None]{Interface: backups, Name: "remove", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
)

// serveBackups starts a server, and returns a function that stops it.
func serveBackups(bus rpcbus.Bus, host string, register func(*rpc.Server)) (stop func()) {
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backups, Host: host})
	register(srv)
	if err := srv.Start(context.Background()); err != nil {
		panic(err)
	}
	return func() { _ = srv.Stop(context.Background()) } // no handler is cut off
}

// A cast of an AtLeastOnce method is delivered again until the handler succeeds. After a success the server does not
// handle the cast again.
func ExampleCast() {
	bus := membus.New()
	defer bus.Close()
	done := make(chan string)
	attempts := 0
	stop := serveBackups(bus, "node-1", func(s *rpc.Server) {
		rpc.Handle(s, remove, func(_ context.Context, name *string) (*rpc.None, error) {
			if attempts++; attempts < 3 {
				return nil, fault.New(fault.Unavailable, "the store cannot be reached")
			}
			done <- *name
			return &rpc.None{}, nil
		})
	})
	defer stop()
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	name := "monday"
	err := rpc.Cast(context.Background(), client, remove, "node-1", &name)
	fmt.Println("sent:", err)
	fmt.Println("removed", <-done, "at attempt", attempts)
	// Output:
	// sent: <nil>
	// removed monday at attempt 3
}

// Fanout sends to every running server.
func ExampleFanout() {
	bus := membus.New()
	defer bus.Close()
	got := make(chan string)
	for _, host := range []string{"node-1", "node-2"} {
		defer serveBackups(bus, host, func(s *rpc.Server) {
			rpc.Handle(s, reload, func(context.Context, *rpc.None) (*rpc.None, error) {
				got <- host
				return &rpc.None{}, nil
			})
		})()
	}
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	err := rpc.Fanout(context.Background(), client, reload, &rpc.None{})
	fmt.Println(err)
	fmt.Println(<-got)
	fmt.Println(<-got)
	// Unordered output:
	// <nil>
	// node-1
	// node-2
}

// Every server answers Describe, and needs no handler for it.
func ExampleDescribe() {
	ctx := context.Background()
	bus := membus.New()
	defer bus.Close()
	stop := serveBackups(bus, "node-1", func(s *rpc.Server) {
		rpc.Handle(s, remove, func(context.Context, *string) (*rpc.None, error) { return &rpc.None{}, nil })
	})
	defer stop()
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	_, err := rpc.Describe(ctx, client, backups, "node-2")
	fmt.Println("node-2 has no server:", errors.Is(err, rpc.ErrNoConsumer))
	d, err := rpc.Describe(ctx, client, backups, "node-1")
	fmt.Println(d.Interface, d.Version, d.Host, d.Methods[0].Name, d.Methods[0].Delivery, err)
	// Output:
	// node-2 has no server: true
	// backups 1.0 node-1 remove at-least-once <nil>
}

// A dead-lettered message is kept until an operator decides what to do with it.
func ExampleDeadLetters() {
	ctx := context.Background()
	bus := membus.New()
	defer bus.Close()
	stop := serveBackups(bus, "node-1", func(s *rpc.Server) {
		rpc.Handle(s, remove, func(_ context.Context, name *string) (*rpc.None, error) {
			return nil, fault.New(fault.NotFound, "no backup %s", *name)
		})
	})
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	name := "monday"
	if err := rpc.Cast(ctx, client, remove, "node-1", &name); err != nil {
		fmt.Println(err)
	}
	for found := false; !found; {
		err := rpc.DeadLetters(ctx, bus, backups, func(l *rpc.DeadLetter) rpc.Verdict {
			found = true
			fmt.Println(l.Info, string(l.Payload), l.Topic, l.Failures, l.Reason)
			return rpc.Drop // or Requeue, when the cause is fixed
		})
		if err != nil {
			fmt.Println(err)
		}
	}
	stop()
	// Output:
	// backups.remove "monday" backups.node-1 1 NotFound: no backup monday
}
