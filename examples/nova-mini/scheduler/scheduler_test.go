package scheduler_test

import (
	"errors"
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
		{"ComputeFilter", "IoOpsFilter", "AggregateIoOpsFilter", "ServerGroupAntiAffinityFilter", "tried"},
	} {
		if _, err := scheduler.New(scheduler.Config{Store: store.New(nil), Filters: names}); err != nil {
			t.Errorf("%q: %v", names, err)
		}
	}
	_, err := scheduler.New(scheduler.Config{Store: store.New(nil), Filters: []string{"ComputeFilter", "RamFilter"}})
	if !errors.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), `there is no "RamFilter"; there are: DISK_GB, MEMORY_MB, VCPU, affinity,`) {
		t.Errorf("%v", err)
	}
}
