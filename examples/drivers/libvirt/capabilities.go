//go:build libvirt_dlopen

package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	lv "libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

func (d *Driver) qemu() bool { return d.opts.virtType != "test" }

// Resize implements compute.Driver. The disk is enlarged first. If the call is interrupted and repeated, the repeated call finds the
// larger disk.
func (d *Driver) Resize(ctx context.Context, id string, to compute.Resources) error {
	return d.change(ctx, "resize", id, func(ctx context.Context, conn *lv.Connect, g *guest, p compute.PowerState) error {
		has := g.def.meta.resources()
		switch {
		case to.VCPUs < 1 || to.MemoryMiB < 1 || to.DiskGiB < has.DiskGiB:
			return fault.New(fault.Invalid, "server %s cannot be resized from %+v to %+v: it needs at least one VCPU and 1 MiB of memory, and its disk cannot shrink", id, has, to)
		case to == has:
			return nil
		case p != compute.Shutdown:
			return wrongState("resize", id, p)
		case g.def.meta.OldSize != nil:
			return fault.New(fault.Precondition, "resize: server %s has an earlier resize, which must be confirmed or reverted first", id)
		}
		before := &oldSize{VCPUs: has.VCPUs, MemoryMiB: has.MemoryMiB, DiskGiB: has.DiskGiB}
		if to.DiskGiB > has.DiskGiB {
			var err error
			if before.File, err = d.opts.growDisk(ctx, id, to.DiskGiB-compute.ExtraGiB(g.def.meta.EphemeralGiB, g.def.meta.SwapMiB)); err != nil {
				return err
			}
		}
		g.def.meta.OldSize = before
		g.def.setResources(to)
		return g.saveDefinition(conn)
	})
}

// ConfirmResize implements compute.Driver. The file of the old disk stays, because it is the backing file of the new disk.
func (d *Driver) ConfirmResize(ctx context.Context, id string) error {
	return d.change(ctx, "confirm resize", id, func(_ context.Context, conn *lv.Connect, g *guest, _ compute.PowerState) error {
		if g.def.meta.OldSize == nil {
			return nil
		}
		g.def.meta.OldSize = nil
		return g.saveDefinition(conn)
	})
}

// RevertResize implements compute.Driver.
func (d *Driver) RevertResize(ctx context.Context, id string) error {
	return d.change(ctx, "revert resize", id, func(_ context.Context, conn *lv.Connect, g *guest, p compute.PowerState) error {
		before := g.def.meta.OldSize
		switch {
		case before == nil:
			return nil
		case p != compute.Shutdown:
			return wrongState("revert resize", id, p)
		}
		if before.File != "" {
			err := os.Rename(d.opts.file(id, before.File), d.opts.file(id, diskFile))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // ErrNotExist: an interrupted call has renamed the file
				return err
			}
		}
		g.def.meta.OldSize = nil
		g.def.setResources(compute.Resources{VCPUs: before.VCPUs, MemoryMiB: before.MemoryMiB, DiskGiB: before.DiskGiB})
		return g.saveDefinition(conn)
	})
}

// Rescue implements compute.Driver.
func (d *Driver) Rescue(ctx context.Context, id, imageRef, adminPass string) error {
	return d.change(ctx, "rescue", id, func(ctx context.Context, conn *lv.Connect, g *guest, p compute.PowerState) error {
		if g.def.meta.Rescued && p == compute.Running {
			return nil
		}
		if imageRef == "" {
			imageRef = g.def.meta.Image
		}
		if err := d.opts.overlay(ctx, d.opts.file(id, rescueFile), imageRef, 0); err != nil {
			return err
		}
		if err := g.stop(); err != nil {
			return err
		}
		if err := d.opts.setRescuePassword(&g.def.meta, adminPass); err != nil {
			return err
		}
		g.def.setBootDisks(&d.opts, true)
		if err := g.saveDefinition(conn); err != nil {
			return err
		}
		return g.start(ctx)
	})
}

// Unrescue implements compute.Driver.
func (d *Driver) Unrescue(ctx context.Context, id string) error {
	return d.change(ctx, "unrescue", id, func(ctx context.Context, conn *lv.Connect, g *guest, p compute.PowerState) error {
		if !g.def.meta.Rescued && p == compute.Running {
			return d.opts.removeRescue(id) // an interrupted call may have left the files
		}
		if err := g.stop(); err != nil {
			return err
		}
		if g.def.meta.Rescued {
			g.def.setBootDisks(&d.opts, false)
			if err := g.saveDefinition(conn); err != nil {
				return err
			}
		}
		if err := d.opts.removeRescue(id); err != nil {
			return err
		}
		return g.start(ctx)
	})
}

// removeRescue removes the files of a rescue. Otherwise the next rescue would use them.
func (o *options) removeRescue(id string) error {
	return errors.Join(removeFile(o.file(id, rescueFile)), removeFile(o.file(id, rescueConfigFile)))
}

// Snapshot implements compute.Driver. The disk of a running guest is mirrored until the copy is complete. The copy has the
// content that the disk has when the mirror ends.
func (d *Driver) Snapshot(ctx context.Context, id, imageRef string) error {
	if !d.qemu() {
		return d.Unsupported.Snapshot(ctx, id, imageRef)
	}
	final, err := d.opts.snapshotFile(imageRef)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(final), ".new-"+filepath.Base(final))
	return d.change(ctx, "snapshot", id, func(ctx context.Context, _ *lv.Connect, g *guest, _ compute.PowerState) error {
		if _, err := os.Stat(final); err == nil {
			return nil
		}
		if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := g.copyDisk(ctx, d.opts.file(id, diskFile), tmp); err != nil {
			_ = os.Remove(tmp) // an incomplete copy
			return err
		}
		return os.Rename(tmp, final)
	})
}

// RemoveImage implements compute.Driver. Disks do not need the image, because their backing files are in the cache.
func (d *Driver) RemoveImage(ctx context.Context, imageRef string) error {
	if !d.qemu() {
		return d.Unsupported.RemoveImage(ctx, imageRef)
	}
	if filepath.IsAbs(imageRef) {
		return fault.New(fault.Invalid, "%q is not an image's name", imageRef)
	}
	file, err := d.opts.snapshotFile(imageRef)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// copyDisk copies the disk of a guest. The parameter to is the path of the copy, at which no file exists.
func (g *guest) copyDisk(ctx context.Context, disk, to string) error {
	active, err := g.IsActive()
	if err != nil {
		return err
	}
	if active {
		_ = g.BlockJobAbort("vda", 0) // the job of an interrupted call; an error means that no job runs
		return g.mirror(ctx, to)
	}
	_, err = qemuImg(ctx, "convert", "-q", "-f", "qcow2", "-O", "qcow2", disk, to)
	return err
}

// mirror copies the disk of a running guest to a path.
func (g *guest) mirror(ctx context.Context, path string) error {
	to := libvirtxml.DomainDisk{
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}},
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2"},
	}
	doc, err := to.Marshal()
	if err != nil {
		return err
	}
	if err := g.BlockCopy("vda", doc, &lv.DomainBlockCopyParameters{}, lv.DOMAIN_BLOCK_COPY_TRANSIENT_JOB); err != nil {
		return err
	}
	for {
		job, err := g.GetBlockJobInfo("vda", 0)
		if err != nil {
			return errors.Join(err, g.BlockJobAbort("vda", 0))
		}
		if job.End > 0 && job.Cur == job.End {
			return g.BlockJobAbort("vda", 0) // 0: end the mirror without a pivot to the copy
		}
		if err := sleepContext(ctx, 20*time.Millisecond); err != nil {
			return errors.Join(err, g.BlockJobAbort("vda", 0))
		}
	}
}

// ConsoleLog implements compute.Driver.
func (d *Driver) ConsoleLog(ctx context.Context, id string, lines int, w io.Writer) error {
	if !d.qemu() {
		return d.Unsupported.ConsoleLog(ctx, id, lines, w)
	}
	if err := d.withGuest(ctx, "console log", id, func(*lv.Connect, *guest) error { return nil }); err != nil {
		return err
	}
	f, err := os.Open(d.opts.file(id, consoleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the guest was never started
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()   // opened only to read
	size, err := f.Seek(0, io.SeekEnd) // later output of the guest is not read
	if err != nil {
		return err
	}
	from := int64(0)
	if lines > 0 {
		if from, err = findLines(f, size, lines); err != nil {
			return err
		}
	}
	_, err = io.Copy(w, io.NewSectionReader(f, from, size-from))
	return err
}

// findLines returns the offset at which the last lines of a file begin. The parameter size is the size of the file, and lines the number of lines.
// A last line without a line end counts as a line.
func findLines(f io.ReaderAt, size int64, lines int) (int64, error) { //nolint:gocognit // see CONTRIBUTING.md
	pos := size
	buf := make([]byte, 64<<10)
	last := true // the last byte has not been read yet
	for pos > 0 {
		n := min(int64(len(buf)), pos)
		pos -= n
		if _, err := f.ReadAt(buf[:n], pos); err != nil {
			return 0, err
		}
		for end := n; end > 0; {
			i := int64(bytes.LastIndexByte(buf[:end], '\n'))
			if i < 0 {
				break
			}
			if !last || i != n-1 { // a line end at the very end belongs to the last line
				if lines--; lines == 0 {
					return pos + i + 1, nil
				}
			}
			end = i
		}
		last = false
	}
	return 0, nil
}

// Console implements compute.Driver.
func (d *Driver) Console(ctx context.Context, id string, t compute.ConsoleType) (c compute.Console, err error) {
	if !d.qemu() || t != compute.VNC || d.opts.vnc == "none" {
		return d.Unsupported.Console(ctx, id, t)
	}
	err = d.withGuest(ctx, "console", id, func(_ *lv.Connect, g *guest) error {
		if err := g.mustRun("console", id); err != nil {
			return err
		}
		running, err := g.running()
		if err != nil {
			return err
		}
		for _, gr := range running.Devices.Graphics {
			if gr.VNC != nil {
				c = compute.Console{Host: gr.VNC.Listen, Port: gr.VNC.Port}
			}
		}
		return nil
	})
	return c, err
}

// InjectNMI implements compute.Driver.
func (d *Driver) InjectNMI(ctx context.Context, id string) error {
	if !d.qemu() {
		return d.Unsupported.InjectNMI(ctx, id)
	}
	return d.withGuest(ctx, "inject nmi", id, func(_ *lv.Connect, g *guest) error {
		if err := g.mustRun("inject nmi", id); err != nil {
			return err
		}
		return g.InjectNMI(0)
	})
}

// Platforms implements compute.Driver. All guests have the architecture of newDefinition.
func (d *Driver) Platforms(context.Context) ([]compute.Platform, error) {
	return []compute.Platform{{Arch: guestArch, Type: d.opts.virtType, Mode: guestMode}}, nil
}

// mustRun returns Precondition if the guest does not run.
func (g *guest) mustRun(what, id string) error {
	p, err := g.power()
	if err == nil && p != compute.Running {
		err = wrongState(what, id, p)
	}
	return err
}

// modifyFlags returns the flags for a change of a guest's devices: the change affects the definition, and also the guest itself if it runs.
func modifyFlags(p compute.PowerState) lv.DomainDeviceModifyFlags {
	if p == compute.Running || p == compute.Paused {
		return lv.DOMAIN_DEVICE_MODIFY_CONFIG | lv.DOMAIN_DEVICE_MODIFY_LIVE
	}
	return lv.DOMAIN_DEVICE_MODIFY_CONFIG
}

var attachID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// AttachVolume implements compute.Driver.
func (d *Driver) AttachVolume(ctx context.Context, id string, v compute.Volume) error {
	if !d.qemu() {
		return d.Unsupported.AttachVolume(ctx, id, v)
	}
	if !attachID.MatchString(v.ID) || !filepath.IsAbs(v.Path) {
		return fault.New(fault.Invalid, "%+v is not a volume", v)
	}
	return d.attach(ctx, id, v.ID, (*definition).volumes, func(def *definition) (string, error) {
		if _, err := os.Stat(v.Path); err != nil {
			return "", fault.New(fault.Precondition, "volume %s: %w", v.ID, err)
		}
		return def.volumeDisk(v)
	})
}

// AttachInterface implements compute.Driver.
func (d *Driver) AttachInterface(ctx context.Context, id string, i compute.Interface) error {
	if !d.qemu() {
		return d.Unsupported.AttachInterface(ctx, id, i)
	}
	if !attachID.MatchString(i.ID) || i.Network == "" {
		return fault.New(fault.Invalid, "%+v is not an interface", i)
	}
	return d.attach(ctx, id, i.ID, (*definition).interfaces, func(*definition) (string, error) { return networkCard(i) })
}

func (d *Driver) attach(ctx context.Context, id, device string, has func(*definition) []string, doc func(*definition) (string, error)) error {
	return d.change(ctx, "attach "+device+" to", id, func(_ context.Context, _ *lv.Connect, g *guest, p compute.PowerState) error {
		if slices.Contains(has(g.def), device) {
			return nil
		}
		doc, err := doc(g.def)
		if err != nil {
			return err
		}
		return g.AttachDeviceFlags(doc, modifyFlags(p))
	})
}

// DetachVolume implements compute.Driver.
func (d *Driver) DetachVolume(ctx context.Context, id, volumeID string) error {
	if !d.qemu() {
		return d.Unsupported.DetachVolume(ctx, id, volumeID)
	}
	return d.detach(ctx, id, volumeID, volumeAlias+volumeID, (*definition).volumes)
}

// DetachInterface implements compute.Driver.
func (d *Driver) DetachInterface(ctx context.Context, id, interfaceID string) error {
	if !d.qemu() {
		return d.Unsupported.DetachInterface(ctx, id, interfaceID)
	}
	return d.detach(ctx, id, interfaceID, interfaceAlias+interfaceID, (*definition).interfaces)
}

// detach removes a device, first from the running guest, then from the definition. So a repeated call still finds the device in
// the definition. The guest has to release the device. While a guest boots, it ignores the request, so unplug repeats the request.
func (d *Driver) detach(ctx context.Context, id, device, alias string, has func(*definition) []string) error {
	return d.change(ctx, "detach "+device+" from", id, func(ctx context.Context, _ *lv.Connect, g *guest, p compute.PowerState) error {
		if modifyFlags(p)&lv.DOMAIN_DEVICE_MODIFY_LIVE != 0 {
			if err := g.unplug(ctx, device, alias, has); err != nil {
				return err
			}
		}
		if !slices.Contains(has(g.def), device) {
			return nil
		}
		return g.DetachDeviceAlias(alias, lv.DOMAIN_DEVICE_MODIFY_CONFIG)
	})
}

// running returns the definition of the guest as it runs now.
func (g *guest) running() (*definition, error) {
	doc, err := g.GetXMLDesc(0)
	if err != nil {
		return nil, err
	}
	return parseDefinition(doc)
}

func (g *guest) unplug(ctx context.Context, device, alias string, has func(*definition) []string) error {
	end := time.Now().Add(g.d.opts.detach)
	for n := 0; ; n++ {
		running, err := g.running()
		if err != nil {
			return err
		}
		if !slices.Contains(has(running), device) {
			return nil
		}
		if time.Now().After(end) {
			return fault.New(fault.Timeout, "the guest did not release %s within %v", device, g.d.opts.detach)
		}
		if n%20 == 0 { // the request is repeated every 2 s
			err := g.DetachDeviceAlias(alias, lv.DOMAIN_DEVICE_MODIFY_LIVE)
			if err != nil && !hasErrorNumber(err, lv.ERR_OPERATION_FAILED) && !hasErrorNumber(err, lv.ERR_DEVICE_MISSING) && !hasErrorNumber(err, lv.ERR_INTERNAL_ERROR) { // after these errors the removal is still running, or is done
				return err
			}
		}
		if err := sleepContext(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// Metrics implements compute.Driver.
func (d *Driver) Metrics(ctx context.Context, id string) (m compute.Metrics, err error) {
	if !d.qemu() {
		return d.Unsupported.Metrics(ctx, id)
	}
	err = d.withGuest(ctx, "metrics", id, func(conn *lv.Connect, g *guest) error {
		if err := g.mustRun("metrics", id); err != nil {
			return err
		}
		all, err := conn.GetAllDomainStats([]*lv.Domain{g.Domain}, lv.DOMAIN_STATS_CPU_TOTAL|lv.DOMAIN_STATS_BALLOON|lv.DOMAIN_STATS_INTERFACE|lv.DOMAIN_STATS_BLOCK, 0)
		if err != nil {
			return err
		}
		if len(all) != 1 {
			return wrongState("metrics", id, compute.NoState)
		}
		s := &all[0]
		defer func() { _ = s.Domain.Free() }()
		if s.Cpu != nil { // an unknown value stays 0
			m.CPUTime = time.Duration(s.Cpu.Time)
		}
		if s.Balloon != nil {
			m.MemoryMiB = int(s.Balloon.Rss >> 10)
		}
		for _, b := range s.Block {
			m.DiskReadBytes += int64(b.RdBytes)
			m.DiskWriteBytes += int64(b.WrBytes)
		}
		for _, n := range s.Net {
			m.NetReceivedBytes += int64(n.RxBytes)
			m.NetSentBytes += int64(n.TxBytes)
		}
		return nil
	})
	return m, err
}

// Diagnostics implements compute.Driver.
func (d *Driver) Diagnostics(ctx context.Context, id string) (out map[string]string, err error) {
	err = d.withGuest(ctx, "diagnostics", id, func(conn *lv.Connect, g *guest) error {
		p, err := g.power()
		if err != nil {
			return err
		}
		state, reason, err := g.GetState()
		if err != nil {
			return err
		}
		version, err := conn.GetLibVersion()
		if err != nil {
			return err
		}
		out = map[string]string{
			"state": p.String(), "libvirt_state": fmt.Sprintf("%d, reason %d", state, reason), "domain": g.def.Name, "virt_type": g.def.Type,
			"libvirt_version": fmt.Sprintf("%d.%d.%d", version/1_000_000, version/1000%1000, version%1000), "image": g.def.meta.Image,
		}
		if disk, err := readDiskInfo(ctx, d.opts.file(id, diskFile), "qcow2"); err == nil {
			out["disk_bytes"] = strconv.FormatInt(disk.Size, 10)
		}
		return nil
	})
	return out, err
}

// backlog is the maximum number of unread events of a listener.
const backlog = 1024

// Events implements compute.Driver. It returns Unavailable when the connection to libvirtd is lost.
func (d *Driver) Events(ctx context.Context, f func(compute.Event) error) error {
	_, lost, err := d.conn.get()
	if err != nil {
		return err
	}
	l := d.conn.addListener()
	defer d.conn.removeListener(l)
	e := compute.Event{Type: compute.EventBegan, Time: time.Now().UTC()}
	for {
		if err := f(e); err != nil {
			return err
		}
		select {
		case e = <-l.got:
		case <-l.late:
			return fault.New(fault.Unavailable, "events were lost, because the listener is too slow: call Events and List again")
		case <-lost:
			return fault.New(fault.Unavailable, "the connection to libvirtd was lost")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func eventType(e *lv.DomainEventLifecycle) compute.EventType {
	switch e.Event {
	case lv.DOMAIN_EVENT_STARTED, lv.DOMAIN_EVENT_RESUMED:
		return compute.EventStarted
	case lv.DOMAIN_EVENT_SUSPENDED:
		return compute.EventPaused
	case lv.DOMAIN_EVENT_STOPPED:
		switch lv.DomainEventStoppedDetailType(e.Detail) {
		case lv.DOMAIN_EVENT_STOPPED_SAVED:
			return compute.EventSuspended
		case lv.DOMAIN_EVENT_STOPPED_CRASHED, lv.DOMAIN_EVENT_STOPPED_FAILED:
			return compute.EventCrashed
		default:
			return compute.EventStopped
		}
	case lv.DOMAIN_EVENT_CRASHED:
		return compute.EventCrashed
	case lv.DOMAIN_EVENT_UNDEFINED:
		return compute.EventDestroyed
	default:
		return ""
	}
}
