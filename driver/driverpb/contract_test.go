package driverpb_test

import (
	"testing"

	"github.com/armature-go/armature/driver/driverpb"
	"github.com/armature-go/armature/driver/drivertest"
)

// TestContract: driver.proto keeps every part on which the programs of vendors rely.
func TestContract(t *testing.T) {
	t.Parallel()
	drivertest.Contract(t, "testdata/driver.txt", driverpb.File_driver_driverpb_driver_proto)
}
