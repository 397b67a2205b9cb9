// Package goldentest compares a contract, such as a wire format, or an output with a committed file, so that a test fails when the
// contract or the output changes.
package goldentest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// UpdateVar is the name of the environment variable that makes [Contract] and [File] write their file if its value is not empty.
const UpdateVar = "ARMATURE_UPDATE"

// LastReleaseVar is the name of the environment variable that may have the directory of the last release's tree. If its value is not empty,
// [Contract] also fails if the contract no longer keeps a promise of the file in that tree.
const LastReleaseVar = "ARMATURE_LAST_RELEASE"

// Contract fails the test if a contract is not the content of a file. The parameter text is the present contract, and name is the name of
// the contract in failures.
//
// The function broken gets the content of the file and returns the promises in it that text no longer keeps, one line for each. If a
// promise is broken, the failure has these lines and the text remedy, and Contract never writes the file. The parameter remedy says
// what to do about a broken contract; it may be empty. If no promise is broken, but text differs from the file, text only
// adds promises. Then Contract writes text to the file with ARMATURE_UPDATE=1, and otherwise fails the test.
func Contract(t testing.TB, name, file, text, remedy string, broken func(old string) ([]string, error)) {
	t.Helper()
	update := os.Getenv(UpdateVar) != ""
	if old, ok := lastRelease(t, file); ok {
		if lost, err := broken(old); err != nil || len(lost) > 0 {
			t.Errorf("the contract of %s in the last release is broken%s: %v\n%s", name, remedy, err, strings.Join(lost, "\n"))
		}
	}
	raw, err := os.ReadFile(file)
	switch {
	case err == nil:
		lost, err := broken(string(raw))
		if err != nil {
			t.Fatalf("read the contract of %s from %s: %v", name, file, err)
		}
		if len(lost) > 0 {
			t.Fatalf("the contract of %s is broken%s:\n%s", name, remedy, strings.Join(lost, "\n"))
		}
	case !update || !os.IsNotExist(err):
		t.Fatalf("read the contract of %s: %v; %s=1 writes the file", name, err, UpdateVar)
	}
	switch {
	case text == string(raw):
	case update:
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the contract of %s has grown: run with %s=1 to write it to %s. It is now:\n%s", name, UpdateVar, file, text)
	}
}

// File fails the test if text is not the content of a file, byte by byte. The parameter name is the name of the text in failures. With
// ARMATURE_UPDATE=1, File writes the file instead.
func File(t testing.TB, name, file, text string) {
	t.Helper()
	if os.Getenv(UpdateVar) != "" {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("read %s: %v; %s=1 writes the file", name, err, UpdateVar)
	}
	if diff := cmp.Diff(string(raw), text); diff != "" {
		t.Errorf("%s (-%s +now); %s=1 writes the file:\n%s", name, file, UpdateVar, diff)
	}
}

// lastRelease returns the content that a file of the test's package has in the last release. The result ok is false if LastReleaseVar is not set, or if the
// release has no such file.
func lastRelease(t testing.TB, file string) (text string, ok bool) {
	t.Helper()
	tree := os.Getenv(LastReleaseVar)
	if tree == "" || filepath.IsAbs(file) {
		return "", false
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	top := dir
	for {
		if _, err := os.Stat(filepath.Join(top, "go.mod")); err == nil {
			break
		}
		if top == filepath.Dir(top) {
			t.Fatalf("%s is in no module", dir)
		}
		top = filepath.Dir(top)
	}
	in, err := filepath.Rel(top, dir)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(tree, in, file))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(raw), true
}
