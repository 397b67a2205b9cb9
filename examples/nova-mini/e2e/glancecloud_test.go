package e2e_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/imagedata"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"

	"github.com/armature-go/armature/internal/keystonetest"
	"github.com/armature-go/armature/internal/testenv"
)

// glanced is a cloud with Keystone and Glance. The services of the cloud reach Glance through a proxy.
type glanced struct {
	*cloud

	ks       *keystonetest.Keystone
	proxy    *imageProxy
	glance   *testenv.Service
	token    map[string]string                     // the tokens, by user
	images   map[string]*gophercloud.ServiceClient // clients of Glance, by user
	endpoint string                                // the URL of the cloud's API
}

func newGlanced(t *testing.T) *glanced {
	t.Helper()
	return newGlancedWith(t, "")
}

// newGlancedWith starts a cloud with Glance. The parameter conf has more lines of the configuration.
func newGlancedWith(t *testing.T, conf string) *glanced {
	t.Helper()
	ks := keystonetest.Start(t)
	g := &glanced{ks: ks, glance: ks.Glance(), token: map[string]string{}, images: map[string]*gophercloud.ServiceClient{}}
	g.proxy = newImageProxy(t, g.glance.URL)
	for user, its := range map[string][2]string{"ada": {"p1", "member"}, "bob": {"p2", "member"}, "root": {"p0", "admin"}} {
		project := gophercloud.AuthScope{ProjectID: ks.Project(its[0])}
		ks.Grant(ks.User(user), its[1], project)
		g.token[user], g.images[user] = ks.Token(user, &project), ks.Images(user, project.ProjectID)
	}
	login := "auth_url = " + ks.Endpoint + "\nusername = glance\npassword = " + keystonetest.Password + "\n"
	g.cloud = newCloud(t, conf+"[api]\nauth_strategy = keystone\n[keystone_authtoken]\n"+login+"[glance]\n"+login+"endpoint_override = "+g.proxy.URL+"\ntransfer_timeout = 5\n[filter_scheduler]\nhost_subset_size = 1\n")
	for _, p := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		g.start(p[0], p[1])
	}
	g.endpoint = g.client(g.start("api", "api-1")).Endpoint
	g.poll("the compute service to be known", 30*time.Second, func() error {
		if _, body, _ := g.ask("root", "2.1", "GET", "os-services", ""); !strings.Contains(body, "nova-compute") {
			return errors.New(body)
		}
		return nil
	})
	return g
}

// ask sends a request of a user to the API, and returns the status, the body and the headers of the reply.
func (g *glanced) ask(user, version, method, path, body string) (int, string, http.Header) {
	g.Helper()
	r, err := http.NewRequestWithContext(g.Context(), method, g.endpoint+path, strings.NewReader(body))
	if err != nil {
		g.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", g.token[user])
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("OpenStack-API-Version", "compute "+version)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		g.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		g.Fatal(err)
	}
	return res.StatusCode, string(raw), res.Header
}

// want sends a request, and fails the test unless the reply has the status code and contains the text in the parameter says. It returns the body.
func (g *glanced) want(code int, says, user, version, method, path, body string) string {
	g.Helper()
	got, reply, _ := g.ask(user, version, method, path, body)
	if got != code || !strings.Contains(reply, says) {
		g.Fatalf("%s: %s %s %s = %d %s, want %d with %q", user, method, path, body, got, reply, code, says)
	}
	return reply
}

// image makes an image of a user, and uploads the content unless content is empty. It returns the id of the image.
func (g *glanced) image(user string, as images.CreateOpts, content string) string {
	g.Helper()
	as.ContainerFormat, as.DiskFormat = "bare", cmp.Or(as.DiskFormat, "raw")
	is, err := images.Create(g.Context(), g.images[user], as).Extract()
	if err == nil && content != "" {
		err = imagedata.Upload(g.Context(), g.images[user], is.ID, strings.NewReader(content)).ExtractErr()
	}
	if err != nil {
		g.Fatal(err)
	}
	return is.ID
}

// boot returns the body of a request to create a server from an image.
func boot(image string) string {
	return `{"server": {"name": "s", "flavorRef": "1", "imageRef": "` + image + `"}}`
}

// server creates a server of ada and returns its id.
func (g *glanced) server(image string) string {
	g.Helper()
	var made struct{ Server struct{ ID string } }
	if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.1", "POST", "servers", boot(image))), &made); err != nil {
		g.Fatal(err)
	}
	return made.Server.ID
}

// becomes waits until a server has a status and no task, and returns its fault.
func (g *glanced) becomes(id, status string) string {
	g.Helper()
	var now struct {
		Server struct {
			Status string
			Task   *string `json:"OS-EXT-STS:task_state"`
			Fault  struct{ Message, Details string }
		}
	}
	g.poll("server "+id+" to be "+status, 90*time.Second, func() error {
		body := g.want(200, "", "root", "2.1", "GET", "servers/"+id, "")
		if err := json.Unmarshal([]byte(body), &now); err != nil || now.Server.Status != status || now.Server.Task != nil {
			return errors.New(body)
		}
		return nil
	})
	return now.Server.Fault.Message + " " + now.Server.Fault.Details
}

// status returns the status of an image, or "gone".
func (g *glanced) status(image string) string {
	g.Helper()
	var is struct{ Status string } // not gophercloud's type, which cannot decode every image
	c := g.images["root"]
	res, err := c.Get(g.Context(), c.ServiceURL("images", image), &is, nil)
	if gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
		return "gone"
	}
	if err != nil {
		g.Fatal(err)
	}
	_ = res.Body.Close() // an error does not matter after the body was read
	return is.Status
}

// content checks the content of an image's file on the host.
func (g *glanced) content(image, want string) {
	g.Helper()
	if raw, err := os.ReadFile(filepath.Join(g.dir, "images", "node-1", image+".raw")); err != nil || string(raw) != want {
		g.Errorf("the host has %.100q, %v; want %q", raw, err, want)
	}
}

// gone waits until an image is removed.
func (g *glanced) gone(what, image string) {
	g.Helper()
	g.poll(what+" to be removed", 30*time.Second, func() error {
		if is := g.status(image); is != "gone" {
			return errors.New(is)
		}
		return nil
	})
}
