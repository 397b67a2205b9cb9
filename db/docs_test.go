package db_test

import (
	"testing"

	"github.com/armature-go/armature/internal/guidetest"
)

// TestDocs: each block of Go in docs/database.md is a part of example_test.go or of examples/hello, so that
// it compiles and runs.
func TestDocs(t *testing.T) {
	t.Parallel()
	guidetest.Check(t, "../docs/database.md", 5, "example_test.go", "../examples/hello/main.go")
}
