package armature_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// TestWaits: no test waits by a bare "<-time.After(d)", except in a bubble of testing/synctest, where this takes no real time. Use
// package internal/waittest instead: it polls a condition, or spends real time for a reason that the test names.
func TestWaits(t *testing.T) {
	t.Parallel()
	found := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".git") || path == "bin" || path == "internal/waittest"):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go") && (!strings.HasSuffix(path, ".go") || !strings.HasSuffix(filepath.Dir(path), "test")):
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		for _, pos := range bareWaitsIn(f) {
			found[dir] = append(found[dir], fset.Position(pos).String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, places := range found {
		t.Errorf("%s has %d bare waits: use internal/waittest:\n  %s", dir, len(places), strings.Join(places, "\n  "))
	}
}

// bareWaitsIn returns the statements "<-time.After(d)" in those functions of a file that have no bubble.
func bareWaitsIn(f *ast.File) (found []token.Pos) {
	for _, decl := range f.Decls {
		var waits []token.Pos
		bubble := false
		ast.Inspect(decl, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				bubble = bubble || ok && (x.Name == "synctest" || x.Name == "dbtest" && n.Sel.Name == "EachInBubble")
			case *ast.CommClause: // a case of a select is not a bare wait, but its body may have one
				for _, s := range n.Body {
					ast.Inspect(s, func(n ast.Node) bool { waits = appendBareWait(waits, n); return true })
				}
				return false
			default:
				waits = appendBareWait(waits, n)
			}
			return true
		})
		if !bubble {
			found = append(found, waits...)
		}
	}
	return found
}

// appendBareWait appends the place of the node if it is the statement "<-time.After(d)".
func appendBareWait(waits []token.Pos, n ast.Node) []token.Pos {
	stmt, ok := n.(*ast.ExprStmt)
	if !ok {
		return waits
	}
	recv, ok := stmt.X.(*ast.UnaryExpr)
	if !ok || recv.Op != token.ARROW {
		return waits
	}
	call, ok := recv.X.(*ast.CallExpr)
	if !ok {
		return waits
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return waits
	}
	if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && sel.Sel.Name == "After" {
		waits = append(waits, stmt.Pos())
	}
	return waits
}

// TestWaitsFound: the search finds bare waits, and no others.
func TestWaitsFound(t *testing.T) {
	t.Parallel()
	const file = `package x

func bare() {
	<-time.After(1)
	for ok() {
		select {
		case <-time.After(1):
			<-time.After(2)
		}
	}
	for ; ; <-time.After(1) {
	}
	synced(func() { <-done })
}

func bubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { <-time.After(1) })
}
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "x.go", file, 0)
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	for _, pos := range bareWaitsIn(f) {
		lines = append(lines, fset.Position(pos).Line)
	}
	if len(lines) != 3 || lines[0] != 4 || lines[1] != 8 || lines[2] != 11 {
		t.Errorf("bare waits at lines %v, want 4, 8 and 11", lines)
	}
}
