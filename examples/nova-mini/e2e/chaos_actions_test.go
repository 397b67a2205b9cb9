package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/examples/nova-mini/compute"
)

// This file has the actions that the clients of a chaos run do on their servers: all actions of compute.Actions.

// chaosConf is the configuration: quotas that are counted and never reached, soft-deleted servers that are not reclaimed during the run, shelved servers that stay on their hosts, and consoles.
const chaosConf = `[quota]
instances = 100000
cores = 100000
ram = 100000000
[vnc]
enabled = true
novncproxy_base_url = http://127.0.0.1:6080/vnc_lite.html
[serial_console]
enabled = true
base_url = ws://127.0.0.1:6080/
[driver_fake]
memory_mib = 262144
vcpus = 256
disk_gib = 5000
[DEFAULT]
reclaim_instance_interval = 86400
shelved_offload_time = -1
`

// largeFlavor is a flavor with more processors than the flavor 1, and otherwise the same amounts.
const largeFlavor = "two"

// chaosVCPUs has the number of processors of a server, by flavor.
var chaosVCPUs = map[string]int{"1": 1, largeFlavor: 2}

// chaosBodies are the bodies of the actions that need one. The body of any other action is null.
var chaosBodies = map[compute.Action]func(is chaosServer) string{
	compute.SoftReboot:     func(chaosServer) string { return `{"type": "SOFT"}` },
	compute.HardReboot:     func(chaosServer) string { return `{"type": "HARD"}` },
	compute.Resize:         func(is chaosServer) string { return `{"flavorRef": "` + is.otherFlavor() + `"}` },
	compute.Rebuild:        func(chaosServer) string { return `{"imageRef": "cirros"}` },
	compute.CreateImage:    func(chaosServer) string { return `{"name": "image"}` },
	compute.CreateBackup:   func(chaosServer) string { return `{"name": "backup", "backup_type": "daily", "rotation": 1}` },
	compute.ChangePassword: func(chaosServer) string { return `{"adminPass": "secret"}` },
	compute.ResetState:     func(chaosServer) string { return `{"state": "active"}` },
	compute.ConsoleOutput:  func(chaosServer) string { return `{"length": 5}` },
	compute.VNCConsole:     func(chaosServer) string { return `{"type": "novnc"}` },
	compute.SPICEConsole:   func(chaosServer) string { return `{"type": "spice-html5"}` },
	compute.RDPConsole:     func(chaosServer) string { return `{"type": "rdp-html5"}` },
	compute.SerialConsole:  func(chaosServer) string { return `{"type": "serial"}` },

	compute.AddSecurityGroup:    func(chaosServer) string { return `{"name": "default"}` },
	compute.RemoveSecurityGroup: func(chaosServer) string { return `{"name": "default"}` },
	compute.AddFixedIP:          func(chaosServer) string { return `{"networkId": "none"}` },
	compute.RemoveFixedIP:       func(chaosServer) string { return `{"address": "10.0.0.4"}` },
}

// chaosRefused are the actions that nova-mini refuses, with their statuses.
var chaosRefused = map[compute.Action]int{
	compute.SPICEConsole: http.StatusBadRequest, compute.RDPConsole: http.StatusGone, compute.InjectNetwork: http.StatusNotImplemented,
	compute.AddSecurityGroup: http.StatusNotFound, compute.RemoveSecurityGroup: http.StatusNotFound, // without Neutron
	compute.AddFixedIP: http.StatusNotFound, compute.RemoveFixedIP: http.StatusBadRequest,
}

// chaosServer is a server in the reply to an administrator.
type chaosServer struct {
	VM     string `json:"OS-EXT-STS:vm_state"`
	Task   string `json:"OS-EXT-STS:task_state"`
	Power  int    `json:"OS-EXT-STS:power_state"`
	Flavor struct {
		ID string `json:"id"`
	} `json:"flavor"`
}

func (s chaosServer) otherFlavor() string {
	if s.Flavor.ID == "1" {
		return largeFlavor
	}
	return "1"
}

// addFlavor adds largeFlavor.
func (c *chaos) addFlavor() {
	c.Helper()
	body := map[string]any{"flavor": map[string]any{"id": largeFlavor, "name": largeFlavor, "vcpus": 2, "ram": 512, "disk": 1}}
	err := c.try(c.Context(), 0, func(cl *gophercloud.ServiceClient) error {
		return chaosRequest(c.Context(), cl, "POST", []string{"flavors"}, body, nil)
	})
	if err != nil && !gophercloud.ResponseCodeIs(err, http.StatusConflict) {
		c.Fatal(err)
	}
}

// chaosRequest sends a request, and reads the reply into out unless out is nil.
func chaosRequest(ctx context.Context, cl *gophercloud.ServiceClient, method string, path []string, body, out any) error {
	resp, err := cl.Request(ctx, method, cl.ServiceURL(path...), &gophercloud.RequestOpts{JSONBody: body, JSONResponse: out, KeepResponseBody: out == nil, OkCodes: []int{200, 202, 204}})
	if err == nil && out == nil {
		err = resp.Body.Close()
	}
	return err
}

// idle waits until a server has no task, and returns it.
func (c *chaos) idle(ctx context.Context, n int, id string) (chaosServer, error) {
	for {
		var got struct{ Server chaosServer }
		err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) error {
			got.Server = chaosServer{}
			return chaosRequest(ctx, cl, "GET", []string{"servers", id}, nil, &got)
		})
		if err != nil || got.Server.Task == "" && got.Server.VM != compute.VMBuilding {
			return got.Server, err
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return got.Server, ctx.Err()
		}
	}
}

// choose returns an action that the state of a server allows: at random one of the actions that were chosen least often.
func (c *chaos) choose(rng *rand.Rand, is chaosServer) compute.Action {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best []compute.Action
	for _, info := range compute.Actions {
		a := info.Action
		switch {
		case info.Request == "" && a != compute.SoftDelete, a == compute.ForceDelete, len(info.From) > 0 && !slices.Contains(info.From, is.VM):
			continue
		case a == compute.SoftDelete && is.VM == compute.VMSoftDeleted, a == compute.ResetState && is.VM != compute.VMActive: // it would hide that the driver differs
			continue
		case len(best) > 0 && c.chosen[a] > c.chosen[best[0]]:
			continue
		case len(best) > 0 && c.chosen[a] < c.chosen[best[0]]:
			best = nil
		}
		best = append(best, a)
	}
	a := best[rng.IntN(len(best))]
	c.chosen[a]++
	return a
}

// act does an action on a server. A conflict means that the answer to an earlier attempt was lost.
func (c *chaos) act(ctx context.Context, n int, id string, a compute.Action, is chaosServer) {
	info, method, path, body := a.Info(), "POST", []string{"servers", id, "action"}, any(nil)
	if info.Request == "" {
		method, path = "DELETE", path[:2]
	} else {
		content := json.RawMessage("null")
		if of := chaosBodies[a]; of != nil {
			content = json.RawMessage(of(is))
		}
		body = map[string]json.RawMessage{info.Request: content}
	}
	err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) error {
		if info.Added != "" {
			cl.Microversion, cl.HTTPClient = info.Added, http.Client{} // the document of the first version does not have the action
		}
		return chaosRequest(ctx, cl, method, path, body, nil)
	})
	if err == nil {
		c.mu.Lock()
		c.done[a]++
		c.deleted[id] = c.deleted[id] || a == compute.ForceDelete
		c.mu.Unlock()
	}
	expected := []int{http.StatusConflict, chaosRefused[a]}
	if a == compute.ForceDelete {
		expected = append(expected, http.StatusNotFound)
	}
	if err != nil && ctx.Err() == nil && !slices.ContainsFunc(expected, func(status int) bool { return gophercloud.ResponseCodeIs(err, status) }) {
		c.Errorf("%s of %s in the state %s: %v", a, id, is.VM, err)
	}
}

// everyServer returns all servers, also the soft-deleted ones.
func (c *chaos) everyServer(cl *gophercloud.ServiceClient) []servers.Server {
	c.Helper()
	pages, err := servers.List(cl, softDeleted{}).AllPages(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	list, err := servers.ExtractServers(pages)
	if err != nil {
		c.Fatal(err)
	}
	return list
}

// softDeleted is the query for all servers, also the soft-deleted ones.
type softDeleted struct{}

func (softDeleted) ToServerListQuery() (string, error) { return "?soft_deleted=True", nil }

// compare returns one text for each server whose driver says something else than the API.
func (c *chaos) compare(list []servers.Server) (differ []string) {
	c.Helper()
	for i := range list {
		s := &list[i]
		if s.Host == "" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(c.dir, "instances", s.Host, s.ID+".json"))
		if err != nil {
			continue // it is missing
		}
		var is compute.Instance
		if err := json.Unmarshal(raw, &is); err != nil {
			c.Fatal(err)
		}
		flavor, _ := s.Flavor["id"].(string)
		dead := s.VmState == compute.VMActive && (is.Power == compute.Shutdown || is.Power == compute.Crashed)
		if dead || int(is.Power) != int(s.PowerState) || is.Rescued != (s.VmState == compute.VMRescued) || is.Resources.VCPUs != chaosVCPUs[flavor] {
			differ = append(differ, fmt.Sprintf("differs: %s is %s with power state %d and flavor %s; the driver has %+v", s.ID, s.VmState, s.PowerState, flavor, is))
		}
	}
	return differ
}

// checkRest checks that every operation has ended, and that the quota counts the servers that are not soft-deleted.
func (c *chaos) checkRest(cl *gophercloud.ServiceClient, list []servers.Server) {
	c.Helper()
	var open []json.RawMessage
	out, err := c.command("operation", "list", "--open", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &open)
	}
	if err != nil || len(open) > 0 {
		c.Errorf("operations that have not ended: %s, %v", out, err)
	}
	var limits struct {
		Limits struct {
			Absolute struct{ TotalInstancesUsed, TotalRAMUsed int }
		}
	}
	if err := chaosRequest(c.Context(), cl, "GET", []string{"limits"}, nil, &limits); err != nil {
		c.Fatal(err)
	}
	present := len(slices.DeleteFunc(slices.Clone(list), func(s servers.Server) bool { return s.VmState == compute.VMSoftDeleted }))
	if used := limits.Limits.Absolute; used.TotalInstancesUsed != present || used.TotalRAMUsed != 512*present {
		c.Errorf("the quota counts %+v, and there are %d servers", used, present)
	}
	fmt.Printf("chaos: accepted actions: %v\n", c.done)
}
