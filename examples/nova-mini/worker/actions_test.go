package worker_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
)

// TestActs: after each action, the server has the right state, also if the message is delivered twice. If the driver fails, the error is
// reported.
func TestActs(t *testing.T) {
	t.Parallel()
	size := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}
	again := &compute.Spec{ID: "s1", ImageRef: "other", Resources: size}
	for _, tt := range []struct {
		name   string
		faults map[string]string
		before []compute.Action
		req    compute.ActRequest
		says   string             // part of the reported error
		want   compute.PowerState // 0: the host does not have the server
		image  string
	}{
		{name: "pause", req: compute.ActRequest{Action: compute.Pause}, want: compute.Paused},
		{name: "unpause", before: []compute.Action{compute.Pause}, req: compute.ActRequest{Action: compute.Unpause}, want: compute.Running},
		{name: "suspend", req: compute.ActRequest{Action: compute.Suspend}, want: compute.Suspended},
		{name: "resume", before: []compute.Action{compute.Suspend}, req: compute.ActRequest{Action: compute.Resume}, want: compute.Running},
		{name: "hard reboot of a paused server", before: []compute.Action{compute.Pause}, req: compute.ActRequest{Action: compute.HardReboot}, want: compute.Running},
		{name: "rescue of a stopped server", before: []compute.Action{compute.Stop}, req: compute.ActRequest{Action: compute.Rescue, ImageRef: "cd"}, want: compute.Running},
		{name: "unrescue", before: []compute.Action{compute.Rescue}, req: compute.ActRequest{Action: compute.Unrescue}, want: compute.Running},
		{name: "pause fails", faults: map[string]string{"pause": "fail internal"}, req: compute.ActRequest{Action: compute.Pause}, says: "configured to fail", want: compute.Running},
		{name: "password", req: compute.ActRequest{Action: compute.ChangePassword, AdminPass: "secret"}, want: compute.Running},
		{name: "password of a stopped server", before: []compute.Action{compute.Stop}, req: compute.ActRequest{Action: compute.ChangePassword, AdminPass: "secret"}, says: "is SHUTDOWN", want: compute.Shutdown},
		{name: "crash dump", req: compute.ActRequest{Action: compute.CrashDump}, want: compute.Running},
		{name: "crash dump of a paused server", before: []compute.Action{compute.Pause}, req: compute.ActRequest{Action: compute.CrashDump}, says: "is PAUSED", want: compute.Paused},
		{name: "soft deletion", req: compute.ActRequest{Action: compute.SoftDelete}, want: compute.Shutdown},
		{name: "soft deletion of a suspended server", before: []compute.Action{compute.Suspend}, req: compute.ActRequest{Action: compute.SoftDelete}, want: compute.Shutdown},
		{name: "soft deletion of a rescued server", before: []compute.Action{compute.Rescue}, req: compute.ActRequest{Action: compute.SoftDelete, Resources: size, Settle: true}, want: compute.Shutdown},
		{name: "restore", before: []compute.Action{compute.SoftDelete}, req: compute.ActRequest{Action: compute.Restore}, want: compute.Running},
		{name: "rebuild", req: compute.ActRequest{Action: compute.Rebuild, Spec: again, Running: true}, want: compute.Running, image: "other"},
		{name: "rebuild of a stopped server", before: []compute.Action{compute.Stop}, req: compute.ActRequest{Action: compute.Rebuild, Spec: again}, want: compute.Shutdown, image: "other"},
		{name: "image", req: compute.ActRequest{Action: compute.CreateImage, ImageRef: "copy"}, want: compute.Running},
		{name: "backup", req: compute.ActRequest{Action: compute.CreateBackup, ImageRef: "copy"}, want: compute.Running},
		{name: "rotation", req: compute.ActRequest{Action: compute.CreateBackup, Rotation: &compute.Rotation{Images: []string{"copy", "none"}}}, want: compute.Running},
		{name: "rotation fails", req: compute.ActRequest{Action: compute.CreateBackup, Rotation: &compute.Rotation{Images: []string{"../copy"}}}, says: "remove the backup ../copy", want: compute.Running},
		{name: "shelve", req: compute.ActRequest{Action: compute.Shelve, ImageRef: "copy", Running: true}, want: compute.Shutdown},
		{name: "shelve without an image", faults: map[string]string{"snapshot": "fail internal"}, req: compute.ActRequest{Action: compute.Shelve, ImageRef: "copy", Running: true}, says: "configured to fail", want: compute.Running},
		{name: "shelve of a stopped server without an image", faults: map[string]string{"snapshot": "fail internal"}, before: []compute.Action{compute.Stop}, req: compute.ActRequest{Action: compute.Shelve, ImageRef: "copy"}, says: "configured to fail", want: compute.Shutdown},
		{name: "offload", before: []compute.Action{compute.Stop}, req: compute.ActRequest{Action: compute.ShelveOffload}},
		{name: "unshelve on the same host", before: []compute.Action{compute.Stop}, req: compute.ActRequest{Action: compute.Unshelve, Spec: again}, want: compute.Running, image: "first"},
		{name: "unshelve on another host", before: []compute.Action{compute.ShelveOffload}, req: compute.ActRequest{Action: compute.Unshelve, Spec: again, Placed: true}, want: compute.Running, image: "other"},
		{
			name: "unshelve fails", before: []compute.Action{compute.ShelveOffload}, says: "configured to fail",
			req: compute.ActRequest{Action: compute.Unshelve, Spec: &compute.Spec{ID: "s1", Resources: size, Metadata: map[string]string{"fake:spawn": "fail internal"}}, Placed: true},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			d, err := fake.New(fake.Config{Host: "h1"})
			if err != nil {
				t.Fatal(err)
			}
			metadata := map[string]string{}
			for method, text := range tt.faults {
				metadata["fake:"+method] = text
			}
			if err := d.Spawn(t.Context(), compute.Spec{ID: "s1", ImageRef: "first", Resources: size, Metadata: metadata}); err != nil {
				t.Fatal(err)
			}
			svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
			act := func(r compute.ActRequest) string {
				t.Helper()
				r.ServerID, r.Token = "s1", "op/5"
				if _, err := svc.Act(t.Context(), &r); err != nil {
					t.Fatal(err)
				}
				return get(t, b.ended).Error
			}
			for _, a := range tt.before {
				if failed := act(compute.ActRequest{Action: a}); failed != "" {
					t.Fatal(failed)
				}
			}
			for range 2 {
				if failed := act(tt.req); tt.says == "" && failed != "" || !strings.Contains(failed, tt.says) {
					t.Errorf("reported %q, want %q", failed, tt.says)
				}
			}
			is, err := d.Get(t.Context(), "s1")
			if tt.want == 0 {
				if fault.CodeOf(err) != fault.NotFound {
					t.Errorf("the host has the server: %+v, %v", is, err)
				}
				return
			}
			if err != nil || is.Power != tt.want || is.Rescued != (tt.req.Action == compute.Rescue) {
				t.Errorf("the server: %+v, %v; want %v", is, err, tt.want)
			}
			if info, err := d.Diagnostics(t.Context(), "s1"); tt.image != "" && (err != nil || info["image"] != tt.image) {
				t.Errorf("the image is %s, %v; want %s", info["image"], err, tt.image)
			}
		})
	}
}

// TestRescuePassword: the guest gets the password of a rescue.
func TestRescuePassword(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d, err := fake.New(fake.Config{Host: "h1"})
	if err == nil {
		err = d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: compute.Resources{VCPUs: 1}, ConfigDrive: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
	for _, tt := range []struct {
		action   compute.Action
		password string
		want     bool
	}{{compute.Rescue, "secret", true}, {compute.Unrescue, "", false}, {compute.Rescue, "", false}} {
		if _, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: tt.action, Token: "op/1", AdminPass: tt.password}); err != nil {
			t.Fatal(err)
		}
		if end := get(t, b.ended); end.Error != "" {
			t.Errorf("%s: %+v", tt.action, end)
		}
		var log strings.Builder
		if err := d.ConsoleLog(t.Context(), "s1", 0, &log); err != nil || strings.Contains(log.String(), "password of the rescue") != tt.want {
			t.Errorf("%s with the password %q: %v\n%s", tt.action, tt.password, err, &log)
		}
	}
}

// TestSoftDeleteMissing: the report of a soft deletion says that the host does not have the server.
func TestSoftDeleteMissing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d, err := fake.New(fake.Config{Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
	for action, want := range map[compute.Action]bool{compute.SoftDelete: true, compute.Pause: false} {
		if _, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: action, Token: "op/1"}); err != nil {
			t.Fatal(err)
		}
		if end := get(t, b.ended); end.Error == "" || end.Missing != want {
			t.Errorf("%s: %+v", action, end)
		}
	}
}

// TestInterruptedResize: an action that ends an interrupted resize gives the server the size in the request. The action undoes the resize, even if the resize was not done, or confirms
// the resize. If nothing is left to be undone, the action resizes the server.
func TestInterruptedResize(t *testing.T) {
	t.Parallel()
	small, large := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}, compute.Resources{VCPUs: 2, MemoryMiB: 128, DiskGiB: 2}
	for _, tt := range []struct {
		name        string
		resize      bool
		want, after compute.Resources // after a revert that follows
	}{
		{"undone", true, small, small},
		{"not done", false, small, small},
		{"confirmed", true, large, large},
		{"reverted before its end was reported", false, large, large},
	} {
		for a, power := range map[compute.Action]compute.PowerState{
			compute.SoftDelete: compute.Shutdown, compute.HardReboot: compute.Running, compute.Stop: compute.Shutdown, compute.Shelve: compute.Shutdown,
		} {
			t.Run(tt.name+", "+string(a), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				d, err := fake.New(fake.Config{Host: "h1"})
				if err == nil {
					err = d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: small})
				}
				if err != nil {
					t.Fatal(err)
				}
				svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
				if tt.resize {
					if _, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Resize, Token: "op/1", Resources: large, Running: true}); err != nil || get(t, b.ended).Error != "" {
						t.Fatal(err)
					}
				}
				for range 2 { // the message may be delivered twice
					if _, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: a, Token: "op/2", Resources: tt.want, Settle: true, ImageRef: "copy"}); err != nil {
						t.Fatal(err)
					}
					if end := get(t, b.ended); end.Error != "" {
						t.Errorf("reported %+v", end)
					}
				}
				is, err := d.Get(t.Context(), "s1")
				if err != nil || is.Power != power || is.Resources != tt.want {
					t.Errorf("the server: %+v, %v", is, err)
				}
				if err = d.PowerOff(t.Context(), "s1", 0); err == nil {
					err = d.RevertResize(t.Context(), "s1")
				}
				if err != nil {
					t.Error(err)
				}
				if is, err := d.Get(t.Context(), "s1"); err != nil || is.Resources != tt.after {
					t.Errorf("after a revert: %+v, %v", is, err)
				}
			})
		}
	}
}

// TestLeftoverResources: a conductor of the last release sends the new size of an interrupted resize with any action. This does not change the size.
func TestLeftoverResources(t *testing.T) {
	t.Parallel()
	small, large := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}, compute.Resources{VCPUs: 2, MemoryMiB: 128, DiskGiB: 2}
	b := newBench(t)
	d, err := fake.New(fake.Config{Host: "h1"})
	if err == nil {
		err = d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: small})
	}
	if err != nil {
		t.Fatal(err)
	}
	svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
	for _, a := range []compute.Action{compute.HardReboot, compute.Stop} {
		if _, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: a, Token: "op/2", Resources: large, Running: true}); err != nil {
			t.Fatal(err)
		}
		if end := get(t, b.ended); end.Error != "" {
			t.Errorf("%s: reported %+v", a, end)
		}
		if is, err := d.Get(t.Context(), "s1"); err != nil || is.Resources != small {
			t.Errorf("after a %s: %+v, %v", a, is, err)
		}
	}
}

// gated is a driver whose Pause waits.
type gated struct {
	compute.Driver

	entered, gate chan struct{}
}

func (g *gated) Pause(ctx context.Context, id string) error {
	close(g.entered)
	<-g.gate
	return g.Driver.Pause(ctx, id)
}

// TestNextAction: an action may come while the handler of the previous action has not returned yet, because it waits for the reply to its
// report. The new action is done, and not dropped: its conductor would repeat the request only after a long time.
func TestNextAction(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		simulated, err := fake.New(fake.Config{Host: "h1"})
		if err != nil {
			t.Fatal(err)
		}
		defer simulated.Close()
		d := &gated{simulated, make(chan struct{}), make(chan struct{})}
		if err := d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: compute.Resources{VCPUs: 1}}); err != nil {
			t.Fatal(err)
		}
		svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
		var wg sync.WaitGroup
		act := func(a compute.Action) {
			wg.Go(func() {
				if _, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: a, Token: "op/1"}); err != nil {
					t.Error(err)
				}
			})
		}
		act(compute.Pause)
		get(t, d.entered)
		act(compute.Stop)
		synctest.Wait() // the second action waits
		close(d.gate)
		wg.Wait()
		if is, err := d.Get(t.Context(), "s1"); err != nil || is.Power != compute.Shutdown {
			t.Errorf("after both actions: %+v, %v", is, err)
		}
	})
}

// blind is a driver that cannot say what it knows of a server.
type blind struct {
	compute.Driver

	err error
}

func (b blind) Get(context.Context, string) (compute.Instance, error) {
	return compute.Instance{}, b.err
}

// TestFirstLook: an earlier delivery of the message may have done the action. If the driver does not answer what it knows of the server, nothing is reported, and the message is redelivered.
// A definite answer is reported.
func TestFirstLook(t *testing.T) {
	t.Parallel()
	size := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}
	for _, a := range []compute.Action{compute.Resize, compute.SoftDelete, compute.Rescue, compute.HardReboot, compute.Unshelve} {
		for _, code := range []fault.Code{fault.Unavailable, fault.Unknown, fault.Timeout, fault.Internal, fault.Precondition} {
			t.Run(string(a)+", "+code.String(), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := newBench(t)
					d, err := fake.New(fake.Config{Host: "h1"})
					if err == nil {
						err = d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: size})
					}
					if err != nil {
						t.Fatal(err)
					}
					no := blind{d, fault.New(code, "no answer")}
					svc := worker.New(worker.Config{
						Host: "h1", Driver: func() compute.Driver { return no }, Client: b.client, Logger: slog.New(slog.DiscardHandler), Images: &fakeImages{dir: t.TempDir()},
					})
					_, err = svc.Act(t.Context(), &compute.ActRequest{
						ServerID: "s1", Action: a, Token: "op/1", Resources: size, Settle: true, ImageRef: "cd", Spec: &compute.Spec{ID: "s1", ImageRef: "cd", Resources: size},
					})
					if code == fault.Precondition {
						if end := get(t, b.ended); err != nil || !strings.Contains(end.Error, "no answer") {
							t.Errorf("reported %+v, %v", end, err)
						}
						return
					}
					if fault.CodeOf(err) != fault.Unavailable || len(b.ended) > 0 {
						t.Errorf("%v, %d reports; want Unavailable without a report", err, len(b.ended))
					}
				})
			})
		}
	}
}
