package network_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/keystonetest"
)

// TestNeutron: a real Neutron checks what clients ask for, and the ports of servers are made, bound, found again and released.
func TestNeutron(t *testing.T) {
	t.Parallel()
	k := keystonetest.Start(t)
	service := k.Neutron("node-1", "node-2")
	project, other := k.Project("p"), k.Project("o")
	k.Grant(k.User("ada"), "member", gophercloud.AuthScope{ProjectID: project})
	k.Grant(k.User("bob"), "member", gophercloud.AuthScope{ProjectID: other})
	scope := gophercloud.AuthScope{ProjectID: project}
	token := k.Token("ada", &scope)
	ada, bob := k.Networks("ada", project), k.Networks("bob", other)
	newNetwork := func(c *gophercloud.ServiceClient, name, cidr string) string {
		n, err := networks.Create(t.Context(), c, networks.CreateOpts{Name: name}).Extract()
		if err == nil && cidr != "" {
			_, err = subnets.Create(t.Context(), c, subnets.CreateOpts{NetworkID: n.ID, CIDR: cidr, IPVersion: 4}).Extract()
		}
		if err != nil {
			t.Fatal(err)
		}
		return n.ID
	}
	n, err := network.New(session.Config{AuthURL: k.Endpoint, Username: "neutron", Password: keystonetest.Password, UserTokens: true})
	if err != nil {
		t.Fatal(err)
	}

	check := func(list []network.Request, auto bool, count int) ([]network.Request, error) {
		return n.Check(t.Context(), network.Client{Token: token, Project: project}, list, auto, count)
	}
	if got, err := check(nil, false, 1); len(got) != 0 || err != nil {
		t.Errorf("no network: %v, %v", got, err)
	}
	if _, err := check(nil, true, 1); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "Unable to automatically allocate a network") {
		t.Errorf("auto without a network: %v", err)
	}
	private := newNetwork(ada, "private", "10.0.0.0/29") // five addresses: Neutron takes one for the gateway
	if got, err := check(nil, true, 1); len(got) != 1 || got[0].Network != private || err != nil {
		t.Errorf("the only network: %v, %v", got, err)
	}
	shared, err := networks.Create(t.Context(), k.Networks("neutron", k.Services()), networks.CreateOpts{Name: "shared", Shared: new(true)}).Extract()
	if err == nil {
		_, err = subnets.Create(t.Context(), k.Networks("neutron", k.Services()), subnets.CreateOpts{NetworkID: shared.ID, CIDR: "10.2.0.0/24", IPVersion: 4}).Extract()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := check([]network.Request{{Network: shared.ID}}, false, 1); err != nil {
		t.Errorf("a shared network: %v", err)
	}
	empty, foreign := newNetwork(ada, "empty", ""), newNetwork(bob, "foreign", "10.1.0.0/24")
	mine, err := ports.Create(t.Context(), ada, ports.CreateOpts{NetworkID: private}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ports.Create(t.Context(), bob, ports.CreateOpts{NetworkID: foreign}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		list  []network.Request
		count int
		code  fault.Code
		text  string
	}{
		{nil, 1, fault.Conflict, "Multiple possible networks found, use a Network ID to be more specific."},
		{[]network.Request{{Network: foreign}}, 1, fault.NotFound, "Network " + foreign + " could not be found."},
		{[]network.Request{{Network: shared.ID, FixedIP: "10.2.0.9"}}, 1, fault.Denied, "It is not allowed to choose an address in network " + shared.ID},
		{[]network.Request{{Port: mine.ID, Tag: "a"}, {Port: mine.ID, Tag: "b"}}, 1, fault.Invalid, "Port ID '" + mine.ID + "' was specified twice: you cannot attach a port multiple times."},
		{[]network.Request{{Network: empty}}, 1, fault.Invalid, "Network " + empty + " requires a subnet in order to boot instances on."},
		{[]network.Request{{Port: theirs.ID}}, 1, fault.NotFound, "Port id " + theirs.ID + " could not be found."},
		{[]network.Request{{Port: mine.ID}}, 2, fault.Invalid, "Unable to launch multiple instances with a single configured port ID."},
		{[]network.Request{{Network: private, FixedIP: mine.FixedIPs[0].IPAddress}}, 1, fault.Conflict, "Fixed IP address " + mine.FixedIPs[0].IPAddress + " is already in use"},
		{[]network.Request{{Network: private, FixedIP: "10.0.0.5"}}, 2, fault.Invalid, "max_count cannot be greater than 1 if an fixed_ip is specified."},
		{[]network.Request{{Network: private}}, 600, fault.Denied, "Maximum number of ports exceeded"},
	} {
		if _, err := check(tt.list, false, tt.count); fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v for %d servers: %v, want %v: %s", tt.list, tt.count, err, tt.code, tt.text)
		}
	}
	if _, err := check(nil, false, 1); !errors.Is(err, network.ErrAmbiguous) {
		t.Errorf("several networks: %v", err)
	}
	if _, err := check([]network.Request{{Network: private, FixedIP: mine.FixedIPs[0].IPAddress}}, false, 1); !errors.Is(err, network.ErrAddressInUse) {
		t.Errorf("an address that is in use: %v", err)
	}
	// An administrator of another project attaches for the project of the server.
	k.Grant(k.User("root"), "admin", gophercloud.AuthScope{ProjectID: other})
	admin := network.Client{Token: k.Token("root", &gophercloud.AuthScope{ProjectID: other}), Project: project, Admin: true, Server: "s"}
	if _, err := n.Check(t.Context(), admin, nil, false, 1); !errors.Is(err, network.ErrAmbiguous) { // the other project has one network, and a shared one
		t.Errorf("an administrator: %v", err)
	}
	if _, err := n.Check(t.Context(), admin, []network.Request{{Port: mine.ID}}, false, 1); err != nil {
		t.Errorf("an administrator names a port of the server's project: %v", err)
	}
	if _, err := n.Check(t.Context(), admin, []network.Request{{Port: theirs.ID}}, false, 1); !errors.Is(err, fault.Invalid) || err.Error() != "Port "+theirs.ID+" not usable for instance s." {
		t.Errorf("an administrator names a port of another project: %v", err)
	}
	// A port of another project that the server has been given by an earlier release is released, too.
	given := network.Server{ID: "7a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Project: project, Host: "node-1", Wanted: wanted(network.Request{Port: theirs.ID})}
	if _, err := n.Attach(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	if err := n.Release(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	if is, err := ports.Get(t.Context(), bob, theirs.ID).Extract(); err != nil || is.DeviceID != "" {
		t.Errorf("the port of another project after the release: %+v, %v", is, err)
	}
	// A port that cannot be bound is returned with the error.
	given.Host, given.Wanted = "nowhere", wanted(network.Request{Network: private})
	if got, err := n.Attach(t.Context(), given); !errors.Is(err, network.ErrBindingFailed) || got == nil {
		t.Errorf("attach on a host without an agent: %+v, %v", got, err)
	} else if err := n.ReleasePort(t.Context(), given.ID, got.ID, false); err != nil {
		t.Error(err)
	}
	if got, err := n.Groups(t.Context(), token, project, []string{"default"}); len(got) != 1 || got[0].Name != "default" || err != nil {
		t.Errorf("groups: %v, %v", got, err)
	}
	if _, err := n.Groups(t.Context(), token, project, []string{"nothing"}); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "Security group nothing not found for project") {
		t.Errorf("a group that does not exist: %v", err)
	}

	// A token that Neutron does not accept is not an outage.
	for name, err := range map[string]error{
		"check":  second(n.Check(t.Context(), network.Client{Token: "none", Project: project}, []network.Request{{Network: private}}, false, 1)),
		"groups": second(n.Groups(t.Context(), "none", project, []string{"default"})),
		"ports":  second(n.Ports(t.Context(), "none", "x")),
	} {
		if !errors.Is(err, fault.Unauthenticated) {
			t.Errorf("%s with a wrong token: %v", name, err)
		}
	}

	want := wanted(network.Request{Network: private, Tag: "a"}, network.Request{Port: mine.ID, Network: private}, network.Request{Network: private})
	s := network.Server{ID: "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Project: project, Host: "node-1", Wanted: want}
	first, err := n.Allocate(t.Context(), s)
	if err != nil || len(first) != 3 || first[1].Port.ID != mine.ID || first[0].Port.NetworkName != "private" || first[0].Port.Tag != "a" || len(first[2].Port.Addresses) != 1 || first[0].Port.MAC == "" {
		t.Fatalf("allocate: %+v, %v", first, err)
	}
	ids := func(list []network.Interface) string {
		out := make([]string, len(list))
		for i, one := range list {
			out[i] = one.Port.ID
		}
		return strings.Join(out, " ")
	}
	// The answer was lost, and then another host is chosen: no port is made a second time.
	s.Host = "node-2"
	secured, err := groups.Create(t.Context(), ada, groups.CreateOpts{Name: "second"}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ports.Update(t.Context(), ada, mine.ID, ports.UpdateOpts{SecurityGroups: &[]string{secured.ID, mine.SecurityGroups[0]}}).Extract(); err != nil {
		t.Fatal(err)
	}
	if got, err := n.GroupsOf(t.Context(), token, s.ID); err != nil || len(got) != 2 || got[0].ID == got[1].ID || len(got[0].Rules)+len(got[1].Rules) < 3 {
		t.Errorf("the groups of the ports: %+v, %v", got, err)
	}
	if got, err := n.GroupsOf(t.Context(), token, "another"); err != nil || len(got) != 0 {
		t.Errorf("the groups of no port: %+v, %v", got, err)
	}
	for _, known := range []int{0, 1, 3} {
		copy(s.Wanted.Interfaces, first[:known])
		again, err := n.Allocate(t.Context(), s)
		if err != nil || len(again) != 3 || again[1].Port.ID != mine.ID || known == 3 && ids(again) != ids(first) {
			t.Errorf("allocate with %d known ports: %+v, %v", known, again, err)
		}
	}
	if list, err := n.Ports(t.Context(), token, s.ID); len(list) != 3 || err != nil {
		t.Errorf("ports: %+v, %v", list, err)
	}
	if _, err := check([]network.Request{{Port: mine.ID}}, false, 1); !errors.Is(err, fault.Conflict) || err.Error() != "Port "+mine.ID+" is still in use." {
		t.Errorf("a port of a server: %v", err)
	}
	// A port of another project that names the server, and a port that was made twice.
	if _, err := ports.Create(t.Context(), k.Networks("bob", other), ports.CreateOpts{NetworkID: shared.ID, DeviceID: s.ID, DeviceOwner: "compute:nova"}).Extract(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(t.Context(), network.Server{ID: s.ID, Project: project, Host: s.Host, Wanted: wanted(network.Request{Network: shared.ID})}); err != nil {
		t.Fatal(err)
	}
	if again, err := n.Allocate(t.Context(), s); err != nil || ids(again) != ids(first) {
		t.Errorf("allocate with a port too many: %+v, %v", again, err)
	}
	if list, err := n.Ports(t.Context(), token, s.ID); len(list) != 3 || err != nil {
		t.Errorf("ports: %+v, %v", list, err)
	}
	if err := n.ReleasePort(t.Context(), "another server", mine.ID, true); err != nil {
		t.Errorf("release a port of another server: %v", err)
	}
	two := s
	two.ID, two.Wanted = "6a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", wanted(network.Request{Port: mine.ID})
	if _, err := n.Allocate(t.Context(), two); !errors.Is(err, fault.Conflict) {
		t.Errorf("a port of another server: %v", err)
	}
	two.Wanted = wanted(network.Request{Network: private}, network.Request{Network: private}, network.Request{Network: private})
	if got, err := n.Allocate(t.Context(), two); !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "No fixed IP addresses available for network: "+private) {
		t.Errorf("more ports than addresses: %+v, %v", got, err)
	}
	two.Wanted, two.Host = wanted(network.Request{Network: private}), "nowhere"
	if got, err := n.Allocate(t.Context(), two); !errors.Is(err, network.ErrBindingFailed) || !strings.Contains(err.Error(), "Binding failed for port") {
		t.Errorf("a host without an agent: %+v, %v", got, err)
	}

	for range 2 {
		for _, one := range []network.Server{s, two} {
			if err := n.Release(t.Context(), one); err != nil {
				t.Errorf("release: %v", err)
			}
		}
	}
	pages, err := ports.List(ada, ports.ListOpts{NetworkID: private}).AllPages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left, err := ports.ExtractPorts(pages); err != nil || len(left) != 1 || left[0].ID != mine.ID || left[0].DeviceID != "" {
		t.Errorf("left: %+v, %v", left, err)
	}

	service.Kill()
	if _, err := check(nil, false, 1); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Neutron is away: %v", err)
	}
}

// second returns the error of a call.
func second[T any](_ T, err error) error { return err }

// wanted returns what a server asks for, without ports.
func wanted(list ...network.Request) (out network.Wanted) {
	for _, r := range list {
		out.Interfaces = append(out.Interfaces, network.Interface{Request: r})
	}
	return out
}
