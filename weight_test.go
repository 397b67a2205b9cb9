package armature_test

import (
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestWeight: docs/adopting.md has the right number of third-party modules that a program links with each set of packages.
func TestWeight(t *testing.T) {
	t.Parallel()
	rows := regexp.MustCompile("(?m)^\\| ((?:`[a-z/]+`(?:, )?)+) \\| (\\d+) \\|$").FindAllStringSubmatch(readFile(t, "docs/adopting.md"), -1)
	if len(rows) < 5 {
		t.Fatalf("the table of modules is not found: %q", rows)
	}
	for _, row := range rows {
		args := []string{"list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}"}
		for name := range strings.SplitSeq(row[1], ", ") {
			args = append(args, "./"+strings.Trim(name, "`"))
		}
		out, err := exec.CommandContext(t.Context(), "go", args...).Output()
		if err != nil {
			t.Fatalf("go %q: %v", args, err)
		}
		modules := slices.Compact(slices.Sorted(slices.Values(strings.Fields(string(out)))))
		modules = slices.DeleteFunc(modules, func(m string) bool { return m == module })
		if strconv.Itoa(len(modules)) != row[2] {
			t.Errorf("%s: the document says %s modules, but there are %d: %q", row[1], row[2], len(modules), modules)
		}
	}
}

// TestNoDatabase: packages that need no database link no database driver.
func TestNoDatabase(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./scheduler/placement", "./driver", "./rpc/...", "./service/operation").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{mysql, "modernc.org/sqlite"} {
		if slices.Contains(strings.Fields(string(out)), p) {
			t.Errorf("%s is linked", p)
		}
	}
}
