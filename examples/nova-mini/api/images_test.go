package api_test

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	novaimage "github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestImages: until 2.35, images are listed in Nova's form. The image of a new server must exist and fit the flavor.
func TestImages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"cirros.img": "x", "big.raw": "x", "wide.raw": "x", novaimage.ListFile: `{"big": {"min_ram": 1024}, "wide": {"min_disk": 10, "properties": {"os_type": "linux"}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	source, err := novaimage.Directory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	eachCloudImages(t, source, func(c *cloud) {
		c.sameShape("list", sample(c.T, "images/images-list-get-resp.json"), c.want(200, "2.1", "member", "GET", "/images", ""))
		show := sample(c.T, "images/image-get-resp.json", `"OS-DCF:diskConfig": "AUTO",`, "") // only images with a certain property have this key
		c.sameShape("show", show, c.want(200, "2.35", "member", "GET", "/images/wide", ""))
		for query, want := range map[string]string{"": "big cirros wide", "?name=cirros": "cirros", "?name=none": "", "?limit=1": "big", "?marker=big": "cirros wide", "?limit=1&marker=big": "cirros", "?limit=0": ""} {
			reply := c.want(200, "2.1", "member", "GET", "/images/detail"+query, "")
			var got []string
			for _, name := range []string{"big", "cirros", "wide"} {
				if strings.Contains(reply, `"name":"`+name+`"`) {
					got = append(got, name)
				}
			}
			if strings.Join(got, " ") != want || strings.Contains(reply, `"rel":"next"`) != strings.Contains(query, "limit=1") {
				c.Errorf("%s: %s", query, reply)
			}
		}
		c.want(400, "2.1", "member", "GET", "/images?marker=none", "")
		c.want(400, "2.1", "member", "GET", "/images?limit=x", "")
		c.want(404, "2.1", "member", "GET", "/images/none", "")
		c.want(404, "2.36", "member", "GET", "/images", "")
		for _, tt := range []struct{ ref, flavor, says string }{
			{"cirros", "1", ""},
			{"none", "1", "Can not find requested image"},
			{"big", "1", "Flavor's memory is too small for requested image."},
			{"wide", "1", "Flavor disk is 1073741824 bytes, minimum size is 10737418240 bytes."},
			{"wide", "2", ""},
		} {
			status := 400
			if tt.says == "" {
				status = 202
			}
			reply := c.want(status, "2.1", "member", "POST", "/servers", `{"server": {"name": "a", "flavorRef": "`+tt.flavor+`", "imageRef": "`+tt.ref+`"}}`)
			if !strings.Contains(reply, tt.says) {
				c.Errorf("%s: %s", tt.ref, reply)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, novaimage.ListFile), []byte("{"), 0o600); err != nil {
			c.Fatal(err)
		}
		c.want(503, "2.1", "member", "POST", "/servers", `{"server": {"name": "a", "flavorRef": "1", "imageRef": "cirros"}}`)
		if err := os.WriteFile(filepath.Join(dir, novaimage.ListFile), []byte(`{"big": {"min_ram": 1024}, "wide": {"min_disk": 10, "properties": {"os_type": "linux"}}}`), 0o600); err != nil {
			c.Fatal(err)
		}
	})
}

// changeable is a directory of images whose metadata can be changed, as in Glance.
type changeable struct {
	novaimage.Keeper // nil: the methods that the test does not need
	novaimage.Source

	mu         sync.Mutex
	properties map[string]string // of all images
}

// List implements image.Source.
func (s *changeable) List(ctx context.Context, token string) ([]novaimage.Image, error) {
	return s.Source.List(ctx, token)
}

// Get implements image.Source.
func (s *changeable) Get(ctx context.Context, token, id string) (*novaimage.Image, error) {
	is, err := s.Source.Get(ctx, token, id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := *is
	out.Properties = maps.Clone(s.properties)
	return &out, nil
}

// SetProperties implements image.Keeper.
func (s *changeable) SetProperties(ctx context.Context, token, id string, change func(map[string]string) (map[string]string, error)) (*novaimage.Image, error) {
	s.mu.Lock()
	to, err := change(maps.Clone(s.properties))
	if err == nil {
		s.properties = to
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, token, id)
}

// TestImageSamples: requests and replies about the metadata of images have the keys and types of Nova's samples.
func TestImageSamples(t *testing.T) {
	t.Parallel()
	samplesOf(t, "images")
	source := imagesWith(t, `{"one": {}}`)
	eachCloudOf(t, api.Rules(), store.Limits{store.Metadata: 128}, nil, func(c *cloud) {
		const at, dir = "/images/one/metadata", "images/"
		detail := sample(c.T, dir+"images-details-get-resp.json", `"OS-DCF:diskConfig": "AUTO",`, "")
		c.sameShape("details", detail, c.want(200, "2.1", "member", "GET", "/images/detail", ""))
		c.compareWith(nil, "2.1", "member", "GET", at, "", dir+"image-metadata-get-resp", 200)
		c.compareWith(nil, "2.1", "member", "GET", at+"/kernel_id", "", dir+"image-meta-key-get", 200)
		for _, tt := range []struct{ method, path, request, reply, then string }{
			{"PUT", "/auto_disk_config", "image-meta-key-put-req", "image-meta-key-put-resp", `{"metadata":{"architecture":"x86_64","auto_disk_config":"False","kernel_id":"nokernel","ramdisk_id":"nokernel"}}`},
			{"POST", "", "image-metadata-post-req", "image-metadata-post-resp", `{"metadata":{"Label":"UpdatedImage","architecture":"x86_64","auto_disk_config":"False","kernel_id":"False","ramdisk_id":"nokernel"}}`},
			{"PUT", "", "image-metadata-put-req", "image-metadata-put-resp", `{"metadata":{"Label":"Changed","auto_disk_config":"True"}}`},
		} {
			c.compareWith(nil, "2.38", "member", tt.method, at+tt.path, dir+tt.request, dir+tt.reply, 200)
			if reply := c.want(200, "2.1", "member", "GET", at, ""); reply != tt.then {
				c.Errorf("after %s: %s", tt.request, reply)
			}
		}
		c.want(404, "2.39", "member", "GET", at, "")
	}, func(cfg *api.Config) {
		cfg.Images = &changeable{Source: source, properties: map[string]string{"architecture": "x86_64", "auto_disk_config": "True", "kernel_id": "nokernel", "ramdisk_id": "nokernel"}}
	})
}

// TestRebuildImage: a server that is rebuilt from an image that needs a config drive gets a config drive. The server keeps it
// after a rebuild from another image.
func TestRebuildImage(t *testing.T) {
	t.Parallel()
	eachCloudImages(t, imagesWith(t, `{"plain": {}, "drive": {"properties": {"img_config_drive": "mandatory"}}}`), func(c *cloud) {
		for _, tt := range []struct{ from, to, before, after string }{{"plain", "drive", "", "True"}, {"drive", "plain", "True", "True"}} {
			id := c.boot(tt.from)
			if reply := c.want(200, "2.1", "member", "GET", "/servers/"+id, ""); !strings.Contains(reply, `"config_drive":"`+tt.before+`"`) {
				c.Errorf("from %s: %s", tt.from, reply)
			}
			c.want(202, "2.1", "member", "POST", "/servers/"+id+"/action", `{"rebuild": {"imageRef": "`+tt.to+`"}}`)
			if reply := c.want(200, "2.1", "member", "GET", "/servers/"+id, ""); !strings.Contains(reply, `"config_drive":"`+tt.after+`"`) {
				c.Errorf("from %s to %s: %s", tt.from, tt.to, reply)
			}
		}
	})
}

// imagesWith returns a directory of images as a source. The list is the content of the file that describes the images.
func imagesWith(t *testing.T, list string) novaimage.Source {
	t.Helper()
	dir := t.TempDir()
	var images map[string]any
	if err := json.Unmarshal([]byte(list), &images); err != nil {
		t.Fatal(err)
	}
	for name := range images {
		if err := os.WriteFile(filepath.Join(dir, name+".img"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, novaimage.ListFile), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := novaimage.Directory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// boot creates a server from an image, and makes it active on a host.
func (c *cloud) boot(image string) (id string) {
	c.Helper()
	var made struct{ Server struct{ ID string } }
	reply := c.want(202, "2.1", "member", "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "`+image+`"}}`)
	if err := json.Unmarshal([]byte(reply), &made); err != nil {
		c.Fatal(err)
	}
	c.launch(made.Server.ID, "n1")
	return made.Server.ID
}

// TestImageProperties: since 2.98, replies show the properties that the server's image had at the last boot. Properties that Nova does not know are left out.
func TestImageProperties(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 200)
	images := imagesWith(t, `{
		"plain": {},
		"rich": {"properties": {"architecture": "x86_64", "hw_disk_bus": "virtio", "os_distro": "`+long+`", "my_own": "1", "mappings": "[]", "trait:CUSTOM_A": "forbidden"}}}`)
	eachCloudImages(t, images, func(c *cloud) {
		c.addHost()
		id := c.boot("rich")
		rich := `"properties":{"architecture":"x86_64","hw_disk_bus":"virtio","os_distro":"` + long[:254] + `"}}`
		check := func(what, reply, want string) {
			c.Helper()
			if !strings.Contains(reply, want) {
				c.Errorf("%s: no %s in %s", what, want, reply)
			}
		}
		check("show", c.want(200, "2.98", "member", "GET", "/servers/"+id, ""), rich)
		check("list", c.want(200, "2.98", "member", "GET", "/servers/detail", ""), rich)
		if reply := c.want(200, "2.97", "member", "GET", "/servers/"+id, ""); strings.Contains(reply, "properties") {
			c.Errorf("2.97: %s", reply)
		}
		check("rebuild", c.want(202, "2.98", "member", "POST", "/servers/"+id+"/action", `{"rebuild": {"imageRef": "plain"}}`), `"properties":{}}`)
		c.launch(id, "n1")
		check("rebuild", c.want(202, "2.98", "member", "POST", "/servers/"+id+"/action", `{"rebuild": {"imageRef": "rich"}}`), rich)
	})
}

// TestImageNeeds: an image whose properties cannot be honored is refused, and a server is only rebuilt from an image that its host can run.
func TestImageNeeds(t *testing.T) {
	t.Parallel()
	eachCloudImages(t, imagesWith(t, `{
		"plain": {}, "odd": {"properties": {"architecture": "z80"}}, "secure": {"properties": {"os_secure_boot": "required"}}, "pc": {"properties": {"hw_architecture": "amd64"}},
		"arm": {"properties": {"hw_architecture": "aarch64"}}, "fast": {"properties": {"trait:CUSTOM_FAST": "required"}}}`), func(c *cloud) {
		host := compute.HostReport{Host: "n1", Driver: "d", Platforms: []compute.Platform{{Arch: "x86_64", Type: "kvm", Mode: "hvm"}}, Resources: compute.Resources{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 80}}
		if err := c.store.ReportHost(c.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			c.Fatal(err)
		}
		id := c.boot("plain")
		for _, tt := range []struct {
			image           string
			create, rebuild int
			says            string
		}{
			{"odd", 400, 400, "Invalid image metadata. Error: Architecture name 'z80' is not valid"},
			{"secure", 501, 501, "os_secure_boot = required"},
			{"arm", 202, 400, "No valid host was found."}, // a new server ends in ERROR: see package scheduler
			{"fast", 202, 400, "No valid host was found."},
			{"pc", 202, 202, ""},
		} {
			create := c.want(tt.create, "2.1", "member", "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "`+tt.image+`"}}`)
			rebuild := c.want(tt.rebuild, "2.1", "member", "POST", "/servers/"+id+"/action", `{"rebuild": {"imageRef": "`+tt.image+`"}}`)
			if tt.create != 202 && !strings.Contains(create, tt.says) || !strings.Contains(rebuild, tt.says) {
				c.Errorf("%s: %s, %s", tt.image, create, rebuild)
			}
		}
	})
}

// TestDiskConfig: the request says whether the partitions of a server's disk are changed automatically. If the request does not say so, the
// image does. An image may forbid automatic changes.
func TestDiskConfig(t *testing.T) {
	t.Parallel()
	eachCloudImages(t, imagesWith(t, `{"plain": {}, "auto": {"properties": {"auto_disk_config": "True"}}, "never": {"properties": {"auto_disk_config": "disabled"}}}`), func(c *cloud) {
		c.addHost()
		for _, tt := range []struct {
			image, more string
			want        string // empty: refused
		}{
			{"plain", ``, "MANUAL"},
			{"auto", ``, "AUTO"},
			{"auto", `, "OS-DCF:diskConfig": "MANUAL"`, "MANUAL"},
			{"plain", `, "OS-DCF:diskConfig": "AUTO"`, "AUTO"},
			{"never", ``, "MANUAL"},
			{"never", `, "OS-DCF:diskConfig": "AUTO"`, ""},
		} {
			status := 202
			if tt.want == "" {
				status = 400
			}
			says := `"OS-DCF:diskConfig":"` + tt.want + `"`
			if tt.want == "" {
				says = "Requested image never has automatic disk resize disabled."
			}
			if reply := c.want(status, "2.1", "member", "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "`+tt.image+`"`+tt.more+`}}`); !strings.Contains(reply, says) {
				c.Errorf("a server of %s%s: %s", tt.image, tt.more, reply)
			}
			id := c.boot("plain")
			if reply := c.want(status, "2.1", "member", "POST", "/servers/"+id+"/action", `{"rebuild": {"imageRef": "`+tt.image+`"`+tt.more+`}}`); !strings.Contains(reply, says) {
				c.Errorf("a rebuild from %s%s: %s", tt.image, tt.more, reply)
			}
		}
		id := c.boot("never")
		if reply := c.want(400, "2.1", "member", "POST", "/servers/"+id+"/action", `{"resize": {"flavorRef": "2", "OS-DCF:diskConfig": "AUTO"}}`); !strings.Contains(reply, "Requested image never has automatic disk resize disabled.") {
			c.Errorf("a resize: %s", reply)
		}
	})
}
