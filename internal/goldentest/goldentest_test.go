package goldentest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/internal/goldentest"
)

// recorder is a testing.TB that keeps the failures.
type recorder struct {
	testing.TB

	text string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Errorf(f string, a ...any) { r.text += fmt.Sprintf(f, a...) }
func (r *recorder) Fatalf(f string, a ...any) { r.Errorf(f, a...); panic(r) }

// contract runs goldentest.Contract with a promise for each line and returns the text of its failure.
func contract(t *testing.T, file, text string) (said string) {
	t.Helper()
	r := &recorder{TB: t}
	defer func() {
		if p := recover(); p != nil && p != any(r) { // Fatalf panics with r
			panic(p)
		}
		said = r.text
	}()
	goldentest.Contract(r, "x", file, text, ", add a version", func(old string) (lost []string, err error) {
		if old == "unreadable" {
			return nil, errors.New("no lines")
		}
		for line := range strings.Lines(old) {
			if !strings.Contains(text, line) {
				lost = append(lost, strings.TrimSpace(line))
			}
		}
		return lost, nil
	})
	return ""
}

func TestContract(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.txt")
	steps := []struct {
		name, update, old, text string
		want, content           string
	}{
		{name: "no file", text: "a\n", want: "ARMATURE_UPDATE=1 writes the file"},
		{name: "the first file", update: "1", text: "a\n", content: "a\n"},
		{name: "the same", text: "a\n", content: "a\n"},
		{name: "grown", text: "a\nb\n", want: "has grown: run with ARMATURE_UPDATE=1", content: "a\n"},
		{name: "grown, and written", update: "1", text: "a\nb\n", content: "a\nb\n"},
		{name: "broken", text: "b\nc\n", want: "the contract of x is broken, add a version:\na", content: "a\nb\n"},
		{name: "broken is not written", update: "1", text: "b\nc\n", want: "is broken", content: "a\nb\n"},
		{name: "unreadable", update: "1", old: "unreadable", text: "b\n", want: "read the contract of x from " + file + ": no lines", content: "unreadable"},
	}
	for _, step := range steps {
		t.Setenv(goldentest.UpdateVar, step.update)
		if step.old != "" {
			if err := os.WriteFile(file, []byte(step.old), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got := contract(t, file, step.text)
		if !strings.Contains(got, step.want) || step.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
		if content, _ := os.ReadFile(file); string(content) != step.content {
			t.Errorf("%s: the file is %q, want %q", step.name, content, step.content)
		}
	}
}

// TestFile: a text that differs from its file fails the test, and ARMATURE_UPDATE=1 writes the file.
func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.txt")
	for _, step := range []struct{ update, text, want string }{
		{text: "a\n", want: "ARMATURE_UPDATE=1 writes the file"}, // no file
		{update: "1", text: "a\n"},
		{text: "a\n"},
		{text: "a", want: "x (-" + file},
		{update: "1", text: "b"},
		{text: "b"},
	} {
		t.Setenv(goldentest.UpdateVar, step.update)
		r := &recorder{TB: t}
		func() {
			defer func() {
				if p := recover(); p != nil && p != any(r) { // Fatalf panics with r
					panic(p)
				}
			}()
			goldentest.File(r, "x", file, step.text)
		}()
		if !strings.Contains(r.text, step.want) || (r.text == "") != (step.want == "") {
			t.Errorf("%+v: %q", step, r.text)
		}
	}
}
