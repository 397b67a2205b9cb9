package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/clienttest"
)

// TestOpenStackClient runs the commands of docs/openstack-client.md with OpenStack's own command. Before each command, the test waits until no server has
// a task, like a user who waits between commands.
func TestOpenStackClient(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept: 54 commands in Python take a minute")
	}
	const document = "../../docs/openstack-client.md"
	raw, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^export OS_COMPUTE_API_VERSION=(.*)$`).FindStringSubmatch(string(raw))
	if version == nil {
		t.Fatal("docs/openstack-client.md has no microversion")
	}
	base := runAll(t)
	client := clienttest.New(t, "openstack", "python3-openstackclient", "OS_AUTH_TYPE=none", "OS_ENDPOINT="+base+"/v2.1", "OS_COMPUTE_API_VERSION="+version[1])
	client.Before = func() { awaitIdle(t, base) }
	client.Values = map[string]string{"~/.ssh/id_ed25519.pub": clienttest.PublicKey(t)}
	wants := map[string]string{ // for some commands, a part of the output
		"flavor list": "m1.tiny", "flavor show small": "hw:cpu_policy='shared'", "flavor show small -f json": `"vcpus": 1`, "image list": "cirros", "keypair create demo": "BEGIN RSA PRIVATE KEY",
		"keypair show demo": "| demo", "keypair create --public-key ~/.ssh/id_ed25519.pub mine": "| mine", "server rebuild --image cirros --wait first": "| first",
		"server list": "ACTIVE", "server show one": "| demo", "console log show first": "login:", "server event list first": "unrescue",
		"usage list": "admin", "server group list": "anti-affinity", "server group show apart": "max_server_per_host='2'",
		"availability zone list --compute": "nova", "limits show --absolute": "maxTotalInstances", "compute service list": "nova-conductor", "hypervisor list": "node-1",
		"hypervisor stats show": "running_vms",
	}
	client.Document(t, document, "openstack", wants)
	var left []any
	if err := json.Unmarshal([]byte(client.Run(t, "server", "list", "-f", "json")), &left); err != nil || len(left) > 0 {
		t.Errorf("servers at the end: %v, %v", left, err)
	}
}

// awaitIdle waits until no server has a task.
func awaitIdle(t *testing.T, base string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		var got struct {
			Servers []struct {
				Task *string `json:"OS-EXT-STS:task_state"`
			}
		}
		if err := getJSON(t, base+"/v2.1/servers/detail", &got); err != nil {
			t.Fatal(err)
		}
		busy := false
		for _, s := range got.Servers {
			busy = busy || s.Task != nil
		}
		if !busy {
			return
		}
		<-tick.C
	}
	t.Fatal("a server has had a task for 30 s")
}

// getJSON reads the JSON at a URL.
func getJSON(t *testing.T, url string, to any) error {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(to); err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	return nil
}
