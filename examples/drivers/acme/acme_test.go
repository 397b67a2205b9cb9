package acme_test

import (
	"encoding/json"
	"testing"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/drivers/acme"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
)

func TestMain(m *testing.M) { drivertest.Main(m, compute.Kind, acme.Open) }

// TestRules: the driver keeps the rules of compute drivers.
func TestRules(t *testing.T) {
	options, err := json.Marshal(map[string]string{"host": "h1", "dir": t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	computetest.Run(t, acme.Open, computetest.Config{Config: drivertest.Config{Options: options}})
}
