package conductor_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/membership"
)

// tick lets time pass, because in a bubble two changes of a server would otherwise have the same time.
func (b *bench) tick() {
	b.Helper()
	waittest.Pass(b, 2*time.Millisecond, "the clock of the database goes on")
}

// reportPower reports the power state of a guest on h1, as the driver has it. The parameter version is that of an earlier reply, or "" for a question.
func (b *bench) reportPower(id string, is compute.PowerState, version string) *compute.PowerReply {
	b.Helper()
	got, err := b.svc.ReportPower(b.Context(), &compute.PowerReport{Host: "h1", Guests: []compute.GuestPower{{ServerID: id, Power: is, Version: version}}})
	if err != nil {
		b.Fatal(err)
	}
	return got
}

// ask asks whether a guest differs, and returns the version of its server, or "" if it does not differ.
func (b *bench) ask(id string, is compute.PowerState) string {
	b.Helper()
	got := b.reportPower(id, is, "")
	switch {
	case len(got.Later) > 0:
		b.Fatalf("later: %v", got.Later)
	case len(got.Differ) == 0:
		return ""
	}
	return got.Differ[0].Version
}

// becomes reports that a guest has got another power state, as a compute service does.
func (b *bench) becomes(id string, is compute.PowerState) {
	b.Helper()
	if v := b.ask(id, is); v == "" {
		b.Errorf("the power state %v does not differ from that of %+v", is, b.server(id))
	} else if got := b.reportPower(id, is, v); len(got.Later)+len(got.Differ) > 0 {
		b.Errorf("the report of the power state %v: %+v", is, got)
	}
}

// stopOf returns the request of the stop of a server, and reports its success.
func (b *bench) stopOf(id string) {
	b.Helper()
	r := b.awaitAct(id)
	if r.Action != compute.Stop || b.server(id).Task() != "powering-off" {
		b.Errorf("the request is %+v, the task %q", r, b.server(id).Task())
	}
	if err := b.report("h1", r.Token, ""); err != nil {
		b.Fatal(err)
	}
}

// TestPowerRules: the power state of a guest is stored, and only in the states of Nova's rules the server is stopped.
func TestPowerRules(t *testing.T) {
	t.Parallel()
	powers := []compute.PowerState{compute.NoState, compute.Running, compute.Paused, compute.Shutdown, compute.Crashed, compute.Suspended}
	stops := map[string][]compute.PowerState{
		store.Active:     {compute.Shutdown, compute.Crashed, compute.Suspended},
		store.Stopped:    {compute.Running, compute.Paused, compute.Suspended},
		compute.VMPaused: {compute.Shutdown, compute.Crashed},
	}
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		n := 0
		for _, state := range []string{
			store.Building, store.Active, compute.VMPaused, compute.VMSuspended, store.Stopped, compute.VMRescued, store.Resized, compute.VMShelved, compute.VMSoftDeleted, store.Error,
		} {
			for _, is := range powers {
				b.tick()
				before := powers[(slices.Index(powers, is)+1)%len(powers)]
				b.exec(`UPDATE servers SET vm_state = ?, power_state = ? WHERE id = ?`, state, before, id)
				b.becomes(id, is)
				if got := b.server(id).PowerState(); got != is {
					b.Errorf("%s: the stored power state is %v, want %v", state, got, is)
				}
				if !slices.Contains(stops[state], is) {
					if task := b.server(id).Task(); task != "" {
						b.Errorf("%s with a guest in %v has the task %q", state, is, task)
					}
					if v := b.ask(id, is); v != "" {
						b.Errorf("%s with a guest in %v: a second report differs", state, is)
					}
					continue
				}
				n++
				b.stopOf(id)
				if srv := b.server(id); srv.VMState != store.Stopped || srv.PowerState() != compute.Shutdown || srv.Task() != "" || srv.FaultMessage != "" {
					b.Errorf("%s with a guest in %v: after the stop %+v", state, is, srv)
				}
			}
		}
		past, err := b.store.PastActions(b.Context(), id, store.PastQuery{Limit: 100})
		if err != nil || len(past) != n || n != 8 {
			b.Fatalf("clients see %d actions, want the %d stops: %v", len(past), n, err)
		}
		for _, p := range past {
			if one, err := b.store.PastAction(b.Context(), id, p.RequestID); err != nil || one.Name != "stop" || one.UserID != "" || len(one.Events) != 1 || one.Events[0].Error != "" {
				b.Errorf("a stop: %+v, %v", one, err)
			}
		}
	})
}

// TestLatePower: a report has no effect if anything has happened to the server since the compute service has asked the driver.
func TestLatePower(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		unchanged := func(what, id, version string, late bool) {
			b.Helper()
			before := b.server(id)
			got := b.reportPower(id, compute.Crashed, version)
			if (len(got.Later) > 0) != late || len(got.Differ) > 0 {
				b.Errorf("%s: %+v", what, got)
			}
			if after := b.server(id); after.PowerState() != before.PowerState() || after.Task() != before.Task() || after.VMState != before.VMState {
				b.Errorf("%s: the server was %+v and is %+v", what, before, after)
			}
		}
		for _, a := range []compute.Action{compute.Stop, compute.HardReboot, compute.Rescue, compute.Rebuild, compute.Resize, compute.CreateImage} {
			id, data := b.build(), store.ActData{}
			switch a {
			case compute.Resize:
				data.Resize = store.SizeOf(&store.Flavor{ID: "2", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1})
			case compute.Rebuild:
				data.Rebuild = func(*store.Server) {}
			default:
			}
			b.tick()
			asked := b.ask(id, compute.Crashed)
			b.tick()
			r := b.act(id, a, data)
			unchanged(string(a)+" runs", id, asked, true)
			if got := b.reportPower(id, compute.Crashed, ""); !slices.Equal(got.Later, []string{id}) || len(got.Differ) > 0 {
				b.Errorf("%s runs: a question has the answer %+v", a, got)
			}
			b.tick()
			if err := b.report("h1", r.Token, ""); err != nil {
				b.Fatal(err)
			}
			unchanged(string(a)+" has ended", id, asked, true)
			b.tick()
			asked = b.ask(id, compute.Crashed)
			b.tick()
			b.exec(`UPDATE servers SET host = 'h2' WHERE id = ?`, id)
			unchanged("the server has moved", id, asked, false)
			b.exec(`UPDATE servers SET host = 'h1' WHERE id = ?`, id)
			b.tick()
			if err := b.store.BeginDelete(b.Context(), id); err != nil {
				b.Fatal(err)
			}
			unchanged("the server is being deleted", id, asked, true)
			b.notify(id)
			b.awaitDestroy(id)
			if got := b.reportPower(id, compute.Crashed, asked); len(got.Later)+len(got.Differ) > 0 {
				b.Errorf("a deleted server: %+v", got)
			}
		}
	})
}

// TestRepeatedPower: a report that comes twice, or to two conductors, stops the server once.
func TestRepeatedPower(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		b.tick()
		asked := b.ask(id, compute.Crashed)
		ended := make(chan error, 4)
		other := conductor.New(b.cfg)
		for i := range 4 {
			svc := []*conductor.Service{b.svc, other}[i%2]
			go func() {
				_, err := svc.ReportPower(b.Context(), &compute.PowerReport{Host: "h1", Guests: []compute.GuestPower{{ServerID: id, Power: compute.Crashed, Version: asked}}})
				ended <- err
			}()
		}
		for range 4 {
			if err := get(b, ended); err != nil {
				b.Error(err)
			}
		}
		b.stopOf(id)
		b.awaitPolls()
		if past, err := b.store.PastActions(b.Context(), id, store.PastQuery{Limit: 10}); err != nil || len(past) != 1 {
			b.Errorf("%d stops, %v", len(past), err)
		}
	})
}

// TestPowerOfAll: a report of all guests finds guests that the host has lost, and those of servers whose host does not have them at present are left alone. A report of some guests says nothing
// about the others.
func TestPowerOfAll(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		lost, present := b.build(), b.build()
		b.tick()
		report := func(all bool) *compute.PowerReply {
			b.Helper()
			got, err := b.svc.ReportPower(b.Context(), &compute.PowerReport{Host: "h1", All: all, Guests: []compute.GuestPower{
				{ServerID: present, Power: compute.Running}, {ServerID: "unknown", Power: compute.Running},
			}})
			if err != nil {
				b.Fatal(err)
			}
			return got
		}
		if got := report(false); len(got.Differ)+len(got.Later) > 0 {
			b.Errorf("a report of one guest: %+v", got)
		}
		got := report(true)
		if len(got.Differ) != 1 || got.Differ[0].ServerID != lost || len(got.Later) > 0 {
			b.Fatalf("a report of all guests: %+v, want only %s", got, lost)
		}
		b.reportPower(lost, compute.NoState, got.Differ[0].Version)
		if srv := b.server(lost); srv.PowerState() != compute.NoState || srv.VMState != store.Active || srv.Task() != "" {
			b.Errorf("a lost guest: %+v", srv)
		}
		b.act(lost, compute.HardReboot, store.ActData{})
		if got := report(true); len(got.Differ)+len(got.Later) > 0 {
			b.Errorf("a report of all guests during a task: %+v", got)
		}
	})
}

// TestPowerOfActions: the power state after each action is the one that compute.ActRequest.PowerAfter says to the compute service. A failed action, and os-resetState, leave the stored power state.
func TestPowerOfActions(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{ShelvedOffload: -1}, func(b *bench) {
		b.start()
		id := b.build()
		power := func(after string, want compute.PowerState) {
			b.Helper()
			if got := b.server(id).PowerState(); got != want {
				b.Errorf("after %s the power state is %v, want %v", after, got, want)
			}
		}
		power("the build", compute.Running)
		small, large := store.SizeOf(&store.Flavor{ID: "1", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}), store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})
		is, seen := compute.Running, map[compute.Action]bool{}
		for _, a := range []compute.Action{
			compute.Pause, compute.Unpause, compute.Suspend, compute.Resume, compute.Rescue, compute.Unrescue, compute.SoftReboot, compute.HardReboot, compute.ChangePassword, compute.CrashDump,
			compute.CreateImage, compute.Resize, compute.RevertResize, compute.Resize, compute.ConfirmResize, compute.Rebuild, compute.Shelve, compute.Unshelve, compute.SoftDelete, compute.Restore, compute.Stop,
			compute.Rebuild, compute.Resize, compute.RevertResize, compute.Resize, compute.ConfirmResize, compute.Start, compute.Shelve, compute.ShelveOffload,
		} {
			data := store.ActData{ImageRef: "i"}
			switch a {
			case compute.Resize:
				if data.Resize = large; b.server(id).FlavorID == "2" {
					data.Resize = small
				}
				data.Resize.Has.DiskGiB = b.server(id).DiskGiB
			case compute.Rebuild:
				data.Rebuild = func(*store.Server) {}
			case compute.ChangePassword:
				data.AdminPass = new("secret")
			default:
			}
			if info := a.Info(); info.To != "" && a != compute.SoftDelete {
				before := b.server(id).VMState
				r := b.act(id, a, data)
				if err := b.report("h1", r.Token, "it fails"); err != nil {
					b.Fatal(err)
				}
				power("a failed "+string(a), is)
				b.exec(`UPDATE servers SET vm_state = ? WHERE id = ? AND vm_state = 'error'`, before, id)
			}
			if a == compute.SoftDelete {
				b.softDelete(id)
			} else {
				r := b.act(id, a, data)
				if want, ok := r.PowerAfter(); ok {
					is = want
				}
				if err := b.report("h1", r.Token, ""); err != nil {
					b.Fatal(err)
				}
			}
			if a == compute.SoftDelete {
				is = compute.Shutdown
			}
			power(string(a), is)
			seen[a] = true
		}
		for a := range store.Kinds {
			if !seen[a] && a != compute.CreateBackup {
				b.Errorf("%s is not tested", a)
			}
		}
		id = b.build()
		for _, state := range []string{store.Error, store.Active} {
			if err := b.store.ResetState(b.Context(), id, state); err != nil {
				b.Fatal(err)
			}
			power("os-resetState to "+state, compute.Running)
		}
		b.exec(`UPDATE servers SET power_state = NULL WHERE id = ?`, id) // an earlier release has created the server
		power("a creation by an earlier release", compute.Running)
		if err := b.store.ResetState(b.Context(), id, store.Error); err != nil {
			b.Fatal(err)
		}
		power("os-resetState of a server of an earlier release", compute.Running)
	})
}

// TestConfirmStopped: as in Nova, a server is stopped after the confirmation of its resize if its guest has stopped since the resize.
func TestConfirmStopped(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		end := func(r compute.ActRequest) {
			b.Helper()
			if err := b.report("h1", r.Token, ""); err != nil {
				b.Fatal(err)
			}
		}
		end(b.act(id, compute.Resize, store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}))
		b.tick()
		b.becomes(id, compute.Shutdown)
		if srv := b.server(id); srv.VMState != store.Resized || srv.Task() != "" {
			b.Errorf("a resized server whose guest has stopped: %+v", srv)
		}
		end(b.act(id, compute.ConfirmResize, store.ActData{}))
		if srv := b.server(id); srv.VMState != store.Stopped || srv.PowerState() != compute.Shutdown {
			b.Errorf("after the confirmation: %s, %v", srv.VMState, srv.PowerState())
		}
	})
}

// TestWrongPower: reports of a process that does not own the host are refused. A power state that does not exist counts as no state, and does not hide the other guests of the report.
func TestWrongPower(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{DownAfter: time.Minute}, func(b *bench) {
		b.start()
		id, odd := b.build(), b.build()
		b.tick()
		report := &compute.PowerReport{Host: "h1", Guests: []compute.GuestPower{{ServerID: odd, Power: 2}, {ServerID: id, Power: compute.Shutdown}}}
		got, err := b.svc.ReportPower(b.Context(), report)
		if err != nil || len(got.Differ) != 2 {
			b.Errorf("a power state that does not exist, beside another guest: %+v, %v", got, err)
		}
		b.reportPower(odd, 2, b.ask(odd, 2))
		if srv := b.server(odd); srv.PowerState() != compute.NoState || srv.VMState != store.Active {
			b.Errorf("after a power state that does not exist: %+v", srv)
		}
		b.tick()
		asked := b.ask(id, compute.Crashed)
		if _, err := b.svc.LeaveHost(b.Context(), &compute.LeaveHostRequest{Host: "h1"}); err != nil {
			b.Fatal(err)
		}
		if _, err := b.svc.ClaimHost(b.Context(), &compute.ClaimHostRequest{Host: "h1", Instance: compute.Process{ID: "i-1"}}); err != nil {
			b.Fatal(err)
		}
		report.Guests[0] = compute.GuestPower{ServerID: id, Power: compute.Crashed, Version: asked}
		report.Instance = "i-0"
		if _, err := b.svc.ReportPower(b.Context(), report); !errors.Is(err, membership.ErrHeld) {
			b.Errorf("another process: %v", err)
		}
		if srv := b.server(id); srv.PowerState() != compute.Running || srv.Task() != "" {
			b.Errorf("%+v", srv)
		}
	})
}
