package serviceprom_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/serviceprom"
)

// TestMetrics: the metrics have the documented names and no others, and count calls, failures and running work. A kind of work that
// no longer runs has the number 0.
func TestMetrics(t *testing.T) {
	t.Parallel()
	app := service.New(service.Config{NoSignals: true, Logger: slog.New(slog.DiscardHandler)})
	l := service.Loop(-1, func(context.Context) error { return errors.New("boom") })
	app.Add("audit", l)
	app.Add("idle", service.Loop(-1, func(context.Context) error { return nil }))
	reg := prometheus.NewPedanticRegistry()
	m := serviceprom.New()
	reg.MustRegister(m)
	m.Add(app)
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer l.Stop(t.Context())
	for range 2 {
		if err := l.RunNow(t.Context()); err == nil {
			t.Error("RunNow of a loop that fails = nil, want its error")
		}
	}
	rpc := service.Work{Kind: "rpc", Name: "backup.start"}
	end := app.Inflight().Begin(t.Context(), rpc)
	if _, err := reg.Gather(); err != nil { // the kind rpc is collected once
		t.Fatal(err)
	}
	end()
	for range 3 {
		defer app.Inflight().Begin(t.Context(), service.Work{Kind: "request", Name: "GET /"})()
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got, names := map[string]float64{}, map[string]bool{}
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "armature_service_")
		names[name] = true
		for _, x := range f.GetMetric() {
			if !strings.Contains(name, "seconds") { // those depend on the clock
				got[name+"{"+x.GetLabel()[0].GetValue()+"}"] = x.GetCounter().GetValue() + x.GetGauge().GetValue()
			}
		}
	}
	want := map[string]float64{
		"loop_calls_total{audit}": 2, "loop_failures_total{audit}": 2, "loop_calls_total{idle}": 0, "loop_failures_total{idle}": 0,
		"inflight{request}": 3, "inflight{rpc}": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	doc, err := os.ReadFile("serviceprom.go")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, f := range regexp.MustCompile(`(?m)^//\t([a-z_]+) +(counter|gauge) `).FindAllStringSubmatch(string(doc), -1) {
		documented[f[1]] = true
	}
	if diff := cmp.Diff(documented, names); diff != "" {
		t.Errorf("names of metrics (-documented +collected):\n%s", diff)
	}
}
