package placement_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/scheduler/placement"
)

// op is a claim of amounts of two providers, or the release of a claim.
type op struct {
	release bool
	n       [2]int64
}

const linearSize = 5

// model is the sequential behavior of a store: a claim succeeds if, and only if, both providers
// have room.
var model = porcupine.Model{
	Init: func() any { return [2]int64{} },
	Step: func(state, input, output any) (bool, any) {
		used, o, ok := state.([2]int64), input.(op), output.(bool)
		next := used
		for i, n := range o.n {
			if o.release {
				n = -n
			}
			next[i] += n
		}
		fits := next[0] <= linearSize && next[1] <= linearSize
		if o.release {
			return ok, next
		}
		if ok {
			return fits, next
		}
		return !fits, used
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %v", input, output) },
}

// TestLinearizable: the results of many concurrent claims are those of some sequential order.
// Porcupine searches for that order.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) placement.Store{
		"memory": func(*testing.T) placement.Store { return &placement.Memory{} },
		"sqlite": func(t *testing.T) placement.Store { return placement.NewSQL(open(t, dbtest.SQLite(t))) },
		"mysql":  func(t *testing.T) placement.Store { return placement.NewSQL(open(t, dbtest.MySQL(t))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			for round := range 5 {
				history := claimHistory(t, open(t), seed+uint64(round))
				refused := 0
				for _, o := range history {
					if !o.Output.(bool) {
						refused++
					}
				}
				switch got := porcupine.CheckOperationsTimeout(model, history, time.Minute); {
				case got != porcupine.Ok:
					t.Fatalf("the history of %d operations is not linearizable: %s", len(history), got)
				case refused == 0:
					t.Errorf("every claim of %d operations found room: this proves nothing", len(history))
				default:
					t.Logf("%d operations, %d refused: linearizable", len(history), refused)
				}
			}
		})
	}
}

func claimHistory(t *testing.T, s placement.Store, seed uint64) []porcupine.Operation {
	t.Helper()
	names := [2]string{"n1", "n2"}
	for _, n := range names {
		if _, err := s.Put(t.Context(), &placement.Provider{ID: n, Inventories: inventory("VCPU", placement.Inventory{Total: linearSize})}); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var history []porcupine.Operation
	start := time.Now()
	do := func(client int, o op, f func() error) bool {
		call := time.Since(start)
		err := f()
		back := time.Since(start)
		if err != nil && !errors.Is(err, placement.ErrNoRoom) {
			t.Errorf("%+v: %v", o, err)
		}
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: client, Input: o, Output: err == nil, Call: int64(call), Return: int64(back)})
		return err == nil
	}
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range 15 {
				c := placement.Claim{Consumer: fmt.Sprintf("c-%d-%d", w, i)}
				var o op
				for k := range names {
					if n := r.Int64N(4); n > 0 && (k == r.IntN(2) || r.IntN(2) == 0) {
						o.n[k] = n
						c.Allocations = append(c.Allocations, placement.Allocation{Provider: names[k], Resources: placement.Resources{"VCPU": n}})
					}
				}
				if len(c.Allocations) == 0 {
					continue
				}
				if do(w, o, func() error { return s.Claim(t.Context(), c) }) {
					waittest.Spend(rand.N(time.Millisecond), "the life of the claim, in which other claims find no room")
					o.release = true
					do(w, o, func() error { return placement.Release(t.Context(), s, c.Consumer) })
				}
			}
		})
	}
	wg.Wait()
	return history
}
