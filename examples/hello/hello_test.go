package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/fault"
)

// rules are those of greeters.
var rules = []drivertest.Case[Greeter]{{
	Name: "greets", Rule: "A greeter greets who is named.",
	Run: func(e *drivertest.Env[Greeter]) {
		for range 2 {
			if text, err := e.Driver().Greet(e.Context(), "Ada"); err != nil || text == "" {
				e.Errorf("%q, %v", text, err)
			}
			e.Restart()
		}
	},
}, {
	Name: "nobody", Rule: "Nobody cannot be greeted: that is Invalid, not an empty greeting.",
	Run: func(e *drivertest.Env[Greeter]) {
		if text, err := e.Driver().Greet(e.Context(), ""); !errors.Is(err, fault.Invalid) {
			e.Errorf("%q, %v", text, err)
		}
	},
}}

type latin struct{ english }

func (latin) Greet(_ context.Context, name string) (string, error) {
	if name == "" {
		return "", fault.New(fault.Invalid, "nemo salutatur")
	}
	return "Ave, " + name + "!", nil
}

func openLatin(context.Context, json.RawMessage) (Greeter, error) { return latin{}, nil }

func TestMain(m *testing.M) { drivertest.Main(m, Kind, openLatin) }

func TestRules(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, Kind, openLatin, drivertest.Config{}, rules)
}

// TestHello: the driver that is built in, a program, and one that there is not.
func TestHello(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "armature-hello-latin"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"english": "Hello, Ada!", "latin": "Ave, Ada!"} {
		if text, err := hello(t.Context(), name, dir, "Ada"); err != nil || text != want {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if _, err := hello(t.Context(), "greek", dir, "Ada"); !errors.Is(err, fault.NotFound) {
		t.Errorf("greek: %v", err)
	}
	if _, err := hello(t.Context(), "latin", dir, ""); !errors.Is(err, fault.Invalid) {
		t.Errorf("nobody: %v", err)
	}
}
