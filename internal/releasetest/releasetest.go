// Package releasetest builds programs of the last release and of a next one, for tests in which processes of two releases run beside each
// other.
package releasetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Last builds the program of a package, such as ./examples/NAME, of the last release: the commit in testdata/last-release. It returns the
// program's path, which is in a directory of the test. Without a repository, such as in an archive of the sources, it skips the test.
func Last(t testing.TB, pkg string) string {
	t.Helper()
	top, dir := root(t), t.TempDir()
	raw, err := os.ReadFile(filepath.Join(top, "testdata", "last-release"))
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t, top, "git", "rev-parse", "--git-dir"); err != nil {
		t.Skipf("the tree has no history, so the last release cannot be built: %v", err)
	}
	commit, _, _ := strings.Cut(string(raw), "\n")
	if err := run(t, top, "git", "cat-file", "-e", commit+"^{commit}"); err != nil {
		t.Fatalf("the commit %s of testdata/last-release is not in this history: fetch all of it, for example with git fetch --unshallow", commit)
	}
	tar, program := filepath.Join(dir, "last.tar"), filepath.Join(dir, filepath.Base(pkg)+"-last")
	for _, step := range []func() error{
		func() error { return run(t, top, "git", "archive", "-o", tar, commit) },
		func() error { return run(t, dir, "tar", "-xf", tar) },
		func() error { return run(t, dir, "go", "build", "-o", program, pkg) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return program
}

// This builds the program of a package of this tree.
func This(t testing.TB, pkg string) string {
	t.Helper()
	return build(t, pkg, "this")
}

// Next builds the program of a package of this tree with the changes in testdata/next. These changes are examples of what a next release
// could add: a column of each table, a step of each operation, a field of each stored input, and so on.
func Next(t testing.TB, pkg string) string {
	t.Helper()
	path, err := overlay(root(t), t.TempDir())
	if err != nil {
		t.Fatalf("testdata/next: %v", err)
	}
	return build(t, pkg, "next", "-overlay", path)
}

func build(t testing.TB, pkg, release string, flags ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(pkg)+"-"+release)
	if err := run(t, root(t), "go", append(append([]string{"build", "-o", program}, flags...), pkg)...); err != nil {
		t.Fatal(err)
	}
	return program
}

// run runs a command. Its error has the command's output.
func run(t testing.TB, dir, name string, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// root returns the root of the module.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		} else if up := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && up != dir {
			dir = up
			continue
		}
		t.Fatalf("no go.mod above the test's directory: %v", err)
	}
}

// overlay writes the files of the overlay to dir, and returns the name of the file for go build -overlay.
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
func overlay(top, dir string) (string, error) {
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
	added := os.DirFS(filepath.Join(top, "testdata", "next", "new"))
	err := fs.WalkDir(added, ".", func(path string, d fs.DirEntry, err error) error {
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
	edits, err := os.ReadFile(filepath.Join(top, "testdata", "next", "edits.txt"))
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
