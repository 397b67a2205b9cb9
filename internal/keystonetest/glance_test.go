package keystonetest_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/imagedata"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"

	"github.com/armature-go/armature/internal/keystonetest"
)

// TestGlance: a member of a project uploads an image to the image service in the catalog. The service keeps the image
// over a restart, and shows it to no other project.
func TestGlance(t *testing.T) {
	t.Parallel()
	k := keystonetest.Start(t)
	g := k.Glance()
	p1, p2 := k.Project("p1"), k.Project("p2")
	k.Grant(k.User("ada"), "member", gophercloud.AuthScope{ProjectID: p1})
	k.Grant(k.User("bob"), "member", gophercloud.AuthScope{ProjectID: p2})
	ada, bob := k.Images("ada", p1), k.Images("bob", p2)
	is, err := images.Create(t.Context(), ada, images.CreateOpts{Name: "i", DiskFormat: "raw", ContainerFormat: "bare"}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	if err := imagedata.Upload(t.Context(), ada, is.ID, bytes.NewReader([]byte("content"))).ExtractErr(); err != nil {
		t.Fatal(err)
	}
	g.Kill()
	if err := g.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := imagedata.Download(t.Context(), ada, is.ID).Extract()
	if err != nil {
		t.Fatal(err)
	}
	defer got.(io.Closer).Close()
	if raw, err := io.ReadAll(got); err != nil || string(raw) != "content" {
		t.Errorf("%q, %v", raw, err)
	}
	if _, err := images.Get(t.Context(), bob, is.ID).Extract(); !gophercloud.ResponseCodeIs(err, 404) {
		t.Errorf("the image of another project: %v", err)
	}
}
