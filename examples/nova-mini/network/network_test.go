package network_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/external"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/keystonetest"
	"github.com/armature-go/armature/internal/testenv"
)

// neutronTest is a real Neutron with the networks of two projects. The subtests of TestNeutron use it one after the other.
type neutronTest struct {
	*network.Neutron

	keystone       *keystonetest.Keystone
	service        *testenv.Service
	project, other string
	token          string                     // the token of ada, a member of the project
	ada, bob       *gophercloud.ServiceClient // the clients of the members of the projects
	services       *gophercloud.ServiceClient // the client of an administrator in the project of the services
	// Three networks: private is of the project, with five addresses for servers; foreign is of the other project; all projects may use shared.
	private, foreign, shared string
	mine, theirs             *ports.Port      // a port of each project
	servers                  []network.Server // the servers that may have ports
}

// TestNeutron: with a real Neutron, the requests of clients are checked, and the ports of servers are made, bound, found by a repeated call, and released.
func TestNeutron(t *testing.T) { //nolint:tparallel // the subtests use one Neutron
	t.Parallel()
	c := newNeutronTest(t)
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, c *neutronTest)
	}{
		{"the only network", testOnlyNetwork},
		{"networks of other projects", testOtherNetworks},
		{"refused requests", testRefusedRequests},
		{"administrator", testAdministrator},
		{"port of another project", testForeignPort},
		{"groups by name", testGroupsByName},
		{"wrong token", testWrongToken},
		{"allocate", testAllocate},
		{"addresses", testAddresses},
		{"lost interfaces", testLostInterfaces},
		{"release", testRelease},
		{"away", testNeutronAway},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, c) })
	}
}

func newNeutronTest(t *testing.T) *neutronTest {
	t.Helper()
	k := keystonetest.Start(t)
	c := &neutronTest{keystone: k, service: k.Neutron("node-1", "node-2"), project: k.Project("p"), other: k.Project("o")}
	k.Grant(k.User("ada"), "member", gophercloud.AuthScope{ProjectID: c.project})
	k.Grant(k.User("bob"), "member", gophercloud.AuthScope{ProjectID: c.other})
	c.token = k.Token("ada", &gophercloud.AuthScope{ProjectID: c.project})
	c.ada, c.bob, c.services = k.Networks("ada", c.project), k.Networks("bob", c.other), k.Networks("neutron", k.Services())
	var err error
	if c.Neutron, err = network.New(session.Config{AuthURL: k.Endpoint, Username: "neutron", Password: keystonetest.Password, UserTokens: true}); err != nil {
		t.Fatal(err)
	}
	return c
}

// check checks the requests of the member for networks, for servers of this number.
func (c *neutronTest) check(t *testing.T, list []network.Request, auto bool, count int) ([]network.Request, error) {
	t.Helper()
	return c.Check(t.Context(), network.Client{Token: c.token, Project: c.project}, list, auto, count)
}

// newNetwork returns the id of a new network. If cidr is empty, the network has no subnet.
func (c *neutronTest) newNetwork(t *testing.T, client *gophercloud.ServiceClient, opts networks.CreateOptsBuilder, cidr string) string {
	t.Helper()
	n, err := networks.Create(t.Context(), client, opts).Extract()
	if err == nil && cidr != "" {
		_, err = subnets.Create(t.Context(), client, subnets.CreateOpts{NetworkID: n.ID, CIDR: cidr, IPVersion: 4}).Extract()
	}
	if err != nil {
		t.Fatal(err)
	}
	return n.ID
}

func (c *neutronTest) newPort(t *testing.T, client *gophercloud.ServiceClient, networkID string) *ports.Port {
	t.Helper()
	p, err := ports.Create(t.Context(), client, ports.CreateOpts{NetworkID: networkID}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testOnlyNetwork(t *testing.T, c *neutronTest) {
	t.Helper()
	if got, err := c.check(t, nil, false, 1); len(got) != 0 || err != nil {
		t.Errorf("no network: %v, %v", got, err)
	}
	if _, err := c.check(t, nil, true, 1); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "Unable to automatically allocate a network") {
		t.Errorf("auto without a network: %v", err)
	}
	c.private = c.newNetwork(t, c.ada, networks.CreateOpts{Name: "private"}, "10.0.0.0/29") // five addresses for servers, because the gateway has one
	if got, err := c.check(t, nil, true, 1); len(got) != 1 || got[0].Network != c.private || err != nil {
		t.Errorf("the only network: %v, %v", got, err)
	}
}

func testOtherNetworks(t *testing.T, c *neutronTest) {
	t.Helper()
	c.shared = c.newNetwork(t, c.services, networks.CreateOpts{Name: "shared", Shared: new(true)}, "10.2.0.0/24")
	if _, err := c.check(t, []network.Request{{Network: c.shared}}, false, 1); err != nil {
		t.Errorf("a shared network: %v", err)
	}
	outside := c.newNetwork(t, c.services, external.CreateOptsExt{CreateOptsBuilder: networks.CreateOpts{Name: "outside"}, External: new(true)}, "10.3.0.0/24")
	for _, may := range []bool{false, true} {
		for _, admin := range []bool{false, true} { // also an administrator needs the rule
			_, err := c.Check(t.Context(), network.Client{Token: c.token, Project: c.project, Admin: admin, External: may}, []network.Request{{Network: outside}}, false, 1)
			if may != (err == nil) || !may && (!errors.Is(err, fault.Denied) || err.Error() != "It is not allowed to create an interface on external network "+outside) {
				t.Errorf("an external network, allowed %v: %v", may, err)
			}
		}
	}
}

func testRefusedRequests(t *testing.T, c *neutronTest) {
	t.Helper()
	empty := c.newNetwork(t, c.ada, networks.CreateOpts{Name: "empty"}, "")
	c.foreign = c.newNetwork(t, c.bob, networks.CreateOpts{Name: "foreign"}, "10.1.0.0/24")
	c.mine, c.theirs = c.newPort(t, c.ada, c.private), c.newPort(t, c.bob, c.foreign)
	for _, tt := range []struct {
		list  []network.Request
		count int
		code  fault.Code
		text  string
	}{
		{nil, 1, fault.Conflict, "Multiple possible networks found, use a Network ID to be more specific."},
		{[]network.Request{{Network: c.foreign}}, 1, fault.NotFound, "Network " + c.foreign + " could not be found."},
		{[]network.Request{{Network: c.shared, FixedIP: "10.2.0.9"}}, 1, fault.Denied, "It is not allowed to choose an address in network " + c.shared},
		{[]network.Request{{Port: c.mine.ID, Tag: "a"}, {Port: c.mine.ID, Tag: "b"}}, 1, fault.Invalid, "Port ID '" + c.mine.ID + "' was specified twice: you cannot attach a port multiple times."},
		{[]network.Request{{Network: empty}}, 1, fault.Invalid, "Network " + empty + " requires a subnet in order to boot instances on."},
		{[]network.Request{{Port: c.theirs.ID}}, 1, fault.NotFound, "Port id " + c.theirs.ID + " could not be found."},
		{[]network.Request{{Port: c.mine.ID}}, 2, fault.Invalid, "Unable to launch multiple instances with a single configured port ID."},
		{[]network.Request{{Network: c.private, FixedIP: c.mine.FixedIPs[0].IPAddress}}, 1, fault.Conflict, "Fixed IP address " + c.mine.FixedIPs[0].IPAddress + " is already in use"},
		{[]network.Request{{Network: c.private, FixedIP: "10.0.0.5"}}, 2, fault.Invalid, "max_count cannot be greater than 1 if an fixed_ip is specified."},
		{[]network.Request{{Network: c.private}}, 600, fault.Denied, "Maximum number of ports exceeded"},
	} {
		if _, err := c.check(t, tt.list, false, tt.count); fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v for %d servers: %v, want %v: %s", tt.list, tt.count, err, tt.code, tt.text)
		}
	}
	if _, err := c.check(t, nil, false, 1); !errors.Is(err, network.ErrAmbiguous) {
		t.Errorf("several networks: %v", err)
	}
	if _, err := c.check(t, []network.Request{{Network: c.private, FixedIP: c.mine.FixedIPs[0].IPAddress}}, false, 1); !errors.Is(err, network.ErrAddressInUse) {
		t.Errorf("an address that is in use: %v", err)
	}
}

// testAdministrator: an administrator of another project attaches an interface: the networks and ports of the server's project count.
func testAdministrator(t *testing.T, c *neutronTest) {
	t.Helper()
	c.keystone.Grant(c.keystone.User("root"), "admin", gophercloud.AuthScope{ProjectID: c.other})
	admin := network.Client{Token: c.keystone.Token("root", &gophercloud.AuthScope{ProjectID: c.other}), Project: c.project, Admin: true, Server: "s"}
	if _, err := c.Check(t.Context(), admin, nil, false, 1); !errors.Is(err, network.ErrAmbiguous) { // the server's project has several networks
		t.Errorf("an administrator: %v", err)
	}
	if _, err := c.Check(t.Context(), admin, []network.Request{{Port: c.mine.ID}}, false, 1); err != nil {
		t.Errorf("an administrator names a port of the server's project: %v", err)
	}
	if _, err := c.Check(t.Context(), admin, []network.Request{{Port: c.theirs.ID}}, false, 1); !errors.Is(err, fault.Invalid) || err.Error() != "Port "+c.theirs.ID+" not usable for instance s." {
		t.Errorf("an administrator names a port of another project: %v", err)
	}
}

// testForeignPort: an earlier release may have attached a port of another project to the server. It is released, too.
func testForeignPort(t *testing.T, c *neutronTest) {
	t.Helper()
	given := network.Server{ID: "7a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Project: c.project, Host: "node-1", Wanted: wanted(network.Request{Port: c.theirs.ID})}
	if _, err := c.Attach(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	if is, err := ports.Get(t.Context(), c.bob, c.theirs.ID).Extract(); err != nil || is.DeviceID != "" {
		t.Errorf("the port of another project after the release: %+v, %v", is, err)
	}
	// If a port cannot be bound, it is returned with the error.
	given.Host, given.Wanted = "nowhere", wanted(network.Request{Network: c.private})
	if got, err := c.Attach(t.Context(), given); !errors.Is(err, network.ErrBindingFailed) || got == nil {
		t.Errorf("attach on a host without an agent: %+v, %v", got, err)
	} else if err := c.ReleasePort(t.Context(), given.ID, got.ID, false); err != nil {
		t.Error(err)
	}
}

// testWrongToken: a token that Neutron does not accept is not an outage.
func testWrongToken(t *testing.T, c *neutronTest) {
	t.Helper()
	for name, err := range map[string]error{
		"check":  second(c.Check(t.Context(), network.Client{Token: "none", Project: c.project}, []network.Request{{Network: c.private}}, false, 1)),
		"groups": second(c.Groups(t.Context(), "none", c.project, []string{"default"})),
		"ports":  second(c.Ports(t.Context(), "none", "x")),
	} {
		if !errors.Is(err, fault.Unauthenticated) {
			t.Errorf("%s with a wrong token: %v", name, err)
		}
	}
}

// testAllocate makes the ports of a server, and changes their groups. Repeated calls, also for another host, make no port a second time.
func testAllocate(t *testing.T, c *neutronTest) {
	t.Helper()
	want := wanted(network.Request{Network: c.private, Tag: "a"}, network.Request{Port: c.mine.ID, Network: c.private}, network.Request{Network: c.private})
	s := network.Server{ID: "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Project: c.project, Host: "node-1", Wanted: want}
	first, err := c.Allocate(t.Context(), s)
	if err != nil || len(first) != 3 || first[1].Port.ID != c.mine.ID || first[0].Port.NetworkName != "private" || first[0].Port.Tag != "a" || len(first[2].Port.Addresses) != 1 || first[0].Port.MAC == "" {
		t.Fatalf("allocate: %+v, %v", first, err)
	}
	if p := first[0].Port; p.MTU < 1280 || len(p.Subnets) != 1 || p.Subnets[0].ID != p.Addresses[0].Subnet || p.Subnets[0].CIDR != "10.0.0.0/29" || p.Subnets[0].Gateway != "10.0.0.1" || !p.Subnets[0].DHCP {
		t.Errorf("what the guest is told: MTU %d, subnets %+v", p.MTU, p.Subnets)
	}
	s.Host = "node-2"
	secured := c.changeGroups(t, s, first)
	c.readGroups(t, secured)
	c.allocateAgain(t, s, first)
	c.servers = append(c.servers, s, c.refuseSecond(t, s))
}

// portIDs returns the ids of the ports of interfaces.
func portIDs(list []network.Interface) string {
	out := make([]string, len(list))
	for i, one := range list {
		out[i] = one.Port.ID
	}
	return strings.Join(out, " ")
}

// allocateAgain repeats the call that has made the ports in the parameter first, as after a lost answer.
func (c *neutronTest) allocateAgain(t *testing.T, s network.Server, first []network.Interface) {
	t.Helper()
	for _, known := range []int{0, 1, 3} {
		copy(s.Wanted.Interfaces, first[:known])
		again, err := c.Allocate(t.Context(), s)
		if err != nil || len(again) != 3 || again[1].Port.ID != c.mine.ID || known == 3 && portIDs(again) != portIDs(first) {
			t.Errorf("allocate with %d known ports: %+v, %v", known, again, err)
		}
	}
	if list, err := c.Ports(t.Context(), c.token, s.ID); len(list) != 3 || err != nil {
		t.Errorf("ports: %+v, %v", list, err)
	}
	if _, err := c.check(t, []network.Request{{Port: c.mine.ID}}, false, 1); !errors.Is(err, fault.Conflict) || err.Error() != "Port "+c.mine.ID+" is still in use." {
		t.Errorf("a port of a server: %v", err)
	}
	// A port of another project that names the server stays, and a port that was made twice is deleted.
	if _, err := ports.Create(t.Context(), c.keystone.Networks("bob", c.other), ports.CreateOpts{NetworkID: c.shared, DeviceID: s.ID, DeviceOwner: "compute:nova"}).Extract(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(t.Context(), network.Server{ID: s.ID, Project: c.project, Host: s.Host, Wanted: wanted(network.Request{Network: c.shared})}); err != nil {
		t.Fatal(err)
	}
	if again, err := c.Allocate(t.Context(), s); err != nil || portIDs(again) != portIDs(first) {
		t.Errorf("allocate with one port too many: %+v, %v", again, err)
	}
	if list, err := c.Ports(t.Context(), c.token, s.ID); len(list) != 3 || err != nil {
		t.Errorf("ports: %+v, %v", list, err)
	}
	if err := c.ReleasePort(t.Context(), "another server", c.mine.ID, true); err != nil {
		t.Errorf("release a port of another server: %v", err)
	}
}

// refuseSecond tries to give a second server the port of the first one, more ports than the network has addresses, and a port on an unknown host. It
// returns the second server.
func (c *neutronTest) refuseSecond(t *testing.T, s network.Server) network.Server {
	t.Helper()
	two := s
	two.ID, two.Wanted = "6a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", wanted(network.Request{Port: c.mine.ID})
	if _, err := c.Allocate(t.Context(), two); !errors.Is(err, fault.Conflict) {
		t.Errorf("a port of another server: %v", err)
	}
	two.Wanted = wanted(network.Request{Network: c.private}, network.Request{Network: c.private}, network.Request{Network: c.private})
	if got, err := c.Allocate(t.Context(), two); !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "No fixed IP addresses available for network: "+c.private) {
		t.Errorf("more ports than addresses: %+v, %v", got, err)
	}
	two.Wanted, two.Host = wanted(network.Request{Network: c.private}), "nowhere"
	if got, err := c.Allocate(t.Context(), two); !errors.Is(err, network.ErrBindingFailed) || !strings.Contains(err.Error(), "Binding failed for port") {
		t.Errorf("a host without an agent: %+v, %v", got, err)
	}
	return two
}

// testAddresses: addresses are added to a port, and removed from it.
func testAddresses(t *testing.T, c *neutronTest) {
	t.Helper()
	wide := c.newNetwork(t, c.ada, networks.CreateOpts{Name: "wide"}, "10.5.0.0/24")
	tight := c.newNetwork(t, c.ada, networks.CreateOpts{Name: "tight"}, "10.6.0.0/30") // it has one address for servers
	four := network.Server{ID: "9a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Project: c.project, Host: "node-1", Wanted: wanted(network.Request{Network: wide}, network.Request{Network: tight})}
	its, err := c.Allocate(t.Context(), four)
	if err != nil {
		t.Fatal(err)
	}
	add := func(to string) (*network.Port, error) {
		return c.AddAddress(t.Context(), c.token, c.project, four.ID, to)
	}
	more, err := add(wide)
	if err != nil || more.ID != its[0].Port.ID || len(more.Addresses) != 2 || more.Addresses[0].IP == more.Addresses[1].IP || len(more.Subnets) != 1 || more.Subnets[0].CIDR != "10.5.0.0/24" {
		t.Fatalf("one more address: %+v, %v", more, err)
	}
	for _, id := range []string{c.private, c.foreign, "none"} {
		if _, err := add(id); !errors.Is(err, fault.NotFound) || err.Error() != "Network could not be found for instance "+four.ID+"." {
			t.Errorf("an address in the network %s: %v", id, err)
		}
	}
	if _, err := add(tight); !errors.Is(err, fault.Exhausted) || err.Error() != "No fixed IP addresses available for network: "+tight {
		t.Errorf("an address in a network without a free one: %v", err)
	}
	first0, second0 := its[0].Port.Addresses[0].IP, more.Addresses[0].IP
	if second0 == first0 {
		second0 = more.Addresses[1].IP
	}
	if less, err := c.RemoveAddress(t.Context(), c.token, c.project, four.ID, first0); err != nil || less.ID != more.ID || len(less.Addresses) != 1 || less.Addresses[0].IP != second0 {
		t.Errorf("one address less: %+v, %v", less, err)
	}
	if _, err := c.RemoveAddress(t.Context(), c.token, c.project, four.ID, first0); !errors.Is(err, fault.Invalid) || err.Error() != "Instance "+four.ID+" does not have fixed IP '"+first0+"'." {
		t.Errorf("remove an address again: %v", err)
	}
	if none, err := c.RemoveAddress(t.Context(), c.token, c.project, four.ID, second0); err != nil || len(none.Addresses)+len(none.Subnets) != 0 {
		t.Errorf("remove the last address: %+v, %v", none, err)
	}
	c.servers = append(c.servers, four)
	c.changeTogether(t, four, wide, more.ID)
}

// changeTogether adds addresses and groups to a port without addresses at the same time. None of the changes is lost.
func (c *neutronTest) changeTogether(t *testing.T, four network.Server, wide, port string) {
	t.Helper()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := c.AddAddress(t.Context(), c.token, c.project, four.ID, wide); err != nil {
				t.Errorf("an address at the same time: %v", err)
			}
		})
	}
	for _, name := range []string{"third", "fourth", "fifth"} {
		if _, err := groups.Create(t.Context(), c.ada, groups.CreateOpts{Name: name}).Extract(); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if _, err := c.AddGroup(t.Context(), c.token, c.project, four.ID, name); err != nil {
				t.Errorf("a group at the same time: %v", err)
			}
		})
	}
	all.Wait()
	at, err := c.Ports(t.Context(), c.token, four.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range at {
		if p.ID != port {
			continue
		}
		if len(p.Addresses) != 4 {
			t.Errorf("%d addresses after four changes at the same time: %+v", len(p.Addresses), p)
		}
	}
	if got, err := c.GroupNames(t.Context(), c.token, []string{port}); err != nil || !slices.Equal(got[port], []string{"default", "fifth", "fourth", "third"}) {
		t.Errorf("after three changes of the groups at the same time: %v, %v", got, err)
	}
}

// testLostInterfaces: a server that has run loses the interfaces whose ports are deleted or have another owner. One that has not gets new ports.
func testLostInterfaces(t *testing.T, c *neutronTest) {
	t.Helper()
	three := network.Server{ID: "8a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Project: c.project, Host: "node-1", Launched: true, Wanted: wanted(network.Request{Network: c.shared}, network.Request{Network: c.shared}, network.Request{Network: c.shared})}
	freed := c.newPort(t, c.ada, c.shared)
	lost := c.newPort(t, c.ada, c.shared)
	three.Wanted.Interfaces = append(three.Wanted.Interfaces, wanted(network.Request{Port: freed.ID}, network.Request{Port: lost.ID}).Interfaces...)
	had, err := c.Allocate(t.Context(), three)
	if err != nil || len(had) != 5 {
		t.Fatalf("%+v, %v", had, err)
	}
	for _, id := range []string{had[1].Port.ID, lost.ID} {
		if err := ports.Delete(t.Context(), c.services, id).ExtractErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.ReleasePort(t.Context(), three.ID, freed.ID, true); err != nil {
		t.Fatal(err)
	}
	three.Wanted.Interfaces, three.Host = had, "node-2"
	if got, err := c.Allocate(t.Context(), three); err != nil || portIDs(got) != had[0].Port.ID+" "+had[2].Port.ID || got[0].Port.Host != "node-2" {
		t.Errorf("allocate for a server that has run: %+v, %v; had %+v", got, err, had)
	}
	three.Launched, three.Wanted.Interfaces = false, had[:3]
	if got, err := c.Allocate(t.Context(), three); err != nil || len(got) != 3 || got[1].Port.ID == had[1].Port.ID {
		t.Errorf("allocate for a server that has not run: %+v, %v", got, err)
	}
	three.Wanted.Interfaces = had
	if _, err := c.Allocate(t.Context(), three); !errors.Is(err, fault.NotFound) {
		t.Errorf("a deleted port of a server that has not run: %v", err)
	}
	c.servers = append(c.servers, three)
}

// testRelease releases the ports of all servers, two times. Then only the given port is left.
func testRelease(t *testing.T, c *neutronTest) {
	t.Helper()
	for range 2 {
		for _, one := range c.servers {
			if err := c.Release(t.Context(), one); err != nil {
				t.Errorf("release: %v", err)
			}
		}
	}
	pages, err := ports.List(c.ada, ports.ListOpts{NetworkID: c.private}).AllPages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left, err := ports.ExtractPorts(pages); err != nil || len(left) != 1 || left[0].ID != c.mine.ID || left[0].DeviceID != "" {
		t.Errorf("left: %+v, %v", left, err)
	}
}

func testNeutronAway(t *testing.T, c *neutronTest) {
	t.Helper()
	c.service.Kill()
	if _, err := c.check(t, nil, false, 1); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Neutron is away: %v", err)
	}
}

// second returns the error of a call.
func second[T any](_ T, err error) error { return err }

// wanted returns the networks that a server requests. Ports are not made yet.
func wanted(list ...network.Request) (out network.Wanted) {
	for _, r := range list {
		out.Interfaces = append(out.Interfaces, network.Interface{Request: r})
	}
	return out
}
