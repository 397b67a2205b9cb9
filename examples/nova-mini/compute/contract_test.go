package compute_test

import (
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestContracts: the RPC interfaces stay compatible within a major version, because processes of
// different releases communicate.
func TestContracts(t *testing.T) {
	t.Parallel()
	rpctest.Contract(t, "testdata/compute.json", compute.Worker)
	rpctest.Contract(t, "testdata/conductor.json", compute.Conductor)
	rpctest.Contract(t, "testdata/scheduler.json", compute.Scheduler)
}
