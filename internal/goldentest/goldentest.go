// Package goldentest compares a contract, such as a wire format, with a committed file, so that a test fails when the
// contract changes.
package goldentest

import (
	"os"
	"strings"
	"testing"
)

// UpdateVar is the name of the environment variable that makes [Contract] write its file if its value is not empty.
const UpdateVar = "ARMATURE_UPDATE"

// Contract fails the test if text, the contract of name, is not the content of file.
//
// broken gets the content of the file and returns the promises in it that text no longer keeps, one line for each. If there
// are any, the failure has these lines and remedy, and Contract never writes the file. remedy says what to do about a broken
// contract; it may be empty. If no promise is broken, text has only new promises, and with ARMATURE_UPDATE=1 Contract
// writes text to file.
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
