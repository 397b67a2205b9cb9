package rpcprom_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpcprom"
	"github.com/armature-go/armature/rpc/rpctest"
)

var (
	iface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
	start = rpc.Method[string, string]{Interface: iface, Name: "start", Since: rpc.Version{Major: 1}}
	keep  = rpc.Method[string, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
)

// wire is a bus that has only capabilities.
type wire struct{ bus.Bus }

func (wire) Capabilities() bus.Capabilities {
	return bus.Capabilities{Stats: func() bus.Stats { return bus.Stats{Reconnects: 3, Blocked: true} }}
}

// gather returns the metrics by name and labels. The value of a histogram is its count.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if f.GetType() == dto.MetricType_HISTOGRAM {
				v = float64(m.GetHistogram().GetSampleCount())
			}
			out[strings.TrimPrefix(f.GetName(), "armature_rpc_")+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return out
}

// TestMetrics: requests are counted in client and server. The names of the metrics are
// exactly the documented names.
func TestMetrics(t *testing.T) {
	t.Parallel()
	m := rpcprom.New()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m)
	bus := rpctest.NewBus(t)
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, MaxDeliveries: 1, Interceptors: []rpc.Interceptor{m.Server()}})
	rpc.Handle(srv, start, func(_ context.Context, s *string) (*string, error) {
		switch *s {
		case "no":
			return nil, fault.New(fault.Denied, "no")
		case "panic":
			panic(*s)
		}
		return s, nil
	})
	begun := make(chan struct{})
	rpc.Handle(srv, keep, func(context.Context, *string) (*rpc.None, error) {
		close(begun)
		return nil, errors.New("broken")
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := rpc.NewClient(bus, rpc.ClientConfig{Interceptors: []rpc.Interceptor{m.Client()}})
	defer c.Close()
	m.AddClient(c)
	m.AddServer(srv)
	m.AddBus(wire{})
	m.AddBus(wire{})

	for _, req := range []string{"yes", "yes", "no", "panic"} {
		_, _ = rpc.Call(t.Context(), c, start, rpc.Any, &req) // the metrics show the result
	}
	_, err := rpc.Call(t.Context(), c, start, "missing", new(string))
	if !errors.Is(err, rpc.ErrNoConsumer) {
		t.Error(err)
	}
	if err := rpc.Cast(t.Context(), c, keep, rpc.Any, new(string)); err != nil {
		t.Error(err)
	}
	<-begun
	if err := srv.Stop(t.Context()); err != nil { // after Stop the cast has ended
		t.Error(err)
	}

	got := gather(t, reg)
	want := map[string]float64{
		"client_requests_total{code=OK,interface=backup,kind=call,method=start}":          2,
		"client_requests_total{code=Denied,interface=backup,kind=call,method=start}":      1,
		"client_requests_total{code=Internal,interface=backup,kind=call,method=start}":    1,
		"client_requests_total{code=Unavailable,interface=backup,kind=call,method=start}": 1,
		"client_requests_total{code=OK,interface=backup,kind=cast,method=keep}":           1,
		"client_request_duration_seconds{interface=backup,kind=call,method=start}":        5,
		"client_request_duration_seconds{interface=backup,kind=cast,method=keep}":         1,
		"client_request_seconds{interface=backup,kind=call,method=start}":                 5,
		"client_request_seconds{interface=backup,kind=cast,method=keep}":                  1,
		"client_in_flight{interface=backup}":                                              0,
		"client_no_consumer_total{interface=backup}":                                      1,
		"client_late_replies_total{}":                                                     0,
		"client_canceled_total{}":                                                         0,
		"client_heartbeat_lost_total{}":                                                   0,
		"client_silent_total{}":                                                           0,
		"client_lost_total{}":                                                             0,
		"server_requests_total{code=OK,interface=backup,kind=call,method=start}":          2,
		"server_requests_total{code=Denied,interface=backup,kind=call,method=start}":      1,
		"server_requests_total{code=Internal,interface=backup,kind=call,method=start}":    1,
		"server_requests_total{code=Internal,interface=backup,kind=cast,method=keep}":     1,
		"server_request_duration_seconds{interface=backup,kind=call,method=start}":        4,
		"server_request_duration_seconds{interface=backup,kind=cast,method=keep}":         1,
		"server_request_seconds{interface=backup,kind=call,method=start}":                 4,
		"server_request_seconds{interface=backup,kind=cast,method=keep}":                  1,
		"server_in_flight{interface=backup}":                                              0,
		"server_expired_total{interface=backup}":                                          0,
		"server_canceled_total{interface=backup}":                                         0,
		"server_redelivered_total{interface=backup}":                                      0,
		"server_duplicate_total{interface=backup}":                                        0,
		"server_dead_lettered_total{interface=backup}":                                    1,
		"server_malformed_total{interface=backup}":                                        0,
		"server_lost_replies_total{interface=backup}":                                     0,
		"bus_reconnects_total{}":                                                          6,
		"bus_blocked{}":                                                                   2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}

	doc, err := os.ReadFile("rpcprom.go")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^//\t(\w+)\s+(?:counter|gauge|histogram)\s`).FindAllSubmatch(doc, -1) {
		documented[string(line[1])] = true
	}
	for key := range got {
		name, _, _ := strings.Cut(key, "{")
		if !documented[name] {
			t.Errorf("%s is not in the package comment", name)
		}
		delete(want, key)
	}
	if names := slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for key := range got {
			name, _, _ := strings.Cut(key, "{")
			if !yield(name) {
				return
			}
		}
	})); len(names) != len(documented) {
		t.Errorf("%d metrics, %d documented", len(names), len(documented))
	}
}

func ExampleNew() {
	m := rpcprom.New()
	reg := prometheus.NewRegistry()
	reg.MustRegister(m)
	fmt.Println(m.Client() != nil, m.Server() != nil)
	// Output: true true
}
