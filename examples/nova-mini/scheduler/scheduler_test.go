package scheduler_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestFilterNames: filters go by their own names and by Nova's; what is neither
// stops the start.
func TestFilterNames(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{
		nil,
		{"zone", "VCPU"},
		{"RetryFilter", "AvailabilityZoneFilter", "ComputeFilter"},
		{"ComputeFilter", "IoOpsFilter", "AggregateIoOpsFilter", "ServerGroupAntiAffinityFilter", "tried"},
	} {
		if _, err := scheduler.New(scheduler.Config{Store: store.New(nil), Filters: names}); err != nil {
			t.Errorf("%q: %v", names, err)
		}
	}
	var log strings.Builder
	_, err := scheduler.New(scheduler.Config{
		Store: store.New(nil), Filters: []string{"RetryFilter", "AvailabilityZoneFilter", "VCPU"}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	for _, name := range []string{"filter=RetryFilter", "filter=AvailabilityZoneFilter"} {
		if err != nil || !strings.Contains(log.String(), name) || strings.Count(log.String(), "is built in") != 2 {
			t.Errorf("%v; the log does not say once that %s is built in:\n%s", err, name, &log)
		}
	}
	_, err = scheduler.New(scheduler.Config{Store: store.New(nil), Filters: []string{"ComputeFilter", "RamFilter"}})
	if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), `there is no "RamFilter"; there are: DISK_GB, MEMORY_MB, VCPU, affinity,`) {
		t.Errorf("%v", err)
	}
}
