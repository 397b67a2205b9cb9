package scheduler_test

import (
	"context"
	"strings"
	"testing"

	"github.com/armature-go/armature/scheduler"
)

type node struct {
	name     string
	free     int
	load     float64
	disabled bool
}

func (n *node) Name() string { return n.name }

type spec struct{ need int }

type (
	filter   = scheduler.Filter[spec, *node]
	weighted = scheduler.Weighted[spec, *node]
	config   = scheduler.Config[spec, *node]
)

func enabled() filter {
	return scheduler.FilterFunc("disabled", func(_ spec, n *node) scheduler.Verdict {
		if n.disabled {
			return scheduler.Reject("out of service")
		}
		return scheduler.Pass
	})
}

func room() filter {
	return scheduler.FilterFunc("MEMORY_MB", func(s spec, n *node) scheduler.Verdict {
		if n.free < s.need {
			return scheduler.RejectNumbers("needs %d MiB, %d MiB free", s.need, n.free)
		}
		return scheduler.Pass
	})
}

func byFree(multiplier float64) weighted {
	return weighted{Weigher: scheduler.WeigherFunc("free", func(_ spec, n *node) float64 { return float64(n.free) }), Multiplier: multiplier}
}

func byLoad(multiplier float64) weighted {
	return weighted{Weigher: scheduler.WeigherFunc("load", func(_ spec, n *node) float64 { return n.load }), Multiplier: multiplier}
}

func mustNew(t testing.TB, cfg config) *scheduler.Scheduler[spec, *node] {
	t.Helper()
	s, err := scheduler.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(d *scheduler.Decision[*node]) string {
	var out []string
	for _, r := range d.Ranked {
		out = append(out, r.Host.name)
	}
	return strings.Join(out, " ")
}

func fleet() []*node {
	return []*node{
		{name: "n1", free: 512, load: 0.5},
		{name: "n2", free: 4096, load: 3},
		{name: "n3", free: 8192, load: 1, disabled: true},
		{name: "n4", free: 2048, load: 1},
		{name: "n5", free: 1024, load: 2},
	}
}

// view has all parts of a decision.
type view[H scheduler.Host] struct {
	Ranked   []scheduler.Ranked[H]
	Rejected []scheduler.Rejected
	Feasible int
	Counts   []scheduler.Count
}

func viewOf[H scheduler.Host](d *scheduler.Decision[H]) view[H] {
	return view[H]{d.Ranked, d.Rejected(), d.Feasible, d.Counts}
}

// prepared is a filter whose Prepare the test defines.
type prepared struct {
	name    string
	prepare func(hosts []*node) (func(*node) scheduler.Verdict, error)
}

func (p prepared) Name() string { return p.name }

func (p prepared) Prepare(_ context.Context, _ spec, hosts []*node) (func(*node) scheduler.Verdict, error) {
	return p.prepare(hosts)
}

type failingWeigher struct{ err error }

func (failingWeigher) Name() string { return "broken" }

func (f failingWeigher) Prepare(context.Context, spec, []*node) (func(*node) float64, error) {
	return nil, f.err
}
