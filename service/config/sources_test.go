package config_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/config"
)

// TestPrecedence: each source overrides the sources before it, even if it uses an older name of an option.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf.d")
	if err := os.Mkdir(conf, 0o750); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(conf, "20.conf"), "workers = 24\n", 0o600)
	put(t, filepath.Join(conf, "10.conf"), "workers = 22\n[database]\npool = 6\n", 0o600)
	put(t, filepath.Join(conf, "note.txt"), "nonsense", 0o600)
	file := put(t, filepath.Join(dir, "a.conf"), "workers = 20\nsql_connection = old\n", 0o600)
	var out bytes.Buffer
	src := config.Source{Logger: slog.New(slog.NewTextHandler(&out, nil)), Flags: map[string]string{"database.url": "u"}}
	for i, step := range []struct {
		add         func()
		want        int
		where       string
		url, urlWas string
	}{
		{func() {}, 4, "default", "u", "flag database.url"},
		{func() { src.Defaults = map[string]string{"workers": "10"} }, 10, "program's default workers", "u", "flag database.url"},
		{func() { src.Files = []string{file}; src.Flags = nil }, 20, file + ":1", "old", file + ":2"},
		{func() { src.Files = append(src.Files, conf) }, 24, filepath.Join(conf, "20.conf") + ":1", "old", file + ":2"},
		{func() { src.Env = []string{"OS_DEFAULT__WORKERS=30", "OS_DATABASE__SQL_URL=older"} }, 30, "environment OS_DEFAULT__WORKERS", "older", "environment OS_DATABASE__SQL_URL"},
		{func() { src.Env = append(src.Env, "OS_DATABASE__URL=new") }, 30, "environment OS_DEFAULT__WORKERS", "new", "environment OS_DATABASE__URL"},
		{func() { src.Flags = map[string]string{"workers": "40"} }, 40, "flag workers", "new", "environment OS_DATABASE__URL"},
		{func() { src.Overrides = map[string]string{"workers": "50", "database.url": "mine"} }, 50, "program's override workers", "mine", "program's override database.url"},
	} {
		step.add()
		c, err := config.Open[full](src)
		if err != nil {
			t.Fatal(err)
		}
		if c.Current().Workers != step.want || c.Current().Database.URL != step.url {
			t.Errorf("step %d: %d workers, url %s; want %d, %s", i, c.Current().Workers, c.Current().Database.URL, step.want, step.url)
		}
		for _, v := range c.Values() {
			if v.Name == "workers" && v.Where != step.where || v.Name == "url" && (v.Where != step.urlWas || v.Value != "***") {
				t.Errorf("step %d: %+v", i, v)
			}
		}
	}
	if !strings.Contains(out.String(), "section=DEFAULT option=sql_connection new_section=database new_name=url") {
		t.Errorf("no warning about an older name:\n%s", &out)
	}
}

// TestLenient: in lenient mode a file of another program is accepted. Each unknown option or section is one warning,
// even after reloads. An unknown flag is an error.
func TestLenient(t *testing.T) {
	t.Parallel()
	const text = "strict = false\nstrange = 1\n[oslo_concurrency]\nlock_path = /x\nmore = y\n[database]\nurl = u\nurls = v\n"
	for name, src := range map[string]config.Source{
		"by the file": {Files: write(t, text)}, "by the program": {Files: write(t, strings.TrimPrefix(text, "strict = false\n")), Lenient: true},
	} {
		var out bytes.Buffer
		src.Logger = slog.New(slog.NewTextHandler(&out, nil))
		c, err := config.Open[full](src)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for range 2 {
			if err := c.Reload(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n := strings.Count(out.String(), "unknown configuration ignored"); n != 3 {
			t.Errorf("%s: %d warnings, want 3:\n%s", name, n, &out)
		}
	}
	src := config.Source{Lenient: true, Flags: map[string]string{"wokers": "1", "database.url": "u"}}
	if _, err := config.Open[full](src); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "flag wokers: [DEFAULT] wokers: no such option") {
		t.Errorf("an unknown flag: %v, want Invalid", err)
	}
}

// TestSecretFiles: NAME_file may name a file with a secret, if other users cannot read that file.
func TestSecretFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := put(t, filepath.Join(dir, "good"), "hush\n\n", 0o640)
	for text, want := range map[string]string{
		"url_file = " + good:                                                                   "hush",
		"url_file = " + filepath.Join(dir, "none"):                                             "1.conf:2: [database] url_file: stat ",
		"url_file = " + put(t, filepath.Join(dir, "open"), "hush", 0o644):                      "all users can read or write " + dir + "/open, its mode is 0644: run chmod 0600, or chmod 0640 with the group of the service",
		"url_file = " + put(t, filepath.Join(dir, "long"), strings.Repeat("x", 70_000), 0o600): "has more than 65536 bytes",
		"url = a\nurl_file = " + good:                                                          "[database] url_file: url is also set: remove one of them",
		"url_file = " + good + "\nurl = a":                                                     "[database] url is set, and url_file names a file with its value: remove one of them",
		"url = a\npool_file = " + good:                                                         "[database] pool_file: no such option",
	} {
		var o full
		err := config.Load(&o, config.Source{Files: write(t, "[database]\n"+text+"\n")})
		if err == nil && o.Database.URL == want {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %q, %v; want %s", text, o.Database.URL, err, want)
		}
	}
	var o full
	err := config.Load(&o, config.Source{Files: write(t, "[database]\nurl = a\n"), Env: []string{"OS_DATABASE__URL_FILE=" + good}})
	if err != nil || o.Database.URL != "hush" {
		t.Errorf("a secret file in the environment: %q, %v; want the value of the file", o.Database.URL, err)
	}
	c, err := config.Open[full](config.Source{Files: write(t, "[database]\nurl_file = "+good+"\n")})
	if err != nil {
		t.Fatal(err)
	}
	if where := c.Where("database", "url"); !strings.HasSuffix(where, "1.conf:2 ("+good+")") {
		t.Errorf("the origin of a secret from a file: %s", where)
	}
}

// TestPasswordsInURLs: no value, warning or error shows the password of a URL, even if the option does not
// have the tag secret.
func TestPasswordsInURLs(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c, err := config.Open[between](config.Source{
		Flags: map[string]string{"peer": "http://u:hunter2@h/x"}, Env: []string{"OS_DEFAULT__PEAR=1", "OS_OTHER__X=1"}, Lenient: true, Logger: slog.New(slog.NewTextHandler(&out, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range c.Values() {
		if v.Name == "peer" && v.Value != "http://u:***@h/x" {
			t.Errorf("%+v, want the password masked", v)
		}
	}
	if !strings.Contains(out.String(), "environment OS_DEFAULT__PEAR: [DEFAULT] pear: no such option; the nearest is peer") || !strings.Contains(out.String(), "environment OS_OTHER__X: [other]: no such section") {
		t.Errorf("want warnings about OS_DEFAULT__PEAR and OS_OTHER__X:\n%s", &out)
	}
	for value, want := range map[string]string{
		"amqp://u:hunter2@h1:5672,u:hunter2@h2:5672/v": "amqp://u:***@h1:***@h2:5672/v",
		"amqp://u:hunter2@h1,amqp://u:hunter2@h2":      "amqp://u:***@h1,amqp://u:***@h2",
		"amqp://u:hunter2@hunter2@h":                   "amqp://u:***@***@h",
		"amqp://u:hunter2://hunter2@h":                 "amqp://u:***@h",
		"amqp://h1,amqp://u:hunter2@h2":                "amqp://h1,amqp:***@h2",
		"amqp://u@h1,amqp://u:hunter2@h2":              "amqp://u@h1,amqp://u:***@h2",
		"amqp://u@h:5672/v":                            "amqp://u@h:5672/v",
		"http://h:80/path":                             "http://h:80/path",
		"http://:hunter2@h":                            "http://:***@h",
	} {
		c, err := config.Open[between](config.Source{Flags: map[string]string{"peer": value}})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range c.Values() {
			if v.Name == "peer" && v.Value != want {
				t.Errorf("%s is shown as %s, want %s", value, v.Value, want)
			}
		}
	}
	_, err = config.Open[between](config.Source{Flags: map[string]string{"low": "http://u:hunter2@h"}})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

// TestSecretOverFile: a later file overrides an earlier one, with a secret itself or with the name of a file.
func TestSecretOverFile(t *testing.T) {
	t.Parallel()
	good := put(t, filepath.Join(t.TempDir(), "good"), "hush", 0o600)
	for _, files := range [][]string{{"[database]\nurl = a\n", "[database]\nurl_file = " + good + "\n"}, {"[database]\nurl_file = " + good + "\n", "[database]\nurl = hush\n"}} {
		var o full
		if err := config.Load(&o, config.Source{Files: write(t, files...)}); err != nil || o.Database.URL != "hush" {
			t.Errorf("%v: %q, %v; want the secret of the later file", files, o.Database.URL, err)
		}
	}
	var o full
	if err := config.Load(&o, config.Source{Files: write(t, "[database]\nurl_file = "+t.TempDir()+"\n")}); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a directory in place of the file: %v", err)
	}
}

// quoting is a type that parses its own text, and whose error quotes the text.
type quoting struct{}

// UnmarshalText fails.
func (*quoting) UnmarshalText(text []byte) error { return fmt.Errorf("%q is wrong", text) }

// TestSecretInError: the error of a secret option does not have the value, even if the option's type parses the value and
// returns an error that quotes it in another form.
func TestSecretInError(t *testing.T) {
	t.Parallel()
	var o struct {
		Key quoting `ini:"key" secret:"true"`
	}
	err := config.Load(&o, config.Source{Files: write(t, "key = hush\"hush\n")})
	if err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "1.conf:1: [DEFAULT] key: the value is not valid") {
		t.Errorf("%v, want an error without the value", err)
	}
}

// TestFlagNames: errors and the origin of a value name a flag as the program has named it.
func TestFlagNames(t *testing.T) {
	t.Parallel()
	src := config.Source{Flags: map[string]string{"workers": "many", "database.url": "u"}, FlagNames: map[string]string{"workers": "--jobs"}}
	if err := config.Load(new(full), src); err == nil || !strings.HasPrefix(err.Error(), "flag --jobs: [DEFAULT] workers: ") {
		t.Errorf("a wrong value: %v", err)
	}
	src.Flags["workers"] = "8"
	c, err := config.Open[full](src)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := c.Where("DEFAULT", "workers"), c.Where("database", "url"); a != "flag --jobs" || b != "flag database.url" {
		t.Errorf("origins %q and %q", a, b)
	}
}

// TestBytes: a value with a NUL byte, or one that is not UTF-8, is refused with its place, wherever the value is. The error does not have the value of a secret.
func TestBytes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := put(t, filepath.Join(dir, "url"), "hush\x00", 0o600)
	for i, tt := range []struct {
		text  string
		env   []string
		where string
	}{
		{"[database]\nurl = hush\x00\n", nil, "FILE:2: [database] url: the value has a NUL byte"},
		{"[database]\nurl = hush\xff\n", nil, "FILE:2: [database] url: the value is not UTF-8"},
		{"[database]\nurl_file = " + secret + "\n", nil, "FILE:2 (" + secret + "): [database] url: the value has a NUL byte"},
		{"[database]\nurl = u\n[driver_acme]\nkey = hush\x00\n", nil, "FILE:4: [driver_acme] key: the value has a NUL byte"},
		{"[database]\nurl = u\n[driver_acme]\nkey = hush\n  more\xc3\n", nil, "FILE:4: [driver_acme] key: the value is not UTF-8"},
		{"", []string{"OS_DATABASE__URL=hush\xff"}, "environment OS_DATABASE__URL: [database] url: the value is not UTF-8"},
	} {
		file := put(t, filepath.Join(dir, fmt.Sprint(i, ".conf")), tt.text, 0o600)
		err := config.Load(new(full), config.Source{Files: []string{file}, Env: tt.env})
		want := strings.ReplaceAll(tt.where, "FILE", file)
		if fault.CodeOf(err) != fault.Invalid || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %s", tt.text, err, want)
		}
	}
}

// TestOnlyCommas: a list or a dictionary that has only commas is refused, because it would be empty without a message.
func TestOnlyCommas(t *testing.T) {
	t.Parallel()
	type lists struct {
		List []string          `ini:"list" default:"a"`
		Dict map[string]string `ini:"dict"`
	}
	for value, refused := range map[string]bool{",": true, " ,, ,": true, "": false, "x,,": false, ",'',": false} {
		for _, name := range []string{"list", "dict"} {
			if name == "dict" && value != "" && !refused {
				continue // not the form of a dictionary
			}
			err := config.Load(new(lists), config.Source{Flags: map[string]string{name: value}})
			if got := err != nil && strings.Contains(err.Error(), "has only commas"); got != refused || !refused && err != nil {
				t.Errorf("%s = %q: %v", name, value, err)
			}
		}
	}
}
