package operationprom_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/operation/operationprom"
)

// TestMetrics: one operation runs, one is of a version that the runner does not know, and a step of a third one cannot be undone.
func TestMetrics(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, []db.Migrations{operation.Migrations}, func(t *testing.T, d *sqlx.DB) {
		ops := operation.NewStore(d)
		r := operation.NewRunner(operation.RunnerConfig{Store: ops, Host: "h", Lease: 300 * time.Millisecond, Poll: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
		runs := operation.Kind[struct{}]{Name: "runs"}
		stuck := operation.Kind[struct{}]{Name: "stuck", Timeout: 100 * time.Millisecond}
		no := func(context.Context, *operation.Op, *struct{}) error { return errors.New("no") }
		operation.Handle(r, runs, operation.Step[struct{}]{Name: "a", Do: func(ctx context.Context, _ *operation.Op, _ *struct{}) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		operation.Handle(r, stuck, operation.Step[struct{}]{Name: "a", Do: no, Undo: no})
		later := runs
		later.Version = 1
		for _, k := range []operation.Kind[struct{}]{runs, stuck, later} {
			if _, err := operation.Begin(t.Context(), ops, k, "", &struct{}{}); err != nil {
				t.Fatal(err)
			}
		}
		m := operationprom.New()
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(m)
		if got := gather(t, reg); len(got) > 0 {
			t.Errorf("without a runner: %v", got)
		}
		m.Add("h", r)
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			now, cancel := context.WithCancel(context.Background())
			cancel()
			if err := r.Drain(now); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		want := map[string]float64{`armature_operation_running h`: 1, `armature_operation_unknown h`: 1, `armature_operation_not_undone_total h`: 1}
		waittest.Until(t, "the metrics", func() bool { return maps.Equal(want, gather(t, reg)) })
	})
}

// gather returns the metrics by name and label.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, v := range f.GetMetric() {
			got[f.GetName()+" "+v.GetLabel()[0].GetValue()] = v.GetGauge().GetValue() + v.GetCounter().GetValue()
		}
	}
	return got
}
