package scheduler_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/goldentest"
	"github.com/armature-go/armature/scheduler"
)

func TestDecision(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Filters: []filter{enabled(), room()}, Weighers: []weighted{byFree(1), byLoad(-2)}})
	hosts := fleet()
	d, err := s.Rank(t.Context(), spec{2048}, hosts)
	if err != nil {
		t.Fatal(err)
	}
	want := view[*node]{
		Ranked: []scheduler.Ranked[*node]{
			{Host: hosts[3], Total: 0, Scores: []scheduler.Score{{"free", 2048, 0, 1}, {"load", 1, 0, -2}}},
			{Host: hosts[1], Total: -1, Scores: []scheduler.Score{{"free", 4096, 1, 1}, {"load", 3, 1, -2}}},
		},
		Rejected: []scheduler.Rejected{
			{"n1", "MEMORY_MB", "needs 2048 MiB, 512 MiB free"},
			{"n3", "disabled", "out of service"},
			{"n5", "MEMORY_MB", "needs 2048 MiB, 1024 MiB free"},
		},
		Feasible: 2,
		Counts:   []scheduler.Count{{"MEMORY_MB", 2}, {"disabled", 1}},
	}
	if diff := cmp.Diff(want, viewOf(d), cmp.AllowUnexported(node{})); diff != "" {
		t.Errorf("decision (-want +got):\n%s", diff)
	}
	goldentest.File(t, "the decision", "testdata/decision.txt", d.String())
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	goldentest.File(t, "the decision", "testdata/decision.json", string(raw)+"\n")
	var back scheduler.Decision[scheduler.Name]
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(back, "", "  ")
	if diff := cmp.Diff(string(raw), string(again)); err != nil || diff != "" {
		t.Errorf("decoded and encoded: %v (-want +got):\n%s", err, diff)
	}
	if d.String() != back.String() {
		t.Errorf("decoded it prints\n%s, want\n%s", back.String(), d)
	}
	if diff := cmp.Diff(fleet(), hosts, cmp.AllowUnexported(node{})); diff != "" {
		t.Errorf("Rank changed the hosts it was given:\n%s", diff)
	}
}

func TestNoValidHost(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Filters: []filter{enabled(), room()}, Weighers: []weighted{byFree(1)}})
	d, err := s.Rank(t.Context(), spec{10000}, fleet()[:4])
	if !errors.Is(err, scheduler.ErrNoValidHost) || !errors.Is(err, fault.Exhausted) {
		t.Fatalf("Rank = %v, want ErrNoValidHost", err)
	}
	if want := "no valid host: 0 of 4 hosts: 3 MEMORY_MB, 1 disabled"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	goldentest.File(t, "the decision", "testdata/no_valid_host.txt", d.String())

	d, err = s.Rank(t.Context(), spec{}, nil)
	if !errors.Is(err, scheduler.ErrNoValidHost) || d == nil || d.Summary() != "0 of 0 hosts" {
		t.Errorf("without hosts: %v, %v", d, err)
	}
	raw, err := json.Marshal(d)
	if string(raw) != `{"ranked":[],"rejected":[],"passed":0,"counts":[]}` || err != nil {
		t.Errorf("JSON of an empty decision: %s, %v", raw, err)
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	type decision = scheduler.Decision[scheduler.Name]
	tests := []struct {
		d    decision
		want string
	}{
		{decision{}, "0 of 0 hosts"},
		{decision{Feasible: 2}, "2 of 2 hosts"},
		{decision{Feasible: 2, Counts: []scheduler.Count{{"b", 2}, {"a", 1}}}, "2 of 5 hosts: 2 b, 1 a"},
	}
	for _, tt := range tests {
		if got := tt.d.Summary(); got != tt.want {
			t.Errorf("Summary = %q, want %q", got, tt.want)
		}
	}
}
