package placementtest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/armature-go/armature/scheduler/placement"
)

func memberClaim(id, host string, g *placement.Group) placement.Claim {
	return placement.Claim{Consumer: id, Allocations: []placement.Allocation{vcpusOf(host, 1)}, Group: g}
}

func testAffinity(b bench) {
	b.host("n1", 8)
	b.host("n2", 8)
	g := &placement.Group{ID: "g", Policy: placement.Affinity}
	b.must(memberClaim("a", "n1", g))
	b.refuses(placement.ErrGroup, "group g is on host n1, not on n2: the group's policy forbids the host", memberClaim("b", "n2", g))
	b.must(memberClaim("b", "n1", g))
	b.must(memberClaim("x", "n2", &placement.Group{ID: "other", Policy: placement.Affinity}))
	// The whole group may move in one call, a single member may not.
	toN2 := func(id string) placement.Claim { c := memberClaim(id, "n2", g); c.Generation = 1; return c }
	b.refuses(placement.ErrGroup, "", toN2("a"))
	b.must(toN2("a"), toN2("b"))
	b.used(map[string]int64{"n1": 0, "n2": 3})
	b.wantUsedSums()
}

func testAntiAffinity(b bench) {
	b.host("n1", 8)
	b.host("n2", 8)
	g := &placement.Group{ID: "g", Policy: placement.AntiAffinity}
	b.must(memberClaim("a", "n1", g))
	b.refuses(placement.ErrGroup, "group g: host n1 has 1 of at most 1 members: the group's policy forbids the host", memberClaim("b", "n1", g))
	b.refuses(placement.ErrGroup, "", memberClaim("b", "n2", g), memberClaim("c", "n2", g))
	b.must(memberClaim("b", "n2", g))
	grow := memberClaim("b", "n2", g)
	grow.Generation, grow.Allocations = 1, []placement.Allocation{vcpusOf("n2", 2)}
	b.must(grow) // a member does not count against itself
	g.MaxPerHost = 2
	b.must(memberClaim("c", "n1", g))
	b.refuses(placement.ErrGroup, "group g: host n1 has 2 of at most 2 members: the group's policy forbids the host", memberClaim("d", "n1", g))
	if err := placement.Release(b.Context(), b, "a"); err != nil {
		b.Fatal(err)
	}
	b.must(memberClaim("d", "n1", g))
	if p := b.provider("n1"); p.Members["g"] != 2 || p.Consumers != 2 {
		b.Errorf("%+v", p)
	}
	b.wantUsedSums()
}

func testSoft(b bench) {
	b.host("n1", 8)
	b.host("n2", 8)
	for _, policy := range []placement.Policy{placement.SoftAffinity, placement.SoftAntiAffinity} {
		g := &placement.Group{ID: string(policy), Policy: policy}
		for i, host := range []string{"n1", "n1", "n2"} {
			b.must(memberClaim(fmt.Sprint(policy, i), host, g))
		}
		if n := b.provider("n1").Members[g.ID]; n != 2 {
			b.Errorf("%s: n1 has %d members, want 2", policy, n)
		}
	}
}

func testGroupRace(b bench) {
	for i := range 3 {
		b.host(fmt.Sprint("n", i), 100)
	}
	anti := &placement.Group{ID: "anti", Policy: placement.AntiAffinity, MaxPerHost: 2}
	near := &placement.Group{ID: "near", Policy: placement.Affinity}
	var wg sync.WaitGroup
	var got atomic.Int64
	for i := range 30 {
		wg.Go(func() {
			host := fmt.Sprint("n", i%3)
			switch err := b.Claim(b.Context(), memberClaim(fmt.Sprint("anti", i), host, anti)); {
			case err == nil:
				got.Add(1)
			case !errors.Is(err, placement.ErrGroup):
				b.Errorf("anti-affinity: %v", err)
			}
			if err := b.Claim(b.Context(), memberClaim(fmt.Sprint("near", i), host, near)); err != nil && !errors.Is(err, placement.ErrGroup) {
				b.Errorf("affinity: %v", err)
			}
		})
	}
	wg.Wait()
	if got.Load() != 6 {
		b.Errorf("%d members with anti-affinity, want 2 on each of 3 hosts", got.Load())
	}
	hosts := 0
	for i := range 3 {
		p := b.provider(fmt.Sprint("n", i))
		if p.Members["anti"] != 2 {
			b.Errorf("%s has %d members of the group anti, want 2", p.ID, p.Members["anti"])
		}
		if p.Members["near"] > 0 {
			hosts++
			if p.Members["near"] != 10 {
				b.Errorf("%s has %d members of the group near, want 10", p.ID, p.Members["near"])
			}
		}
	}
	if hosts != 1 {
		b.Errorf("the group with affinity is on %d hosts", hosts)
	}
	b.wantUsedSums()
}
