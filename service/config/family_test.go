package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/config"
)

// backend is a section of a typed family.
type backend struct {
	URL      string        `ini:"url" required:"true" help:"where the backend is"`
	Size     int           `ini:"size" default:"10" min:"1" max:"99" reloadable:"true"`
	Wait     time.Duration `ini:"wait" default:"5" deprecated:"delay"`
	Password string        `ini:"password" secret:"true"`
}

// Validate refuses a text that is not a URL.
func (b *backend) Validate() error {
	if !strings.Contains(b.URL, "://") {
		return fault.WithReason(errors.New("is not a URL"), "", map[string]string{"option": "url"})
	}
	if b.Size == 66 {
		return errors.New("66 is a bad size")
	}
	return nil
}

// withBackends has a typed family, and a section whose name begins like the names of the family's sections.
type withBackends struct {
	Backends map[string]backend `sections:"backend_"`
	Defaults struct {
		Kind string `ini:"kind" default:"slow"`
	} `section:"backend_defaults"`
}

// load returns the options in files and in the environment.
func load[T any](t *testing.T, env []string, texts ...string) (*config.Config[T], error) {
	t.Helper()
	return config.Inspect[T](config.Source{Files: write(t, texts...), Env: env, Logger: slog.New(slog.DiscardHandler)})
}

// TestTypedFamily: a section of a typed family has defaults, takes values of several files and of the environment, reads a secret from a
// file, and appears in Values with its secrets masked. A section that the struct declares by itself is not a section of the family. A
// variable of the environment may declare a section.
func TestTypedFamily(t *testing.T) {
	t.Parallel()
	secret := put(t, filepath.Join(t.TempDir(), "password"), "s3cret\n", 0o600)
	c, err := load[withBackends](t, []string{"OS_BACKEND_FAST__WAIT=7", "OS_BACKEND_ENV__URL=e://e", "OS_BACKEND_ENV__SIZE=3", "OS_BACKEND_DEFAULTS__KIND=quick"},
		"[backend_Fast]\nurl = a://b\nsize = 20\n[backend_defaults]\nkind = x\n", "[BACKEND_Fast]\npassword_file = "+secret+"\n[backend_slow]\nurl = c://d\ndelay = 9\n")
	if err != nil {
		t.Fatal(err)
	}
	want := withBackends{Backends: map[string]backend{
		"Fast": {URL: "a://b", Size: 20, Wait: 7 * time.Second, Password: "s3cret"},
		"slow": {URL: "c://d", Size: 10, Wait: 9 * time.Second},
		"env":  {URL: "e://e", Size: 3, Wait: 5 * time.Second},
	}}
	want.Defaults.Kind = "quick"
	if diff := cmp.Diff(want, *c.Current()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := fmt.Sprint(c.Values()); strings.Contains(got, "s3cret") || !strings.Contains(got, "{backend_Fast password ***") || !strings.Contains(got, "{backend_slow size 10 default false}") {
		t.Errorf("values %s", got)
	}
	if got := c.Where("backend_fast", "wait") + " " + filepath.Base(c.Where("backend_slow", "")); got != "environment OS_BACKEND_FAST__WAIT 2.conf:3" {
		t.Errorf("places %s", got)
	}
}

// TestWrongFamily: an error in a section of a typed family has the place, and the nearest name.
func TestWrongFamily(t *testing.T) {
	t.Parallel()
	const good = "[backend_a]\nurl = a://b\n"
	for _, c := range []struct{ text, env, want string }{
		{good + "siz = 3\n", "", "1.conf:3: [backend_a] siz: no such option; the nearest is size"},
		{good + "size = 100\n", "", `1.conf:3: [backend_a] size: "100" is more than 99`},
		{good, "OS_BACKEND_A__SIZ=3", "environment OS_BACKEND_A__SIZ: [backend_a] siz: no such option; the nearest is size"},
		{good, "OS_BACKEND_B__SIZ=3", "environment OS_BACKEND_B__SIZ: [backend_b] siz: no such option; the nearest is size"},
		{"[backend_a]\nsize = 3\n", "", "[backend_a] url is required: set it in a file or as OS_BACKEND_A__URL"},
		{good + "[backend_A]\nurl = a://b\n", "", "1.conf:3: [backend_A]: the name differs from [backend_a] (FILE:1) only in upper and lower case: rename or remove one of the sections"},
		{"[backend_a-b]\nurl = a://b\n[backend_A_b]\nurl = a://b\n", "", "1.conf:3: [backend_A_b]: the name has the same variables OS_BACKEND_A_B__... as [backend_a-b] (FILE:1): rename or remove one of the sections"},
		{good + "[backnd_a]\nurl = a://b\n", "", "[backnd_a]: no such section; the nearest is backend_..."},
		{"[backend_a]\nurl = here\n", "", "1.conf:2: [backend_a] url: is not a URL"},
		{good + "size = 66\n", "", "[backend_a]: 66 is a bad size"},
		{good + "[backend_b]\nurl = a://b\nsize = 66\n", "", "[backend_b]: 66 is a bad size"},
	} {
		files := write(t, c.text)
		_, err := config.Inspect[withBackends](config.Source{Files: files, Env: []string{c.env}, Logger: slog.New(slog.DiscardHandler)})
		if want := strings.ReplaceAll(c.want, "FILE", files[0]); fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), want) || strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%q %q: %v\nwant %s", c.text, c.env, err, want)
		}
	}
	for name, opts := range map[string]any{
		"Section": &struct {
			Section map[string]struct {
				Sub struct {
					A int `ini:"a"`
				} `section:"sub"`
			} `sections:"x_"`
		}{},
		"Strict": &struct {
			Strict map[string]struct {
				A bool `ini:"a" strict:"true"`
			} `sections:"x_"`
		}{},
		"Older": &struct {
			Older map[string]struct {
				A int `ini:"a" deprecated:"DEFAULT.b"`
			} `sections:"x_"`
		}{},
		"Empty": &struct {
			Empty map[string]struct{} `sections:"x_"`
		}{},
		"Twice": &struct {
			Once  map[string]Pool `sections:"x_"`
			Twice map[string]Pool `sections:"X_"`
		}{},
		"Longer": &struct {
			Short  map[string]map[string]string `sections:"x_"`
			Longer map[string]Pool              `sections:"x_y_"`
		}{},
		"Shorter": &struct {
			Long    map[string]Pool `sections:"x_y_"`
			Shorter map[string]Pool `sections:"x_"`
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

// TestTypedFamilySample: a sample shows the section of a typed family once, as a comment.
func TestTypedFamilySample(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := config.Sample(&out, new(withBackends), nil); err != nil {
		t.Fatal(err)
	}
	if want := "# Any number of sections [backend_NAME] may exist. Each has these options.\n#[backend_NAME]\n\n# A text. Secret: password_file may name a file with the value.\n#password = \n"; !strings.Contains(out.String(), want) {
		t.Errorf("%s\nlacks %s", &out, want)
	}
	c, err := load[withBackends](t, nil, out.String())
	if err != nil || len(c.Current().Backends) != 0 {
		t.Errorf("the sample has an effect: %+v, %v", c.Current(), err)
	}
}

// TestReloadTypedFamily: sections are added, removed and changed at a reload if the family has the tag reloadable. Otherwise only options
// with the tag change. A Validate that fails changes nothing.
func TestReloadTypedFamily(t *testing.T) {
	t.Parallel()
	type options struct {
		Backends map[string]backend `sections:"backend_" reloadable:"true"`
		Fixed    map[string]backend `sections:"fixed_"`
	}
	file := filepath.Join(t.TempDir(), "test.conf")
	replace := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace("[backend_a]\nurl = a://a\n[backend_b]\nurl = b://b\n[fixed_a]\nurl = a://a\n[fixed_b]\nurl = b://b\n")
	var log bytes.Buffer
	c, err := config.Open[options](config.Source{Files: []string{file}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	applied := 0
	c.OnChange(nil, func(_, _ *options) { applied++ })
	before := *c.Current()
	for text, want := range map[string]string{
		"[backend_a]\nurl = none\n":             "[backend_a] url: is not a URL",
		"[backend_a]\nurl = a://a\nsize = 66\n": "[backend_a]: 66 is a bad size",
		"[backend_a]\nurl = a://a\n[fixed_a]\nurl = a://a\nsize = 66\n[fixed_b]\nurl = b://b\n":     "[fixed_a]: 66 is a bad size",
		"[backend_a]\nurl = a://a\n[Backend_A]\nurl = b://b\n[fixed_a]\nurl=a://a\n[fixed_A]\nurl=": "only in upper and lower case",
	} {
		replace(text)
		if err := c.Reload(t.Context()); fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
		if diff := cmp.Diff(before, *c.Current()); diff != "" || applied > 0 {
			t.Errorf("%q: something has changed, %d hooks ran (-before +after):\n%s", text, applied, diff)
		}
	}
	replace("[backend_a]\nurl = x://x\nsize = 5\n[backend_c]\nurl = c://c\n[fixed_a]\nurl = x://x\nsize = 5\n[fixed_c]\nurl = c://c\n")
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait := 5 * time.Second
	want := options{
		Backends: map[string]backend{"a": {URL: "x://x", Size: 5, Wait: wait}, "c": {URL: "c://c", Size: 10, Wait: wait}},
		Fixed:    map[string]backend{"a": {URL: "a://a", Size: 5, Wait: wait}, "b": {URL: "b://b", Size: 10, Wait: wait}},
	}
	if diff := cmp.Diff(want, *c.Current()); diff != "" || applied != 1 {
		t.Errorf("%d hooks ran (-want +got):\n%s", applied, diff)
	}
	for _, text := range []string{
		`"option changed" section=backend_c change=added`, `"option changed" section=backend_b change=removed`, `"option changed" section=fixed_a option=size`,
		`"changed option requires a restart" section=fixed_a option=url`, `"changed section requires a restart" section=fixed_b`, `"changed section requires a restart" section=fixed_c`,
	} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("%s\nlacks %s", &log, text)
		}
	}
	var got []string
	for _, v := range c.Values() {
		if v.Name == "url" {
			got = append(got, v.Section+" "+v.Value)
		}
	}
	if diff := cmp.Diff([]string{"backend_a x://x", "backend_c c://c", "fixed_a a://a", "fixed_b b://b"}, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

// Pool is a struct of options for embedding, and for a section.
type Pool struct {
	Low  int `ini:"low" default:"1" reloadable:"true"`
	High int `ini:"high" default:"2" reloadable:"true"`
}

// Validate compares the bounds.
func (p *Pool) Validate() error {
	if p.Low > p.High {
		return errors.New("low is above high")
	}
	return nil
}

// TestNestedValidate: the Validate of an embedded struct and of a section is called at a load, once, and the error names the section.
func TestNestedValidate(t *testing.T) {
	t.Parallel()
	type options struct {
		Pool
		Other Pool `section:"other"`
	}
	for text, want := range map[string]string{
		"low = 3\n":                         "low is above high",
		"[other]\nlow = 3\n":                "[other]: low is above high",
		"low = 3\n[other]\nlow = 3\n":       "low is above high\n[other]: low is above high",
		"low = 2\n[other]\nlow = 2\n":       "<nil>",
		"low = 3\nhigh=2\n[other]\nlow=x\n": `1.conf:4: [other] low: "x" is not an integer`,
	} {
		_, err := load[options](t, nil, text)
		if got := fmt.Sprint(err); got != want && !strings.HasSuffix(got, "/"+want) {
			t.Errorf("%q: %s; want %s", text, got, want)
		}
	}
}

// Span is a struct of options whose errors name options.
type Span struct {
	Low  int    `ini:"low" default:"1" max:"50" reloadable:"true"`
	High int    `ini:"high" default:"2" max:"50" reloadable:"true"`
	Name string `ini:"name"`
}

// Validate compares the bounds, and refuses a name.
func (s *Span) Validate() error {
	var errs []error
	if s.Low > s.High {
		errs = append(errs, fault.WithReason(errors.New("low is above high"), "", map[string]string{"option": "high low"}))
	}
	if s.Name == "x" {
		errs = append(errs, fault.WithReason(errors.New("x is no name"), "", map[string]string{"option": "name"}))
	}
	return errors.Join(errs...)
}

// TestValidateNamesOptions: an error about several options has the place of the first one that is set. An error of Validate is reported
// together with the errors of values, unless it is about an option that has its default because its value is wrong.
func TestValidateNamesOptions(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"low = 3\n":                  {"1.conf:1: [DEFAULT] low: low is above high"},
		"high = 0\n":                 {"1.conf:1: [DEFAULT] high: low is above high"},
		"low = 9\nhigh = 8\n":        {"1.conf:2: [DEFAULT] high: low is above high"},
		"low = 9\nhigh = 99\n":       {"1.conf:2: [DEFAULT] high: \"99\" is more than 50"},
		"nam = y\nname = x\n":        {"1.conf:1: [DEFAULT] nam: no such option; the nearest is name", "1.conf:2: [DEFAULT] name: x is no name"},
		"low = 9\nname = x\nh = 1\n": {"1.conf:3: [DEFAULT] h: no such option", "1.conf:1: [DEFAULT] low: low is above high", "1.conf:2: [DEFAULT] name: x is no name"},
	} {
		_, err := load[Span](t, nil, text)
		got := strings.Split(fmt.Sprint(err), "\n")
		if len(got) != len(want) {
			t.Errorf("%q: %q; want %q", text, got, want)
			continue
		}
		for i := range want {
			if !strings.Contains(got[i], "/"+want[i]) {
				t.Errorf("%q: %q; want %q", text, got[i], want[i])
			}
		}
	}
}
