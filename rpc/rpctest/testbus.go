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

// Opener opens a bus for one case of [TestBus]. It returns one end for the server's process and one for the client's
// process; both ends may be the same value. No other case uses that bus. The Opener must close both ends when the test
// ends.
type Opener func(t *testing.T) (server, client bus.Bus)

// TestBus checks each rule of the bus contract in a parallel subtest. A failure prints the rule. The parameter without has the
// names of the rules that the bus is known to break. TestBus skips these rules, and rules that need a capability that the bus does
// not declare. The test fails if the parameter without has a name that is not the name of a rule.
func TestBus(t *testing.T, open Opener, without ...string) { //nolint:tparallel // the caller of TestBus decides
	t.Helper()
	for _, name := range without {
		if !slices.ContainsFunc(rules, func(r rule) bool { return r.name == name }) {
			t.Errorf("rule %q, which the test is to skip, does not exist", name)
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

// caseTimeout bounds every wait of the suite. If a wait takes longer, the bus is broken.
const caseTimeout = 20 * time.Second

// bench is the environment of one case: the test and the two ends of the bus.
type bench struct {
	*testing.T
	server, client bus.Bus
}

func (b *bench) serve(host string, slots int, register func(*rpc.Server)) *rpc.Server {
	b.Helper()
	return startServer(b, b.server, rpc.ServerConfig{Interface: iface, Host: host, MaxInFlight: slots}, register)
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), caseTimeout)
	b.Cleanup(cancel)
	return ctx
}

func (b *bench) newClient() *rpc.Client { return newClient(b, b.client, rpc.ClientConfig{}) }

// receiveValue waits for a value, at most caseTimeout. The parameter what names the event in the failure.
func receiveValue[T any](b *bench, ch <-chan T, what string) T {
	b.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(caseTimeout):
		b.Fatalf("%s did not happen within %v", what, caseTimeout)
		panic("unreachable")
	}
}

func rawMessage(b *bench, n int) *bus.Message {
	b.Helper()
	return Message(fmt.Sprintf("id-%d", n), "cast suite.raw 1.0 at-least-once", strconv.Itoa(n))
}

func endDelivery(b *bench, d *bus.Delivery, ack bool) {
	b.Helper()
	end := d.Nack
	if ack {
		end = d.Ack
	}
	if err := end(); err != nil {
		b.Errorf("acknowledge or requeue message %s: %v", d.ID, err)
	}
}

func echoNote(_ context.Context, n *note) (*note, error) { return n, nil }

// rule is a rule of the bus contract: its name, its text, and the case that checks it.
type rule struct {
	name, rule string
	run        func(*bench)
	needs      func(bus.Capabilities) bool // nil: the rule is for every bus
}

func noConsumer(c bus.Capabilities) bool { return c.NoConsumer }
func liveTopics(c bus.Capabilities) bool { return c.LiveTopics && c.NoConsumer }

var rules = []rule{
	{"call", "a call reaches a server, and its caller gets the result unchanged", testCall, nil},
	{"go", "Go returns before the handler does, and the Pending gets the result", testGo, nil},
	{"errors", "a handler's error reaches the caller with its code, reason and text, and is marked as remote", testErrors, nil},
	{"majors", "a server serves two major versions of one interface on the same topics, and the version of a message chooses the method", testMajors, nil},
	{"context", "the caller's deadline and request context reach the handler; a call that ends at its deadline fails with the client's own Timeout", testContext, nil},
	{"cast", "a cast reaches only one server, and a cast to a server that is down waits for it", testCast, nil},
	{"fanout", "a fanout reaches every server once; without a server, Fanout returns no error", testFanout, nil},
	{"noconsumer", "a message for a topic that does not exist fails at once with ErrNoConsumer", testNoConsumer, noConsumer},
	{"expired", "a call whose deadline passes while it waits for a slot is never handled", testExpired, nil},
	{"slots", "a busy server takes no more casts than it has slots for; an idle server gets the rest", testSlots, nil},
	{"busy", "a busy server takes no more calls than it has slots for; an idle server gets the rest", testBusy, nil},
	{"redelivery", "a message whose handler fails is delivered again unless the error is final; an acknowledged message is not delivered again", testRedelivery, nil},
	{"requeue", "messages that a subscriber has not acknowledged when its subscription ends go to the next subscriber, each once", testRequeue, nil},
	{"restarts", "a message whose handler had not begun when its server stopped does not count as lost with the server", testRestarts, nil},
	{"stop", "a server that stops answers the calls whose handlers run", testStop, nil},
	{"hosts", "a cast to a host whose name has unusual characters is handled once", testHosts, nil},
	{"stopfull", "if a full server stops, other servers handle the calls that wait at it", testStopFull, nil},
	{"load", "under load, no message is lost, handled twice or answered with the reply to another message", testLoad, nil},
	{"cancel", "the caller's cancellation reaches the handler's context", testCancel, nil},
	{"heartbeat", "a call lives longer than the heartbeat timeout while its server sends heartbeats, and fails without them", testHeartbeat, nil},
	{"gone", "after the last server of a topic has stopped, a call fails at once with ErrNoConsumer, and a cast waits", testGone, liveTopics},
	{"duplicate", "two messages with the same id are handled once", testDuplicate, nil},
	{"dead", "a message whose attempts are used up, or that cannot be read, becomes a dead letter, which can be listed, requeued and dropped", testDead, nil},
	{"toolarge", "a message or a reply that is larger than the bus carries fails at once, with both sizes, and other messages do not fail", testTooLarge, nil},
	{"names", "a name that not every broker accepts is refused before a message is sent", testNames, nil},
	{"describe", "every server answers ping and describe", testDescribe, nil},
	{"close", "calls on a closed bus fail at once with ErrClosed, and Close may be called again", testClose, nil},
}
