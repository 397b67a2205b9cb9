package conductor_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/operation"
)

// change begins the change of an interface of a server, and returns the id of the operation.
func (b *bench) change(id string, a compute.Action, data store.InterfaceData) string {
	b.Helper()
	data.Project = "p"
	op, err := b.store.BeginInterface(b.Context(), id, a, data)
	if err != nil {
		b.Fatal(err)
	}
	b.notify(id)
	return op
}

// wantPorts checks that the server, its guest and the network service have these ports.
func (b *bench) wantPorts(f *fakeNetworks, id string, want ...string) {
	b.Helper()
	var stored []string
	for _, p := range b.server(id).Networks.V.Ports() {
		stored = append(stored, p.ID)
	}
	guest := map[string]bool{}
	b.guest.Range(func(port, _ any) bool {
		guest[port.(string)] = true //nolint:forcetypeassert // see changeGuest
		return true
	})
	slices.Sort(stored)
	if in := slices.Sorted(maps.Keys(guest)); !slices.Equal(stored, want) || !slices.Equal(in, want) || !slices.Equal(f.has(id), want) {
		b.Errorf("the server has the ports %v, the guest %v, and the network service %v; want %v", stored, in, f.has(id), want)
	}
}

// TestInterfaces: an interface is attached and detached. After a step that fails, the server, its guest and the network service have the same ports as before.
func TestInterfaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		fail   func(b *bench, f *fakeNetworks)
		attach string // the code of the error of the attachment; empty: it succeeds
		detach string
	}{
		{"success", func(*bench, *fakeNetworks) {}, "", ""},
		{"no answer at first", func(b *bench, f *fakeNetworks) {
			f.failAttach(once(fault.New(fault.Unavailable, "Neutron is away")))
			b.changeInterface.Store(new(onceFor(fault.New(fault.Unavailable, "the driver is away"))))
		}, "", ""},
		{"refused by the network service", func(_ *bench, f *fakeNetworks) {
			f.failAttach(func() error { return fault.New(fault.Conflict, "Fixed IP address 10.0.0.3 is already in use.") })
		}, "Conflict", ""},
		{"refused by the driver", func(b *bench, _ *fakeNetworks) {
			b.changeInterface.Store(new(always(fault.New(fault.NotFound, "no such guest"))))
		}, "Internal", "Internal"},
		{"not supported by the driver", func(b *bench, _ *fakeNetworks) {
			b.changeInterface.Store(new(always(fault.New(fault.Unimplemented, "no interfaces"))))
		}, "Unimplemented", "Unimplemented"},
		{"not released by the network service", func(_ *bench, f *fakeNetworks) { f.failRelease() }, "", "Conflict"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			each(t, conductor.Config{}, func(b *bench) {
				f := b.useNetworks()
				b.start()
				id := b.build()
				for _, given := range []string{"", "given"} {
					first := b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net", Port: given}})
					if _, err := b.store.AwaitInterface(b.Context(), first); err != nil {
						b.Fatal(err)
					}
					before := f.has(id)
					tt.fail(b, f)
					if tt.attach != "" || tt.detach == "" {
						second := b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
						got, err := b.store.AwaitInterface(b.Context(), second)
						if codeOf(err) != tt.attach {
							b.Errorf("attach: %v, want the code %q", err, tt.attach)
						}
						if err == nil {
							before = append(before, got.ID)
							slices.Sort(before)
						}
						b.wantPorts(f, id, before...)
					}
					f.failAttach(nil)
					b.changeInterface.Store(nil)
					tt.fail(b, f)
					ports := b.server(id).Networks.V.Ports()
					last := ports[len(ports)-1]
					third := b.change(id, compute.DetachInterface, store.InterfaceData{Port: last})
					_, err := b.store.AwaitInterface(b.Context(), third)
					if codeOf(err) != tt.detach {
						b.Errorf("detach: %v, want the code %q", err, tt.detach)
					}
					if err == nil {
						before = slices.DeleteFunc(before, func(port string) bool { return port == last.ID })
					}
					f.failAttach(nil)
					b.changeInterface.Store(nil)
					b.wantPorts(f, id, before...)
				}
			})
		})
	}
}

// codeOf returns the code of an error, or "" for nil.
func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.CodeOf(err).String()
}

// once returns a function that returns an error at the first call.
func once(err error) func() error {
	return func() error {
		defer func() { err = nil }()
		return err
	}
}

// onceFor is once for requests to the compute service.
func onceFor(err error) func(guestChange) error {
	f := once(err)
	return func(guestChange) error { return f() }
}

// always returns a function that always returns an error.
func always(err error) func(guestChange) error {
	return func(guestChange) error { return err }
}

// TestDeletionDuringAttachment: a server is deleted while its new port is made or bound. No port is left with the server, and a port that the client has named is not deleted.
func TestDeletionDuringAttachment(t *testing.T) {
	t.Parallel()
	for _, given := range []string{"", "mine"} {
		for _, first := range []string{"", "net"} { // with and without an interface before
			t.Run("given "+given+" first "+first, func(t *testing.T) {
				t.Parallel()
				each(t, conductor.Config{}, func(b *bench) {
					f := b.useNetworks()
					b.start()
					id := b.build()
					if first != "" {
						if _, err := b.store.AwaitInterface(b.Context(), b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: first}})); err != nil {
							b.Fatal(err)
						}
					}
					released := make(chan error)
					f.failAttach(func() error { // the port is bound
						go func() { // the deletion needs the network service, too
							released <- b.store.BeginDelete(b.Context(), id)
						}()
						return get(b, released)
					})
					op := b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net", Port: given}})
					if _, err := b.store.AwaitInterface(b.Context(), op); fault.CodeOf(err) != fault.Canceled {
						b.Errorf("the attachment ends with %v", err)
					}
					b.notify(id)
					if err := b.report("h1", get(b, b.destroys).Token, ""); err != nil {
						b.Error(err)
					}
					waittest.Until(b, "no port of the server", func() bool { return len(f.has(id)) == 0 })
					f.mu.Lock()
					defer f.mu.Unlock()
					if server, ok := f.ports["mine"]; given != "" && (!ok || server != "") {
						b.Errorf("the port of the client is of the server %q; it exists: %v", server, ok)
					}
				})
			})
		}
	}
}

// TestGuestNotAsked: if the host does not answer while an attachment is undone, the port stays with the server, so that the client can detach it.
func TestGuestNotAsked(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		if b.db.DriverName() == "mysql" {
			b.Skip("the undo ends after 11 minutes on the clock of the database server")
		}
		b.cfg.Poll = 5 * time.Second
		f := b.useNetworks()
		b.start()
		id := b.build()
		b.changeInterface.Store(new(func(c guestChange) error {
			if !c.detach {
				b.guest.Store(c.port, c.server)
			}
			return fault.New(fault.Unavailable, "the host is away")
		}))
		op := b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
		if _, err := b.store.AwaitInterface(b.Context(), op); err == nil {
			b.Error("attached without an answer")
		}
		b.changeInterface.Store(nil)
		b.wantPorts(f, id, "port-1")
		if _, err := b.store.AwaitInterface(b.Context(), b.change(id, compute.DetachInterface, store.InterfaceData{Port: b.server(id).Networks.V.Ports()[0]})); err != nil {
			b.Error(err)
		}
		b.wantPorts(f, id)
	})
}

// TestOlderComputeService: while a compute service before 1.6 runs, an attachment fails after a minute, and nothing is left of it.
func TestOlderComputeService(t *testing.T) {
	t.Parallel()
	eachWith(t, conductor.Config{}, rpc.ClientConfig{Caps: rpc.Versions{compute.Worker.Name: {{Major: 1, Minor: 5}}}}, func(b *bench) {
		if b.db.DriverName() == "mysql" {
			b.Skip("the step ends after a minute on the clock of the database server")
		}
		b.cfg.Poll = 5 * time.Second
		f := b.useNetworks()
		b.start()
		id := b.build()
		for _, given := range []string{"", "given"} {
			began := time.Now()
			_, err := b.store.AwaitInterface(b.Context(), b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net", Port: given}}))
			if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "version 1.6") || took > 2*time.Minute {
				b.Errorf("an attachment of the port %q ended after %v: %v", given, took, err)
			}
			b.wantPorts(f, id)
		}
	})
}

// TestManyAttachments: attachments at the same time wait for each other, and none is refused. A soft deletion among them is not lost.
func TestManyAttachments(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		f := b.useNetworks()
		b.start()
		id := b.build()
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 3 {
					op, err := b.store.BeginInterface(b.Context(), id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
					if err == nil {
						b.svc.Runner.NotifyResource(id)
						_, err = b.store.AwaitInterface(b.Context(), op)
					}
					if err != nil {
						b.Error(err)
					}
				}
			})
		}
		all.Wait()
		if n := len(f.has(id)); n != 24 {
			b.Errorf("%d ports, want 24", n)
		}
		op := b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
		if err := b.store.BeginSoftDelete(b.Context(), id); err != nil {
			b.Error(err)
		}
		if _, err := b.store.AwaitInterface(b.Context(), op); err != nil {
			b.Error(err)
		}
		if s := b.server(id); s.Task() != compute.SoftDelete.Info().Task {
			b.Errorf("the soft deletion was lost: the task is %q", s.Task())
		}
	})
}

// TestActionsWaitForInterfaces: while an interface is changed, the server has no task, and other actions and a soft deletion wait. A deletion does not wait, and no port is left.
func TestActionsWaitForInterfaces(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(b *bench, id string) error{
		"stop": func(b *bench, id string) error {
			return b.store.BeginAction(b.Context(), id, compute.Stop, store.ActData{})
		},
		"attach_interface": func(b *bench, id string) error {
			_, err := b.store.BeginInterface(b.Context(), id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
			return err
		},
		"soft_delete": func(b *bench, id string) error { return b.store.BeginSoftDelete(b.Context(), id) },
		"delete":      func(b *bench, id string) error { return b.store.BeginDelete(b.Context(), id) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, conductor.Config{}, func(b *bench) {
				f := b.useNetworks()
				b.start()
				id := b.build()
				asked, release := make(chan struct{}), make(chan error)
				b.changeInterface.Store(new(func(guestChange) error {
					asked <- struct{}{}
					return <-release
				}))
				op := b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
				get(b, asked)
				if s := b.server(id); s.Task() != "" {
					b.Errorf("the task is %q", s.Task())
				}
				begun := make(chan error)
				go func() { begun <- begin(b, id) }()
				if name == "delete" {
					if err := get(b, begun); err != nil {
						b.Error(err)
					}
					close(release)
					b.notify(id)
					r := get(b, b.destroys)
					if err := b.report("h1", r.Token, ""); err != nil {
						b.Error(err)
					}
					waittest.Until(b, "no port", func() bool { return len(f.has(id)) == 0 })
					return
				}
				waittest.Pass(b, 3*poll, "the action waits")
				select {
				case err := <-begun:
					b.Errorf("the action did not wait: %v", err)
				default:
				}
				b.changeInterface.Store(nil)
				close(release)
				if _, err := b.store.AwaitInterface(b.Context(), op); err != nil {
					b.Error(err)
				}
				if err := get(b, begun); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// TestInterfaceBegins: BeginInterface refuses a server whose state or host does not allow the change, and writes nothing.
func TestInterfaceBegins(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		for set, want := range map[string]string{
			`UPDATE servers SET vm_state = 'suspended'`:           "Cannot 'attach_interface' instance " + id + " while it is in vm_state suspended",
			`UPDATE hosts SET capabilities = '["snapshot"]'`:      "The requested functionality is not supported.",
			`UPDATE servers SET vm_state = 'active', host = NULL`: "Instance " + id + " is not ready",
		} {
			b.exec(`UPDATE servers SET vm_state = 'active', host = 'h1'`)
			b.exec(`UPDATE hosts SET capabilities = NULL`)
			b.exec(set)
			_, err := b.store.BeginInterface(b.Context(), id, compute.AttachInterface, store.InterfaceData{})
			if err == nil || !strings.Contains(err.Error(), want) {
				b.Errorf("%s: %v, want %s", set, err, want)
			}
			if _, err := b.store.Operations().Current(b.Context(), id); !errors.Is(err, fault.NotFound) {
				b.Errorf("%s: an operation was begun: %v", set, err)
			}
		}
		if _, err := b.store.BeginInterface(context.Background(), "none", compute.AttachInterface, store.InterfaceData{}); !errors.Is(err, fault.NotFound) {
			b.Errorf("a server that does not exist: %v", err)
		}
	})
}

// TestDeletedPort: if the network service has deleted a port, the guest and the server lose the interface in each state of the server, also if the driver cannot change interfaces. If the host fails, the
// server keeps the interface, as in Nova.
func TestDeletedPort(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		lost bool
	}{
		{"success", nil, true},
		{"not supported by the driver", fault.New(fault.Unimplemented, "no interfaces"), true},
		{"no guest", fault.New(fault.NotFound, "no guest"), true},
		{"failure", fault.New(fault.Internal, "busy"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			each(t, conductor.Config{}, func(b *bench) {
				f := b.useNetworks()
				b.start()
				id := b.build()
				port, err := b.store.AwaitInterface(b.Context(), b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}}))
				if err != nil {
					b.Fatal(err)
				}
				f.failRelease() // of a port that does not exist
				b.exec(`UPDATE servers SET vm_state = 'suspended'`)
				b.exec(`UPDATE hosts SET capabilities = '["snapshot"]'`)
				b.changeInterface.Store(new(always(tt.err)))
				_, err = b.store.AwaitInterface(b.Context(), b.change(id, compute.DetachInterface, store.InterfaceData{Port: *port, Deleted: true}))
				if lost := len(b.server(id).Networks.V.Ports()) == 0; lost != tt.lost || (err == nil) != tt.lost {
					b.Errorf("%v; the server has lost the interface: %v, want %v", err, lost, tt.lost)
				}
			})
		})
	}
}

// TestHungHosts: changes of interfaces on a host that hangs do not delay an action on another host, although there are more of these changes than slots of the conductor.
func TestHungHosts(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		const slots = 2
		b.cfg.Runner = operation.NewRunner(operation.RunnerConfig{Store: b.store.Operations(), Host: "c", Poll: poll, MaxInFlight: slots, Logger: slog.New(slog.DiscardHandler)})
		b.useNetworks()
		b.start()
		addHost := func(name string) {
			if _, err := b.svc.ReportHost(b.Context(), &compute.HostReport{Host: name, Driver: "d", DriverVersion: "1", Resources: compute.Resources{VCPUs: slots + 1, MemoryMiB: slots + 1, DiskGiB: slots + 1}}); err != nil {
				b.Fatal(err)
			}
		}
		addHost("h1")
		asked, release := make(chan struct{}, 100), make(chan error)
		b.changeInterface.Store(new(func(guestChange) error {
			asked <- struct{}{}
			return <-release
		}))
		defer close(release)
		var hung []string
		for range slots + 1 {
			hung = append(hung, b.build())
		}
		for _, id := range hung {
			b.change(id, compute.AttachInterface, store.InterfaceData{Request: network.Request{Network: "net"}})
		}
		for range slots {
			get(b, asked)
		}
		addHost("h2")
		began := time.Now()
		other := b.build()
		b.act(other, compute.Stop, store.ActData{})
		if took := time.Since(began); took > 5*time.Second {
			b.Errorf("the other host got its requests after %v", took)
		}
		if host := b.server(other).Host; host == nil || *host != "h2" {
			b.Errorf("the other server is not on h2")
		}
	})
}
