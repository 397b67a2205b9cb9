package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/policy"
)

// write writes a file and returns its path.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRefusedFiles: the log says once that a wrong file has no effect and that the earlier rules stay in force, and again only when the error is another one.
func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	var out bytes.Buffer
	e := enforcer(t, policy.Config{File: file, Logger: slog.New(slog.NewTextHandler(&out, nil))}, policy.Rule{Name: "get", Check: "role:reader"})
	write(t, file, "get: '@'\n")
	if err := e.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	const refused = "level=ERROR msg=\"reload of policy files failed\""
	for i, text := range []string{"gte: '!'\n", "get: [\n"} {
		write(t, file, text)
		for range 3 {
			if err := e.Watch(t.Context()); fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%q: %v, want Invalid", text, err)
			}
		}
		if n := strings.Count(out.String(), refused); n != i+1 || !strings.Contains(out.String(), "the rules that were read before stay in force") {
			t.Errorf("%q: %d lines, want %d:\n%s", text, n, i+1, &out)
		}
		if err := e.Check(policy.Credentials{}, "get", nil); err != nil {
			t.Errorf("the earlier rule: %v", err)
		}
	}
	write(t, file, "get: '@'\n")
	for range 2 {
		if err := e.Watch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "reload of policy files works again"); n != 1 {
		t.Errorf("%d lines about the end, want 1:\n%s", n, &out)
	}
}

// TestFiles: files override rules, in order. An error in a file has its file and line, all errors are
// reported at once, and the active rules stay as they are.
func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, more := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "policy.d")
	if err := os.Mkdir(more, 0o750); err != nil {
		t.Fatal(err)
	}
	rules := []policy.Rule{
		{Name: "get", Check: "role:reader"},
		{Name: "put", Check: "role:member"},
		{Name: "drop", Check: "role:admin"},
		{Name: "volume:show", Check: "role:reader", Deprecated: &policy.Deprecated{Name: "volume:get", Reason: "It was renamed.", Since: "3.0"}},
		{Name: "volume:list", Check: "role:reader", Deprecated: &policy.Deprecated{Name: "volume:get", Reason: "It was renamed.", Since: "3.0"}},
	}
	var out bytes.Buffer
	cfg := policy.Config{File: file, Dirs: []string{more, filepath.Join(dir, "none.d")}, Logger: slog.New(slog.NewTextHandler(&out, nil))}
	e := enforcer(t, cfg, rules...)
	allows := func(rule string, want bool) {
		t.Helper()
		if err := e.Check(policy.Credentials{ProjectID: "p", Roles: []string{"reader"}}, rule, nil); err == nil != want {
			t.Errorf("%s: %v, want %v", rule, err, want)
		}
	}
	allows("get", true)
	allows("put", false)
	write(t, file, "# comments\n\"put\": \"role:reader\"\nget: '!'\ndrop:\n  - [\"role:reader\", \"project_id:p\"]\n  - \"role:root\"\n")
	if err := e.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	allows("get", false)
	allows("put", true)
	allows("drop", true)
	write(t, filepath.Join(more, "20.json"), `{"get": "@", "helper": "role:x or role:reader"}`)
	if err := e.Watch(t.Context()); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "20.json:1: rule helper does not exist") {
		t.Errorf("a rule in a file that is neither defined nor referenced: %v", err)
	}
	allows("get", false)
	write(t, filepath.Join(more, "10.yaml"), "get: '!'\ndrop: 'rule:helper'\n")
	for _, name := range []string{".hidden.yaml", "20.json~", "#20.json#"} {
		write(t, filepath.Join(more, name), "nonsense: [")
	}
	if err := os.Symlink("missing", filepath.Join(more, ".#20.json")); err != nil { // an editor's lock file
		t.Fatal(err)
	}
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	allows("get", true) // 20.json is read after 10.yaml
	allows("drop", true)
	for _, r := range e.Rules() {
		if r.Name == "drop" && r.Where != filepath.Join(more, "10.yaml")+":2" {
			t.Errorf("rule drop: %+v, want it from line 2 of 10.yaml", r)
		}
	}

	// All errors are reported at once.
	write(t, file, "gte: '@'\nput: 'role:a and'\nget:\n  a: b\nput: '@'\ndrop: '@'\nvolume:show: 'rule:volume:show'\n")
	err := e.Reload(t.Context())
	for _, want := range []string{
		"policy.yaml:1: rule gte does not exist; the nearest is get", "policy.yaml:2: rule put: after column 8", "policy.yaml:3: rule get: want a text",
		"policy.yaml:5: rule put is on line 2 already", "refers to itself: volume:show -> volume:show",
	} {
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	allows("put", true)
	for text, want := range map[string]string{"- a\n": "policy.yaml:1: want a map", "a: [": "policy.yaml: ", "get: [[{}]]\n": "want a text", "get: [[http:x]]\n": "not supported"} {
		write(t, file, text)
		if err := e.Reload(t.Context()); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	for _, name := range []string{"10.yaml", "20.json"} {
		write(t, filepath.Join(more, name), "{}")
	}

	// A file may use an older name. The override counts for each rule that had this name.
	write(t, file, "volume:get: 'role:other'\n")
	for range 2 {
		if err := e.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	allows("volume:show", false)
	allows("volume:list", false)
	warnings := func() int { return strings.Count(out.String(), `rule=volume:get`) }
	if n := strings.Count(out.String(), `rule=volume:get new_names="[volume:show volume:list]" reason="It was renamed."`); n != 1 || warnings() != 1 {
		t.Errorf("%d warnings about the older name, want one with all new names:\n%s", warnings(), &out)
	}
	write(t, file, "volume:get: '!'\nvolume:show: '@'\n")
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	allows("volume:show", true)
	allows("volume:list", false)

	// A check that looks misspelled is a warning, because a token may have any attributes.
	write(t, file, "get: 'roel:admin or not (project:x or True:True or user_domain_id:y)'\n")
	for range 2 {
		if err := e.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "may be misspelled"); n != 1 || !strings.Contains(out.String(), `rule=get check=roel:admin nearest=role`) {
		t.Errorf("%d warnings about a misspelled check, want 1:\n%s", n, &out)
	}

	// With Lenient a rule that is not defined is a warning. Rules reports an override that is equal to the default.
	write(t, file, "unknown: '@'\nget: 'role:reader'\n")
	cfg.Lenient = true
	lenient := enforcer(t, cfg, rules...)
	if !strings.Contains(out.String(), `msg="policy rule does not exist"`) || !strings.Contains(out.String(), "rule=unknown") {
		t.Errorf("no warning about the unknown rule:\n%s", &out)
	}
	for _, r := range lenient.Rules() {
		if r.Redundant != (r.Name == "get") && r.Name != "unknown" {
			t.Errorf("%+v, want Redundant for get only", r)
		}
	}
}

// TestReload: the active rules stay if a file that had rules is removed, emptied or replaced by a broken
// link. Each reload logs the rules that changed.
func TestReload(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(path string) error
		keep bool
	}{
		{"removed", os.Remove, true},
		{"emptied", func(p string) error { return os.Truncate(p, 0) }, true},
		{"commented out", func(p string) error { return os.WriteFile(p, []byte("# put: '!'\n"), 0o600) }, true},
		{"null", func(p string) error { return os.WriteFile(p, []byte("~\n"), 0o600) }, true},
		{"broken link", func(p string) error { return errors.Join(os.Remove(p), os.Symlink("missing", p)) }, true},
		{"pipe", func(p string) error { return errors.Join(os.Remove(p), syscall.Mkfifo(p, 0o600)) }, true},
		{"directory removed", func(p string) error { return os.RemoveAll(filepath.Dir(p)) }, true},
		{"two documents", func(p string) error { return os.WriteFile(p, []byte("{}\n---\nput: '!'\n"), 0o600) }, true},
		{"cleared", func(p string) error { return os.WriteFile(p, []byte("{}"), 0o600) }, false},
		{"changed", func(p string) error { return os.WriteFile(p, []byte("put: 'role:reader'"), 0o600) }, false},
	} {
		for _, place := range []string{"policy.yaml", "policy.d/lockdown", "policy.d/site.conf", "policy.d/10.YAML"} {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "policy.d"), 0o750); err != nil {
				t.Fatal(err)
			}
			path := write(t, filepath.Join(dir, place), "put: '!'\n")
			var out bytes.Buffer
			e := enforcer(t, policy.Config{
				File: filepath.Join(dir, "policy.yaml"), Dirs: []string{filepath.Join(dir, "policy.d")}, Logger: slog.New(slog.NewTextHandler(&out, nil)),
			}, policy.Rule{Name: "put", Check: "role:reader"}, policy.Rule{Name: "get", Check: "@"})
			if err := e.Check(ada, "put", nil); err == nil {
				t.Fatalf("%s: the rule in %s has no effect", tt.name, place)
			}
			if err := tt.do(path); err != nil {
				t.Fatal(err)
			}
			for _, reload := range []func(context.Context) error{e.Watch, e.Reload, e.Reload} {
				err := reload(t.Context())
				if (err != nil) != tt.keep || (e.Check(ada, "put", nil) != nil) != tt.keep {
					t.Errorf("%s, %s: reload: %v, put: %v", tt.name, place, err, e.Check(ada, "put", nil))
				}
				if tt.keep && tt.name != "directory removed" && !strings.Contains(fmt.Sprint(err), path) {
					t.Errorf("%s, %s: the error does not name the file: %v", tt.name, place, err)
				}
			}
			want := `changed=1 rules="[put: \"role:reader\", was \"!\"]"`
			if strings.Contains(out.String(), want) == tt.keep {
				t.Errorf("%s, %s: want %s in the log: %v; the log is\n%s", tt.name, place, want, !tt.keep, &out)
			}
		}
	}

	// A required path must exist.
	missing := filepath.Join(t.TempDir(), "policy.yaml")
	for _, cfg := range []policy.Config{{File: missing}, {Dirs: []string{missing}}} {
		enforcer(t, cfg)
		cfg.Required = []string{missing}
		if _, err := policy.New(nil, cfg); fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), missing+" does not exist") {
			t.Errorf("%+v: %v, want Invalid with the path", cfg, err)
		}
	}
}

// TestConcurrentReload: a decision during a reload uses the rules before it or those after it. Reload and
// Watch may run at the same time.
func TestConcurrentReload(t *testing.T) {
	t.Parallel()
	file, dir := filepath.Join(t.TempDir(), "p.yaml"), t.TempDir()
	e := enforcer(t, policy.Config{File: file, Dirs: []string{dir}}, policy.Rule{Name: "a", Check: "rule:b"}, policy.Rule{Name: "b", Check: "@"})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = e.Watch(t.Context()) // every third file is bad
			}
		}
	})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := e.Check(ada, "a", thing); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 200 {
		write(t, file, []string{"a: '@'\nb: '!'\n", "a: 'rule:b'\n", "a: '('\n"}[i%3])
		if i%20 == 0 {
			write(t, filepath.Join(dir, fmt.Sprintf("%d~", i)), "") // a new warning
		}
		_ = e.Reload(t.Context()) // every third file is bad
	}
	close(stop)
	wg.Wait()
}

// TestDefaultInFile: a rule named default that only a file has does not decide for rules that are not defined. It may still
// be a helper of other rules in the file.
func TestDefaultInFile(t *testing.T) {
	t.Parallel()
	for _, lenient := range []bool{false, true} {
		file := write(t, filepath.Join(t.TempDir(), "policy.yaml"), "default: '@'\nget: 'rule:default'\n")
		var out bytes.Buffer
		e := enforcer(t, policy.Config{File: file, Lenient: lenient, Logger: slog.New(slog.NewTextHandler(&out, nil))}, policy.Rule{Name: "get", Check: "!"})
		if out.Len() > 0 {
			t.Errorf("lenient %t: a warning about a rule that another rule in the file uses: %s", lenient, &out)
		}
		if err := e.Check(policy.Credentials{}, "get", nil); err != nil {
			t.Errorf("lenient %t: get: %v, want no error", lenient, err)
		}
		if err := e.Check(policy.Credentials{}, "put", nil); fault.CodeOf(err) != fault.Denied {
			t.Errorf("lenient %t: a rule that is not defined: %v, want Denied", lenient, err)
		}
		if x := e.Explain(policy.Credentials{}, "put", nil); x.Allowed || x.Where != "" {
			t.Errorf("lenient %t: a rule that is not defined is explained as %s", lenient, x)
		}
	}
	file := write(t, filepath.Join(t.TempDir(), "policy.yaml"), "default: 'role:reader'\n")
	e := enforcer(t, policy.Config{File: file}, policy.Rule{Name: "default", Check: "!"})
	if err := e.Check(policy.Credentials{Roles: []string{"reader"}}, "put", nil); err != nil {
		t.Errorf("a default of the code that a file overrides: %v, want no error", err)
	}
}
