package python_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
)

// TestRules: a driver in Python keeps the rules.
func TestRules(t *testing.T) {
	t.Parallel()
	if err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import grpc, google.protobuf").Run(); err != nil && os.Getenv("CI") == "" {
		t.Skip("needs the packages python3-grpcio and python3-protobuf")
	}
	program, err := filepath.Abs("armature-compute-python")
	if err != nil {
		t.Fatal(err)
	}
	options, err := json.Marshal(map[string]string{"host": "h1", "dir": t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	computetest.RunProgram(t, computetest.Config{Config: drivertest.Config{Options: options, Plugin: driver.PluginConfig{Program: program}}})
}
