package schedulerprom_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/internal/promtest"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/schedulerprom"
)

type broken struct{}

func (broken) Name() string { return "broken" }
func (broken) Prepare(_ context.Context, req string, _ []scheduler.Name) (func(scheduler.Name) scheduler.Verdict, error) {
	if req == "fail" {
		return nil, errors.New("it fails")
	}
	return nil, nil //nolint:nilnil // the filter rejects nothing
}

// TestMetrics: each decision is counted by its result, and each rejected host by its filter.
func TestMetrics(t *testing.T) {
	t.Parallel()
	m := schedulerprom.New()
	s, err := scheduler.New(scheduler.Config[string, scheduler.Name]{
		Filters: []scheduler.Filter[string, scheduler.Name]{broken{}, scheduler.FilterFunc("name", func(req string, h scheduler.Name) scheduler.Verdict {
			if strings.HasPrefix(string(h), req) {
				return scheduler.Pass
			}
			return scheduler.Reject("it has another name")
		})},
		Observe: m.Observe,
	})
	if err != nil {
		t.Fatal(err)
	}
	hosts := []scheduler.Name{"a1", "a2", "b1"}
	for req, want := range map[string]error{"a": nil, "c": scheduler.ErrNoValidHost} {
		if _, err := s.Rank(t.Context(), req, hosts); !errors.Is(err, want) {
			t.Errorf("%s: %v", req, err)
		}
	}
	if _, err := s.Rank(t.Context(), "fail", hosts); err == nil {
		t.Error("a filter that fails: no error")
	}
	if _, err := s.RankMany(t.Context(), "b", hosts[2:], 2, func(h scheduler.Name) scheduler.Name { return h }); err != nil {
		t.Error(err)
	}
	want := map[string]float64{
		"decisions_total{result=ok}": 2, "decisions_total{result=no_valid_host}": 1, "decisions_total{result=error}": 1,
		"decision_duration_seconds": 4, "hosts": 1, "rejected_hosts_total{filter=name}": 4,
	}
	if diff := cmp.Diff(want, promtest.Gather(t, "armature_scheduler_", m)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
