package scheduler_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	core "github.com/armature-go/armature/scheduler"
)

// TestHints: the hints same_host and different_host name servers. They choose and exclude the hosts of these servers if Nova's filter for the hint is enabled.
func TestHints(t *testing.T) {
	t.Parallel()
	const unknown = "9c3f8f0f-6b0f-4d5e-8a43-0f8d5d1d6c11"
	on := map[string]string{"h1": "11111111-0000-4000-8000-000000000000", "h2": "22222222-0000-4000-8000-000000000000"} // a server on each host; h3 has none
	both := []string{"SameHostFilter", "DifferentHostFilter"}
	for name, tt := range map[string]struct {
		filters []string
		hints   map[string]any
		want    []string // the hosts that may be chosen; nil: no host is valid
	}{
		"no hint":                        {both, nil, []string{"h1", "h2", "h3"}},
		"the host of a server":           {both, map[string]any{"same_host": []string{on["h2"]}}, []string{"h2"}},
		"one of two hosts":               {both, map[string]any{"same_host": []string{on["h1"], on["h2"]}}, []string{"h1", "h2"}},
		"an unknown server too":          {both, map[string]any{"same_host": []string{unknown, on["h1"]}}, []string{"h1"}},
		"the host of an unknown server":  {both, map[string]any{"same_host": []string{unknown}}, nil},
		"another host":                   {both, map[string]any{"different_host": []string{on["h1"], on["h2"]}}, []string{"h3"}},
		"not that of an unknown server":  {both, map[string]any{"different_host": []string{unknown}}, []string{"h1", "h2", "h3"}},
		"no servers":                     {both, map[string]any{"same_host": []string{}, "different_host": []string{}}, []string{"h1", "h2", "h3"}},
		"both hints contradict":          {both, map[string]any{"same_host": []string{on["h1"]}, "different_host": []string{on["h1"]}}, nil},
		"by nova-mini's names":           {[]string{"same_host", "different_host"}, map[string]any{"same_host": []string{on["h1"], on["h2"]}, "different_host": []string{on["h1"]}}, []string{"h2"}},
		"only the other filter":          {[]string{"DifferentHostFilter"}, map[string]any{"same_host": []string{on["h1"]}}, []string{"h1", "h2", "h3"}},
		"no filter":                      {[]string{"ComputeFilter"}, map[string]any{"different_host": []string{on["h1"]}}, []string{"h1", "h2", "h3"}},
		"a value that is not a server":   {both, map[string]any{"same_host": []any{7, on["h1"]}}, []string{"h1"}},
		"other hints":                    {both, map[string]any{"x": []string{on["h1"]}}, []string{"h1", "h2", "h3"}},
		"a server without a host is off": {both, map[string]any{"same_host": []string{"33333333-0000-4000-8000-000000000000"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
				t.Helper()
				s := store.New(d)
				svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, SubsetSize: 3, Filters: tt.filters, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				add := func(id string, hints map[string]any) *store.Server {
					t.Helper()
					srv := &store.Server{ID: id, Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
					if hints != nil {
						raw, err := json.Marshal(hints)
						if err != nil {
							t.Fatal(err)
						}
						srv.Hints = new(string(raw))
					}
					if err := s.CreateServer(t.Context(), srv); err != nil {
						t.Fatal(err)
					}
					return srv
				}
				for i := range 3 {
					host := fmt.Sprint("h", i+1)
					r := compute.HostReport{Host: host, Driver: "d", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
					if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
						t.Fatal(err)
					}
					if on[host] == "" {
						continue
					}
					add(on[host], nil)
					if _, err := d.ExecContext(t.Context(), `UPDATE servers SET host = ? WHERE id = ?`, host, on[host]); err != nil {
						t.Fatal(err)
					}
				}
				add("33333333-0000-4000-8000-000000000000", nil)
				chosen := map[string]bool{}
				for range 40 { // 40 choices of 3 equal hosts miss one of them once in 10 million times
					srv := add(uuid.NewString(), tt.hints)
					got, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need()})
					if tt.want == nil {
						if !errors.Is(err, core.ErrNoValidHost) {
							t.Fatalf("%v, %v; want ErrNoValidHost", got, err)
						}
						return
					}
					if err != nil || !slices.Contains(tt.want, got.Host) {
						t.Fatalf("%v, %v; want one of %v", got, err, tt.want)
					}
					chosen[got.Host] = true
				}
				if len(chosen) != len(tt.want) {
					t.Errorf("chosen: %v, want each of %v", chosen, tt.want)
				}
			})
		})
	}
}

// TestMaxServers: with NumInstancesFilter, a host gets no server beyond the configured number.
func TestMaxServers(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		s := store.New(d)
		for filter, want := range map[string]error{"NumInstancesFilter": core.ErrNoValidHost, "ComputeFilter": nil} {
			host := strings.ToLower(filter)
			svc, err := scheduler.New(scheduler.Config{Store: s, DownAfter: time.Minute, MaxServers: 2, Filters: []string{filter}, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			r := compute.HostReport{Host: host, Driver: "d", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}
			if err := s.ReportHost(t.Context(), &r, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				srv := &store.Server{ID: uuid.NewString(), Name: "x", ProjectID: "p", FlavorID: "1", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
				if err := s.CreateServer(t.Context(), srv); err != nil {
					t.Fatal(err)
				}
				_, err := svc.Select(t.Context(), &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Host: host})
				if i < 2 && err != nil || i == 2 && !errors.Is(err, want) {
					t.Errorf("%s: server %d: %v, want %v", filter, i+1, err, want)
				}
			}
		}
	})
}
