// Package inject gives the processes of a test a common bus in memory. An option cannot name this bus, because it is a value in the
// program of the test. Only package componenttest calls With, so no production program can.
package inject

import (
	"context"

	"github.com/armature-go/armature/rpc/urlbus"
)

// Parts are what a process uses instead of what its options name.
type Parts struct {
	// Bus is used if the option transport_url is not set.
	Bus urlbus.Bus
}

type key struct{}

// With returns a context for component.Run.
func With(ctx context.Context, p Parts) context.Context { return context.WithValue(ctx, key{}, p) }

// From returns the parts of a context. They are zero outside of tests.
func From(ctx context.Context) Parts {
	p, _ := ctx.Value(key{}).(Parts)
	return p
}
