// Package compare measures several ways to do the same work side by side and prints the
// ratios of their speeds. It is for benchmarks.
package compare

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"
)

var (
	rounds = flag.Int("rounds", 5, "rounds of a comparison")
	slice  = flag.Duration("slice", time.Second, "duration of each contender's run in a round")
)

// Contender is one way to do a piece of work.
type Contender struct {
	Name  string
	Op    func()
	Drain func() // waits for the end of work that Op has started in the background; may be nil
}

// Table prints comparisons.
type Table struct{ w *tabwriter.Writer }

// New begins a table on standard output.
func New() *Table {
	t := &Table{tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)}
	_, _ = fmt.Fprintln(t.w, "\nwork\tcallers\tby\tper s\tratio\tp50\tratio\t")
	return t
}

// result is the result of one contender in one round.
type result struct {
	rate float64 // operations a second
	p50  time.Duration
}

// measure runs Op in one goroutine for each caller, for the duration d.
func measure(c Contender, callers int, d time.Duration) result {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	start := time.Now()
	for range callers {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 1<<14)
			for time.Since(start) < d {
				t := time.Now()
				c.Op()
				mine = append(mine, time.Since(t))
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if c.Drain != nil {
		c.Drain()
	}
	spent := time.Since(start)
	slices.Sort(all)
	return result{float64(len(all)) / spent.Seconds(), all[len(all)/2]}
}

// Row runs the contenders one after another in several rounds, and prints a line for each
// contender with the medians of its rounds. A ratio is computed for each round: the contender's value divided by the value of the first
// contender in the same round. The parameter what names the work, and callers is the number of goroutines that do the work.
func (t *Table) Row(what string, callers int, list ...Contender) {
	for _, c := range list { // warm up
		measure(c, callers, *slice/5)
	}
	got := make([][]result, len(list))
	for range *rounds {
		for i, c := range list {
			got[i] = append(got[i], measure(c, callers, *slice))
		}
	}
	for i, c := range list {
		rates, ratios, p50s, slower := make([]float64, 0), make([]float64, 0), make([]time.Duration, 0), make([]float64, 0)
		for r, x := range got[i] {
			rates, p50s = append(rates, x.rate), append(p50s, x.p50)
			ratios = append(ratios, x.rate/got[0][r].rate)
			slower = append(slower, float64(x.p50)/float64(got[0][r].p50))
		}
		_, _ = fmt.Fprintf(t.w, "%s\t%d\t%s\t%s\t%.2f\t%v\t%.2f\t\n", what, callers, c.Name,
			Rate(median(rates)), median(ratios), median(p50s).Round(100*time.Nanosecond), median(slower))
	}
	_ = t.w.Flush() // an error of standard output does not matter
}

// Rate returns the text of a rate: with two decimals below 10, and otherwise as a whole number.
func Rate(perSecond float64) string {
	if perSecond < 10 {
		return strconv.FormatFloat(perSecond, 'f', 2, 64)
	}
	return strconv.FormatFloat(perSecond, 'f', 0, 64)
}

// median returns the median of a list, which must not be empty.
func median[T float64 | time.Duration](list []T) T {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}
