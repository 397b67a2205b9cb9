package conductor_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// fakeNetworks is a network service with one port for each server.
type fakeNetworks struct {
	mu    sync.Mutex
	fails map[string]error // the errors of Allocate, by host; "": all hosts
	asked []string         // the hosts of the calls of Allocate

	ports  map[string]string // the servers of the ports that Attach has made or bound, by port
	attach func() error      // called by Attach after it has made the port
	freed  int               // the number of calls of ReleasePort that will fail
}

// useNetworks gives the conductor a new network service, because tests of other databases run at the same time. The conductor must not be started yet.
func (b *bench) useNetworks() *fakeNetworks {
	f := &fakeNetworks{}
	b.cfg.Network = f
	*b.svc = *conductor.New(b.cfg) // in place, because the RPC server has the old one
	return f
}

func (f *fakeNetworks) set(fails map[string]error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails, f.asked = fails, nil
}

func (f *fakeNetworks) hosts() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.asked, " ")
}

func (f *fakeNetworks) Allocate(_ context.Context, s network.Server) ([]network.Interface, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, s.Host)
	for _, host := range []string{s.Host, ""} {
		if err := f.fails[host]; err != nil {
			return nil, err
		}
	}
	return []network.Interface{{Request: s.Wanted.Interfaces[0].Request, Port: network.Port{ID: "port", Network: "net", Host: s.Host}}}, nil
}

func (f *fakeNetworks) Release(_ context.Context, s network.Server) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for port, server := range f.ports {
		if server == s.ID {
			f.free(port, s.Wanted.Given(port))
		}
	}
	return nil
}

// free deletes a port, or unbinds it if the client has named it.
func (f *fakeNetworks) free(port string, given bool) {
	if given {
		f.ports[port] = ""
	} else {
		delete(f.ports, port)
	}
}

func (f *fakeNetworks) Attach(_ context.Context, s network.Server) (*network.Port, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := cmp.Or(s.Wanted.Interfaces[len(s.Wanted.Interfaces)-1].Request.Port, fmt.Sprint("port-", len(s.Wanted.Interfaces)))
	if f.ports == nil {
		f.ports = map[string]string{}
	}
	f.ports[id] = s.ID
	if f.attach != nil {
		if err := f.attach(); err != nil {
			return nil, err
		}
	}
	return &network.Port{ID: id, Network: "net", Host: s.Host}, nil
}

func (f *fakeNetworks) ReleasePort(_ context.Context, server, port string, given bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.freed > 0 {
		f.freed--
		return fault.New(fault.Conflict, "the port is the parent of a trunk")
	}
	if f.ports[port] == server {
		f.free(port, given)
	}
	return nil
}

func (f *fakeNetworks) ReleaseOthers(_ context.Context, s network.Server) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for port, server := range f.ports {
		if server == s.ID && s.Wanted.Index(port) < 0 {
			f.free(port, s.Wanted.Given(port))
		}
	}
	return nil
}

// failAttach makes Attach call a function after it has made the port.
func (f *fakeNetworks) failAttach(after func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attach = after
}

// failRelease makes the next call of ReleasePort fail.
func (f *fakeNetworks) failRelease() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.freed = 1
}

// has returns the ports of a server, sorted.
func (f *fakeNetworks) has(server string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(func(yield func(string) bool) {
		for port, of := range f.ports {
			if of == server && !yield(port) {
				return
			}
		}
	})
}

// TestBindingFailed: if a port cannot be bound on a host, another host gets the server, as after a failed build. When no host is left, the server is in ERROR.
func TestBindingFailed(t *testing.T) {
	t.Parallel()
	failed := fault.WithReason(fault.New(fault.Invalid, "Binding failed for port port, please check neutron logs for more information."), "BindingFailed", nil)
	each(t, conductor.Config{}, func(b *bench) {
		networks := b.useNetworks()
		b.addHost("h2")
		b.start()
		for _, bad := range []string{"h1", "h2"} {
			networks.set(map[string]error{bad: failed})
			for { // until the scheduler has chosen the bad host first
				id := b.addNetworked()
				b.notify(id)
				r, host := b.awaitBuild(id)
				if host == bad || len(r.Spec.Interfaces) != 1 {
					b.Errorf("built on %s with %v", host, r.Spec.Interfaces)
				}
				if err := b.report(host, r.Token, ""); err != nil {
					b.Error(err)
				}
				if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "" {
					b.Errorf("server %s, %q", s.VMState, s.FaultDetails)
				}
				asked := networks.hosts()
				b.remove(id)
				if strings.HasPrefix(asked, bad) {
					if got := b.creation(id); got != "schedule:done build:back schedule:done build:done" || asked != bad+" "+host {
						b.Errorf("events %s, asked for %s", got, asked)
					}
					break
				}
				networks.set(map[string]error{bad: failed})
			}
		}
		networks.set(map[string]error{"": failed})
		id := b.addNetworked()
		b.notify(id)
		b.awaitNoTask(id)
		s := b.server(id)
		if s.VMState != store.Error || s.Host != nil || !strings.HasPrefix(s.FaultMessage, "Exceeded maximum number of retries.") || !strings.Contains(s.FaultDetails, "Binding failed for port port") || len(b.builds) > 0 {
			b.Errorf("without a host: %s on %v, %q, %q, %d builds", s.VMState, s.Host, s.FaultMessage, s.FaultDetails, len(b.builds))
		}
		b.wantNoClaims()
	})
}

// TestNetworkFaults: if the network service refuses a request, the fault of the server has Nova's text.
func TestNetworkFaults(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		networks := b.useNetworks()
		b.start()
		for _, tt := range []struct {
			code fault.Code
			want string
		}{
			{fault.Exhausted, "aborted: Failed to allocate the network(s) with error no address, not rescheduling."},
			{fault.Denied, "aborted: Failed to allocate the network(s), not rescheduling."},
			{fault.NotFound, "aborted: Failed to allocate the network(s), not rescheduling."},
			{fault.Conflict, "aborted: Failed to allocate the network(s), not rescheduling."},
		} {
			networks.set(map[string]error{"": fault.New(tt.code, "no address")})
			id := b.addNetworked()
			b.notify(id)
			b.awaitNoTask(id)
			if s := b.server(id); s.VMState != store.Error || s.FaultMessage != "Build of instance "+id+" "+tt.want || s.FaultDetails != "host h1: no address" {
				b.Errorf("%v: server %s, %q, %q", tt.code, s.VMState, s.FaultMessage, s.FaultDetails)
			}
		}
	})
}

// addNetworked adds a server with a network.
func (b *bench) addNetworked() string {
	b.Helper()
	srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, Networks: db.JSONOf(&network.Wanted{Interfaces: []network.Interface{{Request: network.Request{Network: "net"}}}})}
	if err := b.store.CreateServer(b.Context(), srv); err != nil {
		b.Fatal(err)
	}
	return srv.ID
}

// remove deletes a server on a host.
func (b *bench) remove(id string) {
	b.Helper()
	host := *b.server(id).Host
	if err := b.store.BeginDelete(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	b.notify(id)
	if err := b.report(host, get(b, b.destroys).Token, ""); err != nil {
		b.Error(err)
	}
}

// creation returns the events of the operation that has created a server.
func (b *bench) creation(id string) string {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Kind: store.Create.Name})
	if err != nil || len(list) != 1 {
		b.Fatalf("%v, %v", list, err)
	}
	o, err := b.store.Operations().Show(b.Context(), list[0].ID)
	if err != nil {
		b.Fatal(err)
	}
	return events(o)
}
