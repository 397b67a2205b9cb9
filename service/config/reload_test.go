package config_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/config"
)

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
		want    string // a part of the error; empty: no error
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
		t.Errorf("the struct that Current returned before the reloads has changed: %+v", first)
	}
	for _, want := range []string{"changed option requires a restart\" section=DEFAULT option=wait", "changed sections require a restart\" sections=driver_*", "option=workers"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, &out)
		}
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

// TestWhereAfterReload: a changed family of sections waits for a restart, so Where returns the origins of the old values.
func TestWhereAfterReload(t *testing.T) {
	t.Parallel()
	file := put(t, filepath.Join(t.TempDir(), "a.conf"), "workers = 2\n[database]\nurl = u\n[driver_x]\na = b\n", 0o600)
	c, err := config.Open[full](config.Source{Files: []string{file}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	put(t, file, "workers = 4\n[database]\nurl = u\n# moved\n[driver_x]\na = c\nb = d\n", 0o600)
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Current().Workers != 4 || c.Where("driver_x", "a") != file+":5" || c.Where("driver_x", "b") != "" {
		t.Errorf("%d workers, a from %s, b from %q; want 4, line 5 and nothing", c.Current().Workers, c.Where("driver_x", "a"), c.Where("driver_x", "b"))
	}
}

// TestReloadSections: a family of sections with the tag reloadable changes at a reload, and so do the origins of its options.
func TestReloadSections(t *testing.T) {
	t.Parallel()
	type options struct {
		Drivers map[string]map[string]string `sections:"driver_" reloadable:"true"`
		Fixed   map[string]map[string]string `sections:"fixed_"`
	}
	file := filepath.Join(t.TempDir(), "test.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[driver_a]\nx = 1\n[fixed_a]\nx = 1\n")
	c, err := config.Open[options](config.Source{Files: []string{file}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	write("\n[driver_a]\nx = 2\n[fixed_a]\nx = 2\n")
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := c.Current(); now.Drivers["a"]["x"] != "2" || now.Fixed["a"]["x"] != "1" {
		t.Errorf("%+v", now)
	}
	if got := c.Where("driver_a", "x") + " " + c.Where("fixed_a", "x"); got != file+":3 "+file+":4" {
		t.Errorf("origins %s", got)
	}
}
