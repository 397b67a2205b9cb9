//go:build libvirt_dlopen

package libvirt

import (
	"context"
	"slices"

	lv "libvirt.org/go/libvirt"

	"github.com/armature-go/armature/examples/nova-mini/compute"
)

// transition is a change of a guest's power state. The field from has the allowed old states, and the field to is the new state. If the guest
// already has the new state, nothing changes. In every other state, the error is Precondition.
type transition struct {
	name string
	from []compute.PowerState
	to   compute.PowerState
	do   func(*guest, context.Context) error
}

var (
	powerOn = transition{"power on", []compute.PowerState{compute.Shutdown, compute.Crashed}, compute.Running, (*guest).start}
	pause   = transition{"pause", []compute.PowerState{compute.Running}, compute.Paused, (*guest).pause}
	unpause = transition{"unpause", []compute.PowerState{compute.Paused}, compute.Running, (*guest).unpause}
	suspend = transition{"suspend", []compute.PowerState{compute.Running}, compute.Suspended, (*guest).suspend}
	resume  = transition{"resume", []compute.PowerState{compute.Suspended}, compute.Running, (*guest).start}
)

// libvirt has other names for these actions: Suspend is a pause, and ManagedSave is a suspend.
func (g *guest) pause(context.Context) error   { return g.Suspend() }
func (g *guest) unpause(context.Context) error { return g.Resume() }
func (g *guest) suspend(context.Context) error { return g.ManagedSave(0) }

// changePower makes a transition of a server.
func (d *Driver) changePower(ctx context.Context, id string, t transition) error {
	return d.change(ctx, t.name, id, func(ctx context.Context, _ *lv.Connect, g *guest, p compute.PowerState) error {
		switch {
		case p == t.to:
			return nil
		case slices.Contains(t.from, p):
			return t.do(g, ctx)
		default:
			return wrongState(t.name, id, p)
		}
	})
}

// PowerOn implements compute.Driver.
func (d *Driver) PowerOn(ctx context.Context, id string) error {
	return d.changePower(ctx, id, powerOn)
}

// Pause implements compute.Driver.
func (d *Driver) Pause(ctx context.Context, id string) error { return d.changePower(ctx, id, pause) }

// Unpause implements compute.Driver.
func (d *Driver) Unpause(ctx context.Context, id string) error {
	return d.changePower(ctx, id, unpause)
}

// Suspend implements compute.Driver.
func (d *Driver) Suspend(ctx context.Context, id string) error {
	if !d.qemu() {
		return d.Unsupported.Suspend(ctx, id)
	}
	return d.changePower(ctx, id, suspend)
}

// Resume implements compute.Driver.
func (d *Driver) Resume(ctx context.Context, id string) error {
	if !d.qemu() {
		return d.Unsupported.Resume(ctx, id)
	}
	return d.changePower(ctx, id, resume)
}
