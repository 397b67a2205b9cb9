package placement_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

// newPlacer returns a placer whose Hosts returns the state at the start of the test,
// unless fresh is true.
func newPlacer(t *testing.T, s placement.Store) *placement.Placer[*request, *provider] {
	t.Helper()
	sched, err := scheduler.New(scheduler.Config[*request, *provider]{
		Filters: filters(placement.Options{}), Weighers: placement.Weighers[*request, *provider](placement.Options{}),
	})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var known []*provider
	return &placement.Placer[*request, *provider]{Scheduler: sched, Store: s, Hosts: func(ctx context.Context, fresh bool) (_ []*provider, err error) {
		mu.Lock()
		defer mu.Unlock()
		if fresh || known == nil {
			known, err = s.Providers(ctx)
		}
		return known, err
	}}
}

func put(t *testing.T, s placement.Store, id string, vcpus int64) {
	t.Helper()
	if _, err := s.Put(t.Context(), &provider{ID: id, Inventories: inventory("VCPU", placement.Inventory{Total: vcpus})}); err != nil {
		t.Fatal(err)
	}
}

func vcpus(consumer string, n int64) *request {
	return &request{Consumer: consumer, Resources: placement.Resources{"VCPU": n}}
}

// TestPlace: a placer with an old state of the hosts tries the next best host, then reads the
// current state, and fails only if no host has room.
func TestPlace(t *testing.T) {
	t.Parallel()
	s := &placement.Memory{}
	put(t, s, "n1", 4)
	put(t, s, "n2", 3)
	put(t, s, "n3", 2)
	p := newPlacer(t, s)
	got, err := p.Place(t.Context(), vcpus("a", 2))
	if err != nil || got.Host.ID != "n1" || got.AlreadyClaimed || len(got.Refused) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	// The same request again, as after a lost reply: nothing is claimed twice.
	again, err := p.Place(t.Context(), vcpus("a", 2))
	if err != nil || again.Host.ID != "n1" {
		t.Errorf("again: %+v, %v", again, err)
	}
	// The same request in another process, which would choose another host now.
	again, err = newPlacer(t, s).Place(t.Context(), vcpus("a", 2))
	if err != nil || again.Host.ID != "n1" || !again.AlreadyClaimed || again.Decision.Ranked[0].Host.ID != "n2" {
		t.Errorf("again by another: %+v, %v", again, err)
	}
	// Other claims fill n1 and n2, and the placer does not know these claims.
	for host, n := range map[string]int64{"n1": 2, "n2": 3} {
		if err := s.Claim(t.Context(), placement.Claim{Consumer: host, Allocations: []placement.Allocation{{Provider: host, Resources: placement.Resources{"VCPU": n}}}}); err != nil {
			t.Fatal(err)
		}
	}
	stale := newPlacer(t, s)
	hosts, err := stale.Hosts(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(hosts)
	for i, h := range old { // the state before the claims
		c := *h
		c.Inventories = inventory("VCPU", placement.Inventory{Total: h.Inventories["VCPU"].Total})
		old[i] = &c
	}
	stale.Hosts = func(ctx context.Context, fresh bool) ([]*provider, error) {
		if fresh {
			return s.Providers(ctx)
		}
		return old, nil
	}
	got, err = stale.Place(t.Context(), vcpus("b", 2))
	if err != nil || got.Host.ID != "n3" || len(got.Refused) != 2 || !errors.Is(got.Refused[0], placement.ErrNoRoom) {
		t.Errorf("with an old state of the hosts: %+v, %v", got, err)
	}
	got, err = stale.Place(t.Context(), vcpus("c", 2))
	if !errors.Is(err, scheduler.ErrNoValidHost) || got == nil || got.Decision.Summary() != "0 of 3 hosts: 3 VCPU" {
		t.Errorf("without room: %+v, %v", got, err)
	}
	if claims, err := s.Claims(t.Context(), "c"); err != nil || claims[0].Generation != 0 {
		t.Errorf("the claim of the request that was not placed: %+v, %v", claims, err)
	}
	broken := errors.New("no database")
	stale.Hosts = func(context.Context, bool) ([]*provider, error) { return nil, broken }
	if got, err := stale.Place(t.Context(), vcpus("d", 1)); !errors.Is(err, broken) || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	got, err = p.Place(t.Context(), vcpus("", 1))
	if !errors.Is(err, fault.Invalid) || got != nil {
		t.Errorf("a request without a consumer: %v, %v", got, err)
	}
}

// TestPlaceElsewhere: a consumer whose claim is on a host that is not a candidate host is not placed a second time.
func TestPlaceElsewhere(t *testing.T) {
	t.Parallel()
	s := &placement.Memory{}
	put(t, s, "n1", 4)
	put(t, s, "n2", 4)
	if err := s.Claim(t.Context(), placement.Claim{Consumer: "a", Allocations: []placement.Allocation{{Provider: "n1", Resources: placement.Resources{"VCPU": 1}}}}); err != nil {
		t.Fatal(err)
	}
	p := newPlacer(t, s)
	p.Hosts = func(ctx context.Context, _ bool) ([]*provider, error) { return s.Providers(ctx, "n2") }
	got, err := p.Place(t.Context(), vcpus("a", 1))
	if !errors.Is(err, fault.NotFound) || got != nil || !strings.Contains(err.Error(), "a has its claim on n1, which is not a candidate host") {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestPlaceStale: a request with an old generation of the consumer's claim fails after one call of Claim, because no host can accept
// the claim.
func TestPlaceStale(t *testing.T) {
	t.Parallel()
	s := &countingStore{Memory: &placement.Memory{}}
	put(t, s, "n1", 4)
	put(t, s, "n2", 4)
	p := newPlacer(t, s)
	p.Claim = func(req *request, h *provider) placement.Claim {
		return placement.Claim{Consumer: req.Consumer, Generation: 7, Allocations: []placement.Allocation{{Provider: h.ID, Resources: req.Resources}}}
	}
	if got, err := p.Place(t.Context(), vcpus("a", 1)); !errors.Is(err, placement.ErrChanged) || got != nil || s.claims != 1 {
		t.Errorf("%+v, %v after %d claims, want ErrChanged after 1", got, err, s.claims)
	}
}

// countingStore counts the calls of Claim.
type countingStore struct {
	*placement.Memory

	claims int
}

func (s *countingStore) Claim(ctx context.Context, claims ...placement.Claim) error {
	s.claims++
	return s.Memory.Claim(ctx, claims...)
}

// noRecount is a store whose Recount fails.
type noRecount struct{ *placement.Memory }

func (noRecount) Recount(context.Context, bool) ([]*placement.Provider, error) {
	return nil, fault.New(fault.Unavailable, "no database")
}

// TestAuditWithoutRecount: if Recount fails, Audit returns the findings, with their repairs, beside the error.
func TestAuditWithoutRecount(t *testing.T) {
	t.Parallel()
	s := noRecount{&placement.Memory{}}
	put(t, s, "n1", 4)
	if err := s.Claim(t.Context(), placement.Claim{Consumer: "orphan", Allocations: []placement.Allocation{{Provider: "n1", Resources: placement.Resources{"VCPU": 1}}}}); err != nil {
		t.Fatal(err)
	}
	found, err := placement.Audit(t.Context(), s, placement.AuditConfig{
		MinAge: -1, Repair: true, Want: func(context.Context, ...string) ([]placement.Claim, error) { return nil, nil },
	})
	if !errors.Is(err, fault.Unavailable) || len(found) != 1 || found[0].Kind != "orphaned" || !found[0].Repaired {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestPlaceGroup: members that are placed at the same moment get different hosts, although
// the placers do not know each other's choices.
func TestPlaceGroup(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		s := placement.NewSQL(d)
		const n = 6
		for i := range n {
			put(t, s, fmt.Sprint("n", i), 10)
		}
		var wg sync.WaitGroup
		for i := range n {
			p := newPlacer(t, s)
			wg.Go(func() {
				q := vcpus(fmt.Sprint("c", i), 1)
				q.Group = &group{ID: "g", Policy: placement.AntiAffinity}
				if got, err := p.Place(t.Context(), q); err != nil {
					t.Errorf("%d: %+v, %v", i, got, err)
				}
			})
		}
		wg.Wait()
		list, err := s.Providers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.Members["g"] != 1 {
				t.Errorf("%s has %d members", p.ID, p.Members["g"])
			}
		}
	})
}

// TestAudit: Audit finds the differences between the claims and the component's records. It repairs them only with
// Repair, and only if they still exist.
func TestAudit(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		s := placement.NewSQL(d)
		put(t, s, "n1", 10)
		put(t, s, "n2", 10)
		claim := func(consumer, host string, n int64) placement.Claim {
			return placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{{Provider: host, Resources: placement.Resources{"VCPU": n}}}}
		}
		if err := s.Claim(ctx, claim("right", "n1", 1), claim("orphan", "n1", 2), claim("moved", "n1", 3), claim("busy", "n2", 1)); err != nil {
			t.Fatal(err)
		}
		want := []placement.Claim{claim("right", "n1", 1), claim("moved", "n2", 3), claim("lost", "n2", 4), claim("huge", "n2", 40)}
		if _, err := d.ExecContext(ctx, `UPDATE placement_inventories SET used = used + 1 WHERE provider = 'n1'`); err != nil {
			t.Fatal(err)
		}
		cfg := placement.AuditConfig{MinAge: -1, Want: func(_ context.Context, consumers ...string) ([]placement.Claim, error) {
			if slices.Equal(consumers, []string{"busy"}) { // its record has been written since the first call
				return []placement.Claim{claim("busy", "n2", 1)}, nil
			}
			return slices.DeleteFunc(slices.Clone(want), func(c placement.Claim) bool {
				return len(consumers) > 0 && !slices.Contains(consumers, c.Consumer)
			}), nil
		}}
		young := cfg
		young.MinAge, young.Repair = 0, true
		young.Want = func(context.Context, ...string) ([]placement.Claim, error) {
			return []placement.Claim{claim("moved", "n2", 3)}, nil // "busy" and "orphan" are being created
		}
		fresh := func(s placement.Store) {
			t.Helper()
			before, err := s.Claims(ctx)
			if err != nil {
				t.Fatal(err)
			}
			found, err := placement.Audit(ctx, s, young)
			if err != nil || len(found) != 1 || found[0].Kind != "miscounted" {
				t.Errorf("claims younger than 5 minutes: %+v, %v", found, err)
			}
			if after, err := s.Claims(ctx); err != nil || !cmp.Equal(before, after) {
				t.Errorf("claims younger than 5 minutes were changed: %v\n%s", err, cmp.Diff(before, after))
			}
		}
		fresh(s)
		if _, err := d.ExecContext(ctx, `UPDATE placement_inventories SET used = used + 1 WHERE provider = 'n1'`); err != nil {
			t.Fatal(err)
		}
		const all = "orphaned busy, different moved, orphaned orphan, missing lost, missing huge, miscounted n1"
		show := func(list []placement.Finding) string {
			var out []string
			for _, f := range list {
				name := f.Claim.Consumer
				if f.Provider != nil {
					name = f.Provider.ID
				}
				out = append(out, f.Kind+" "+name)
			}
			return strings.Join(out, ", ")
		}
		for range 2 { // without Repair, Audit changes nothing
			found, err := placement.Audit(ctx, s, cfg)
			if err != nil || show(found) != all {
				t.Errorf("found %s, %v", show(found), err)
			}
		}
		cfg.Repair = true
		found, err := placement.Audit(ctx, s, cfg)
		if err != nil || show(found) != all {
			t.Errorf("found %s, %v", show(found), err)
		}
		for _, f := range found {
			var want error
			switch f.Claim.Consumer {
			case "busy":
				want = placement.ErrChanged
			case "huge":
				want = placement.ErrNoRoom
			}
			if !errors.Is(f.Err, want) || f.Repaired != (want == nil) {
				t.Errorf("%s %s: repaired %v, %v", f.Kind, f.Claim.Consumer, f.Repaired, f.Err)
			}
		}
		found, err = placement.Audit(ctx, s, cfg)
		if err != nil || show(found) != "orphaned busy, missing huge" {
			t.Errorf("after the repair: %s, %v", show(found), err)
		}
		list, err := s.Providers(ctx)
		if err != nil || list[0].Inventories["VCPU"].Used != 1 || list[1].Inventories["VCPU"].Used != 8 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// TestAuditConcurrentClaim: a claim that is made, together with its record, after Audit has read the claims is not reported as missing.
func TestAuditConcurrentClaim(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		s := placement.NewSQL(d)
		put(t, s, "n1", 10)
		claim := placement.Claim{Consumer: "c", Allocations: []placement.Allocation{{Provider: "n1", Resources: placement.Resources{"VCPU": 1}}}}
		lost := claim
		lost.Consumer = "lost"
		for _, repair := range []bool{false, true} {
			if err := s.Claim(t.Context(), placement.Claim{Consumer: "c"}); err != nil && !errors.Is(err, placement.ErrChanged) {
				t.Fatal(err)
			}
			made := false
			found, err := placement.Audit(t.Context(), s, placement.AuditConfig{Repair: repair, Want: func(ctx context.Context, _ ...string) ([]placement.Claim, error) {
				if !made {
					made = true
					if err := s.Claim(ctx, claim); err != nil {
						return nil, err
					}
				}
				return []placement.Claim{claim, lost}, nil
			}})
			if err != nil || len(found) != 1 || found[0].Kind != "missing" || found[0].Claim.Consumer != "lost" || found[0].Repaired != repair {
				t.Errorf("repair %v: %+v, %v; want that only \"lost\" is missing", repair, found, err)
			}
			have, err := s.Claims(t.Context(), "c")
			if err != nil || len(have) != 1 || have[0].Generation == 0 {
				t.Fatalf("%+v, %v", have, err)
			}
			claim.Generation = 0
			if err := s.Claim(t.Context(), placement.Claim{Consumer: "c", Generation: have[0].Generation}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestClaimTx: a claim and the component's own rows are one transaction.
func TestClaimTx(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		s := placement.NewSQL(d)
		put(t, s, "n1", 2)
		claim := func(consumer string, n int64, then error) error {
			return db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
				err := s.ClaimTx(ctx, tx, placement.Claim{Consumer: consumer, Allocations: []placement.Allocation{{Provider: "n1", Resources: placement.Resources{"VCPU": n}}}})
				if err != nil {
					return err
				}
				return then
			})
		}
		undone := errors.New("the component's own rows could not be written")
		if err := claim("a", 2, undone); !errors.Is(err, undone) {
			t.Errorf("%v", err)
		}
		if err := claim("b", 2, nil); err != nil {
			t.Errorf("the rows of the failed transaction still exist: %v", err)
		}
		if err := claim("c", 1, nil); !errors.Is(err, placement.ErrNoRoom) {
			t.Errorf("%v, want ErrNoRoom", err)
		}
	})
}
