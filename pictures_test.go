package armature_test

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/armature-go/armature/service/operation"
)

// TestPictures: each picture was drawn from the .dot file beside it, and a document shows it. The picture of operations has all states,
// and the picture of servers has all statuses of the API.
func TestPictures(t *testing.T) {
	t.Parallel()
	docs := readFile(t, "README.md") + readFile(t, "docs/README.md")
	texts, err := filepath.Glob("docs/pictures/*.dot")
	if err != nil || len(texts) == 0 {
		t.Fatalf("no pictures: %v", err)
	}
	for _, name := range texts {
		picture := strings.TrimSuffix(name, ".dot") + ".svg"
		first, _, _ := strings.Cut(readFile(t, picture), "\n")
		if want := fmt.Sprintf("<!-- %x -->", sha256.Sum256([]byte(readFile(t, name)))); first != want {
			t.Errorf("%s was not drawn from %s: run `make pictures`", picture, name)
		}
		if base := "pictures/" + filepath.Base(picture); !strings.Contains(docs, base+")") {
			t.Errorf("no document shows %s", picture)
		}
	}
	states := readFile(t, "docs/pictures/operation.dot")
	for _, s := range []operation.State{operation.Running, operation.Undoing, operation.Succeeded, operation.Failed, operation.TimedOut, operation.Canceled} {
		if !strings.Contains(states, string(s)) {
			t.Errorf("the picture of operations has no state %s", s)
		}
	}
	enum := regexp.MustCompile("`json:\"status\" enum:\"([A-Z_,]+)\"`").FindStringSubmatch(readFile(t, "examples/nova-mini/api/serverviews.go"))
	if enum == nil {
		t.Fatal("the statuses of servers are not found")
	}
	statuses := readFile(t, "docs/pictures/server.dot")
	for s := range strings.SplitSeq(enum[1], ",") {
		if s != "DELETED" && !strings.Contains(statuses, s) { // the picture leaves out DELETED: each status would have an arrow to it
			t.Errorf("the picture of servers has no status %s", s)
		}
	}
}
