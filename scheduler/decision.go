package scheduler

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/armature-go/armature/fault"
)

// Decision has the result for every host: each is ranked or rejected. Config.MaxRanked and Config.CountsOnly shorten
// the lists; the counts are always complete. A Decision is safe for concurrent use if no goroutine changes it. In JSON a
// host is its name; decode the JSON as a Decision of [Name].
type Decision[H Host] struct {
	// Ranked are the feasible hosts, at most Config.MaxRanked. The first is the chosen host; the others are
	// alternates, best first.
	Ranked []Ranked[H]
	// Feasible is the number of feasible hosts.
	Feasible int
	// Counts are the numbers of rejected hosts by filter or weigher, the largest first.
	Counts []Count

	rejected rejections[H]
}

// Rejected returns the rejected hosts. With Config.CountsOnly the result is empty. The order is the same for the same
// hosts. Each call makes a new list, which the caller owns.
func (d *Decision[H]) Rejected() []Rejected {
	out := make([]Rejected, len(d.rejected.hosts))
	for i, h := range d.rejected.hosts {
		filter, reason := d.rejected.at(i)
		out[i] = Rejected{h.Name(), filter, reason}
	}
	return out
}

// Count is the number of hosts that a filter, or a weigher, has rejected.
type Count struct {
	Filter string `json:"filter"`
	Hosts  int    `json:"hosts"`
}

// sortCounts sorts by the number of hosts, the largest first, and then by filter.
func sortCounts(counts []Count) {
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Hosts, a.Hosts), cmp.Compare(a.Filter, b.Filter))
	})
}

// Ranked is a feasible host.
type Ranked[H Host] struct {
	Host H `json:"host"`
	// Total is the sum of all scores, each Scaled times its Multiplier.
	Total float64 `json:"total"`
	// Scores are in the weighers' order. A decision with one feasible host has no scores, because a single host is
	// not weighed.
	Scores []Score `json:"scores,omitempty"`
}

// Score is one weigher's score of a host.
type Score struct {
	Weigher string `json:"weigher"`
	// Raw is the raw score in the weigher's own unit. Scaled is Raw normalized over the decision: the lowest raw score becomes
	// 0, the highest 1. If all raw scores are equal, all become 0.
	Raw        float64 `json:"raw"`
	Scaled     float64 `json:"scaled"`
	Multiplier float64 `json:"multiplier"`
}

// Rejected is a rejected host, with the filter or weigher that rejected it, and the reason.
type Rejected struct {
	Host   string `json:"host"`
	Filter string `json:"filter"`
	Reason string `json:"reason"`
}

// Name is a host of which only the name is known, as in a decision that comes from another process.
type Name string

// Name returns the name.
func (n Name) Name() string { return string(n) }

// onWire is the JSON form of a decision.
type onWire[H Host] struct {
	Ranked   []Ranked[H] `json:"ranked"`
	Rejected []Rejected  `json:"rejected"`
	Feasible int         `json:"passed"` // the older word, which stays on the wire
	Counts   []Count     `json:"counts"`
}

// MarshalJSON writes the hosts as their names, and the reasons as text.
func (d Decision[H]) MarshalJSON() ([]byte, error) {
	return json.Marshal(onWire[H]{d.Ranked, d.Rejected(), d.Feasible, d.Counts})
}

// UnmarshalJSON reads what MarshalJSON has written. H must be [Name], or a type that is a text in JSON and whose Name
// returns this text. Its errors are those of [json.Unmarshal]; after an error the decision may have a part of the content.
func (d *Decision[H]) UnmarshalJSON(b []byte) error {
	var w onWire[H]
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*d = Decision[H]{Ranked: w.Ranked, Feasible: w.Feasible, Counts: w.Counts}
	for _, r := range w.Rejected {
		name, err := json.Marshal(r.Host)
		if err != nil {
			return err
		}
		var h H
		if err := json.Unmarshal(name, &h); err != nil {
			return err
		}
		v := Reject(r.Reason)
		d.rejected.add(h, &rejecter{name: r.Filter}, &v)
	}
	return nil
}

// MarshalJSON writes the host as its name.
func (r Ranked[H]) MarshalJSON() ([]byte, error) {
	type plain Ranked[Name]
	return json.Marshal(plain{Name(r.Host.Name()), r.Total, r.Scores})
}

// noValidHost returns the error of a decision without a feasible host.
func (d *Decision[H]) noValidHost() error {
	meta, all := make(map[string]string, len(d.Counts)+1), 0
	for _, c := range d.Counts {
		meta["rejected."+c.Filter] = strconv.Itoa(c.Hosts)
		all += c.Hosts
	}
	meta["hosts"] = strconv.Itoa(all)
	return fault.WithReason(fmt.Errorf("%w: %s", ErrNoValidHost, d.Summary()), "", meta)
}

// Summary counts the feasible hosts, and the rejected ones by filter, the largest number first: "0 of 4 hosts: 3
// MEMORY_MB, 1 disabled".
func (d *Decision[H]) Summary() string {
	all := d.Feasible
	for _, c := range d.Counts {
		all += c.Hosts
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%d of %d hosts", d.Feasible, all)
	sep := ": "
	for _, c := range d.Counts {
		s.WriteString(sep + strconv.Itoa(c.Hosts) + " " + c.Filter)
		sep = ", "
	}
	return s.String()
}

// String returns the summary and a table with a line for each host. A feasible host has its total and its scores, each
// as scaled (raw). A rejected host has the filter and the reason.
func (d *Decision[H]) String() string {
	var s strings.Builder
	s.WriteString(d.Summary() + "\n")
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	if len(d.Ranked) > 0 {
		line := []string{"host", "total"}
		for _, sc := range d.Ranked[0].Scores {
			line = append(line, fmt.Sprintf("%s x %g", sc.Weigher, sc.Multiplier))
		}
		writeRow(w, line)
		for _, r := range d.Ranked {
			line := []string{r.Host.Name(), fmt.Sprintf("%.4g", r.Total)}
			for _, sc := range r.Scores {
				line = append(line, fmt.Sprintf("%.4g (%.6g)", sc.Scaled, sc.Raw))
			}
			writeRow(w, line)
		}
		_ = w.Flush() // a Builder does not fail
	}
	if rejected := d.Rejected(); len(rejected) > 0 {
		writeRow(w, []string{"host", "rejected by", "reason"})
		for _, r := range rejected {
			writeRow(w, []string{r.Host, r.Filter, r.Reason})
		}
		_ = w.Flush() // a Builder does not fail
	}
	return s.String()
}

// writeRow writes a line of a table.
func writeRow(w *tabwriter.Writer, cells []string) {
	_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) // a Builder does not fail
}
