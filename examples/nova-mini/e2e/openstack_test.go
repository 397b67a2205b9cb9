package e2e_test

import (
	"cmp"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/imagedata"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/internal/keystonetest"
)

// openstack is a cloud beside OpenStack's own services: Keystone and, if the test asks for them, Neutron and Glance.
type openstack struct {
	*cloud

	ks      *keystonetest.Keystone
	compute string   // the URL of the API, without a version
	images  []string // the ids of two images
}

// openstackWith says which services run beside a cloud, and how the cloud is set up.
type openstackWith struct {
	neutron, glance bool
	hosts           []string
	// image is the name of the first image. Default: one.
	image string
	// through gets the API's own URL, and returns the URL for clients, such as that of a proxy. Default: the API's own URL.
	through func(string) string
}

func newOpenStack(t *testing.T, with openstackWith) *openstack {
	t.Helper()
	o, conf := besideOpenStack(t, with)
	o.cloud = newCloud(t, conf)
	o.start("conductor", "c-1")
	o.start("scheduler", "s-1")
	for _, host := range with.hosts {
		o.start("compute", host)
	}
	u, err := url.Parse(o.client(o.start("api", "api-1")).Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = ""
	o.compute = u.String()
	if with.through != nil {
		o.compute = with.through(o.compute)
	}
	o.ks.Publish("compute", o.compute+"/v2.1")
	return o
}

// besideOpenStack starts OpenStack's own services. It returns them without a cloud, and the configuration of a cloud that uses them.
func besideOpenStack(t *testing.T, with openstackWith) (*openstack, string) {
	t.Helper()
	o := &openstack{ks: keystonetest.Start(t), images: []string{cmp.Or(with.image, "one"), "other"}}
	o.ks.Role("service")
	// The user is also an administrator, because Neutron and Glance require this.
	nova, services := o.ks.User("nova"), gophercloud.AuthScope{ProjectID: o.ks.Services()}
	o.ks.Grant(nova, "service", services)
	o.ks.Grant(nova, "admin", services)
	login := "auth_url = " + o.ks.Endpoint + "\nusername = nova\npassword = " + keystonetest.Password + "\n"
	conf := "[api]\nauth_strategy = keystone\n[keystone_authtoken]\n" + login
	conf += "[vnc]\nenabled = true\nnovncproxy_base_url = http://127.0.0.1:6080/vnc_lite.html\n"
	if with.glance {
		o.ks.Glance()
		o.upload(t, o.ks.Images("nova", services.ProjectID))
		conf += "[glance]\n" + login
	} else {
		dir := t.TempDir()
		for _, name := range o.images {
			if err := os.WriteFile(filepath.Join(dir, name+".raw"), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		conf += "[image]\ndirectory = " + dir + "\n"
	}
	if with.neutron {
		o.ks.Neutron(with.hosts...)
		conf += "[neutron]\n" + login
	}
	return o, conf
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

// upload uploads the images of the test to the image service, as public images.
func (o *openstack) upload(t *testing.T, c *gophercloud.ServiceClient) {
	t.Helper()
	for i, name := range o.images {
		is, err := images.Create(t.Context(), c, images.CreateOpts{Name: name, DiskFormat: "raw", ContainerFormat: "bare", Visibility: new(images.ImageVisibilityPublic)}).Extract()
		if err == nil {
			o.images[i], err = is.ID, imagedata.Upload(t.Context(), c, is.ID, strings.NewReader(name)).ExtractErr()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
