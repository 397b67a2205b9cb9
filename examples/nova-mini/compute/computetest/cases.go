package computetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Cases returns the rules as test cases. They run one after the other on one driver. A case
// fails if it leaves a server behind.
func Cases(cfg Config) []drivertest.Case[compute.Driver] {
	cfg.setDefaults()
	var out []drivertest.Case[compute.Driver]
	add := func(name, rule string, run func(e *env), need ...driver.Capability) {
		out = append(out, drivertest.Case[compute.Driver]{Name: name, Rule: rule, Need: need, Crashes: strings.HasPrefix(name, "crash"), Run: func(e *drivertest.Env[compute.Driver]) {
			before := (&env{e, &cfg}).list()
			run(&env{e, &cfg})
			if after := (&env{e, &cfg}).list(); !slices.Equal(before, after) {
				e.Errorf("the host had the servers %v before the rule, and has %v after it", before, after)
			}
		}})
	}
	add("info", "Info has the name and the version of the driver, and only capabilities that exist: nova-mini relies on them.", testInfo)
	add("unknown options", "An unknown or misspelled option is Invalid, and the error names the option: otherwise the option would have no effect, and the operator would not notice.", testUnknownOptions)
	add("life", "Spawn returns when the server runs with the requested resources; Get and List show the server; Destroy leaves nothing of it.", testLife)
	add("spawn again", "A worker that was killed repeats Spawn: then exactly one server exists and runs, even if the server was stopped before.", testSpawnAgain)
	add("destroy again", "A worker repeats Destroy until it succeeds: Destroy works in every state, and succeeds if the server does not exist.", testDestroyAgain)
	add("not found", "Every call on a server that does not exist returns NotFound: the worker must be able to tell this from a fault of the host.", testNotFound)
	add("bad ids", "An id that is not valid is Invalid, and the call has no effect: drivers use ids as names of files.", testBadIDs)
	add("power", "PowerOff ends in SHUTDOWN and PowerOn in RUNNING, even if the server is in that state already.", testPower)
	add("reboot", "A hard reboot works in every state and ends in RUNNING; a soft reboot works only in RUNNING, and ends there.", testReboot)
	add("resources", "Resources are the total amounts of the host, used or not: the scheduler itself subtracts what the servers use.", testResources)
	add("honest capabilities", "A driver has the capabilities that it lists, and answers the other calls with Unimplemented: nova-mini relies on the list.", testHonest)
	add("pause", "Pause and Unpause work in RUNNING and PAUSED, even if they are repeated, and fail in SHUTDOWN.", testPause, compute.CapPause)
	add("suspend", "Suspend and Resume work in RUNNING and SUSPENDED, even if they are repeated, and fail in SHUTDOWN.", testSuspend, compute.CapSuspend)
	add("resize", "A stopped server gets other resources and runs with them; then the resize is confirmed or reverted. The disk does not shrink.", testResize, compute.CapResize)
	add("rescue", "A rescued server runs, and Get shows that it is rescued; after Unrescue it runs from its own disk again.", testRescue, compute.CapRescue)
	add("rescue password", "A server with a config drive is rescued with a password and without one, even if the call is repeated; after Unrescue it runs from its own disk again.", testRescuePassword, compute.CapRescue, compute.CapGuestData)
	add("snapshot", "A snapshot does not change the server, and a server can boot from it; to take it again is not an error.", testSnapshot, compute.CapSnapshot)
	add("remove image", "An image that a snapshot has made is removed, also by a repeated call; a server that was built from it stays.", testRemoveImage, compute.CapRemoveImage, compute.CapSnapshot)
	add("set password", "The password of a running guest is set; for a stopped server the call is a Precondition error.", testSetPassword, compute.CapSetPassword)
	add("inject nmi", "A running guest gets the interrupt, and its server stays or is rebooted by its kernel; for a stopped server the call is a Precondition error.", testInjectNMI, compute.CapInjectNMI)
	add("platforms", "A host can run at least one kind of guest, with architecture, type and mode: the scheduler compares them with what images ask for.", testPlatforms, compute.CapPlatforms)
	add("console log", "ConsoleLog returns what the guest wrote on its console, all of it or the last lines.", testConsoleLog, compute.CapConsoleLog)
	add("vnc console", "A running server has a console; for a stopped server the call returns Precondition.", func(e *env) { testConsole(e, compute.VNC) }, compute.CapVNCConsole)
	add("serial console", "A running server has a console; for a stopped server the call returns Precondition.", func(e *env) { testConsole(e, compute.Serial) }, compute.CapSerialConsole)
	add("volumes", "Repeated calls attach a volume once; the volume stays attached over a stop and a start; after Detach it is gone, and a second Detach is not an error.", testVolumes, compute.CapAttachVolume)
	add("interfaces", "Repeated calls attach an interface once; the interface stays attached over a stop and a start; after Detach it is gone, and a second Detach is not an error.", testInterfaces, compute.CapAttachInterface)
	add("metrics", "The counters of a running server do not decrease.", testMetrics, compute.CapMetrics)
	add("diagnostics", "Diagnostics of a server are not empty.", testDiagnostics, compute.CapDiagnostics)
	add("guest data", "Spawn builds a server with user data and a config drive; a repeated call is not an error; user data that are not base64 are Invalid.", testGuestData, compute.CapGuestData)
	add("extra disks", "A server with an ephemeral and a swap disk runs, also after a repeated Spawn and after a stop; sizes that are not valid are Invalid.", testExtraDisks, compute.CapExtraDisks)
	add("resize with extra disks", "A resize, and its revert, change only the root disk of a server with an ephemeral and a swap disk.", testResizeExtraDisks, compute.CapExtraDisks, compute.CapResize)
	add("image files", "A snapshot is written into a file at an absolute path; a server boots from such a file, and does not need the file afterwards.", testImageFiles, compute.CapImageFiles, compute.CapSnapshot)
	add("events", "The stream begins with BEGAN, and reports each later change.", testEvents, compute.CapEvents)
	add("many servers", "Calls on different servers, and List, may run at the same time.", testManyServers)
	add("canceled", "A call ends when its context ends before or during the call; the same call, or Destroy, succeeds later.", testCanceled)
	add("restart", "Servers outlive the driver, and keep their states.", testRestart)
	add("crash in the middle", "If the driver is killed at any moment of a call, the same call succeeds afterwards, and Destroy leaves nothing.", testCrashes)
	return out
}

func testInfo(e *env) {
	i := e.Info()
	if i.Name == "" || i.Version == "" {
		e.Errorf("the driver has the name %q and the version %q, want both", i.Name, i.Version)
	}
	all := []driver.Capability{
		compute.CapPause, compute.CapSuspend, compute.CapResize, compute.CapRescue, compute.CapSnapshot, compute.CapConsoleLog, compute.CapVNCConsole,
		compute.CapSerialConsole, compute.CapLiveMigrate, compute.CapAttachVolume, compute.CapAttachInterface, compute.CapMetrics, compute.CapDiagnostics, compute.CapEvents,
		compute.CapGuestData, compute.CapImageFiles, compute.CapRemoveImage, compute.CapSetPassword, compute.CapInjectNMI, compute.CapPlatforms, compute.CapExtraDisks,
	}
	for _, c := range i.Capabilities {
		if !slices.Contains(all, c) {
			e.Errorf("the capability %q does not exist", c)
		}
	}
}

func testUnknownOptions(e *env) {
	var given map[string]any
	if raw := e.Options(); len(raw) > 0 {
		if err := json.Unmarshal(raw, &given); err != nil {
			e.Fatalf("the options are not a JSON object: %v", err)
		}
	}
	unknown := []string{"no_such_option", ""}
	for name := range given {
		unknown = append(unknown, name+"x", strings.ToUpper(name))
	}
	for _, name := range unknown {
		options := maps.Clone(given)
		if options == nil {
			options = map[string]any{}
		}
		options[name] = "1"
		raw, err := json.Marshal(options)
		if err != nil {
			e.Fatalf("%v", err)
		}
		if err = e.Open(raw); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), name) {
			e.Errorf("open with an option %q that does not exist: %v, want Invalid with its name", name, errorText(err))
		}
	}
}

func testLife(e *env) {
	e.with(func(s compute.Spec) {
		got := e.state("spawn", s.ID, compute.Running)
		if got.Name != s.Name || got.Resources != s.Resources {
			e.Errorf("the server is %q with %+v, want %q with %+v", got.Name, got.Resources, s.Name, s.Resources)
		}
		e.must("list", func(ctx context.Context, d compute.Driver) error {
			list, err := d.List(ctx)
			i := slices.IndexFunc(list, func(i compute.Instance) bool { return i.ID == s.ID })
			if err == nil && (i < 0 || list[i].Power != compute.Running) {
				return fmt.Errorf("%s is not in the list, or does not run: %+v", s.ID, list)
			}
			return err
		})
	})
}

func testSpawnAgain(e *env) {
	e.with(func(s compute.Spec) {
		spawn := func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) }
		e.must("spawn again", spawn)
		e.state("the second spawn", s.ID, compute.Running)
		if n := len(e.list()); n != len(slices.Compact(e.list())) {
			e.Errorf("List has one server twice")
		}
		e.reach(s.ID, compute.Shutdown)
		e.must("spawn of a stopped server", spawn)
		e.state("the third spawn", s.ID, compute.Running)
	})
}

func testDestroyAgain(e *env) {
	destroy := func(id string) func(ctx context.Context, d compute.Driver) error {
		return func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, id) }
	}
	e.must("destroy of a server that does not exist", destroy(newID()))
	from := []compute.PowerState{compute.Running, compute.Shutdown}
	for state, c := range map[compute.PowerState]driver.Capability{compute.Paused: compute.CapPause, compute.Suspended: compute.CapSuspend} {
		if e.Info().Has(c) {
			from = append(from, state)
		}
	}
	for _, state := range from {
		e.with(func(s compute.Spec) {
			e.reach(s.ID, state)
			e.must(fmt.Sprintf("destroy in %v", state), destroy(s.ID))
			e.mustNotExist(s.ID)
			e.must("destroy again", destroy(s.ID))
		})
	}
}

func testNotFound(e *env) {
	for _, m := range e.cfg.methods() {
		if m.need == "" || e.Info().Has(m.need) {
			e.want(fault.NotFound, m.name, func(ctx context.Context, d compute.Driver) error { return m.call(ctx, d, newID()) })
		}
	}
}

func testBadIDs(e *env) {
	for _, id := range []string{"", "..", ".", "../x", "a/b", "/etc/passwd", "a\x00b", "a\nb", strings.Repeat("x", 300), "<id/>"} {
		e.want(fault.Invalid, fmt.Sprintf("spawn of %.20q", id), func(ctx context.Context, d compute.Driver) error {
			s := e.spec()
			s.ID = id
			return d.Spawn(ctx, s)
		})
		e.want(fault.Invalid, fmt.Sprintf("destroy of %.20q", id), func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, id) })
	}
}

func testPower(e *env) {
	e.with(func(s compute.Spec) {
		for range 2 {
			e.must("power off", func(ctx context.Context, d compute.Driver) error { return d.PowerOff(ctx, s.ID, 0) })
			e.state("power off", s.ID, compute.Shutdown)
		}
		for range 2 {
			e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
			e.state("power on", s.ID, compute.Running)
		}
		e.must("power off with grace", func(ctx context.Context, d compute.Driver) error { return d.PowerOff(ctx, s.ID, 200*time.Millisecond) })
		e.state("power off with grace", s.ID, compute.Shutdown)
	})
}

func testReboot(e *env) {
	e.with(func(s compute.Spec) {
		for _, hard := range []bool{true, false} {
			e.must("reboot", func(ctx context.Context, d compute.Driver) error { return d.Reboot(ctx, s.ID, hard) })
			e.state(fmt.Sprintf("reboot (hard: %v)", hard), s.ID, compute.Running)
		}
		e.reach(s.ID, compute.Shutdown)
		e.want(fault.Precondition, "soft reboot of a stopped server", func(ctx context.Context, d compute.Driver) error { return d.Reboot(ctx, s.ID, false) })
		e.must("hard reboot of a stopped server", func(ctx context.Context, d compute.Driver) error { return d.Reboot(ctx, s.ID, true) })
		e.state("hard reboot", s.ID, compute.Running)
	})
}

func testResources(e *env) {
	get := func() (r compute.Resources) {
		e.must("resources", func(ctx context.Context, d compute.Driver) (err error) {
			r, err = d.Resources(ctx)
			return err
		})
		return r
	}
	before := get()
	if before.VCPUs <= 0 || before.MemoryMiB <= 0 || before.DiskGiB <= 0 {
		e.Errorf("the host has %+v, want more than 0 of each", before)
	}
	e.with(func(compute.Spec) {
		if got := get(); got != before {
			e.Errorf("Resources with one server are %+v, without it %+v, want the same", got, before)
		}
	})
}

func testHonest(e *env) {
	e.with(func(s compute.Spec) {
		for _, m := range e.cfg.methods() {
			err := e.call(func(ctx context.Context, d compute.Driver) error { return m.call(ctx, d, newID()) })
			if has := m.need == "" || e.Info().Has(m.need); has == errors.Is(err, fault.Unimplemented) {
				e.Errorf("%s: %s; the driver lists the capability %q: %v", m.name, errorText(err), m.need, has)
			}
		}
		if !e.Info().Has(compute.CapEvents) {
			e.want(fault.Unimplemented, "Events", func(ctx context.Context, d compute.Driver) error {
				return d.Events(ctx, func(compute.Event) error { return errEnough })
			})
		}
		if !e.Info().Has(compute.CapRemoveImage) {
			e.want(fault.Unimplemented, "RemoveImage", func(ctx context.Context, d compute.Driver) error { return d.RemoveImage(ctx, newID()) })
		}
		if !e.Info().Has(compute.CapLiveMigrate) {
			e.want(fault.Unimplemented, "LiveMigrate", func(ctx context.Context, d compute.Driver) error { return d.LiveMigrate(ctx, s.ID, "elsewhere") })
		}
	})
}

func testEvents(e *env) {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	got := make(chan compute.Event, 1000)
	ended := make(chan error, 1)
	d := e.Driver()
	go func() {
		ended <- d.Events(ctx, func(ev compute.Event) error { got <- ev; return nil })
	}()
	await := func(id string, want compute.EventType) {
		e.Helper()
		for timeout := time.After(e.cfg.Timeout); ; {
			select {
			case ev := <-got:
				if ev.ServerID != id {
					continue
				}
				if since := time.Since(ev.Time); since > time.Hour || since < -time.Hour {
					e.Errorf("an event has the time %v, want about now", ev.Time)
				}
				if ev.Type == want {
					return
				}
			case err := <-ended:
				e.Fatalf("the stream ended before the event %s: %v", want, errorText(err))
			case <-timeout:
				e.Fatalf("no event %s of %q within %v", want, id, e.cfg.Timeout)
			}
		}
	}
	await("", compute.EventBegan)
	s := e.spec()
	e.must("spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
	await(s.ID, compute.EventStarted)
	e.reach(s.ID, compute.Shutdown)
	await(s.ID, compute.EventStopped)
	if e.Info().Has(compute.CapPause) {
		e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
		e.reach(s.ID, compute.Paused)
		await(s.ID, compute.EventPaused)
	}
	e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
	await(s.ID, compute.EventDestroyed)
	cancel()
	if err := <-ended; fault.CodeOf(err) != fault.Canceled {
		e.Errorf("the canceled stream ended with %s, want Canceled", errorText(err))
	}
	if err := e.call(func(ctx context.Context, d compute.Driver) error {
		return d.Events(ctx, func(compute.Event) error { return errEnough })
	}); !errors.Is(err, errEnough) {
		e.Errorf("a stream whose listener returned an error: %s, want that error", errorText(err))
	}
}

func testManyServers(e *env) {
	var wg sync.WaitGroup
	d := e.Driver()
	for range e.cfg.Servers {
		wg.Go(func() {
			s := e.spec()
			for _, step := range []struct {
				name string
				call func(ctx context.Context, d compute.Driver) error
			}{
				{"spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) }},
				{"list", func(ctx context.Context, d compute.Driver) error { _, err := d.List(ctx); return err }},
				{"power off", func(ctx context.Context, d compute.Driver) error { return d.PowerOff(ctx, s.ID, 0) }},
				{"get", func(ctx context.Context, d compute.Driver) error {
					i, err := d.Get(ctx, s.ID)
					if err == nil && i.Power != compute.Shutdown {
						return fmt.Errorf("the server is %v, want SHUTDOWN", i.Power)
					}
					return err
				}},
				{"power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) }},
				{"destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) }},
			} {
				ctx, cancel := context.WithTimeout(e.Context(), e.cfg.Timeout*time.Duration(e.cfg.Servers))
				if err := step.call(ctx, d); err != nil {
					e.Errorf("%s of %s among %d servers: %s", step.name, s.ID, e.cfg.Servers, errorText(err))
				}
				cancel()
			}
		})
	}
	wg.Wait()
}

func testCanceled(e *env) {
	checkCanceled := func(what string, err error) {
		e.Helper()
		if c := fault.CodeOf(err); err != nil && c != fault.Timeout && c != fault.Canceled {
			e.Errorf("%s that was canceled: %s, want no error, Timeout or Canceled", what, errorText(err))
		}
	}
	ended, cancel := context.WithCancel(e.Context())
	cancel()
	s := e.spec()
	if err := e.Driver().Spawn(ended, s); err == nil {
		e.Errorf("a spawn succeeded although its context had ended before the call")
	} else {
		checkCanceled("a spawn", err)
	}
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range e.cfg.Crashes {
		s := e.spec()
		after := time.Duration(r.Int64N(int64(20*time.Millisecond) << (2 * i)))
		ctx, cancel := context.WithTimeout(e.Context(), after)
		checkCanceled(fmt.Sprintf("a spawn after %v", after), e.Driver().Spawn(ctx, s))
		cancel()
		if i%2 == 0 {
			e.must("the same spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
			e.state("the same spawn", s.ID, compute.Running)
		}
		ctx, cancel = context.WithTimeout(e.Context(), after)
		checkCanceled(fmt.Sprintf("a destroy after %v", after), e.Driver().Destroy(ctx, s.ID))
		cancel()
		e.must("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		e.mustNotExist(s.ID)
	}
}

func testRestart(e *env) {
	e.with(func(s compute.Spec) {
		e.Restart()
		e.state("a restart of the driver", s.ID, compute.Running)
		e.reach(s.ID, compute.Shutdown)
		e.Restart()
		got := e.state("a restart of the driver", s.ID, compute.Shutdown)
		if got.Name != s.Name || got.Resources != s.Resources {
			e.Errorf("the server is %q with %+v, want %q with %+v", got.Name, got.Resources, s.Name, s.Resources)
		}
	})
}

func testCrashes(e *env) {
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	took := make(map[string]time.Duration) // how long a call takes without a crash
	hit, all := 0, 0
	crashed := func(what string, call func(ctx context.Context, d compute.Driver) error) {
		e.Helper()
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- e.call(call) }()
		after := time.Duration(r.Int64N(int64(max(took[what], time.Millisecond))))
		e.Crash(after)
		err := <-done
		if err != nil && fault.CodeOf(err) != fault.Unknown && fault.CodeOf(err) != fault.Unavailable {
			e.Errorf("%s, whose driver was killed after %v: %s, want Unknown or Unavailable", what, after, errorText(err))
		}
		if all++; fault.CodeOf(err) == fault.Unknown {
			hit++
		}
		if d := time.Since(began); d > e.cfg.Timeout {
			e.Errorf("%s hung for %v", what, d)
		}
		began = time.Now()
		e.must(what+" again", call)
		took[what] = max(took[what], time.Since(began))
	}
	defer func() { e.Logf("killing the driver interrupted %d of %d calls", hit, all) }()
	for range e.cfg.Crashes {
		s := e.spec()
		crashed("spawn", func(ctx context.Context, d compute.Driver) error { return d.Spawn(ctx, s) })
		e.state("spawn", s.ID, compute.Running)
		for _, m := range e.cfg.methods() {
			if m.to == 0 || m.need != "" && !e.Info().Has(m.need) {
				continue
			}
			e.reach(s.ID, m.from)
			crashed(m.name, func(ctx context.Context, d compute.Driver) error { return m.call(ctx, d, s.ID) })
			e.state(m.name, s.ID, m.to)
			switch m.to { // back to RUNNING
			case compute.Shutdown:
				e.must("power on", func(ctx context.Context, d compute.Driver) error { return d.PowerOn(ctx, s.ID) })
			case compute.Paused:
				e.must("unpause", func(ctx context.Context, d compute.Driver) error { return d.Unpause(ctx, s.ID) })
			case compute.Suspended:
				e.must("resume", func(ctx context.Context, d compute.Driver) error { return d.Resume(ctx, s.ID) })
			default:
			}
		}
		crashed("destroy", func(ctx context.Context, d compute.Driver) error { return d.Destroy(ctx, s.ID) })
		e.mustNotExist(s.ID)
	}
}
