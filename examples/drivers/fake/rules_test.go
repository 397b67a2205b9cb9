package fake_test

import (
	"encoding/json"
	"testing"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
)

func TestMain(m *testing.M) { drivertest.Main(m, compute.Kind, fake.Open) }

func options(t *testing.T, opts map[string]string) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(opts)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestRules: the fake driver keeps the rules of compute drivers.
func TestRules(t *testing.T) {
	t.Parallel()
	computetest.Run(t, fake.Open, computetest.Config{
		Config: drivertest.Config{Options: options(t, map[string]string{"host": "h1", "dir": t.TempDir()})},
	})
}
