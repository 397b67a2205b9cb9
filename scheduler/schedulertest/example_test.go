package schedulertest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/schedulertest"
)

type shelf struct {
	name string
	free int
}

func (s *shelf) Name() string { return s.name }

// The filter has a mistake: it compares with < instead of <=, and so rejects a host that has exactly enough room. A
// simulation finds the mistake. A test calls Run with its *testing.T; this example calls Sim.Run with one seed.
func ExampleSim() {
	wrong := scheduler.FilterFunc("room", func(n int, s *shelf) scheduler.Verdict {
		if n < s.free {
			return scheduler.Pass
		}
		return scheduler.RejectNumbers("needs %d, %d free", n, s.free)
	})
	s, err := scheduler.New(scheduler.Config[int, *shelf]{Filters: []scheduler.Filter[int, *shelf]{wrong}})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = schedulertest.Sim[int, *shelf]{
		Scheduler: s,
		// The hosts at the start of a run.
		Fleet: func(*rand.Rand) (out []*shelf) {
			for i := range 2 {
				out = append(out, &shelf{"shelf-" + strconv.Itoa(i), 5})
			}
			return out
		},
		// The next request, here always for 5.
		Request: func(*rand.Rand) int { return 5 },
		// The rule that the filter should have, written without the filter.
		Fits: func(n int, s *shelf) error {
			if n > s.free {
				return fmt.Errorf("%d of %d", n, s.free)
			}
			return nil
		},
		// A host with one more request on it.
		Place: func(n int, s *shelf) *shelf { return &shelf{s.name, s.free - n} },
	}.Run(context.Background(), 1)
	fmt.Println(err)
	// Output:
	// step 0: no host was found for 5, but shelf-0 fits:
	// 0 of 2 hosts: 2 room
	// host     rejected by  reason
	// shelf-0  room         needs 5, 5 free
	// shelf-1  room         needs 5, 5 free
}
