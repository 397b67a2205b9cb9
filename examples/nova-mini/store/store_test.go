package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// each runs the function f with an empty store, on every database.
func each(t *testing.T, f func(t *testing.T, s *store.Store, d *sqlx.DB)) {
	t.Helper()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		f(t, store.New(d), d)
	})
}

var one = compute.Resources{VCPUs: 1, MemoryMiB: 512, DiskGiB: 1}

func addServer(t *testing.T, s *store.Store) *store.Server {
	t.Helper()
	srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", FlavorID: "1", VCPUs: one.VCPUs, MemoryMiB: one.MemoryMiB, DiskGiB: one.DiskGiB, Metadata: db.JSONOf(map[string]string{"k": "v"})}
	if err := s.CreateServer(t.Context(), srv); err != nil {
		t.Fatal(err)
	}
	return srv
}

// addHost adds a host with room for a number of servers.
func addHost(t *testing.T, s *store.Store, name string, servers int) {
	t.Helper()
	err := s.ReportHost(t.Context(), &compute.HostReport{
		Host: name, Driver: "fake", DriverVersion: "1",
		Resources: compute.Resources{VCPUs: servers, MemoryMiB: 512 * servers, DiskGiB: servers},
	}, store.Ratios{CPU: 1, RAM: 1, Disk: 1})
	if err != nil {
		t.Fatal(err)
	}
}

func claim(t *testing.T, s *store.Store, id, host string) error {
	t.Helper()
	r := placement.Resources{}
	for _, a := range one.Amounts() {
		r[a.Class] = int64(a.N)
	}
	return s.Claims().Claim(t.Context(), placement.Claim{Consumer: id, Allocations: []placement.Allocation{{Provider: host, Resources: r}}})
}

// place claims resources on a host for a server, and begins the step that builds the server on this host, as the conductor does.
func place(t *testing.T, s *store.Store, d *sqlx.DB, id, host string) {
	t.Helper()
	if err := claim(t, s, id, host); err != nil {
		t.Fatal(err)
	}
	inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE operations SET step = 1, step_name = ?, entry = entry + 1 WHERE active = ?`, store.StepBuild, id)
		return errors.Join(err, s.Place(ctx, tx, id, host))
	})
}

// addActiveServer adds a server that is ACTIVE on the host h1 and has no operation. It returns the server's id.
func addActiveServer(t *testing.T, s *store.Store, d *sqlx.DB) (id string) {
	t.Helper()
	id = addServer(t, s).ID
	place(t, s, d, id, "h1")
	inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Activate(ctx, tx, id) })
	endOperations(t.Context(), t, d)
	return id
}

// inTx calls f in a transaction, as a runner calls the function of a step.
func inTx(t *testing.T, d *sqlx.DB, f func(ctx context.Context, tx *sqlx.Tx) error) {
	t.Helper()
	if err := db.Tx(t.Context(), d, f); err != nil {
		t.Error(err)
	}
}

// remove deletes a server, as the conductor does at the end of a deletion.
func remove(t *testing.T, s *store.Store, d *sqlx.DB, id string) {
	t.Helper()
	inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE operations SET state = ?, active = NULL, due_at = NULL WHERE active = ?`, operation.Succeeded, id)
		return errors.Join(err, s.Remove(ctx, tx, id))
	})
}

// used returns the claimed memory of a host in MiB. It fails the test if the counters and the claims differ.
func used(t *testing.T, d *sqlx.DB, host string) (out int64) {
	t.Helper()
	var claimed int64
	err := errors.Join(
		d.GetContext(t.Context(), &out, `SELECT used FROM placement_inventories WHERE provider = ? AND class = ?`, host, compute.MemoryMB),
		d.GetContext(t.Context(), &claimed, `SELECT COALESCE(SUM(amount), 0) FROM placement_allocations WHERE provider = ? AND class = ?`, host, compute.MemoryMB))
	if err != nil {
		t.Fatal(err)
	}
	if out != claimed {
		t.Errorf("host %s: %d used, but %d claimed", host, out, claimed)
	}
	return out
}

// TestClaimRace makes more concurrent claims than the hosts have room for, with deletions between them. No host is
// over its capacity, every claim that fits succeeds, and no claim is left behind.
func TestClaimRace(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		const hosts, room, total = 3, 8, 40
		for i := range hosts {
			addHost(t, s, fmt.Sprintf("h%d", i), room)
		}
		var ids []string
		for range total {
			ids = append(ids, addServer(t, s).ID)
		}
		var placed atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			wg.Go(func() {
				for i := g; i < total; i += 8 {
					for _, h := range rng.Perm(hosts) {
						err := claim(t, s, ids[i], fmt.Sprintf("h%d", h))
						if err == nil {
							placed.Add(1)
							break
						}
						if !errors.Is(err, placement.ErrNoRoom) {
							t.Errorf("claim: %v", err)
						}
					}
				}
			})
		}
		wg.Wait()
		if n := placed.Load(); n != hosts*room {
			t.Errorf("%d claims succeeded, want all %d that fit", n, hosts*room)
		}
		for _, id := range ids { // a claim and a deletion never happen at the same time
			wg.Go(func() {
				if err := s.BeginDelete(t.Context(), id); err != nil {
					t.Errorf("begin the deletion: %v", err)
				}
				remove(t, s, d, id)
			})
			wg.Go(func() {
				if err := claim(t, s, id, "h0"); err != nil && !errors.Is(err, placement.ErrNoRoom) && !errors.Is(err, placement.ErrChanged) && !errors.Is(err, compute.ErrStale) {
					t.Errorf("claim: %v", err)
				}
			})
		}
		wg.Wait()
		for i := range hosts {
			if n := used(t, d, fmt.Sprintf("h%d", i)); n != 0 {
				t.Errorf("h%d: deleted servers still use %d MiB", i, n)
			}
		}
	})
}

// TestClaimAgain: a claim can be repeated, but a different claim for the same server is refused. So if a conductor
// dies between the claim and the record of the claim, the next conductor can continue.
func TestClaimAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		addHost(t, s, "a", 2)
		addHost(t, s, "b", 2)
		id := addServer(t, s).ID
		for _, tt := range []struct {
			host string
			want error
		}{{"a", nil}, {"b", placement.ErrChanged}, {"a", nil}} {
			if err := claim(t, s, id, tt.host); !errors.Is(err, tt.want) {
				t.Errorf("claim on %s: %v; want %v", tt.host, err, tt.want)
			}
		}
		if a, b := used(t, d, "a"), used(t, d, "b"); a != 512 || b != 0 {
			t.Errorf("%d and %d MiB used, want 512 and 0", a, b)
		}
		if err := claim(t, s, "none", "a"); !errors.Is(err, compute.ErrStale) {
			t.Errorf("claim for a server that does not exist: %v, want ErrStale", err)
		}
	})
}

// TestAttempts: a server is on the host that builds it. After a failed build or a failed creation, the server is on no host. Its
// claim is always on its host.
func TestAttempts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "a", 2)
		addHost(t, s, "b", 2)
		id := addServer(t, s).ID
		task := func(want, host string) *store.Server {
			t.Helper()
			srv, err := s.Server(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			is := ""
			if srv.Host != nil {
				is = *srv.Host
			}
			if srv.Task() != want || is != host {
				t.Errorf("task %q, host %q; want %q, %q", srv.Task(), is, want, host)
			}
			return srv
		}
		task(store.Scheduling, "")
		place(t, s, d, id, "a")
		task(store.Spawning, "a")
		if err := claim(t, s, id, "b"); !errors.Is(err, compute.ErrStale) {
			t.Errorf("a claim during the build: %v, want ErrStale", err)
		}
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE operations SET step = 0, step_name = ? WHERE active = ?`, store.StepSchedule, id)
			return errors.Join(err, s.Unplace(ctx, tx, id, "disk on fire"))
		})
		if srv := task(store.Scheduling, ""); srv.FaultDetails != "disk on fire" || used(t, d, "a") != 0 {
			t.Errorf("after a failure %d MiB in use, fault %q", used(t, d, "a"), srv.FaultDetails)
		}
		place(t, s, d, id, "b")
		orphans, err := s.Orphans(ctx, "a", []string{id, "ghost"})
		if err != nil || strings.Join(orphans, ",") != id+",ghost" {
			t.Errorf("orphans on a: %v, %v", orphans, err)
		}
		if orphans, err = s.Orphans(ctx, "b", []string{id}); err != nil || len(orphans) != 0 {
			t.Errorf("orphans on b: %v, %v", orphans, err)
		}
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.FailCreate(ctx, tx, id, "aborted", "no time") })
		if srv := task(store.Spawning, ""); srv.VMState != store.Error || srv.FaultMessage != "aborted" || srv.FaultDetails != "no time" || used(t, d, "b") != 0 {
			t.Errorf("failed: %+v", srv)
		}
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
			return errors.Join(s.Place(ctx, tx, id, "a"), s.Activate(ctx, tx, id))
		})
		endOperations(ctx, t, d)
		if srv := task("", "a"); srv.VMState != store.Active || srv.LaunchedAt == nil || srv.FaultDetails != "" {
			t.Errorf("built: %+v", srv)
		}
		if err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Place(ctx, tx, id, "b") }); !errors.Is(err, compute.ErrStale) {
			t.Errorf("a claim after the build: %v, want ErrStale", err)
		}
	})
}

// TestDeletePreempts: a deletion ends every other operation on the server.
func TestDeletePreempts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "a", 2)
		id := addServer(t, s).ID
		place(t, s, d, id, "a")
		for range 2 {
			if err := s.BeginDelete(ctx, id); err != nil {
				t.Errorf("begin: %v", err)
			}
		}
		if srv, err := s.Server(ctx, id); err != nil || srv.Task() != store.Deleting {
			t.Errorf("server: %+v, %v", srv, err)
		}
		if open, err := s.Operations().List(ctx, operation.Filter{Resource: id, Open: true}); err != nil || len(open) != 1 || open[0].Kind != "server.delete" {
			t.Errorf("operations that have not ended: %+v, %v; want only the deletion", open, err)
		}
		for range 2 {
			remove(t, s, d, id)
		}
		if _, err := s.Server(ctx, id); !errors.Is(err, fault.NotFound) {
			t.Errorf("server: %v, want NotFound", err)
		}
		if n := used(t, d, "a"); n != 0 {
			t.Errorf("%d MiB are still claimed", n)
		}
		if err := s.BeginDelete(ctx, id); !errors.Is(err, fault.NotFound) {
			t.Errorf("begin: %v, want NotFound", err)
		}
	})
}

// TestResetWhileDeleting: a reset of the state does not end a deletion, because the client that has asked for the deletion has its reply, and the host may have destroyed the guest already.
func TestResetWhileDeleting(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "a", 2)
		for _, state := range []string{store.Active, store.Error} {
			id := addServer(t, s).ID
			place(t, s, d, id, "a")
			if err := s.BeginDelete(ctx, id); err != nil {
				t.Fatal(err)
			}
			if err := s.ResetState(ctx, id, state); err != nil {
				t.Fatalf("reset to %s: %v", state, err)
			}
			if srv, err := s.Server(ctx, id); err != nil || srv.Task() != store.Deleting || srv.VMState != state {
				t.Errorf("after a reset to %s: %+v, %v; want the state and still the deletion", state, srv, err)
			}
			remove(t, s, d, id)
			if _, err := s.Server(ctx, id); !errors.Is(err, fault.NotFound) {
				t.Errorf("after a reset to %s and the deletion: %v, want NotFound", state, err)
			}
		}
		if n := used(t, d, "a"); n != 0 {
			t.Errorf("%d MiB are still claimed", n)
		}
	})
}

// TestUnlockOther: an unlock that was decided for the lock of the owner does not remove the lock of an administrator, and a lock by the owner does not replace it.
func TestUnlockOther(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, _ *sqlx.DB) {
		ctx, id := t.Context(), addServer(t, s).ID
		for _, by := range []string{store.LockedByOwner, store.LockedByAdmin, store.LockedByOwner} {
			if err := s.LockServer(ctx, id, by, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.UnlockServer(ctx, id, store.LockedByOwner); !errors.Is(err, fault.Conflict) {
			t.Errorf("unlock of the owner: %v, want Conflict", err)
		}
		if srv, err := s.Server(ctx, id); err != nil || srv.LockedBy != store.LockedByAdmin {
			t.Errorf("%+v, %v, want the lock of the administrator", srv, err)
		}
		if err := s.UnlockServer(ctx, id, store.LockedByAdmin); err != nil {
			t.Error(err)
		}
	})
}

// TestPages: every server is on exactly one page, for every length of a page, even if many servers were created at the
// same moment.
func TestPages(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, _ *sqlx.DB) {
		const total = 23
		for range total {
			addServer(t, s)
		}
		for _, limit := range []int{1, 5, total, 100} {
			seen := map[string]bool{}
			marker := ""
			for {
				page, err := s.Servers(t.Context(), store.ServerQuery{In: store.AllProjects(), Query: listing.Query{Marker: marker, Limit: limit}})
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				for _, srv := range page {
					if seen[srv.ID] {
						t.Errorf("limit %d: server %s twice", limit, srv.ID)
					}
					seen[srv.ID] = true
					if srv.Metadata.V["k"] != "v" || srv.CreatedAt.Location() != time.UTC {
						t.Errorf("server %+v lost its metadata or its time zone", srv)
					}
				}
				marker = page[len(page)-1].ID
			}
			if len(seen) != total {
				t.Errorf("limit %d: %d servers, want %d", limit, len(seen), total)
			}
		}
		if _, err := s.Servers(t.Context(), store.ServerQuery{In: store.AllProjects(), Query: listing.Query{Marker: "nope", Limit: 5}}); !errors.Is(err, fault.Invalid) {
			t.Errorf("unknown marker: %v, want Invalid", err)
		}
	})
}

// TestServices: many services may join at the same time. Each service gets its own number and keeps it. A service without
// heartbeats is down.
func TestServices(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		numbers := func() map[string]int {
			list, err := s.Services(ctx, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]int{}
			for i, v := range list {
				out[v.Host] = v.Number
				if v.Up == (v.Host == "silent") || v.Number < 1 || i > 0 && v.Number <= list[i-1].Number {
					t.Errorf("%s: up %t, number %d", v.Host, v.Up, v.Number)
				}
			}
			return out
		}
		joinAll := func() {
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					host := strconv.Itoa(i)
					if err := s.Number(ctx, store.SchedulerBinary, host); err != nil {
						t.Errorf("number: %v", err)
					}
					if err := s.Members(time.Minute).Join(ctx, membership.Self{Kind: store.SchedulerBinary, Host: host}); err != nil {
						t.Errorf("join: %v", err)
					}
				})
			}
			wg.Wait()
		}
		joinAll()
		first := numbers()
		addHost(t, s, "silent", 1)
		addHost(t, s, "silent", 1)
		d.MustExecContext(ctx, `UPDATE members SET seen_at = ? WHERE host = 'silent'`, time.Now().Add(-time.Hour))
		joinAll()
		second := numbers()
		if len(first) != 8 || len(second) != 9 {
			t.Errorf("services %v, then %v", first, second)
		}
		for host, n := range first {
			if second[host] != n {
				t.Errorf("%s had number %d, and now has %d", host, n, second[host])
			}
		}
		if err := s.SetDisabled(ctx, "x", "y", true, ""); !errors.Is(err, fault.NotFound) || err.Error() != "Could not find binary x on host y." {
			t.Errorf("disable a service that does not exist: %v, want NotFound", err)
		}
	})
}

// TestRefusedReport: an invalid report is refused, and adds no host.
func TestRefusedReport(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		s := store.New(d)
		good := compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
		for _, r := range []compute.HostReport{
			{Host: "", Resources: good},
			{Host: "a b\n", Resources: good},
			{Host: strings.Repeat("x", 300), Resources: good},
			{Host: "bad", Resources: compute.Resources{VCPUs: -1}},
			{Host: "bad", Driver: strings.Repeat("x", 300), Resources: good},
			{Host: "bad", DriverVersion: "\xff", Resources: good},
		} {
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); !errors.Is(err, fault.Invalid) {
				t.Errorf("%.40q: %v, want Invalid", fmt.Sprint(r), err)
			}
		}
		for _, table := range []string{"hosts", "members", "service_numbers", "placement_providers"} {
			var n int
			if err := d.GetContext(t.Context(), &n, "SELECT COUNT(*) FROM "+table); err != nil || n > 0 {
				t.Errorf("%s has %d rows, %v", table, n, err)
			}
		}
	})
}

// TestSoftDeletedWithOperations: while the deletions of 100 soft-deleted servers wait, for example for a host that is down, other
// soft-deleted servers are still reclaimed.
func TestSoftDeletedWithOperations(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		var list []*store.Server
		for range 101 {
			list = append(list, &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", FlavorID: "1"})
		}
		if err := s.CreateServer(ctx, list...); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ExecContext(ctx, `UPDATE servers SET vm_state = ?, soft_deleted_at = ?`, compute.VMSoftDeleted, time.Now().UTC().Add(-2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		free := list[100].ID
		if _, err := d.ExecContext(ctx, `UPDATE servers SET soft_deleted_at = ? WHERE id = ?`, time.Now().UTC().Add(-time.Hour), free); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ExecContext(ctx, `UPDATE operations SET state = ?, active = NULL, due_at = NULL WHERE resource = ?`, operation.Succeeded, free); err != nil {
			t.Fatal(err)
		}
		if ids, err := s.SoftDeleted(ctx, time.Minute); err != nil || len(ids) != 1 || ids[0] != free {
			t.Errorf("to reclaim: %d servers, %v; want %s alone", len(ids), err, free)
		}
	})
}
