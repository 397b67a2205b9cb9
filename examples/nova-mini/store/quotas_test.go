package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/quota"
)

// TestRepairQuotas: processes of an earlier release, which do not know quotas, may have created and removed servers. After the repair, the quotas
// count the existing servers, even those above the limit.
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
		for _, want := range []int{2, 0} { // the second repair has nothing left to do
			changed, sums, err := s.RepairQuotas(t.Context())
			if err != nil || changed != want || len(sums) != 0 {
				t.Errorf("repaired %d, %v, %v; want %d", changed, sums, err, want)
			}
		}
		if _, err := d.ExecContext(t.Context(), "UPDATE quota_usage SET used = 9 WHERE class = 'instances'"); err != nil {
			t.Fatal(err)
		}
		changed, sums, err := s.RepairQuotas(t.Context())
		if diff := cmp.Diff([]quota.Repaired{{Project: "p", Class: store.Instances, Was: 9, Is: 1}}, sums); err != nil || changed != 0 || diff != "" {
			t.Errorf("repaired %d, %v (-want +got):\n%s", changed, err, diff)
		}
		if n, cores := used(); n != 1 || cores != 2 {
			t.Errorf("%d servers and %d cores are counted", n, cores)
		}
	})
}

// TestQuotaOneConnection: a request that the quota refuses needs no second connection of the pool. Otherwise it could wait for the connections of
// other requests.
func TestQuotaOneConnection(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), db.Config{URL: url, MaxOpen: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s := store.NewLimited(d, store.Limits{store.Instances: 2})
		if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		var created, refused atomic.Int64
		for i := range 8 {
			wg.Go(func() {
				err := s.CreateServers(ctx, store.NewServers{
					Least: 1, Most: 1,
					Make: func(int) []*store.Server {
						return []*store.Server{{ID: fmt.Sprint("s", i), ProjectID: "p", VCPUs: 1, MemoryMiB: 64}}
					},
					Also: func(context.Context, []*store.Server) error { return nil },
				})
				switch {
				case err == nil:
					created.Add(1)
				case errors.Is(err, fault.Denied):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		err = s.Tx(ctx, func(ctx context.Context) error {
			return s.CreateServer(ctx, &store.Server{ID: "t", ProjectID: "p", VCPUs: 1})
		})
		if created.Load() != 2 || refused.Load() != 6 || !errors.Is(err, fault.Denied) {
			t.Errorf("%d created, %d refused, in a transaction %v", created.Load(), refused.Load(), err)
		}
	})
}
