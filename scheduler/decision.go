package scheduler

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Decision says what became of every host: each is in exactly one of the lists,
// unless the configuration limits them; the numbers hold anyway. In JSON a host
// is its name; decode it as a Decision of [Name].
type Decision[H Host] struct {
	// Ranked are the hosts that passed, Config.Keep at most. The first is the
	// chosen one, the others are alternates, best first.
	Ranked []Ranked[H] `json:"ranked"`
	// Rejected are the others, if the explanation is Full. The order is the same
	// for the same hosts.
	Rejected []Rejected `json:"rejected"`
	// Passed is how many hosts passed, Counts how many each filter turned away,
	// the most frequent first. Unseen is how many nobody asked about, because
	// enough had passed.
	Passed int     `json:"passed"`
	Counts []Count `json:"counts"`
	Unseen int     `json:"unseen,omitempty"`
}

// Count is how many hosts a filter turned away.
type Count struct {
	Filter string `json:"filter"`
	Hosts  int    `json:"hosts"`
}

// sortCounts puts the most frequent first.
func sortCounts(counts []Count) {
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Hosts, a.Hosts), cmp.Compare(a.Filter, b.Filter))
	})
}

// Ranked is a host that passed.
type Ranked[H Host] struct {
	Host H `json:"host"`
	// Total is the sum of all scores, each Scaled times its Multiplier.
	Total float64 `json:"total"`
	// Scores are in the weighers' order. There are none if only one host
	// passed, because then nothing is weighed.
	Scores []Score `json:"scores,omitempty"`
}

// Score is what one weigher said of a host.
type Score struct {
	Weigher string `json:"weigher"`
	// Raw is the weight in the weigher's own unit, Scaled its place between
	// the decision's lowest, 0, and highest, 1.
	Raw        float64 `json:"raw"`
	Scaled     float64 `json:"scaled"`
	Multiplier float64 `json:"multiplier"`
}

// Rejected is a host that was turned away, by which filter and why.
type Rejected struct {
	Host   string `json:"host"`
	Filter string `json:"filter"`
	Reason string `json:"reason"`
}

// Name is a host of which nothing but the name is known: what hosts become when
// a decision goes to another process.
type Name string

// Name returns the name.
func (n Name) Name() string { return string(n) }

// Named returns the decision with the hosts' names alone. All else is shared
// with d.
func (d *Decision[H]) Named() *Decision[Name] {
	out := &Decision[Name]{make([]Ranked[Name], len(d.Ranked)), d.Rejected, d.Passed, d.Counts, d.Unseen}
	for i, r := range d.Ranked {
		out.Ranked[i] = Ranked[Name]{Name(r.Host.Name()), r.Total, r.Scores}
	}
	return out
}

// MarshalJSON writes the host as its name.
func (r Ranked[H]) MarshalJSON() ([]byte, error) {
	type plain Ranked[Name]
	return json.Marshal(plain{Name(r.Host.Name()), r.Total, r.Scores})
}

// Summary counts the hosts that passed and the others by filter, the most
// frequent first: "0 of 4 hosts: 3 MEMORY_MB, 1 disabled".
func (d *Decision[H]) Summary() string {
	all := d.Passed + d.Unseen
	for _, c := range d.Counts {
		all += c.Hosts
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%d of %d hosts", d.Passed, all)
	sep := ": "
	for _, c := range d.Counts {
		s.WriteString(sep + strconv.Itoa(c.Hosts) + " " + c.Filter)
		sep = ", "
	}
	if d.Unseen > 0 {
		s.WriteString(sep + strconv.Itoa(d.Unseen) + " not looked at")
	}
	return s.String()
}

// String returns the summary and a table with a line for each host: totals and
// scores, scaled (raw), of those that passed; filter and reason of the others.
func (d *Decision[H]) String() string {
	var s strings.Builder
	s.WriteString(d.Summary() + "\n")
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	if len(d.Ranked) > 0 {
		line := []string{"host", "total"}
		for _, sc := range d.Ranked[0].Scores {
			line = append(line, fmt.Sprintf("%s x %g", sc.Weigher, sc.Multiplier))
		}
		row(w, line)
		for _, r := range d.Ranked {
			line := []string{r.Host.Name(), fmt.Sprintf("%.4g", r.Total)}
			for _, sc := range r.Scores {
				line = append(line, fmt.Sprintf("%.4g (%.6g)", sc.Scaled, sc.Raw))
			}
			row(w, line)
		}
		_ = w.Flush() // a Builder does not fail
	}
	if len(d.Rejected) > 0 {
		row(w, []string{"host", "turned away by", "because"})
		for _, r := range d.Rejected {
			row(w, []string{r.Host, r.Filter, r.Reason})
		}
		_ = w.Flush() // a Builder does not fail
	}
	return s.String()
}

func row(w *tabwriter.Writer, cells []string) {
	_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) // a Builder does not fail
}
