package placement_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
)

// randomClaims returns one to three claims of different consumers. Many of their groups, generations and amounts are
// wrong.
func randomClaims(r *rand.Rand) (claims []placement.Claim) {
	policies := []placement.Policy{placement.Affinity, placement.AntiAffinity, placement.SoftAffinity}
	for _, consumer := range r.Perm(5)[:1+r.IntN(3)] {
		c := placement.Claim{Consumer: fmt.Sprint("c", consumer), Generation: placement.Any}
		if r.IntN(4) == 0 {
			c.Generation = r.Int64N(3)
		}
		for _, provider := range r.Perm(4)[:r.IntN(3)] { // provider 3 does not exist
			a := placement.Allocation{Provider: fmt.Sprint("n", provider), Generation: int64(max(r.IntN(20)-17, 0)), Resources: placement.Resources{"VCPU": 1 + r.Int64N(4)}}
			if r.IntN(3) == 0 {
				a.Resources["DISK_GB"] = 5 * (1 + r.Int64N(3))
			}
			c.Allocations = append(c.Allocations, a)
		}
		if r.IntN(4) > 0 {
			g := r.IntN(len(policies))
			c.Group = &placement.Group{ID: fmt.Sprint("g", g), Policy: policies[g], MaxPerHost: int64(r.IntN(3))}
		}
		claims = append(claims, c)
	}
	return claims
}

// TestStoresAgree: Memory and SQL give the same results for every sequence of claims.
func TestStoresAgree(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func(testing.TB) string{"sqlite": dbtest.SQLite, "mysql": dbtest.MySQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			stores := []placement.Store{&placement.Memory{}, placement.NewSQL(open(t, url(t)))}
			for _, s := range stores {
				for i := range 3 {
					inventories := map[string]placement.Inventory{"VCPU": {Total: 8, Max: 3}, "DISK_GB": {Total: 30, Step: 5, Min: 10}}
					if i == 2 {
						delete(inventories, "DISK_GB")
					}
					if _, err := s.Put(t.Context(), &placement.Provider{ID: fmt.Sprint("n", i), Inventories: inventories}); err != nil {
						t.Fatal(err)
					}
				}
			}
			outcomes := map[string]int{}
			for range 400 {
				claims := randomClaims(r)
				var texts []string
				for _, s := range stores {
					texts = append(texts, outcome(s.Claim(t.Context(), claims...)))
				}
				outcomes[texts[0]]++
				if texts[0] != texts[1] {
					t.Fatalf("%+v: in memory %q, in SQL %q", claims, texts[0], texts[1])
				}
			}
			if len(outcomes) < 5 {
				t.Errorf("the claims had few outcomes, so this test proves little: %v", outcomes)
			}
			var claims [2][]placement.Claim
			var providers [2][]*placement.Provider
			for i, s := range stores {
				var err, err2 error
				claims[i], err = s.Claims(t.Context())
				providers[i], err2 = s.Providers(t.Context())
				if err := errors.Join(err, err2); err != nil {
					t.Fatal(err)
				}
			}
			byProvider := cmpopts.SortSlices(func(a, b placement.Allocation) bool { return a.Provider < b.Provider })
			ignore := cmpopts.IgnoreTypes(time.Time{}) // the stores have different clocks
			if diff := cmp.Diff(claims[0], claims[1], byProvider, ignore, cmpopts.IgnoreFields(placement.Allocation{}, "Generation")); diff != "" {
				t.Errorf("claims (-memory +SQL):\n%s", diff)
			}
			if diff := cmp.Diff(providers[0], providers[1], ignore); diff != "" {
				t.Errorf("providers (-memory +SQL):\n%s", diff)
			}
		})
	}
}

// outcome returns the class of a claim's error, without its text.
func outcome(err error) string {
	for _, target := range []error{placement.ErrNoRoom, placement.ErrGroup, placement.ErrChanged} {
		if errors.Is(err, target) {
			return target.Error()
		}
	}
	if err != nil {
		return fault.CodeOf(err).String()
	}
	return "done"
}
