package main

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// files has a component with the name "backup". The component is a package of this module, so that its own tests also run here.
//
//go:embed template/backup
var files embed.FS

const (
	library  = "github.com/armature-go/armature"
	template = "template/backup"
	goMod    = "go.mod.tmpl"
)

// newComponent is a component to write.
type newComponent struct{ project }

// reserved are names that cannot be used, with the reasons: their plurals are words of SQL, or they are flags of the commands.
var reserved = map[string]string{
	"a": "its plural is a word of SQL", "cros": "its plural is a word of SQL", "exist": "its plural is a word of SQL", "i": "its plural is a word of SQL",
	"reference": "its plural is a word of SQL",
	"database":  "its plural is a word of SQL", "group": "its plural is a word of SQL", "key": "its plural is a word of SQL", "line": "its plural is a word of SQL",
	"row": "its plural is a word of SQL", "schema": "its plural is a word of SQL", "value": "its plural is a word of SQL",
	"all": "it is a flag of the commands", "help": "it is a flag of the commands", "kind": "it is a flag of the commands", "limit": "it is a flag of the commands",
	"marker": "it is a flag of the commands", "open": "it is a flag of the commands", "output": "it is a flag of the commands", "state": "it is a flag of the commands",
	"unknown": "it is a flag of the commands", "reason": "it is a flag of the commands", "debug": "it is a flag of the commands",
}

// check returns an error for a name or a path that cannot be used.
func (c *newComponent) check() error {
	if err := c.checkName("backup", cmp.Or(reserved[c.name], goReason(c.name))); err != nil {
		return err
	}
	if err := c.checkModule(); err != nil {
		return err
	}
	return c.checkPlaces()
}

// write writes the component and downloads the modules that it needs.
func (c *newComponent) write(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	content, err := c.render()
	if err != nil {
		return err
	}
	if err := c.create(ctx, content, true); err != nil {
		return err
	}
	return c.printNext("component", "make test", "make run")
}

// render returns the files of the component, by name.
func (c *newComponent) render() (map[string][]byte, error) {
	mod, err := c.goMod()
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{"go.mod": mod}
	names := strings.NewReplacer("backup", c.name, "Backup", strings.ToUpper(c.name[:1])+c.name[1:])
	err = fs.WalkDir(files, template, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := files.ReadFile(file)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(file, template+"/")
		switch base := path.Base(name); base {
		case "gitignore":
			name = "." + base
		case goMod:
			return nil
		}
		text := names.Replace(strings.ReplaceAll(string(raw), library+"/cmd/armature/"+template, "\x00"))
		text = strings.ReplaceAll(text, "\x00", c.module)
		name = names.Replace(name)
		out[name] = []byte(text)
		if path.Ext(name) == ".go" { // the length of the new name may change gofmt's columns
			if out[name], err = format.Source([]byte(text)); err != nil {
				return fmt.Errorf("the name %q makes %s wrong: %w", c.name, name, err)
			}
		}
		return nil
	})
	if err == nil {
		err = c.checkDeclared(out)
	}
	return out, err
}

// checkDeclared returns an error if the component's name leads to two declarations of the same name in a package.
func (c *newComponent) checkDeclared(content map[string][]byte) error {
	seen := map[string]string{} // the file, by directory and name
	for _, name := range slices.Sorted(maps.Keys(content)) {
		if path.Ext(name) != ".go" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, content[name], parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declared := range declaredIn(f) {
			id := path.Dir(name) + " " + declared
			if seen[id] != "" {
				return usageError{fmt.Errorf("the name %q cannot be used: %s and %s would both declare %s; choose another one, such as my%s", c.name, seen[id], name, declared, c.name)}
			}
			seen[id] = name
		}
	}
	return nil
}

// declaredIn returns the names that a file declares at the top level.
func declaredIn(f *ast.File) (list []string) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				list = append(list, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				list = append(list, declaredBy(spec)...)
			}
		}
	}
	return list
}

// declaredBy returns the names that a declaration of types, constants or variables declares.
func declaredBy(spec ast.Spec) (list []string) {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		return []string{s.Name.Name}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			list = append(list, n.Name)
		}
	}
	return list
}
