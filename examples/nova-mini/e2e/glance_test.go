package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/keystonetest"
)

// TestGlance: servers boot from images of a real Glance, if the client may use the image. Snapshots of servers become images in Glance. Neither a
// killed compute service, nor wrong content, nor an unavailable Glance leads to a server with wrong content or an incomplete image.
func TestGlance(t *testing.T) {
	t.Parallel()
	scenario(t)
	g := newGlanced(t)
	g.testChecks()
	g.testProxy()
	g.testSnapshot()
	g.testBackups()
	if os.Getenv("ARMATURE_ACCEPT") == "" { // make accept runs the rest
		return
	}
	g.testShelve()
	g.testRescue()
	g.testWrongContent()
	g.testKilledDownload()
	g.testKilledUpload()
	g.testDeletedUpload()
	g.testCommands()
	g.testUnavailable()
}

// testChecks: an image must exist for the client, have content, and fit the flavor.
func (g *glanced) testChecks() {
	g.Helper()
	mine := g.image("ada", images.CreateOpts{Name: "mine", Properties: map[string]string{"os_distro": "test"}}, "content")
	off := g.image("ada", images.CreateOpts{Name: "off"}, "content")
	res, err := g.images["root"].Post(g.Context(), g.images["root"].ServiceURL("images", off, "actions", "deactivate"), nil, nil, &gophercloud.RequestOpts{OkCodes: []int{204}})
	if err != nil {
		g.Fatal(err)
	}
	res.Body.Close()
	for _, tt := range []struct{ image, says string }{
		{g.image("bob", images.CreateOpts{Name: "his"}, "content"), "Can not find requested image"},
		{"11111111-2222-3333-4444-555555555555", "Can not find requested image"},
		{"../images", "Can not find requested image"},
		{off, "Image " + off + " is not active."},
		{g.image("ada", images.CreateOpts{Name: "empty"}, ""), "is not active."},
		{g.image("ada", images.CreateOpts{Name: "big", MinRAM: 100000}, "content"), "Flavor's memory is too small for requested image."},
		{g.image("ada", images.CreateOpts{Name: "wide", MinDisk: 100}, "content"), "Flavor's disk is smaller than the minimum size specified in image metadata."},
	} {
		g.want(400, tt.says, "ada", "2.1", "POST", "servers", boot(tt.image))
	}
	id := g.server(mine)
	g.becomes(id, "ACTIVE")
	g.content(mine, "content")
	g.want(400, "Cannot find image for rebuild", "ada", "2.1", "POST", "servers/"+id+"/action", `{"rebuild": {"imageRef": "11111111-2222-3333-4444-555555555555"}}`)
	g.want(400, "Requested rescue image 'x' is not supported", "ada", "2.1", "POST", "servers/"+id+"/action", `{"rescue": {"rescue_image_ref": "x"}}`)
	other := g.image("ada", images.CreateOpts{Name: "other"}, "other content")
	g.want(202, "", "ada", "2.1", "POST", "servers/"+id+"/action", `{"rebuild": {"imageRef": "`+other+`"}}`)
	g.becomes(id, "ACTIVE")
	g.content(other, "other content")
}

// testProxy: the old routes of images show the images of Glance.
func (g *glanced) testProxy() {
	g.Helper()
	list := g.want(200, `"name":"mine"`, "ada", "2.1", "GET", "images/detail", "")
	if strings.Contains(list, `"name":"his"`) || !strings.Contains(list, `"os_distro":"test"`) || !strings.Contains(list, `"status":"SAVING"`) {
		g.Errorf("the images of ada: %s", list)
	}
	if list := g.want(200, `"name":"big"`, "ada", "2.35", "GET", "images?minRam=100000", ""); strings.Contains(list, `"name":"mine"`) {
		g.Errorf("the images with 100000 MiB: %s", list)
	}
	id := g.image("ada", images.CreateOpts{Name: "old", Properties: map[string]string{"a": "1"}}, "content")
	at := "images/" + id
	g.want(404, "Image not found.", "bob", "2.1", "GET", at, "")
	g.want(404, "Image not found.", "bob", "2.1", "DELETE", at, "")
	g.want(200, `"b":"2"`, "ada", "2.1", "POST", at+"/metadata", `{"metadata": {"b": "2"}}`)
	g.want(200, `{"meta":{"x y":"3"}}`, "ada", "2.1", "PUT", at+"/metadata/x%20y", `{"meta": {"x y": "3"}}`)
	g.want(204, "", "ada", "2.1", "DELETE", at+"/metadata/a", "")
	g.want(404, "Metadata item was not found", "ada", "2.1", "DELETE", at+"/metadata/a", "")
	g.want(200, `{"metadata":{"b":"2","x y":"3"}}`, "ada", "2.1", "GET", at+"/metadata", "")
	g.want(200, `{"metadata":{"c":"4"}}`, "ada", "2.1", "PUT", at+"/metadata", `{"metadata": {"c": "4"}}`)
	g.want(204, "", "ada", "2.1", "DELETE", at, "")
	if is := g.status(id); is != "gone" {
		g.Errorf("the deleted image is %s", is)
	}
}

// testSnapshot: the image of a server's disk belongs to the client, and a server boots from it.
func (g *glanced) testSnapshot() {
	g.Helper()
	id := g.server(g.image("ada", images.CreateOpts{Name: "base", MinRAM: 64, Properties: map[string]string{"img_config_drive": "mandatory", "k": "base", "img_signature": "x"}}, "base"))
	g.becomes(id, "ACTIVE")
	g.want(200, "config drive: host name s", "ada", "2.1", "POST", "servers/"+id+"/action", `{"os-getConsoleOutput": {}}`)
	g.want(404, "", "bob", "2.1", "POST", "servers/"+id+"/action", `{"createImage": {"name": "snap"}}`)
	code, body, header := g.ask("ada", "2.1", "POST", "servers/"+id+"/action", `{"createImage": {"name": "snap", "metadata": {"k": "v"}}}`)
	at := header.Get("Location")
	image := at[strings.LastIndex(at, "/")+1:]
	if code != 202 || image == "" {
		g.Fatalf("%d %s %v", code, body, header)
	}
	g.becomes(id, "ACTIVE")
	is, err := images.Get(g.Context(), g.images["ada"], image).Extract()
	if err != nil || is.Status != images.ImageStatusActive || is.Properties["instance_uuid"] != id || is.Properties["k"] != "v" || is.Properties["image_type"] != "snapshot" || is.MinDiskGigabytes != 1 ||
		is.MinRAMMegabytes != 64 || is.Properties["img_config_drive"] != "mandatory" || is.Properties["img_signature"] != nil {
		g.Fatalf("%+v, %v", is, err)
	}
	if list := g.want(200, image, "ada", "2.1", "GET", "images/detail?type=snapshot&server="+id, ""); strings.Count(list, `"progress"`) != 1 {
		g.Errorf("the images of server %s: %s", id, list)
	}
	g.becomes(g.server(image), "ACTIVE")
	var made struct {
		ID string `json:"image_id"`
	}
	var outage atomic.Int64 // the number of uploads; the first two fail, as if Glance were unavailable
	g.proxy.set(isUpload, func(w http.ResponseWriter, r *http.Request) {
		if outage.Add(1) > 2 {
			g.proxy.forward(w, r)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.45", "POST", "servers/"+id+"/action", `{"createImage": {"name": "snap 2", "metadata": {"metadata": "odd"}}}`)), &made); err != nil {
		g.Fatal(err)
	}
	g.becomes(id, "ACTIVE")
	g.proxy.set(nil, nil)
	if n := outage.Load(); n != 3 {
		g.Errorf("%d uploads, want 3", n)
	}
	if is := g.status(made.ID); is != "active" {
		g.Errorf("the image is %s", is)
	}
	// OpenStack clients cannot decode an image that has a property named metadata, so the test uses the images API of the cloud.
	g.want(200, `"metadata":"odd"`, "ada", "2.1", "GET", "images/detail", "")
	g.want(204, "", "ada", "2.1", "DELETE", "images/"+made.ID, "")
}

// testBackups: the newest backups of a server stay, as many as the rotation says, and the older backups are removed. Backups of another type stay. An image of another project with
// the properties of a backup neither counts nor is removed.
func (g *glanced) testBackups() {
	g.Helper()
	id := g.server(g.image("ada", images.CreateOpts{Name: "base"}, "base"))
	g.becomes(id, "ACTIVE")
	foreign := g.image("bob", images.CreateOpts{Name: "foreign", Properties: map[string]string{"image_type": "backup", "backup_type": "daily", "instance_uuid": id}}, "foreign")
	var made []string
	for _, kind := range []string{"daily", "weekly", "daily", "daily"} {
		var one struct {
			ID string `json:"image_id"`
		}
		body := `{"createBackup": {"name": "b", "backup_type": "` + kind + `", "rotation": 2, "metadata": {"instance_uuid": "other", "k": "v"}}}`
		if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.45", "POST", "servers/"+id+"/action", body)), &one); err != nil {
			g.Fatal(err)
		}
		g.becomes(id, "ACTIVE")
		made = append(made, one.ID)
	}
	for i, want := range []string{"gone", "active", "active", "active"} {
		if got := g.status(made[i]); got != want {
			g.Errorf("backup %d is %q, want %q", i, got, want)
		}
	}
	is, err := images.Get(g.Context(), g.images["ada"], made[3]).Extract()
	if err != nil || is.Properties["image_type"] != "backup" || is.Properties["backup_type"] != "daily" || is.Properties["instance_uuid"] != id || is.Properties["k"] != "v" {
		g.Errorf("the backup: %+v, %v", is, err)
	}
	g.want(202, "", "ada", "2.45", "POST", "servers/"+id+"/action", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 0}}`)
	g.becomes(id, "ACTIVE")
	for i, want := range map[int]string{1: "active", 2: "gone", 3: "gone"} {
		if got := g.status(made[i]); got != want {
			g.Errorf("after a backup that is not kept, backup %d is %q, want %q", i, got, want)
		}
	}
	if _, err := images.Get(g.Context(), g.images["bob"], foreign).Extract(); err != nil {
		g.Errorf("the image of another project: %v", err)
	}
}

// testShelve: the image of a shelved server exists until the server is unshelved or deleted.
func (g *glanced) testShelve() {
	g.Helper()
	base := g.image("ada", images.CreateOpts{Name: "base"}, "base")
	kept, dropped := g.server(base), g.server(base)
	for _, id := range []string{kept, dropped} {
		g.becomes(id, "ACTIVE")
		g.want(202, "", "ada", "2.1", "POST", "servers/"+id+"/action", `{"shelve": null}`)
		g.becomes(id, "SHELVED_OFFLOADED")
	}
	shelved := func(id string) string {
		list := g.want(200, "s-shelved", "ada", "2.1", "GET", "images?server="+id, "")
		var all struct{ Images []struct{ ID string } }
		if err := json.Unmarshal([]byte(list), &all); err != nil || len(all.Images) != 1 {
			g.Fatalf("the images of server %s: %s, %v", id, list, err)
		}
		return all.Images[0].ID
	}
	first, second := shelved(kept), shelved(dropped)
	g.want(202, "", "ada", "2.1", "POST", "servers/"+kept+"/action", `{"unshelve": null}`)
	g.becomes(kept, "ACTIVE")
	g.want(204, "", "ada", "2.1", "DELETE", "servers/"+dropped, "")
	g.gone("the image of the server that runs again", first)
	g.gone("the image of the server that is deleted", second)
}

// testRescue: a rescued server boots from the image in the request or, without one, from its own image.
func (g *glanced) testRescue() {
	g.Helper()
	id := g.server(g.image("ada", images.CreateOpts{Name: "base"}, "base"))
	g.becomes(id, "ACTIVE")
	for _, body := range []string{`{"rescue": {"rescue_image_ref": "` + g.image("ada", images.CreateOpts{Name: "help"}, "help") + `"}}`, `{"rescue": null}`} {
		g.want(200, "adminPass", "ada", "2.1", "POST", "servers/"+id+"/action", body)
		g.becomes(id, "RESCUE")
		g.want(202, "", "ada", "2.1", "POST", "servers/"+id+"/action", `{"unrescue": null}`)
		g.becomes(id, "ACTIVE")
	}
}

// testCommands runs the commands of docs/images.md.
func (g *glanced) testCommands() {
	g.Helper()
	raw, err := os.ReadFile("../../../docs/images.md")
	if err != nil {
		g.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "```sh\n")
	block, _, _ := strings.Cut(rest, "```")
	if strings.Count(block, "openstack ") != 5 {
		g.Fatalf("docs/images.md has the commands %q", block)
	}
	g.ks.Publish("compute", g.endpoint)
	dir := g.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "debian-12.qcow2"), []byte("debian"), 0o600); err != nil {
		g.Fatal(err)
	}
	for command := range strings.Lines(block) {
		cmd := exec.CommandContext(g.Context(), "sh", "-c", command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "OS_AUTH_URL="+g.ks.Endpoint, "OS_USERNAME=ada", "OS_PASSWORD="+keystonetest.Password, "OS_PROJECT_NAME=p1", "OS_PROJECT_DOMAIN_ID=default",
			"OS_USER_DOMAIN_ID=default", "OS_IDENTITY_API_VERSION=3", "OS_COMPUTE_API_VERSION=2.37")
		if out, err := cmd.CombinedOutput(); err != nil {
			g.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	g.want(200, `"name":"one-saved"`, "ada", "2.1", "GET", "images?status=ACTIVE", "")
}

// testUnavailable: while Glance is unavailable, requests to create servers are refused, and other requests work.
func (g *glanced) testUnavailable() {
	g.Helper()
	image := g.image("ada", images.CreateOpts{Name: "base"}, "base")
	g.glance.Kill()
	g.want(503, "Connection to glance host failed", "ada", "2.1", "POST", "servers", boot(image))
	g.want(503, "Connection to glance host failed", "ada", "2.1", "GET", "images", "")
	g.want(200, "", "ada", "2.1", "GET", "servers/detail", "")
	if err := g.glance.Restart(g.Context()); err != nil {
		g.Fatal(err)
	}
	g.becomes(g.server(image), "ACTIVE")
}

// TestLibvirtImages: a QEMU guest boots from an image of Glance, and another guest boots from the snapshot of the first guest's disk. The
// guest reads its user data. An image with a backing file is refused, although its checksum is right.
func TestLibvirtImages(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept")
	}
	scenario(t)
	lv := envtest.Libvirt(t)
	plugins, image := filepath.Join(t.TempDir(), "plugins"), filepath.Join(t.TempDir(), "guest.img")
	if err := compile(filepath.Join(plugins, "armature-compute-libvirt"), "../../drivers/libvirt/armature-compute-libvirt", "-tags", "libvirt_dlopen"); err != nil {
		t.Fatal(err)
	}
	envtest.GuestImage(t, image)
	g := newGlancedWith(t, "compute_driver = libvirt\nplugin_dir = "+plugins+"\n[driver_libvirt]\nvirt_type = qemu\nvnc_listen = none\nconnection_uri = "+lv.URL+"\nplugin_max_files = 1024\n")
	raw, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	uploaded := g.image("ada", images.CreateOpts{Name: "guest"}, string(raw))
	g.want(200, "", "root", "2.1", "POST", "flavors", `{"flavor": {"name": "tiny", "id": "tiny", "ram": 128, "vcpus": 1, "disk": 1}}`)
	g.want(201, "", "ada", "2.2", "POST", "os-keypairs", `{"keypair": {"name": "k", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0Yp4u7bXvYbOHj1r7vQ1rXxT6eF0pYz6wQm1jFZyqv x"}}`)
	create := func(image string) string {
		t.Helper()
		body := `{"server": {"name": "s", "flavorRef": "tiny", "imageRef": "` + image + `", "key_name": "k", "user_data": "I2Nsb3VkLWNvbmZpZwo=", "networks": "none"}}`
		var made struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.37", "POST", "servers", body)), &made); err != nil {
			t.Fatal(err)
		}
		return made.Server.ID
	}
	says := func(id string, texts ...string) {
		t.Helper()
		g.poll("the guest to be ready", 90*time.Second, func() error {
			out := g.want(200, "", "ada", "2.1", "POST", "servers/"+id+"/action", `{"os-getConsoleOutput": {}}`)
			for _, text := range append(texts, "guest ready") {
				if !strings.Contains(out, text) {
					return fmt.Errorf("the console does not say %s: %s", text, out[max(0, len(out)-300):])
				}
			}
			return nil
		})
	}
	first := create(uploaded)
	g.becomes(first, "ACTIVE")
	says(first, "config drive: ./openstack/latest/user_data I2Nsb3VkLWNvbmZpZwo=", "config drive: ./openstack/latest/meta_data.json ")
	var made struct {
		ID string `json:"image_id"`
	}
	if err := json.Unmarshal([]byte(g.want(202, "", "ada", "2.45", "POST", "servers/"+first+"/action", `{"createImage": {"name": "snap"}}`)), &made); err != nil {
		t.Fatal(err)
	}
	g.becomes(first, "ACTIVE")
	if is, err := images.Get(t.Context(), g.images["ada"], made.ID).Extract(); err != nil || is.Status != images.ImageStatusActive || is.DiskFormat != "qcow2" || is.SizeBytes < 1<<20 {
		t.Fatalf("the snapshot is %+v, %v", is, err)
	}
	second := create(made.ID)
	g.becomes(second, "ACTIVE")
	says(second)
	hole := filepath.Join(t.TempDir(), "hole.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", hole, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if raw, err = os.ReadFile(hole); err != nil {
		t.Fatal(err)
	}
	if says := g.becomes(create(g.image("ada", images.CreateOpts{Name: "hole", DiskFormat: "qcow2"}, string(raw))), "ERROR"); !strings.Contains(says, "has a backing file") {
		t.Errorf("the fault of the server is %s", says)
	}
	for _, id := range []string{first, second} {
		g.want(204, "", "ada", "2.1", "DELETE", "servers/"+id, "")
	}
	g.poll("the files of the servers to be removed", 60*time.Second, func() error {
		if left, _ := filepath.Glob(filepath.Join(g.dir, "instances", "node-1", "*-*-*")); len(left) > 0 {
			return fmt.Errorf("left %v", left)
		}
		return nil
	})
}
