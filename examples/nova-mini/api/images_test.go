package api_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	novaimage "github.com/armature-go/armature/examples/nova-mini/image"
)

// TestImages: images are listed in Nova's form until 2.35, and a new server needs one that exists and fits its flavor.
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
		show := strings.Replace(sample(c.T, "images/image-get-resp.json"), `"OS-DCF:diskConfig": "AUTO",`, "", 1) // it depends on a property
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
