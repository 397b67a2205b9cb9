package rpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// nilError is an error whose Error panics if the pointer is nil.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

// brokenResponse is a response that cannot be encoded.
type brokenResponse struct{ N int }

func (brokenResponse) MarshalJSON() ([]byte, error) { panic("no text") }

// TestPanicOfResult: a handler may return an error that is a nil pointer, or a response whose encoding panics. In both cases
// the caller gets Internal, and the server answers the next call.
func TestPanicOfResult(t *testing.T) {
	t.Parallel()
	bus := rpctest.NewBus(t)
	encode := rpc.Method[string, brokenResponse]{Interface: iface, Name: "encode", Since: rpc.Version{Major: 2}}
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
	rpc.Handle(srv, start, func(context.Context, *string) (*string, error) {
		var none *nilError
		return nil, none
	})
	rpc.Handle(srv, encode, func(context.Context, *string) (*brokenResponse, error) { return &brokenResponse{1}, nil })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })
	c := rpc.NewClient(bus, rpc.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() })
	for range 2 {
		if _, err := rpc.Call(t.Context(), c, start, rpc.Any, new(string)); !errors.Is(err, fault.Internal) || !strings.Contains(err.Error(), "panic") {
			t.Errorf("an error with a nil pointer: %v, want Internal", err)
		}
		if _, err := rpc.Call(t.Context(), c, encode, rpc.Any, new(string)); !errors.Is(err, fault.Internal) || !strings.Contains(err.Error(), "panic: no text") {
			t.Errorf("a response that cannot be encoded: %v, want Internal", err)
		}
	}
}
