package store_test

import (
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestRepairQuotas: the quotas count the servers that exist after processes of an earlier release, which do not know quotas, have created and
// removed servers. A server above the limit is counted, too.
func TestRepairQuotas(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		s := store.NewLimited(d, store.Limits{store.Instances: 2})
		for _, id := range []string{"kept", "gone"} {
			if err := s.CreateServer(t.Context(), &store.Server{ID: id, ProjectID: "p", VCPUs: 2, MemoryMiB: 64}); err != nil {
				t.Fatal(err)
			}
		}
		used := func() (instances, cores int64) {
			t.Helper()
			all, err := s.Usage(t.Context(), "p")
			if err != nil {
				t.Fatal(err)
			}
			return all[store.Instances], all[store.Cores]
		}
		for _, statement := range []string{
			"DELETE FROM servers WHERE id = 'gone'",
			"DELETE FROM quota_claims WHERE consumer = 'kept'", "UPDATE quota_usage SET used = used / 2", // as if kept had been created without its quota
		} {
			if _, err := d.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []int{2, 0} { // the second time nothing is left to do
			changed, err := s.RepairQuotas(t.Context())
			if err != nil || changed != want {
				t.Errorf("repaired %d, %v; want %d", changed, err, want)
			}
		}
		if n, cores := used(); n != 1 || cores != 2 {
			t.Errorf("%d servers and %d cores are counted", n, cores)
		}
	})
}
