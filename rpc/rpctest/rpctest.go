// Package rpctest has helpers for tests of RPC servers and clients, and [TestBus], the
// conformance suite for implementations of bus.Bus.
//
//	client := rpctest.Serve(t, backup.Interface, func(s *rpc.Server) {
//		rpc.Handle(s, backup.Start, worker.Start)
//	})
//	reply, err := rpc.Call(t.Context(), client, backup.Start, rpc.Any, &backup.StartRequest{})
package rpctest

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/partial"
	"github.com/armature-go/armature/rpc/membus"
)

// NewBus returns an in-memory bus that is closed when the test ends.
func NewBus(t testing.TB) *membus.Bus {
	t.Helper()
	b := membus.New()
	t.Cleanup(func() { _ = b.Close() }) // never fails
	return b
}

// Partial returns a context with which rpc.Server.Start starts a server although methods of its interface have no handler. Calls of
// such methods fail with rpc.ErrNoSuchMethod. It is for tests that need a server with some of the methods, on a bus of their own.
func Partial(ctx context.Context) context.Context { return partial.Allow(ctx) }

// Serve starts a server of the interface on a new in-memory bus, with the handlers
// that register adds, and returns a client on the same bus. Calls of methods without a
// handler fail with rpc.ErrNoSuchMethod. The server's host is "host". Client, server and
// bus are stopped when the test ends. The test fails if the server does not start.
func Serve(t testing.TB, iface *rpc.Interface, register func(*rpc.Server)) *rpc.Client {
	t.Helper()
	b := NewBus(t)
	startServer(t, b, rpc.ServerConfig{Interface: iface, Host: "host"}, register)
	return newClient(t, b, rpc.ClientConfig{})
}

func startServer(t testing.TB, on bus.Bus, cfg rpc.ServerConfig, register func(*rpc.Server)) *rpc.Server {
	t.Helper()
	s := rpc.NewServer(on, cfg)
	register(s)
	if err := s.Start(Partial(t.Context())); err != nil {
		t.Fatalf("start the server: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop the server: %v", err)
		}
	})
	return s
}

func newClient(t testing.TB, on bus.Bus, cfg rpc.ClientConfig) *rpc.Client {
	t.Helper()
	c := rpc.NewClient(on, cfg)
	t.Cleanup(func() { _ = c.Close() }) // never fails
	return c
}

// Message returns a message with the id, the envelope and the payload. The parameter
// envelope is its text on the wire, such as "cast backup.start 2.1 at-least-once".
// Message is for tests of a bus.
func Message(id, envelope string, payload string) *bus.Message {
	return bus.Decode(id, maps.All(map[string]string{bus.KeyEnvelope: envelope}), []byte(payload))
}
