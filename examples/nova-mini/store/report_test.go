package store_test

import (
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestReportAgain: a report without changes is only a heartbeat. A report with changes is written, even if
// another process has written a report in between.
func TestReportAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		other := store.New(d) // the store of another conductor
		report := func(s *store.Store, vcpus int) error {
			return s.ReportHost(t.Context(), &compute.HostReport{Host: "a", Driver: "fake", Resources: compute.Resources{VCPUs: vcpus, MemoryMiB: 1, DiskGiB: 1}}, store.Ratios{CPU: 1, RAM: 1, Disk: 1})
		}
		capacity := func() (n int) {
			t.Helper()
			if err := d.GetContext(t.Context(), &n, `SELECT capacity FROM placement_inventories WHERE provider = 'a' AND class = 'VCPU'`); err != nil {
				t.Fatal(err)
			}
			return n
		}
		rename := func(from, to string) {
			t.Helper()
			d.MustExecContext(t.Context(), `ALTER TABLE `+from+` RENAME TO `+to)
		}
		if err := report(s, 4); err != nil {
			t.Fatal(err)
		}
		rename("hosts", "away") // only a report with changes writes to this table
		if err := report(s, 4); err != nil {
			t.Errorf("the same report again: %v", err)
		}
		if err := report(s, 5); err == nil {
			t.Error("a report with changes was not written")
		}
		rename("away", "hosts")
		for i, step := range []struct {
			by   *store.Store
			says int
		}{{s, 5}, {other, 6}, {s, 5}, {s, 5}, {other, 6}} {
			if err := report(step.by, step.says); err != nil || capacity() != step.says {
				t.Errorf("report %d: %d, %v; want %d", i, capacity(), err, step.says)
			}
		}
		d.MustExecContext(t.Context(), `DELETE FROM members`) // an operator removes the service
		if err := report(other, 6); err != nil {
			t.Errorf("a report of a removed service: %v", err)
		}
		if list, err := s.Members(0).List(t.Context(), store.ComputeBinary); err != nil || len(list) != 1 || !list[0].Up {
			t.Errorf("services after that report: %+v, %v", list, err)
		}
	})
}
