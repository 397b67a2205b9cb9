package scheduler_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	rank "github.com/armature-go/armature/scheduler"
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
				on["c"] = 0 // other ids
				choose(12)
				if before == 0 || on["b"] != before {
					t.Errorf("the host had %d servers before the change, and got %d after it; want more than 0, and 0", before, on["b"]-before)
				}
			})
		})
	}
}

// TestFleet: a decision does not read the hosts from the database. The claim does, and so it detects a host that is disabled or
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
		choose("a") // the claims of this scheduler count at once: 1 is left on a, 2 on b
		choose("b")
		rename("away", "hosts")

		if err := s.SetDisabled(t.Context(), store.ComputeBinary, "a", true, "work"); err != nil {
			t.Fatal(err)
		}
		choose("b") // the fleet does not know yet that host a is disabled, but the claim on a is refused
		report("c", 1)
		choose("c") // a is disabled, b is full, and the fleet did not have c
		if err := s.SetDisabled(t.Context(), store.ComputeBinary, "a", false, ""); err != nil {
			t.Fatal(err)
		}
		choose("a")
		srv := &store.Server{ID: "00000000-0000-4000-8000-0000000000ff", Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 100, DiskGiB: 100}
		if err := s.CreateServer(t.Context(), srv); err != nil {
			t.Fatal(err)
		}
		_, err = svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need()})
		if !errors.Is(err, rank.ErrNoValidHost) || !strings.Contains(err.Error(), "0 of 3 hosts: 3 VCPU") {
			t.Errorf("all hosts are full: %v", err)
		}
	})
}
