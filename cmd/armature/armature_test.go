package main

import (
	"bytes"
	"errors"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// armature runs the command, and returns the exit code and the output.
func armature(t *testing.T, args ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code := runCommand(t.Context(), args, &out, &out)
	return code, out.String()
}

// clone is the directory of this repository.
func clone(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// goTool runs the go command in a directory.
func goTool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestRefused: names and arguments that cannot be used are refused before a file is written, with a text that says what to do.
func TestRefused(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(t.TempDir(), "a$b")
	if err := errors.Join(os.Mkdir(strange, 0o700), os.WriteFile(filepath.Join(strange, "go.mod"), []byte("module "+library+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	type refused struct {
		args string
		code int
		want string
	}
	tests := []refused{
		{"new component", 2, "want one NAME"},
		{"new component a b", 2, "want one NAME"},
		{"new component Backup", 2, `the name "Backup" cannot be used: want a to z and 0 to 9`},
		{"new component back-up", 2, "want a to z and 0 to 9"},
		{"new component ../up", 2, "want a to z and 0 to 9"},
		{"new component 1st", 2, "beginning with a letter"},
		{"new component " + strings.Repeat("a", 31), 2, "at most 30"},
		{"new component key", 2, "its plural is a word of SQL; choose another one, such as mykey"},
		{"new component component", 2, "would both declare newComponent"},
		{"new component state", 2, "it is a flag of the commands"},
		{"new component disk --module example.org/../x", 2, "--module: "},
		{"new component disk --module github.com/armature-go/armature/disk", 2, "this path belongs to Armature"},
		{"new component disk", 2, "was built from a clone of Armature (version (devel)): add --replace DIR"},
		{"new component disk --replace " + full, 2, "this is not a clone of Armature"},
		{"new component disk --replace " + clone(t) + " --dir " + full, 1, "is not empty: choose another one with --dir"},
		{"new component disk --colour red", 2, "unknown flag"},
		{"new driver", 2, "want one NAME, such as: armature new driver acme --lang go"},
		{"new driver lake", 2, `--lang "": want --lang go or --lang python`},
		{"new driver lake --lang rust", 2, `--lang "rust": want --lang go or --lang python`},
		{"new driver Lake --lang go", 2, `the name "Lake" cannot be used: want a to z and 0 to 9`},
		{"new driver the-lake --lang python", 2, "want a to z and 0 to 9"},
		{"new driver ../lake --lang python", 2, "want a to z and 0 to 9"},
		{"new driver fake --lang go", 2, "it is a driver that nova-mini has; choose another one, such as myfake"},
		{"new driver fake --lang python", 2, "it is a driver that nova-mini has"},
		{"new driver compute --lang go", 2, "the driver's code uses it for something else; choose another one, such as mycompute"},
		{"new driver string --lang go", 2, "the driver's code uses it for something else"},
		{"new driver t --lang go", 2, "the driver's code uses it for something else"},
		{"new driver internal --lang go", 2, "Go gives directories with this name a meaning"},
		{"new driver grpc --lang python", 2, "it is a package that the driver needs"},
		{"new driver tests --lang python", 2, "it is a directory of the driver's project"},
		{"new driver lake --lang go --module example.org/../x", 2, "--module: "},
		{"new driver lake --lang go --module github.com/armature-go/armature/lake", 2, "this path belongs to Armature"},
		{"new driver lake --lang python --module example.org/lake", 2, "a driver in Python has no Go module: leave --module out"},
		{"new driver lake --lang go", 2, "was built from a clone of Armature (version (devel)): add --replace DIR"},
		{"new driver lake --lang python", 2, "was built from a clone of Armature (version (devel)): add --replace DIR"},
		{"new driver lake --lang python --replace " + full, 2, "this is not a clone of Armature"},
		{"new driver lake --lang python --replace " + strange, 2, "make does not accept this path"},
		{"new driver lake --lang python --replace " + clone(t) + " --dir " + full, 1, "is not empty: choose another one with --dir"},
		{"new server", 2, `cannot write a new "server"`},
		{"old", 2, `unknown command "old"`},
	}
	for name := range reserved {
		tests = append(tests, refused{"new component " + name, 2, "cannot be used"})
	}
	for name := range goReserved {
		tests = append(tests, refused{"new component " + name, 2, "cannot be used"}, refused{"new driver " + name + " --lang go", 2, "cannot be used"})
	}
	for k := token.BREAK; k <= token.VAR; k++ {
		tests = append(tests, refused{"new component " + k.String(), 2, "it is a keyword of Go"}, refused{"new driver " + k.String() + " --lang go", 2, "it is a keyword of Go"})
	}
	for _, tt := range tests {
		args := strings.Fields(tt.args)
		dir := filepath.Join(t.TempDir(), "new")
		if len(args) > 2 && !slices.Contains(args, "--replace") && !strings.Contains(tt.want, "clone of") {
			args = append(args, "--replace", clone(t))
		}
		if len(args) > 2 && !slices.Contains(args, "--dir") {
			args = append(args, "--dir", dir)
		}
		if code, out := armature(t, args...); code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("%s: %d %s; want %d with %q", tt.args, code, out, tt.code, tt.want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: files were written", tt.args)
		}
	}
}

// TestNotDownloaded: if Go cannot download this version of Armature, or a module that it needs, armature says so in a few lines, and leaves nothing behind: the
// next attempt in the same directory works.
func TestNotDownloaded(t *testing.T) { //nolint:paralleltest // it sets a variable of the environment
	empty := t.TempDir() // a clone without packages
	if err := errors.Join(os.WriteFile(filepath.Join(empty, "go.mod"), []byte("module "+library+"\n\ngo 1.26\n"), 0o600), os.WriteFile(filepath.Join(empty, "go.sum"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	proxy := os.Getenv("GOPROXY")
	writers := map[string]func(p project) error{
		"component": func(p project) error { return (&newComponent{p}).write(t.Context()) },
		"driver":    func(p project) error { return (&newDriver{p, "go"}).write(t.Context()) },
	}
	for what, write := range writers {
		for reason, tt := range map[string]struct{ replace, want string }{
			"this version":   {"", "Armature v0.0.1-none cannot be downloaded: "},
			"another module": {empty, "the modules of the project are not complete: "},
		} {
			t.Run(what+", "+reason, func(t *testing.T) {
				t.Setenv("GOPROXY", "off")
				root := t.TempDir()
				mine := filepath.Join(root, "mine")
				if err := os.Mkdir(mine, 0o700); err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				p := project{name: "lake", version: "v0.0.1-none", replace: tt.replace, out: &out}
				for _, dir := range []string{filepath.Join(root, "a", "new"), mine} {
					p.dir = dir
					err := write(p)
					if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Count(err.Error(), "\n") > 2 || out.Len() > 0 || tt.replace == "" && !strings.Contains(err.Error(), "add --replace DIR, with a clone of Armature") {
						t.Errorf("%v %s, want %s in at most three lines", err, &out, tt.want)
					}
				}
				left := []string{}
				for _, dir := range []string{root, mine} {
					entries, err := os.ReadDir(dir)
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range entries {
						left = append(left, e.Name())
					}
				}
				if !slices.Equal(left, []string{"mine"}) {
					t.Errorf("left behind: %q", left)
				}
				t.Setenv("GOPROXY", proxy)
				p.replace = clone(t)
				if err := write(p); err != nil {
					t.Errorf("the next attempt: %v", err)
				}
			})
		}
	}
}

// TestNext: the commands that armature prints at the end must work from any directory. With "go -C DIR run", armature's working directory is
// DIR, not the user's.
func TestNext(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"component disk", "driver lake --lang go", "driver lake --lang python"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "it's new")
			relative, err := filepath.Rel(here, dir)
			if err != nil {
				t.Fatal(err)
			}
			code, out := armature(t, append(strings.Fields("new "+args), "--replace", clone(t), "--dir", relative)...)
			_, next, found := strings.Cut(out, "Next:\n\n")
			cd, _, _ := strings.Cut(strings.TrimSpace(next), "\n")
			if code != 0 || !found || !strings.HasPrefix(cd, "cd ") {
				t.Fatal(out)
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-euc", cd+"\nls Makefile")
			cmd.Dir = "/"
			if raw, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", cd, err, raw)
			}
		})
	}
}

// TestNames: a component or driver compiles even if its name is also an identifier in the generated code.
func TestNames(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it builds programs; make test runs it")
	}
	for _, args := range []string{
		"component worker", "component string", "component options", "component db", "component id",
		"driver fault --lang go", "driver power --lang go", "driver error --lang go", "driver json --lang go",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "new")
			if code, out := armature(t, append(strings.Fields("new "+args), "--replace", clone(t), "--dir", dir)...); code != 0 {
				if strings.Contains(out, "cannot be used") {
					return // armature may refuse a name, but must not generate code that does not compile
				}
				t.Fatal(out)
			}
			goTool(t, dir, "vet", "./...")
		})
	}
}
