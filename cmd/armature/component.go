package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/module"
)

// files are a component with the name "backup". It is a package of this module, so that its own tests run here, too.
//
//go:embed template/backup
var files embed.FS

const (
	library  = "github.com/armature-go/armature"
	template = "template/backup"
)

// newComponent is a component to write.
type newComponent struct {
	name, module, replace, dir string
	out                        io.Writer
}

var nameRule = regexp.MustCompile(`^[a-z][a-z0-9]{0,29}$`)

// reserved are names that cannot be used, and why. Their plurals are words of SQL, or they are flags of the commands.
var reserved = map[string]string{
	"database": "its plural is a word of SQL", "group": "its plural is a word of SQL", "key": "its plural is a word of SQL", "line": "its plural is a word of SQL",
	"row": "its plural is a word of SQL", "schema": "its plural is a word of SQL", "value": "its plural is a word of SQL",
	"all": "it is a flag of the commands", "help": "it is a flag of the commands", "kind": "it is a flag of the commands", "limit": "it is a flag of the commands",
	"marker": "it is a flag of the commands", "open": "it is a flag of the commands", "output": "it is a flag of the commands", "state": "it is a flag of the commands",
	"unknown": "it is a flag of the commands", "reason": "it is a flag of the commands", "debug": "it is a flag of the commands",
	"main": "it is the name of Go's main package", "internal": "Go gives directories with this name a meaning", "vendor": "Go gives directories with this name a meaning",
	"testdata": "Go gives directories with this name a meaning", "test": "files that end with _test.go are tests",
}

// check returns an error for a name or a path that cannot be used.
func (c *newComponent) check() error {
	why := reserved[c.name]
	switch {
	case !nameRule.MatchString(c.name):
		return usageError{fmt.Errorf("the name %q cannot be used: want a to z and 0 to 9, beginning with a letter, at most 30 of them, such as backup", c.name)}
	case token.IsKeyword(c.name):
		why = "it is a keyword of Go"
	}
	if why != "" {
		return usageError{fmt.Errorf("the name %q cannot be used: %s; choose another one, such as my%s", c.name, why, c.name)}
	}
	c.module, c.dir = cmp.Or(c.module, "example.org/"+c.name), cmp.Or(c.dir, c.name)
	if err := module.CheckImportPath(c.module); err != nil {
		return usageError{fmt.Errorf("--module: %w", err)}
	}
	if c.module == library || strings.HasPrefix(c.module, library+"/") {
		return usageError{fmt.Errorf("--module %s: this path belongs to Armature: choose one of your own, such as example.org/%s", c.module, c.name)}
	}
	if list, err := os.ReadDir(c.dir); err == nil && len(list) > 0 {
		return fmt.Errorf("the directory %s is not empty: choose another one with --dir", c.dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.checkLibrary()
}

// checkLibrary checks where the library comes from.
func (c *newComponent) checkLibrary() (err error) {
	if c.replace == "" {
		if v := version(); !strings.HasPrefix(v, "v") {
			return usageError{fmt.Errorf("this program was built from a clone of Armature (version %s): add --replace DIR, with the directory of the clone", v)}
		}
		return nil
	}
	if c.replace, err = filepath.Abs(c.replace); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(c.replace, "go.mod"))
	if err != nil || !strings.HasPrefix(string(raw), "module "+library+"\n") {
		return usageError{fmt.Errorf("--replace %s: this is not a clone of Armature: want a directory whose go.mod begins with: module %s", c.replace, library)}
	}
	return nil
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
	for _, name := range slices.Sorted(maps.Keys(content)) {
		file := filepath.Join(c.dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // source code is for everyone
			return err
		}
		if err := os.WriteFile(file, content[name], 0o644); err != nil { //nolint:gosec // source code is for everyone
			return err
		}
	}
	if err := c.tidy(ctx); err != nil {
		return fmt.Errorf("the files are written, but not all modules are there; run these commands again in %s: %w", c.dir, err)
	}
	_, err = fmt.Fprintf(c.out, "The component is in %s. Its README.md says what each file has. Next:\n\n  cd %s\n  make test\n  make run\n", c.dir, c.dir)
	return err
}

// tidy completes go.mod and go.sum. The checksums of a clone are used, because the clone was tested with them.
func (c *newComponent) tidy(ctx context.Context) error {
	edit := []string{"mod", "edit", "-require=" + library + "@" + version()}
	if c.replace != "" {
		edit = []string{"mod", "edit", "-replace=" + library + "=" + c.replace}
		sums, err := os.ReadFile(filepath.Join(c.replace, "go.sum"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(c.dir, "go.sum"), sums, 0o644); err != nil { //nolint:gosec // source code is for everyone
			return err
		}
	}
	for _, args := range [][]string{edit, {"mod", "tidy"}} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = c.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// render returns the files of the component, by name.
func (c *newComponent) render() (map[string][]byte, error) {
	out := map[string][]byte{}
	names := strings.NewReplacer("backup", c.name, "Backup", strings.ToUpper(c.name[:1])+c.name[1:])
	err := fs.WalkDir(files, template, func(file string, d fs.DirEntry, err error) error {
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
		case "go.mod.tmpl":
			name, raw = "go.mod", []byte(strings.Replace(string(raw), "MODULE", c.module, 1))
		}
		text := names.Replace(strings.ReplaceAll(string(raw), library+"/cmd/armature/"+template, "\x00"))
		text = strings.ReplaceAll(text, "\x00", c.module)
		name = names.Replace(name)
		out[name] = []byte(text)
		if path.Ext(name) == ".go" { // the new name may move columns
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

// checkDeclared returns an error if the name makes two declarations equal.
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
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					list = append(list, s.Name.Name)
				case *ast.ValueSpec:
					for _, n := range s.Names {
						list = append(list, n.Name)
					}
				}
			}
		}
	}
	return list
}
