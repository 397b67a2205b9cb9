package e2e_test

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/internal/keystonetest"
)

// openstack is a cloud beside OpenStack's own services: Keystone and, if its hosts are named, Neutron. It has the images one and other.
type openstack struct {
	*cloud

	ks      *keystonetest.Keystone
	compute string // the URL of the API, without a version
}

// newOpenStack starts a cloud with hosts. through returns the URL that clients use for that of the API.
func newOpenStack(t *testing.T, neutron bool, through func(string) string, hosts ...string) *openstack {
	t.Helper()
	o := &openstack{ks: keystonetest.Start(t)}
	o.ks.Role("service")
	// The user is an administrator in Neutron, too.
	nova, services := o.ks.User("nova"), gophercloud.AuthScope{ProjectID: o.ks.Services()}
	o.ks.Grant(nova, "service", services)
	o.ks.Grant(nova, "admin", services)
	images := t.TempDir()
	for _, name := range []string{"one", "other"} {
		if err := os.WriteFile(filepath.Join(images, name+".raw"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	login := "auth_url = " + o.ks.Endpoint + "\nusername = nova\npassword = " + keystonetest.Password + "\n"
	conf := "[image]\ndirectory = " + images + "\n[api]\nauth_strategy = keystone\n[keystone_authtoken]\n" + login
	if neutron {
		o.ks.Neutron(hosts...)
		conf += "[neutron]\n" + login
	}
	o.cloud = newCloud(t, conf)
	o.start("conductor", "c-1")
	o.start("scheduler", "s-1")
	for _, host := range hosts {
		o.start("compute", host)
	}
	u, err := url.Parse(o.client(o.start("api", "api-1")).Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = ""
	o.compute = through(u.String())
	o.ks.Publish("compute", o.compute+"/v2.1")
	return o
}

// newNetwork makes a network with a subnet.
func (o *openstack) newNetwork(c *gophercloud.ServiceClient, name, cidr string) *networks.Network {
	o.Helper()
	n, err := networks.Create(o.Context(), c, networks.CreateOpts{Name: name}).Extract()
	if err == nil {
		_, err = subnets.Create(o.Context(), c, subnets.CreateOpts{NetworkID: n.ID, CIDR: cidr, IPVersion: 4}).Extract()
	}
	if err != nil {
		o.Fatal(err)
	}
	return n
}

// direct is for clients that use the API itself.
func direct(u string) string { return u }
