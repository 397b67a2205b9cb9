package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

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
