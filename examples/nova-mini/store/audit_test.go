package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestAudit: claims that differ from the servers are found and repaired. Claims of servers that are being created or
// deleted are not changed.
func TestAudit(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "n1", 10)
		addHost(t, s, "n2", 10)
		claim := func(id, host string) placement.Claim {
			return placement.Claim{Consumer: id, Allocations: []placement.Allocation{{Provider: host, Resources: store.Need(one)}}}
		}
		raw := placement.NewSQL(d)
		// Each row has the name and the task of a server, the server's host, and the host of the server's claim.
		servers := map[string]string{}
		for name, at := range map[string]struct{ task, host, claim string }{
			"right":     {"", "n1", "n1"},
			"spawning":  {store.Spawning, "n2", "n2"},
			"lost":      {"", "n1", ""},
			"elsewhere": {"", "n1", "n2"},
			"failed":    {"", "", "n2"},
			"waiting":   {store.Scheduling, "", ""},
			"chosen":    {store.Scheduling, "", "n1"},
			"deleting":  {store.Deleting, "", "n1"},
		} {
			srv := addServer(t, s)
			servers[srv.ID] = name
			var host *string
			if at.host != "" {
				host = &at.host
			}
			d.MustExecContext(ctx, "UPDATE servers SET host = ? WHERE id = ?", host, srv.ID)
			switch at.task {
			case "":
				d.MustExecContext(ctx, "UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?", srv.ID)
			case store.Spawning:
				d.MustExecContext(ctx, "UPDATE operations SET step = 1, step_name = ? WHERE active = ?", store.StepBuild, srv.ID)
			case store.Deleting:
				d.MustExecContext(ctx, "UPDATE operations SET kind = ? WHERE active = ?", store.Delete.Name, srv.ID)
			}
			if at.claim != "" {
				if err := raw.Claim(ctx, claim(srv.ID, at.claim)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := raw.Claim(ctx, claim("gone", "n2")); err != nil {
			t.Fatal(err)
		}
		servers["gone"] = "gone"
		audit := func(repair bool, want ...string) {
			t.Helper()
			found, err := s.Audit(ctx, repair, 0)
			got := []string{}
			for _, f := range found {
				got = append(got, f.Kind+" "+servers[f.Claim.Consumer])
				if f.Err != nil || f.Repaired != repair {
					t.Errorf("%s: repaired %t, %v", got[len(got)-1], f.Repaired, f.Err)
				}
			}
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("found %q, %v; want %q", got, err, want)
			}
		}
		wrong := []string{"different elsewhere", "missing lost", "orphaned failed", "orphaned gone"}
		audit(false, wrong...)
		audit(true, wrong...)
		audit(false)
		hosts, err := s.Hosts(ctx, time.Minute)
		if err != nil || hosts[0].Inventories["VCPU"].Used != 5 || hosts[1].Inventories["VCPU"].Used != 1 {
			t.Errorf("%+v, %v; want 5 on n1 and 1 on n2", hosts, err)
		}
	})
}
