package driver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// speaker is a kind of driver that is a struct of functions.
type speaker struct {
	driver.Driver

	Say   func(ctx context.Context, w words) (spoken, error)
	Names func(ctx context.Context) ([]string, error)
	Mute  func(ctx context.Context, on bool) error
	Reset func(ctx context.Context) error
	Fly   func(ctx context.Context, meters float64) (float64, error) // no driver has it
}

type words struct {
	Text  string `json:"text"`
	Times int    `json:"times"`
}

type spoken struct {
	Text    string         `json:"text"`
	Request string         `json:"request"`
	Details map[string]any `json:"details,omitempty"`
}

var speakerKind = driver.Functions[speaker]("speaker", 1)

func openSpeaker(context.Context, json.RawMessage) (speaker, error) {
	return speaker{
		Driver: driver.Static(driver.Info{Name: "loud", Version: "2", Capabilities: []driver.Capability{"mute"}}),
		Say: func(ctx context.Context, w words) (spoken, error) {
			switch {
			case w.Text == "panic":
				panic("as asked")
			case w.Times < 0:
				return spoken{}, fault.New(fault.Invalid, "times is %d", w.Times)
			case w.Text == "wait":
				<-ctx.Done()
				return spoken{}, ctx.Err()
			}
			return spoken{Text: strings.Repeat(w.Text, w.Times), Request: reqctx.From(ctx).ID, Details: map[string]any{"<é>": nil}}, nil
		},
		Names: func(context.Context) ([]string, error) { return nil, nil },
		Mute: func(_ context.Context, on bool) error {
			if on {
				return fault.New(fault.Precondition, "it is silent")
			}
			return nil
		},
		Reset: func(context.Context) error { return nil },
	}, nil
}

// TestFunctions: a struct of functions behaves the same in both forms: as a built-in driver and as a program.
func TestFunctions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "armature-speaker-loud"))
	}
	if err != nil {
		t.Fatal(err)
	}
	var drivers driver.Registry[speaker]
	drivers.Add("built-in", openSpeaker)
	for _, name := range []string{"built-in", "loud"} {
		ctx := reqctx.With(t.Context(), reqctx.Request{ID: "req-1"})
		p, err := drivers.Launch(ctx, speakerKind, name, driver.PluginConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close(ctx)
		d := p.Driver()
		info, err := d.Info(ctx)
		if diff := cmp.Diff(driver.Info{Name: "loud", Version: "2", Capabilities: []driver.Capability{"mute"}}, info); err != nil || diff != "" {
			t.Errorf("%s: Info: %v %s", name, err, diff)
		}
		got, err := d.Say(ctx, words{"a<é>", 2})
		if diff := cmp.Diff(spoken{"a<é>a<é>", "req-1", map[string]any{"<é>": nil}}, got); err != nil || diff != "" {
			t.Errorf("%s: Say: %v %s", name, err, diff)
		}
		if names, err := d.Names(ctx); err != nil || names != nil {
			t.Errorf("%s: Names: %v, %v", name, names, err)
		}
		if err := d.Mute(ctx, false); err != nil {
			t.Errorf("%s: Mute: %v", name, err)
		}
		if err := d.Reset(ctx); err != nil {
			t.Errorf("%s: Reset: %v", name, err)
		}
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		for what, tt := range map[string]struct {
			err  error
			code fault.Code
			says string
		}{
			"an error of the driver":  {second(d.Say(ctx, words{"a", -1})), fault.Invalid, "times is -1"},
			"an error without result": {d.Mute(ctx, true), fault.Precondition, "it is silent"},
			"a function that is nil":  {second(d.Fly(ctx, 3)), fault.Unimplemented, "no function Fly"},
			"an ended context":        {second(d.Say(canceled, words{"wait", 1})), fault.Canceled, "canceled"},
		} {
			if fault.CodeOf(tt.err) != tt.code || !strings.Contains(fmt.Sprint(tt.err), tt.says) {
				t.Errorf("%s: %s: %v, want %v with %q", name, what, tt.err, tt.code, tt.says)
			}
		}
		if name == "loud" { // the program: these calls fail only on the wire
			if _, err := d.Fly(ctx, math.Inf(1)); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "Fly: the argument cannot be encoded") {
				t.Errorf("an argument that JSON cannot have: %v", err)
			}
			if _, err := d.Say(ctx, words{"panic", 1}); !errors.Is(err, fault.Internal) {
				t.Errorf("a panic: %v", err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestFunctionsWithoutDriver: a struct whose Driver is nil is refused when it is opened.
func TestFunctionsWithoutDriver(t *testing.T) {
	t.Parallel()
	var drivers driver.Registry[speaker]
	drivers.Add("empty", func(context.Context, json.RawMessage) (speaker, error) { return speaker{}, nil })
	if _, err := drivers.Launch(t.Context(), speakerKind, "empty", driver.PluginConfig{}); err == nil || !strings.Contains(err.Error(), "driver.Static") {
		t.Errorf("%v", err)
	}
}

// TestFunctionsRefused: a type that does not follow the rules panics, and the text names the field.
func TestFunctionsRefused(t *testing.T) {
	t.Parallel()
	for says, make := range map[string]func(){
		"is not a struct": func() { driver.Functions[echoer]("x", 1) },
		"must embed driver.Driver": func() {
			driver.Functions[struct {
				driver.Driver
			}]("x", 1)
		},
		"field Get of": func() {
			driver.Functions[struct {
				driver.Driver
				Get func(string) error
			}]("x", 1)
		},
		"field Name of": func() {
			driver.Functions[struct {
				driver.Driver
				Name string
			}]("x", 1)
		},
		"field get of": func() {
			driver.Functions[struct {
				driver.Driver
				get func(context.Context) error
			}]("x", 1)
		},
		"field List of": func() {
			driver.Functions[struct {
				driver.Driver
				List func(context.Context, ...string) error
			}]("x", 1)
		},
		"a Name in lower case": func() { driver.Functions[speaker]("Speaker", 1) },
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, says) {
					t.Errorf("%q, want %q", got, says)
				}
			}()
			make()
		}()
	}
}
