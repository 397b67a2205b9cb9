package config_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/config"
)

type common struct {
	Debug bool `ini:"debug"`
}

type options struct {
	common
	Driver   string        `ini:"volume_driver" default:"fake"`
	Workers  int8          `ini:"workers" default:"4"`
	Slots    uint          `ini:"slots"`
	Ratio    float64       `ini:"ratio" default:"1.5"`
	Interval time.Duration `ini:"interval" default:"60"`
	Brokers  []string      `ini:"brokers" default:"a, b"`
	Database struct {
		Connection string `ini:"connection" secret:"true"`
		PoolSize   int    `ini:"pool_size" default:"5" secret:"true"`
	} `section:"database"`
	Drivers map[string]map[string]string `sections:"driver_"`
	Other   string
}

func defaults() options {
	o := options{Driver: "fake", Workers: 4, Ratio: 1.5, Interval: time.Minute, Brokers: []string{"a", "b"}}
	o.Database.PoolSize = 5
	o.Drivers = map[string]map[string]string{}
	return o
}

var allow = cmp.AllowUnexported(options{})

// write puts files into a directory and returns their paths.
func write(t *testing.T, texts ...string) []string {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for i, text := range texts {
		f := filepath.Join(dir, fmt.Sprintf("%d.conf", i+1))
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// TestLoad: Load reads each type and each form of a line, and the sources override one another in their order.
func TestLoad(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files []string
		env   []string
		flags map[string]string
		want  func(*options)
	}{
		{name: "defaults", want: func(*options) {}},
		{
			name: "all types", files: []string{`
[DEFAULT]
volume_driver = acme
workers=-7
slots : 9
ratio = 2e3
interval = 0.5
brokers = x,y , ,z
debug = Yes
[database]
connection = mysql://u:p#;$%(x)s=1@h/n ; not a comment
pool_size=6
`},
			want: func(o *options) {
				o.Driver, o.Workers, o.Slots, o.Ratio, o.Debug = "acme", -7, 9, 2000, true
				o.Interval, o.Brokers = 500*time.Millisecond, []string{"x", "y", "z"}
				o.Database.Connection, o.Database.PoolSize = "mysql://u:p#;$%(x)s=1@h/n ; not a comment", 6
			},
		},
		{
			name: "the form of the file", files: []string{"\ufeffinterval = 1m30s\r\n# workers = 1\r\n; workers = 2\r\nvolume_driver =\r\nworkers = 6\r\n" +
				"brokers = a,\r\n  b,\r\n\tc\r\n\r\n[database]\r\nconnection = \" quoted \"\r\n[DEFAULT]\r\nslots = 3"},
			want: func(o *options) {
				o.Interval, o.Driver, o.Workers, o.Slots = 90*time.Second, "", 6, 3
				o.Brokers, o.Database.Connection = []string{"a", "b", "c"}, " quoted "
			},
		},
		{
			name: "continuation keeps its lines", files: []string{"volume_driver = one\n two\n  # three\n"},
			want: func(o *options) { o.Driver = "one\ntwo\n# three" },
		},
		{
			name: "sections of a family", files: []string{"[driver_acme]\nurl = a=b\n Any Thing = 1\n[driver_empty]\n", "[driver_acme]\nurl = c\nx = y\n"},
			want: func(o *options) {
				o.Drivers = map[string]map[string]string{"acme": {"url": "c", "x": "y"}, "empty": {}}
			},
		},
		{
			name: "a later file overrides an earlier file", files: []string{"workers = 1\nslots = 1\n", "workers = 2\n"},
			want: func(o *options) { o.Workers, o.Slots = 2, 1 },
		},
		{
			name: "environment over files", files: []string{"workers = 1\nslots = 1\n"},
			env: []string{"OS_DEFAULT__WORKERS=3", "OS_DATABASE__CONNECTION=a=b", "OS_DEFAULT__VOLUME_DRIVER=", "OS_AUTH_URL=x", "DEFAULT__SLOTS=8", "odd"},
			want: func(o *options) {
				o.Workers, o.Slots, o.Database.Connection, o.Driver = 3, 1, "a=b", ""
			},
		},
		{
			name: "flags over environment", files: []string{"workers = 1\n"}, env: []string{"OS_DEFAULT__WORKERS=3", "OS_DATABASE__POOL_SIZE=7"},
			flags: map[string]string{"workers": "9", "DEFAULT.slots": "2", "database.pool_size": "8"},
			want:  func(o *options) { o.Workers, o.Slots, o.Database.PoolSize = 9, 2, 8 },
		},
		{
			name: "a wrong value that a later source overrides is ignored", files: []string{"workers = many\n"}, flags: map[string]string{"workers": "9"},
			want: func(o *options) { o.Workers = 9 },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := defaults()
			want.Other = "mine"
			tt.want(&want)
			got := options{Other: "mine"}
			if err := config.Load(&got, config.Source{Files: write(t, tt.files...), Env: tt.env, Flags: tt.flags}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, allow); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBools: Load reads all spellings of true and false.
func TestBools(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]bool{
		"true": true, "1": true, "on": true, "yes": true, "TRUE": true,
		"false": false, "0": false, "off": false, "no": false, "No": false,
	} {
		got := options{common: common{Debug: !want}}
		if err := config.Load(&got, config.Source{Flags: map[string]string{"debug": word}}); err != nil || got.Debug != want {
			t.Errorf("%s is read as %v, %v; want %v", word, got.Debug, err, want)
		}
	}
}

// TestErrors compares the full texts of errors, because an operator has nothing else. DIR stands for the directory of
// the files.
func TestErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		file  string
		env   []string
		flags map[string]string
		want  string
	}{
		{"misspelled option", "\n[database]\nconnektion = x\n", nil, nil, "DIR/1.conf:3: [database] connektion: no such option; the nearest is connection"},
		{"in the wrong section", "[DEFAULT]\nconnection = x\n", nil, nil, "DIR/1.conf:2: [DEFAULT] connection: no such option; it belongs to [database]"},
		{"misspelled section, one error", "[databases]\nconnection = x\npool_size = 1\n", nil, nil, "DIR/1.conf:1: [databases]: no such section; the nearest is database"},
		{"the prefix alone", "[driver_]\nx = y\n", nil, nil, "DIR/1.conf:1: [driver_]: no such section; the nearest is driver_..."},
		{"integer", "workers = many\n", nil, nil, `DIR/1.conf:1: [DEFAULT] workers: "many" is not an integer`},
		{"empty integer", "workers =\n", nil, nil, `DIR/1.conf:1: [DEFAULT] workers: "" is not an integer`},
		{"range of the type", "workers = 200\n", nil, nil, `DIR/1.conf:1: [DEFAULT] workers: "200" is out of range`},
		{"negative", "slots = -1\n", nil, nil, `DIR/1.conf:1: [DEFAULT] slots: "-1" is not an integer of 0 or more`},
		{"float", "ratio = NaN\n", nil, nil, `DIR/1.conf:1: [DEFAULT] ratio: "NaN" is not a number`},
		{"bool", "debug = maybe\n", nil, nil, `DIR/1.conf:1: [DEFAULT] debug: "maybe" is not a boolean: true, false, yes, no, on, off, 1, 0`},
		{"duration", "interval = soon\n", nil, nil, `DIR/1.conf:1: [DEFAULT] interval: "soon" is not a duration: write seconds, or a form such as "1m30s"`},
		{"long duration", "interval = 1e300\n", nil, nil, `DIR/1.conf:1: [DEFAULT] interval: "1e300" is out of range for a duration`},
		{"duration that is not a number", "interval = nan\n", nil, nil, `DIR/1.conf:1: [DEFAULT] interval: "nan" is out of range for a duration`},
		{"secret", "[database]\npool_size = hunter2\n", nil, nil, "DIR/1.conf:2: [database] pool_size: the value is not an integer"},
		{"secret in the environment", "", []string{"OS_DATABASE__POOL_SIZE=hunter2"}, nil, "environment OS_DATABASE__POOL_SIZE: [database] pool_size: the value is not an integer"},
		{"flag", "", nil, map[string]string{"workers": "x"}, `flag workers: [DEFAULT] workers: "x" is not an integer`},
		{"unknown flag", "", nil, map[string]string{"worker": "1"}, "flag worker: [DEFAULT] worker: no such option; the nearest is workers"},
		{"unknown section of a flag", "", nil, map[string]string{"data.x": "1"}, "flag data.x: no such section; the nearest is database"},
		{"no assignment", "hunter2\n", nil, nil, "DIR/1.conf:1: want [section], a comment, or name = value"},
		{"no name", " \n= hunter2\n", nil, nil, "DIR/1.conf:2: the name before the value is missing"},
		{"open head", "[database\n", nil, nil, "DIR/1.conf:1: the head of a section has the form [name]"},
		{"empty head", "[]\n", nil, nil, "DIR/1.conf:1: the head of a section has the form [name]"},
		{"stray continuation", "\n hunter2\n", nil, nil, "DIR/1.conf:2: the line begins with a blank, but no option above can be continued; write an option in the first column"},
		{"continuation after a comment", "workers = 1\n# x\n hunter2\n", nil, nil, "DIR/1.conf:3: the line begins with a blank, but no option above can be continued; write an option in the first column"},
		{"set twice", "workers = 1\nslots = 1\nworkers = 1\n", nil, nil, "DIR/1.conf:3: [DEFAULT] workers: is already set at DIR/1.conf:1: remove one of them"},
		{
			"set twice in two parts of a section", "[database]\nconnection = hunter2\n[DEFAULT]\n[Database]\nconnection = hunter2\n", nil, nil,
			"DIR/1.conf:5: [database] connection: is already set at DIR/1.conf:2: remove one of them",
		},
		{
			"set three times in a family", "[driver_acme]\nurl = a\nx = 1\nurl = b\n[driver_ACME]\nurl = a\n", nil, nil,
			"DIR/1.conf:4: [driver_acme] url: is already set at DIR/1.conf:2: remove one of them\nDIR/1.conf:6: [driver_acme] url: is already set at DIR/1.conf:2: remove one of them",
		},
		{
			"several errors", "nothing = 1\nratio = x\nworkers = x\n", nil, nil,
			"DIR/1.conf:1: [DEFAULT] nothing: no such option\nDIR/1.conf:2: [DEFAULT] ratio: \"x\" is not a number\nDIR/1.conf:3: [DEFAULT] workers: \"x\" is not an integer",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := write(t, tt.file)
			got := options{Driver: "before"}
			err := config.Load(&got, config.Source{Files: files, Env: tt.env, Flags: tt.flags})
			if !errors.Is(err, fault.Invalid) {
				t.Fatalf("Load = %v, want Invalid", err)
			}
			text := strings.ReplaceAll(err.Error(), filepath.Dir(files[0]), "DIR")
			if diff := cmp.Diff(tt.want, text); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if strings.Contains(text, "hunter2") {
				t.Error("the error contains a secret")
			}
			if diff := cmp.Diff(options{Driver: "before"}, got, allow); diff != "" {
				t.Errorf("options after an error (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMissingFile: a file that does not exist is an error with its name.
func TestMissingFile(t *testing.T) {
	t.Parallel()
	err := config.Load(&options{}, config.Source{Files: []string{filepath.Join(t.TempDir(), "no.conf")}})
	if !errors.Is(err, fault.Invalid) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "no.conf") {
		t.Errorf("Load = %v, want Invalid naming the file", err)
	}
}

// TestPanics: Load panics for a struct that does not follow the package comment.
func TestPanics(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]any{
		"not a pointer":             options{},
		"not a pointer to a struct": new(int),
		"bad default": &struct {
			A int `ini:"a" default:"x"`
		}{},
		"bad type": &struct {
			A []int `ini:"a"`
		}{},
		"complex": &struct {
			A complex64 `ini:"a"`
		}{},
		"twice": &struct {
			A int `ini:"a"`
			B int `ini:"a"`
		}{},
		"not exported": &struct {
			a int `ini:"a"`
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

// FuzzLoad: for any file Load returns without a panic, its error has the code
// Invalid, and a number is finite.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{"workers = 1\n", "[database]\npool_size = hunter2\n", "[", "[]", " x", "a:b=c", "k = '\n '", "\ufeff", "interval = 1e308", "ratio=Inf"} {
		f.Add(s)
	}
	path := filepath.Join(f.TempDir(), "x.conf")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var o options
		err := config.Load(&o, config.Source{Files: []string{path}})
		if err != nil && !errors.Is(err, fault.Invalid) {
			t.Errorf("error %v, want code Invalid", err)
		}
		if math.IsNaN(o.Ratio) || math.IsInf(o.Ratio, 0) {
			t.Errorf("ratio %v", o.Ratio)
		}
	})
}

func Example() {
	type Options struct {
		Driver   string        `ini:"volume_driver" default:"fake" help:"name of the driver"`
		Interval time.Duration `ini:"report_interval" default:"60" help:"time between reports"`
		Database struct {
			Connection string `ini:"connection" secret:"true" help:"URL of the database"`
		} `section:"database"`
	}
	var opts Options
	err := config.Load(&opts, config.Source{
		Env:   []string{"OS_DATABASE__CONNECTION=sqlite:///var/lib/v.db"},
		Flags: map[string]string{"report_interval": "1m30s"},
	})
	fmt.Println(opts.Driver, opts.Interval, opts.Database.Connection, err)

	fmt.Println(config.Load(&opts, config.Source{Flags: map[string]string{"volume_drivr": "acme"}}))
	// Output:
	// fake 1m30s sqlite:///var/lib/v.db <nil>
	// flag volume_drivr: [DEFAULT] volume_drivr: no such option; the nearest is volume_driver
}

// TestInspect: the error has a line for each error in the files, and the Config has the values that are right.
// If a file cannot be read, Inspect returns no Config.
func TestInspect(t *testing.T) {
	t.Parallel()
	type options struct {
		Workers int      `ini:"workers" default:"4" min:"1"`
		Hosts   []string `ini:"hosts" default:"a,b" choices:"a,b"`
		Name    string   `ini:"name"`
	}
	dir := t.TempDir()
	path, second := filepath.Join(dir, "a.conf"), filepath.Join(dir, "b.conf")
	text := "[DEFAULT]\nworkers = 0\nthis is not an option\nname = x\n  continued\nhosts = a,z\n= 3\nnaem = y\n[broken\nlost = 1\n  more\n"
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.WriteFile(second, []byte("name = z\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := config.Inspect[options](config.Source{Files: []string{dir}})
	for _, want := range []string{
		path + ":2: [DEFAULT] workers: \"0\" is less than 1", path + ":3: want [section]", path + ":6: [DEFAULT] hosts",
		path + ":7: the name before the value is missing", path + ":8: [DEFAULT] naem: no such option; the nearest is name", path + ":9: the head of a section",
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("the error lacks %s:\n%v", want, err)
		}
	}
	if n := strings.Count(fmt.Sprint(err), "\n"); n != 5 {
		t.Errorf("%d lines, want 6:\n%v", n+1, err)
	}
	if got := *c.Current(); got.Workers != 4 || strings.Join(got.Hosts, ",") != "a,b" || got.Name != "z" {
		t.Errorf("options: %+v, want the right value and two defaults", got)
	}
	if got := strings.Join(c.Files(), " "); got != path+" "+second {
		t.Errorf("files: %s, want both", got)
	}
	for _, v := range c.Values() {
		if v.Wrong != (v.Name != "name") {
			t.Errorf("option %s: Wrong is %v", v.Name, v.Wrong)
		}
	}
	if c, err := config.Inspect[options](config.Source{Files: []string{dir + "/missing"}}); c != nil || err == nil {
		t.Errorf("a file that does not exist: %v, %v; want nil and an error", c, err)
	}
}

// TestInspectUnsupported: an option with a value that is not supported has its default, even if the value also has another
// error, such as one out of bounds.
func TestInspectUnsupported(t *testing.T) {
	t.Parallel()
	type options struct {
		Mode string `ini:"mode" default:"a" choices:"a,b" unsupported:"there is one mode"`
		Size int    `ini:"size" default:"1" max:"4" unsupported:"there is one size"`
	}
	for _, text := range []string{"mode = b\nsize = 3\n", "mode = z\nsize = 9\n", "mode = \nsize = x\n"} {
		c, err := config.Inspect[options](config.Source{Files: write(t, text)})
		if err == nil || strings.Count(err.Error(), "is not supported") != 2 {
			t.Errorf("%q: %v, want two errors", text, err)
		}
		if got, want := *c.Current(), (options{Mode: "a", Size: 1}); got != want {
			t.Errorf("%q: options %+v, want the defaults %+v", text, got, want)
		}
	}
}
