package armature_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// protocVersion matches the lines of generated code that have the version of the generator.
var protocVersion = regexp.MustCompile(`(?m)^// [-\s]*protoc.*\n`)

// TestGenerated: the committed code is equal to the output of `make generate`, except for the versions of the generators.
func TestGenerated(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"protoc", "grpc_python_plugin"} {
		if _, err := exec.LookPath(tool); err != nil && os.Getenv("CI") == "" {
			t.Skipf("needs %s: `make test` installs it", tool)
		}
	}
	readTree(t)
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "make", "generate", "OUT="+dir).CombinedOutput(); err != nil {
		t.Fatalf("make generate: %v\n%s", err, out)
	}
	n := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		made, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		committed, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(protocVersion.ReplaceAll(made, nil), protocVersion.ReplaceAll(committed, nil)) {
			t.Errorf("%s differs from the output of `make generate`", name)
		}
		return nil
	})
	if err != nil || n < 8 {
		t.Errorf("%d files, %v", n, err)
	}
}
