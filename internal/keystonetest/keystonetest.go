// Package keystonetest starts a Keystone for one test, and makes its users and tokens.
package keystonetest

import (
	"net/url"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/endpoints"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/projects"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/roles"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/services"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/users"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// Keystone is an identity service for one test. The methods act as the administrator. An error in a method
// fails the test. Only the test's goroutine may use it.
type Keystone struct {
	*testenv.Service

	// Endpoint is the URL without the administrator's name and password.
	Endpoint string

	t     testing.TB
	admin *gophercloud.ServiceClient
	roles map[string]string // ids of roles by name

	services string // the id of the project "service"
}

// Password is the password of every user that [Keystone.User] makes.
const Password = "a password of tests"

// Start starts a Keystone, which takes about 10 s, and stops it at the end of the test. With -short it skips the test, as
// [envtest.Keystone] does.
func Start(t testing.TB) *Keystone {
	t.Helper()
	k := &Keystone{Service: envtest.Keystone(t), t: t, roles: map[string]string{}}
	u, err := url.Parse(k.URL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = nil
	k.Endpoint = u.String()
	k.admin = k.login("admin", password, &gophercloud.AuthScope{ProjectName: "admin", DomainID: "default"})
	pages, err := roles.List(k.admin, nil).AllPages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := roles.ExtractRoles(pages)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		k.roles[r.Name] = r.ID
	}
	return k
}

// login returns a client of the identity service for a user of the default domain.
func (k *Keystone) login(user, password string, scope *gophercloud.AuthScope) *gophercloud.ServiceClient {
	k.t.Helper()
	p, err := openstack.AuthenticatedClient(k.t.Context(), gophercloud.AuthOptions{
		IdentityEndpoint: k.Endpoint, Username: user, Password: password, DomainID: "default", Scope: scope,
	})
	if err != nil {
		k.t.Fatalf("log %s in: %v", user, err)
	}
	k.t.Cleanup(p.HTTPClient.CloseIdleConnections)
	c, err := openstack.NewIdentityV3(p, gophercloud.EndpointOpts{})
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// Project creates a project in the default domain and returns its id.
func (k *Keystone) Project(name string) string {
	k.t.Helper()
	p, err := projects.Create(k.t.Context(), k.admin, projects.CreateOpts{Name: name, DomainID: "default"}).Extract()
	if err != nil {
		k.t.Fatal(err)
	}
	return p.ID
}

// Role creates a role.
func (k *Keystone) Role(name string) {
	k.t.Helper()
	r, err := roles.Create(k.t.Context(), k.admin, roles.CreateOpts{Name: name}).Extract()
	if err != nil {
		k.t.Fatal(err)
	}
	k.roles[name] = r.ID
}

// User creates a user of the default domain with the [Password], and returns the user's id.
func (k *Keystone) User(name string) string {
	k.t.Helper()
	u, err := users.Create(k.t.Context(), k.admin, users.CreateOpts{Name: name, Password: Password, DomainID: "default"}).Extract()
	if err != nil {
		k.t.Fatal(err)
	}
	return u.ID
}

// Grant gives a user a role. The role applies to the project to.ProjectID, to the domain to.DomainID, or, if to is empty, to
// the system. The parameter role is the name of a role that Keystone has at its start, such as admin, or of one that [Keystone.Role] has created.
func (k *Keystone) Grant(userID, role string, to gophercloud.AuthScope) {
	k.t.Helper()
	opts := roles.AssignOpts{UserID: userID, ProjectID: to.ProjectID, DomainID: to.DomainID, System: to == gophercloud.AuthScope{}}
	if err := roles.Assign(k.t.Context(), k.admin, k.roles[role], opts).ExtractErr(); err != nil {
		k.t.Fatal(err)
	}
}

// Token logs in the user with this name and returns a token of the given scope: a project, a domain or the system. If scope is
// nil, the token has no scope.
func (k *Keystone) Token(user string, scope *gophercloud.AuthScope) string {
	k.t.Helper()
	return k.login(user, Password, scope).TokenID
}

// Revoke revokes a token.
func (k *Keystone) Revoke(token string) {
	k.t.Helper()
	if err := tokens.Revoke(k.t.Context(), k.admin, token).Err; err != nil {
		k.t.Fatal(err)
	}
}

// Glance starts an image service, which takes some seconds, and adds it to the catalog. The service is stopped at the end of the test. The
// first call of Glance or Neutron makes the project "service". Each of the two makes a user with the role admin in this project.
func (k *Keystone) Glance() *testenv.Service {
	k.t.Helper()
	g := envtest.Glance(k.t, k.serviceUser("glance"))
	k.Publish("image", g.URL)
	return g
}

// Neutron works like [Keystone.Glance], for a network service in which a port can be bound on each of the hosts.
func (k *Keystone) Neutron(hosts ...string) *testenv.Service {
	k.t.Helper()
	n := envtest.Neutron(k.t, k.serviceUser("neutron"), hosts...)
	k.Publish("network", n.URL)
	return n
}

// serviceUser makes a user with the role admin in the project "service". It returns the URL of Keystone with the user's
// name and password.
func (k *Keystone) serviceUser(name string) string {
	k.t.Helper()
	at, err := url.Parse(k.Endpoint)
	if err != nil {
		k.t.Fatal(err)
	}
	k.Grant(k.User(name), "admin", gophercloud.AuthScope{ProjectID: k.Services()})
	at.User = url.UserPassword(name, Password)
	return at.String()
}

// Services returns the id of the project "service". The first call makes the project.
func (k *Keystone) Services() string {
	k.t.Helper()
	if k.services == "" {
		k.services = k.Project("service")
	}
	return k.services
}

// Networks returns a client of the network service of the catalog for a user of a project.
func (k *Keystone) Networks(user, projectID string) *gophercloud.ServiceClient {
	k.t.Helper()
	c, err := openstack.NewNetworkV2(k.login(user, Password, &gophercloud.AuthScope{ProjectID: projectID}).ProviderClient, gophercloud.EndpointOpts{Region: "RegionOne"})
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// Images returns a client of the image service of the catalog for a user of a project.
func (k *Keystone) Images(user, projectID string) *gophercloud.ServiceClient {
	k.t.Helper()
	c, err := openstack.NewImageV2(k.login(user, Password, &gophercloud.AuthScope{ProjectID: projectID}).ProviderClient, gophercloud.EndpointOpts{Region: "RegionOne"})
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// Publish adds a service and its public endpoint to the catalog.
func (k *Keystone) Publish(kind, endpoint string) {
	k.t.Helper()
	s, err := services.Create(k.t.Context(), k.admin, services.CreateOpts{Type: kind}).Extract()
	if err != nil {
		k.t.Fatal(err)
	}
	_, err = endpoints.Create(k.t.Context(), k.admin, endpoints.CreateOpts{
		Availability: gophercloud.AvailabilityPublic, Name: kind, Region: "RegionOne", URL: endpoint, ServiceID: s.ID,
	}).Extract()
	if err != nil {
		k.t.Fatal(err)
	}
}
