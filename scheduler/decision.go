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

// Decision says what became of every host: each is Ranked or Rejected, unless the
// configuration limits them; the numbers hold anyway. It is safe for concurrent
// use if nobody changes it. In JSON a host is its name; decode it as a Decision of
// [Name].
type Decision[H Host] struct {
	// Ranked are the hosts that passed, Config.Keep at most. The first is the
	// chosen one, the others are alternates, best first.
	Ranked []Ranked[H]
	// Passed is how many hosts passed, Counts how many each filter turned away,
	// the most frequent first. Unseen is how many nobody asked about, because
	// enough had passed.
	Passed int
	Counts []Count
	Unseen int

	turned turned[H]
}

// turned are the hosts that were turned away, without the texts, which may never
// be read.
type turned[H Host] struct {
	hosts []H
	why   []why
	words []phrase
}

// Rejected returns the hosts that were turned away, if the explanation is Full.
// The order is the same for the same hosts. It is made anew each time.
func (d *Decision[H]) Rejected() []Rejected {
	t := &d.turned
	out := make([]Rejected, len(t.hosts))
	for i, h := range t.hosts {
		w := &t.why[i]
		p := &t.words[w.word]
		out[i] = Rejected{h.Name(), p.filter, text(p.format, w.a, w.b)}
	}
	return out
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

// Named returns the decision with the hosts' names alone. What needs no change is
// shared with d.
func (d *Decision[H]) Named() *Decision[Name] {
	out := &Decision[Name]{
		Ranked: make([]Ranked[Name], len(d.Ranked)), Passed: d.Passed, Counts: d.Counts, Unseen: d.Unseen,
		turned: turned[Name]{make([]Name, len(d.turned.hosts)), d.turned.why, d.turned.words},
	}
	for i, r := range d.Ranked {
		out.Ranked[i] = Ranked[Name]{Name(r.Host.Name()), r.Total, r.Scores}
	}
	for i, h := range d.turned.hosts {
		out.turned.hosts[i] = Name(h.Name())
	}
	return out
}

// onWire is a decision in JSON.
type onWire[H Host] struct {
	Ranked   []Ranked[H] `json:"ranked"`
	Rejected []Rejected  `json:"rejected"`
	Passed   int         `json:"passed"`
	Counts   []Count     `json:"counts"`
	Unseen   int         `json:"unseen,omitempty"`
}

// MarshalJSON writes the hosts as their names, and the reasons as text.
func (d Decision[H]) MarshalJSON() ([]byte, error) {
	return json.Marshal(onWire[H]{d.Ranked, d.Rejected(), d.Passed, d.Counts, d.Unseen})
}

// UnmarshalJSON reads what MarshalJSON wrote. H must be [Name], or a type that is
// a text in JSON and whose Name returns it.
func (d *Decision[H]) UnmarshalJSON(b []byte) error {
	var w onWire[H]
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*d = Decision[H]{Ranked: w.Ranked, Passed: w.Passed, Counts: w.Counts, Unseen: w.Unseen}
	for i, r := range w.Rejected {
		name, err := json.Marshal(r.Host)
		if err != nil {
			return err
		}
		var h H
		if err := json.Unmarshal(name, &h); err != nil {
			return err
		}
		d.turned.hosts = append(d.turned.hosts, h)
		d.turned.why = append(d.turned.why, why{word: int32(i)})
		d.turned.words = append(d.turned.words, phrase{r.Filter, Reject(r.Reason).format})
	}
	return nil
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
	if rejected := d.Rejected(); len(rejected) > 0 {
		row(w, []string{"host", "turned away by", "because"})
		for _, r := range rejected {
			row(w, []string{r.Host, r.Filter, r.Reason})
		}
		_ = w.Flush() // a Builder does not fail
	}
	return s.String()
}

func row(w *tabwriter.Writer, cells []string) {
	_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) // a Builder does not fail
}
