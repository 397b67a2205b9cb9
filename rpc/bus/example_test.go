package bus_test

import (
	"errors"
	"fmt"
	"maps"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// The error of Publish has an outcome, which says whether the message may be sent again.
func ExampleOutcomeOf() {
	for _, err := range []error{
		nil,
		fmt.Errorf("queue backup.node-1: %w", bus.ErrNoConsumer),
		fault.New(fault.Unavailable, "the broker cannot be reached"),
		fault.New(fault.Unknown, "the connection was lost before the broker confirmed the message: %w", errors.New("EOF")),
	} {
		fmt.Println([]string{"confirmed", "refused", "unroutable", "unknown"}[bus.OutcomeOf(err)])
	}
	// Output:
	// confirmed
	// unroutable
	// refused
	// unknown
}

// A bus over a broker with headers puts the envelope into headers, and reads it back.
func ExampleDecode() {
	m := &bus.Message{ID: "id-1", Kind: bus.Cast, Interface: "backup", Method: "start", Durable: true, Payload: []byte(`{}`)}
	m.Version.Major = 2
	headers := maps.Collect(m.Metadata())
	fmt.Println(headers)
	back := bus.Decode("id-1", maps.All(headers), m.Payload)
	fmt.Println(back.Kind, back.Method, back.Persistent(), back.Malformed)
	// Output:
	// map[rpc:cast backup.start 2.0 at-least-once]
	// cast start true <nil>
}
