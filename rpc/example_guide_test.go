package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/armature-go/armature/internal/guidetest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
)

// TestGuide: each block of Go in docs/messaging.md is a part of an example in this file, so that it compiles and runs.
func TestGuide(t *testing.T) {
	t.Parallel()
	guidetest.Check(t, "../docs/messaging.md", 4, "example_guide_test.go")
}

// A component has such variables in a package that its clients and servers import. The variable earlier is the interface of
// the previous release. A component defines its methods with rpc.Define. These examples do not, because each of their
// servers has only some of the methods.
var (
	archive    = &rpc.Interface{Name: "archive", Version: rpc.Version{Major: 1, Minor: 1}}
	storeSlow  = rpc.Method[string, rpc.None]{Interface: archive, Name: "store", Since: rpc.Version{Major: 1}}
	storeFast  = rpc.Method[string, rpc.None]{Interface: archive, Name: "store_fast", Since: rpc.Version{Major: 1, Minor: 1}}
	countFiles = rpc.Method[rpc.None, int]{Interface: archive, Name: "count", Since: rpc.Version{Major: 1}}
	forget     = rpc.Method[string, rpc.None]{Interface: archive, Name: "forget", Since: rpc.Version{Major: 1}}

	earlier = &rpc.Interface{Name: "archive", Version: rpc.Version{Major: 1}}
)

// serveArchive starts a server of the interface archive on a host.
func serveArchive(b bus.Bus, i *rpc.Interface, host string, add func(*rpc.Server)) (stop func()) {
	s := rpc.NewServer(b, rpc.ServerConfig{Interface: i, Host: host})
	add(s)
	if err := s.Start(context.Background()); err != nil {
		panic(err)
	}
	return func() { _ = s.Stop(context.Background()) }
}

// The client calls all hosts at the same time. A host without a server does not affect the others.
func ExampleGo_manyHosts() {
	bus := membus.New()
	defer bus.Close()
	for host, files := range map[string]int{"node-1": 5, "node-3": 7} {
		defer serveArchive(bus, archive, host, func(s *rpc.Server) {
			rpc.Handle(s, countFiles, func(context.Context, *rpc.None) (*int, error) { return &files, nil })
		})()
	}
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	if err := countAll(context.Background(), client, []string{"node-1", "node-2", "node-3"}); err != nil {
		fmt.Println(err)
	}
	// Output:
	// node-1 has 5 files
	// node-2 has no server
	// node-3 has 7 files
}

func countAll(ctx context.Context, client *rpc.Client, hosts []string) error {
	pending := map[string]*rpc.Pending[int]{}
	for _, host := range hosts {
		p, err := rpc.Go(ctx, client, countFiles, host, &rpc.None{})
		if err != nil {
			return err // ErrVersionCap or ErrClosed: it concerns all hosts
		}
		pending[host] = p
	}
	for _, host := range hosts {
		files, err := pending[host].Wait(ctx)
		if errors.Is(err, rpc.ErrNoConsumer) {
			fmt.Println(host, "has no server")
			continue
		}
		if err != nil {
			return err
		}
		fmt.Println(host, "has", *files, "files")
	}
	return nil
}

// All servers drop an entry of their caches now, and not only when the entry expires.
func ExampleFanout_caches() {
	bus := membus.New()
	defer bus.Close()
	dropped := make(chan string)
	for _, host := range []string{"node-1", "node-2"} {
		defer serveArchive(bus, archive, host, func(s *rpc.Server) {
			rpc.Handle(s, forget, func(_ context.Context, name *string) (*rpc.None, error) {
				dropped <- host + " has dropped " + *name
				return &rpc.None{}, nil
			})
		})()
	}
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()

	if err := forgetEverywhere(context.Background(), client, "monday"); err != nil {
		fmt.Println(err)
	}
	fmt.Println(<-dropped)
	fmt.Println(<-dropped)
	// Unordered output:
	// node-1 has dropped monday
	// node-2 has dropped monday
}

func forgetEverywhere(ctx context.Context, client *rpc.Client, name string) error {
	if err := rpc.Fanout(ctx, client, forget, &name); err != nil {
		return err // not sent: the entries last until they expire
	}
	return nil
}

// During a rolling upgrade a client sends only messages that the oldest server accepts.
func ExampleClient_Allows() {
	ctx := context.Background()
	bus := membus.New()
	defer bus.Close()
	store := func(_ context.Context, _ *string) (*rpc.None, error) { return &rpc.None{}, nil }
	stopEarlier := serveArchive(bus, earlier, "node-1", func(s *rpc.Server) {
		rpc.Handle(s, rpc.Method[string, rpc.None]{Interface: earlier, Name: "store", Since: rpc.Version{Major: 1}}, store)
	})
	client := cappedClient(bus, []string{"node-1"})
	defer client.Close()

	fmt.Println(client.Reload(ctx))
	fmt.Println(storeFile(ctx, client, "monday"))
	name := "monday"
	_, err := rpc.Call(ctx, client, storeFast, "node-1", &name)
	fmt.Println(errors.Is(err, rpc.ErrVersionCap))

	stopEarlier() // the host is upgraded
	defer serveArchive(bus, archive, "node-1", func(s *rpc.Server) {
		rpc.Handle(s, storeSlow, store)
		rpc.Handle(s, storeFast, store)
	})()
	fmt.Println(client.Reload(ctx)) // without this call the client learns of the upgrade within CapsEvery
	fmt.Println(storeFile(ctx, client, "monday"))
	// Output:
	// <nil>
	// slow <nil>
	// true
	// <nil>
	// fast <nil>
}

func cappedClient(bus bus.Bus, hosts []string) *rpc.Client {
	client := rpc.NewClient(bus, rpc.ClientConfig{AutoCaps: func(ctx context.Context, c *rpc.Client) (rpc.Versions, error) {
		oldest := archive.Version
		for _, host := range hosts {
			d, err := rpc.Describe(ctx, c, archive, host)
			if err != nil {
				return nil, err // the caps stay as they are
			}
			if !d.Version.Accepts(oldest) {
				oldest = d.Version
			}
		}
		return rpc.Versions{archive.Name: {oldest}}, nil
	}})
	return client
}

func storeFile(ctx context.Context, client *rpc.Client, name string) (string, error) {
	if client.Allows(archive, storeFast.Since) {
		_, err := rpc.Call(ctx, client, storeFast, "node-1", &name)
		return "fast", err
	}
	_, err := rpc.Call(ctx, client, storeSlow, "node-1", &name)
	return "slow", err
}
