package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestInterface: of each port, a driver gets the first address in each subnet. Of a port without subnets, as an earlier release has
// stored it, a driver gets no address.
func TestInterface(t *testing.T) {
	t.Parallel()
	p := network.Port{
		ID: "port", Network: "net", MAC: "fa:16:3e:00:00:01", Bridge: "br1", Tag: "t", MTU: 1450,
		Addresses: []network.Address{{IP: "10.0.0.5", Subnet: "a"}, {IP: "10.0.0.6", Subnet: "a"}, {IP: "2001:db8::5", Subnet: "b"}},
		Subnets: []network.Subnet{
			{ID: "a", CIDR: "10.0.0.0/24", Gateway: "10.0.0.1", DHCP: true, DNS: []string{"8.8.8.8"}, Routes: []network.Route{{Destination: "10.1.0.0/16", Gateway: "10.0.0.2"}}},
			{ID: "b", CIDR: "2001:db8::/64", IPv6Mode: "slaac"},
		},
	}
	want := compute.Interface{
		ID: "port", MAC: "fa:16:3e:00:00:01", Network: "bridge:br1", NetworkID: "net", MTU: 1450, Tag: "t",
		Addresses: []compute.GuestAddress{
			{Prefix: "10.0.0.5/24", DHCP: true, Gateway: "10.0.0.1", DNS: []string{"8.8.8.8"}, Routes: []compute.Route{{Destination: "10.1.0.0/16", Gateway: "10.0.0.2"}}},
			{Prefix: "2001:db8::5/64", IPv6Mode: "slaac"},
		},
	}
	if diff := cmp.Diff(want, store.Interface(p)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	p.Subnets = nil
	if got := store.Interface(p).Addresses; got != nil {
		t.Errorf("addresses without subnets: %v", got)
	}
}

// TestDetachDeleted: a server that loses the interface of a deleted port anyway, because it is deleted or a client detaches the interface, gets no other detachment, and the caller does not wait for its
// deletion. The network service reports each port that a detachment or a deletion deletes.
func TestDetachDeleted(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		addHost(t, s, "h", 1)
		id := addServer(t, s).ID
		place(t, s, d, id, "h")
		endAll := func() {
			if _, err := d.ExecContext(t.Context(), `UPDATE operations SET state = 'succeeded', active = NULL, due_at = NULL`); err != nil {
				t.Fatal(err)
			}
		}
		detachments := func() (n int) {
			if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM operations WHERE kind = ?`, store.DetachInterface.Name); err != nil {
				t.Fatal(err)
			}
			return n
		}
		endAll() // the build
		port := network.Port{ID: "port"}
		if err := s.ChangePorts(t.Context(), id, func(s *store.Server) error {
			s.Networks.V.Interfaces = []network.Interface{{Port: port}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ExecContext(t.Context(), `UPDATE servers SET vm_state = 'active'`); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ExecContext(t.Context(), `UPDATE hosts SET capabilities = '["`+string(compute.CapAttachInterface)+`"]'`); err != nil {
			t.Fatal(err)
		}
		if _, err := s.BeginInterface(t.Context(), id, compute.DetachInterface, store.InterfaceData{Port: port}); err != nil { // a client's
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.DetachDeleted(t.Context(), id, port.ID) }()
		select {
		case err := <-done:
			t.Errorf("during the detachment of a client: %v, want a wait for its end", err)
		case <-time.After(200 * time.Millisecond):
		}
		if err := s.ForgetPort(t.Context(), id, port.ID); err != nil {
			t.Fatal(err)
		}
		endAll()
		if err, n := <-done, detachments(); err != nil || n != 1 {
			t.Errorf("after the detachment of a client: %v, and %d detachments, want 1", err, n)
		}
		if err := s.BeginDelete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := s.ChangePorts(t.Context(), id, func(s *store.Server) error {
			s.Networks.V.Interfaces = []network.Interface{{Port: port}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err, n := s.DetachDeleted(t.Context(), id, port.ID), detachments(); err != nil || n != 1 {
			t.Errorf("during the deletion: %v, and %d detachments, want 1", err, n)
		}
	})
}
