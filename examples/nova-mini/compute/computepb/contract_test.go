package computepb_test

import (
	"testing"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute/computepb"
)

// TestContract: the .proto file stays compatible with the drivers that vendors have built.
func TestContract(t *testing.T) {
	t.Parallel()
	drivertest.Contract(t, "testdata/compute.txt", computepb.File_examples_nova_mini_compute_computepb_compute_proto)
}
