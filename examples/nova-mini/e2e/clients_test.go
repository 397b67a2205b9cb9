package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/attachinterfaces"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/availabilityzones"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/keypairs"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/limits"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servergroups"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/tags"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/pagination"
)

// member is a client of the compute API. It is a member of a project, and uses gophercloud in the same way as Terraform and Cluster API.
type member struct {
	*openstack

	networks *gophercloud.ServiceClient
	glance   *gophercloud.ServiceClient // of the images that a test with Glance makes
	token    string
	// ids has the ids of projects and users by name.
	ids map[string]string
	// narrowed has the options of server list that the commands have used, and whether a list had fewer servers because of the option.
	narrowed map[string]bool
}

// at returns a client for a microversion. Terraform chooses a microversion for each request.
func (m *member) at(version string) *gophercloud.ServiceClient {
	p := &gophercloud.ProviderClient{TokenID: m.token}
	return &gophercloud.ServiceClient{ProviderClient: p, Endpoint: m.compute + "/v2.1/", Type: "compute", Microversion: version}
}

// must fails the test if a call of a client has failed.
func (m *member) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// await polls a server until it has a status, as Terraform does.
func (m *member) await(id, status string) *servers.Server {
	m.Helper()
	var s *servers.Server
	m.poll("the server to be "+status, time.Minute, func() (err error) {
		if s, err = servers.Get(m.Context(), m.at("2.1"), id).Extract(); err == nil && s.Status != status {
			err = fmt.Errorf("%s, %+v", s.Status, s.Fault)
		}
		return err
	})
	return s
}

// gone polls a server until it is not found.
func (m *member) gone(id string) {
	m.Helper()
	m.poll("the server to be gone", time.Minute, func() error {
		_, err := servers.Get(m.Context(), m.at("2.1"), id).Extract()
		switch {
		case err == nil:
			return errors.New("it is there")
		case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
			return nil
		}
		return err
	})
}

// create creates a server and waits until it is ACTIVE.
func (m *member) create(version string, opts servers.CreateOptsBuilder, hints servers.SchedulerHintOptsBuilder) *servers.Server {
	m.Helper()
	s, err := servers.Create(m.Context(), m.at(version), opts, hints).Extract()
	m.must(err)
	return m.await(s.ID, "ACTIVE")
}

// itemsOf returns the items of all pages of a list.
func itemsOf[T any](m *member, list pagination.Pager, extract func(pagination.Page) (T, error)) T {
	m.Helper()
	page, err := list.AllPages(m.Context())
	m.must(err)
	out, err := extract(page)
	m.must(err)
	return out
}

// TestClients sends the requests of Terraform and Cluster API, in the same order, to a cloud with a real Keystone and a real Neutron.
func TestClients(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept; TestEachClient has the smallest plan")
	}
	o := newOpenStack(t, openstackWith{neutron: true, hosts: []string{"node-1", "node-2"}})
	p := o.ks.Project("p")
	scope := gophercloud.AuthScope{ProjectID: p}
	o.ks.Grant(o.ks.User("ada"), "member", scope)
	m := &member{openstack: o, networks: o.ks.Networks("ada", p), token: o.ks.Token("ada", &scope)}
	private := o.newNetwork(m.networks, "private", "10.0.0.0/24")
	m.smallestPlan()
	m.largePlan(private.ID)
	m.machine(private.ID)
	o.ks.Grant(o.ks.User("root"), "admin", scope)
	(&member{openstack: o, token: o.ks.Token("root", &scope), ids: map[string]string{"p": p}}).adminPlan()
}

// adminPlan sends the requests for a plan of Terraform that an administrator applies: a flavor with extra specs, a server on a given hypervisor, and the limits of the project.
func (m *member) adminPlan() {
	ctx := m.Context()
	created, err := flavors.Create(ctx, m.at("2.55"), flavors.CreateOpts{Name: "tf", RAM: 256, VCPUs: 1, Disk: new(1), Swap: new(0), Ephemeral: new(0), RxTxFactor: 1, IsPublic: new(true), Description: "one"}).Extract()
	m.must(err)
	specs := func(want map[string]string) {
		m.Helper()
		got, err := flavors.ListExtraSpecs(ctx, m.at("2.1"), created.ID).Extract()
		m.must(err)
		if !maps.Equal(got, want) {
			m.Errorf("extra specs %v, want %v", got, want)
		}
	}
	set := func(specs flavors.ExtraSpecsOpts) {
		m.Helper()
		_, err := flavors.CreateExtraSpecs(ctx, m.at("2.1"), created.ID, specs).Extract()
		m.must(err)
	}
	set(flavors.ExtraSpecsOpts{"hw:cpu_policy": "shared", "hw:mem_page_size": "small"})
	specs(map[string]string{"hw:cpu_policy": "shared", "hw:mem_page_size": "small"})
	_, err = flavors.Update(ctx, m.at("2.55"), created.ID, flavors.UpdateOpts{Description: "two"}).Extract()
	m.must(err)
	for _, key := range []string{"hw:cpu_policy", "hw:mem_page_size"} { // Terraform removes all extra specs and sets the new ones
		m.must(flavors.DeleteExtraSpec(ctx, m.at("2.1"), created.ID, key).ExtractErr())
	}
	specs(map[string]string{})
	set(flavors.ExtraSpecsOpts{"hw:cpu_policy": "shared"})
	specs(map[string]string{"hw:cpu_policy": "shared"})
	if now, err := flavors.Get(ctx, m.at("2.55"), created.ID).Extract(); err != nil || now.Name != "tf" || now.RAM != 256 || now.Description != "two" {
		m.Errorf("%+v, %v", now, err)
	}

	placed := m.create("2.74", servers.CreateOpts{Name: "placed", ImageRef: m.images[0], FlavorRef: created.ID, Networks: "none", HypervisorHostname: "node-2"}, nil)
	if placed.HypervisorHostname != "node-2" {
		m.Errorf("the server is on %s", placed.HypervisorHostname)
	}
	absolute, err := limits.Get(ctx, m.at("2.1"), limits.GetOpts{TenantID: m.ids["p"]}).Extract()
	m.must(err)
	if of := absolute.Absolute; of.TotalInstancesUsed != 1 || of.TotalRAMUsed != 256 || of.TotalCoresUsed != 1 || of.MaxTotalInstances != -1 || of.MaxTotalKeypairs != 100 {
		m.Errorf("limits %+v", of)
	}
	m.must(servers.Delete(ctx, m.at("2.1"), placed.ID).ExtractErr())
	m.gone(placed.ID)
	m.must(flavors.Delete(ctx, m.at("2.1"), created.ID).ExtractErr())
	if _, err := flavors.Get(ctx, m.at("2.1"), created.ID).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
		m.Errorf("the deleted flavor: %v", err)
	}
}

// smallestPlan sends the requests for a plan of Terraform with only a name, an image and a flavor: its creation, its changes, and its deletion.
func (m *member) smallestPlan() {
	ctx := m.Context()
	s := m.create("2.1", servers.CreateOpts{Name: "tf", ImageRef: m.images[0], FlavorRef: "1", ConfigDrive: new(false), UserData: []byte{}}, nil)
	if s.Flavor["id"] != "1" || s.Image["id"] != m.images[0] || s.ConfigDrive {
		m.Errorf("%+v", s)
	}
	_, err := flavors.Get(ctx, m.at("2.1"), "1").Extract()
	m.must(err)
	list, err := tags.List(ctx, m.at("2.26"), s.ID).Extract()
	m.must(err)
	if len(list) != 0 {
		m.Errorf("tags %v", list)
	}

	renamed, err := servers.Update(ctx, m.at("2.1"), s.ID, servers.UpdateOpts{Name: "tf-2"}).Extract()
	m.must(err)
	md, err := servers.UpdateMetadata(ctx, m.at("2.1"), s.ID, servers.MetadataOpts{"a": "1", "b": "2"}).Extract()
	m.must(err)
	m.must(servers.DeleteMetadatum(ctx, m.at("2.1"), s.ID, "a").ExtractErr())
	left, err := servers.Metadata(ctx, m.at("2.1"), s.ID).Extract()
	m.must(err)
	if renamed.Name != "tf-2" || len(md) != 2 || len(left) != 1 || left["b"] != "2" {
		m.Errorf("name %s, metadata %v, then %v", renamed.Name, md, left)
	}
	replaced, err := tags.ReplaceAll(ctx, m.at("2.52"), s.ID, tags.ReplaceAllOpts{Tags: []string{"x", "y"}}).Extract()
	m.must(err)
	if len(replaced) != 2 {
		m.Errorf("tags %v", replaced)
	}

	for _, step := range []struct {
		do     func() error
		status string
	}{
		{func() error { return servers.Stop(ctx, m.at("2.1"), s.ID).ExtractErr() }, "SHUTOFF"},
		{func() error { return servers.Start(ctx, m.at("2.1"), s.ID).ExtractErr() }, "ACTIVE"},
		{func() error { return servers.Shelve(ctx, m.at("2.1"), s.ID).ExtractErr() }, "SHELVED_OFFLOADED"},
		{func() error { return servers.Unshelve(ctx, m.at("2.1"), s.ID, servers.UnshelveOpts{}).ExtractErr() }, "ACTIVE"},
		{func() error {
			return servers.Resize(ctx, m.at("2.1"), s.ID, servers.ResizeOpts{FlavorRef: "2"}).ExtractErr()
		}, "VERIFY_RESIZE"},
		{func() error { return servers.ConfirmResize(ctx, m.at("2.1"), s.ID).ExtractErr() }, "ACTIVE"},
		{func() error {
			_, err := servers.Rebuild(ctx, m.at("2.1"), s.ID, servers.RebuildOpts{ImageRef: m.images[1], Name: "tf-2"}).Extract()
			return err
		}, "ACTIVE"},
		{func() error { return servers.ChangeAdminPassword(ctx, m.at("2.1"), s.ID, "secret").ExtractErr() }, "ACTIVE"},
	} {
		m.must(step.do())
		m.idle(s.ID)
		m.await(s.ID, step.status)
	}
	if now := m.await(s.ID, "ACTIVE"); now.Flavor["id"] != "2" || now.Image["id"] != m.images[1] {
		m.Errorf("%+v", now)
	}
	m.must(servers.ForceDelete(ctx, m.at("2.1"), s.ID).ExtractErr()) // the value of forceDelete is "", not null
	m.gone(s.ID)
}

// idle waits until a server has no task.
func (m *member) idle(id string) {
	m.Helper()
	m.poll("the server to have no task", time.Minute, func() error {
		s, err := servers.Get(m.Context(), m.at("2.1"), id).Extract()
		if gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
			return nil
		}
		if err == nil && s.TaskState != "" {
			err = errors.New(s.TaskState)
		}
		return err
	})
}

// largePlan sends the requests for a plan of Terraform with the arguments for which Terraform chooses later microversions.
func (m *member) largePlan(network string) {
	ctx := m.Context()
	key, err := keypairs.Create(ctx, m.at("2.10"), keypairs.CreateOpts{Name: "tf"}).Extract()
	m.must(err)
	group, err := servergroups.Create(ctx, m.at("2.64"), servergroups.CreateOpts{Name: "apart", Policy: "anti-affinity", Rules: &servergroups.Rules{MaxServerPerHost: 1}}).Extract()
	m.must(err)
	opts := servers.CreateOpts{
		Name: "tf", ImageRef: m.images[0], FlavorRef: "1", ConfigDrive: new(true), UserData: []byte("#cloud-config\n"), AdminPass: "secret", SecurityGroups: []string{"default"},
		Networks: []servers.Network{{UUID: network}}, Metadata: map[string]string{"a": "1"}, Tags: []string{"x"}, AvailabilityZone: "nova", Hostname: "tf-host",
		BlockDevice: []servers.BlockDevice{{SourceType: "image", UUID: m.images[0], DestinationType: "local", DeleteOnTermination: true}},
	}
	s := m.create("2.90", keypairs.CreateOptsExt{CreateOptsBuilder: opts, KeyName: key.Name}, servers.SchedulerHintOpts{Group: group.ID})
	if s.KeyName != "tf" || s.Metadata["a"] != "1" || !s.ConfigDrive || len(s.SecurityGroups) != 1 || s.Addresses["private"] == nil {
		m.Errorf("%+v", s)
	}
	auto := m.create("2.37", servers.CreateOpts{Name: "auto", ImageRef: m.images[0], FlavorRef: "1", Networks: "auto"}, servers.SchedulerHintOpts{Group: group.ID})
	none := m.create("2.37", servers.CreateOpts{Name: "none", ImageRef: m.images[0], FlavorRef: "1", Networks: "none"}, nil)
	if len(auto.Addresses) != 1 || len(none.Addresses) != 0 || auto.HostID == s.HostID {
		m.Errorf("auto %v on %s, none %v, the first one on %s", auto.Addresses, auto.HostID, none.Addresses, s.HostID)
	}
	given, err := ports.Create(ctx, m.networks, ports.CreateOpts{NetworkID: network, Name: "tf"}).Extract()
	m.must(err)
	ported := m.create("2.1", servers.CreateOpts{Name: "ported", ImageRef: m.images[0], FlavorRef: "1", UserData: []byte{}, Networks: []servers.Network{{Port: given.ID}}}, nil)
	if list := itemsOf(m, attachinterfaces.List(m.at("2.1"), ported.ID), attachinterfaces.ExtractInterfaces); len(list) != 1 || list[0].PortID != given.ID || len(ported.Addresses) != 1 {
		m.Errorf("the interfaces %+v, the addresses %v, the given port %s", list, ported.Addresses, given.ID)
	}
	port, err := attachinterfaces.Create(ctx, m.at("2.1"), none.ID, attachinterfaces.CreateOpts{NetworkID: network}).Extract()
	m.must(err)
	m.must(attachinterfaces.Delete(ctx, m.at("2.1"), none.ID, port.PortID).ExtractErr())
	for _, one := range []*servers.Server{s, auto, none, ported} {
		m.must(servers.Delete(ctx, m.at("2.1"), one.ID).ExtractErr())
		m.gone(one.ID)
	}
	m.release(given.ID)
	m.must(servergroups.Delete(ctx, m.at("2.1"), group.ID).ExtractErr())
	m.must(keypairs.Delete(ctx, m.at("2.10"), key.Name, nil).ExtractErr())
}

// release deletes a port that was given to a deleted server: the port must be left, and free.
func (m *member) release(port string) {
	m.Helper()
	if left, err := ports.Get(m.Context(), m.networks, port).Extract(); err != nil || left.DeviceID != "" {
		m.Errorf("the given port: %+v, %v", left, err)
	}
	m.must(ports.Delete(m.Context(), m.networks, port).ExtractErr())
}

// machine sends the requests of Cluster API for a machine: the client looks for the server by its name, makes a port and the server, and looks for
// the server a second time.
func (m *member) machine(network string) {
	ctx, c := m.Context(), m.at("2.60")
	if zones := itemsOf(m, availabilityzones.List(c), availabilityzones.ExtractAvailabilityZones); len(zones) != 1 || !zones[0].ZoneState.Available {
		m.Errorf("%+v", zones)
	}
	if list := itemsOf(m, flavors.ListDetail(c, nil), flavors.ExtractFlavors); len(list) != 5 {
		m.Errorf("%d flavors", len(list))
	}
	named := func() []servers.Server {
		return itemsOf(m, servers.List(c, servers.ListOpts{Name: "^machine-0$"}), servers.ExtractServers)
	}
	if list := named(); len(list) != 0 {
		m.Errorf("%+v", list)
	}
	other := m.create("2.60", servers.CreateOpts{Name: "machine-01", ImageRef: m.images[0], FlavorRef: "1", Networks: "none"}, nil)
	if list := itemsOf(m, servergroups.List(c, nil), servergroups.ExtractServerGroups); len(list) != 0 {
		m.Errorf("%+v", list)
	}
	group, err := servergroups.Create(ctx, m.at("2.64"), servergroups.CreateOpts{Name: "workers", Policy: "soft-anti-affinity"}).Extract()
	m.must(err)
	key, err := keypairs.Create(ctx, c, keypairs.CreateOpts{Name: "capi"}).Extract()
	m.must(err)
	port, err := ports.Create(ctx, m.networks, ports.CreateOpts{NetworkID: network, Name: "machine-0-0"}).Extract()
	m.must(err)
	s := m.create("2.60", keypairs.CreateOptsExt{CreateOptsBuilder: servers.CreateOpts{
		Name: "machine-0", ImageRef: m.images[0], FlavorRef: "1", UserData: []byte(strings.Repeat("x", 20000)), ConfigDrive: new(true), Tags: []string{"cluster"},
		Networks: []servers.Network{{Port: port.ID}}, AvailabilityZone: "nova",
		BlockDevice: []servers.BlockDevice{{SourceType: "image", UUID: m.images[0], DestinationType: "local", DeleteOnTermination: true}},
	}, KeyName: key.Name}, servers.SchedulerHintOpts{Group: group.ID})
	if list := named(); len(list) != 1 || list[0].ID != s.ID {
		m.Errorf("%+v", list)
	}
	if list := itemsOf(m, attachinterfaces.List(c, s.ID), attachinterfaces.ExtractInterfaces); len(list) != 1 || list[0].PortID != port.ID || len(list[0].FixedIPs) != 1 {
		m.Errorf("%+v", list)
	}
	for _, one := range []*servers.Server{s, other} {
		m.must(servers.Delete(ctx, c, one.ID).ExtractErr())
		m.gone(one.ID)
	}
	m.release(port.ID)
	m.must(servergroups.Delete(ctx, c, group.ID).ExtractErr())
}
