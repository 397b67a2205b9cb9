package armature_test

import (
	"bytes"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// firstBlock returns the first block of code of a language in a Markdown text.
func firstBlock(t *testing.T, text, language string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "```"+language+"\n")
	out, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatalf("no block of %s", language)
	}
	return out
}

// goTool runs a command of the go tool on a file with the given source, in the module, and
// returns the output of the command.
func goTool(t *testing.T, command, source string) string {
	t.Helper()
	readTree(t) // so that go test does not use a cached result after a change of any package
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", command, file)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("go %s: %v\n%s", command, err, &stderr)
	}
	return stdout.String()
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReadme runs the program in README.md and checks that its output is the one that README.md shows.
func TestReadme(t *testing.T) {
	t.Parallel()
	text := readFile(t, "README.md")
	program := firstBlock(t, text, "go")
	if n := strings.Count(program, "\n"); n >= 40 {
		t.Errorf("the program has %d lines, want fewer than 40, so that readers read it", n)
	}
	if diff := cmp.Diff(firstBlock(t, text, "text"), goTool(t, "run", program)); diff != "" {
		t.Errorf("shown (-), printed (+):\n%s", diff)
	}
}

// TestIndex: docs/README.md links to each document in its directory. The first paragraph of each document says what the document is for.
func TestIndex(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("docs/*.md")
	if err != nil || len(names) < 10 {
		t.Fatalf("%q, %v", names, err)
	}
	index := readFile(t, "docs/README.md")
	for _, name := range names {
		if base := filepath.Base(name); base != "README.md" && !strings.Contains(index, "]("+base+")") {
			t.Errorf("docs/README.md does not link to %s", base)
		}
		_, rest, _ := strings.Cut(readFile(t, name), "\n\n") // the title
		if first, _, _ := strings.Cut(rest, "\n\n"); !strings.HasPrefix(first, "This ") {
			t.Errorf("%s does not begin with what it is for, such as \"This page is for operators\": %s", name, first)
		}
	}
}

// TestSupport: README.md and CHANGELOG.md have the same table of supported versions.
func TestSupport(t *testing.T) {
	t.Parallel()
	const header = "| works with | versions |\n"
	table := func(name string) string {
		_, rest, found := strings.Cut(readFile(t, name), header)
		rows, _, closed := strings.Cut(rest, "\n\n")
		if !found || !closed || strings.Count(rows, "\n") < 6 {
			t.Errorf("%s has no table of versions, or one that is too short", name)
		}
		return rows
	}
	if diff := cmp.Diff(table("CHANGELOG.md"), table("README.md")); diff != "" {
		t.Errorf("CHANGELOG.md (-), README.md (+):\n%s", diff)
	}
}

// TestTour compiles the snippets of doc.go together as one package.
func TestTour(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("package tour\n\nimport (\n")
	for _, i := range []string{
		"context", "encoding/json", "errors", "fmt", "log/slog", "os", "time",
		"github.com/jmoiron/sqlx",
		module + "/component", module + "/db", module + "/driver", module + "/fault", module + "/reqctx", module + "/rpc", module + "/rpc/amqpbus", module + "/rpc/bus",
		module + "/rpc/membus", module + "/scheduler", module + "/scheduler/placement", module + "/service", module + "/service/api", module + "/service/auth", module + "/service/config",
		module + "/service/membership", module + "/service/operation", module + "/service/policy", module + "/service/quota",
	} {
		b.WriteString("\t\"" + i + "\"\n")
	}
	b.WriteString(")\n")
	for _, block := range new(comment.Parser).Parse(f.Doc.Text()).Content {
		if code, ok := block.(*comment.Code); ok {
			b.WriteString("\n" + code.Text)
		}
	}
	goTool(t, "vet", b.String())
}

var (
	links  = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	blocks = regexp.MustCompile("(?s)```.*?```") // blocks of code, which have no links
)

// TestLinks: each link of a Markdown file to another file leads to an existing file. Anchors are not checked.
func TestLinks(t *testing.T) {
	t.Parallel()
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".md" {
			return err
		}
		files++
		for _, m := range links.FindAllStringSubmatch(blocks.ReplaceAllString(readFile(t, name), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: dead link: %v", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Error("no file was read")
	}
}
