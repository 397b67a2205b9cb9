package armature_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"unicode"
)

// maxSmall is the number of lines up to which a package is small enough for functions with one-word names.
const maxSmall = 300

// TestFunctionNames: the name of a function that is neither exported nor a method has at least two words, so that it says what the function does to what. Functions of small packages and of
// tests, and main and init, are free.
func TestFunctionNames(t *testing.T) {
	t.Parallel()
	lines, short := map[string]int{}, map[string][]string{}
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".pb.go"):
			return nil
		}
		src := readFile(t, name)
		lines[path.Dir(name)] += strings.Count(src, "\n")
		found, err := shortNames(name, src)
		short[path.Dir(name)] = append(short[path.Dir(name)], found...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, found := range short {
		for _, at := range found {
			if lines[dir] > maxSmall {
				t.Errorf("%s: the name has one word: write what the function does to what, such as checkRows for check", at)
			}
		}
	}
	if len(lines) < 50 {
		t.Errorf("only %d packages were found", len(lines))
	}
}

// shortNames returns the places of the functions in a file whose names have one word, as FILE:LINE: NAME.
func shortNames(name, src string) (out []string, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && f.Recv == nil && !strings.ContainsFunc(f.Name.Name, unicode.IsUpper) && f.Name.Name != "main" && f.Name.Name != "init" {
			out = append(out, set.Position(f.Pos()).String()+": "+f.Name.Name)
		}
	}
	return out, nil
}

// TestShortNames: only a function, and not a method, is found, and only if its name is one word in lower case.
func TestShortNames(t *testing.T) {
	t.Parallel()
	got, err := shortNames("p.go", "package p\n\nfunc check() {}\nfunc checkRows() {}\nfunc Check() {}\nfunc (t T) check() {}\nfunc main() {}\nfunc init() {}\nfunc take[K any]() {}\n")
	if want := "p.go:3:1: check p.go:9:1: take"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
