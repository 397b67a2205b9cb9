package driverpb_test

import (
	"testing"

	"github.com/armature-go/armature/driver/driverpb"
	"github.com/armature-go/armature/driver/drivertest"
)

// TestContract: programs of vendors are built with what was promised.
func TestContract(t *testing.T) {
	t.Parallel()
	drivertest.Contract(t, "testdata/driver.txt", driverpb.File_driver_driverpb_driver_proto)
}
