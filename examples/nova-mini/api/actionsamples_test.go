package api_test

import (
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/scheduler/placement"
)

// refusedSamples has Nova's sample requests that nova-mini refuses, with the status and the beginning of the error.
var refusedSamples = map[string]string{
	"injectNetworkInfo":          "501", // this cloud has no networks
	"resetNetwork":               "410", // Nova has removed this action
	"os-getSPICEConsole":         "400 Unavailable console type",
	"os-getRDPConsole":           "410 This resource is no longer available",
	"rdp":                        "400 Unavailable console type",
	"spice":                      "400 Unavailable console type",
	"mks":                        "400 Unavailable console type",
	"confirmResize":              "409", // the server has no resize
	"revertResize":               "409",
	"os-getConsoleOutput":        "501", // the fake compute service of the test has only consoles
	"addFixedIp":                 "404", // this cloud has no networks
	"removeFixedIp":              "400",
	"addFloatingIp":              "501 send the request to the network service",
	"removeFloatingIp":           "501 send the request to the network service",
	"us-west":                    "400 The requested availability zone is not available",
	"trusted_image_certificates": "501", // signatures of images are not checked
}

// states has the vm_state of the server for the samples of some actions. For all other actions the server is active.
var states = map[string]string{
	"os-start": store.Stopped, "unpause": compute.VMPaused, "resume": compute.VMSuspended, "unrescue": compute.VMRescued, "shelveOffload": compute.VMShelved, "restore": compute.VMSoftDeleted, "unshelve": compute.VMOffloaded,
}

// TestActionSamples: at their microversions, Nova's sample requests of actions are accepted, except those in refusedSamples. The replies have the
// names and types of the samples.
func TestActionSamples(t *testing.T) {
	t.Parallel()
	root := samplesOf(t, "os-lock-server/..")
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		c.consoles(new(atomic.Pointer[error]))
		for _, host := range []string{"n1", "host01"} {
			report := compute.HostReport{Host: host, Driver: "d", Resources: compute.Resources{VCPUs: 99, MemoryMiB: 99 << 10, DiskGiB: 999}}
			if err := c.store.ReportHost(t.Context(), &report, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		for _, user := range []string{people["admin"].UserID, people["member"].UserID} {
			key := &store.KeyPair{UserID: user, Name: "new-key", Type: "ssh", PublicKey: "ssh-rsa A", Fingerprint: "f"}
			if err := c.store.CreateKeyPair(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		seen := 0
		for dir := range strings.FieldsSeq(`os-preserve-ephemeral-rebuild os-console-auth-tokens os-lock-server os-pause-server os-suspend-server os-rescue os-shelve os-admin-actions os-admin-password os-create-backup
			os-deferred-delete os-console-output os-remote-consoles os-multinic servers`) {
			files, err := filepath.Glob(filepath.Join(root, dir, "*.json"))
			later, err2 := filepath.Glob(filepath.Join(root, dir, "v2.*", "*.json"))
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			for _, file := range append(files, later...) {
				base := filepath.Base(file)
				if strings.Contains(base, "resp") || base == "server-rescue.json" || dir == "servers" && !strings.Contains(base, "action") && !strings.Contains(base, "lock") {
					continue
				}
				version := "2.1"
				if v := filepath.Base(filepath.Dir(file)); strings.HasPrefix(v, "v2.") {
					version = v[1:]
				}
				raw, err := readSampleFile(file)
				if err != nil {
					t.Fatal(err)
				}
				seen++
				c.trySample(strconv.Itoa(seen), version, file, string(raw))
			}
		}
		if seen < 50 {
			t.Errorf("only %d samples were found", seen)
		}
	}, withConsoles)
}

// refusedCreates has those of Nova's sample requests for new servers that nova-mini refuses, by a part of the path or of the body, with the status and a part of the error.
var refusedCreates = map[string]string{
	"servers/v2.63/": "400 The requested availability zone is not available", // a zone of its own, which is checked before the certificates
	"servers/v2.66/": "501 Trusted image certificates are not supported",     // signatures of images are not checked
	`"volume"`:       "501 Volumes are not supported",
	"servers/v2.90/": "400 'networks' is a required property", // Nova refuses it, too: the sample has personality instead of networks
	"servers/v2.94/": "400 'networks' is a required property",
}

// TestCreateSamples: at their microversions, Nova's sample requests for new servers are accepted, except those with a part in refusedCreates.
func TestCreateSamples(t *testing.T) {
	t.Parallel()
	root := samplesOf(t, "servers/..")
	var files []string
	for _, pattern := range []string{"servers/server-create-req*.json", "servers/v2.*/server-create-req*.json", "os-multiple-create/*-req.json"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) < 20 {
		t.Fatalf("only %d samples were found", len(files))
	}
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		for _, host := range []string{"n1", "openstack-node-01"} {
			report := compute.HostReport{Host: host, Driver: "d", Zone: map[string]string{"n1": "us-west"}[host], Resources: compute.Resources{VCPUs: 999, MemoryMiB: 999 << 10, DiskGiB: 9999}}
			if err := c.store.ReportHost(t.Context(), &report, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.store.CreateFlavor(t.Context(), &store.Flavor{ID: "6", Name: "six", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, Public: true}); err != nil {
			t.Fatal(err)
		}
		group := &store.ServerGroup{ID: "f3d86fe6-4246-4be8-b87c-eb894626c741", Name: "g", ProjectID: people["admin"].ProjectID, UserID: people["admin"].UserID, Policy: placement.Affinity} // of a sample
		if err := c.store.CreateServerGroup(t.Context(), group); err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			version := "2.1"
			if v := filepath.Base(filepath.Dir(file)); strings.HasPrefix(v, "v2.") {
				version = v[1:]
			} else if _, minor, ok := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".json"), "-v2"); ok {
				version = "2." + minor // such as server-create-req-v237.json
			}
			raw, err := readSampleFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			for part, refused := range refusedCreates {
				if strings.Contains(file+string(raw), part) {
					want = refused
				}
			}
			status, reply := c.askAt(version, "admin", http.MethodPost, "/servers", string(raw))
			code, says, _ := strings.Cut(want, " ")
			if ok := want == "" && status == http.StatusAccepted || code == strconv.Itoa(status) && strings.Contains(reply, says); !ok {
				c.Errorf("%s at %s: %s\n= %d %s, want %q", file, version, raw, status, reply, want)
			}
			if want != "" {
				continue
			}
			before, _, _ := strings.Cut(file, "-req")
			if sample, ok := readSample(c.T, before+"-resp.json"); ok {
				compareSample(c.T, file, sample, reply, nil, map[string]bool{})
			}
		}
	})
}

// trySample sends a sample request of an action to a new server.
func (c *cloud) trySample(name, version, file, body string) {
	c.Helper()
	id := c.addActive(name)
	c.exec(`UPDATE servers SET tags = '["tag1"]' WHERE id = ?`, id) // as in the samples
	path, want := "/action", ""
	for part, refused := range refusedSamples {
		if strings.Contains(body, `"`+part+`"`) {
			want = refused
		}
	}
	for part, state := range states {
		if strings.Contains(body, `"`+part+`"`) {
			c.exec(`UPDATE servers SET vm_state = ?, host = CASE WHEN ? THEN NULL ELSE host END WHERE id = ?`, state, state == compute.VMOffloaded, id)
		}
	}
	if strings.Contains(body, "remote_console") {
		path = "/remote-consoles"
	}
	who := "admin"
	var sample any
	replies := false
	if want == "" {
		name := strings.TrimSuffix(file, ".json")
		for _, reply := range []string{name + "-resp", strings.TrimSuffix(name, "-req") + "-resp", strings.TrimSuffix(name, "-req")} {
			if path := reply + ".json"; path != file && !replies {
				sample, replies = readSample(c.T, path)
			}
		}
	}
	if replies && strings.Contains(file, "server-action-rebuild") {
		who = samplePerson(sample)
	}
	status, reply := c.askAt(version, who, http.MethodPost, "/servers/"+id+path, body)
	code, says, _ := strings.Cut(want, " ")
	got := http.StatusText(status)
	if ok := want == "" && status < 300 || code == strconv.Itoa(status) && strings.Contains(reply, says); !ok {
		c.Errorf("%s at %s: %s\n= %d %s %s, want %q", file, version, body, status, got, reply, want)
		return
	}
	if replies {
		compareSample(c.T, file, sample, reply, map[string]string{
			"-addresses.private":                 "the sample's server has a network",
			"-security_groups":                   "the sample's server has a port",
			"server_groups":                      "the sample's server has a group",
			"-scheduler_hints.same_host":         "the sample's server has hints",
			"pinned_availability_zone":           "the sample's server has a zone",
			"-image.properties.architecture":     "the sample's image has properties",
			"-image.properties.auto_disk_config": "the sample's image has properties",
			"OS-EXT-STS:task_state":              "the sample was taken when the task had ended",
			"locked_reason":                      "the sample's server is locked",
		}, map[string]bool{})
	}
}
