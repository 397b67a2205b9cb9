package scheduler_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	rank "github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service/operation"
)

// TestFilterNames: New accepts the names of filters of this project and of Nova, and
// refuses all others.
func TestFilterNames(t *testing.T) {
	t.Parallel()
	d, err := db.New(db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	unused := store.New(d)
	for _, names := range [][]string{
		nil,
		{"zone", "VCPU"},
		{"RetryFilter", "AvailabilityZoneFilter", "ComputeFilter"},
		{"ComputeFilter", "IoOpsFilter", "AggregateIoOpsFilter", "ServerGroupAntiAffinityFilter", "tried"},
	} {
		if _, err := scheduler.New(scheduler.Config{Store: unused, Filters: names}); err != nil {
			t.Errorf("%q: %v", names, err)
		}
	}
	var log strings.Builder
	_, err = scheduler.New(scheduler.Config{
		Store: unused, Filters: []string{"RetryFilter", "AvailabilityZoneFilter", "VCPU"}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	for _, name := range []string{"filter=RetryFilter", "filter=AvailabilityZoneFilter"} {
		if err != nil || !strings.Contains(log.String(), name) || strings.Count(log.String(), "is built in") != 2 {
			t.Errorf("%v; the log does not have one line that %s is built in:\n%s", err, name, &log)
		}
	}
	_, err = scheduler.New(scheduler.Config{Store: unused, Filters: []string{"ComputeFilter", "RamFilter"}})
	if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), `"RamFilter" does not exist: the known names are DISK_GB, MEMORY_MB, VCPU, affinity,`) {
		t.Errorf("%v", err)
	}
	_, names, _ := strings.Cut(err.Error(), "the known names are ")
	names, _, _ = strings.Cut(names, ";")
	for _, name := range append(strings.Split(names, ", "), "stale") {
		if scheduler.InWords(name) == "" {
			t.Errorf("the filter %s has no words for administrators", name)
		}
	}
}

// TestDownHosts: a host gets no server if its compute service was stopped, removed, forced down or disabled, or if its last
// heartbeat is too old or in the future.
func TestDownHosts(t *testing.T) {
	t.Parallel()
	const b = `WHERE kind = 'nova-compute' AND host = 'b'`
	for name, change := range map[string]string{
		"stopped":       `UPDATE members SET departed = TRUE ` + b,
		"removed":       `DELETE FROM members ` + b,
		"forced down":   `UPDATE members SET forced_down = TRUE ` + b,
		"disabled":      `UPDATE members SET disabled = TRUE, disabled_reason = 'work' ` + b,
		"no heartbeat":  `UPDATE members SET seen_at = '2020-01-01 00:00:00.000000' ` + b,
		"in the future": `UPDATE members SET seen_at = '2100-01-01 00:00:00.000000' ` + b,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
				t.Helper()
				s := store.New(d)
				svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, SubsetSize: 2})
				if err != nil {
					t.Fatal(err)
				}
				for _, host := range []string{"a", "b"} {
					r := compute.HostReport{Host: host, Driver: "d", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100_000, DiskGiB: 1000}}
					if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
						t.Fatal(err)
					}
				}
				on := map[string]int{}
				choose := func(n int) {
					t.Helper()
					for i := range n {
						srv := &store.Server{ID: fmt.Sprintf("%08d-0000-4000-8000-%012d", len(on), i+1000*len(on)), Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
						if err := s.CreateServer(t.Context(), srv); err != nil {
							t.Fatal(err)
						}
						got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need()})
						if err != nil {
							t.Fatal(err)
						}
						on[got.Host]++
					}
				}
				choose(12)
				before := on["b"]
				if _, err := d.ExecContext(t.Context(), change); err != nil {
					t.Fatal(err)
				}
				on["c"] = 0 // from here on the servers have other ids
				choose(12)
				if before == 0 || on["b"] != before {
					t.Errorf("the host got %d servers before the change, and %d after the change; want more than 0, and 0", before, on["b"]-before)
				}
			})
		})
	}
}

// TestFleet: a decision does not read the hosts from the database. The claim reads the chosen host, and so detects that the host is disabled or
// full. A new host is found when it is needed.
func TestFleet(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		s := store.New(d)
		svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		report := func(host string, vcpus int) {
			t.Helper()
			r := compute.HostReport{Host: host, Driver: "d", Resources: compute.Resources{VCPUs: vcpus, MemoryMiB: 100 * vcpus, DiskGiB: 100 * vcpus}}
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		servers := 0
		choose := func(want string) {
			t.Helper()
			servers++
			srv := &store.Server{ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", servers), Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 100, DiskGiB: 100}
			if err := s.CreateServer(t.Context(), srv); err != nil {
				t.Fatal(err)
			}
			got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need()})
			if err != nil || got.Host != want {
				t.Fatalf("server %d: %v, %v; want %s", servers, got, err, want)
			}
		}
		rename := func(from, to string) {
			t.Helper()
			if _, err := d.ExecContext(t.Context(), `ALTER TABLE `+from+` RENAME TO `+to); err != nil {
				t.Fatal(err)
			}
		}
		report("a", 3)
		report("b", 2)
		if err := svc.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		rename("hosts", "away") // a decision that reads the hosts fails
		choose("a")
		choose("a") // the claims of this scheduler count at once: now a has room for 1 server, and b for 2
		choose("b")
		rename("away", "hosts")

		if err := s.SetDisabled(t.Context(), store.ComputeBinary, "a", true, "work"); err != nil {
			t.Fatal(err)
		}
		choose("b") // the fleet does not know yet that host a is disabled, but the claim on a is refused
		report("c", 1)
		choose("c") // a is disabled, b is full, and c was added after the fleet was read
		if err := s.SetDisabled(t.Context(), store.ComputeBinary, "a", false, ""); err != nil {
			t.Fatal(err)
		}
		choose("a")
		srv := &store.Server{ID: "00000000-0000-4000-8000-0000000000ff", Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 100, DiskGiB: 100}
		if err := s.CreateServer(t.Context(), srv); err != nil {
			t.Fatal(err)
		}
		_, err = svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need()})
		if !errors.Is(err, rank.ErrNoValidHost) || !strings.Contains(err.Error(), "0 of 3 hosts: 3 VCPU (too few VCPUs are free)") {
			t.Errorf("all hosts are full: %v", err)
		}
	})
}

// TestZones: a server whose client asks for an availability zone gets a host of this zone, whatever filters are configured.
func TestZones(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.New(d)
		svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, Filters: []string{"ComputeFilter"}})
		if err != nil {
			t.Fatal(err)
		}
		for host, zone := range map[string]string{"h1": "a", "h2": "b", "h3": ""} {
			r := compute.HostReport{Host: host, Driver: "d", Zone: zone, Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		for zone, want := range map[string]string{"a": "h1", "b": "h2", "nova": "h3", "c": ""} {
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
			if err := s.CreateServer(t.Context(), srv); err != nil {
				t.Fatal(err)
			}
			got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Zone: zone})
			switch {
			case want != "" && (err != nil || got.Host != want):
				t.Errorf("zone %s: %v, %v; want %s", zone, got, err, want)
			case want == "" && (!errors.Is(err, rank.ErrNoValidHost) || !strings.Contains(err.Error(), "3 zone")):
				t.Errorf("zone %s: %v, %v", zone, got, err)
			}
		}
		// The zone of a host follows the option of its compute service.
		r := compute.HostReport{Host: "h1", Driver: "d", Zone: "c", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
		if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			t.Fatal(err)
		}
		if zones, err := s.Zones(t.Context()); err != nil || fmt.Sprint(zones) != "map[h1:c h2:b h3:nova]" {
			t.Errorf("%v, %v", zones, err)
		}
	})
}

// created creates a server and returns the data of its creation.
func created(t *testing.T, s *store.Store, srv *store.Server) *store.CreateData {
	t.Helper()
	if err := s.CreateServer(t.Context(), srv); err != nil {
		t.Fatal(err)
	}
	op, err := s.Operations().Current(t.Context(), srv.ID)
	if err != nil {
		t.Fatal(err)
	}
	data, err := operation.DataOf[store.CreateData](op)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestGuestNeeds: a server whose image asks for a kind of guest or a trait only gets a host that has declared it, whatever filters are configured.
func TestGuestNeeds(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.New(d)
		svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, Filters: []string{"ComputeFilter"}})
		if err != nil {
			t.Fatal(err)
		}
		for host, platforms := range map[string][]compute.Platform{"pc": {{Arch: "x86_64", Type: "kvm", Mode: "hvm"}}, "arm": {{Arch: "aarch64", Type: "kvm", Mode: "hvm"}, {Arch: "armv7l", Type: "qemu", Mode: "hvm"}}, "old": nil} {
			r := compute.HostReport{Host: host, Driver: "d", Platforms: platforms, Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct{ name, value, want string }{
			{"hw_architecture", "x86_64", "pc"}, {"hw_architecture", "aarch64", "arm"}, {"img_hv_type", "qemu", "arm"}, {"hw_architecture", "s390x", ""}, {"hw_vm_mode", "xen", ""}, {"trait:CUSTOM_A", "required", ""},
		} {
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, ImageProperties: db.JSONOf(map[string]string{tt.name: tt.value})}
			data := created(t, s, srv)
			got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Guest: data.Guest})
			switch {
			case tt.want != "" && (err != nil || got.Host != tt.want):
				t.Errorf("%+v: %v, %v", tt, got, err)
			case tt.want == "" && !errors.Is(err, rank.ErrNoValidHost):
				t.Errorf("%+v: %v, %v", tt, got, err)
			}
		}
	})
}

// TestDriverNeeds: a server whose parts need capabilities of the driver gets a host whose driver has them. A host that reports no capabilities may be chosen, because only an older
// compute service reports none.
func TestDriverNeeds(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.New(d)
		svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, Filters: []string{"ComputeFilter"}})
		if err != nil {
			t.Fatal(err)
		}
		report := func(host string, has []driver.Capability) {
			t.Helper()
			r := compute.HostReport{Host: host, Driver: "d", Capabilities: has, Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		report("plain", []driver.Capability{})
		report("disks", []driver.Capability{compute.CapExtraDisks, compute.CapGuestData})
		report("nets", []driver.Capability{compute.CapAttachInterface})
		choose := func(srv store.Server) (string, error) {
			t.Helper()
			srv.ID, srv.Name, srv.ProjectID, srv.VCPUs, srv.MemoryMiB, srv.DiskGiB = uuid.NewString(), "s", "p", 1, 1, 3
			data := created(t, s, &srv)
			got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Driver: data.Driver})
			if err != nil {
				return "", err
			}
			return got.Host, nil
		}
		ephemeral, swap := db.JSONOf((&store.Flavor{EphemeralGiB: 1}).Boot()), db.JSONOf((&store.Flavor{SwapMiB: 512}).Boot())
		net := &network.Wanted{Interfaces: []network.Interface{{Request: network.Request{Network: "n"}}}}
		for range 3 { // of three hosts one is chosen each time, not by chance
			for _, tt := range []struct {
				srv  store.Server
				want string
			}{
				{store.Server{BootFlavor: ephemeral}, "disks"}, {store.Server{BootFlavor: swap}, "disks"}, {store.Server{UserData: new("QQ==")}, "disks"}, {store.Server{Networks: db.JSONOf(net)}, "nets"},
			} {
				if host, err := choose(tt.srv); host != tt.want || err != nil {
					t.Errorf("%+v is on %q, want %q: %v", tt.srv, host, tt.want, err)
				}
			}
		}
		if host, err := choose(store.Server{BootFlavor: ephemeral, Networks: db.JSONOf(net)}); !errors.Is(err, rank.ErrNoValidHost) || !strings.Contains(err.Error(), "3 driver") {
			t.Errorf("two needs that no host has: %q, %v", host, err)
		}
		report("older", nil)
		if host, err := choose(store.Server{BootFlavor: ephemeral, Networks: db.JSONOf(net)}); host != "older" || err != nil {
			t.Errorf("a host without capabilities: %q, %v", host, err)
		}
	})
}

// TestExtraSpecs: the extra specs of a flavor restrict the choice of a host, and a spec that no host can do leaves no host. Specs that Nova's default filters ignore have no effect.
func TestExtraSpecs(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.New(d)
		var log strings.Builder
		svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"a", "b"} {
			r := compute.HostReport{Host: host, Driver: "driver-" + host, Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct{ name, value, want, says string }{
			{"resources:VGPU", "1", "", "no driver can do resources:VGPU = 1"},
			{"resources:VGPU", "0", "a b", ""},
			{"resources:VCPU", "1", "a b", ""},
			{"resources:VCPU", "2", "", "no driver can do resources:VCPU = 2"},
			{"resources1:VCPU", "1", "", "no driver can do resources1:VCPU = 1"},
			{"hw:emulator_threads_policy", "share", "a b", ""},
			{"hw:emulator_threads_policy", "isolate", "", "no driver can do hw:emulator_threads_policy = isolate"},
			{"accel:device_profile", "no", "", "no driver can do accel:device_profile = no"},
			{"trait:HW_CPU_X86_AVX", "required", "", "trait HW_CPU_X86_AVX is missing"},
			{"trait1:HW_CPU_X86_AVX", "required", "", "trait HW_CPU_X86_AVX is missing"},
			{"trait:HW_CPU_X86_AVX", "forbidden", "a b", ""},
			{"hw:cpu_policy", "dedicated", "", "no driver can do hw:cpu_policy = dedicated"},
			{"hw:cpu_policy", "shared", "a b", ""},
			{"hw:numa_nodes", "2", "", "no driver can do hw:numa_nodes = 2"},
			{"hw:hide_hypervisor_id", "False", "a b", ""},
			{"hw:hide_hypervisor_id", "true", "", "no driver can do hw:hide_hypervisor_id = true"},
			{"hide_hypervisor_id", "true", "", "no driver can do hide_hypervisor_id = true"},
			{"hide_hypervisor_id", "false", "a b", ""},
			{"quota:disk_read_bytes_sec", "1000", "", "no driver can do quota:disk_read_bytes_sec = 1000"},
			{"os:secure_boot", "required", "", "no driver can do os:secure_boot = required"},
			{"capabilities:hypervisor_type", "xen", "", "hypervisor_type is not xen"},
			{"capabilities:hypervisor_type", "driver-b", "b", ""},
			{"hypervisor_type", "driver-a", "a", ""},
			{"capabilities:cpu_info:arch", "x86_64", "", "has no cpu_info:arch"},
			{"aggregate_instance_extra_specs:ssd", "true", "a b", ""}, // Nova's default filters ignore these
			{"colour", "red", "a b", ""},
			{"vendor:colour", "red", "a b", ""},
		} {
			srv := &store.Server{
				ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1,
				BootFlavor: db.JSONOf(&store.BootFlavor{ExtraSpecs: map[string]string{tt.name: tt.value}}),
			}
			data := created(t, s, srv)
			log.Reset()
			got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Specs: data.Specs})
			switch {
			case tt.want != "" && (err != nil || !strings.Contains(tt.want, got.Host)):
				t.Errorf("%s = %s: %v, %v; want %s", tt.name, tt.value, got, err, tt.want)
			case tt.want == "" && (!errors.Is(err, rank.ErrNoValidHost) || !strings.Contains(log.String(), tt.says)):
				t.Errorf("%s = %s: %v, %v, %s; want %s", tt.name, tt.value, got, err, &log, tt.says)
			}
		}
	})
}
