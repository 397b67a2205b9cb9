package tempdir_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/armature-go/armature/internal/tempdir"
)

// TestSweep: Sweep removes the directory of a process that has ended, and nothing else.
func TestSweep(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	first, err := tempdir.Make(parent, "driver-")
	if err != nil {
		t.Fatal(err)
	}
	marker, err := os.ReadFile(filepath.Join(first.Path, ".lock"))
	if err != nil || len(marker) == 0 {
		t.Fatalf("the lock of a directory has %q, %v", marker, err)
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	mk := func(name string, lock bool) string {
		t.Helper()
		path := filepath.Join(parent, name)
		err := os.MkdirAll(filepath.Join(path, "below"), 0o700)
		if lock {
			err = errors.Join(err, os.WriteFile(filepath.Join(path, ".lock"), marker, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	dead := mk("driver-1", true)
	other := mk("driver-8", false) // of another program, which has a file of the same name
	if err := os.WriteFile(filepath.Join(other, ".lock"), []byte("4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := []string{mk("driver-2", false), mk("other-1", true), mk("driver-backup", true), other}
	target := mk("target", true)
	for name, to := range map[string]string{"driver-3": target, "driver-4/.lock": filepath.Join(target, ".lock")} {
		path := filepath.Join(parent, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, path)
	}
	kept = append(kept, target)
	if os.Geteuid() == 0 {
		foreign, lock := mk("driver-5", true), mk("driver-6", true)
		allowed := mk("driver-7", true)
		if err := errors.Join(os.Chown(foreign, 12345, -1), os.Chown(filepath.Join(lock, ".lock"), 12345, -1), os.Chown(allowed, 54321, -1)); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, foreign, lock)
		defer func() {
			if _, err := os.Stat(allowed); err == nil {
				t.Error("the directory of an allowed user is left")
			}
		}()
	}
	mine, err := tempdir.Make(parent, "driver-")
	if err != nil {
		t.Fatal(err)
	}
	kept = append(kept, mine.Path)
	removed, err := tempdir.Sweep(parent, "driver-", 54321)
	if err != nil || !slices.Contains(removed, dead) {
		t.Errorf("swept %v, %v; want %s", removed, err, dead)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of a dead process is left: %v", err)
	}
	for _, path := range kept {
		if _, err := os.Lstat(path); err != nil || slices.Contains(removed, path) {
			t.Errorf("Sweep removed %s, which it must keep: %v", path, err)
		}
	}
	if err := mine.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mine.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is not removed: %v", err)
	}
}
