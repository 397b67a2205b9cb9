// Package fake is a compute driver without a hypervisor, with all capabilities, for tests of code that uses compute
// drivers. A driver is one host. A process can have thousands of drivers, and a host thousands of servers. The servers are
// stored in a directory, so that they exist after the process has ended, like the servers of a hypervisor.
//
// The configuration defines which calls fail. The option fault_METHOD applies to all servers, and the metadata fake:METHOD of a
// server to this server. METHOD is the name of a method such as spawn or power_off. The value is a list of faults, separated by ";".
// Each fault has the form
//
//	slow DURATION | fail [CODE] | hang | crash | wrong STATE   [after] [TIMES] [on HOST[,HOST]]
//
// such as "slow 2s", "fail Exhausted on node-1,node-2", "fail 2" (two calls fail, the next succeeds), "crash after 1" (the
// process dies once, after the effect and before the answer), "hang" (until the call's context ends) and "wrong CRASHED"
// (the call succeeds, but the server is in the given, wrong state). TIMES is the number of calls that have the fault; if the
// driver has a directory, earlier calls also count after a crash of the process. The metadata fake:dies is the time from the
// start of the guest to its crash. It also passes while the driver is closed and while the guest is paused or suspended: such a guest crashes as
// soon as it runs in an open driver.
package fake

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Config configures a Driver.
type Config struct {
	// Host is the name of the host that the driver simulates. Required.
	Host string
	// Dir is the directory of the servers. Only one driver may use it. It is created if it does not exist. Servers migrate
	// between drivers whose directories are siblings and are named like their hosts. Without Dir, the servers exist only as
	// long as the driver.
	Dir string
	// Resources are the resources of the host. Default 16 VCPUs, 32768 MiB, 500 GiB.
	Resources compute.Resources
	// Arch is the architecture of the guests. Default x86_64.
	Arch string
	// Faults maps the names of methods to the faults of their calls, in the form described above.
	Faults map[string]string
	// EventStorm is the number of unneeded events in each stream of events, per second. Default 0.
	EventStorm int
	// Crash is the function that the fault crash calls. Default: a function that kills the process.
	Crash func()

	faults map[string][]callFault
}

// Driver is a compute.Driver. It is safe for concurrent use.
type Driver struct {
	cfg Config

	mu          sync.Mutex
	servers     map[string]*server
	counts      map[string]int // how often each fault with a limit has occurred; the key has the method, the server and the position of the fault
	images      map[string]bool
	received    time.Time
	watchers    map[chan compute.Event]bool
	crashTimers map[string]*time.Timer
	consoles    map[consoleKey]*consolePort
	closed      bool
}

var _ compute.Driver = (*Driver)(nil)

// Open returns a driver with the options of a configuration file, all of them texts: host, dir, vcpus, memory_mib,
// disk_gib, arch, event_storm and fault_METHOD, with the defaults of Config. The option hosts is only checked: it is for a process that
// simulates a fleet, see [Hosts], and a driver is always one host. Open is for a driver.Registry and for driver.Serve. Errors: Invalid.
func Open(_ context.Context, raw json.RawMessage) (compute.Driver, error) {
	opts := struct {
		Host       string            `option:"host"`
		Dir        string            `option:"dir"`
		Hosts      int               `option:"hosts"`
		VCPUs      int               `option:"vcpus"`
		MemoryMiB  int               `option:"memory_mib"`
		DiskGiB    int               `option:"disk_gib"`
		Arch       string            `option:"arch"`
		EventStorm int               `option:"event_storm"`
		Faults     map[string]string `option:"fault_*"`
	}{Hosts: defaultHosts, VCPUs: defaults.VCPUs, MemoryMiB: defaults.MemoryMiB, DiskGiB: defaults.DiskGiB}
	if err := driver.ParseOptions(raw, &opts); err != nil {
		return nil, err
	}
	if err := checkHosts(opts.Hosts); err != nil {
		return nil, err
	}
	cfg := Config{
		Host: opts.Host, Dir: opts.Dir, Faults: opts.Faults, EventStorm: opts.EventStorm, Arch: opts.Arch,
		Resources: compute.Resources{VCPUs: opts.VCPUs, MemoryMiB: opts.MemoryMiB, DiskGiB: opts.DiskGiB},
	}
	d, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// The default and the maximum number of hosts of a process that simulates a fleet, with a driver for each host.
const (
	defaultHosts = 4
	maxHosts     = 10_000
)

func checkHosts(n int) error {
	if n < 1 || n > maxHosts {
		return optionError("hosts", fault.New(fault.Invalid, "option hosts: %d is not between 1 and %d", n, maxHosts))
	}
	return nil
}

// Hosts returns the number of simulated hosts from the text of the option hosts. Default 4. Errors: Invalid, with the
// option's name, if the text is not a number from 1 to 10,000.
func Hosts(text string) (int, error) {
	if text == "" {
		return defaultHosts, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, optionError("hosts", fault.New(fault.Invalid, "option hosts: %q is not an integer from 1 to %d", text, maxHosts))
	}
	return n, checkHosts(n)
}

// defaults are the resources of a host without options.
var defaults = compute.Resources{VCPUs: 16, MemoryMiB: 32768, DiskGiB: 500}

// New returns a driver with the servers of the directory. Errors: Invalid.
func New(cfg Config) (*Driver, error) { //nolint:gocognit // see CONTRIBUTING.md
	if cfg.Host == "" {
		return nil, fault.New(fault.Invalid, "option host is not set")
	}
	for name, n := range map[string]int{"vcpus": cfg.Resources.VCPUs, "memory_mib": cfg.Resources.MemoryMiB, "disk_gib": cfg.Resources.DiskGiB, "event_storm": cfg.EventStorm} {
		if n < 0 {
			return nil, optionError(name, fault.New(fault.Invalid, "option %s: %d is less than 0", name, n))
		}
	}
	if cfg.Resources == (compute.Resources{}) {
		cfg.Resources = defaults
	}
	if cfg.Crash == nil {
		cfg.Crash = func() {
			self, _ := os.FindProcess(os.Getpid()) // does not fail on Unix
			_ = self.Kill()
			select {}
		}
	}
	cfg.faults = make(map[string][]callFault)
	for method, text := range cfg.Faults {
		if !slices.Contains(methods, method) {
			return nil, optionError("fault_"+method, fault.New(fault.Invalid, "option fault_%s: the method does not exist; use one of: %s", method, strings.Join(methods, ", ")))
		}
		var err error
		if cfg.faults[method], err = parseFaults(text); err != nil {
			return nil, optionError("fault_"+method, fault.New(fault.Invalid, "option fault_%s: %w", method, err))
		}
	}
	d := &Driver{
		cfg: cfg, servers: make(map[string]*server), counts: make(map[string]int), images: make(map[string]bool),
		watchers: make(map[chan compute.Event]bool), crashTimers: make(map[string]*time.Timer),
		consoles: make(map[consoleKey]*consolePort),
	}
	if err := d.loadServers(); err != nil {
		return nil, optionError("dir", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.servers {
		if s.Power == compute.Running {
			d.scheduleCrashLocked(s)
		}
	}
	return d, nil
}

// optionError returns err with the name of the option that caused it.
func optionError(option string, err error) error {
	return fault.WithReason(err, "", map[string]string{"option": option})
}

// Info implements driver.Driver.
func (d *Driver) Info(ctx context.Context) (driver.Info, error) {
	info := driver.Info{Name: "fake", Version: "2.0", Capabilities: []driver.Capability{
		compute.CapPause, compute.CapSuspend, compute.CapResize, compute.CapRescue, compute.CapSnapshot, compute.CapConsoleLog,
		compute.CapVNCConsole, compute.CapSerialConsole, compute.CapLiveMigrate, compute.CapAttachVolume,
		compute.CapAttachInterface, compute.CapMetrics, compute.CapDiagnostics, compute.CapEvents, compute.CapGuestData, compute.CapImageFiles,
		compute.CapRemoveImage, compute.CapSetPassword, compute.CapInjectNMI, compute.CapPlatforms, compute.CapExtraDisks,
	}}
	return info, d.withFaults(ctx, "info", "", nil, func() error { return nil })
}

// Close implements driver.Driver. The servers stay in the directory.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, t := range d.crashTimers {
		t.Stop()
	}
	d.closeConsolesLocked("")
	for w := range d.watchers {
		close(w)
		delete(d.watchers, w)
	}
	return nil
}

// Resources implements compute.Driver.
func (d *Driver) Resources(ctx context.Context) (compute.Resources, error) {
	return d.cfg.Resources, d.withFaults(ctx, "resources", "", nil, func() error { return nil })
}

// newServer returns a server that is not started. The parameter userData is the size of its user data, in bytes.
func newServer(spec *compute.Spec, userData int) *server {
	s := &server{
		Instance: compute.Instance{ID: spec.ID, Name: spec.Name, Resources: spec.Resources},
		Image:    spec.ImageRef, Metadata: maps.Clone(spec.Metadata), EphemeralGiB: spec.EphemeralGiB, SwapMiB: spec.SwapMiB,
	}
	if spec.NeedsGuestData() {
		s.GuestData = fmt.Sprintf("host name %s, %d bytes of user data, password set: %t, key set: %t, %d files", spec.Hostname, userData, spec.AdminPass != "", spec.PublicKey != "", len(spec.Files))
	}
	return s
}

// checkSpec returns Invalid if a part of a Spec is not valid, except for the user data.
func checkSpec(spec *compute.Spec) error {
	if err := checkID(spec.ID); err != nil {
		return err
	}
	if r := spec.Resources; r.VCPUs < 0 || r.MemoryMiB < 0 || r.DiskGiB < 0 {
		return fault.New(fault.Invalid, "the size %+v of the server is not valid: no amount may be negative", r)
	}
	if err := spec.CheckDisks(); err != nil {
		return err
	}
	if text := spec.Metadata["fake:dies"]; text != "" {
		if _, err := time.ParseDuration(text); err != nil {
			return fault.New(fault.Invalid, "metadata fake:dies: %w", err)
		}
	}
	return nil
}

// Spawn implements compute.Driver.
func (d *Driver) Spawn(ctx context.Context, spec compute.Spec) error {
	if err := checkSpec(&spec); err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(spec.UserData) // DecodeString ignores line breaks
	if err != nil {
		return fault.New(fault.Invalid, "user data of server %s: %w", spec.ID, err)
	}
	return d.withFaults(ctx, "spawn", spec.ID, spec.Metadata, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if err := d.receiveServers(); err != nil {
			return err
		}
		s := newServer(&spec, len(data))
		if old := d.servers[spec.ID]; old != nil {
			if old.Power == compute.Running {
				return nil
			}
			*s = *old
		} else if err := checkFile(spec.ImageRef); err != nil {
			return err
		}
		s.boot()
		return d.putServer(s)
	})
}

// Destroy implements compute.Driver.
func (d *Driver) Destroy(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	var metadata map[string]string
	if s, err := d.serverCopy(id); err == nil {
		metadata = s.Metadata
	}
	return d.withFaults(ctx, "destroy", id, metadata, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if err := d.removeServer(id); err != nil {
			return err
		}
		d.forgetCounts(id)
		return nil
	})
}

// List implements compute.Driver.
func (d *Driver) List(ctx context.Context) (list []compute.Instance, err error) {
	err = d.withFaults(ctx, "list", "", nil, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if err := d.receiveServers(); err != nil {
			return err
		}
		list = make([]compute.Instance, 0, len(d.servers))
		for _, s := range d.servers {
			list = append(list, s.Instance)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b compute.Instance) int { return strings.Compare(a.ID, b.ID) })
	return list, err
}

// Get implements compute.Driver.
func (d *Driver) Get(ctx context.Context, id string) (compute.Instance, error) {
	s, err := d.applyTo(ctx, "get", id, nil)
	return s.Instance, err
}

// applyTo applies the effect of a method to an existing server, and returns the changed server. If effect is nil, applyTo only reads
// the server.
func (d *Driver) applyTo(ctx context.Context, method, id string, effect func(s *server) error) (server, error) {
	s, err := d.serverCopy(id)
	if err != nil {
		return server{}, err
	}
	if err := d.withFaults(ctx, method, id, s.Metadata, func() error {
		if effect == nil {
			return nil
		}
		return d.changeServer(id, effect)
	}); err != nil {
		return server{}, err
	}
	return d.serverCopy(id)
}

// applyInState applies the effect of a method to a server. The parameter from has the power states in which the method is allowed; an
// empty list means all states. Errors: Precondition in another state.
func (d *Driver) applyInState(ctx context.Context, method, id string, from []compute.PowerState, effect func(s *server)) error {
	_, err := d.applyTo(ctx, method, id, func(s *server) error {
		if len(from) > 0 && !slices.Contains(from, s.Power) {
			return fault.New(fault.Precondition, "%s: server %s is %v", method, id, s.Power)
		}
		effect(s)
		return nil
	})
	return err
}

// setPower returns an effect that changes the power state.
func setPower(p compute.PowerState) func(*server) { return func(s *server) { s.Power = p } }

func powerStates(p ...compute.PowerState) []compute.PowerState { return p }

// PowerOn implements compute.Driver.
func (d *Driver) PowerOn(ctx context.Context, id string) error {
	return d.applyInState(ctx, "power_on", id, powerStates(compute.Shutdown, compute.Crashed, compute.Running), func(s *server) {
		if s.Power != compute.Running {
			s.boot()
		}
	})
}

// PowerOff implements compute.Driver. The guest shuts down at once.
func (d *Driver) PowerOff(ctx context.Context, id string, _ time.Duration) error {
	return d.applyInState(ctx, "power_off", id, nil, setPower(compute.Shutdown))
}

// Reboot implements compute.Driver.
func (d *Driver) Reboot(ctx context.Context, id string, hard bool) error {
	from := powerStates(compute.Running)
	if hard {
		from = nil
	}
	return d.applyInState(ctx, "reboot", id, from, (*server).boot)
}

// Pause implements compute.Driver.
func (d *Driver) Pause(ctx context.Context, id string) error {
	return d.applyInState(ctx, "pause", id, powerStates(compute.Running, compute.Paused), setPower(compute.Paused))
}

// Unpause implements compute.Driver.
func (d *Driver) Unpause(ctx context.Context, id string) error {
	return d.applyInState(ctx, "unpause", id, powerStates(compute.Running, compute.Paused), setPower(compute.Running))
}

// Suspend implements compute.Driver.
func (d *Driver) Suspend(ctx context.Context, id string) error {
	return d.applyInState(ctx, "suspend", id, powerStates(compute.Running, compute.Suspended), setPower(compute.Suspended))
}

// Resume implements compute.Driver.
func (d *Driver) Resume(ctx context.Context, id string) error {
	return d.applyInState(ctx, "resume", id, powerStates(compute.Running, compute.Suspended), setPower(compute.Running))
}

// removeServer removes a server if it exists.
func (d *Driver) removeServer(id string) error {
	if err := d.receiveServers(); err != nil {
		return err
	}
	if d.servers[id] == nil {
		return nil
	}
	if d.cfg.Dir != "" {
		if err := os.Remove(d.cfg.Dir + "/" + id + ext); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("destroy %s: %w", id, err)
		}
	}
	if t := d.crashTimers[id]; t != nil {
		t.Stop()
		delete(d.crashTimers, id)
	}
	delete(d.servers, id)
	d.closeConsolesLocked(id)
	d.sendEvent(id, compute.EventDestroyed)
	return nil
}
