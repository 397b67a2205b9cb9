// Package goldentest compares what a program promises to others with the file that was committed when it was
// promised.
package goldentest

import (
	"os"
	"strings"
	"testing"
)

// UpdateVar is the environment variable that makes [Contract] write its file.
const UpdateVar = "ARMATURE_UPDATE"

// Contract fails the test if text is not the content of file. broken returns the promises of the file's
// content that text no longer keeps, a line each. If there are such, Contract fails with them and with remedy,
// which says what a broken promise needs, and never writes the file. Otherwise text has grown: with
// ARMATURE_UPDATE=1 Contract writes it to file. name says whose contract it is.
func Contract(t testing.TB, name, file, text, remedy string, broken func(old string) ([]string, error)) {
	t.Helper()
	update := os.Getenv(UpdateVar) != ""
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
