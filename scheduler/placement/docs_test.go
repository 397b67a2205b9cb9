package placement_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/internal/guidetest"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestDocs: the tables of docs/scheduling.md list exactly the filters and the weighers,
// in order.
func TestDocs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/scheduling.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	_, filters, _ := strings.Cut(string(text), "\n## Filters\n")
	filters, _, _ = strings.Cut(filters, "\n#")
	_, weighers, _ := strings.Cut(string(text), "\n## Weighers\n")
	weighers, _, _ = strings.Cut(weighers, "\n#")
	for _, line := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllStringSubmatch(filters+weighers, -1) {
		for name := range strings.SplitSeq(line[1], ",") {
			got = append(got, strings.Trim(name, " `"))
		}
	}
	var want []string
	for _, f := range placement.Filters[*request, *provider](placement.Options{}) {
		want = append(want, f.Name())
	}
	for _, w := range placement.Weighers[*request, *provider](placement.Options{}) {
		want = append(want, w.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" || !slices.Contains(got, "soft_anti_affinity") {
		t.Errorf("docs/scheduling.md (-package +document):\n%s", diff)
	}
}

// TestGuide: each block of Go in docs/scheduling.md is part of an example, so that it compiles and runs.
func TestGuide(t *testing.T) {
	t.Parallel()
	guidetest.Check(t, "../../docs/scheduling.md", 6, "example_test.go", "../example_test.go", "../../component/placement_test.go")
}
