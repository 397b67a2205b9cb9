//go:build libvirt_dlopen

package libvirt_test

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/envtest"
)

// onDrive matches a line in which the guest prints a file of its config drive.
var onDrive = regexp.MustCompile(`(?m)^config drive: \./(\S+) ([A-Za-z0-9+/=]*)\r?$`)

// readByGuest waits until the guest has started, and returns the files that the guest has read from its config drive, by path.
func readByGuest(t *testing.T, d compute.Driver) map[string]string {
	t.Helper()
	wait(t, "the guest to be ready", func() bool { return strings.Contains(console(t, d, 0), "guest ready") })
	out := map[string]string{}
	for _, m := range onDrive.FindAllStringSubmatch(console(t, d, 0), -1) {
		raw, err := base64.StdEncoding.DecodeString(m[2])
		if err != nil {
			t.Fatalf("%s: %v", m[0], err)
		}
		out[m[1]] = string(raw)
	}
	return out
}

// TestConfigDrive: a guest finds a drive with the label config-2, and reads the user data, the key, the password, the host name, the files and the
// metadata on the drive, also during a rescue. A rebuilt server has a new drive. A server without such data has no drive.
func TestConfigDrive(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it boots guests; make test runs it")
	}
	dir := filepath.Join(t.TempDir(), "instances")
	d, err := libvirt.Open(t.Context(), options(t, map[string]string{"connection_uri": envtest.Libvirt(t).URL, "images_path": images(t), "dir": dir, "vnc_listen": "none"}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	large := strings.Repeat("#cloud-config\n", 3000)
	spec := compute.Spec{
		ID: guestID, Name: "a \"name\"", ProjectID: "p", ImageRef: "guest", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 128, DiskGiB: 1}, Metadata: map[string]string{"role": "web <1>"},
		Hostname: "host-1", ConfigDrive: true, UserData: base64.StdEncoding.EncodeToString([]byte(large)), PublicKey: "ssh-ed25519 AAAA mine", AdminPass: "s3cret",
		Files: []compute.File{{Path: "/etc/motd", Content: []byte("hello\n")}},
	}
	must("spawn", d.Spawn(t.Context(), spec))
	file := filepath.Join(dir, guestID, "config.iso")
	info, err := os.Stat(file)
	must("the file of the drive", err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others can read the password of the guest: mode %v", info.Mode())
	}
	if out, err := exec.CommandContext(t.Context(), "blkid", "-p", "-o", "value", "-s", "LABEL", "-s", "TYPE", file).CombinedOutput(); err != nil || string(out) != "config-2\niso9660\n" {
		t.Errorf("the drive has %q, %v", out, err)
	}
	got := readByGuest(t, d)
	if got["openstack/latest/user_data"] != large || got["openstack/latest/vendor_data.json"] != "{}" || got["openstack/latest/network_data.json"] == "" || got["openstack/content/0000"] != "hello\n" || len(got) != 5 {
		t.Errorf("the guest has read %.2000q", got)
	}
	var meta map[string]any
	must("meta_data.json", json.Unmarshal([]byte(got["openstack/latest/meta_data.json"]), &meta))
	if seed, _ := meta["random_seed"].(string); len(seed) < 512 {
		t.Errorf("the random seed is %q", seed)
	}
	delete(meta, "random_seed")
	want := map[string]any{
		"uuid": guestID, "name": `a "name"`, "hostname": "host-1", "project_id": "p", "launch_index": 0.0, "meta": map[string]any{"role": "web <1>"}, "admin_pass": "s3cret", "devices": []any{},
		"files":       []any{map[string]any{"content_path": "/content/0000", "path": "/etc/motd"}},
		"public_keys": map[string]any{"default": "ssh-ed25519 AAAA mine"}, "keys": []any{map[string]any{"name": "default", "type": "ssh", "data": "ssh-ed25519 AAAA mine"}},
	}
	if diff := gocmp.Diff(want, meta); diff != "" {
		t.Errorf("meta_data.json (-want +got):\n%s", diff)
	}
	must("spawn a second time", d.Spawn(t.Context(), spec))
	plain := got["openstack/latest/meta_data.json"]
	for _, password := range []string{"", "n\"w"} {
		must("rescue", d.Rescue(t.Context(), guestID, "", password))
		got := readByGuest(t, d)
		metaOf := func(text string) (out map[string]any) {
			t.Helper()
			must("meta_data.json", json.Unmarshal([]byte(text), &out))
			return out
		}
		want, is := metaOf(plain), metaOf(got["openstack/latest/meta_data.json"])
		want["admin_pass"] = cmp.Or(password, "s3cret")
		if diff := gocmp.Diff(want, is); diff != "" {
			t.Errorf("meta_data.json of a rescue with the password %q (-want +got):\n%s", password, diff)
		}
		if got["openstack/latest/user_data"] != large || got["openstack/content/0000"] != "hello\n" || len(got) != 5 {
			t.Errorf("the guest that is rescued with the password %q has read %.2000q", password, got)
		}
		if info, err := os.Stat(filepath.Join(dir, guestID, "rescue.iso")); (err == nil) != (password != "") || err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("the drive of a rescue with the password %q: %v, %v", password, info, err)
		}
		must("unrescue", d.Unrescue(t.Context(), guestID))
		if got := readByGuest(t, d); got["openstack/latest/meta_data.json"] != plain {
			t.Errorf("after a rescue with the password %q the guest has read %.2000q", password, got)
		}
		if _, err := os.Stat(filepath.Join(dir, guestID, "rescue.iso")); !os.IsNotExist(err) {
			t.Errorf("the drive of the rescue with the password %q after its end: %v", password, err)
		}
	}
	must("destroy", d.Destroy(t.Context(), guestID))
	if _, err := os.Stat(filepath.Dir(file)); !os.IsNotExist(err) {
		t.Errorf("the drive after the deletion: %v", err)
	}
	spec.UserData, spec.AdminPass = "bmV3", "" // as in a rebuild
	must("spawn after the deletion", d.Spawn(t.Context(), spec))
	if got := readByGuest(t, d); got["openstack/latest/user_data"] != "new" || strings.Contains(got["openstack/latest/meta_data.json"], "admin_pass") {
		t.Errorf("the rebuilt guest has read %.2000q", got)
	}
	must("destroy", d.Destroy(t.Context(), guestID))
	spec.UserData, spec.PublicKey, spec.ConfigDrive, spec.Files = "", "", false, nil
	must("spawn without data", d.Spawn(t.Context(), spec))
	if got := readByGuest(t, d); len(got) > 0 {
		t.Errorf("a guest without data has read %.2000q", got)
	}
}
