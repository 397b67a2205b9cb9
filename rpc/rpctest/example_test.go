package rpctest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// example stands for the *testing.T of a test.
type example struct {
	testing.TB

	cleanups []func()
}

func (*example) Helper()                          {}
func (*example) Context() context.Context         { return context.Background() }
func (e *example) Cleanup(f func())               { e.cleanups = append(e.cleanups, f) }
func (e *example) Fatalf(format string, a ...any) { fmt.Printf(format+"\n", a...) }
func (e *example) Errorf(string, ...any)          {} // ignored, because a real test ends at Fatalf before these calls

// runCleanups runs the cleanups, as testing.T does at the end of a test.
func (e *example) runCleanups() {
	for _, f := range e.cleanups {
		defer f()
	}
}

var (
	volumes = &rpc.Interface{Name: "volumes", Version: rpc.Version{Major: 1}}
	create  = rpc.Define(rpc.Method[string, int]{Interface: volumes, Name: "create", Since: volumes.Version})
	remove  = rpc.Define(rpc.Method[string, rpc.None]{Interface: volumes, Name: "remove", Since: volumes.Version, Delivery: rpc.AtLeastOnce})
)

// A test of a client needs to serve only the methods that the client calls. Calls of
// other methods fail with ErrNoSuchMethod.
func ExampleServe() {
	t := new(example) // in a test, use the test's t
	defer t.runCleanups()
	client := rpctest.Serve(t, volumes, func(s *rpc.Server) {
		rpc.Handle(s, create, func(_ context.Context, name *string) (*int, error) {
			if *name == "" {
				return nil, fault.New(fault.Invalid, "a volume needs a name")
			}
			size := len(*name)
			return &size, nil
		})
	})
	name := "photos"
	size, err := rpc.Call(t.Context(), client, create, rpc.Any, &name)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(*size)
	_, err = rpc.Call(t.Context(), client, create, rpc.Any, new(string))
	fmt.Println(errors.Is(err, fault.Invalid), fault.IsRemote(err))
	_, err = rpc.Call(t.Context(), client, remove, rpc.Any, &name)
	fmt.Println(errors.Is(err, rpc.ErrNoSuchMethod))
	// Output:
	// 6
	// true true
	// true
}

// A test protects an interface from incompatible changes: a committed file has the
// methods of the interface and their types.
func ExampleContract() {
	t := new(example) // in a test, use the test's t
	defer t.runCleanups()
	dir, err := os.MkdirTemp("", "contract")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }() // the directory is temporary
	file := filepath.Join(dir, "volumes.json")
	older := `{"interface": "volumes", "version": "1.0", "methods": {"create": {"since": "1.0", "delivery": "at-most-once", "request": "string", "response": "int"}}}`
	if err := os.WriteFile(file, []byte(older), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	rpctest.Contract(t, file, volumes)
	// Output:
	// the contract of volumes is broken:
	// an addition needs a higher minor version of the interface; the version is still 1.0
	// remove is new, but its Since is 1.0, and the published version is 1.0 already: use a newer one
}

// A test of a bus publishes messages in their form on the wire.
func ExampleMessage() {
	m := rpctest.Message("id-1", "cast volumes.create 1.0 at-least-once", `"photos"`)
	fmt.Println(m.Kind, m.Interface, m.Method, m.Persistent())
	// Output: cast volumes create true
}
