// Package computetest has the rules that every compute driver must keep. A vendor checks
// them in a test of the driver:
//
//	func TestMain(m *testing.M) { drivertest.Main(m, compute.Kind, acme.Open) }
//
//	func TestRules(t *testing.T) {
//		computetest.Run(t, acme.Open, computetest.Config{Image: "cirros"})
//	}
//
// A driver that is not written in Go is checked with the command "armature drivertest".
package computetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Config says which servers the rules create, and how much time the calls have.
type Config struct {
	drivertest.Config

	// Image is the image that the servers boot from. With [compute.CapConsoleLog] its guest must write at least two lines to the
	// console. Default "image", which suits only a driver that ignores the image.
	Image string
	// Resources are the resources of the servers. Default 1 VCPU, 64 MiB of memory, 1 GiB of disk.
	Resources compute.Resources
	// Bigger are the resources that servers are resized to. Default: twice the Resources.
	Bigger compute.Resources
	// Volume and Interface are attached to the servers. The default volume is /dev/null, and
	// the default interface is on the network "default". The defaults suit only a driver that
	// checks neither.
	Volume    compute.Volume
	Interface compute.Interface
	// Timeout limits each call. Default 1 min.
	Timeout time.Duration
	// Servers is the number of servers that exist at the same time. Default 8.
	Servers int
	// Crashes is how often each call is interrupted: by killing the driver, or by canceling the
	// call. Default 3.
	Crashes int
}

func (c *Config) setDefaults() {
	if c.Image == "" {
		c.Image = "image"
	}
	if c.Resources == (compute.Resources{}) {
		c.Resources = compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}
	}
	if c.Bigger == (compute.Resources{}) {
		c.Bigger = compute.Resources{VCPUs: c.Resources.VCPUs * 2, MemoryMiB: c.Resources.MemoryMiB * 2, DiskGiB: c.Resources.DiskGiB * 2}
	}
	if c.Volume == (compute.Volume{}) {
		c.Volume = compute.Volume{ID: "5f0c8b3e-8d55-4f30-9f29-0a4c1f6a7b11", Path: "/dev/null"}
	}
	if c.Interface.ID == "" {
		c.Interface = compute.Interface{ID: "8a0f6b1d-2f4e-4c58-8f0e-6f2b7c9d4e21", MAC: "52:54:00:12:34:56", Network: "default"}
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.Servers == 0 {
		c.Servers = 8
	}
	if c.Crashes == 0 {
		c.Crashes = 3
	}
}

// Run checks a driver that is written in Go, in the test's process and as a program.
// TestMain must call drivertest.Main.
func Run(t *testing.T, open func(context.Context, json.RawMessage) (compute.Driver, error), cfg Config) {
	t.Helper()
	drivertest.Run(t, compute.Kind, open, cfg.Config, Cases(cfg))
}

// RunProgram checks the driver program cfg.Plugin.Program.
func RunProgram(t *testing.T, cfg Config) {
	t.Helper()
	drivertest.RunProgram(t, compute.Kind, cfg.Config, Cases(cfg))
}

// env is the environment of a rule: the driver, the configuration and helpers.
type env struct {
	*drivertest.Env[compute.Driver]

	cfg *Config
}

// call runs f with a context that ends after Config.Timeout.
func (e *env) call(f func(ctx context.Context, d compute.Driver) error) error {
	ctx, cancel := context.WithTimeout(e.Context(), e.cfg.Timeout)
	defer cancel()
	return f(ctx, e.Driver())
}

// must is like call. If f fails, the rule is broken, and its test case ends.
func (e *env) must(what string, f func(ctx context.Context, d compute.Driver) error) {
	e.Helper()
	if err := e.call(f); err != nil {
		e.logConsoles()
		e.Fatalf("%s: %v: %v", what, fault.CodeOf(err), err)
	}
}

// logConsoles logs the last lines of the consoles of all servers, because a guest that does not react says there why.
func (e *env) logConsoles() {
	e.Helper()
	if !e.Info().Has(compute.CapConsoleLog) {
		return
	}
	ctx, cancel := context.WithTimeout(e.Context(), e.cfg.Timeout)
	defer cancel()
	list, err := e.Driver().List(ctx)
	if err != nil {
		e.Logf("list: %v", err)
	}
	for _, i := range list {
		var b strings.Builder
		err := e.Driver().ConsoleLog(ctx, i.ID, 30, &b)
		e.Logf("the console of server %s, whose power state is %v: %v\n%s", i.ID, i.Power, err, &b)
	}
}

// want is like call, but the function f must fail with the code. Another code, or no error, breaks the rule.
func (e *env) want(code fault.Code, what string, f func(ctx context.Context, d compute.Driver) error) {
	e.Helper()
	if err := e.call(f); err == nil || fault.CodeOf(err) != code {
		e.Errorf("%s: %v, want an error with code %v", what, errorText(err), code)
	}
}

func errorText(err error) string {
	if err == nil {
		return "no error"
	}
	return fmt.Sprintf("%v: %v", fault.CodeOf(err), err)
}

// spec returns a new server with a new id.
func (e *env) spec() compute.Spec {
	return compute.Spec{ID: newID(), Name: "rule", ProjectID: "conformance", ImageRef: e.cfg.Image, Resources: e.cfg.Resources}
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// with calls f with a running server. Then it destroys the server, and checks that nothing of it is left.
func (e *env) with(f func(s compute.Spec)) {
	e.Helper()
	s := e.spec()
	defer func() {
		e.Helper()
		err := e.call(func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		if err != nil {
			e.Errorf("destroy: %v", errorText(err))
		}
		e.mustNotExist(s.ID)
	}()
	e.must("spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
	f(s)
}

// state checks that a server is in the wanted state, and returns the server. The parameter after names the preceding call, for the
// failure message.
func (e *env) state(after, id string, want compute.PowerState) compute.Instance {
	e.Helper()
	var got compute.Instance
	e.must("get after "+after, func(ctx context.Context, d compute.Driver) (err error) {
		got, err = d.Get(ctx, id)
		return err
	})
	if got.ID != id || got.Power != want {
		e.Errorf("after %s the server is %s in state %v, want %s in state %v", after, got.ID, got.Power, id, want)
	}
	return got
}

// mustNotExist checks that a server does not exist.
func (e *env) mustNotExist(id string) {
	e.Helper()
	e.want(fault.NotFound, "get of a destroyed server", func(ctx context.Context, d compute.Driver) error {
		_, err := d.Get(ctx, id)
		return err
	})
	if slices.Contains(e.list(), id) {
		e.Errorf("List has the destroyed server %s", id)
	}
}

func (e *env) list() (ids []string) {
	e.Helper()
	e.must("list", func(ctx context.Context, d compute.Driver) error {
		list, err := d.List(ctx)
		for _, i := range list {
			ids = append(ids, i.ID)
		}
		return err
	})
	slices.Sort(ids)
	return ids
}

// eventually waits until f returns true. It fails after Config.Timeout.
func (e *env) eventually(what string, f func() bool) {
	e.Helper()
	for end := time.Now().Add(e.cfg.Timeout); !f(); {
		if time.Now().After(end) {
			e.Fatalf("%[2]s: not within %[1]v", e.cfg.Timeout, what)
		}
		e.pause(20 * time.Millisecond)
	}
}

func (e *env) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-e.Context().Done():
	}
}

// method is one call on a server, for rules about all calls.
type method struct {
	name string
	need driver.Capability // "": every driver has the method
	call func(ctx context.Context, d compute.Driver, id string) error
	// The fields from and to are the states of the server before and after the call. 0: the call does not change the server.
	from, to compute.PowerState
}

func (c *Config) methods() []method {
	return []method{
		{"Get", "", func(ctx context.Context, d compute.Driver, id string) error { _, err := d.Get(ctx, id); return err }, 0, 0},
		{"PowerOn", "", func(ctx context.Context, d compute.Driver, id string) error { return d.PowerOn(ctx, id) }, compute.Shutdown, compute.Running},
		{"PowerOff", "", func(ctx context.Context, d compute.Driver, id string) error { return d.PowerOff(ctx, id, 0) }, compute.Running, compute.Shutdown},
		{"Reboot", "", func(ctx context.Context, d compute.Driver, id string) error { return d.Reboot(ctx, id, true) }, compute.Running, compute.Running},
		{"Pause", compute.CapPause, func(ctx context.Context, d compute.Driver, id string) error { return d.Pause(ctx, id) }, compute.Running, compute.Paused},
		{"Unpause", compute.CapPause, func(ctx context.Context, d compute.Driver, id string) error { return d.Unpause(ctx, id) }, compute.Paused, compute.Running},
		{"Suspend", compute.CapSuspend, func(ctx context.Context, d compute.Driver, id string) error { return d.Suspend(ctx, id) }, compute.Running, compute.Suspended},
		{"Resume", compute.CapSuspend, func(ctx context.Context, d compute.Driver, id string) error { return d.Resume(ctx, id) }, compute.Suspended, compute.Running},
		{"Resize", compute.CapResize, func(ctx context.Context, d compute.Driver, id string) error { return d.Resize(ctx, id, c.Bigger) }, compute.Shutdown, compute.Shutdown},
		{"ConfirmResize", compute.CapResize, func(ctx context.Context, d compute.Driver, id string) error { return d.ConfirmResize(ctx, id) }, compute.Shutdown, compute.Shutdown},
		{"RevertResize", compute.CapResize, func(ctx context.Context, d compute.Driver, id string) error { return d.RevertResize(ctx, id) }, compute.Shutdown, compute.Shutdown},
		{"Rescue", compute.CapRescue, func(ctx context.Context, d compute.Driver, id string) error {
			return d.Rescue(ctx, id, c.Image, "secret")
		}, compute.Running, compute.Running},
		{"Unrescue", compute.CapRescue, func(ctx context.Context, d compute.Driver, id string) error { return d.Unrescue(ctx, id) }, compute.Running, compute.Running},
		{"Snapshot", compute.CapSnapshot, func(ctx context.Context, d compute.Driver, id string) error {
			return d.Snapshot(ctx, id, "snapshot-"+id)
		}, compute.Running, compute.Running},
		{"SetPassword", compute.CapSetPassword, func(ctx context.Context, d compute.Driver, id string) error {
			return d.SetPassword(ctx, id, "secret")
		}, compute.Running, compute.Running},
		{"ConsoleLog", compute.CapConsoleLog, func(ctx context.Context, d compute.Driver, id string) error {
			return d.ConsoleLog(ctx, id, 0, new(strings.Builder))
		}, 0, 0},
		{"Console", compute.CapVNCConsole, func(ctx context.Context, d compute.Driver, id string) error {
			_, err := d.Console(ctx, id, compute.VNC)
			return err
		}, 0, 0},
		{"Console", compute.CapSerialConsole, func(ctx context.Context, d compute.Driver, id string) error {
			_, err := d.Console(ctx, id, compute.Serial)
			return err
		}, 0, 0},
		{"AttachVolume", compute.CapAttachVolume, func(ctx context.Context, d compute.Driver, id string) error { return d.AttachVolume(ctx, id, c.Volume) }, compute.Running, compute.Running},
		{"DetachVolume", compute.CapAttachVolume, func(ctx context.Context, d compute.Driver, id string) error {
			return d.DetachVolume(ctx, id, c.Volume.ID)
		}, compute.Running, compute.Running},
		{"AttachInterface", compute.CapAttachInterface, func(ctx context.Context, d compute.Driver, id string) error {
			return d.AttachInterface(ctx, id, c.Interface)
		}, compute.Running, compute.Running},
		{"DetachInterface", compute.CapAttachInterface, func(ctx context.Context, d compute.Driver, id string) error {
			return d.DetachInterface(ctx, id, c.Interface.ID)
		}, compute.Running, compute.Running},
		{"Metrics", compute.CapMetrics, func(ctx context.Context, d compute.Driver, id string) error { _, err := d.Metrics(ctx, id); return err }, 0, 0},
		{"Diagnostics", compute.CapDiagnostics, func(ctx context.Context, d compute.Driver, id string) error {
			_, err := d.Diagnostics(ctx, id)
			return err
		}, 0, 0},
		// A guest that gets the interrupt while it boots may hang, so no later call may need the guest's help.
		{"InjectNMI", compute.CapInjectNMI, func(ctx context.Context, d compute.Driver, id string) error { return d.InjectNMI(ctx, id) }, compute.Running, compute.Running},
	}
}

// reach brings a running server into the state s.
func (e *env) reach(id string, s compute.PowerState) {
	e.Helper()
	e.must(fmt.Sprintf("bring the server to %v", s), func(ctx context.Context, d compute.Driver) error {
		switch s {
		case compute.Shutdown:
			return d.PowerOff(ctx, id, 0)
		case compute.Paused:
			return d.Pause(ctx, id)
		case compute.Suspended:
			return d.Suspend(ctx, id)
		default:
			return nil
		}
	})
}

// errEnough is the error with which a listener ends its stream of events.
var errEnough = errors.New("enough")
