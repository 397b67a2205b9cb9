package drivertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"google.golang.org/grpc"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/drivertest"
)

// Clock is the driver interface of a component, here without methods of its own.
type Clock interface{ driver.Driver }

// clockKind is shared by the component's workers and by vendors' programs.
var clockKind = driver.Kind[Clock]{
	Name: "clock", Protocol: 1,
	Register: func(grpc.ServiceRegistrar, Clock) {},
	Client:   func(c grpc.ClientConnInterface, _ int) Clock { return driver.Remote(c) },
}

// quartz is a vendor's driver.
type quartz struct{}

func (quartz) Info(context.Context) (driver.Info, error) {
	return driver.Info{Name: "quartz", Version: "1.0", Capabilities: []driver.Capability{"alarm"}}, nil
}

func (quartz) Close() error { return nil }

func openQuartz(context.Context, json.RawMessage) (Clock, error) { return quartz{}, nil }

// clockRules are the rules of the component.
var clockRules = []drivertest.Case[Clock]{
	{
		Name: "version",
		Rule: "A driver has a version, so that operators can tell which one runs.",
		Run: func(e *drivertest.Env[Clock]) {
			if e.Info().Version == "" {
				e.Errorf("the driver %s has no version", e.Info().Name)
			}
		},
	},
	{
		Name: "crash", Crashes: true,
		Rule: "A driver is the same after its program was killed.",
		Run: func(e *drivertest.Env[Clock]) {
			e.Crash(0)
			if info, err := e.Driver().Info(e.Context()); err != nil || info.Name != e.Info().Name {
				e.Errorf("after a crash: %v, %v", info, err)
			}
		},
	},
	{
		Name: "light", Need: []driver.Capability{"light"},
		Rule: "A driver with a light can switch it.",
		Run:  func(e *drivertest.Env[Clock]) { e.Errorf("not reached without the capability") },
	},
}

// TestMain lets this test binary also be the driver's program.
func TestMain(m *testing.M) { drivertest.Main(m, clockKind, openQuartz) }

// TestRules runs the rules in process and through the program, as a vendor does.
func TestRules(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, clockKind, openQuartz, drivertest.Config{}, clockRules)
}

// printer is a drivertest.T that prints the errors of a rule.
type printer struct{}

var errFatal = errors.New("the rule ends")

func (printer) Context() context.Context         { return context.Background() }
func (printer) Helper()                          {}
func (printer) Logf(string, ...any)              {}
func (printer) Errorf(format string, a ...any)   { fmt.Printf("broken: "+format+"\n", a...) }
func (p printer) Fatalf(format string, a ...any) { p.Errorf(format, a...); panic(errFatal) }

// launchSelf starts this test binary as a vendor's program.
func launchSelf() (*drivertest.Env[Clock], func(), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	return drivertest.Launch(printer{}, clockKind, drivertest.Config{
		Plugin: driver.PluginConfig{Program: self, Args: []string{"-test.run=^$"}, Logger: slog.New(slog.DiscardHandler)},
	})
}

// A command checks a vendor's program by the component's rules, without a *testing.T. In this example the
// program is the test binary itself.
func ExampleCheck() {
	env, end, err := launchSelf()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer end()
	for _, rule := range clockRules {
		if why := drivertest.Check(printer{}, env, drivertest.Config{}, rule); why != "" {
			fmt.Printf("%s: skipped: %s\n", rule.Name, why)
			continue
		}
		fmt.Printf("%s: checked\n", rule.Name)
	}
	// Output:
	// version: checked
	// crash: checked
	// light: skipped: the driver does not have the capability light
}

// If a vendor's driver breaks a rule, the vendor's test fails. The text of the rule says why the rule exists.
func ExampleCase() {
	rule := drivertest.Case[Clock]{
		Name: "name",
		Rule: "A driver is named for its vendor, so that logs tell drivers apart.",
		Run: func(e *drivertest.Env[Clock]) {
			if e.Info().Name != "acme" {
				e.Errorf("the driver is named %s", e.Info().Name)
			}
		},
	}
	env, end, err := launchSelf()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer end()
	drivertest.Check(printer{}, env, drivertest.Config{}, rule)
	known := drivertest.Config{Skip: map[string]string{"name": "fixed in version 1.1"}}
	fmt.Println(drivertest.Check(printer{}, env, known, rule))
	// Output:
	// broken: the driver is named quartz
	// known: fixed in version 1.1
}

// A rule about a crash kills the driver's program during its work. The supervisor restarts the program, as in a
// worker.
func ExampleEnv_Crash() {
	env, end, err := launchSelf()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer end()
	drivertest.Check(printer{}, env, drivertest.Config{}, drivertest.Case[Clock]{
		Name: "survives", Crashes: true,
		Run: func(e *drivertest.Env[Clock]) {
			e.Crash(0)
			info, err := e.Driver().Info(e.Context())
			fmt.Println(info.Name, err)
		},
	})
	// Output: quartz <nil>
}
