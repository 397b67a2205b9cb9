package db_test

import (
	"testing"

	"github.com/armature-go/armature/internal/guidetest"
)

// TestDocs: each block of Go and SQL in docs/database.md is a part of a test or of examples/hello, so that it compiles
// and runs.
func TestDocs(t *testing.T) {
	t.Parallel()
	guidetest.Check(t, "../docs/database.md", 10, "example_test.go", "releases_test.go", "migrate_test.go", "../examples/hello/main.go", "../examples/hello/migrations/00006_greetings.sql")
}
