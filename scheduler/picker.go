package scheduler

import (
	"fmt"
	"math/rand/v2"
)

// Picker chooses one of the feasible hosts by their totals and returns its index. The parameter totals has at least two elements, in
// the order of the hosts. A Picker must neither keep nor change totals. A Scheduler calls its Picker from one goroutine at
// a time.
type Picker func(totals []float64, r *rand.Rand) int

// Best picks the host with the highest total. Of several such hosts it picks the first.
func Best(totals []float64, _ *rand.Rand) int {
	best := 0
	for i, t := range totals {
		if t > totals[best] {
			best = i
		}
	}
	return best
}

// Shuffle picks, at random, one of the hosts that share the highest total (Nova's shuffle_best_same_weighed_hosts).
func Shuffle(totals []float64, r *rand.Rand) int {
	best, equals := 0, 1
	for i, t := range totals[1:] {
		switch {
		case t > totals[best]:
			best, equals = i+1, 1
		case t == totals[best]:
			if equals++; r.IntN(equals) == 0 {
				best = i + 1
			}
		}
	}
	return best
}

// Subset returns a Picker that picks one of the n best hosts at random (Nova's host_subset_size), so that many
// schedulers do not all choose the same host. Subset panics if n is less than 1.
func Subset(n int) Picker {
	if n < 1 {
		panic(fmt.Sprintf("scheduler: Subset(%d): want at least 1", n))
	}
	return func(totals []float64, r *rand.Rand) int {
		var few [16]int
		best := few[:0]
		for i, t := range totals {
			if len(best) == n && t <= totals[best[n-1]] {
				continue
			}
			if len(best) < n {
				best = append(best, i)
			}
			at := len(best) - 1
			for ; at > 0 && totals[best[at-1]] < t; at-- {
				best[at] = best[at-1]
			}
			best[at] = i
		}
		return best[r.IntN(len(best))]
	}
}
