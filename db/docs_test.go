package db_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: each block of Go in docs/database.md is a part of example_test.go or of examples/hello, so that
// it compiles and runs.
func TestDocs(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../docs/database.md")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	hello, err := os.ReadFile("../examples/hello/main.go")
	if err != nil {
		t.Fatal(err)
	}
	examples = append(examples, hello...)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(guide), -1)
	if len(blocks) < 5 {
		t.Errorf("%d blocks of Go, want at least 5", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(string(examples), b[1]) {
			t.Errorf("no example has this block of docs/database.md:\n%s", b[1])
		}
	}
}
