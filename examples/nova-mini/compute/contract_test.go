package compute_test

import (
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestContracts: processes of different releases communicate, so the interfaces must stay
// compatible within a major version.
func TestContracts(t *testing.T) {
	t.Parallel()
	rpctest.Contract(t, "testdata/compute.json", compute.Worker)
	rpctest.Contract(t, "testdata/conductor.json", compute.Conductor)
	rpctest.Contract(t, "testdata/scheduler.json", compute.Scheduler)
}
