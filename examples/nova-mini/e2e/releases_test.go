package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The programs of the releases in the upgrade test. The release "previous" is the commit that testdata/last-release of the tree names, "this"
// is the tree, and "next" is the tree with the overlay of testdata/next, which has what a next release could add.
var (
	thisRelease     = sync.OnceValues(func() (string, error) { return build() })
	nextRelease     = sync.OnceValues(buildNext)
	previousRelease = sync.OnceValues(buildPrevious)
)

const root = "../../.."

// buildPrevious builds nova-mini of the pinned commit.
func buildPrevious() (string, error) {
	raw, err := os.ReadFile(filepath.Join(root, "testdata", "last-release"))
	if err != nil {
		return "", err
	}
	commit, _, _ := strings.Cut(string(raw), "\n")
	dir := filepath.Join(built, "previous")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	if err := exec.CommandContext(context.Background(), "git", "-C", root, "cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		return "", fmt.Errorf("commit %s of testdata/last-release is not in this history: fetch all of it, for example with git fetch --unshallow", commit)
	}
	tar := filepath.Join(built, "previous.tar")
	if out, err := exec.CommandContext(context.Background(), "git", "-C", root, "archive", "-o", tar, commit).CombinedOutput(); err != nil {
		return "", fmt.Errorf("git archive: %w: %s", err, out)
	}
	if out, err := exec.CommandContext(context.Background(), "tar", "-xf", tar, "-C", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("tar: %w: %s", err, out)
	}
	program := filepath.Join(built, "nova-mini-previous")
	cmd := exec.CommandContext(context.Background(), "go", "build", "-o", program, "./examples/nova-mini")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build of %s: %w: %s", commit, err, out)
	}
	return program, nil
}

// buildNext builds nova-mini with the overlay.
func buildNext() (string, error) {
	overlay, err := nextOverlay(filepath.Join(built, "next"))
	if err != nil {
		return "", err
	}
	program := filepath.Join(built, "nova-mini-next")
	return program, compile(program, "..", "-overlay", overlay)
}

// nextOverlay writes the files of the overlay to dir, and returns the name of the file for go build -overlay.
//
// In testdata/next, a file in the folder new is a new file of the tree. NEXT at the beginning of its name stands for the number after the
// highest one in its folder. Each block of edits.txt replaces a text that its file has exactly once:
//
//	-- path/of/the/file.go --
//	<<<
//	the text
//	===
//	the text that replaces it
//	>>>
func nextOverlay(dir string) (string, error) {
	top, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{} // the overlay, by the file's path in the tree
	write := func(name, text string) error {
		path := filepath.Join(dir, strconv.Itoa(len(replace))+"-"+filepath.Base(name))
		if known, ok := replace[filepath.Join(top, name)]; ok {
			path = known
		}
		replace[filepath.Join(top, name)] = path
		return os.WriteFile(path, []byte(text), 0o600)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	added := os.DirFS("testdata/next/new")
	err = fs.WalkDir(added, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(added, path)
		if err != nil {
			return err
		}
		name, err := numbered(top, path)
		if err != nil {
			return err
		}
		return write(name, string(text))
	})
	if err != nil {
		return "", err
	}
	edits, err := os.ReadFile("testdata/next/edits.txt")
	if err != nil {
		return "", err
	}
	for _, part := range strings.Split("\n"+string(edits), "\n-- ")[1:] {
		name, blocks, ok := strings.Cut(part, " --\n")
		if !ok {
			return "", fmt.Errorf("edits.txt: %q does not begin with a file's name", part)
		}
		raw, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			return "", err
		}
		text, err := edit(string(raw), blocks)
		if err != nil {
			return "", fmt.Errorf("edits.txt: %s: %w", name, err)
		}
		if err := write(name, text); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}

// numbered replaces NEXT in a path by the number after the highest one in the path's folder, with as many digits.
func numbered(top, path string) (string, error) {
	rest, ok := strings.CutPrefix(filepath.Base(path), "NEXT_")
	if !ok {
		return path, nil
	}
	files, err := os.ReadDir(filepath.Join(top, filepath.Dir(path)))
	if err != nil {
		return "", err
	}
	last := files[len(files)-1].Name()
	digits, _, _ := strings.Cut(last, "_")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return "", fmt.Errorf("%s: %w", last, err)
	}
	return filepath.Join(filepath.Dir(path), fmt.Sprintf("%0*d_%s", len(digits), n+1, rest)), nil
}

// edit applies blocks to a text.
func edit(text, blocks string) (string, error) {
	for _, block := range strings.Split(blocks, "<<<\n")[1:] {
		old, after, ok := strings.Cut(block, "===\n")
		replacement, _, end := strings.Cut(after, ">>>")
		if !ok || !end {
			return "", fmt.Errorf("a block is not complete: %q", block)
		}
		if n := strings.Count(text, old); n != 1 {
			return "", fmt.Errorf("the file has this text %d times, want once:\n%s", n, old)
		}
		text = strings.Replace(text, old, replacement, 1)
	}
	return text, nil
}

func mustBuild(t testing.TB, build func() (string, error)) string {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return program
}
