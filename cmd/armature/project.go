package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"github.com/armature-go/armature/internal/text"
)

// project has the fields that newComponent and newDriver have in common.
type project struct {
	name, module, replace, dir string
	out                        io.Writer
}

var nameRule = regexp.MustCompile(`^[a-z][a-z0-9]{0,29}$`)

// goReserved are names that a Go package or its directory must not have, with the reasons.
var goReserved = map[string]string{
	"main": "it is the name of Go's main package", "internal": "Go gives directories with this name a meaning", "vendor": "Go gives directories with this name a meaning",
	"testdata": "Go gives directories with this name a meaning", "test": "files that end with _test.go are tests",
}

// goReason returns why a Go package cannot have the name, or "".
func goReason(name string) string {
	if token.IsKeyword(name) {
		return "it is a keyword of Go"
	}
	return goReserved[name]
}

// checkName returns an error if the name does not match nameRule, or if the parameter reason is not empty. The parameter
// reason says why the name cannot be used. The parameter example is a valid name, for the text of the error.
func (p *project) checkName(example, reason string) error {
	if !nameRule.MatchString(p.name) {
		return usageError{fmt.Errorf("the name %q cannot be used: want a to z and 0 to 9, beginning with a letter, at most 30 of them, such as %s", p.name, example)}
	}
	if reason != "" {
		return usageError{fmt.Errorf("the name %q cannot be used: %s; choose another one, such as my%s", p.name, reason, p.name)}
	}
	return nil
}

// checkModule sets the default of the module's path, and returns an error for a path that cannot be used.
func (p *project) checkModule() error {
	p.module = cmp.Or(p.module, "example.org/"+p.name)
	if err := module.CheckImportPath(p.module); err != nil {
		return usageError{fmt.Errorf("--module: %w", err)}
	}
	if p.module == library || strings.HasPrefix(p.module, library+"/") {
		return usageError{fmt.Errorf("--module %s: this path belongs to Armature: choose one of your own, such as example.org/%s", p.module, p.name)}
	}
	return nil
}

// checkPlaces sets the default of the directory. It returns an error if the directory is not empty, or if the library is not found.
func (p *project) checkPlaces() error {
	p.dir = cmp.Or(p.dir, p.name)
	if list, err := os.ReadDir(p.dir); err == nil && len(list) > 0 {
		return fmt.Errorf("the directory %s is not empty: choose another one with --dir", p.dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.checkLibrary()
}

// checkLibrary checks where the library comes from.
func (p *project) checkLibrary() (err error) {
	if p.replace == "" {
		if v := moduleVersion(); !strings.HasPrefix(v, "v") || strings.Contains(v, "+") {
			return usageError{fmt.Errorf("this program was built from a clone of Armature (version %s): add --replace DIR, with the directory of the clone", v)}
		}
		return nil
	}
	if p.replace, err = filepath.Abs(p.replace); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(p.replace, "go.mod"))
	if err != nil || !strings.HasPrefix(string(raw), "module "+library+"\n") {
		return usageError{fmt.Errorf("--replace %s: this is not a clone of Armature: want a directory whose go.mod begins with: module %s", p.replace, library)}
	}
	return nil
}

// writeFiles writes files into the directory, by name.
func (p *project) writeFiles(content map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(content)) {
		file := filepath.Join(p.dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // source code is for everyone
			return err
		}
		if err := os.WriteFile(file, content[name], 0o644); err != nil { //nolint:gosec // source code is for everyone
			return err
		}
	}
	return nil
}

// printNext prints where the project is, and what to do next. The path is absolute, because the user's directory may differ from that of this
// process, as with "go -C DIR run".
func (p *project) printNext(what string, commands ...string) error {
	dir, err := filepath.Abs(p.dir)
	if err != nil {
		return err
	}
	commands = append([]string{"cd " + text.ShellWord(dir)}, commands...)
	_, err = fmt.Fprintf(p.out, "The %s is in %s. Its README.md says what each file has. Next:\n\n  %s\n", what, dir, strings.Join(commands, "\n  "))
	return err
}

// goMod returns the beginning of go.mod.
func (p *project) goMod() ([]byte, error) {
	raw, err := files.ReadFile(template + "/" + goMod)
	return []byte(strings.Replace(string(raw), "MODULE", p.module, 1)), err
}

// tidy completes go.mod and go.sum. The checksums of a clone are used, because the clone was tested with them.
func (p *project) tidy(ctx context.Context) error {
	edit := []string{"mod", "edit", "-require=" + library + "@" + moduleVersion()}
	if p.replace != "" {
		edit = []string{"mod", "edit", "-replace=" + library + "=" + p.replace}
		sums, err := os.ReadFile(filepath.Join(p.replace, "go.sum"))
		if err != nil {
			return err
		}
		if err := p.writeFiles(map[string][]byte{"go.sum": sums}); err != nil {
			return err
		}
	}
	for _, args := range [][]string{edit, {"mod", "tidy"}} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = p.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the files are written, but go.mod is not complete; run this command again in %s, and then go mod tidy: go %s: %w\n%s", p.dir, strings.Join(args, " "), err, out)
		}
	}
	return nil
}
