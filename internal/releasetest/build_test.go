package releasetest_test

import (
	"testing"

	"github.com/armature-go/armature/internal/releasetest"
)

// TestNext: the changes of testdata/next fit this tree, and the programs build.
func TestNext(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs: left out with -short")
	}
	t.Parallel()
	for _, pkg := range []string{"./examples/hello", "./examples/nova-mini"} {
		releasetest.Next(t, pkg)
	}
}
