package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/fault"
)

// TestDirectory: the images of a directory are its image files, with the properties in the list file.
func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"b.qcow2", "a.img", "c.raw", "notes.txt", ".img"} {
		write(name, "12345")
	}
	if err := os.Mkdir(filepath.Join(dir, "d.img"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := image.Directory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	write(image.ListFile, `{"b": {"min_ram": 512, "min_disk": 2, "properties": {"os_type": "linux"}}, "gone": {}}`)
	list, err := s.List(t.Context(), "")
	var ids []string
	for _, is := range list {
		ids = append(ids, is.ID)
	}
	if got := strings.Join(ids, " "); err != nil || got != "a b c" {
		t.Errorf("%v, %s", err, got)
	}
	b, err := s.Get(t.Context(), "", "b")
	if err != nil || b.Size != 5 || b.MinRAMMiB != 512 || b.MinDiskGiB != 2 || b.Properties["os_type"] != "linux" || b.Name != "b" || b.Updated.IsZero() {
		t.Errorf("%v, %+v", err, b)
	}
	write("b.raw", "another file of the same image")
	if again, err := s.Get(t.Context(), "", "b"); err != nil || again.Size != 5 {
		t.Errorf("two files: %v, %+v", err, again)
	}
	for _, id := range []string{"", "d", "notes", "../a", "b.qcow2", "..", "a\x00", strings.Repeat("x", 255)} {
		if _, err := s.Get(t.Context(), "", id); !errors.Is(err, fault.NotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, bad := range []string{"{", `{"b": {"min_rum": 1}}`, `{"b": {"min_ram": -1}}`} {
		write(image.ListFile, bad)
		if _, err := s.Get(t.Context(), "", "b"); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), image.ListFile) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "", "b"); !errors.Is(err, fault.Unavailable) {
		t.Errorf("no directory: %v", err)
	}
	for _, path := range []string{"relative", filepath.Join(dir, "none"), filepath.Join(dir, "a.img")} {
		if _, err := image.Directory(t.Context(), path); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if is, err := image.BuiltIn().Get(t.Context(), "", "cirros"); err != nil || is.Name != "cirros" {
		t.Errorf("built in: %v, %v", is, err)
	}
}
