package rpc_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/membus"
)

// TestInterfaceNames: an interface is refused if its topics could be those of another interface. For example, a server of interface
// a on host b.c has the topics of a server of interface a.b on host c. Define and NewServer panic, and the functions that would send
// a message return Invalid.
func TestInterfaceNames(t *testing.T) {
	t.Parallel()
	bus := membus.New()
	defer bus.Close()
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	panics := func(f func()) (text string) {
		defer func() {
			if p := recover(); p != nil {
				text = fmt.Sprint(p)
			}
		}()
		f()
		return ""
	}
	for name, wrong := range map[string]string{
		"a.b": "a dot", "backup.dlq": "a dot", ".a": "a dot", "reply": "prefix of topics", "": "empty",
		"a b": "space", "a*": "space, a *", "a>": "space, a *", "a/b": "/", "a#": "#", "a\x00": "control character", strings.Repeat("a", 300): "255",
	} {
		i := &rpc.Interface{Name: name, Version: rpc.Version{Major: 1}}
		m := rpc.Method[rpc.None, rpc.None]{Interface: i, Name: "m", Since: rpc.Version{Major: 1}}
		if text := panics(func() { rpc.Define(m) }); !strings.Contains(text, wrong) {
			t.Errorf("Define for interface %.20q: panic %q, want a panic with %q", name, text, wrong)
		}
		if text := panics(func() { rpc.NewServer(bus, rpc.ServerConfig{Interface: i}) }); !strings.Contains(text, wrong) {
			t.Errorf("NewServer for interface %.20q: panic %q, want a panic with %q", name, text, wrong)
		}
		for _, err := range []error{
			rpc.Cast(t.Context(), client, m, rpc.Any, &rpc.None{}),
			rpc.Fanout(t.Context(), client, m, &rpc.None{}),
			rpc.DeadLetters(t.Context(), bus, i, func(*rpc.DeadLetter) rpc.Verdict { return rpc.Keep }),
		} {
			if fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), wrong) {
				t.Errorf("interface %.20q: %v, want Invalid with %q", name, err, wrong)
			}
		}
	}
}
