package scheduler_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestFilterNames: filters go by their own names and by Nova's; what is neither
// stops the start.
func TestFilterNames(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{
		nil,
		{"zone", "VCPU"},
		{"RetryFilter", "AvailabilityZoneFilter", "ComputeFilter"},
		{"ComputeFilter", "IoOpsFilter", "AggregateIoOpsFilter", "ServerGroupAntiAffinityFilter", "tried"},
	} {
		if _, err := scheduler.New(scheduler.Config{Store: store.New(nil), Filters: names}); err != nil {
			t.Errorf("%q: %v", names, err)
		}
	}
	var log strings.Builder
	_, err := scheduler.New(scheduler.Config{
		Store: store.New(nil), Filters: []string{"RetryFilter", "AvailabilityZoneFilter", "VCPU"}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	for _, name := range []string{"filter=RetryFilter", "filter=AvailabilityZoneFilter"} {
		if err != nil || !strings.Contains(log.String(), name) || strings.Count(log.String(), "is built in") != 2 {
			t.Errorf("%v; the log does not say once that %s is built in:\n%s", err, name, &log)
		}
	}
	_, err = scheduler.New(scheduler.Config{Store: store.New(nil), Filters: []string{"ComputeFilter", "RamFilter"}})
	if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), `"RamFilter" does not exist: use some of DISK_GB, MEMORY_MB, VCPU, affinity,`) {
		t.Errorf("%v", err)
	}
}

// TestDownHosts: a host whose service was stopped, removed, forced down, disabled, or was not seen for too long gets
// no server, also if its clock, or the database's, has been moved.
func TestDownHosts(t *testing.T) {
	t.Parallel()
	const b = `WHERE kind = 'nova-compute' AND host = 'b'`
	for name, change := range map[string]string{
		"stopped":     `UPDATE members SET departed = TRUE ` + b,
		"removed":     `DELETE FROM members ` + b,
		"forced down": `UPDATE members SET forced_down = TRUE ` + b,
		"disabled":    `UPDATE members SET disabled = TRUE, disabled_reason = 'work' ` + b,
		"silent":      `UPDATE members SET seen_at = '2020-01-01 00:00:00.000000' ` + b,
		"from future": `UPDATE members SET seen_at = '2100-01-01 00:00:00.000000' ` + b,
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
					t.Errorf("the host has %d servers from before, and got %d then", before, on["b"]-before)
				}
			})
		})
	}
}
