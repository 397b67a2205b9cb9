package api_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestHypervisorFacts: administrators see the address and the version that a compute service reports. A compute service of an earlier release reports
// no address, and is shown as before.
func TestHypervisorFacts(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, tt := range []struct{ ip, version, want string }{
			{"192.0.2.7", "1.2.3", `"hypervisor_version":1002003,"host_ip":"192.0.2.7"`},
			{"192.0.2.8", "v2", `"hypervisor_version":0,"host_ip":"192.0.2.8"`},
			{"192.0.2.8", "10.5-rc1", `"hypervisor_version":10005000,"host_ip":"192.0.2.8"`},
			{"", "", `"hypervisor_version":0,"host_ip":"127.0.0.1"`},
		} {
			report := compute.HostReport{Host: "n9", Driver: "d", DriverVersion: tt.version, IP: tt.ip, Resources: compute.Resources{VCPUs: 9, MemoryMiB: 9 << 10, DiskGiB: 99}}
			if err := c.store.ReportHost(t.Context(), &report, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
			if reply := c.want(200, "2.1", "admin", "GET", "/os-hypervisors/detail", ""); !strings.Contains(reply, tt.want) {
				t.Errorf("%+v: %s", tt, reply)
			}
		}
		for _, ip := range []string{"::1", "192.0.2", "node"} {
			report := compute.HostReport{Host: "n9", Driver: "d", IP: ip}
			if err := c.store.ReportHost(t.Context(), &report, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); fault.CodeOf(err) != fault.Invalid {
				t.Errorf("the address %s: %v, want Invalid", ip, err)
			}
		}
	})
}
