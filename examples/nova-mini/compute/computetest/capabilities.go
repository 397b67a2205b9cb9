package computetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// testThereAndBack checks a pair of methods, such as Pause and Unpause. The method enter brings a Running server into the given state,
// and the method exit brings the server back to Running. Both are idempotent, and fail with Precondition in Shutdown.
func testThereAndBack(e *env, state compute.PowerState, enter, exit stateChange) {
	e.with(func(s compute.Spec) {
		for range 2 {
			e.must(enter.name, func(ctx context.Context, d compute.Driver) error { return enter.call(ctx, d, s.ID) })
			e.state(enter.name, s.ID, state)
		}
		for range 2 {
			e.must(exit.name, func(ctx context.Context, d compute.Driver) error { return exit.call(ctx, d, s.ID) })
			e.state(exit.name, s.ID, compute.Running)
		}
		e.reach(s.ID, compute.Shutdown)
		for _, m := range []stateChange{enter, exit} {
			e.want(fault.Precondition, m.name+" in SHUTDOWN", func(ctx context.Context, d compute.Driver) error { return m.call(ctx, d, s.ID) })
		}
		e.state(enter.name+" and "+exit.name+" in SHUTDOWN", s.ID, compute.Shutdown)
	})
}

// stateChange is a method of compute.Driver that changes the state of a server.
type stateChange struct {
	name string
	call func(ctx context.Context, d compute.Driver, id string) error
}

func testPause(e *env) {
	testThereAndBack(e, compute.Paused,
		stateChange{"Pause", func(ctx context.Context, d compute.Driver, id string) error { return d.Pause(ctx, id) }},
		stateChange{"Unpause", func(ctx context.Context, d compute.Driver, id string) error { return d.Unpause(ctx, id) }})
}

func testSuspend(e *env) {
	testThereAndBack(e, compute.Suspended,
		stateChange{"Suspend", func(ctx context.Context, d compute.Driver, id string) error { return d.Suspend(ctx, id) }},
		stateChange{"Resume", func(ctx context.Context, d compute.Driver, id string) error { return d.Resume(ctx, id) }})
}

func testResize(e *env) {
	e.with(func(s compute.Spec) {
		to := func(r compute.Resources) func(ctx context.Context, d compute.Driver) error {
			return func(ctx context.Context, d compute.Driver) error { return d.Resize(ctx, s.ID, r) }
		}
		confirm := func(ctx context.Context, d compute.Driver) error { return d.ConfirmResize(ctx, s.ID) }
		revert := func(ctx context.Context, d compute.Driver) error { return d.RevertResize(ctx, s.ID) }
		wantResources := func(what string, p compute.PowerState, want compute.Resources) {
			e.Helper()
			if got := e.state(what, s.ID, p); got.Resources != want {
				e.Errorf("%s: the server has %+v, want %+v", what, got.Resources, want)
			}
		}
		e.want(fault.Precondition, "resize of a running server", to(e.cfg.Bigger))
		e.must("confirm without a resize", confirm)
		e.must("revert without a resize", revert)
		e.reach(s.ID, compute.Shutdown)
		for range 2 {
			e.must("resize", to(e.cfg.Bigger))
			wantResources("resize", compute.Shutdown, e.cfg.Bigger)
		}
		e.want(fault.Invalid, "a smaller disk", to(e.cfg.Resources))
		other := e.cfg.Bigger
		other.MemoryMiB++
		e.want(fault.Precondition, "another resize before the first is confirmed", to(other))
		e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
		wantResources("power on", compute.Running, e.cfg.Bigger)
		e.want(fault.Precondition, "revert of a running server", revert)
		e.reach(s.ID, compute.Shutdown)
		for range 2 {
			e.must("revert", revert)
			wantResources("revert", compute.Shutdown, e.cfg.Resources)
		}
		e.must("resize after a revert", to(e.cfg.Bigger))
		e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
		for range 2 {
			e.must("confirm", confirm)
			wantResources("confirm", compute.Running, e.cfg.Bigger)
		}
		e.must("revert after it was confirmed", revert)
		wantResources("revert after it was confirmed", compute.Running, e.cfg.Bigger)
	})
}

func testRescue(e *env) {
	e.with(func(s compute.Spec) {
		for range 2 {
			e.must("rescue", func(ctx context.Context, d compute.Driver) error { return d.Rescue(ctx, s.ID, e.cfg.Image, "secret") })
			if got := e.state("rescue", s.ID, compute.Running); !got.Rescued {
				e.Errorf("Instance.Rescued is false after rescue")
			}
		}
		for range 2 {
			e.must("unrescue", func(ctx context.Context, d compute.Driver) error { return d.Unrescue(ctx, s.ID) })
			if got := e.state("unrescue", s.ID, compute.Running); got.Rescued {
				e.Errorf("Instance.Rescued is true after unrescue")
			}
		}
		e.reach(s.ID, compute.Shutdown)
		e.must("rescue of a stopped server", func(ctx context.Context, d compute.Driver) error { return d.Rescue(ctx, s.ID, "", "") })
		e.state("rescue", s.ID, compute.Running)
	})
}

func testRescuePassword(e *env) {
	s := e.spec()
	s.Hostname, s.ConfigDrive, s.AdminPass = "guest", true, "secret"
	defer func() {
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		e.mustNotExist(s.ID)
	}()
	e.must("spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
	for _, password := range []string{"other secret", ""} {
		for range 2 {
			e.must("rescue", func(ctx context.Context, d compute.Driver) error { return d.Rescue(ctx, s.ID, e.cfg.Image, password) })
			e.state("rescue", s.ID, compute.Running)
		}
		for range 2 {
			e.must("unrescue", func(ctx context.Context, d compute.Driver) error { return d.Unrescue(ctx, s.ID) })
			e.state("unrescue", s.ID, compute.Running)
		}
	}
}

func testSnapshot(e *env) {
	e.with(func(s compute.Spec) {
		image := "snapshot-" + s.ID
		for range 2 {
			e.must("snapshot", func(ctx context.Context, d compute.Driver) error { return d.Snapshot(ctx, s.ID, image) })
			e.state("snapshot", s.ID, compute.Running)
		}
		e.want(fault.Invalid, "a snapshot with the name ../x", func(ctx context.Context, d compute.Driver) error { return d.Snapshot(ctx, s.ID, "../x") })
		fromSnapshot := e.spec()
		fromSnapshot.ImageRef = image
		e.must("spawn from the snapshot", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, fromSnapshot) })
		e.state("spawn from the snapshot", fromSnapshot.ID, compute.Running)
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, fromSnapshot.ID) })
	})
}

func testRemoveImage(e *env) {
	e.with(func(s compute.Spec) {
		image := "snapshot-" + s.ID
		remove := func(ctx context.Context, d compute.Driver) error { return d.RemoveImage(ctx, image) }
		e.must("remove an image that does not exist", remove)
		e.must("snapshot", func(ctx context.Context, d compute.Driver) error { return d.Snapshot(ctx, s.ID, image) })
		other := e.spec()
		other.ImageRef = image
		e.must("spawn from the snapshot", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, other) })
		for range 2 {
			e.must("remove the image", remove)
		}
		for _, state := range []compute.PowerState{compute.Shutdown, compute.Running} {
			if state == compute.Shutdown {
				e.reach(other.ID, state)
			} else {
				e.must("start without the image", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, other.ID) })
			}
			e.state("remove the image", other.ID, state)
		}
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, other.ID) })
		for _, bad := range []string{"../x", "", "/tmp/x.qcow2"} {
			e.want(fault.Invalid, fmt.Sprintf("remove the image %q", bad), func(ctx context.Context, d compute.Driver) error { return d.RemoveImage(ctx, bad) })
		}
	})
}

func testSetPassword(e *env) {
	e.with(func(s compute.Spec) {
		set := func(ctx context.Context, d compute.Driver) error { return d.SetPassword(ctx, s.ID, "secret") }
		for range 2 {
			e.must("set the password", set)
			e.state("set the password", s.ID, compute.Running)
		}
		e.reach(s.ID, compute.Shutdown)
		e.want(fault.Precondition, "set the password of a stopped server", set)
	})
}

func testInjectNMI(e *env) {
	e.with(func(s compute.Spec) {
		inject := func(ctx context.Context, d compute.Driver) error { return d.InjectNMI(ctx, s.ID) }
		e.must("inject an interrupt", inject)
		e.reach(s.ID, compute.Shutdown)
		e.want(fault.Precondition, "inject an interrupt into a stopped server", inject)
	})
}

func testPlatforms(e *env) {
	var list []compute.Platform
	e.must("platforms", func(ctx context.Context, d compute.Driver) (err error) {
		list, err = d.Platforms(ctx)
		return err
	})
	if len(list) == 0 {
		e.Errorf("the host can run no guest")
	}
	for _, p := range list {
		if p.Arch == "" || p.Type == "" || p.Mode == "" {
			e.Errorf("the platform %+v lacks a name", p)
		}
	}
}

func testConsoleLog(e *env) {
	e.with(func(s compute.Spec) {
		read := func(lines int) string {
			var b strings.Builder
			e.must("console log", func(ctx context.Context, d compute.Driver) error { return d.ConsoleLog(ctx, s.ID, lines, &b) })
			return b.String()
		}
		e.eventually("two lines on the console", func() bool { return strings.Count(read(0), "\n") >= 2 })
		if one := read(1); strings.Count(strings.TrimSuffix(one, "\n"), "\n") != 0 || one == "" {
			e.Errorf("one line is %q", one)
		}
	})
}

func testConsole(e *env, t compute.ConsoleType) {
	e.with(func(s compute.Spec) {
		get := func(ctx context.Context, d compute.Driver) error {
			c, err := d.Console(ctx, s.ID, t)
			if err == nil && c.Path == "" && (c.Host == "" || c.Port == 0) {
				return fmt.Errorf("neither a path nor a host and a port: %+v", c)
			}
			return err
		}
		e.must("console", get)
		e.reach(s.ID, compute.Shutdown)
		e.want(fault.Precondition, "console of a stopped server", get)
	})
}

// testAttached checks volumes or interfaces: attach and detach are idempotent, attach also works in Shutdown, and the device stays
// attached when the server is stopped and started.
func testAttached(e *env, id string, of func(compute.Instance) []string, attach, detach func(ctx context.Context, d compute.Driver, server string) error) {
	wantAttached := func(after, server string, state compute.PowerState, want int) {
		e.Helper()
		list := of(e.state(after, server, state))
		if n := len(slices.DeleteFunc(slices.Clone(list), func(x string) bool { return x != id })); n != want {
			e.Errorf("after %s the server has %v: %d entries of %s, want %d", after, list, n, id, want)
		}
	}
	e.with(func(s compute.Spec) {
		for range 2 {
			e.must("attach", func(ctx context.Context, d compute.Driver) error { return attach(ctx, d, s.ID) })
			wantAttached("attach", s.ID, compute.Running, 1)
		}
		e.reach(s.ID, compute.Shutdown)
		wantAttached("power off", s.ID, compute.Shutdown, 1)
		e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
		wantAttached("power on", s.ID, compute.Running, 1)
		for range 2 {
			e.must("detach", func(ctx context.Context, d compute.Driver) error { return detach(ctx, d, s.ID) })
			wantAttached("detach", s.ID, compute.Running, 0)
		}
		e.reach(s.ID, compute.Shutdown)
		e.must("attach to a stopped server", func(ctx context.Context, d compute.Driver) error { return attach(ctx, d, s.ID) })
		wantAttached("attach to a stopped server", s.ID, compute.Shutdown, 1)
	})
}

func testVolumes(e *env) {
	testAttached(e, e.cfg.Volume.ID, func(i compute.Instance) []string { return i.Volumes },
		func(ctx context.Context, d compute.Driver, server string) error {
			return d.AttachVolume(ctx, server, e.cfg.Volume)
		},
		func(ctx context.Context, d compute.Driver, server string) error {
			return d.DetachVolume(ctx, server, e.cfg.Volume.ID)
		})
}

func testInterfaces(e *env) {
	testAttached(e, e.cfg.Interface.ID, func(i compute.Instance) []string { return i.Interfaces },
		func(ctx context.Context, d compute.Driver, server string) error {
			return d.AttachInterface(ctx, server, e.cfg.Interface)
		},
		func(ctx context.Context, d compute.Driver, server string) error {
			return d.DetachInterface(ctx, server, e.cfg.Interface.ID)
		})
}

func testMetrics(e *env) {
	e.with(func(s compute.Spec) {
		var last compute.Metrics
		for range 3 {
			var m compute.Metrics
			e.must("metrics", func(ctx context.Context, d compute.Driver) (err error) {
				m, err = d.Metrics(ctx, s.ID)
				return err
			})
			if m.MemoryMiB < 0 {
				e.Errorf("MemoryMiB is %d, want 0 or more", m.MemoryMiB)
			}
			if m.CPUTime < last.CPUTime || m.DiskReadBytes < last.DiskReadBytes || m.DiskWriteBytes < last.DiskWriteBytes ||
				m.NetReceivedBytes < last.NetReceivedBytes || m.NetSentBytes < last.NetSentBytes {
				e.Errorf("a counter decreased: from %+v to %+v", last, m)
			}
			last = m
			e.pause(50 * time.Millisecond)
		}
		e.reach(s.ID, compute.Shutdown)
		e.want(fault.Precondition, "metrics of a stopped server", func(ctx context.Context, d compute.Driver) error { _, err := d.Metrics(ctx, s.ID); return err })
	})
}

func testDiagnostics(e *env) {
	e.with(func(s compute.Spec) {
		e.must("diagnostics", func(ctx context.Context, d compute.Driver) error {
			got, err := d.Diagnostics(ctx, s.ID)
			if err == nil && len(got) == 0 {
				return errors.New("no diagnostics")
			}
			return err
		})
	})
}

func testImageFiles(e *env) {
	e.with(func(s compute.Spec) {
		dir, err := os.MkdirTemp("", "image-files-")
		if err != nil {
			e.Errorf("%v", err)
			return
		}
		defer func() { _ = os.RemoveAll(dir) }() // only a temporary directory
		path := filepath.Join(dir, "snapshot-"+s.ID+".qcow2")
		snapshot := func(ctx context.Context, d compute.Driver) error { return d.Snapshot(ctx, s.ID, path) }
		e.must("snapshot into a file", snapshot)
		before, err := os.Stat(path)
		if err != nil {
			e.Errorf("%v", err)
			return
		}
		e.must("the same snapshot", snapshot)
		if after, err := os.Stat(path); err != nil || !after.ModTime().Equal(before.ModTime()) {
			e.Errorf("a repeated snapshot has changed the file, or removed it: %v", err)
		}
		e.want(fault.Invalid, "a snapshot into a file of another format", func(ctx context.Context, d compute.Driver) error { return d.Snapshot(ctx, s.ID, path+".vmdk") })
		other := e.spec()
		other.ImageRef = filepath.Join(dir, "none.qcow2")
		e.want(fault.Precondition, "spawn from a file that does not exist", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, other) })
		other.ImageRef = path
		e.must("spawn from the file", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, other) })
		if err := os.Remove(path); err != nil {
			e.Errorf("%v", err)
		}
		e.reach(other.ID, compute.Shutdown)
		e.must("start without the file", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, other.ID) })
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, other.ID) })
	})
}

// withExtraDisks returns a server with an ephemeral and a swap disk.
func (e *env) withExtraDisks() compute.Spec {
	s := e.spec()
	s.EphemeralGiB, s.SwapMiB = 1, 64
	s.Resources.DiskGiB += compute.ExtraGiB(1, 64)
	return s
}

func testExtraDisks(e *env) {
	s := e.withExtraDisks()
	defer func() {
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		e.mustNotExist(s.ID)
	}()
	for _, bad := range [][2]int{{-1, 0}, {0, -1}, {s.Resources.DiskGiB + 1, 0}} {
		wrong := s
		wrong.EphemeralGiB, wrong.SwapMiB = bad[0], bad[1]
		e.want(fault.Invalid, fmt.Sprintf("an ephemeral disk of %d GiB and %d MiB of swap", bad[0], bad[1]), func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, wrong) })
	}
	for range 2 {
		e.must("spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
		if got := e.state("spawn", s.ID, compute.Running); got.Resources != s.Resources {
			e.Errorf("the server has %+v, want %+v", got.Resources, s.Resources)
		}
	}
	e.reach(s.ID, compute.Shutdown)
	e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
	e.state("power on", s.ID, compute.Running)
}

func testResizeExtraDisks(e *env) {
	s := e.withExtraDisks()
	defer func() {
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		e.mustNotExist(s.ID)
	}()
	e.must("spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
	e.reach(s.ID, compute.Shutdown)
	bigger := e.cfg.Bigger
	bigger.DiskGiB += compute.ExtraGiB(s.EphemeralGiB, s.SwapMiB)
	for _, revert := range []bool{true, false} {
		e.must("resize", func(ctx context.Context, d compute.Driver) error { return d.Resize(ctx, s.ID, bigger) })
		if got := e.state("resize", s.ID, compute.Shutdown); got.Resources != bigger {
			e.Errorf("the server has %+v, want %+v", got.Resources, bigger)
		}
		if !revert {
			break
		}
		e.must("revert", func(ctx context.Context, d compute.Driver) error { return d.RevertResize(ctx, s.ID) })
		if got := e.state("revert", s.ID, compute.Shutdown); got.Resources != s.Resources {
			e.Errorf("after the revert the server has %+v, want %+v", got.Resources, s.Resources)
		}
	}
	e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
	e.must("confirm", func(ctx context.Context, d compute.Driver) error { return d.ConfirmResize(ctx, s.ID) })
	e.state("confirm", s.ID, compute.Running)
}

func testGuestData(e *env) {
	s := e.spec()
	s.Hostname, s.ConfigDrive, s.AdminPass = "guest", true, "secret"
	defer func() {
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		e.mustNotExist(s.ID)
	}()
	s.UserData = "not base64!"
	e.want(fault.Invalid, "Spawn with user data that are not base64", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
	s.UserData = "I2Nsb3VkLWNvbmZpZwo="
	for range 2 {
		e.must("Spawn with user data", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
		e.state("Spawn with user data", s.ID, compute.Running)
	}
}
