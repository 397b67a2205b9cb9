package store

import (
	"cmp"
	"context"
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

// ActionOf returns the action that a task is part of, or "".
func ActionOf(task string) compute.Action {
	for a, d := range actions {
		if d.task == task {
			return a
		}
	}
	return ""
}

// Server is one row. A server that has a task has an operation that is not over, and the
// other way round: both begin and end in one transaction.
type Server struct {
	ID         string                     `db:"id"`
	Name       string                     `db:"name"`
	ProjectID  string                     `db:"project_id"`
	UserID     string                     `db:"user_id"`
	RequestID  string                     `db:"request_id"`
	ImageRef   string                     `db:"image_ref"`
	FlavorID   string                     `db:"flavor_id"`
	VCPUs      int                        `db:"vcpus"`
	MemoryMiB  int                        `db:"memory_mib"`
	DiskGiB    int                        `db:"disk_gib"`
	Metadata   db.JSON[map[string]string] `db:"metadata"`
	VMState    string                     `db:"vm_state"`
	TaskState  *string                    `db:"task_state"`
	Host       *string                    `db:"host"`
	Generation int64                      `db:"generation"`
	Attempts   int                        `db:"attempts"`
	Tried      db.JSON[[]string]          `db:"tried"`
	FaultCode  int                        `db:"fault_code"`
	// FaultMessage is what the server's project may read of its fault: no hosts, no amounts.
	FaultMessage string `db:"fault_for_users"`
	// FaultDetails are the reasons, for administrators.
	FaultDetails string           `db:"fault_message"`
	FaultAt      *time.Time       `db:"fault_at"`
	TaskSince    time.Time        `db:"task_since"`
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
		task := Scheduling
		srv.VMState, srv.TaskState = Building, &task
		srv.TaskSince, srv.CreatedAt, srv.UpdatedAt = now, now, now
		_, err := tx.NamedExecContext(ctx, `INSERT INTO servers (id, name, project_id, user_id, request_id, image_ref, flavor_id,
			vcpus, memory_mib, disk_gib, metadata, vm_state, task_state, host, generation, attempts, tried,
			fault_code, fault_for_users, fault_message, fault_at, task_since, created_at, updated_at, launched_at)
			VALUES (:id, :name, :project_id, :user_id, :request_id, :image_ref, :flavor_id,
			:vcpus, :memory_mib, :disk_gib, :metadata, :vm_state, :task_state, :host, :generation, :attempts, :tried,
			:fault_code, :fault_for_users, :fault_message, :fault_at, :task_since, :created_at, :updated_at, :launched_at)`, srv)
		if err != nil {
			return db.Error(err)
		}
		_, err = operation.Begin(ctx, s.ops, Create, srv.ID, &struct{}{})
		return err
	})
}

// Server returns one server, or NotFound.
func (s *Store) Server(ctx context.Context, id string) (*Server, error) {
	srv := new(Server)
	err := s.get(ctx, s.db, srv, notFound(id), `SELECT * FROM servers WHERE id = ?`, id)
	return srv, err
}

// MarkDeleting gives a server the task to be deleted, in a new generation, whatever it was doing:
// deletion wins. It is idempotent. NotFound.
func (s *Store) MarkDeleting(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		// First, as whoever runs an operation locks it before the server.
		if _, err := db.Exec(ctx, tx, `UPDATE operations SET fence = fence WHERE active = ?`, id); err != nil {
			return err
		}
		n, err := db.Exec(ctx, tx, `UPDATE servers SET task_state = ?, generation = generation + 1, task_since = ?, updated_at = ?
			WHERE id = ? AND (task_state IS NULL OR task_state <> ?)`, Deleting, now, now, id, Deleting)
		if err != nil {
			return err
		}
		if n == 1 {
			_, err := operation.Begin(ctx, s.ops, Delete, id, &struct{}{})
			return err
		}
		var there int
		if err := tx.GetContext(ctx, &there, `SELECT COUNT(*) FROM servers WHERE id = ?`, id); err != nil {
			return db.Error(err)
		}
		if there == 0 {
			return notFound(id)
		}
		return nil
	})
}

// Look returns a server, and for how long it has had its task. NotFound.
func (s *Store) Look(ctx context.Context, id string) (*Server, time.Duration, error) {
	row := struct {
		Server

		Now time.Time `db:"now"`
	}{}
	err := s.get(ctx, s.db, &row, notFound(id), `SELECT servers.*, UTC_TIMESTAMP(6) AS now FROM servers WHERE id = ?`, id)
	return &row.Server, row.Now.Sub(row.TaskSince), err
}

// Place ends the search for a host: the server is now to be built on host, in a
// new generation, which it returns. ErrStale: somebody else has placed it, or it is being
// deleted.
func (s *Store) Place(ctx context.Context, srv *Server, host string) (generation int64, err error) {
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET host = ?, task_state = ?, generation = generation + 1, attempts = attempts + 1,
			task_since = ?, updated_at = ? WHERE id = ? AND generation = ? AND task_state = ?`,
			host, Spawning, now, now, srv.ID, srv.Generation, Scheduling)
	})
	return srv.Generation + 1, err
}

// Current returns nil if the attempt is the one the server is to have, else
// ErrStale.
func (s *Store) Current(ctx context.Context, a compute.AttemptRequest) error {
	var n int64
	err := s.db.GetContext(ctx, &n, `SELECT COUNT(*) FROM servers JOIN operations ON operations.active = servers.id AND operations.state = ?
		WHERE servers.id = ? AND host = ? AND (generation = ? OR ?) AND task_state = ?`,
		operation.Running, a.ServerID, a.Host, a.Generation, a.Task == Deleting && a.Generation == 0, cmp.Or(a.Task, Spawning))
	if err == nil && n == 0 {
		return compute.ErrStale
	}
	return db.Error(err)
}

// Holds is Current in a transaction, in which it keeps the attempt what it is.
func (s *Store) Holds(ctx context.Context, a compute.AttemptRequest) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET generation = generation WHERE id = ? AND host = ? AND generation = ? AND task_state = ?`,
			a.ServerID, a.Host, a.Generation, a.Task)
	})
}

// Ended returns nil if the attempt was the server's last one and has ended, so that a
// worker whose reply was lost can report again, else ErrStale.
func (s *Store) Ended(ctx context.Context, a compute.AttemptRequest) error {
	var n int64
	err := s.db.GetContext(ctx, &n, `SELECT COUNT(*) FROM servers WHERE id = ? AND host = ? AND generation = ? AND task_state IS NULL AND (? OR vm_state = ?)`,
		a.ServerID, a.Host, a.Generation, a.Task != "", Active)
	if err == nil && n == 0 {
		return compute.ErrStale
	}
	return db.Error(err)
}

// Activate ends a successful attempt. ErrStale.
func (s *Store) Activate(ctx context.Context, a compute.AttemptRequest) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET vm_state = ?, task_state = NULL, launched_at = ?, updated_at = ?
			WHERE id = ? AND host = ? AND generation = ? AND task_state = ?`,
			Active, now, now, a.ServerID, a.Host, a.Generation, Spawning)
	})
}

// Act gives a server that has no task the task of an action, in a new generation, and its
// operation. NotFound; Conflict, with Nova's words: its state does not allow the action.
func (s *Store) Act(ctx context.Context, id string, a compute.Action) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		if _, err := s.begin(ctx, tx, now, id, a); err != nil {
			return err
		}
		_, err := operation.Begin(ctx, s.ops, Kinds[a], id, &ActInput{})
		return err
	})
}

// Repeat gives a server the task of an operation that is to be done again, after it has
// failed. Errors as of what began it; Precondition: it was built meanwhile.
func (s *Store) Repeat(ctx context.Context, id string, a compute.Action, in *ActInput) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch {
		case a == "":
			missing := fault.New(fault.Precondition, "server %s is not one whose building has failed", id)
			err := db.ExecOne(ctx, tx, missing, `UPDATE servers SET vm_state = ?, task_state = ?, host = NULL, generation = generation + 1, attempts = 0, tried = '[]',
				fault_for_users = '', fault_message = '', task_since = ?, updated_at = ? WHERE id = ? AND vm_state = ? AND launched_at IS NULL AND task_state IS NULL`,
				Building, Scheduling, now, now, id, Error)
			if err != nil {
				return err
			}
			return s.release(ctx, tx, id)
		case in.Resize != nil:
			return s.beginResize(ctx, tx, now, id, *in.Resize)
		default:
			_, err := s.begin(ctx, tx, now, id, a)
			return err
		}
	})
}

// RepeatDelete is Repeat for a deletion. That there is no such server is no error.
func (s *Store) RepeatDelete(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		_, err := db.Exec(ctx, tx, `UPDATE servers SET task_state = ?, generation = generation + 1, task_since = ?, updated_at = ? WHERE id = ?`, Deleting, now, now, id)
		return err
	})
}

func (s *Store) begin(ctx context.Context, tx *sqlx.Tx, now time.Time, id string, a compute.Action) (*Server, error) {
	d, known := actions[a]
	if !known {
		return nil, fault.New(fault.Unimplemented, "there is no action %q", a)
	}
	query, args, err := sqlx.In(`UPDATE servers SET task_state = ?, generation = generation + 1, task_since = ?, updated_at = ?
		WHERE id = ? AND task_state IS NULL AND host IS NOT NULL AND vm_state IN (?)`, d.task, now, now, id, d.from)
	if err != nil {
		return nil, err
	}
	n, err := db.Exec(ctx, tx, query, args...)
	if err != nil {
		return nil, err
	}
	srv := new(Server)
	if err := s.get(ctx, tx, srv, notFound(id), `SELECT * FROM servers WHERE id = ?`, id); err != nil || n == 1 {
		return srv, err
	}
	if srv.TaskState != nil {
		return nil, fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in task_state %s", d.name, id, srv.Task())
	}
	return nil, fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in vm_state %s", d.name, id, srv.VMState)
}

// Reschedule ends a failed attempt: the claim is released, the host is noted as
// tried, and the server waits for another one. ErrStale.
func (s *Store) Reschedule(ctx context.Context, a compute.AttemptRequest, why string) (*Server, error) {
	srv := new(Server)
	err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		err := db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET task_state = ?, host = NULL, updated_at = ?
			WHERE id = ? AND host = ? AND generation = ? AND task_state = ?`,
			Scheduling, now, a.ServerID, a.Host, a.Generation, Spawning)
		if err != nil {
			return err
		}
		*srv = Server{}
		if err := tx.GetContext(ctx, srv, `SELECT * FROM servers WHERE id = ?`, a.ServerID); err != nil {
			return db.Error(err)
		}
		srv.Tried.V = append(srv.Tried.V, a.Host)
		srv.FaultDetails = db.Cut(why, maxFault)
		if _, err := db.Exec(ctx, tx, `UPDATE servers SET tried = ?, fault_message = ? WHERE id = ?`, srv.Tried, srv.FaultDetails, srv.ID); err != nil {
			return err
		}
		return s.release(ctx, tx, srv.ID)
	})
	return srv, err
}

// Fail gives up: the server is in ERROR, with a fault, and has no task. The message is for
// its project, details are for administrators. If it is on no host its claim is released.
// Nothing happens if it has no task, or there is no such server.
func (s *Store) Fail(ctx context.Context, id, message, details string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		n, err := db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, task_state = NULL, fault_code = 500, fault_for_users = ?, fault_message = ?, fault_at = ?,
			updated_at = ? WHERE id = ? AND task_state IS NOT NULL`, Error, db.Cut(message, maxMessage), db.Cut(details, maxFault), now, now, id)
		if err != nil || n == 0 {
			return err
		}
		var host *string
		if err := tx.GetContext(ctx, &host, `SELECT host FROM servers WHERE id = ?`, id); err != nil || host != nil {
			return db.Error(err)
		}
		return s.release(ctx, tx, id)
	})
}

// RemoveFrom is Remove for the report of a host. ErrStale: the server is deleted, but on another
// host, or in another generation.
func (s *Store) RemoveFrom(ctx context.Context, a compute.AttemptRequest) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		err := db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET generation = generation WHERE id = ? AND host = ? AND (generation = ? OR ?) AND task_state = ?`,
			a.ServerID, a.Host, a.Generation, a.Generation == 0, Deleting)
		if err != nil {
			return err
		}
		return s.Remove(ctx, a.ServerID)
	})
}

// Remove ends a deletion: the server and its claim are gone. Once more is no
// error. Precondition: the server is not being deleted.
func (s *Store) Remove(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		n, err := db.Exec(ctx, tx, `DELETE FROM servers WHERE id = ? AND task_state = ?`, id, Deleting)
		if err != nil {
			return err
		}
		if n == 0 {
			var there int
			if err := tx.GetContext(ctx, &there, `SELECT COUNT(*) FROM servers WHERE id = ?`, id); err != nil {
				return db.Error(err)
			}
			if there > 0 {
				return fault.New(fault.Precondition, "server %s is not being deleted", id)
			}
		}
		return s.release(ctx, tx, id)
	})
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
