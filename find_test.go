package armature_test

import (
	"cmp"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// findRow matches a row of the table "Where to find what" in docs/architecture.md: behavior, search word, file.
var findRow = regexp.MustCompile("(?m)^\\| ([^|]+) \\| `([^`]+)` \\| \\[`([^`]+)`\\]\\(\\.\\./([^)]+)\\) \\|$")

// TestFind: each search word in docs/architecture.md leads to the file in the same row. A reader searches the code for the
// word, in upper or lower case, and opens the three files with the most matching lines. So the file of the row must be one of the three.
func TestFind(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(raw), "\n## Where to find what\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := findRow.FindAllStringSubmatch(section, -1)
	if want := strings.Count(section, "\n|") - 2; len(rows) < 10 || len(rows) != want {
		t.Errorf("the table has %d rows of the right form, want all %d, and at least 10", len(rows), want)
	}
	sources := readSources(t)
	for _, row := range rows {
		behavior, word, name, link := row[1], row[2], row[3], row[4]
		if name != link {
			t.Errorf("%s: the text names %s, the link %s", behavior, name, link)
		}
		if first := filesWith(sources, word); !slices.Contains(first, name) {
			t.Errorf("%s: %q leads to %v, not to %s: choose another word, or correct the file", behavior, word, first, name)
		}
	}
	if first := filesWith(sources, "keystone"); len(first) != 3 || slices.Contains(first, "rpc/server.go") {
		t.Errorf("keystone leads to %v: this test cannot fail", first)
	}
}

// readSources returns the lines of Go files, in lower case, by the path of the file. It skips tests, generated files and
// packages for tests.
func readSources(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		name = filepath.ToSlash(name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || strings.HasSuffix(d.Name(), "test")):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".pb.go"):
			return nil
		}
		raw, err := os.ReadFile(name)
		out[name] = strings.Split(strings.ToLower(string(raw)), "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// filesWith returns the three files, or fewer, that have the most lines with a word. Files with the same number of such lines are
// ordered by path.
func filesWith(sources map[string][]string, word string) []string {
	hits := map[string]int{}
	for name, lines := range sources {
		for _, line := range lines {
			if strings.Contains(line, strings.ToLower(word)) {
				hits[name]++
			}
		}
	}
	files := slices.SortedFunc(maps.Keys(hits), func(a, b string) int { return cmp.Or(hits[b]-hits[a], strings.Compare(a, b)) })
	return files[:min(3, len(files))]
}
