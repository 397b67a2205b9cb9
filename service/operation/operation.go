// Package operation makes sure that accepted work ends, even if any process dies meanwhile. An operation is a row in the
// component's database, written in the transaction of the change to which it belongs. A runner acquires the operation's lease,
// runs its steps one after another, and marks each step that is done. If the runner's process dies, another process continues with
// the next step. Every operation ends: it succeeds, fails, is canceled, or times out.
//
//	type CreateData struct{ SizeGiB int; Host string }
//
//	var Create = operation.Kind[CreateData]{Name: "volume.create", Timeout: 10 * time.Minute}
//
//	// The API: the change and the operation in one transaction, then a notification.
//	err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//		... // INSERT the volume
//		id, err = operation.Begin(ctx, ops, Create, volume.ID, &CreateData{SizeGiB: 10})
//		return err
//	})
//	runner.Notify(id) // or a cast to a process that has a runner
//
//	// The conductor: the steps, and how to undo them.
//	operation.Handle(runner, Create,
//		operation.Step[CreateData]{Name: "schedule", Do: c.schedule, Undo: c.release},
//		operation.Step[CreateData]{Name: "build", Do: c.tellHost, Reported: c.built, Limit: 5 * time.Minute})
//	operation.OnEnd(runner, Create, c.ended) // the volume is available, or in error
//	app.Add("operations", runner)
//
// # Set-up
//
// The example Setup (setup_example_test.go) is a whole component. In order:
//
//  1. Give [Migrations] to [db.Migrate], [db.Check] or [db.Service], before the component's own migrations. They create the tables.
//  2. Make one [Store] for each process with [NewStore], and one [Runner] with [NewRunner]. Host is the process's name.
//  3. Call [Handle] for each kind, and then [OnEnd] for each kind whose end changes data of the component. Both panic if they are
//     called in another order, or twice for one kind.
//  4. Add the Runner to the App after the database: its Start begins to run operations, and polls for those that other processes have
//     left. A process without a started Runner can still call [Begin].
//  5. A process that only reports, with [Runner.EndStep], needs a Runner with the same kinds, because the report runs Reported and the
//     function of OnEnd. It does not start that Runner.
//
// # Upgrades
//
// Processes of two releases may run side by side, and one release may be replaced by the other and back. A runner runs an operation only if
// it knows the operation in full: the kind, the version of the kind, and each step, see [Step]. Fields of the data that a release does not
// know stay, see [Kind]. An operation that no running process knows is unknown: it waits. After the length of a lease, [Store.List] and
// [Stats] show it. At its deadline it ends as TimedOut, and its error says that it is not compensated. When a process runs again whose
// runner knows the operation, the runner undoes the steps of the operation and calls the function of [OnEnd]. Until then the resource is not
// free, because half of the work may be done: other operations get ErrBusy. But an operation that preempts ends the unknown operation, and
// [Store.Cancel] frees the resource without undoing.
//
// # Idempotence
//
// A step runs at least once, so Do must be idempotent. DoTx, Reported and the function of OnEnd take effect exactly once, because
// they run in the transaction that marks the step or the end.
//
// # Steps that another process does
//
// Do sends the work to the other process, with [Op.Token], and returns [WaitFor]. The other process uses the token to ask whether the
// work is still wanted ([Store.Wanted]), does the work, and reports the result ([Runner.EndStep]). It usually does both through an RPC
// server beside the runner. The report ends the step, in one transaction with what the component writes. If the message is lost, Do
// is called again after the delay, or when [Runner.Signal] names the process.
//
// # Time
//
// Times come from the database's clock; the process measures only durations. A deadline runs only while a runner could have received
// a report: if no runner has looked at an operation for longer than a lease after it was due, the deadlines of the operation and of
// its step move by the time that the operation has waited, and at least a lease is left. The deadline of an operation that no running
// process knows does not move. While an
// operation is not due, no runner looks at it, so such time always counts. Therefore a step with a Limit returns [WaitFor] with a delay
// that is short compared with the Limit.
package operation

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Migrations creates the tables, on MySQL, MariaDB and SQLite. A component gives them to [db.Migrate] and [db.Check], before its own.
// The view operation_current is for components, which may join it: one row for each operation that has not ended, with the columns
// resource, id, kind, state, and step, the name of the step, which is empty until a runner has seen the operation. An operation that is
// not compensated also has a row.
var Migrations = db.Embedded("operation", migrations)

//go:embed migrations/*.sql
var migrations embed.FS

// State is the state of an operation.
type State string

// The states. An operation that is Running or Undoing has not ended.
const (
	Running   State = "running"
	Undoing   State = "undoing" // its steps are undone, the last one first
	Succeeded State = "succeeded"
	Failed    State = "failed"
	TimedOut  State = "timed_out" // is undone later if no running process knew the operation, see Operation.NotCompensated
	Canceled  State = "canceled"
)

// Ended reports whether an operation in this state has ended.
func (s State) Ended() bool { return s != Running && s != Undoing }

// ErrBusy means that a resource has an operation that has not ended.
var ErrBusy = fault.Sentinel(fault.Conflict, "OperationInProgress", "the resource has an operation that has not ended")

// ErrUnknownKind means that this process does not know the kind of an operation, or not all its steps, because another release has begun it.
var ErrUnknownKind = fault.Sentinel(fault.Unavailable, "UnknownKind", "another process has to take the report")

// ErrStale means that the work of a token is not wanted, or not wanted any more: the operation has ended, is being undone, or is at
// another step.
var ErrStale = fault.Sentinel(fault.Conflict, "StaleStep", "the step is not the operation's current one")

// Kind is a kind of operation, with the type D of the data that its steps share. The code that begins operations and the code that
// runs them use the same value. D must have a JSON form. Name is required. It is stored, so it must not change.
//
// Another release may have begun an operation, with fields in D that this release does not know. When a step changes the data,
// these fields stay, in D and in the structs, maps and slices in it. They go with the struct, the element or the key of a map that a step
// removes, and with a struct that is empty and has the tag omitzero. In a slice with another number of elements, an element keeps its unknown fields
// if the step has not changed it. In a slice with the same number, a changed element keeps those of its position. A type with a method
// UnmarshalJSON of its own keeps only what it encodes itself.
type Kind[D any] struct {
	Name string
	// Version is the version of the kind's steps. A release that adds a step, or changes what a step means, has a higher Version. The
	// version is stored with each operation, and a runner with a lower version does not run the operation, see [Step]. Default 0.
	Version int
	// Timeout is how long an operation may take in total, and how long undoing it may then take. Default 10 minutes.
	Timeout time.Duration
	// Priority orders operations that wait for a slot: the highest first. An operation with a priority above 0 also gets a slot
	// when operations of priority 0 occupy all other slots of a runner. Default 0.
	Priority int
	// Preempts means that the operation ends an operation of another kind on its resource, as Canceled, without undoing it and
	// without its [OnEnd]. It is for deletions, which clean up after all other operations. It does not end an operation of its own kind.
	Preempts bool
}

// Store is the operations of a component. It is safe for concurrent use. Every method may fail with Unavailable while the
// database cannot be reached.
type Store struct{ db *sqlx.DB }

// NewStore returns the operations in d, which has the tables of [Migrations] and stays the caller's.
func NewStore(d *sqlx.DB) *Store { return &Store{d} }

const defaultTimeout = 10 * time.Minute

// Limits of the tables. MySQL refuses longer values and SQLite does not, so they are checked here.
const (
	maxName  = 64        // bytes of the name of a kind or of a step
	maxID    = 255       // bytes of a resource or a peer
	maxData  = 1<<16 - 1 // bytes of data
	maxError = 8 << 10   // bytes of the text of an error; the rest is cut
	maxSteps = 4000      // bytes of the names of the steps of a kind, as a JSON array
)

// Begin adds an operation on a resource, in the transaction of ctx if it has one (see [db.Tx]), otherwise in one of its
// own, and returns its ID. A runner that knows the kind finds the operation at its next poll, or at once after
// [Runner.Notify]. The context's request is the operation's: its steps have it in their contexts. An operation with an
// empty resource excludes no other. Errors:
//
//   - ErrBusy: the resource has an operation that has not ended, and the new operation does not preempt it or is of the
//     same kind.
//   - Invalid: the data have no JSON form or more than 65,535 bytes, the resource has more than 255 bytes, or the version is negative.
func Begin[D any](ctx context.Context, s *Store, k Kind[D], resource string, data *D) (string, error) {
	r, err := newRow(k, resource, data)
	if err != nil {
		return "", err
	}
	return s.begin(ctx, r, k.Preempts)
}

// Record adds an operation that has ended already, so that the operations of a resource list a change that was made at once, without steps.
// It has succeeded if failed is nil; otherwise it has failed with this error. Record writes in the transaction of ctx if it has one, like
// Begin, and returns the ID. If the kind preempts, it ends another operation on the resource, as Begin does; otherwise it excludes no
// other. [OnEnd] is not called, and [Store.Retry] refuses the operation. Errors: those of Begin, without ErrBusy.
func Record[D any](ctx context.Context, s *Store, k Kind[D], resource string, data *D, failed error) (string, error) {
	r, err := newRow(k, resource, data)
	if err != nil {
		return "", err
	}
	r.State, r.Steps = Succeeded, noSteps
	if failed != nil {
		r.State = Failed
		r.setError(failed)
	}
	return s.begin(ctx, r, k.Preempts)
}

// noSteps are the steps of an operation of [Record], as they are stored.
const noSteps = "[]"

// newRow returns the row of an operation that begins. Errors: Invalid.
func newRow[D any](k Kind[D], resource string, data *D) (row, error) {
	raw, err := marshalData(data)
	if err == nil && k.Version < 0 {
		err = fmt.Errorf("the version %d is negative", k.Version)
	}
	if err == nil {
		err = errors.Join(checkText("kind", k.Name, maxName), checkText("resource", resource, maxID))
	}
	if err != nil {
		return row{}, fault.New(fault.Invalid, "operation %s: %w", k.Name, err)
	}
	if k.Timeout <= 0 {
		k.Timeout = defaultTimeout
	}
	return row{
		Kind: k.Name, KindVersion: k.Version, Resource: resource, Priority: k.Priority, Input: string(raw), Data: noData, TimeoutMS: k.Timeout.Milliseconds(),
		State: Running,
	}, nil
}

func (s *Store) begin(ctx context.Context, r row, preempts bool) (string, error) {
	req := reqctx.From(ctx)
	r.ID, r.Reported = uuid.NewString(), -1
	r.RequestID, r.GlobalRequestID, r.Traceparent = db.Cut(req.ID, maxName), db.Cut(req.GlobalID, maxName), db.Cut(req.Traceparent, maxName)
	r.ProjectID, r.UserID = req.ProjectID, req.UserID
	if err := errors.Join(checkText("project", r.ProjectID, maxID), checkText("user", r.UserID, maxID)); err != nil {
		return "", fault.New(fault.Invalid, "operation %s: %w", r.Kind, err)
	}
	r.Active = &r.Resource
	if r.Resource == "" {
		r.Active = &r.ID
	}
	err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		if preempts && r.Resource != "" {
			if err := s.preempt(ctx, tx, &r, now); err != nil {
				return err
			}
		}
		r.CreatedAt, r.UpdatedAt, r.DueAt, r.DeadlineAt = now, now, &now, now.Add(r.timeout())
		if r.State.Ended() { // recorded
			r.markEnded(r.State, now)
		}
		_, err = tx.NamedExecContext(ctx, `INSERT INTO operations (id, kind, kind_version, steps, resource, active, priority, state, outcome, step, step_name, entry, reported, attempts, waits,
			events, input, data, error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, global_request_id, traceparent, project_id, user_id, created_at, updated_at, ended_at)
			VALUES (:id, :kind, :kind_version, :steps, :resource, :active, :priority, :state, :outcome, :step, :step_name, :entry, :reported, :attempts, :waits,
			:events, :input, :data, :error_code, :error, :fence, :owner, :due_at, :deadline_at, :timeout_ms, :request_id, :global_request_id, :traceparent, :project_id, :user_id, :created_at, :updated_at, :ended_at)`, r)
		return s.insertError(ctx, tx, &r, db.Error(err))
	})
	if err != nil {
		return "", err
	}
	return r.ID, nil
}

// insertError returns ErrBusy for the error of an insertion that has met another operation, because the column active is
// unique.
func (s *Store) insertError(ctx context.Context, tx *sqlx.Tx, r *row, err error) error {
	if !errors.Is(err, fault.Conflict) {
		return err
	}
	// FOR UPDATE reads what is committed now, not as the transaction began.
	if other, readErr := s.readActive(ctx, tx, r.Resource, "FOR UPDATE"); readErr == nil && other != nil {
		return busyError(r, other)
	}
	return err
}

// preempt ends the operation that a new one replaces. ErrBusy: both are of the same kind.
func (s *Store) preempt(ctx context.Context, tx *sqlx.Tx, r *row, now time.Time) error {
	other, err := s.readActive(ctx, tx, r.Resource, "FOR UPDATE")
	switch {
	case other == nil:
		return err
	case other.Kind == r.Kind:
		return busyError(r, other)
	}
	next := *other
	next.setError(fault.New(fault.Canceled, "preempted by %s %s", r.Kind, r.ID))
	next.markEnded(Canceled, now)
	next.Fence, next.UpdatedAt = next.Fence+1, now
	_, err = saveRow(ctx, tx, other, &next)
	return err
}

func busyError(r, other *row) error {
	return fault.New(fault.Conflict, "operation %s on %s: %s %s: %w", r.Kind, r.Resource, other.Kind, other.ID, ErrBusy)
}

// Current returns the operation on a resource that has not ended, or is not compensated. Errors: NotFound, if it has none. With the
// context of [db.Tx] it reads in that transaction.
func (s *Store) Current(ctx context.Context, resource string) (*Op, error) {
	var op *Op
	err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		op, err = s.current(ctx, tx, resource, "")
		return err
	})
	return op, err
}

// Lock is [Store.Current] in a transaction. It locks the operation until the end of the transaction. A transaction that also writes
// rows of the component must call Lock first, because a runner locks in the same order. Errors: NotFound, if all operations of the
// resource have ended; the transaction can continue.
func (s *Store) Lock(ctx context.Context, tx *sqlx.Tx, resource string) (*Op, error) {
	return s.current(ctx, tx, resource, "FOR UPDATE")
}

func (s *Store) current(ctx context.Context, tx *sqlx.Tx, resource, lock string) (*Op, error) {
	r, err := s.readActive(ctx, tx, resource, lock)
	if err == nil && r == nil {
		err = fault.New(fault.NotFound, "%s has no open operation", resource)
	}
	if err != nil {
		return nil, err
	}
	return r.op(), nil
}

// readActive returns the operation on a resource that has not ended, or nil.
func (s *Store) readActive(ctx context.Context, q sqlx.QueryerContext, resource, lock string) (*row, error) {
	r := new(row)
	err := db.Error(sqlx.GetContext(ctx, q, r, selectRows+`WHERE active = ? `+lock, resource))
	if errors.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // see the doc
	}
	return r, err
}

// Wanted returns nil if the work of a token is still wanted from the process with this name: the operation runs, its current step has
// the token, and the step does not wait for another peer. Otherwise it returns ErrStale. A process calls Wanted before it begins the
// work, because the message may be old.
func (s *Store) Wanted(ctx context.Context, token, by string) error {
	id, entry, ok := parseToken(token)
	var n int
	if ok {
		if err := s.db.GetContext(ctx, &n, `SELECT COUNT(*) FROM operations WHERE id = ? AND entry = ? AND state IN (?, ?) AND (peer IS NULL OR peer = ?)`, id, entry, Running, Undoing, db.Cut(by, maxID)); err != nil {
			return db.Error(err)
		}
	}
	if n == 0 {
		return ErrStale
	}
	return nil
}

// marshalData returns data as JSON, or an error if they do not fit.
func marshalData(data any) ([]byte, error) {
	raw, err := json.Marshal(data)
	if err == nil {
		err = checkSize(raw)
	}
	return raw, err
}

// checkSize reports whether data fit into the column.
func checkSize(raw json.RawMessage) error {
	if len(raw) > maxData {
		return fmt.Errorf("data have %d bytes, at most %d fit", len(raw), maxData)
	}
	return nil
}

// checkText reports Invalid if a text cannot be stored as it is.
func checkText(what, text string, most int) error {
	if len(text) > most || !utf8.ValidString(text) {
		return fault.New(fault.Invalid, "%s %q has more than %d bytes, or is not UTF-8", what, db.Cut(text, most), most)
	}
	return nil
}
