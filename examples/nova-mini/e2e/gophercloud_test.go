package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/internal/keystonetest"
)

func TestGophercloudX(t *testing.T) {
	scenario(t)
	ks := keystonetest.Start(t)
	ks.Role("service")
	in := func(project string) gophercloud.AuthScope { return gophercloud.AuthScope{ProjectID: project} }
	ks.Grant(ks.User("nova"), "service", in(ks.Project("service")))
	p := ks.Project("demo")
	ks.Grant(ks.User("root"), "admin", in(p))
	images := t.TempDir()
	for _, name := range []string{"one", "other"} {
		if err := os.WriteFile(filepath.Join(images, name+".raw"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newCloud(t, "[image]\ndirectory = "+images+"\n[api]\nauth_strategy = keystone\n[keystone_authtoken]\nauth_url = "+ks.Endpoint+"\nusername = nova\npassword = "+keystonetest.Password+"\n")
	for _, p := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}, {"compute", "node-2"}} {
		c.start(p[0], p[1])
	}
	ks.Publish("compute", c.client(c.start("api", "api-1")).Endpoint)
	net := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"networks": []}`))
	}))
	defer net.Close()
	ks.Publish("network", net.URL)
	bin := filepath.Join(t.TempDir(), "gc.test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "acceptance", "-o", bin, "github.com/gophercloud/gophercloud/v2/internal/acceptance/openstack/compute/v2").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	cmd := exec.Command(bin, "-test.v", "-test.timeout", "20m")
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OS_AUTH_URL="+ks.Endpoint, "OS_USERNAME=root", "OS_PASSWORD="+keystonetest.Password, "OS_PROJECT_NAME=demo", "OS_DOMAIN_NAME=Default",
		"OS_IMAGE_ID=one", "OS_FLAVOR_ID=1", "OS_FLAVOR_ID_RESIZE=2", "OS_POOL_NAME=x", "OS_EXTGW_ID=x", "OS_NETWORK_NAME=private", "OS_REGION_NAME=RegionOne")
	out, err := cmd.CombinedOutput()
	t.Logf("%v\n%s", err, out)
}
