package worker_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
)

// interfaceDriver answers each change of an interface with an error.
type interfaceDriver struct {
	compute.Driver

	err  error
	last string // the last change
}

func (d *interfaceDriver) AttachInterface(_ context.Context, server string, i compute.Interface) error {
	d.last = "attach " + i.ID + " to " + server
	return d.err
}

func (d *interfaceDriver) DetachInterface(_ context.Context, server, port string) error {
	d.last = "detach " + port + " from " + server
	return d.err
}

// TestChangeInterface: the report of the change of an interface says what the driver has answered. If the driver does not say whether it has changed the interface, nothing is reported, and the message is
// redelivered.
func TestChangeInterface(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		action     compute.Action
		err        error
		ifPossible bool
		want       compute.EndStepRequest // without the token
		redelivers bool
	}{
		{name: "attached", action: compute.AttachInterface},
		{name: "detached", action: compute.DetachInterface},
		{name: "failed", action: compute.AttachInterface, err: fault.New(fault.Conflict, "no slot is free"), want: compute.EndStepRequest{Error: "no slot is free"}},
		{name: "no server", action: compute.DetachInterface, err: fault.New(fault.NotFound, "no server"), want: compute.EndStepRequest{Error: "no server"}},
		{name: "no server, which does not matter", action: compute.DetachInterface, err: fault.New(fault.NotFound, "no server"), ifPossible: true},
		{name: "not supported", action: compute.AttachInterface, err: fault.New(fault.Unimplemented, "no interfaces"), want: compute.EndStepRequest{Error: "no interfaces", Unsupported: true}},
		{name: "not supported, which does not matter", action: compute.DetachInterface, err: fault.New(fault.Unimplemented, "no interfaces"), ifPossible: true},
		{name: "failed, which matters", action: compute.DetachInterface, err: fault.New(fault.Internal, "busy"), ifPossible: true, want: compute.EndStepRequest{Error: "busy"}},
		{name: "not known", action: compute.AttachInterface, err: fault.New(fault.Timeout, "no answer"), redelivers: true},
		{name: "not known, which matters", action: compute.DetachInterface, err: fault.New(fault.Timeout, "no answer"), ifPossible: true, redelivers: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, d := newBench(t), &interfaceDriver{err: tt.err}
			svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
			_, err := svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: tt.action, Interface: &compute.Interface{ID: "p"}, IfPossible: tt.ifPossible, Token: "op/1"})
			if tt.redelivers {
				if fault.CodeOf(err) != fault.Unavailable || len(b.ended) > 0 {
					t.Errorf("%v and %d reports, want Unavailable and no report", err, len(b.ended))
				}
				return
			}
			want := tt.want
			want.StepRequest = compute.StepRequest{Token: "op/1", Host: "h1"}
			if got := get(t, b.ended); err != nil || got != want {
				t.Errorf("reported %+v, %v; want %+v", got, err, want)
			}
			did := map[compute.Action]string{compute.AttachInterface: "attach p to s1", compute.DetachInterface: "detach p from s1"}[tt.action]
			if d.last != did {
				t.Errorf("the driver did %q, want %q", d.last, did)
			}
		})
	}
	b := newBench(t)
	if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.AttachInterface, Token: "op/1"}); err != nil {
		t.Error(err)
	}
	if got := get(t, b.ended); !got.Refused {
		t.Errorf("without an interface: %+v, want a refusal", got)
	}
}
