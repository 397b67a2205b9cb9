package armature_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The code of a component should consist of the component's own logic. Plumbing is each line of code that is not a part of this logic, except
// lines that have only brackets. A line belongs to the row of plumbingRows that has the first function, type or field that the line uses. All other lines of
// a declaration in plumbingDecls belong to the declaration's row, with two exceptions: the lines of a call or a literal of the logic, such as rpc.Handle with
// a handler, and the lines of the component's own options. An import is plumbing if only plumbing uses it. maxRow is the maximum number of lines of a row.
// maxPlumbing is the maximum number of lines of all rows together.
const maxRow, maxPlumbing = 15, 60

var plumbingRows = []struct {
	row   string
	names []string // PACKAGE.NAME, or PACKAGE.* for each name of the package
}{
	{"drivers over gRPC", []string{"grpc.*", "protobuf.*", "driver.*", "component.Driver", "component.DriverWith", "component.BuiltIn", "component.DriverOptions"}},
	{"options", []string{"component.Options", "component.APIOptions", "component.AccessOptions", "config.*", "urlbus.*", "tlsfile.*"}},
	{"main", []string{"component.Main", "component.Component", "component.Service", "component.Run", "slog.*", "os.*", "rpccaps.*", "cobra.*", "prometheus.*"}},
	{"wiring", []string{"component.Process", "service.*"}},
	{"migrations", []string{"db.Embedded", "db.Migrations", "embed.*"}},
	{"quota", []string{"quota.*"}},
	{"hosts with members", []string{"membership.*", "component.NewScheduler", "component.Choose", "component.AvoidHost"}},
	{"notify", []string{"component.Notify", "rpc.Cast", "rpc.Fanout"}},
	{"lists and begin", []string{"component.Begin", "db.Tx", "operation.Begin", "operation.Store", "idempotency.*", "api.Schema", "api.NewGroup", "api.Discovery", "api.Config"}},
}

// logicNames are the names that a component's own logic uses from the packages of this module.
var logicNames = []string{
	"api.Handle", "api.HandleRoute", "api.HandleTarget", "api.Link", "api.Mux", "api.Target", "listing.*", "db.List", "db.Page", "api.None", "api.Request", "api.Route", "backupdriver.*", "db.Columns", "db.Error", "db.Exec", "fault.*", "operation.GoTo", "operation.Handle",
	"operation.Kind", "operation.OnEnd", "operation.Op", "operation.Step", "operation.Succeeded", "policy.Rule", "reqctx.*", "rpc.Any", "rpc.Call", "rpc.Define", "rpc.Handle", "rpc.Interface", "rpc.Method", "rpc.None", "rpc.Server", "rpc.Version",
	"scheduler.Config", "scheduler.Weighted", "sqlx.Tx", "driver.Driver", // driver.Driver is embedded in the component's own type of drivers
}

// plumbingDecls are functions, types and variables without logic, with their rows.
var plumbingDecls = map[string]string{
	"main": "main", "hello": "main", "newComponent": "main", "options": "options",
	"wire": "wiring", "wireAPI": "wiring", "wireConductor": "wiring", "workerWith": "wiring",
}

// TestPlumbing: the plumbing of hello, and of the component that "armature new component" writes, stays small.
func TestPlumbing(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"examples/hello/*.go", "cmd/armature/template/backup/*.go"} {
		t.Run(pattern, func(t *testing.T) {
			t.Parallel()
			checkPlumbing(t, pattern)
		})
	}
}

// checkPlumbing counts the lines of plumbing in all files of a component, except tests.
func checkPlumbing(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	rows := map[string]int{}
	var unknown []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		more, names := countPlumbing(t, readFile(t, name))
		for row, n := range more {
			rows[row] += n
		}
		unknown = append(unknown, names...)
	}
	if len(unknown) > 0 {
		t.Errorf("these names are neither plumbing nor logic in the tables of this file: %s", strings.Join(unknown, ", "))
	}
	all := 0
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		all += rows[row]
		t.Logf("%-20s %2d lines", row, rows[row])
		if rows[row] > maxRow {
			t.Errorf("row %q has %d lines of plumbing, more than %d", row, rows[row], maxRow)
		}
	}
	if t.Logf("%-20s %2d lines", "all", all); all > maxPlumbing {
		t.Errorf("%d lines of plumbing, more than %d", all, maxPlumbing)
	}
}

// TestCountPlumbing: countPlumbing counts lines as the comment on maxRow says.
func TestCountPlumbing(t *testing.T) {
	t.Parallel()
	rows, unknown := countPlumbing(t, `package main

import (
	"embed" // plumbing
	"fmt"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/service/quota" // plumbing
)

//go:embed x
var files embed.FS

// comment
type options struct {
	urlbus.Options

	Size int `+"`ini:\"size\"`"+`
}

func logic() {
	fmt.Println("a", rpc.Call, rpc.Version{}, rpc.Other)
	quota.Reserve(
		1,
	)
}

func wire() {
	fmt.Println("b")

	_ = rpc.Cast // also a line of wire
	err := quota.Check()
	if err != nil {
		return err
	}
	rpc.Call(func() {
		fmt.Println("logic")
	})
}

func main() {}
`)
	want := map[string]int{
		"options":    2 + 1, // the struct without its own option, and the import of urlbus
		"migrations": 2,     // the variable, and the import of embed
		"main":       1,
		"wiring":     2,         // without the lines of notify and of the logic
		"quota":      1 + 3 + 1, // the line of the call, the call in wire with its error, and the import
		"notify":     1,
	}
	if !maps.Equal(rows, want) || !slices.Equal(unknown, []string{"rpc.Other"}) {
		t.Errorf("%v, unknown %q; want %v", rows, unknown, want)
	}
}

// isReturn has the lines that return the error of the line before them.
var isReturn = map[string]bool{"if err != nil {": true, "return err": true, "return nil, err": true}

// countPlumbing counts the lines of plumbing by row. The result unknown has the names PACKAGE.NAME of this module's packages that no table has.
func countPlumbing(t *testing.T, source string) (rows map[string]int, unknown []string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "main.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	line := func(p token.Pos) int { return files.Position(p).Line }
	code, lines := codeLines(source), strings.Split(source, "\n")
	imports := map[string]*ast.ImportSpec{}
	for _, i := range file.Imports {
		p, _ := strconv.Unquote(i.Path.Value) // the parser has read it
		imports[path.Base(p)] = i
	}
	rowOf := map[int]string{}
	logic := map[int]bool{}    // lines of calls of the logic
	uses := map[string][]int{} // the lines that use an import
	ast.Inspect(file, func(n ast.Node) bool {
		if matches(logicNames, nameOf(n)) {
			for at := line(n.Pos()); at <= line(n.End()); at++ {
				logic[at] = true
			}
		}
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := sel.X.(*ast.Ident)
		if !ok || imports[pkg.Name] == nil {
			return true
		}
		at, name := line(sel.Pos()), pkg.Name+"."+sel.Sel.Name
		uses[pkg.Name] = append(uses[pkg.Name], at)
		switch row := rowOfName(name); {
		case slices.Contains(logicNames, name): // even if the table has all other names of the package
		case row != "" && rowOf[at] == "":
			rowOf[at] = row
		case row == "" && !matches(logicNames, name) && strings.Contains(imports[pkg.Name].Path.Value, module):
			unknown = append(unknown, name)
		}
		return true
	})
	for _, d := range file.Decls {
		row, ok := plumbingDecls[declName(d)]
		if !ok {
			continue
		}
		last := row
		for at := line(d.Pos()); at <= line(d.End()); at++ {
			switch {
			case !code[at] || rowOf[at] == "" && logic[at]:
				continue
			case rowOf[at] == "" && isReturn[strings.TrimSpace(lines[at-1])]: // the statement returns the error of the line before
				rowOf[at] = last
			case rowOf[at] == "":
				rowOf[at] = row
			}
			last = rowOf[at]
		}
	}
	for name, i := range imports {
		plumbing := ""
		for _, at := range uses[name] {
			if plumbing = rowOf[at]; plumbing == "" {
				break
			}
		}
		if plumbing != "" {
			rowOf[line(i.Pos())] = plumbing
		}
	}
	rows = map[string]int{}
	for _, row := range rowOf {
		rows[row]++
	}
	slices.Sort(unknown)
	return rows, slices.Compact(unknown)
}

// nameOf returns the name PACKAGE.NAME of a call or of a composite literal, or "". For a field of the component's own options it returns a name of
// the package reqctx: every name of reqctx counts as logic, and such an option is logic.
func nameOf(n ast.Node) string {
	var of ast.Expr
	switch n := n.(type) {
	case *ast.CallExpr:
		of = n.Fun
	case *ast.CompositeLit:
		of = n.Type
	case *ast.Field:
		if n.Tag != nil && strings.Contains(n.Tag.Value, "ini:") {
			return "reqctx.option"
		}
	}
	if i, ok := of.(*ast.IndexExpr); ok { // a generic function or type with a type argument
		of = i.X
	}
	sel, ok := of.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	pkg, ok := sel.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return pkg.Name + "." + sel.Sel.Name
}

// codeLines reports for each line whether it is code. A comment and a line of brackets are not code. The first line has the number 1.
func codeLines(source string) map[int]bool {
	out := map[int]bool{}
	for i, text := range strings.Split(source, "\n") {
		text = strings.TrimSpace(text)
		out[i+1] = strings.Trim(text, "(){}[],") != "" && !strings.HasPrefix(text, "//")
	}
	return out
}

// rowOfName returns the row of a name, or "".
func rowOfName(name string) string {
	for _, r := range plumbingRows {
		if matches(r.names, name) {
			return r.row
		}
	}
	return ""
}

// matches reports whether the list names contains name, or PACKAGE.* for the package of name.
func matches(names []string, name string) bool {
	pkg, _, _ := strings.Cut(name, ".")
	return slices.Contains(names, name) || slices.Contains(names, pkg+".*")
}

// declName returns the name of a declaration, or the first name in a group of declarations.
func declName(d ast.Decl) string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			return d.Name.Name
		}
	case *ast.GenDecl:
		if len(d.Specs) == 0 {
			break
		}
		switch s := d.Specs[0].(type) {
		case *ast.TypeSpec:
			return s.Name.Name
		case *ast.ValueSpec:
			return s.Names[0].Name
		}
	}
	return ""
}
