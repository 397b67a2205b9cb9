package config_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/config"
)

// TestTags: Load checks bounds, choices, required options, lists and maps, and its errors have the full texts.
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

// TestSample: a sample describes all options. It does not change a value, neither as it is nor with all
// options uncommented.
func TestSample(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := config.Sample(&out, new(full), nil); err != nil {
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

// TestWrongSections: Load panics with the field's name if a section is not a struct, or a family of sections
// is neither a map of maps of texts nor a map of structs of options.
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

// TestRequired: a required option of each type must be set. It may be set to its zero value, but not to an empty text.
func TestRequired(t *testing.T) {
	t.Parallel()
	type options struct {
		Size  int               `ini:"size" required:"true"`
		On    bool              `ini:"on" required:"true"`
		Wait  time.Duration     `ini:"wait" required:"true"`
		Name  string            `ini:"name" required:"true"`
		Hosts []string          `ini:"hosts" required:"true"`
		Pairs map[string]string `ini:"pairs" required:"true"`
		Addr  netip.Addr        `ini:"addr" required:"true"`
	}
	const rest = "name = n\nhosts = h\npairs = a:b\naddr = ::1\n"
	for text, want := range map[string][]string{
		"":                                     {"size", "on", "wait", "name", "hosts", "pairs", "addr"},
		rest:                                   {"size", "on", "wait"},
		"size = 0\non = no\nwait = 0\n" + rest: nil,
		"size = 1\non = yes\nwait = 1\nname =\nhosts =\npairs =\naddr =\n": {"name", "hosts", "pairs", "addr"},
	} {
		var o options
		err := config.Load(&o, config.Source{Files: write(t, text)})
		if n := strings.Count(fmt.Sprint(err), "is required: set it in a file or as OS_DEFAULT__"); n != len(want) || (err == nil) != (n == 0) {
			t.Errorf("%q: %v, want errors for %s", text, err, want)
		}
		for _, name := range want {
			if !strings.Contains(fmt.Sprint(err), "[DEFAULT] "+name+" is required") {
				t.Errorf("%q: %v, want an error for %s", text, err, name)
			}
		}
	}
}
