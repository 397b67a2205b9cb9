package config_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/config"
)

// full has options of each type and with each tag.
type full struct {
	Strict   bool              `ini:"strict" default:"true" strict:"true" help:"unknown options are errors"`
	Workers  int               `ini:"workers" default:"4" min:"1" max:"64" help:"concurrency limit" reloadable:"true"`
	Level    string            `ini:"level" default:"info" choices:"debug, info, error" reloadable:"true"`
	Wait     time.Duration     `ini:"wait" default:"60" min:"0.5" max:"1h"`
	Brokers  []string          `ini:"brokers" default:"a,b" max:"3"`
	Labels   map[string]string `ini:"labels" default:"x:1"`
	Addr     netip.Addr        `ini:"addr" default:"127.0.0.1"`
	Old      string            `ini:"old" removed:"replaced by level in 3.0"`
	Database struct {
		URL  string `ini:"url" required:"true" secret:"true" deprecated:"sql_url, DEFAULT.sql_connection"`
		Pool uint8  `ini:"pool" default:"5"`
	} `section:"database"`
	Drivers map[string]map[string]string `sections:"driver_"`
}

var errOdd = errors.New("workers must be even")

// Validate returns errOdd if the number of workers is odd.
func (f *full) Validate() error {
	if f.Workers%2 != 0 {
		return errOdd
	}
	return nil
}

// put writes a file with a mode, and returns its path.
func put(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPrecedence: each source overrides the ones before, also if it uses an older name.
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

// TestTags: bounds, choices, required options, lists and maps, with the full texts of errors.
func TestTags(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"workers = 0":                        `1.conf:1: [DEFAULT] workers: "0" is less than 1`,
		"workers = 66":                       `1.conf:1: [DEFAULT] workers: "66" is more than 64`,
		"workers = 3":                        "workers must be even",
		"level = loud":                       `1.conf:1: [DEFAULT] level: "loud" is not one of debug, info, error`,
		"wait = 0.1":                         `1.conf:1: [DEFAULT] wait: "0.1" is less than 0.5`,
		"wait = 2h":                          `1.conf:1: [DEFAULT] wait: "2h" is more than 1h`,
		"brokers = a,b,c,d":                  `1.conf:1: [DEFAULT] brokers: "a,b,c,d" has more than 3`,
		`brokers = "a`:                       `brokers: "\"a" has a quote that is not closed`,
		`brokers = "a" b`:                    `has text between a closing quote and the next comma`,
		"labels = a":                         `1.conf:1: [DEFAULT] labels: "a" does not have the form name:value,name:value`,
		"labels = a:1,a:2":                   `has the same name twice`,
		"addr = host":                        `1.conf:1: [DEFAULT] addr: "host" is not valid: `,
		"[database]\nurl =":                  "[database] url is required: set it in a file or as OS_DATABASE__URL",
		"[database]\npool = 256":             `1.conf:2: [database] pool: "256" is out of range`,
		"strict = true\nworker = 1":          "1.conf:2: [DEFAULT] worker: no such option; the nearest is workers",
		"strict = maybe\nworker = 1":         "is not a boolean",
		"[database]\nurl = secret\npool = x": `1.conf:3: [database] pool: "x" is not an integer`,
	} {
		var o full
		err := config.Load(&o, config.Source{Files: write(t, text+"\n"), Defaults: map[string]string{"database.url": "u"}})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
	var o full
	err := config.Load(&o, config.Source{Files: write(t, "brokers = \"a,b\", 'c' ,, d\nlabels = a:1, \"b:x,y\" , c:\naddr = ::1\nold = 1\n[database]\nurl = u\n"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a,b", "c", "d"}, o.Brokers); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "x,y", "c": ""}, o.Labels); diff != "" {
		t.Error(diff)
	}
	if o.Addr != netip.IPv6Loopback() || o.Old != "" {
		t.Errorf("address %v, removed option %q; want ::1 and nothing", o.Addr, o.Old)
	}
}

// TestLenient: in lenient mode a file of another program is accepted. Each unknown option or section is one
// warning, also after reloads. An unknown flag is an error.
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
		"url_file = " + put(t, filepath.Join(dir, "open"), "hush", 0o644):                      "all users can read or write " + dir + "/open, its mode is 0644: run chmod 0600",
		"url_file = " + put(t, filepath.Join(dir, "long"), strings.Repeat("x", 70_000), 0o600): "has more than 65536 bytes",
		"url = a\nurl_file = " + good:                                                          "[database] url_file: url is set, too: remove one of them",
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
}

// TestReload: a reload changes all reloadable options or, on an error of a file or a check function, none.
// Other options wait for a restart. A struct that Current returned earlier does not change.
func TestReload(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "a.conf")
	set := func(text string) {
		t.Helper()
		put(t, file, text+"\n[database]\nurl = u\n", 0o600)
	}
	set("workers = 2")
	var out bytes.Buffer
	c, err := config.Open[full](config.Source{Files: []string{file}, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	var log []string
	c.OnChange(func(old, next *full) error {
		log = append(log, fmt.Sprint("check ", old.Workers, next.Workers))
		if next.Workers == 8 {
			return errors.New("eight is too many")
		}
		return nil
	}, func(old, next *full) { log = append(log, fmt.Sprint("apply ", old.Workers, next.Workers)) })
	c.OnChange(nil, func(_, next *full) { log = append(log, fmt.Sprint("now ", c.Current() == next)) })
	first := c.Current()
	for _, tt := range []struct {
		text    string
		workers int
		pool    uint8
		want    string // what the error contains; empty: no error
		log     string // the calls of the functions of OnChange
	}{
		{"workers = 2", 2, 5, "", ""},
		{"workers = 4\nwait = 7", 4, 5, "", "check 2 4,apply 2 4,now true"},
		{"workers = 4\nwait = x\nlevel = y", 4, 5, "wait", ""},
		{"workers = 8", 4, 5, "eight is too many", "check 4 8"},
		{"workers = 7", 4, 5, "must be even", ""},
		{"workers = 6\n[driver_x]\na = b", 6, 5, "", "check 4 6,apply 4 6,now true"},
	} {
		log = nil
		set(tt.text)
		err := c.Reload(t.Context())
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || fault.CodeOf(err) != fault.Invalid) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
		now := c.Current()
		if now.Workers != tt.workers || now.Wait != time.Minute || len(now.Drivers) != 0 || strings.Join(log, ",") != tt.log {
			t.Errorf("%q: options %+v after the calls %v, want the calls %s", tt.text, now, log, tt.log)
		}
		for _, v := range c.Values() {
			if v.Name == "workers" && v.Value != strconv.Itoa(tt.workers) || v.Name == "wait" && v.Value != "60" {
				t.Errorf("%q: Values has %+v", tt.text, v)
			}
		}
	}
	if strings.Contains(out.String(), "option=workers where="+file+":1 value=8") {
		t.Errorf("the log has a change that a check function rejected:\n%s", &out)
	}
	if first.Workers != 2 {
		t.Errorf("the struct of before the reloads has changed: %+v", first)
	}
	for _, want := range []string{"changed option requires a restart\" section=DEFAULT option=wait", "changed sections require a restart\" sections=driver_*", "option=workers"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, &out)
		}
	}
}

// TestSample: a sample describes all options. It does not change a value, neither as it is nor with all
// options uncommented.
func TestSample(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := config.Sample(&out, new(full)); err != nil {
		t.Fatal(err)
	}
	var uncommented []string
	for line := range strings.Lines(out.String()) {
		if len(line) > 80 {
			t.Errorf("a line is longer than 79 columns: %s", line)
		}
		switch {
		case strings.HasPrefix(line, "# "):
		case strings.HasPrefix(line, "#url ="):
			uncommented = append(uncommented, "url = u\n") // a required option
		default:
			uncommented = append(uncommented, strings.TrimPrefix(line, "#"))
		}
	}
	var got, want full
	if err := config.Load(&got, config.Source{Files: write(t, strings.Join(uncommented, "")), Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatalf("%v\n%s", err, uncommented)
	}
	if err := config.Load(&want, config.Source{Files: write(t, out.String()), Overrides: map[string]string{"database.url": "u"}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("uncommented sample (-defaults +sample):\n%s", diff)
	}
	for _, line := range []string{
		"# Concurrency limit. An integer, at least 1, at most 64. A change takes effect\n# on SIGHUP.\n#workers = 4\n", "# A text: debug, info, error.", "[database]\n",
		"Older\n# names: sql_url, DEFAULT.sql_connection.", "The option has no effect any more: replaced by level in 3.0.", "# Sections [driver_NAME] have options of their own.", "Secret: url_file may name a file",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%s\nlacks %s", &out, line)
		}
	}
}

// TestBadTags: Load panics if a tag is wrong.
func TestBadTags(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]any{
		"default out of range": &struct {
			A int `ini:"a" default:"9" max:"5"`
		}{}, "default not among the choices": &struct {
			A string `ini:"a" default:"x" choices:"y"`
		}{}, "unknown tag": &struct {
			A int `ini:"a" defalt:"1"`
		}{}, "bad flag": &struct {
			A int `ini:"a" secret:"yes"`
		}{}, "required with a default": &struct {
			A string `ini:"a" default:"1" required:"true"`
		}{}, "strict text": &struct {
			A string `ini:"a" strict:"true"`
		}{}, "bad bound": &struct {
			A int `ini:"a" default:"1" min:"x"`
		}{}, "dictionary of numbers": &struct {
			A map[string]int `ini:"a" default:"a:1"`
		}{},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			_ = config.Load(opts, config.Source{})
		}()
	}
}

var _ interface {
	service.Part
	service.Reloader
} = (*config.Config[full])(nil)

func ExampleOpen() {
	type options struct {
		Workers int `ini:"workers" default:"4" min:"1" reloadable:"true"`
	}
	c, err := config.Open[options](config.Source{Env: []string{"OS_DEFAULT__WORKERS=8"}})
	if err != nil {
		panic(err)
	}
	c.OnChange(nil, func(old, next *options) { fmt.Println("from", old.Workers, "to", next.Workers) })
	fmt.Println(c.Current().Workers, c.Values()[0].Where)
	_, err = config.Open[options](config.Source{Env: []string{"OS_DEFAULT__WORKERS=0"}})
	fmt.Println(err)
	fmt.Println(c.Reload(context.Background()))
	// Output:
	// 8 environment OS_DEFAULT__WORKERS
	// environment OS_DEFAULT__WORKERS: [DEFAULT] workers: "0" is less than 1
	// <nil>
}

// between has options that depend on each other, and an option with bounds and without a default.
type between struct {
	Low  int    `ini:"low" default:"1"`
	High int    `ini:"high" default:"9" reloadable:"true"`
	Open int    `ini:"open" min:"1"`
	Peer string `ini:"peer"`
}

func (b *between) Validate() error {
	if b.Low >= b.High {
		return errors.New("low must be below high")
	}
	return nil
}

// TestMergedIsValid: a reload validates the changed options together with those that wait for a restart.
func TestMergedIsValid(t *testing.T) {
	t.Parallel()
	file := put(t, filepath.Join(t.TempDir(), "a.conf"), "low = 5\nhigh = 6\n", 0o600)
	c, err := config.Open[between](config.Source{Files: []string{file}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	put(t, file, "low = 1\nhigh = 2\n", 0o600)
	if err := c.Reload(t.Context()); err == nil || c.Current().High != 6 {
		t.Errorf("Reload: %v, options %+v; want an error and no change", err, c.Current())
	}
}

// TestUnset: bounds apply only to options that are set.
func TestUnset(t *testing.T) {
	t.Parallel()
	var b between
	if err := config.Load(&b, config.Source{}); err != nil || b.Open != 0 {
		t.Errorf("options that are not set: %+v, %v; want no error", b, err)
	}
	if err := config.Load(&b, config.Source{Flags: map[string]string{"open": "0"}}); err == nil {
		t.Error("0 is accepted, want an error")
	}
}

// guarded has options with the tags protects and unsupported.
type guarded struct {
	Strategy string `ini:"auth_strategy" default:"keystone" choices:"keystone, none" protects:"true"`
	Debug    bool   `ini:"debug"`
	TLS      struct {
		CA     string `ini:"ca_file" protects:"true"`
		Policy string `ini:"ssl_version" unsupported:"the TLS library chooses the version"`
		Token  string `ini:"token" default:"x" secret:"true" unsupported:"there are no tokens"`
		Size   int    `ini:"size"`
	} `section:"tls"`
	Cache struct {
		Size int `ini:"size"`
	} `section:"cache"`
}

// TestProtects: a name that may be meant for an option with the tag protects is an error, even if unknown
// options are ignored. So is a value that is not supported.
func TestProtects(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text    string
		env     string
		strict  string // the error in strict mode; "": no error
		lenient string // the error in lenient mode; "": no error
	}{
		{"auth_strategi = keystone", "", "no such option", "1.conf:1: [DEFAULT] auth_strategi: no such option; the nearest is auth_strategy; this is an error"},
		{"auth_strategyy = keystone", "", "no such option", "this is an error even though"},
		{"ca_file = /x", "", "it belongs to [tls]", "[DEFAULT] ca_file: no such option; it belongs to [tls]; this is an error"},
		{"[cache]\nca_file = /x", "", "it belongs to [tls]", "[cache] ca_file: no such option"},
		{"[tls]\nca_fil = /x", "", "the nearest is ca_file", "[tls] ca_fil: no such option"},
		{"[tsl]\nca_file = /x", "", "no such section", "[tsl]: no such section"},
		{"[tls]\nssl_version = 1", "", "1.conf:2: [tls] ssl_version = 1 is not supported: the TLS library chooses the version", "is not supported"},
		{"[tls]\ntoken = hunter2", "", "[tls] token = *** is not supported", "[tls] token = *** is not supported"},
		{"[tls]\nssl_version =", "", "", ""},
		{"[tls]\ntoken = x", "", "", ""},
		{"[tls]\nsizes = 1", "", "no such option", ""},
		{"[cachee]\nsize = 1", "", "no such section", ""},
		{"[somewhere_else]\nca_file = 1", "", "no such section", ""},
		{"debugg = 1", "", "no such option", ""},
		{"", "OS_DEFAULT__AUTH_STRATEGI=keystone", "environment OS_DEFAULT__AUTH_STRATEGI: [DEFAULT] auth_strategi: no such option; the nearest is auth_strategy", "this is an error even though"},
		{"", "OS_TLS__CA_FIL=/x", "environment OS_TLS__CA_FIL: [tls] ca_fil: no such option; the nearest is ca_file", "this is an error even though"},
		{"", "OS_TLS__SSL_VERSION=1", "environment OS_TLS__SSL_VERSION: [tls] ssl_version = 1 is not supported", "is not supported"},
		{"", "OS_DEFAULT__DEBUGG=1", "the nearest is debug", ""},
		{"", "OS_OTHER__DEBUG=1", "environment OS_OTHER__DEBUG: [other]: no such section", ""},
	} {
		file := filepath.Join(t.TempDir(), "1.conf")
		put(t, file, tt.text+"\n", 0o600)
		for _, lenient := range []bool{false, true} {
			want := tt.strict
			if lenient {
				want = tt.lenient
			}
			var g guarded
			err := config.Load(&g, config.Source{Files: []string{file}, Env: []string{tt.env}, Lenient: lenient, Logger: slog.New(slog.DiscardHandler)})
			if (err != nil) != (want != "") || !strings.Contains(fmt.Sprint(err), want) || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("%q %s, lenient %t: %v, want %q", tt.text, tt.env, lenient, err, want)
			}
		}
	}
}

// TestWrongSections: Load panics with the field's name if a section is not a struct, or a family of sections
// is not a map of maps of texts.
func TestWrongSections(t *testing.T) {
	t.Parallel()
	type entry struct{ A string }
	for name, opts := range map[string]any{
		"Structs": &struct {
			Structs map[string]entry `sections:"x_"`
		}{},
		"Text": &struct {
			Text string `sections:"x_"`
		}{},
		"Pointer": &struct {
			Pointer *entry `section:"x"`
		}{},
		"hidden": &struct {
			hidden map[string]map[string]string `sections:"x_"`
		}{},
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, "config: field "+name+":") {
					t.Errorf("panic %q does not name %s", got, name)
				}
			}()
			_ = config.Load(opts, config.Source{})
		}()
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
