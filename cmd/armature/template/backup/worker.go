package main

import (
	"context"
	"hash/fnv"
	"sync"
	"time"

	"github.com/armature-go/armature/cmd/armature/template/backup/backupdriver"
	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service"
)

// workerInterface is the RPC interface of the workers. A method that is added later has a higher Since, and Version is the highest Since: see
// docs/upgrading.md of Armature.
var workerInterface = &rpc.Interface{Name: "backup-worker", Version: rpc.Version{Major: 1}}

var (
	createMethod  = rpc.Define(rpc.Method[createRequest, rpc.None]{Interface: workerInterface, Name: "create", Since: rpc.Version{Major: 1}})
	destroyMethod = rpc.Define(rpc.Method[destroyRequest, rpc.None]{Interface: workerInterface, Name: "destroy", Since: rpc.Version{Major: 1}})
)

// createRequest asks for a backup. A repeated request has no other effect than the first one.
type createRequest struct {
	ID   string `json:"id"`
	Size int64  `json:"size"`
}

// destroyRequest asks a worker to destroy a backup. It is not an error if the backup does not exist.
type destroyRequest struct {
	ID string `json:"id"`
}

// worker makes backups on this host. It has no database: the conductor decides, and the worker only does the work.
type worker struct {
	*component.Process[options]

	driver func() backupdriver.Driver
	locks  [64]sync.Mutex // by the ID of a backup
}

// workerWith returns the wiring of a worker with the drivers that are built in.
func workerWith(builtIn backupdriver.Registry) func(context.Context, *component.Process[options]) error {
	return func(_ context.Context, p *component.Process[options]) error {
		current, err := component.Driver(p, backupdriver.Kind, builtIn)
		if err != nil {
			return err
		}
		w := &worker{Process: p, driver: current}
		p.Serve(workerInterface, func(s *rpc.Server) {
			rpc.Handle(s, createMethod, w.create)
			rpc.Handle(s, destroyMethod, w.destroy)
		})
		p.Add("audit", service.Loop(auditInterval, w.audit))
		return nil
	}
}

func (w *worker) create(ctx context.Context, r *createRequest) (*rpc.None, error) {
	defer w.lock(r.ID)()
	return nil, w.driver().Create(ctx, backupdriver.Spec{ID: r.ID, Size: r.Size})
}

func (w *worker) destroy(ctx context.Context, r *destroyRequest) (*rpc.None, error) {
	defer w.lock(r.ID)()
	return nil, w.driver().Destroy(ctx, r.ID)
}

// lock lets one call at a time work on a backup. The caller calls the result when its work is done.
func (w *worker) lock(id string) func() {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(id))
	l := &w.locks[sum.Sum32()%uint32(len(w.locks))]
	l.Lock()
	return l.Unlock
}

const auditInterval = time.Minute

// audit destroys backups that are complete on another host: this host has also made them, but its reply did not reach the conductor. Backups that
// the conductor does not know, or whose host is not up, are only logged: the database may be another one, or this host may have a new name.
func (w *worker) audit(ctx context.Context) error {
	ids, err := w.driver().List(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := w.auditOne(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) auditOne(ctx context.Context, id string) error {
	defer w.lock(id)() // so that no call creates it between the question and the answer
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	owner, err := rpc.Call(ctx, w.Client, hostMethod, rpc.Any, &hostRequest{ID: id})
	if err != nil || owner.Host == w.Host {
		return err
	}
	if !owner.Safe {
		w.Log.WarnContext(ctx, "backup on this host belongs elsewhere, kept", "backup", id, "host", owner.Host)
		return nil
	}
	w.Log.WarnContext(ctx, "leftover destroyed", "backup", id, "host", owner.Host)
	return w.driver().Destroy(ctx, id)
}
