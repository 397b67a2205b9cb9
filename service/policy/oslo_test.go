package policy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/service/policy"
)

// osloCase is a set of files and a request, about which oslo.policy and this package decide.
type osloCase struct {
	File   string            `json:"file"`
	Dir    string            `json:"dir"`
	Rules  map[string]string `json:"rules"` // names to default checks
	Creds  map[string]any    `json:"creds"`
	Target map[string]any    `json:"target"`

	shown string // the files' contents, for a failure's message
	plain bool   // this package must accept all files
}

// osloPlain are values of a rule in a file that both packages accept. The list osloOdd has values that this package may reject:
// values that oslo.policy cannot parse, and values that it reads as "always true".
var (
	osloPlain = []string{
		`"@"`, `"!"`, `'!'`, `""`, `''`, `'role:reader'`, `'role:admin or role:READER'`, `'not role:admin'`, `'rule:own and role:reader'`, `'not (role:admin or rule:own)'`,
		`'project_id:%(project_id)s'`, `'user_id:%(target.user)s'`, `'"p1":%(project_id)s'`, `'True:%(public)s'`, `'role:%(role)s'`, `role:reader`, `'rule:get'`,
		`[["role:reader"]]`, `[["role:admin"], ["role:reader", "project_id:%(project_id)s"]]`, `["role:admin", "role:reader"]`, `["@"]`, `["!"]`, `[["@"]]`, `[["role:reader", "!"]]`,
		`[[]]`, `[""]`, `[[""]]`, `["", "role:admin"]`, `["", "role:reader"]`, `[["role:reader", ""]]`, `[[], ["role:reader"]]`, `[[], []]`,
	}
	osloOdd = []string{
		`!`, ``, `~`, `null`, `!!str`, `[]`, `|`, `' '`, `"\n"`, `true`, `1`, `{a: b}`, `[~]`, `[[~]]`, `[1]`, `[[1]]`, `[[["role:reader"]]]`, `[{a: b}]`, `[true]`,
		`'role:admin or'`, `'foo'`, `'role:admin role:reader'`, `'()'`, `'(role:reader'`, `'rule:missing'`, `[["rule:missing"]]`, `["foo"]`, `[["role:reader", "foo"]]`,
	}
)

// newOsloCase returns a random case.
func newOsloCase(t *testing.T, rng *rand.Rand) osloCase {
	t.Helper()
	root := t.TempDir()
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	c := osloCase{
		File: filepath.Join(root, "policy.yaml"), Dir: filepath.Join(root, "policy.d"), plain: true,
		Rules:  map[string]string{"own": "project_id:%(project_id)s", "get": pick("role:reader", "!", "rule:own"), "put": pick("role:admin", "", "@")},
		Creds:  map[string]any{"user_id": "u1", "project_id": pick("p1", "p2"), "roles": [][]string{{"reader"}, {"admin"}, {"member", "reader"}, {}}[rng.IntN(4)]},
		Target: map[string]any{"project_id": "p1", "public": rng.IntN(2) == 0, "role": pick("reader", "admin"), "target.user": pick("u1", "u2")},
	}
	if err := os.Mkdir(c.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	writeRandom := func(name string) {
		var out strings.Builder
		writeOdd := func(text string) {
			c.plain = false
			out.WriteString(text)
		}
		switch rng.IntN(20) {
		case 0:
			writeOdd(pick("- a\n", "text\n", "a: [\n", "'get': '@'\n---\n'get': '!'\n", "--- {}\n---\nget: '!'\n"))
		case 1:
			out.WriteString(pick("", "# nothing\n", "{}\n", "---\n"))
		}
		rules := []string{"get", "put", "own"}
		rng.Shuffle(len(rules), func(i, k int) { rules[i], rules[k] = rules[k], rules[i] })
		for _, name := range rules[:rng.IntN(3)] {
			value := pick(osloPlain...)
			if value == "'rule:get'" && name == "get" || strings.Contains(value, "rule:own") && name == "own" || value == "'rule:get'" && name == "own" {
				value = "'role:reader'" // a rule must not refer to itself
			}
			if out.Len() > 0 && strings.Contains(out.String(), "{}") {
				break
			}
			if rng.IntN(12) == 0 {
				value = pick(osloOdd...)
				writeOdd("")
			}
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
		if err := os.WriteFile(name, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		c.shown += "--- " + strings.TrimPrefix(name, root) + "\n" + out.String()
	}
	if rng.IntN(4) > 0 {
		writeRandom(c.File)
	}
	for _, name := range []string{"10.yaml", "lockdown", "site.conf", "Z.YAML", "a.json", ".hidden.yaml", ".#10.yaml"} {
		if rng.IntN(6) == 0 {
			writeRandom(filepath.Join(c.Dir, name))
		}
	}
	if rng.IntN(4) == 0 { // a subdirectory, which is skipped
		if err := os.Mkdir(filepath.Join(c.Dir, "sub.yaml"), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestOslo compares the decisions of this package with those of oslo.policy itself, for random files and
// requests. They are equal. But this package may reject a file that oslo.policy cannot parse, and a file
// with a value that oslo.policy reads as "always true" against its author's intent.
func TestOslo(t *testing.T) {
	t.Parallel()
	if err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import oslo_policy").Run(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("oslo.policy (package python3-oslo.policy) is not installed, and CI is set")
		}
		t.Skip("needs oslo.policy, package python3-oslo.policy")
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	cases := make([]osloCase, 500)
	for i := range cases {
		cases[i] = newOsloCase(t, rng)
	}
	in, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/oslo.py")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var results []struct {
		Error   string
		Allowed map[string]bool
	}
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(cases) {
		t.Fatalf("%d results of %d: %v", len(results), len(cases), err)
	}
	compared := 0
	for i, c := range cases {
		theirs := results[i]
		var rules []policy.Rule
		for name, check := range c.Rules {
			rules = append(rules, policy.Rule{Name: name, Check: check})
		}
		e, err := policy.New(rules, policy.Config{File: c.File, Dirs: []string{c.Dir}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			if c.plain {
				t.Errorf("rejected: %v; oslo.policy: %+v\n%s", err, theirs, c.shown)
			}
			continue
		}
		if theirs.Error != "" {
			t.Errorf("accepted; oslo.policy: %s\n%s", theirs.Error, c.shown)
			continue
		}
		compared++
		roles, _ := c.Creds["roles"].([]string)
		creds := policy.Credentials{UserID: fmt.Sprint(c.Creds["user_id"]), ProjectID: fmt.Sprint(c.Creds["project_id"]), Roles: roles}
		for name, want := range theirs.Allowed {
			if got := e.Check(creds, name, c.Target) == nil; got != want {
				t.Errorf("rule %s: this package %t, oslo.policy %t; %v, %v, defaults %v\n%s", name, got, want, c.Creds, c.Target, c.Rules, c.shown)
			}
		}
	}
	if compared < len(cases)/3 || compared == len(cases) {
		t.Errorf("%d of %d cases were compared: too few, or no case was rejected", compared, len(cases))
	}
}

// TestAmbiguousValues: a value that oslo.policy reads as "always true" against its author's intent is an
// error that has the file and line, and says what to write.
func TestAmbiguousValues(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"get: !":                            `policy.yaml:1: rule get: no value: write "@" to allow or "!" to deny, with the quotes`,
		"get:":                              `policy.yaml:1: rule get: no value`,
		"get: ~":                            `policy.yaml:1: rule get: no value`,
		"get: !!str":                        `policy.yaml:1: rule get: no value`,
		"get: |\n":                          `policy.yaml:1: rule get: no value`,
		"get: []":                           `policy.yaml:1: rule get: an empty list`,
		"get: '  '":                         `policy.yaml:1: rule get: the check is blank`,
		"get: true":                         `policy.yaml:1: rule get: want a text or a list`,
		"get: [[~]]":                        `policy.yaml:1: rule get: line 1: want a text`,
		"get: [~]":                          `policy.yaml:1: rule get: line 1: want a text`,
		"get: [[!]]":                        `policy.yaml:1: rule get: line 1: want a text`,
		"get: '@'\n---\nget: '!'\n":         `policy.yaml: the file has more than one document`,
		"get: '!'\n? [a]\n: '@'\n":          `policy.yaml:2: want the name of a rule`,
		"base: &b {get: '@'}\n<<: *b\n":     `policy.yaml:`,
		"get: '@'\nget: '!'\n":              `rule get is on line 1 already`,
		"get: [[role:reader], {a: role:x}]": `want a text`,
	} {
		file := write(t, filepath.Join(t.TempDir(), "policy.yaml"), text)
		_, err := policy.New([]policy.Rule{{Name: "get", Check: "role:admin"}}, policy.Config{File: file, Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
