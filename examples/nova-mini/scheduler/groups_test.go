package scheduler_test

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	rank "github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

// groupBench has two schedulers, and hosts with room for 100 servers each. The schedulers read the hosts only when a decision needs new data.
type groupBench struct {
	*testing.T

	store *store.Store
	svcs  [2]*scheduler.Service
}

func eachGroupBench(t *testing.T, hosts int, f func(b *groupBench)) {
	t.Helper()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		b := &groupBench{T: t, store: store.New(d)}
		for i := range b.svcs {
			svc, err := scheduler.New(scheduler.Config{
				Store: b.store, DownAfter: time.Minute, SubsetSize: 3, Logger: slog.New(slog.DiscardHandler),
				Filters:     []string{"ComputeFilter"}, // no filter of groups: their policies hold without it
				Multipliers: map[string]float64{"soft_affinity": 10, "soft_anti_affinity": -10},
			})
			if err != nil {
				t.Fatal(err)
			}
			b.svcs[i] = svc
		}
		for i := range hosts {
			r := compute.HostReport{Host: fmt.Sprint("h", i+1), Driver: "d", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
			if err := b.store.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		for _, svc := range b.svcs {
			if err := svc.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		f(b)
	})
}

func (b *groupBench) addGroup(policy placement.Policy, maxPerHost int) string {
	b.Helper()
	g := &store.ServerGroup{ID: uuid.NewString(), Name: "g", ProjectID: "p", UserID: "u", Policy: policy, MaxPerHost: maxPerHost}
	if err := b.store.CreateServerGroup(b.Context(), g); err != nil {
		b.Fatal(err)
	}
	return g.ID
}

// create creates a server in a group, and chooses its host.
func (b *groupBench) create(svc *scheduler.Service, group string) (id, host string, err error) {
	srv := &store.Server{ID: uuid.NewString(), Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, GroupID: &group}
	if err := b.store.CreateServer(b.Context(), srv); err != nil {
		return "", "", err
	}
	got, err := svc.Select(b.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Group: srv.GroupID})
	if err != nil {
		return srv.ID, "", err
	}
	return srv.ID, got.Host, nil
}

// together creates n servers in a group at the same time on both schedulers, and returns the number of servers by host. Servers without a host count
// under "".
func (b *groupBench) together(n int, group string) map[string]int {
	b.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	on := map[string]int{}
	for i := range n {
		wg.Go(func() {
			_, host, err := b.create(b.svcs[i%2], group)
			if err != nil && !errors.Is(err, rank.ErrNoValidHost) {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			on[host]++
		})
	}
	wg.Wait()
	return on
}

// TestGroupRace: if servers of a group are created at the same time, the policy of the group holds, although each scheduler knows only an old state of the
// hosts.
func TestGroupRace(t *testing.T) {
	t.Parallel()
	eachGroupBench(t, 4, func(b *groupBench) {
		for most, want := range map[int]map[string]int{
			0: {"h1": 1, "h2": 1, "h3": 1, "h4": 1, "": 12},
			3: {"h1": 3, "h2": 3, "h3": 3, "h4": 3, "": 4},
		} {
			got := b.together(16, b.addGroup(placement.AntiAffinity, most))
			for host, n := range want {
				if got[host] != n {
					b.Errorf("anti-affinity, max_server_per_host %d: %v, want %v", most, got, want)
					break
				}
			}
		}
		if got := b.together(16, b.addGroup(placement.Affinity, 0)); len(got) != 1 || got[""] != 0 {
			b.Errorf("affinity: %v, want all on one host", got)
		}
	})
}

// TestSoftGroups: a soft policy is only a preference. Servers get a host even if the policy cannot hold.
func TestSoftGroups(t *testing.T) {
	t.Parallel()
	eachGroupBench(t, 4, func(b *groupBench) {
		for policy, want := range map[placement.Policy]int{placement.SoftAffinity: 1, placement.SoftAntiAffinity: 4} {
			group, on := b.addGroup(policy, 0), map[string]int{}
			for range 8 {
				_, host, err := b.create(b.svcs[0], group)
				if err != nil {
					b.Fatal(err)
				}
				on[host]++
			}
			if len(on) != want || on["h1"]%(8/want) != 0 {
				b.Errorf("%s: %v, want %d hosts with %d each", policy, on, want, 8/want)
			}
		}
	})
}

// TestDeletedGroup: after the deletion of a group its policy no longer holds. A server without a claim does not count as a member.
func TestDeletedGroup(t *testing.T) {
	t.Parallel()
	eachGroupBench(t, 1, func(b *groupBench) {
		group := b.addGroup(placement.AntiAffinity, 0)
		first, host, err := b.create(b.svcs[0], group)
		if err != nil || host != "h1" {
			b.Fatal(host, err)
		}
		if _, _, err := b.create(b.svcs[1], group); !errors.Is(err, rank.ErrNoValidHost) {
			b.Errorf("the second server: %v, want no host", err)
		}
		if err := b.store.ReleaseClaim(b.Context(), first); err != nil {
			b.Fatal(err)
		}
		second, _, err := b.create(b.svcs[0], group)
		if err != nil {
			b.Errorf("after the first server is gone: %v", err)
		}
		if err := b.store.DeleteServerGroup(b.Context(), group); err != nil {
			b.Fatal(err)
		}
		if _, _, err := b.create(b.svcs[0], group); err == nil {
			b.Error("a server was created in a deleted group")
		}
		// A server is unshelved after the deletion of its group.
		if err := b.store.ReleaseClaim(b.Context(), second); err != nil {
			b.Fatal(err)
		}
		for _, id := range []string{first, second} {
			if _, err := b.svcs[0].Select(b.Context(), &compute.SelectRequest{ServerID: id, Need: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}, Group: &group}); err != nil {
				b.Errorf("the group is deleted: %v", err)
			}
		}
	})
}
