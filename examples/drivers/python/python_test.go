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

// library is the directory of the Python packages.
func library(t *testing.T) string {
	t.Helper()
	if err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import grpc, google.protobuf").Run(); err != nil && os.Getenv("CI") == "" {
		t.Skip("needs the packages python3-grpcio and python3-protobuf")
	}
	dir, err := filepath.Abs("../../../python")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// command runs a command in a directory.
func command(t *testing.T, dir string, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %v\n%s", cmd, err, out)
	}
}

// TestUnits runs the tests of the Python packages and of the driver.
func TestUnits(t *testing.T) {
	t.Parallel()
	lib := library(t)
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{lib, here} {
		command(t, dir, []string{"PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=" + here + ":" + lib}, "/usr/bin/python3", "-m", "unittest", "discover", "tests")
	}
}

// TestRules: a driver in Python, as one file, keeps the rules.
func TestRules(t *testing.T) {
	t.Parallel()
	lib, dir := library(t), filepath.Join(t.TempDir(), "apex")
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	command(t, dir, nil, "make", "build", "LIBRARY="+lib)
	for _, source := range []string{"apex", "build"} { // without these, because the program must need only its own file
		if err := os.RemoveAll(filepath.Join(dir, source)); err != nil {
			t.Fatal(err)
		}
	}
	options, err := json.Marshal(map[string]string{"host": "h1", "dir": t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "bin/armature-compute-apex")
	computetest.RunProgram(t, computetest.Config{Config: drivertest.Config{Options: options, Plugin: driver.PluginConfig{Program: program}}})
}

// TestPackage: pip installs the Python packages.
func TestPackage(t *testing.T) {
	t.Parallel()
	lib, dir := library(t), t.TempDir()
	if err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import setuptools, pip, wheel").Run(); err != nil && os.Getenv("CI") == "" {
		t.Skip("needs the packages python3-pip, python3-setuptools and python3-wheel")
	}
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target") // setuptools writes into the source
	if err := os.CopyFS(source, os.DirFS(lib)); err != nil {
		t.Fatal(err)
	}
	command(t, dir, nil, "/usr/bin/python3", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", target, source)
	command(t, dir, []string{"PYTHONPATH=" + target}, "/usr/bin/python3", "-c", "import armature_compute, armature_driver; assert armature_driver.__file__.startswith('"+target+"')")
}
