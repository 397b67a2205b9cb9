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
	version                    string // of Armature
	out                        io.Writer

	files, dirs []string // what writeFiles has made, the latest last
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
		if v := p.version; !strings.HasPrefix(v, "v") || strings.Contains(v, "+") {
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

// create writes the files of the project, by name. For a project in Go it also downloads the modules that the project needs. After an error it has removed what
// it has made.
func (p *project) create(ctx context.Context, content map[string][]byte, isGo bool) (err error) {
	if isGo {
		if err := p.checkDownload(ctx); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			p.removeFiles()
		}
	}()
	if err := p.writeFiles(content); err != nil || !isGo {
		return err
	}
	return p.tidy(ctx)
}

// removeFiles removes what writeFiles has made. A directory with files of others stays.
func (p *project) removeFiles() {
	for _, list := range [][]string{p.files, p.dirs} {
		for _, path := range slices.Backward(list) {
			_ = os.Remove(path) // the command fails already
		}
	}
}

// makeDir makes a directory and its parents, and records them in dirs.
func (p *project) makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := p.makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	p.dirs = append(p.dirs, dir)
	return os.Mkdir(dir, 0o755) //nolint:gosec // source code is for everyone
}

// writeFiles writes files into the directory, by name.
func (p *project) writeFiles(content map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(content)) {
		file := filepath.Join(p.dir, filepath.FromSlash(name))
		if err := p.makeDir(filepath.Dir(file)); err != nil {
			return err
		}
		p.files = append(p.files, file)
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

// checkDownload returns an error if Go cannot download this version of Armature. With --replace the clone is used instead.
func (p *project) checkDownload(ctx context.Context) error {
	if p.replace != "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "armature-") // outside of any module, whose go.mod could replace this one
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cmd := exec.CommandContext(ctx, "go", "mod", "download", library+"@"+p.version)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return fmt.Errorf("Armature %s cannot be downloaded: %s\nadd --replace DIR, with a clone of Armature, or set GOPROXY to a proxy that has this version; nothing was written", p.version, firstLine(out, err)) //nolint:staticcheck // a name begins the text
}

// firstLine returns the first line of the go command's output that is an error, or the text of err if no line is one.
func firstLine(out []byte, err error) string {
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "go: downloading ") && !strings.HasPrefix(line, "go: finding ") {
			return line
		}
	}
	return err.Error()
}

// tidy completes go.mod and go.sum. The checksums of a clone are used, because the clone was tested with them.
func (p *project) tidy(ctx context.Context) error {
	edit := []string{"mod", "edit", "-require=" + library + "@" + p.version}
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
	p.files = append(p.files, filepath.Join(p.dir, "go.sum")) // go mod tidy may make it
	for _, args := range [][]string{edit, {"mod", "tidy"}} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = p.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the modules of the project are not complete: go %s: %w: %s\nif a module cannot be downloaded, set GOPROXY to a proxy that has it; nothing was written", strings.Join(args, " "), err, firstLine(out, err))
		}
	}
	return nil
}
