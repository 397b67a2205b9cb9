// Releasecheck compares this tree with the last release, whose commit or tag is the first line of testdata/last-release. It fails if
// this tree breaks a promise of the release:
//
//   - the exported API of the packages that the table of CHANGELOG.md calls stable, as apidiff reports it;
//   - the contracts in golden files: RPC interfaces and .proto files (internal/goldentest);
//   - the OpenAPI documents in golden files;
//   - the migrations: an applied file must not change.
//
// testdata/release-accepted.txt has the intended changes, each with a reason after " # ". A line that matches no change is also a failure, so the file is
// emptied after a release.
//
// Other differences of the API are printed, because they belong in CHANGELOG.md.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pb33f/libopenapi"
)

const module = "github.com/armature-go/armature"

func main() {
	broken, err := checkRelease()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release-check:", err)
		os.Exit(2)
	}
	if len(broken) > 0 {
		fmt.Fprintf(os.Stderr, "release-check: promises of the last release are broken:\n%s\n", strings.Join(broken, "\n"))
		os.Exit(1)
	}
}

func checkRelease() (broken []string, err error) {
	raw, err := os.ReadFile("testdata/last-release")
	if err != nil {
		return nil, err
	}
	if _, err := runCommand("", "git", "rev-parse", "--git-dir"); err != nil {
		_, _ = fmt.Fprintln(os.Stdout, "release-check: the tree has no history, nothing to compare with:", err)
		return nil, nil
	}
	commit, _, _ := strings.Cut(string(raw), "\n")
	old, err := os.MkdirTemp("", "armature-release-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(old)) }()
	if err := extractTree(commit, old); err != nil {
		return nil, err
	}
	for _, part := range []func(old string) ([]string, error){checkAPI, checkContracts, checkWire, checkOpenAPI, checkMigrations} {
		more, err := part(old)
		if err != nil {
			return nil, err
		}
		broken = append(broken, more...)
	}
	if broken, err = withoutAccepted(broken); err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(os.Stdout, "release-check: compared with %s: %d broken promises\n", commit, len(broken))
	return broken, nil
}

// withoutAccepted returns the changes that testdata/release-accepted.txt does not have, and the lines of this file that
// match no change or have no reason.
func withoutAccepted(broken []string) ([]string, error) {
	raw, err := os.ReadFile("testdata/release-accepted.txt")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(raw)) {
		text, reason, ok := strings.Cut(strings.TrimRight(line, "\n"), " # ")
		n := len(broken)
		broken = slices.DeleteFunc(broken, func(s string) bool { return s == "- "+text })
		if !ok || reason == "" || len(broken) == n {
			broken = append(broken, "- testdata/release-accepted.txt: the line has no reason, or matches no change: "+line)
		}
	}
	return broken, nil
}

// extractTree writes the tree of a commit to dir.
func extractTree(commit, dir string) error {
	if _, err := runCommand("", "git", "cat-file", "-e", commit+"^{commit}"); err != nil {
		return fmt.Errorf("the commit %s of testdata/last-release is not in this history: fetch all of it, for example with git fetch --unshallow", commit)
	}
	tar := filepath.Join(dir, "release.tar")
	if _, err := runCommand("", "git", "archive", "-o", tar, commit); err != nil {
		return err
	}
	_, err := runCommand("", "tar", "-xf", tar, "-C", dir)
	return err
}

// runCommand runs a command in dir and returns its output.
func runCommand(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...) //nolint:noctx // a signal to the process group ends it; the commands are this program's
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// stablePackage matches a row of the table of stability in CHANGELOG.md.
var stablePackage = regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\| stable \\|")

// checkAPI returns the incompatible changes of the packages that are stable now or were stable in the release. It prints the
// incompatible changes of other packages.
func checkAPI(old string) (broken []string, err error) {
	var stable []string
	for _, dir := range []string{old, "."} {
		text, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
		if err != nil {
			return nil, err
		}
		for _, m := range stablePackage.FindAllStringSubmatch(string(text), -1) {
			stable = append(stable, m[1])
		}
	}
	if len(stable) == 0 {
		return nil, errors.New("CHANGELOG.md names no stable package")
	}
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	tool, exported := filepath.Join(old, "apidiff"), filepath.Join(old, "release.export")
	if _, err := runCommand(here, "go", "build", "-modfile=tools/release.mod", "-o", tool, "golang.org/x/exp/cmd/apidiff"); err != nil {
		return nil, err
	}
	if _, err := runCommand(old, tool, "-m", "-w", exported, module); err != nil {
		return nil, err
	}
	out, err := runCommand(here, tool, "-m", "-incompatible", exported, module)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		switch change, ok := strings.CutPrefix(line, "- "); {
		case !ok, startsWith(change, "examples/"):
		case slices.ContainsFunc(stable, func(pkg string) bool { return inPackage(change, pkg) }):
			broken = append(broken, line)
		default:
			_, _ = fmt.Fprintln(os.Stdout, "not stable, belongs in CHANGELOG.md:", line)
		}
	}
	return broken, nil
}

// inPackage reports whether a change that apidiff prints is in a package. The text of the change has one of the forms
// "./PKG.NAME: ...", "package ./PKG: ..." and "package MODULE/PKG: ...".
func inPackage(change, pkg string) bool {
	return startsWith(change, pkg+".") || startsWith(change, pkg+":")
}

// startsWith reports whether the path of a change starts with a text.
func startsWith(change, text string) bool {
	return slices.ContainsFunc([]string{"./", "package ./", "package " + module + "/"}, func(before string) bool {
		return strings.HasPrefix(change, before+text)
	})
}

// checkContracts runs the tests of this tree with the golden files of the release. It runs those tests of golden files that the
// release has, in files named contract_test.go.
func checkContracts(old string) ([]string, error) {
	args := []string{"test", "-count", "1", "-v", "-run", "^TestContracts?$"}
	var dirs int
	err := filepath.WalkDir(old, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "contract_test.go" {
			return err
		}
		dir, err := filepath.Rel(old, filepath.Dir(path))
		args, dirs = append(args, "./"+dir), dirs+1
		return err
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", args...) //nolint:noctx // as in run
	cmd.Env = append(os.Environ(), "ARMATURE_LAST_RELEASE="+old)
	out, err := cmd.CombinedOutput()
	passed := len(regexp.MustCompile(`(?m)^--- PASS: TestContracts? `).FindAll(out, -1))
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) || err == nil && passed < dirs { // a test that is gone compares nothing
		return []string{fmt.Sprintf("%s\n%d tests of golden files passed, the release has %d", out, passed, dirs)}, nil
	}
	return nil, err
}

// checkWire compares the messages in the golden files of each bus. It returns the parts of the release's messages that the messages of this
// tree lack. A message may have more than before, because older processes ignore the rest.
func checkWire(old string) (broken []string, err error) {
	files, err := filepath.Glob(filepath.Join(old, "rpc", "*", "testdata", "wire", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		name, err := filepath.Rel(old, file)
		if err != nil {
			return nil, err
		}
		var messages [2]any
		for i, path := range []string{file, name} {
			raw, err := os.ReadFile(path)
			if err == nil {
				err = json.Unmarshal(raw, &messages[i])
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		for _, what := range missingIn(messages[0], messages[1], "") {
			broken = append(broken, fmt.Sprintf("- %s: %s", name, what))
		}
	}
	return broken, nil
}

// missingIn returns the parts of a message of the release that the same message of this tree lacks: values of JSON, and words of a text.
// (Package rpc/bus writes the options of a message as a text.)
func missingIn(was, now any, path string) (missing []string) {
	switch was := was.(type) {
	case map[string]any:
		object, _ := now.(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(was)) {
			missing = append(missing, missingIn(was[name], object[name], path+"."+name)...)
		}
	case string:
		text, _ := now.(string)
		for word := range strings.FieldsSeq(was) {
			if !slices.Contains(strings.Fields(text), word) {
				missing = append(missing, fmt.Sprintf("%s: %q is gone, the text is now %q", path, word, text))
			}
		}
	default:
		if !reflect.DeepEqual(was, now) {
			missing = append(missing, fmt.Sprintf("%s: %v became %v", path, was, now))
		}
	}
	return missing
}

// checkOpenAPI returns the breaking changes of the OpenAPI documents in golden files.
func checkOpenAPI(old string) (broken []string, err error) {
	files, err := filepath.Glob(filepath.Join(old, "examples", "*", "testdata", "openapi-*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		name, err := filepath.Rel(old, file)
		if err != nil {
			return nil, err
		}
		more, err := compareOpenAPI(file, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		broken = append(broken, more...)
	}
	return broken, nil
}

// compareOpenAPI returns the breaking changes between two files.
func compareOpenAPI(was, now string) (broken []string, err error) {
	var docs [2]libopenapi.Document
	for i, path := range []string{was, now} {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if docs[i], err = libopenapi.NewDocument(raw); err != nil {
			return nil, err
		}
	}
	changes, err := libopenapi.CompareDocuments(docs[0], docs[1])
	if err != nil || changes == nil {
		return nil, err
	}
	for _, c := range changes.GetAllChanges() {
		if c.Breaking {
			broken = append(broken, fmt.Sprintf("- %s: %s: %q became %q", now, c.Property, c.Original, c.New))
		}
	}
	return broken, nil
}

// checkMigrations returns the migrations of the release that have changed, or are gone although no file replaces them.
func checkMigrations(old string) (broken []string, err error) {
	err = filepath.WalkDir(old, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".sql" || filepath.Base(filepath.Dir(path)) != "migrations" {
			return err
		}
		name, err := filepath.Rel(old, path)
		if err != nil {
			return err
		}
		was, err := os.ReadFile(path) //nolint:gosec // a tree that this program has written
		if err != nil {
			return err
		}
		now, err := os.ReadFile(name) //nolint:gosec // this tree
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if !replacesOthers(filepath.Dir(name)) {
				broken = append(broken, "- "+name+": a migration of the release is gone, and the first file does not say what it replaces")
			}
			return nil
		case err == nil && !bytes.Equal(was, now):
			broken = append(broken, "- "+name+": a migration of the release has changed; write a new one")
		}
		return err
	})
	return broken, err
}

// replacesOthers reports whether the first migration of a folder replaces others.
func replacesOthers(dir string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*.sql"))
	if err != nil || len(files) == 0 {
		return false
	}
	raw, err := os.ReadFile(files[0])
	return err == nil && bytes.HasPrefix(raw, []byte("-- +db replaces "))
}
