package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// made creates servers as the client "member", and returns the reply.
func (c *cloud) made(version, body string) (out struct {
	Server struct {
		ID, AdminPass string
		Groups        []struct{ Name string } `json:"security_groups"`
	}
	ReservationID string `json:"reservation_id"`
},
) {
	c.Helper()
	status, reply := c.askAt(version, "member", "POST", "/servers", body)
	if err := json.Unmarshal([]byte(reply), &out); err != nil || status != 202 {
		c.Fatalf("%s: %s = %d %s", version, body, status, reply)
	}
	return out
}

// shown returns a server in the form that a client gets. The parameter who is the client's token, see people.
func (c *cloud) shown(version, who, id string) item {
	c.Helper()
	status, reply := c.askAt(version, who, "GET", "/servers/"+id, "")
	var out struct{ Server item }
	if err := json.Unmarshal([]byte(reply), &out); err != nil || status != 200 {
		c.Fatalf("%s: %d %s", version, status, reply)
	}
	return out.Server
}

// addHost adds the host n1, whose compute service is up.
func (c *cloud) addHost() {
	c.Helper()
	host := compute.HostReport{Host: "n1", Driver: "fake", Platforms: []compute.Platform{{Arch: "x86_64", Type: "fake", Mode: "hvm"}}, Resources: compute.Resources{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 80}}
	if err := c.store.ReportHost(c.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
		c.Fatal(err)
	}
}

// TestNewServer: the fields of a request for a new server are shown, and the driver gets them.
func TestNewServer(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		const image = "70a599e0-31e7-49b7-b260-868f441e862b"
		c.addHost()
		if err := c.store.SetSpecs(c.Context(), "1", map[string]string{"hw:cpu_policy": "shared"}); err != nil {
			c.Fatal(err)
		}
		if err := c.store.CreateKeyPair(c.Context(), &store.KeyPair{UserID: "u1", Name: "mine", Type: "ssh", PublicKey: "ssh-rsa A"}); err != nil {
			c.Fatal(err)
		}
		got := c.made("2.94", `{"server": {"name": "My Server.1", "flavorRef": 1, "key_name": "mine", "imageRef": "`+image+`", "adminPass": "geheim", "metadata": {"k": "v"},
			"OS-DCF:diskConfig": "AUTO", "accessIPv4": "1.2.3.4", "accessIPv6": "2001:DB8::0001", "config_drive": "yes", "user_data": "SGVsbG8=\n", "min_count": "1", "max_count": 1,
			"security_groups": [{"name": "default"}, {}], "block_device_mapping_v2": [{"source_type": "image", "destination_type": "local", "boot_index": "0", "uuid": "`+image+`", "delete_on_termination": true, "disk_bus": "virtio", "device_type": "disk", "device_name": "/dev/vda"}],
			"networks": "none", "description": null, "tags": ["b", "a", "b"], "hostname": "web.example.org", "availability_zone": "nova"},
			"OS-SCH-HNT:scheduler_hints": {"same_host": "`+image+`", "x": [1, "2"]}}`)
		if got.Server.AdminPass != "geheim" || len(got.Server.Groups) != 2 || got.Server.Groups[0].Name != "default" {
			c.Errorf("%+v", got)
		}
		srv := c.shown("2.100", "admin", got.Server.ID)
		for name, want := range map[string]any{
			"name": "My Server.1", "metadata": map[string]any{"k": "v"}, "OS-DCF:diskConfig": "AUTO", "accessIPv4": "1.2.3.4", "accessIPv6": "2001:db8::1", "config_drive": "True",
			"description": nil, "tags": []any{"a", "b"}, "OS-EXT-SRV-ATTR:hostname": "web.example.org", "OS-EXT-SRV-ATTR:user_data": "SGVsbG8=\n", "OS-EXT-SRV-ATTR:launch_index": 0.,
			"pinned_availability_zone": "nova", "scheduler_hints": map[string]any{"same_host": []any{image}, "x": []any{1., "2"}}, "host_status": "",
			"OS-EXT-SRV-ATTR:instance_name": "instance-" + got.Server.ID, "OS-EXT-SRV-ATTR:root_device_name": nil, "trusted_image_certificates": nil,
			"flavor":   map[string]any{"vcpus": 1., "ram": 512., "disk": 1., "ephemeral": 0., "swap": 0., "original_name": "m1.tiny", "extra_specs": map[string]any{"hw:cpu_policy": "shared"}},
			"key_name": "mine",
		} {
			if diff := cmp.Diff(want, srv[name]); diff != "" {
				c.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		if id := srv.text("OS-EXT-SRV-ATTR:reservation_id"); len(id) != 10 || !strings.HasPrefix(id, "r-") {
			c.Errorf("reservation %s", id)
		}
		built, err := c.store.ServerToBuild(c.Context(), got.Server.ID)
		if err != nil {
			c.Fatal(err)
		}
		want := compute.Spec{
			ID: got.Server.ID, Name: "My Server.1", ProjectID: "p1", ImageRef: image, Resources: compute.Resources{VCPUs: 1, MemoryMiB: 512, DiskGiB: 1},
			Metadata: map[string]string{"k": "v"}, Hostname: "web.example.org", InstanceName: "instance-" + got.Server.ID, ConfigDrive: true, UserData: "SGVsbG8=\n", AdminPass: "geheim", PublicKey: "ssh-rsa A", KeyName: "mine", Zone: "nova",
		}
		if diff := cmp.Diff(want, built.Spec()); diff != "" {
			c.Errorf("the driver gets (-want +got):\n%s", diff)
		}
		files := c.made("2.56", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x", "networks": "auto", "personality": [{"path": "/a", "contents": "QQ==\n"}]}}`)
		if built, err := c.store.ServerToBuild(c.Context(), files.Server.ID); err != nil || cmp.Diff([]compute.File{{Path: "/a", Content: []byte("A")}}, built.Spec().Files) != "" {
			c.Errorf("files: %+v, %v", built.Spec().Files, err)
		}

		// The host status is the status of the compute service.
		c.addHost()
		c.launch(got.Server.ID, "n1")
		if srv := c.shown("2.16", "admin", got.Server.ID); srv["host_status"] != "UP" || srv["OS-EXT-SRV-ATTR:root_device_name"] != "/dev/vda" {
			c.Errorf("%v", srv)
		}
		if err := c.store.SetDisabled(c.Context(), store.ComputeBinary, "n1", true, ""); err != nil {
			c.Fatal(err)
		}
		if srv := c.shown("2.16", "admin", got.Server.ID); srv["host_status"] != "MAINTENANCE" {
			c.Errorf("%v", srv)
		}
		if srv := c.shown("2.100", "member", got.Server.ID); srv["host_status"] != nil || srv["OS-EXT-SRV-ATTR:hostname"] != "web.example.org" || srv["OS-EXT-SRV-ATTR:user_data"] != nil {
			c.Errorf("a member sees %v", srv)
		}

		// Before 2.19 the name is the description.
		for version, want := range map[string]any{"2.1": "Old", "2.18": "Old", "2.19": nil} {
			got := c.made(version, `{"server": {"name": "Old", "flavorRef": "1", "imageRef": "x"}}`)
			if srv := c.shown("2.96", "admin", got.Server.ID); srv["description"] != want {
				c.Errorf("created at %s: %v, want %v", version, srv["description"], want)
			}
		}

		// A host and a hypervisor with different names stand for a host that does not exist.
		status, reply := c.askAt("2.1", "admin", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x", "availability_zone": "nova:n1:n2"}}`)
		var odd struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(reply), &odd); err != nil || status != 202 {
			c.Fatalf("%d %s", status, reply)
		}
		var data string
		if err := c.db.GetContext(c.Context(), &data, "SELECT input FROM operations WHERE active = ?", odd.Server.ID); err != nil || !strings.Contains(data, `"only_host":"n1:n2"`) {
			c.Errorf("%s, %v", data, err)
		}

		// If the client gives no host name, the host name follows from the server's name.
		for name, want := range map[string]string{"Web_1.example ": "", "Web_1.example": "web-1-example", "ÄÖ 1": "äö-1", "東京": "Server-", "-a-": "a", strings.Repeat("x", 80): strings.Repeat("x", 63)} {
			if want == "" { // the API refuses the name
				continue
			}
			one := c.made("2.1", `{"server": {"name": "`+name+`", "flavorRef": "1", "imageRef": "x", "user_data": ""}}`)
			if want == "Server-" {
				want += one.Server.ID
			}
			if srv := c.shown("2.3", "admin", one.Server.ID); srv["OS-EXT-SRV-ATTR:hostname"] != want || srv["OS-EXT-SRV-ATTR:user_data"] != nil || srv["config_drive"] != "" {
				c.Errorf("%s: %v; want %s", name, srv, want)
			}
		}
	})
}

// TestSeveralServers: a request may create several servers. They have numbers in their names, and the same reservation id.
func TestSeveralServers(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		got := c.made("2.1", `{"server": {"name": "Web", "flavorRef": "1", "imageRef": "x", "min_count": "2", "max_count": 3, "return_reservation_id": "True"}}`)
		if got.Server.ID != "" || got.ReservationID == "" {
			c.Errorf("%+v", got)
		}
		found := map[string]bool{}
		for _, i := range must(c.list("admin", "servers", "")) {
			srv := c.shown("2.3", "admin", i.text("id"))
			n := fmt.Sprint(srv["OS-EXT-SRV-ATTR:launch_index"])
			found[fmt.Sprint(i["name"], srv["OS-EXT-SRV-ATTR:hostname"], n, srv["OS-EXT-SRV-ATTR:reservation_id"] == got.ReservationID)] = true
		}
		if diff := cmp.Diff(map[string]bool{"Web-1web-10true": true, "Web-2web-21true": true, "Web-3web-32true": true}, found); diff != "" {
			c.Errorf("(-want +got):\n%s", diff)
		}
		if one := c.made("2.1", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x", "min_count": 2}}`); one.Server.ID == "" || one.ReservationID != "" {
			c.Errorf("%+v", one)
		}
	})
}

// TestNewServerRefused: a request for a feature that the cloud does not have is refused with Nova's text, or with 501 and a text of
// nova-mini. A field of a later version is refused as unknown.
func TestNewServerRefused(t *testing.T) {
	t.Parallel()
	const (
		id      = "11111111-2222-4333-8444-555555555555"
		unknown = "Additional properties are not allowed ("
		bdm     = "Block Device Mapping is Invalid: "
	)
	disk := func(text string) string { return `"block_device_mapping_v2": [{` + text + `}]` }
	root := func(text string) string {
		return disk(`"source_type": "image", "destination_type": "local", "boot_index": 0, "uuid": "x", ` + text)
	}
	file := func(path, content string) string { return `{"path": "` + path + `", "contents": "` + content + `"}` }
	eachCloud(t, func(c *cloud) {
		c.addHost()
		for _, tt := range []struct {
			version, who, more string
			status             int
			says               string
		}{
			{"2.18", "member", `"description": "x"`, 400, unknown + "'description'"},
			{"2.51", "member", `"tags": []`, 400, unknown + "'tags'"},
			{"2.52", "member", `"tags": ["a,b"]`, 400, "does not match"},
			{"2.52", "member", `"tags": [""]`, 400, "is too short"},
			{"2.52", "member", `"tags": ["` + strings.Repeat("x", 61) + `"]`, 400, "is too long"},
			{"2.52", "member", `"tags": [` + strings.Repeat(`"a",`, 50) + `"a"]`, 400, "is too long"},
			{"2.57", "member", `"personality": []`, 400, unknown + "'personality'"},
			{"2.1", "member", `"personality": [` + strings.Repeat(file("/a", "QQ==")+",", 5) + file("/b", "QQ==") + `]`, 403, "Personality file limit exceeded"},
			{"2.1", "member", `"personality": [` + file(strings.Repeat("p", 256), "QQ==") + `]`, 403, "Personality file path exceeds maximum 255"},
			{"2.1", "member", `"personality": [` + file("/a", strings.Repeat("QUFB", 3414)) + `]`, 403, "Personality file content exceeds maximum 10240"},
			{"2.1", "member", `"personality": [` + file("/a", "?") + `]`, 400, "'?' is not a 'base64'"},
			{"2.62", "member", `"trusted_image_certificates": null`, 400, unknown + "'trusted_image_certificates'"},
			{"2.63", "member", `"trusted_image_certificates": ["a"]`, 501, "Trusted image certificates are not supported"},
			{"2.73", "admin", `"host": "n1"`, 400, unknown + "'host'"},
			{"2.74", "member", `"host": "n1"`, 403, "Policy doesn't allow compute:servers:create:requested_destination to be performed."},
			{"2.74", "admin", `"host": "n7"`, 400, "Compute host n7 could not be found."},
			{"2.74", "admin", `"hypervisor_hostname": "n7"`, 400, "Compute host n7 could not be found."},
			{"2.74", "admin", `"host": "n1", "hypervisor_hostname": "n7"`, 400, "Compute host n1 could not be found."},
			{"2.74", "admin", `"host": "n1", "availability_zone": "nova:n1"`, 400, "One mechanism with host and/or hypervisor_hostname and another mechanism with zone:host:node are mutually exclusive."},
			{"2.1", "member", `"availability_zone": "nova:n1"`, 403, "Policy doesn't allow os_compute_api:servers:create:forced_host to be performed."},
			{"2.1", "admin", `"availability_zone": "a:b:c:d"`, 400, "Invalid input received: Unable to parse availability_zone"},
			{"2.89", "member", `"hostname": "ab"`, 400, unknown + "'hostname'"},
			{"2.93", "member", `"hostname": "a.b"`, 400, "does not match"},
			{"2.90", "member", `"hostname": "ab", "max_count": 2`, 400, "Unable to allocate a single hostname to multiple instances"},
			{"2.1", "member", `"min_count": 3, "max_count": 2`, 400, "min_count must be <= max_count"},
			{"2.1", "member", `"min_count": 101`, 403, "A request creates at most 100 servers"},
			{"2.1", "member", `"max_count": 101`, 403, "A request creates at most 100 servers"},
			{"2.1", "member", `"key_name": " "`, 400, `"message":"An invalid 'name' value was provided. The name must be: printable characters. Can not start or end with whitespace."`},
			{"2.1", "member", `"max_count": "x"`, 400, "does not match"},
			{"2.1", "member", `"user_data": "a"`, 400, "Invalid input for field/attribute user_data. Value: a. 'a' is not a 'base64'"},
			{"2.1", "member", `"user_data": "` + strings.Repeat("A", 65536) + `"`, 400, "is too long"},
			{"2.1", "member", `"accessIPv4": "::1"`, 400, "is not a 'ipv4'"},
			{"2.1", "member", `"OS-DCF:diskConfig": "auto"`, 400, "'auto' is not one of ['AUTO', 'MANUAL']"},
			{"2.1", "member", `"networks": [{"uuid": "` + id + `"}]`, 400, "Network " + id + " could not be found."},
			{"2.37", "member", `"networks": [{"uuid": "` + id + `"}]`, 400, "Network " + id + " could not be found."},
			{"2.42", "member", `"networks": [{"port": "` + id + `", "tag": "t"}]`, 400, "Port id " + id + " could not be found."},
			{"2.41", "member", `"networks": [{"port": "` + id + `", "tag": "t"}]`, 400, ""},
			{"2.31", "member", `"networks": [{"port": "` + id + `", "tag": "t"}]`, 400, unknown + "'tag'"},
			{"2.1", "member", `"networks": [{"port": "` + id + `", "fixed_ip": "10.0.0.1"}]`, 400, "Specified Fixed IP '10.0.0.1' cannot be used with port '" + id + "': the two cannot be specified together."},
			{"2.1", "member", `"networks": [{}]`, 400, "Bad network format: missing 'uuid'"},
			{"2.1", "member", `"security_groups": [{"name": "web"}]`, 400, "Security group web not found."},
			{"2.1", "member", `"key_name": "k"`, 400, "Invalid key_name provided."},
			{"2.1", "member", disk(`"source_type": "volume", "uuid": "` + id + `"`), 400, bdm + "failed to get volume " + id + "."},
			{"2.1", "member", disk(`"source_type": "snapshot", "uuid": "` + id + `"`), 400, bdm + "failed to get snapshot " + id + "."},
			{"2.1", "member", disk(`"source_type": "image", "uuid": "` + id + `", "destination_type": "volume"`), 501, "the cloud has no volume service"},
			{"2.1", "member", disk(`"source_type": "image", "uuid": "` + id + `", "destination_type": "local"`), 400, bdm + "Mapping image to local is not supported."},
			{"2.1", "member", disk(`"source_type": "image", "destination_type": "local"`), 400, bdm + "Missing device UUID."},
			{"2.1", "member", disk(`"source_type": "blank", "uuid": "` + id + `"`), 400, bdm + "Invalid device UUID."},
			{"2.1", "member", disk(`"source_type": "blank", "destination_type": "local"`), 400, bdm + "Boot sequence for the instance and image/block device mapping combination is not valid."},
			{"2.1", "member", disk(`"source_type": "blank", "destination_type": "local", "boot_index": 0`), 501, "A server does not boot from an ephemeral or a swap disk"},
			{"2.1", "member", root(`"disk_bus": "nonsense"`), 400, bdm + "The provided disk bus nonsense is not valid."},
			{"2.1", "member", root(`"disk_bus": "ide"`), 501, "The disk bus ide is not supported"},
			{"2.1", "member", root(`"device_type": "cdrom"`), 501, "The device type cdrom is not supported"},
			{"2.1", "member", root(`"device_name": "/dev/sda"`), 501, "The device name /dev/sda is not supported"},
			{"2.32", "member", root(`"tag": "root"`), 501, "Tags of disks are not supported"},
			{"2.42", "member", root(`"tag": "root"`), 501, "Tags of disks are not supported"},
			{"2.1", "member", root(`"volume_size": 999`), 501, "A size of the root disk is not supported"},
			{"2.1", "member", root(`"guest_format": "ext4"`), 501, "A format of the root disk is not supported"},
			{"2.1", "member", root(`"no_device": true`), 501, "without its root disk"},
			{"2.1", "member", disk(`"destination_type": "local"`), 400, bdm + "Some required fields are missing"},
			{"2.67", "member", disk(`"source_type": "volume", "uuid": "` + id + `", "volume_type": "ssd"`), 400, bdm + "Specifying volume type to existing volume is not supported."},
			{"2.66", "member", disk(`"source_type": "volume", "uuid": "` + id + `", "volume_type": "ssd"`), 400, unknown + "'volume_type'"},
			{"2.1", "member", `"block_device_mapping": [{"volume_id": "` + id + `"}]`, 400, bdm + "failed to get volume " + id + "."},
			{"2.1", "member", `"block_device_mapping": [{"snapshot_id": "` + id + `"}]`, 400, bdm + "failed to get snapshot " + id + "."},
			{"2.1", "member", `"block_device_mapping": [{}], ` + disk(`"source_type": "blank"`), 400, "Using different block_device_mapping syntaxes is not allowed in the same request."},
		} {
			more := tt.more
			if tt.version >= "2.37" && len(tt.version) == 4 && !strings.Contains(more, `"networks"`) {
				more += `, "networks": "auto"`
			}
			body := `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x", ` + more + `}}`
			if status, reply := c.askAt(tt.version, tt.who, "POST", "/servers", body); status != tt.status || !strings.Contains(reply, tt.says) {
				c.Errorf("%s %s: %.300s = %d %s; want %d %s", tt.version, tt.who, body, status, reply, tt.status, tt.says)
			}
		}
		if status, reply := c.ask("member", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x"}, "os:scheduler_hints": {"group": "`+id+`"}}`); status != 400 || !strings.Contains(reply, "Instance group "+id+" could not be found.") {
			c.Errorf("a group: %d %s", status, reply)
		}
		for _, image := range []string{"", `, "imageRef": ""`} {
			if status, reply := c.ask("member", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "1"`+image+`}}`); status != 400 || !strings.Contains(reply, "Missing imageRef attribute") {
				c.Errorf("no image: %d %s", status, reply)
			}
		}
		if list := must(c.list("admin", "servers", "all_tenants=1")); len(list) != 0 {
			c.Errorf("a refused request has created %v", ids(list))
		}
	})
}

// TestNumberedNames: the names of several servers of a request have numbers. If a name would be too long with its number, the request is refused.
func TestNumberedNames(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		create := func(name string, most int) (int, string) {
			return c.ask("member", "POST", "/servers", fmt.Sprintf(`{"server": {"name": "%s", "flavorRef": "1", "imageRef": "x", "max_count": %d}}`, name, most))
		}
		longest := strings.Repeat("é", 253)
		for name, most := range map[string]int{longest + "é": 2, longest: 10} {
			if status, reply := create(name, most); status != 400 || !strings.Contains(reply, "'name'") || !strings.Contains(reply, "more than 255") {
				c.Errorf("%d servers, a name of %d characters: %d %s", most, len([]rune(name)), status, reply)
			}
		}
		for name, most := range map[string]int{longest + "éé": 1, longest: 2} {
			if status, reply := create(name, most); status != 202 {
				c.Errorf("%d servers, a name of %d characters: %d %s", most, len([]rune(name)), status, reply)
			}
		}
		var got []string
		for _, srv := range must(c.list("member", "servers", "sort_key=display_name&sort_dir=asc")) {
			got = append(got, srv.text("name"))
		}
		if diff := cmp.Diff([]string{longest + "-1", longest + "-2", longest + "éé"}, got); diff != "" {
			c.Error(diff)
		}
		var hosts []string
		for _, name := range []string{strings.Repeat("h", 62), "Web.", "😀"} {
			c.made("2.1", fmt.Sprintf(`{"server": {"name": "%s", "flavorRef": "1", "imageRef": "x", "min_count": 2}}`, name))
			for _, srv := range must(c.list("admin", "servers", "all_tenants=1&sort_key=display_name&sort_dir=asc&name=^"+name)) {
				hosts = append(hosts, strings.ReplaceAll(c.shown("2.90", "admin", srv.text("id")).text("OS-EXT-SRV-ATTR:hostname"), srv.text("id"), "ID"))
			}
		}
		cut := strings.Repeat("h", 62) + "-" // Trim removes the hyphen at the end
		if diff := cmp.Diff([]string{cut[:62], cut[:62], "web--1", "web--2", "Server-ID", "Server-ID"}, hosts); diff != "" {
			c.Error(diff)
		}
	})
}

// TestHugeFlavor: a server of a flavor whose disks together are larger than any disk is refused.
func TestHugeFlavor(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		host := compute.HostReport{Host: "n1", Driver: "fake", Capabilities: []driver.Capability{compute.CapExtraDisks, compute.CapResize}}
		if err := c.store.ReportHost(c.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			c.Fatal(err)
		}
		c.want(200, "2.1", "admin", "POST", "/flavors", `{"flavor": {"id": "huge", "name": "huge", "ram": 1, "vcpus": 1, "disk": 2147483647, "OS-FLV-EXT-DATA:ephemeral": 1}}`)
		const says = "Flavor huge has disks of more than 2147483647 GiB."
		if status, reply := c.ask("member", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "huge", "imageRef": "x"}}`); status != 400 || !strings.Contains(reply, says) {
			c.Errorf("create: %d %s", status, reply)
		}
		c.wantAct("member", c.addActive("s"), `{"resize": {"flavorRef": "huge"}}`, 400, says)
	})
}

// TestNetworkRule: the policy rule of networks applies to each request that asks for a network, also to "auto".
func TestNetworkRule(t *testing.T) {
	t.Parallel()
	rules := api.Rules()
	for i := range rules {
		if rules[i].Name == "os_compute_api:servers:create:attach_network" {
			rules[i].Check = "rule:context_is_admin"
		}
	}
	eachCloudWith(t, rules, func(c *cloud) {
		for networks, want := range map[string]int{`"auto"`: 403, `[{"uuid": "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51"}]`: 403, `"none"`: 202} {
			status, reply := c.askAt("2.37", "member", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x", "networks": `+networks+`}}`)
			if status != want {
				c.Errorf("networks %s: %d %s, want %d", networks, status, reply, want)
			}
		}
	})
}

// TestZeroDisk: only an administrator may create a server of a flavor without a disk size. The disk then has the size of the image.
func TestZeroDisk(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		if err := c.store.CreateFlavor(c.Context(), &store.Flavor{ID: "zero", Name: "zero", VCPUs: 1, MemoryMiB: 1, Public: true}); err != nil {
			c.Fatal(err)
		}
		const body = `{"server": {"name": "x", "flavorRef": "zero", "imageRef": "x", "networks": "none"}}`
		if status, reply := c.askAt("2.37", "member", "POST", "/servers", body); status != 403 || !strings.Contains(reply, "Only volume-backed servers are allowed for flavors with zero disk.") {
			c.Errorf("member: %d %s", status, reply)
		}
		if status, reply := c.askAt("2.37", "admin", "POST", "/servers", body); status != 202 {
			c.Errorf("administrator: %d %s", status, reply)
		}
		id := c.addActive("y")
		c.wantAct("member", id, `{"resize": {"flavorRef": "zero"}}`, 403, "Only volume-backed servers")
	})
}
