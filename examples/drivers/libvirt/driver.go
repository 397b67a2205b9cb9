//go:build libvirt_dlopen

package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	lv "libvirt.org/go/libvirt"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/keylock"
)

// Driver is a compute.Driver. It is safe for concurrent use.
type Driver struct {
	compute.Unsupported

	opts  options
	conn  connection
	locks keylock.Locks // one lock for each server's id; a canceled call continues in libvirt, and the next call waits for its end
}

var _ compute.Driver = (*Driver)(nil)

// Open connects to libvirt. It is for driver.Serve. Errors: Invalid for a wrong option; Unavailable if libvirtd cannot be
// reached, with the Debian package that may be missing.
func Open(_ context.Context, raw json.RawMessage) (compute.Driver, error) {
	o, err := parseOptions(raw)
	if err != nil {
		return nil, err
	}
	d := &Driver{opts: o, conn: connection{uri: o.uri, ours: o.hasFiles}}
	if _, _, err := d.conn.get(); err != nil {
		return nil, err
	}
	return d, nil
}

// Info implements driver.Driver.
func (d *Driver) Info(context.Context) (driver.Info, error) {
	info := driver.Info{Name: "libvirt", Version: "1.0", Capabilities: []driver.Capability{compute.CapPause, compute.CapResize, compute.CapRescue, compute.CapEvents, compute.CapDiagnostics, compute.CapImageFiles, compute.CapPlatforms}}
	if d.opts.virtType != "test" {
		info.Capabilities = append(info.Capabilities, compute.CapSuspend, compute.CapSnapshot, compute.CapRemoveImage, compute.CapConsoleLog, compute.CapAttachVolume, compute.CapAttachInterface, compute.CapMetrics, compute.CapGuestData, compute.CapInjectNMI, compute.CapExtraDisks)
		if d.opts.vnc != "none" {
			info.Capabilities = append(info.Capabilities, compute.CapVNCConsole)
		}
	}
	return info, nil
}

// Close implements driver.Driver. The guests keep running.
func (d *Driver) Close() error { return d.conn.close() }

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func checkID(id string) error {
	if !uuid.MatchString(id) {
		return fault.New(fault.Invalid, "%q is not a server's id, a UUID in lower-case letters", id)
	}
	return nil
}

// withLock locks a server and runs the function f. If ctx ends, withLock returns, but f continues and keeps the lock until f ends. So
// f must check ctx between its steps.
func (d *Driver) withLock(ctx context.Context, what, id string, f func(ctx context.Context, conn *lv.Connect) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", what, id, err)
	}
	if err := d.locks.Lock(ctx, id); err != nil {
		return fmt.Errorf("%s %s: %w", what, id, err)
	}
	err := awaitCall(ctx, func() error {
		conn, _, err := d.conn.get()
		if err != nil {
			return err
		}
		return f(ctx, conn)
	}, func() { d.locks.Unlock(id) })
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return withFaultCode(what, id, err)
}

// guest is a server's domain.
type guest struct {
	*lv.Domain
	d   *Driver
	def *definition // the stored definition; the definition of the running guest may differ
}

// findGuest looks up a server. Errors: NotFound; Conflict if this driver has not created the domain.
func (d *Driver) findGuest(conn *lv.Connect, id string) (*guest, error) {
	dom, err := conn.LookupDomainByUUIDString(id)
	if hasErrorNumber(err, lv.ERR_NO_DOMAIN) {
		return nil, fault.New(fault.NotFound, "server %s does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	g, err := d.guest(dom)
	if err != nil {
		_ = dom.Free()
	}
	if errors.Is(err, errNotOurs) {
		return nil, fault.New(fault.Conflict, "the guest %s was not created by this driver", id)
	}
	return g, err
}

func (d *Driver) guest(dom *lv.Domain) (*guest, error) {
	doc, err := dom.GetXMLDesc(lv.DOMAIN_XML_INACTIVE)
	if err != nil {
		return nil, err
	}
	def, err := parseDefinition(doc)
	if err != nil {
		return nil, err
	}
	if def.meta.Host != d.opts.host {
		return nil, errNotOurs
	}
	return &guest{dom, d, def}, nil
}

func (g *guest) free() { _ = g.Free() } // releases this process's reference to the domain

// power returns the power state of a guest.
func (g *guest) power() (compute.PowerState, error) {
	state, reason, err := g.GetState()
	if err != nil {
		return compute.NoState, err
	}
	switch state {
	case lv.DOMAIN_RUNNING, lv.DOMAIN_BLOCKED, lv.DOMAIN_SHUTDOWN: // SHUTDOWN: the guest is shutting down and still runs
		return compute.Running, nil
	case lv.DOMAIN_PAUSED:
		switch lv.DomainPausedReason(reason) {
		case lv.DOMAIN_PAUSED_STARTING_UP, lv.DOMAIN_PAUSED_SAVE, lv.DOMAIN_PAUSED_DUMP, lv.DOMAIN_PAUSED_MIGRATION,
			lv.DOMAIN_PAUSED_SNAPSHOT, lv.DOMAIN_PAUSED_FROM_SNAPSHOT, lv.DOMAIN_PAUSED_SHUTTING_DOWN:
			return compute.NoState, nil // libvirt is changing the guest
		default:
			return compute.Paused, nil
		}
	case lv.DOMAIN_PMSUSPENDED:
		return compute.Suspended, nil
	case lv.DOMAIN_CRASHED:
		return compute.Crashed, nil
	case lv.DOMAIN_SHUTOFF:
		if saved, err := g.HasManagedSaveImage(0); err == nil && saved {
			return compute.Suspended, nil
		}
		if r := lv.DomainShutoffReason(reason); r == lv.DOMAIN_SHUTOFF_CRASHED || r == lv.DOMAIN_SHUTOFF_FAILED {
			return compute.Crashed, nil
		}
		return compute.Shutdown, nil
	default:
		return compute.NoState, nil
	}
}

func (g *guest) instance() (compute.Instance, error) {
	p, err := g.power()
	m := g.def.meta
	return compute.Instance{
		ID: m.ID, Name: m.Name, Power: p, Resources: m.resources(), Rescued: m.Rescued,
		Volumes: g.def.volumes(), Interfaces: g.def.interfaces(),
	}, err
}

// saveDefinition writes the guest's definition to libvirt.
func (g *guest) saveDefinition(conn *lv.Connect) error {
	doc, err := g.def.marshalXML()
	if err != nil {
		return err
	}
	dom, err := conn.DomainDefineXML(doc)
	if err != nil {
		return err
	}
	return dom.Free()
}

// awaitSettled waits until libvirt no longer changes the guest, for example because of a call of a killed driver. It returns the
// guest's power state.
func (g *guest) awaitSettled(ctx context.Context) (compute.PowerState, error) {
	for {
		p, err := g.power()
		if err != nil || p != compute.NoState {
			return p, err
		}
		if err := sleepContext(ctx, 50*time.Millisecond); err != nil {
			return p, err
		}
	}
}

func sleepContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start boots a guest that is shut down.
func (g *guest) start(ctx context.Context) error {
	for n := 0; ; n++ {
		err := g.Create()
		switch {
		case hasErrorNumber(err, lv.ERR_OPERATION_INVALID): // the guest may already run
			if p, perr := g.awaitSettled(ctx); perr == nil && p == compute.Running {
				return nil
			}
			return err
		case err != nil && n < 5 && strings.Contains(err.Error(), "Failed to find an available port"):
			continue // another program uses the port that libvirt has chosen for the console
		}
		return err
	}
}

// stop cuts a guest's power and removes its saved memory. It works in every state of the guest.
func (g *guest) stop() error {
	err := g.Destroy()
	if err != nil && !hasErrorNumber(err, lv.ERR_OPERATION_INVALID) { // OPERATION_INVALID: the guest does not run
		return err
	}
	if saved, err := g.HasManagedSaveImage(0); err == nil && saved {
		return g.ManagedSaveRemove(0)
	}
	return nil
}

// Spawn implements compute.Driver. It creates the disk and the config drive, then defines the guest, and then starts the guest. Each step accepts
// the results of an interrupted call.
func (d *Driver) Spawn(ctx context.Context, s compute.Spec) error {
	if r := s.Resources; r.VCPUs < 1 || r.MemoryMiB < 1 || r.DiskGiB < 0 {
		return fault.New(fault.Invalid, "the size %+v of the server is not valid: it needs at least one VCPU and 1 MiB of memory", r)
	}
	if err := s.CheckDisks(); err != nil {
		return err
	}
	if _, err := decodeUserData(&s); err != nil {
		return err
	}
	return d.withLock(ctx, "spawn", s.ID, func(ctx context.Context, conn *lv.Connect) error {
		g, err := d.findGuest(conn, s.ID)
		if errors.Is(err, fault.NotFound) {
			if g, err = d.createGuest(ctx, conn, s); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		defer g.free()
		if err := ctx.Err(); err != nil {
			return err
		}
		switch p, err := g.awaitSettled(ctx); {
		case err != nil:
			return err
		case p == compute.Running:
			return nil
		case p == compute.Paused:
			return g.Resume()
		default:
			return g.start(ctx)
		}
	})
}

func (d *Driver) createGuest(ctx context.Context, conn *lv.Connect, s compute.Spec) (*guest, error) {
	if err := os.MkdirAll(d.opts.file(s.ID, ""), 0o711); err != nil { //nolint:gosec // QEMU's user needs the x bit
		return nil, err
	}
	if err := d.opts.overlay(ctx, d.opts.file(s.ID, diskFile), s.ImageRef, s.RootGiB()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.opts.file(s.ID, "")))
	}
	if err := d.opts.createExtraDisks(ctx, &s); err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.opts.file(s.ID, "")))
	}
	if s.NeedsGuestData() {
		if err := writeConfigDrive(d.opts.file(s.ID, configFile), &s); err != nil {
			return nil, errors.Join(err, os.RemoveAll(d.opts.file(s.ID, "")))
		}
	}
	doc, err := d.opts.newDefinition(s).marshalXML()
	if err != nil {
		return nil, err
	}
	dom, err := conn.DomainDefineXML(doc)
	if err != nil {
		return nil, err
	}
	return d.guest(dom)
}

// Destroy implements compute.Driver. It removes the files last, so that List returns the server until everything is removed.
func (d *Driver) Destroy(ctx context.Context, id string) error {
	return d.withLock(ctx, "destroy", id, func(_ context.Context, conn *lv.Connect) error {
		g, err := d.findGuest(conn, id)
		if err == nil {
			defer g.free()
			d.conn.gone.Store(id, true)
			if err := g.stop(); err != nil {
				return err
			}
			err := g.UndefineFlags(lv.DOMAIN_UNDEFINE_MANAGED_SAVE | lv.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
			if err != nil && !hasErrorNumber(err, lv.ERR_NO_DOMAIN) {
				return err
			}
		} else if !errors.Is(err, fault.NotFound) {
			return err
		}
		return os.RemoveAll(d.opts.file(id, ""))
	})
}

// List implements compute.Driver.
func (d *Driver) List(ctx context.Context) (out []compute.Instance, err error) {
	err = awaitCall(ctx, func() error {
		conn, _, err := d.conn.get()
		if err != nil {
			return err
		}
		list, err := d.listGuests(conn)
		if err != nil {
			return err
		}
		seen := make(map[string]bool, len(list))
		for _, inst := range list {
			seen[inst.ID] = true
		}
		entries, err := os.ReadDir(d.opts.dir)
		if err != nil {
			return err
		}
		for _, e := range entries { // servers that are only partly built or destroyed
			if checkID(e.Name()) == nil && !seen[e.Name()] {
				list = append(list, compute.Instance{ID: e.Name()})
			}
		}
		out = list
		return nil
	}, func() {})
	return out, withFaultCode("list", "servers", err)
}

// listGuests returns the servers that have a domain.
func (d *Driver) listGuests(conn *lv.Connect) (list []compute.Instance, err error) {
	doms, err := conn.ListAllDomains(0)
	if err != nil {
		return nil, err
	}
	defer func() {
		for i := range doms {
			_ = doms[i].Free()
		}
	}()
	for i := range doms {
		g, err := d.guest(&doms[i])
		if errors.Is(err, errNotOurs) || hasErrorNumber(err, lv.ERR_NO_DOMAIN) { // NO_DOMAIN: the domain was removed after it was listed
			continue
		}
		if err != nil {
			return nil, err
		}
		inst, err := g.instance()
		if err != nil && !hasErrorNumber(err, lv.ERR_NO_DOMAIN) {
			return nil, err
		}
		list = append(list, inst)
	}
	return list, nil
}

// Get implements compute.Driver.
func (d *Driver) Get(ctx context.Context, id string) (inst compute.Instance, err error) {
	err = d.withGuest(ctx, "get", id, func(_ *lv.Connect, g *guest) error {
		inst, err = g.instance()
		return err
	})
	if errors.Is(err, fault.NotFound) {
		if _, serr := os.Stat(d.opts.file(id, "")); serr == nil {
			return compute.Instance{ID: id}, nil // the server is only partly built or destroyed
		}
	}
	return inst, err
}

// withGuest runs the function f with a server. It does not lock the server.
func (d *Driver) withGuest(ctx context.Context, what, id string, f func(conn *lv.Connect, g *guest) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	err := awaitCall(ctx, func() error {
		conn, _, err := d.conn.get()
		if err != nil {
			return err
		}
		g, err := d.findGuest(conn, id)
		if err != nil {
			return err
		}
		defer g.free()
		return f(conn, g)
	}, func() {})
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return withFaultCode(what, id, err)
}

// change locks an existing server and runs the function f with the server and its power state. Errors: NotFound.
func (d *Driver) change(ctx context.Context, what, id string, f func(ctx context.Context, conn *lv.Connect, g *guest, p compute.PowerState) error) error {
	return d.withLock(ctx, what, id, func(ctx context.Context, conn *lv.Connect) error {
		g, err := d.findGuest(conn, id)
		if err != nil {
			return err
		}
		defer g.free()
		p, err := g.awaitSettled(ctx)
		if err != nil {
			return err
		}
		return f(ctx, conn, g, p)
	})
}

func wrongState(what, id string, p compute.PowerState) error {
	return fault.New(fault.Precondition, "%s: server %s is %v", what, id, p)
}

// PowerOff implements compute.Driver.
func (d *Driver) PowerOff(ctx context.Context, id string, grace time.Duration) error {
	return d.change(ctx, "power off", id, func(ctx context.Context, _ *lv.Connect, g *guest, p compute.PowerState) error {
		if p == compute.Running && grace > 0 {
			if err := g.requestShutdown(ctx, grace); err != nil {
				return err
			}
		}
		if err := g.stop(); err != nil {
			return err
		}
		return g.clearCrash(p)
	})
}

// clearCrash changes the state of a crashed guest to shut down. libvirt keeps the state crashed until the guest is started or defined
// again, so clearCrash starts the guest paused and stops it.
func (g *guest) clearCrash(p compute.PowerState) error {
	if p != compute.Crashed {
		return nil
	}
	if err := g.CreateWithFlags(lv.DOMAIN_START_PAUSED); err != nil {
		return err
	}
	return g.stop()
}

// requestShutdown asks a guest to shut down, and waits until the guest is off, at most for the duration grace. It repeats
// the request every second, because a guest ignores the request while it boots.
func (g *guest) requestShutdown(ctx context.Context, grace time.Duration) error {
	end := time.Now().Add(grace)
	for n := 0; time.Now().Before(end); n++ {
		if n%10 == 0 {
			if err := g.Shutdown(); err != nil && !hasErrorNumber(err, lv.ERR_OPERATION_INVALID) {
				return err
			}
		}
		if err := sleepContext(ctx, min(100*time.Millisecond, time.Until(end))); err != nil {
			return err
		}
		if p, err := g.power(); err != nil || p != compute.Running {
			return err
		}
	}
	return nil
}

// Reboot implements compute.Driver. As in Nova, a soft reboot is a shutdown and a start.
func (d *Driver) Reboot(ctx context.Context, id string, hard bool) error {
	return d.change(ctx, "reboot", id, func(ctx context.Context, _ *lv.Connect, g *guest, p compute.PowerState) error {
		if !hard {
			if p != compute.Running {
				return wrongState("soft reboot", id, p)
			}
			if err := g.requestShutdown(ctx, d.opts.softReboot); err != nil {
				return err
			}
		}
		if err := g.stop(); err != nil {
			return err
		}
		return g.start(ctx)
	})
}

// Resources implements compute.Driver.
func (d *Driver) Resources(ctx context.Context) (r compute.Resources, err error) {
	err = awaitCall(ctx, func() error {
		conn, _, err := d.conn.get()
		if err != nil {
			return err
		}
		node, err := conn.GetNodeInfo()
		if err != nil {
			return err
		}
		var disk syscall.Statfs_t
		if err := syscall.Statfs(d.opts.dir, &disk); err != nil {
			return err
		}
		r = compute.Resources{VCPUs: int(node.Cpus), MemoryMiB: int(node.Memory >> 10), DiskGiB: int(disk.Blocks * uint64(disk.Bsize) >> 30)}
		return nil
	}, func() {})
	return r, withFaultCode("resources of", d.opts.host, err)
}
