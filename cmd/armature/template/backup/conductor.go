package main

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// work has the data of an operation. The steps of the operation share them. The data are stored: fields may be added, but no field may change its meaning.
type work struct {
	ID   string `json:"id"`
	Size int64  `json:"size,omitempty"`
	Host string `json:"host"`
}

// The kinds of operations. A release that adds a step increases Version.
var (
	createKind = operation.Kind[work]{Name: "backup.create", Timeout: 10 * time.Minute}
	deleteKind = operation.Kind[work]{Name: "backup.delete", Timeout: 10 * time.Minute, Preempts: true}
)

// rank orders the workers that are up. Filters and Weighers may be added here: a filter rejects a host, and a weigher prefers one.
var rank = component.NewScheduler(scheduler.Config[*work, membership.Member]{
	Weighers: []scheduler.Weighted[*work, membership.Member]{component.AvoidHost(func(w *work) string { return w.Host })},
})

// conductor has the steps of operations.
type conductor struct{ *component.Process[options] }

func wireConductor(_ context.Context, p *component.Process[options]) error {
	c := &conductor{p}
	operation.Handle(p.Runner(), createKind,
		operation.Step[work]{Name: "choose", Do: c.choose, DoTx: c.saveHost},
		operation.Step[work]{Name: "make", Do: c.make, Undo: c.destroy},
	)
	operation.OnEnd(p.Runner(), createKind, c.created)
	operation.Handle(p.Runner(), deleteKind, operation.Step[work]{Name: "destroy", Do: c.destroy, DoTx: c.deleteRow})
	operation.OnEnd(p.Runner(), deleteKind, c.deleted)
	p.Serve(conductorInterface, func(s *rpc.Server) { rpc.Handle(s, hostMethod, c.hostOf) })
	return nil
}

// conductorInterface is the RPC interface that the conductor serves.
var conductorInterface = &rpc.Interface{Name: "backup-conductor", Version: rpc.Version{Major: 1}}

// hostMethod returns the host of a backup.
var hostMethod = rpc.Define(rpc.Method[hostRequest, hostReply]{Interface: conductorInterface, Name: "host", Since: rpc.Version{Major: 1}})

type hostRequest struct {
	ID string `json:"id"`
}

// hostReply has the host that has a backup, or will have it. Host is empty if the backup does not exist. Safe means that the backup is complete on
// that host, and that its worker is up. Then another host may destroy its remains of the backup.
type hostReply struct {
	Host string `json:"host"`
	Safe bool   `json:"safe"`
}

func (c *conductor) hostOf(ctx context.Context, r *hostRequest) (*hostReply, error) {
	var b Backup
	err := db.Error(c.DB.GetContext(ctx, &b, `SELECT `+db.Columns[Backup]()+` FROM backups WHERE id = ?`, r.ID))
	switch {
	case errors.Is(err, fault.NotFound):
		return &hostReply{}, nil
	case err != nil || b.Status != available:
		return &hostReply{Host: b.Host}, err
	}
	m, err := c.Members.Get(ctx, workerInterface.Name, b.Host)
	if errors.Is(err, fault.NotFound) {
		err = nil
	}
	return &hostReply{Host: b.Host, Safe: m.Up}, err
}

// choose chooses a host.
func (c *conductor) choose(ctx context.Context, _ *operation.Op, w *work) error {
	m, err := component.Choose(ctx, c.Process, rank, workerInterface.Name, w)
	if err == nil {
		w.Host = m.Host
	}
	return err
}

// saveHost writes the host before the work begins there, so that a deletion knows where to clean up.
func (c *conductor) saveHost(ctx context.Context, tx *sqlx.Tx, _ *operation.Op, w *work) error {
	_, err := db.Exec(ctx, tx, `UPDATE backups SET host = ? WHERE id = ?`, w.Host, w.ID)
	return err
}

// callTimeout is how long a worker may take for a call.
const callTimeout = 30 * time.Second

// make calls the chosen host. If the host does not answer, the operation goes back to choose a host. If the first host has made the backup
// nevertheless, that host destroys it: see worker.audit.
func (c *conductor) make(ctx context.Context, _ *operation.Op, w *work) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := rpc.Call(ctx, c.Client, createMethod, w.Host, &createRequest{ID: w.ID, Size: w.Size})
	if code := fault.CodeOf(err); err != nil && (code == fault.Unavailable || code == fault.Unknown || code == fault.Timeout) {
		return operation.GoTo("choose", 100, err)
	}
	return err
}

// destroy destroys a backup on its host. A backup without a host was never made.
func (c *conductor) destroy(ctx context.Context, _ *operation.Op, w *work) error {
	now, err := c.hostOf(ctx, &hostRequest{ID: w.ID}) // a creation that was ended may have chosen another host than w says
	if err != nil || now.Host == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = rpc.Call(ctx, c.Client, destroyMethod, now.Host, &destroyRequest{ID: w.ID})
	return err
}

// deleteRow removes the row of a backup that is destroyed.
func (c *conductor) deleteRow(ctx context.Context, tx *sqlx.Tx, _ *operation.Op, w *work) error {
	_, err := db.Exec(ctx, tx, `DELETE FROM backups WHERE id = ?`, w.ID)
	return err
}

// deleted marks a backup whose deletion has failed, in the transaction that ends the operation. The client may delete the backup again.
func (c *conductor) deleted(ctx context.Context, tx *sqlx.Tx, op *operation.Op, w *work) error {
	if op.State == operation.Succeeded {
		return nil // there is no row any more
	}
	_, err := db.Exec(ctx, tx, `UPDATE backups SET status = ? WHERE id = ?`, failed, w.ID)
	return err
}

// created writes the result of a creation, in the transaction that ends the operation.
func (c *conductor) created(ctx context.Context, tx *sqlx.Tx, op *operation.Op, w *work) error {
	status := available
	if op.State != operation.Succeeded {
		status = failed
	}
	_, err := db.Exec(ctx, tx, `UPDATE backups SET status = ? WHERE id = ? AND status = ?`, status, w.ID, creating)
	return err
}
