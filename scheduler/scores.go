package scheduler

import (
	"math"
	"slices"
)

// scoreTable holds the scores of the feasible hosts of a decision. Each weigher has a column of raw scores and a column
// of scaled scores, with an element for each host. Each host has a total. Later decisions reuse its memory.
type scoreTable struct {
	multipliers []float64 // one for each weigher

	raw, scaled []float64    // the columns, one after the other
	stride      int          // length of a column
	ranges      []scoreRange // one for each column
	totals      []float64    // one for each host
	removed     []float64    // temporary memory of removeRow
}

// scoreRange is the range of raw scores of one weigher, which is scaled to 0..1.
type scoreRange struct{ low, high float64 }

// resize sets the size to n hosts and k weighers. The caller must set all elements afterwards.
func (t *scoreTable) resize(n, k int) {
	t.stride = n
	t.raw, t.scaled = resizeSlice(t.raw, n*k), resizeSlice(t.scaled, n*k)
	t.ranges, t.totals = resizeSlice(t.ranges, k), resizeSlice(t.totals, n)
}

// resizeSlice returns a slice of n elements, in the memory of s if that is large enough.
func resizeSlice[E any](s []E, n int) []E { return slices.Grow(s[:0], n)[:n] }

func (t *scoreTable) rawOf(weigher int) []float64 { return t.column(t.raw, weigher) }

func (t *scoreTable) scaledOf(weigher int) []float64 { return t.column(t.scaled, weigher) }

func (t *scoreTable) column(of []float64, weigher int) []float64 {
	return of[weigher*t.stride:][:len(t.totals)]
}

// score returns a weigher's scores of a host.
func (t *scoreTable) score(weigher, host int) (raw, scaled float64) {
	at := weigher*t.stride + host
	return t.raw[at], t.scaled[at]
}

// isFinite reports whether a raw score is a finite number, so that it can be compared with others.
func isFinite(x float64) bool { return math.Abs(x) <= math.MaxFloat64 } // false for NaN

// findNonFinite returns the first weigher whose raw score of a host is NaN or infinite, or -1.
func (t *scoreTable) findNonFinite(host int) int {
	for j := range t.ranges {
		if !isFinite(t.raw[j*t.stride+host]) {
			return j
		}
	}
	return -1
}

// moveRaw copies raw scores from one host to another. The parameters are the indexes of the two hosts: first the target, then the
// source.
func (t *scoreTable) moveRaw(to, from int) {
	for j := range t.ranges {
		t.raw[j*t.stride+to] = t.raw[j*t.stride+from]
	}
}

// scaleAll computes scaled scores and totals of the first n hosts, and drops the others.
func (t *scoreTable) scaleAll(n int) {
	t.totals = t.totals[:n]
	for j := range t.ranges {
		t.ranges[j] = rangeOf(t.rawOf(j))
		t.scaleColumn(j)
	}
	t.sumAll()
}

func rangeOf(raw []float64) scoreRange {
	low, high := math.Inf(1), math.Inf(-1)
	for _, x := range raw {
		if x < low {
			low = x
		}
		if x > high {
			high = x
		}
	}
	return scoreRange{low, high}
}

// scaleColumn scales the raw scores of a weigher to 0..1. If all raw scores are equal, all scaled scores are 0, and not 1. Nova
// does the same.
func (t *scoreTable) scaleColumn(weigher int) {
	raw, scaled, r := t.rawOf(weigher), t.scaledOf(weigher), t.ranges[weigher]
	width := r.high - r.low
	switch {
	case width > 0 && isFinite(width): // the usual case, without a call for each host
		for i, x := range raw {
			scaled[i] = (x - r.low) / width
		}
	default:
		for i, x := range raw {
			scaled[i] = r.scale(x)
		}
	}
}

// scale returns the position of a raw score in the range, from 0 to 1.
func (r scoreRange) scale(x float64) float64 {
	width := r.high - r.low
	switch {
	case !(width > 0):
		return 0
	case isFinite(width):
		return (x - r.low) / width
	}
	return (x/2 - r.low/2) / (r.high/2 - r.low/2) // the difference is too large for a float64
}

// sumAll computes the totals, in the order of the weighers.
func (t *scoreTable) sumAll() {
	clear(t.totals)
	for j, multiplier := range t.multipliers[:len(t.ranges)] {
		for i, x := range t.scaledOf(j) {
			t.totals[i] += multiplier * x
		}
	}
}

// replaceRow replaces the raw scores of a host.
func (t *scoreTable) replaceRow(host int, raw []float64) {
	rescaled := false
	for j, x := range raw {
		at := j*t.stride + host
		old := t.raw[at]
		t.raw[at] = x
		switch {
		case t.updateRange(j, old, x):
			rescaled = true
		default:
			t.scaled[at] = t.ranges[j].scale(x)
		}
	}
	if rescaled {
		t.sumAll()
		return
	}
	t.totals[host] = 0
	for j := range raw {
		t.totals[host] += t.multipliers[j] * t.scaled[j*t.stride+host]
	}
}

// removeRow removes a host. The hosts after it move up by one.
func (t *scoreTable) removeRow(host int) {
	n := len(t.totals)
	t.removed = resizeSlice(t.removed, len(t.ranges))
	for j := range t.ranges {
		t.removed[j] = t.raw[j*t.stride+host]
		for _, columns := range [][]float64{t.raw, t.scaled} {
			column := columns[j*t.stride:][:n]
			copy(column[host:], column[host+1:])
		}
	}
	t.totals = slices.Delete(t.totals, host, host+1)
	rescaled := false
	for j := range t.ranges {
		rescaled = t.updateRange(j, t.removed[j]) || rescaled
	}
	if rescaled {
		t.sumAll()
	}
}

// updateRange computes the range of a weigher's column again. The parameter changed has the raw scores that were added or
// removed. If the range has changed, updateRange scales the column again and returns true.
func (t *scoreTable) updateRange(weigher int, changed ...float64) bool {
	old := t.ranges[weigher]
	isInside := func(x float64) bool { return old.low < x && x < old.high }
	if !slices.ContainsFunc(changed, func(x float64) bool { return !isInside(x) }) {
		return false
	}
	if t.ranges[weigher] = rangeOf(t.rawOf(weigher)); t.ranges[weigher] == old {
		return false
	}
	t.scaleColumn(weigher)
	return true
}
