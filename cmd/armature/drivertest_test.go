package main

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// stubborn is a driver that breaks two rules: Pause has no effect, and PowerOn never returns.
type stubborn struct{ compute.Driver }

func (stubborn) Pause(context.Context, string) error   { return nil }
func (stubborn) PowerOn(context.Context, string) error { select {} }

// noRescue is a driver that lacks a capability.
type noRescue struct{ compute.Driver }

func (d noRescue) Info(ctx context.Context) (driver.Info, error) {
	info, err := d.Driver.Info(ctx)
	info.Capabilities = slices.DeleteFunc(info.Capabilities, func(c driver.Capability) bool { return c == compute.CapRescue })
	return info, err
}

func (noRescue) Rescue(context.Context, string, string, string) error {
	return fault.New(fault.Unimplemented, "no rescue")
}

func (noRescue) Unrescue(context.Context, string) error {
	return fault.New(fault.Unimplemented, "no rescue")
}

// TestMain is also the main function of the drivers under test.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("ARMATURE_DRIVER") == "":
		os.Exit(m.Run())
	case strings.HasSuffix(os.Args[0], "stubborn"):
		driver.Serve(compute.Kind, func(ctx context.Context, raw json.RawMessage) (compute.Driver, error) {
			d, err := fake.Open(ctx, raw)
			return stubborn{d}, err
		})
	case strings.HasSuffix(os.Args[0], "norescue"):
		driver.Serve(compute.Kind, func(ctx context.Context, raw json.RawMessage) (compute.Driver, error) {
			d, err := fake.Open(ctx, raw)
			return noRescue{d}, err
		})
	default:
		driver.Serve(compute.Kind, fake.Open)
	}
}

// TestDrivertest: armature drivertest prints the right result for a good driver, for a driver that breaks rules, and
// for a program that is not a driver.
func TestDrivertest(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		program string // default: this test binary
		args    []string
		code    int
		says    []string
	}{
		{"good", "", []string{"--crashes", "1"}, 0, []string{" rules kept, 0 broken, 0 skipped", "life                 PASS"}},
		{"norescue", "", []string{"--crashes", "1"}, 0, []string{" rules kept, 0 broken, 2 skipped", "rescue               SKIP: the driver does not have the capability rescue ("}},
		{"stubborn", "", []string{"--timeout", "300ms", "--crashes", "1"}, 1, []string{
			"pause                FAIL", "after Pause the server is", "The rule: Pause and Unpause work in RUNNING and PAUSED",
			"power                FAIL", "power on: Timeout:", "life                 PASS",
		}},
		{"bad option", "", []string{"--option", "color=red"}, 2, []string{"option color: no such option"}},
		{"not a driver", "/bin/true", nil, 2, []string{"/bin/true: it ended by itself"}},
		{"no file", "none", nil, 2, []string{"cmd/armature/none"}},
		{"a directory", ".", nil, 2, []string{"cmd/armature"}},
		{"two programs", "", []string{"another"}, 2, []string{"want one PROGRAM, such as: armature drivertest bin/armature-compute-acme"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			program := dir + "/" + tt.name
			if err := os.Symlink(self, program); err != nil {
				t.Fatal(err)
			}
			if tt.program != "" {
				program = tt.program
			}
			args := append([]string{"drivertest", program, "--option", "host=h1,dir=" + dir + "/servers"}, tt.args...)
			code, out := armature(t, args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, want := range tt.says {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in the output:\n%s", want, out)
				}
			}
		})
	}
}
