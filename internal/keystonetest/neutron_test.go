package keystonetest_test

import (
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/portsbinding"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/internal/keystonetest"
)

// TestNeutron: a member of a project makes a network and a subnet, and an administrator binds a port of the network on a
// host.
func TestNeutron(t *testing.T) {
	t.Parallel()
	k := keystonetest.Start(t)
	k.Neutron("node-1")
	p := k.Project("p")
	k.Grant(k.User("ada"), "member", gophercloud.AuthScope{ProjectID: p})
	k.Grant(k.User("root"), "admin", gophercloud.AuthScope{ProjectID: p})
	ada, root := k.Networks("ada", p), k.Networks("root", p)
	n, err := networks.Create(t.Context(), ada, networks.CreateOpts{Name: "private"}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := subnets.Create(t.Context(), ada, subnets.CreateOpts{NetworkID: n.ID, CIDR: "10.0.0.0/24", IPVersion: 4}).Extract(); err != nil {
		t.Fatal(err)
	}
	var got struct {
		ports.Port
		portsbinding.PortsBindingExt
	}
	opts := portsbinding.CreateOptsExt{CreateOptsBuilder: ports.CreateOpts{NetworkID: n.ID, DeviceOwner: "compute:nova", DeviceID: "x"}, HostID: "node-1"}
	if err := ports.Create(t.Context(), root, opts).ExtractInto(&got); err != nil {
		t.Fatal(err)
	}
	if got.VIFType != "ovs" || len(got.FixedIPs) != 1 || got.HostID != "node-1" {
		t.Errorf("%+v", got)
	}
}
