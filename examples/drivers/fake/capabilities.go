package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Resize implements compute.Driver.
func (d *Driver) Resize(ctx context.Context, id string, to compute.Resources) error {
	_, err := d.applyTo(ctx, "resize", id, func(s *server) error {
		switch {
		case to.VCPUs < 1 || to.MemoryMiB < 1 || to.DiskGiB < s.Resources.DiskGiB:
			return fault.New(fault.Invalid, "server %s cannot be resized from %+v to %+v: it needs at least one VCPU and 1 MiB of memory, and its disk cannot shrink", id, s.Resources, to)
		case s.Resources == to:
			return nil
		case s.Power != compute.Shutdown:
			return fault.New(fault.Precondition, "resize: server %s is %v", id, s.Power)
		case s.Before != nil:
			return fault.New(fault.Precondition, "resize: server %s has an earlier resize, which must be confirmed or reverted first", id)
		}
		s.Before = new(s.Resources)
		s.Resources = to
		return nil
	})
	return err
}

// ConfirmResize implements compute.Driver.
func (d *Driver) ConfirmResize(ctx context.Context, id string) error {
	return d.applyInState(ctx, "confirm_resize", id, nil, func(s *server) { s.Before = nil })
}

// RevertResize implements compute.Driver.
func (d *Driver) RevertResize(ctx context.Context, id string) error {
	_, err := d.applyTo(ctx, "revert_resize", id, func(s *server) error {
		switch {
		case s.Before == nil:
			return nil
		case s.Power != compute.Shutdown:
			return fault.New(fault.Precondition, "revert resize: server %s is %v", id, s.Power)
		}
		s.Resources, s.Before = *s.Before, nil
		return nil
	})
	return err
}

// Rescue implements compute.Driver.
func (d *Driver) Rescue(ctx context.Context, id, _, adminPass string) error {
	return d.applyInState(ctx, "rescue", id, nil, func(s *server) {
		if !s.Rescued || s.Power != compute.Running {
			s.Rescued, s.RescuePassword = true, adminPass != "" && s.GuestData != ""
			s.boot()
		}
	})
}

// Unrescue implements compute.Driver.
func (d *Driver) Unrescue(ctx context.Context, id string) error {
	return d.applyInState(ctx, "unrescue", id, nil, func(s *server) {
		if s.Rescued || s.Power != compute.Running {
			s.Rescued, s.RescuePassword = false, false
			s.boot()
		}
	})
}

// checkFile returns Precondition if an image is the path of a file that does not exist. The driver does not read the file.
func checkFile(imageRef string) error {
	if !filepath.IsAbs(imageRef) {
		return nil
	}
	if _, err := os.Stat(imageRef); err != nil {
		return fault.New(fault.Precondition, "the image cannot be read: %w", err)
	}
	return nil
}

// Snapshot implements compute.Driver. The image is a file with the server's id as its content. The file is in the directory images, or
// at imageRef if this is an absolute path.
func (d *Driver) Snapshot(ctx context.Context, id, imageRef string) error {
	file := filepath.IsAbs(imageRef)
	if !file && checkID(imageRef) != nil || file && filepath.Ext(imageRef) != ".qcow2" {
		return fault.New(fault.Invalid, "%q is not an image's name", imageRef)
	}
	s, err := d.serverCopy(id)
	if err != nil {
		return err
	}
	return d.withFaults(ctx, "snapshot", id, s.Metadata, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if file {
			return writeOnce(imageRef, id)
		}
		d.images[imageRef] = true
		if d.cfg.Dir == "" {
			return nil
		}
		return os.WriteFile(filepath.Join(d.cfg.Dir, images, imageRef), []byte(id), 0o600)
	})
}

// RemoveImage implements compute.Driver.
func (d *Driver) RemoveImage(ctx context.Context, imageRef string) error {
	if err := checkID(imageRef); err != nil {
		return fault.New(fault.Invalid, "%q is not an image's name", imageRef)
	}
	return d.withFaults(ctx, "remove_image", "", nil, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.images, imageRef)
		if d.cfg.Dir == "" {
			return nil
		}
		err := os.Remove(filepath.Join(d.cfg.Dir, images, imageRef))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}

// SetPassword implements compute.Driver. The simulated guest has no users: its console log shows that a password was set.
func (d *Driver) SetPassword(ctx context.Context, id, _ string) error {
	return d.applyInState(ctx, "set_password", id, powerStates(compute.Running), func(s *server) { s.Passwords++ })
}

// InjectNMI implements compute.Driver. The console of the guest shows the interrupt.
func (d *Driver) InjectNMI(ctx context.Context, id string) error {
	return d.applyInState(ctx, "inject_nmi", id, powerStates(compute.Running), func(s *server) { s.Interrupts++ })
}

// Platforms implements compute.Driver. The type of the hypervisor is fake.
func (d *Driver) Platforms(ctx context.Context) ([]compute.Platform, error) {
	arch := d.cfg.Arch
	if arch == "" {
		arch = "x86_64"
	}
	return []compute.Platform{{Arch: arch, Type: "fake", Mode: "hvm"}}, d.withFaults(ctx, "platforms", "", nil, func() error { return nil })
}

// writeOnce writes a file, unless the file exists. Other processes see the file only when it is complete.
func writeOnce(path, text string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// ConsoleLog implements compute.Driver.
func (d *Driver) ConsoleLog(ctx context.Context, id string, lines int, w io.Writer) error {
	s, err := d.applyTo(ctx, "console_log", id, nil)
	if err != nil {
		return err
	}
	log := []string{
		"[    0.000000] Linux version 0.0.0-fake (fake@" + d.cfg.Host + ")",
		"[    0.000001] boot " + strconv.Itoa(s.Boots) + " of server " + s.ID + " from image " + s.Image,
		fmt.Sprintf("[    0.100000] %d CPUs, %d MiB of memory, %d GiB of disk", s.Resources.VCPUs, s.Resources.MemoryMiB, s.Resources.DiskGiB),
	}
	if s.EphemeralGiB > 0 || s.SwapMiB > 0 {
		log = append(log, fmt.Sprintf("[    0.100001] of this %d GiB of ephemeral disk, %d MiB of swap disk", s.EphemeralGiB, s.SwapMiB))
	}
	if s.GuestData != "" {
		log = append(log, "[    0.200000] config drive: "+s.GuestData)
	}
	if s.RescuePassword {
		log = append(log, "[    0.200001] config drive: the password of the rescue")
	}
	for n := range s.Passwords {
		log = append(log, fmt.Sprintf("[    0.30000%d] the password of the administrator was set", n%10))
	}
	for n := range s.Interrupts {
		log = append(log, fmt.Sprintf("[    0.40000%d] NMI received", n%10))
	}
	log = append(log, s.Name+" login:")
	if lines > 0 && lines < len(log) {
		log = log[len(log)-lines:]
	}
	_, err = io.WriteString(w, strings.Join(log, "\n")+"\n")
	return err
}

// LiveMigrate implements compute.Driver.
func (d *Driver) LiveMigrate(ctx context.Context, id, host string) error {
	if checkID(host) != nil || host == d.cfg.Host || d.cfg.Dir == "" {
		return fault.New(fault.Invalid, "live_migrate: host %s cannot send servers to host %q", d.cfg.Host, host)
	}
	if err := checkID(id); err != nil {
		return err
	}
	there := filepath.Join(filepath.Dir(d.cfg.Dir), host)
	if _, err := os.Stat(filepath.Join(there, incoming)); err != nil {
		return fault.New(fault.NotFound, "host %s: %w", host, err)
	}
	s, err := d.serverCopy(id)
	arrived := slices.ContainsFunc([]string{there, filepath.Join(there, incoming)}, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, id+ext))
		return err == nil
	})
	if fault.CodeOf(err) == fault.NotFound && arrived {
		return nil
	}
	if err != nil {
		return err
	}
	return d.withFaults(ctx, "live_migrate", id, s.Metadata, func() error {
		if s.Power != compute.Running {
			return fault.New(fault.Precondition, "live_migrate: server %s is %v", id, s.Power)
		}
		if !arrived {
			if err := saveServer(filepath.Join(there, incoming), &s); err != nil {
				return err
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.removeServer(id)
	})
}

// AttachVolume implements compute.Driver.
func (d *Driver) AttachVolume(ctx context.Context, id string, v compute.Volume) error {
	if v.ID == "" {
		return fault.New(fault.Invalid, "attach_volume: the volume has no id")
	}
	return d.applyInState(ctx, "attach_volume", id, nil, func(s *server) { s.Volumes = withID(s.Volumes, v.ID) })
}

// DetachVolume implements compute.Driver.
func (d *Driver) DetachVolume(ctx context.Context, id, volumeID string) error {
	return d.applyInState(ctx, "detach_volume", id, nil, func(s *server) { s.Volumes = withoutID(s.Volumes, volumeID) })
}

// AttachInterface implements compute.Driver.
func (d *Driver) AttachInterface(ctx context.Context, id string, i compute.Interface) error {
	if i.ID == "" {
		return fault.New(fault.Invalid, "attach_interface: the interface has no id")
	}
	return d.applyInState(ctx, "attach_interface", id, nil, func(s *server) { s.Interfaces = withID(s.Interfaces, i.ID) })
}

// DetachInterface implements compute.Driver.
func (d *Driver) DetachInterface(ctx context.Context, id, interfaceID string) error {
	return d.applyInState(ctx, "detach_interface", id, nil, func(s *server) { s.Interfaces = withoutID(s.Interfaces, interfaceID) })
}

// withID and withoutID return new lists, because other goroutines read the old list.
func withID(list []string, id string) []string { return append(withoutID(list, id), id) }

func withoutID(list []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(x string) bool { return x == id })
}

// Metrics implements compute.Driver. Every guest uses a tenth of its CPU time.
func (d *Driver) Metrics(ctx context.Context, id string) (compute.Metrics, error) {
	s, err := d.applyTo(ctx, "metrics", id, nil)
	if err != nil {
		return compute.Metrics{}, err
	}
	if s.Power != compute.Running {
		return compute.Metrics{}, fault.New(fault.Precondition, "metrics: server %s is %v", id, s.Power)
	}
	up := time.Since(s.Started)
	return compute.Metrics{
		CPUTime: up / 10 * time.Duration(s.Resources.VCPUs), MemoryMiB: s.Resources.MemoryMiB,
		DiskReadBytes: up.Milliseconds() << 10, DiskWriteBytes: up.Milliseconds() << 9,
		NetReceivedBytes: up.Milliseconds() << 8, NetSentBytes: up.Milliseconds() << 7,
	}, nil
}

// Diagnostics implements compute.Driver.
func (d *Driver) Diagnostics(ctx context.Context, id string) (map[string]string, error) {
	s, err := d.applyTo(ctx, "diagnostics", id, nil)
	if err != nil {
		return nil, err
	}
	return map[string]string{"host": d.cfg.Host, "state": s.Power.String(), "boots": strconv.Itoa(s.Boots), "image": s.Image}, nil
}

// backlog is the maximum number of unread events of a listener.
const backlog = 1024

// Events implements compute.Driver.
func (d *Driver) Events(ctx context.Context, f func(compute.Event) error) error {
	if err := d.withFaults(ctx, "events", "", nil, func() error { return nil }); err != nil {
		return err
	}
	w := make(chan compute.Event, backlog)
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return fault.New(fault.Unavailable, "the driver is closed")
	}
	d.watchers[w] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, w)
	}()
	var storm <-chan time.Time
	if d.cfg.EventStorm > 0 {
		t := time.NewTicker(time.Second / time.Duration(d.cfg.EventStorm))
		defer t.Stop()
		storm = t.C
	}
	e := compute.Event{Type: compute.EventBegan, Time: time.Now().UTC()}
	for {
		if err := f(e); err != nil {
			return err
		}
		var open bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, open = <-w:
			if !open {
				return fault.New(fault.Unavailable, "events were lost, because the listener is too slow or the driver is closed: call Events and List again")
			}
		case <-storm:
			e = d.anyEvent()
		}
	}
}

// anyEvent returns an event with the current state of any server.
func (d *Driver) anyEvent() compute.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, s := range d.servers {
		return compute.Event{ServerID: id, Type: eventOf[s.Power], Time: time.Now().UTC()}
	}
	return compute.Event{ServerID: "00000000-0000-0000-0000-000000000000", Type: compute.EventDestroyed, Time: time.Now().UTC()}
}

// sendEvent sends an event to all listeners. If a listener has too many unread events, sendEvent ends its stream of events; the listener must then
// call Events and List again.
func (d *Driver) sendEvent(id string, t compute.EventType) {
	e := compute.Event{ServerID: id, Type: t, Time: time.Now().UTC()}
	for w := range d.watchers {
		select {
		case w <- e:
		default:
			close(w)
			delete(d.watchers, w)
		}
	}
}
