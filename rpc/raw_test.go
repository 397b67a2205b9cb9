package rpc_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestRaw: a json.RawMessage is sent unchanged in both directions, even if the other side has a typed method.
func TestRaw(t *testing.T) {
	t.Parallel()
	raw := rpc.Method[json.RawMessage, json.RawMessage]{Interface: iface, Name: "start", Since: start.Since}
	const spaced = ` { "b" : 1 , "a" : "<>" } `
	c := rpctest.Serve(t, iface, func(s *rpc.Server) {
		rpc.Handle(s, raw, func(_ context.Context, r *json.RawMessage) (*json.RawMessage, error) { return r, nil })
	})
	req := json.RawMessage(spaced)
	if got, err := rpc.Call(t.Context(), c, raw, rpc.Any, &req); err != nil || string(*got) != spaced {
		t.Errorf("raw both ways: %s, %v", *got, err)
	}
	text := "x"
	if got, err := rpc.Call(t.Context(), c, start, rpc.Any, &text); err != nil || *got != "x" {
		t.Errorf("typed, to a raw handler: %v, %v", got, err)
	}
	typed := rpctest.Serve(t, iface, func(s *rpc.Server) { rpc.Handle(s, start, upper) })
	req = json.RawMessage(`"y"`)
	if got, err := rpc.Call(t.Context(), typed, raw, rpc.Any, &req); err != nil || string(*got) != `"Y"` {
		t.Errorf("raw, to a typed handler: %s, %v", *got, err)
	}
	var none json.RawMessage
	if got, err := rpc.Call(t.Context(), c, raw, rpc.Any, &none); err != nil || string(*got) != "null" {
		t.Errorf("an empty request: %s, %v", *got, err)
	}
}
