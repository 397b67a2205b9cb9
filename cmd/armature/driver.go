package main

import (
	"cmp"
	"context"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/drivers"
)

// newDriver is a driver to write, for nova-mini's compute service.
type newDriver struct {
	project

	lang string // a key of languages
}

// languages maps each language to the directory of its example driver in package drivers, and to the name of this driver.
var languages = map[string]struct{ dir, name string }{
	"go":     {"acme", "acme"},
	"python": {"python", "apex"},
}

// importPath is the path of the example driver in Go. armature writes a new driver from a copy of it.
const importPath = library + "/examples/drivers/acme"

// check returns an error for a name, a language or a path that cannot be used.
func (d *newDriver) check() (err error) {
	var reason string
	switch d.lang {
	case "go":
		if reason, err = goDriverReason(d.name); err == nil {
			err = d.checkModule()
		}
	case "python":
		reason = pythonReason(d.name)
		if d.module != "" {
			err = usageError{fmt.Errorf("--module %s: a driver in Python has no Go module: leave --module out", d.module)}
		}
	default:
		return usageError{fmt.Errorf("--lang %q: want --lang go or --lang python", d.lang)}
	}
	if d.name == "fake" {
		reason = "it is a driver that nova-mini has"
	}
	if err = cmp.Or(d.checkName("acme", reason), err); err != nil {
		return err
	}
	return d.checkPlaces()
}

// goDriverReason returns why a driver in Go cannot have the name, or "": the files that import the driver must not use its name for
// something else.
func goDriverReason(name string) (reason string, err error) {
	if reason = goReason(name); reason != "" || name == languages["go"].name {
		return reason, nil
	}
	err = fs.WalkDir(drivers.Files, languages["go"].dir, func(file string, _ fs.DirEntry, err error) error {
		if err != nil || path.Ext(file) != ".go" {
			return err
		}
		raw, err := drivers.Files.ReadFile(file)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, raw, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		driver := func(i *ast.ImportSpec) bool { return i.Path.Value == strconv.Quote(importPath) }
		if slices.ContainsFunc(f.Imports, driver) && usesName(f, name) {
			reason = "the driver's code uses it for something else"
		}
		return nil
	})
	return reason, err
}

// usesName reports whether a file uses a name for a package, a variable, a type or a function.
func usesName(f *ast.File, name string) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr: // the name after the dot does not count
			if x, ok := n.X.(*ast.Ident); ok {
				found = found || x.Name == name
				return false
			}
		case *ast.Ident:
			found = found || n.Name == name
		}
		return true
	})
	return found
}

// write writes the driver and, for Go, downloads the modules that it needs.
func (d *newDriver) write(ctx context.Context) error {
	if err := d.check(); err != nil {
		return err
	}
	content, err := d.render()
	if err != nil {
		return err
	}
	if err := d.create(ctx, content, d.lang == "go"); err != nil {
		return err
	}
	return d.printNext("driver", "make test")
}

// render returns the files of the driver, by name.
func (d *newDriver) render() (map[string][]byte, error) {
	from, content := languages[d.lang], map[string][]byte{}
	err := fs.WalkDir(drivers.Files, from.dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := drivers.Files.ReadFile(file)
		if err != nil {
			return err
		}
		parts := strings.Split(string(raw), importPath) // the new name does not change the path of the module
		for i := range parts {
			parts[i] = strings.ReplaceAll(parts[i], from.name, d.name)
		}
		text := []byte(strings.Join(parts, d.module))
		name := strings.ReplaceAll(strings.TrimPrefix(file, from.dir+"/"), from.name, d.name)
		if path.Ext(name) == ".go" { // the length of the new name may change gofmt's columns
			if text, err = format.Source(text); err != nil {
				return fmt.Errorf("the name %q makes %s wrong: %w", d.name, name, err)
			}
		}
		content[name] = text
		return nil
	})
	if err != nil {
		return nil, err
	}
	if d.lang == "python" {
		content["Makefile"], err = d.pythonMakefile(content["Makefile"])
		return content, err
	}
	mod, err := d.goMod()
	content["go.mod"] = append(mod, "\ntool "+library+"/cmd/armature\n"...) // so that go.sum has the modules of the command
	return content, err
}
