package rpctest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

// Opener gives a case of [TestBus] the two ends of a bus that no other case uses: what a server's process and what a client's process would open. They may
// be the same value. The opener closes them when the test ends.
type Opener func(t *testing.T) (server, client bus.Bus)

// TestBus runs every rule that a bus has to keep as a sub-test. A failure
// prints the rule. A rule is skipped if it needs a capability that the bus does not declare. without names further rules that
// a bus is known not to keep; a name without a rule fails.
func TestBus(t *testing.T, open Opener, without ...string) { //nolint:tparallel // the caller decides
	t.Helper()
	for _, name := range without {
		if !slices.ContainsFunc(rules, func(r rule) bool { return r.name == name }) {
			t.Errorf("there is no rule %q to do without", name)
		}
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if slices.Contains(without, r.name) {
				t.Skipf("this bus does not keep the rule: %s", r.rule)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the rule: %s", r.rule)
				}
			})
			server, client := open(t)
			if r.needs != nil && !r.needs(server.Capabilities()) {
				t.Skipf("this bus does not declare the capability for the rule: %s", r.rule)
			}
			r.run(&bench{T: t, server: server, client: client})
		})
	}
}

var iface = &rpc.Interface{Name: "suite", Version: rpc.Version{Major: 1, Minor: 3}}

type note struct {
	N    int
	Text string
}

var (
	echo     = rpc.Method[note, note]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	keep     = rpc.Method[note, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1, Minor: 3}, Delivery: rpc.AtLeastOnce}
	errNoWay = fault.Sentinel(fault.Precondition, "NoWay", "no way")
)

// caseTimeout bounds every wait of the suite. A bus that needs so long is broken.
const caseTimeout = 20 * time.Second

type bench struct {
	*testing.T
	server, client bus.Bus
}

func (b *bench) serve(host string, slots int, register func(*rpc.Server)) *rpc.Server {
	b.Helper()
	return start(b, b.server, rpc.ServerConfig{Interface: iface, Host: host, MaxInFlight: slots}, register)
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), caseTimeout)
	b.Cleanup(cancel)
	return ctx
}

func (b *bench) newClient() *rpc.Client { return newClient(b, b.client, rpc.ClientConfig{}) }

// receive waits for a value.
func receive[T any](b *bench, ch <-chan T, what string) T {
	b.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(caseTimeout):
		b.Fatalf("%s did not happen within %v", what, caseTimeout)
		panic("unreachable")
	}
}

func message(b *bench, n int) *bus.Message {
	b.Helper()
	return Message(fmt.Sprintf("id-%d", n), "cast suite.raw 1.0 at-least-once", strconv.Itoa(n))
}

func settle(b *bench, d *bus.Delivery, ack bool) {
	b.Helper()
	end := d.Nack
	if ack {
		end = d.Ack
	}
	if err := end(); err != nil {
		b.Errorf("settle message %s: %v", d.ID, err)
	}
}

func echoes(_ context.Context, n *note) (*note, error) { return n, nil }

type rule struct {
	name, rule string
	run        func(*bench)
	needs      func(bus.Capabilities) bool // nil: the rule is for every bus
}

func noConsumer(c bus.Capabilities) bool { return c.NoConsumer }
func liveTopics(c bus.Capabilities) bool { return c.LiveTopics && c.NoConsumer }

var rules = []rule{
	{"call", "a call reaches a server and its result comes back, unchanged and to the caller that asked", testCall, nil},
	{"go", "Go returns before the result is there, and the result comes back by message", testGo, nil},
	{"errors", "an error comes back with its code, reason and text, marked as the peer's", testErrors, nil},
	{"context", "the caller's deadline and its request context reach the handler, its cancellation does not stop the call from being counted as canceled", testContext, nil},
	{"cast", "a cast reaches one server only, and one that is sent before the server is back waits for it", testCast, nil},
	{"fanout", "a fanout reaches every server, and none is no error", testFanout, nil},
	{"noconsumer", "a message for a topic that does not exist fails at once, and not executed", testNoConsumer, noConsumer},
	{"expired", "a call that waits until its caller has given up is never run", testExpired, nil},
	{"slots", "a busy server takes no more than it has slots for; an idle one gets the rest", testSlots, nil},
	{"busy", "a call that waits at a busy server goes to an idle one", testBusy, nil},
	{"redelivery", "a message that is given back is delivered again, and one that is acknowledged is not", testRedelivery, nil},
	{"requeue", "what a subscriber has not received when its subscription ends goes to the next", testRequeue, nil},
	{"restarts", "a message that a server had not begun when it stopped does not count as lost with it", testRestarts, nil},
	{"stop", "a server that stops answers what it has taken", testStop, nil},
	{"load", "nothing is lost, doubled or mixed up under load", testLoad, nil},
	{"cancel", "the caller's cancellation reaches the handler's context", testCancel, nil},
	{"beat", "a long call is kept alive by its server's heartbeats, and fails without them", testBeat, nil},
	{"gone", "when the last server of a topic has left, a call fails at once, and a cast waits", testGone, liveTopics},
	{"duplicate", "a message that comes twice is handled once", testDuplicate, nil},
	{"dead", "what no server can do becomes a dead letter, which can be shown, sent again and dropped", testDead, nil},
	{"toolarge", "a message or a reply that is larger than the bus carries fails at once, with both sizes, and alone", testTooLarge, nil},
	{"names", "a name that a broker cannot take is refused before anything is sent", testNames, nil},
	{"describe", "every server answers ping and describe", testDescribe, nil},
	{"close", "a closed bus fails with ErrClosed, at once, and may be closed again", testClose, nil},
}
