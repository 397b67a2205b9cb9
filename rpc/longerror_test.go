package rpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestLongError: an error that is too long for the metadata of a message is cut. The error keeps its code, its reason,
// whether it is private, and the beginnings of its texts.
func TestLongError(t *testing.T) {
	t.Parallel()
	bus := rpctest.NewBus(t)
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
	long := strings.Repeat("\x01\u00e9\"", 10_000) // in JSON, the three characters have six, two and two bytes
	rpc.Handle(srv, start, func(_ context.Context, s *string) (*string, error) {
		switch *s {
		case "private":
			return nil, &fault.Error{Code: fault.Internal, Reason: "Broken", Msg: "table secrets: " + long, Private: true}
		case "user":
			return nil, &fault.Error{Code: fault.Invalid, Reason: "Broken", Msg: "table secrets: " + long, User: "Bad name. " + long, Meta: map[string]string{"k": long}}
		}
		return nil, fault.New(fault.Invalid, "text %s", long)
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })
	c := rpc.NewClient(bus, rpc.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() })
	for _, tt := range []struct {
		ask, reason, user string
		private           bool
	}{
		{"private", "Broken", "internal error", true},
		{"user", "Broken", "Bad name. ", false},
		{"plain", "", "text ", false},
	} {
		_, err := rpc.Call(t.Context(), c, start, rpc.Any, &tt.ask)
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Reason != tt.reason || e.Private != tt.private || !strings.HasPrefix(fault.UserMessage(e), tt.user) || strings.Contains(fault.UserMessage(e), "secrets") {
			t.Errorf("%s: private %v, reason %q, for users %.40q", tt.ask, e.Private, e.Reason, fault.UserMessage(e))
		}
		if n := len(e.Msg) + len(e.User); n > 8<<10 || n < 500 || !utf8.ValidString(e.Msg+e.User) || !strings.HasSuffix(e.Msg, "...") {
			t.Errorf("%s: the text has %d bytes and ends with %q", tt.ask, n, e.Msg[len(e.Msg)-10:])
		}
	}
}
