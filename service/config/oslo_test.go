package config_test

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

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/service/config"
)

// osloOptions are the options of testdata/oslo.py.
type osloOptions struct {
	Word     string            `ini:"word" default:"w" json:"word"`
	Text     string            `ini:"text" default:"d" json:"text"`
	Num      int               `ini:"num" default:"4" min:"0" max:"100" json:"num"`
	Ratio    float64           `ini:"ratio" default:"1.5" min:"-2.5" json:"ratio"`
	Flag     bool              `ini:"flag" default:"false" json:"flag"`
	Items    []string          `ini:"items" default:"x,y" json:"items"`
	Pairs    map[string]string `ini:"pairs" json:"pairs"`
	Kind     string            `ini:"kind" default:"a" choices:"a,b" json:"kind"`
	Shape    string            `ini:"shape" default:"z" regex:"^[a-z]+$" json:"shape"`
	Many     []string          `ini:"many" multi:"true" json:"many"`
	Database struct {
		Connection string `ini:"connection" deprecated:"DEFAULT.sql_connection" json:"connection"`
		Pool       int    `ini:"pool" default:"5" deprecated:"max_pool" json:"pool"`
	} `section:"database" json:"-"`
}

// osloCase is a configuration that oslo.config and this package load.
type osloCase struct {
	Args  []string          `json:"args"`
	Env   map[string]string `json:"env"`
	files []string
	word  string // the value of the flag --word, or ""
	shown string // the files' contents, for a failure's message
}

// osloValues are values of each option. The first two are right. Some differences from oslo.config are on purpose and
// are not tested: quotes and empty items in lists, numbers with underscores, nan and inf, and a MultiStrOpt in
// the environment, which oslo.config reads as a list of letters. An option is set once in a file, because this package refuses the second value, and oslo.config
// takes it. The option word is set by a flag and not in files,
// because in oslo.config a flag and a file override each other by their order on the command line.
var osloValues = map[string][]string{
	"text":           {"", "a", " b c ", "x=y", "q: r", "# no comment", "'single'", `"double"`, `"mixed'`, "$num", "${database.pool}", "p$$q", `p\$q`, "a$1", "$", "$nope", "${nope}", "${database.nope}"},
	"num":            {"0", "7", "100", "101", "-1", "x", "1.5", "$num", "'8'"},
	"ratio":          {"1", "-2.5", "-2.6", "1e3", "x", ".5"},
	"flag":           {"true", "True", "YES", "on", "0", "off", "maybe", "2", "no"},
	"items":          {"", "a", "a,b", "a , b ,c", "$num,b", "a\n  b,\n  c", "a,\n  b"},
	"pairs":          {"", "a:1", "a:1,b:2", "a:1:2 , b: x", "a", "a:1,a:2", ":1", "a:"},
	"kind":           {"a", "b", "c", "A", "$text"},
	"shape":          {"abc", "a1", "", "$kind"},
	"many":           {"one", "two,three", "$text", "four\n  five"},
	"connection":     {"mysql://u:p@h/d", "first\n  second", "$text"},
	"sql_connection": {"older", "oldest"},
	"pool":           {"6", "x", "$num"},
	"max_pool":       {"9", "10"},
	"unknown":        {"1", "x"},
}

var osloKeys = map[string][]string{
	"DEFAULT":  {"text", "num", "ratio", "flag", "items", "pairs", "kind", "shape", "many", "many", "sql_connection", "unknown"},
	"database": {"connection", "pool", "max_pool", "unknown"},
	"other":    {"unknown", "text"},
}

// newOsloCase returns a random configuration with files and directories below dir. Wrong values are rare, so
// that many configurations load.
func newOsloCase(t *testing.T, rng *rand.Rand, dir string) osloCase {
	t.Helper()
	c := osloCase{Env: map[string]string{}}
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	value := func(key string) string {
		list := osloValues[key]
		if rng.IntN(4) > 0 { // a right value
			list = list[:min(2, len(list))]
		}
		return pick(list...)
	}
	spelling := pick("database", "Database", "DATABASE", "dataBase")
	text := func() string {
		var out strings.Builder
		set := map[string]bool{}
		for range 1 + rng.IntN(3) {
			section := pick("DEFAULT", "DEFAULT", "database", "other")
			name := section
			if section == "database" {
				name = spelling
			}
			fmt.Fprintf(&out, "[%s]%s\n", name, pick("", "", "  "))
			for range rng.IntN(6) {
				key := pick(osloKeys[section]...)
				if set[section+key] && key != "many" {
					continue
				}
				set[section+key] = true
				fmt.Fprintf(&out, "%s%s%s\n", key, pick("=", " = ", ":", " : "), value(key))
				out.WriteString(pick("", "", "", "\n", "# comment\n", "; x = y\n", "   \n"))
			}
			if rng.IntN(40) == 0 {
				out.WriteString(pick("nonsense\n", "[open\n", "[]\n", "= value\n", "\n  goes on\n"))
			}
		}
		return out.String()
	}
	put := func(name string) string {
		path, raw := filepath.Join(dir, name), text()
		if err := os.WriteFile(path, []byte(raw), 0o600); err != nil {
			t.Fatal(err)
		}
		c.shown += "--- " + name + "\n" + raw
		return path
	}
	for i := range 1 + rng.IntN(3) {
		if rng.IntN(3) > 0 {
			path := put(fmt.Sprintf("%d.conf", i))
			c.files, c.Args = append(c.files, path), append(c.Args, "--config-file", path)
			continue
		}
		sub := fmt.Sprintf("%d.d", i)
		if err := os.Mkdir(filepath.Join(dir, sub), 0o750); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"b.conf", "a.conf", "ignored.txt", ".hidden.conf"}[:rng.IntN(5)] {
			put(filepath.Join(sub, name))
		}
		path := filepath.Join(dir, sub)
		c.files, c.Args = append(c.files, path), append(c.Args, "--config-dir", path)
	}
	for _, name := range []string{"DEFAULT.text", "DEFAULT.num", "DEFAULT.items", "database.pool", "database.connection"} {
		if rng.IntN(8) == 0 {
			section, key, _ := strings.Cut(name, ".")
			c.Env["OS_"+strings.ToUpper(section+"__"+key)] = value(key)
		}
	}
	if rng.IntN(4) == 0 {
		c.Env["OS_DEFAULT__WORD"] = "environment"
	}
	if rng.IntN(4) == 0 {
		c.word = pick("flag", "$num")
		c.Args = append(c.Args, "--word", c.word)
	}
	return c
}

// TestOslo loads random configurations with this package and with oslo.config itself. Both fail, or both have
// the same values.
func TestOslo(t *testing.T) {
	t.Parallel()
	if err := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", "import oslo_config").Run(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("oslo.config (package python3-oslo.config) is not installed, and CI is set")
		}
		t.Skip("needs oslo.config, package python3-oslo.config")
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	cases := make([]osloCase, 400)
	for i := range cases {
		cases[i] = newOsloCase(t, rng, t.TempDir())
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
		Options json.RawMessage
	}
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(cases) {
		t.Fatalf("%d results of %d: %v", len(results), len(cases), err)
	}
	loaded := 0
	for i, c := range cases {
		src := config.Source{Files: c.files, Lenient: true, Logger: slog.New(slog.DiscardHandler)}
		for k, v := range c.Env {
			src.Env = append(src.Env, k+"="+v)
		}
		if c.word != "" {
			src.Flags = map[string]string{"word": c.word}
		}
		var got, want osloOptions
		err := config.Load(&got, src)
		if theirs := results[i].Error; (err != nil) != (theirs != "") {
			t.Errorf("oslo.config: %q; this package: %v\n%s%v %v", theirs, err, c.shown, c.Args, c.Env)
			continue
		}
		if err != nil {
			continue
		}
		loaded++
		if err := json.Unmarshal(results[i].Options, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(results[i].Options, &want.Database); err != nil {
			t.Fatal(err)
		}
		for _, o := range []*osloOptions{&got, &want} { // an empty list is equal to no list
			if len(o.Items) == 0 {
				o.Items = nil
			}
			if len(o.Pairs) == 0 {
				o.Pairs = nil
			}
			if len(o.Many) == 0 {
				o.Many = nil
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("oslo.config (-), this package (+):\n%s%s%v %v", diff, c.shown, c.Args, c.Env)
		}
	}
	if loaded < len(cases)/4 || loaded == len(cases) {
		t.Errorf("%d of %d cases were loaded: too few, or no case had an error", loaded, len(cases))
	}
}
