package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// States of a server, Nova's.
const (
	Building = "building" // vm_state
	Active   = "active"
	Stopped  = "stopped"
	Error    = "error"
	Resized  = "resized" // neither confirmed nor reverted

	Scheduling = "scheduling" // task_state: the conductor looks for a host
	Spawning   = "spawning"   // the worker builds
	Deleting   = "deleting"   // the worker, or the conductor, removes

	PoweringOff   = "powering-off" // the worker does an action
	PoweringOn    = "powering-on"
	Rebooting     = "rebooting"
	RebootingHard = "rebooting_hard"

	ResizePrep       = "resize_prep"
	ResizeConfirming = "resize_confirming"
	ResizeReverting  = "resize_reverting"
)

// Actions are those that a worker does to a server: Nova's name, their task, the state
// that they end in, if it is always the same, and those in which they are allowed, as in
// Nova.
var actions = map[compute.Action]struct {
	name, task, to string
	from           []string
}{
	compute.Stop:       {"stop", PoweringOff, Stopped, []string{Active, Error}},
	compute.Start:      {"start", PoweringOn, Active, []string{Stopped}},
	compute.SoftReboot: {"reboot", Rebooting, Active, []string{Active}},
	compute.HardReboot: {"reboot", RebootingHard, Active, []string{Active, Stopped, Error}},

	compute.Resize:        {"resize", ResizePrep, Resized, []string{Active, Stopped}},
	compute.ConfirmResize: {"confirmResize", ResizeConfirming, "", []string{Resized}},
	compute.RevertResize:  {"revertResize", ResizeReverting, "", []string{Resized}},
}

// Server is one row, with the task of its operation. A server has a task as long as it has an operation that has not
// ended.
type Server struct {
	ID        string                     `db:"id"`
	Name      string                     `db:"name"`
	ProjectID string                     `db:"project_id"`
	UserID    string                     `db:"user_id"`
	RequestID string                     `db:"request_id"`
	ImageRef  string                     `db:"image_ref"`
	FlavorID  string                     `db:"flavor_id"`
	VCPUs     int                        `db:"vcpus"`
	MemoryMiB int                        `db:"memory_mib"`
	DiskGiB   int                        `db:"disk_gib"`
	Metadata  db.JSON[map[string]string] `db:"metadata"`
	VMState   string                     `db:"vm_state"`
	// TaskState is read only. It is made of the server's operation.
	TaskState *string `db:"task_state"`
	// Host is set when the server is placed, and empty again after its building has failed.
	Host      *string `db:"host"`
	FaultCode int     `db:"fault_code"`
	// FaultMessage is what the server's project may read of its fault: no hosts, no amounts.
	FaultMessage string `db:"fault_for_users"`
	// FaultDetails are the reasons, for administrators.
	FaultDetails string           `db:"fault_message"`
	FaultAt      *time.Time       `db:"fault_at"`
	CreatedAt    time.Time        `db:"created_at"`
	UpdatedAt    time.Time        `db:"updated_at"`
	LaunchedAt   *time.Time       `db:"launched_at"`
	Resize       db.JSON[*Resize] `db:"resize"`
}

// Task returns the task's name, or "" if the server has none.
func (s *Server) Task() string {
	if s.TaskState == nil {
		return ""
	}
	return *s.TaskState
}

// PowerState returns what the state of the server says of its power.
func (s *Server) PowerState() compute.PowerState {
	switch {
	case s.VMState == Active, s.VMState == Resized && s.Resize.V != nil && s.Resize.V.Running:
		return compute.Running
	case s.VMState == Stopped, s.VMState == Resized:
		return compute.Shutdown
	}
	return compute.NoState
}

// Need returns what the server takes of a host.
func (s *Server) Need() compute.Resources {
	return compute.Resources{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, DiskGiB: s.DiskGiB}
}

// Spec returns what a driver needs to know.
func (s *Server) Spec() compute.Spec {
	return compute.Spec{
		ID: s.ID, Name: s.Name, ProjectID: s.ProjectID, ImageRef: s.ImageRef,
		Resources: s.Need(), Metadata: s.Metadata.V,
	}
}

func notFound(id string) error {
	return fault.New(fault.NotFound, "Instance %s could not be found.", id)
}

// What is stored of a server's fault, for its project and for administrators, and of its metadata as
// JSON, in bytes.
const (
	maxMessage  = 255
	maxFault    = 8 << 10
	maxMetadata = 1<<16 - 1
)

// CreateServer adds a server that waits for a host, and the operation that builds it: all
// the conductor needs to go on is in the rows. The fields about its state are set here.
// Denied: the server has no project; Invalid: its metadata have more than 65,535 bytes as JSON.
func (s *Store) CreateServer(ctx context.Context, srv *Server) error {
	if srv.ProjectID == "" {
		return fault.New(fault.Denied, "A server needs a project: use a token that is scoped to one.")
	}
	if raw, err := srv.Metadata.Value(); err != nil || len(fmt.Sprint(raw)) > maxMetadata {
		return fault.New(fault.Invalid, "Invalid metadata: all of it may have %d bytes", maxMetadata)
	}
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		srv.VMState, srv.CreatedAt, srv.UpdatedAt = Building, now, now
		_, err := tx.NamedExecContext(ctx, `INSERT INTO servers (id, name, project_id, user_id, request_id, image_ref, flavor_id,
			vcpus, memory_mib, disk_gib, metadata, vm_state, host,
			fault_code, fault_for_users, fault_message, fault_at, created_at, updated_at, launched_at)
			VALUES (:id, :name, :project_id, :user_id, :request_id, :image_ref, :flavor_id,
			:vcpus, :memory_mib, :disk_gib, :metadata, :vm_state, :host,
			:fault_code, :fault_for_users, :fault_message, :fault_at, :created_at, :updated_at, :launched_at)`, srv)
		if err != nil {
			return db.Error(err)
		}
		_, err = operation.Begin(ctx, s.ops, Create, srv.ID, &CreateData{Need: srv.Need()})
		return err
	})
}

// Server returns one server, or NotFound.
func (s *Store) Server(ctx context.Context, id string) (*Server, error) {
	srv := new(Server)
	err := s.get(ctx, s.db, srv, notFound(id), `SELECT * FROM `+serversWithTasks+` WHERE id = ?`, id)
	return srv, err
}

// lockServer returns one server without its task, which stays as it is until the end of the transaction, or NotFound.
func (s *Store) lockServer(ctx context.Context, tx *sqlx.Tx, id string) (*Server, error) {
	srv := new(Server)
	err := s.get(ctx, tx, srv, notFound(id), `SELECT * FROM servers WHERE id = ? FOR UPDATE`, id)
	return srv, err
}

// BeginDelete begins the deletion of a server, whatever is done to it: a deletion preempts every other operation. A
// server that is being deleted is left alone. NotFound.
func (s *Store) BeginDelete(ctx context.Context, id string) error {
	err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		// First, because a runner locks an operation before the server.
		if _, err := operation.Begin(ctx, s.ops, Delete, id, &struct{}{}); err != nil {
			return err
		}
		return db.ExecOne(ctx, tx, notFound(id), `UPDATE servers SET updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, id)
	})
	if errors.Is(err, operation.ErrBusy) {
		return nil
	}
	return err
}

// Place notes the host on which a server is to be built. It is a part of the operation's transaction. ErrStale: the server does not exist, or
// has been built.
func (s *Store) Place(ctx context.Context, tx *sqlx.Tx, id, host string) error {
	return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET host = ?, vm_state = ?, fault_for_users = '', fault_message = '', fault_at = NULL, updated_at = UTC_TIMESTAMP(6)
		WHERE id = ? AND launched_at IS NULL`, host, Building, id)
}

// Unplace takes a server off the host on which its building has failed, and releases its claim. It is a part of the operation's transaction.
func (s *Store) Unplace(ctx context.Context, tx *sqlx.Tx, id, why string) error {
	if _, err := db.Exec(ctx, tx, `UPDATE servers SET host = NULL, fault_message = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, db.Cut(why, maxFault), id); err != nil {
		return err
	}
	return s.release(ctx, tx, id)
}

// Activate notes that a server is built. It is a part of the operation's transaction. ErrStale: the server does not exist.
func (s *Store) Activate(ctx context.Context, tx *sqlx.Tx, id string) error {
	return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET vm_state = ?, launched_at = UTC_TIMESTAMP(6), updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, Active, id)
}

// FailCreate gives the building of a server up: the server is in ERROR, with a fault, and on no host, so that a host that
// still has it destroys it. Its claim is released. It is a part of the operation's transaction. A server that does not exist is not an error.
func (s *Store) FailCreate(ctx context.Context, tx *sqlx.Tx, id, message, details string) error {
	n, err := s.fail(ctx, tx, id, message, details)
	if err != nil || n == 0 {
		return err
	}
	if _, err := db.Exec(ctx, tx, `UPDATE servers SET host = NULL WHERE id = ?`, id); err != nil {
		return err
	}
	return s.release(ctx, tx, id)
}

// FailDelete gives a deletion up: the server is in ERROR, with a fault, and keeps its host and its claim. It is a part of the operation's
// transaction. A server that does not exist is not an error.
func (s *Store) FailDelete(ctx context.Context, tx *sqlx.Tx, id, details string) error {
	_, err := s.fail(ctx, tx, id, fmt.Sprintf("Failed to delete instance %s.", id), details)
	return err
}

// fail gives a server a fault: the message is for its project, details are for administrators.
func (s *Store) fail(ctx context.Context, tx *sqlx.Tx, id, message, details string) (int64, error) {
	return db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, fault_code = 500, fault_for_users = ?, fault_message = ?, fault_at = UTC_TIMESTAMP(6),
		updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, Error, db.Cut(message, maxMessage), db.Cut(details, maxFault), id)
}

// Remove deletes a server and its claim. It is a part of the operation's transaction. A server that does not exist is not an error.
func (s *Store) Remove(ctx context.Context, tx *sqlx.Tx, id string) error {
	if _, err := db.Exec(ctx, tx, `DELETE FROM servers WHERE id = ?`, id); err != nil {
		return err
	}
	return s.release(ctx, tx, id)
}

// Strangers returns those of ids that do not belong on host.
func (s *Store) Strangers(ctx context.Context, host string, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	query, args, err := sqlx.In(`SELECT id FROM servers WHERE host = ? AND id IN (?)`, host, ids)
	if err != nil {
		return nil, err
	}
	var known []string
	if err := s.db.SelectContext(ctx, &known, query, args...); err != nil {
		return nil, db.Error(err)
	}
	mine := make(map[string]bool, len(known))
	for _, id := range known {
		mine[id] = true
	}
	var out []string
	for _, id := range ids {
		if !mine[id] {
			out = append(out, id)
		}
	}
	return out, nil
}
