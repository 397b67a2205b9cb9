// Package operation makes sure that accepted work ends, even if any process dies meanwhile. An operation is a row in the component's
// database. The row is written in the transaction of the change to which the operation belongs. A runner acquires the operation's lease,
// runs its steps one after another, and marks each step that is done. If the runner's process dies, another process continues with the next
// step. Every operation ends: it succeeds, fails, is canceled, or times out.
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
// The example Setup (setup_example_test.go) is a whole component. Its parts, in order:
//
//  1. Give [Migrations] to [db.Migrate], [db.Check] or [db.Service], before the component's own migrations. They create the tables.
//  2. Make one [Store] for each process with [NewStore], and one [Runner] with [NewRunner]. Host is the process's name.
//  3. Call [Handle] for each kind, and then [OnEnd] for each kind whose end changes data of the component. Both panic if they are
//     called in another order, or twice for one kind.
//  4. Add the Runner to the App after the database: its Start begins to run operations, and polls for operations that other processes
//     have left. A process without a started Runner can still call [Begin].
//  5. A process that only reports, with [Runner.EndStep], needs a Runner with the same kinds, because a report calls Reported and the
//     function of OnEnd. Do not start that Runner.
//
// # Upgrades
//
// Processes of two releases may run side by side, and an upgrade may be reverted. A runner runs an operation only if it knows the operation
// in full: the kind, the version of the kind, and each step, see [Step]. If a release does not know a field of the data, the field stays, see
// [Kind].
//
// An operation is unknown if no running process knows it in full. It waits, and after the length of a lease, [Store.List] and [Stats] show
// it. At its deadline it ends as TimedOut, and its error says that it is not compensated. When a process starts whose runner knows the
// operation, this runner undoes the steps and calls the function of [OnEnd]. Until then the resource is not free, because half of the work
// may be done: other operations get ErrBusy. But an operation that preempts ends the unknown operation, and [Store.Cancel] frees the
// resource without undoing.
//
// # Idempotence
//
// A step runs at least once, so Do must be idempotent. The changes that DoTx, Reported and the function of OnEnd make in their
// transaction take effect exactly once, because this transaction also marks the step or the end.
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
// Times come from the database's clock; the process measures only durations. A deadline runs only while a runner could have received a
// report. If no runner has looked at an operation for longer than a lease after the operation was due, the next runner that looks at it
// postpones the deadlines of the operation and of its step by this time. The new deadlines are at least one lease from now. The deadline of
// an unknown operation is not postponed. While an operation is not due, no runner looks at it, but this time counts towards the deadlines.
// Therefore a step with a Limit returns [WaitFor] with a delay that is short compared with the Limit.
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

// Migrations creates the tables, on MySQL, MariaDB and SQLite. A component gives them to [db.Migrate] and [db.Check], before its own. A
// component may join the view operation_current. The view has one row for each operation that has not ended or is not compensated, with the
// columns resource, id, kind, state and step. The column step has the name of the step; it is empty until a runner has seen the operation.
var Migrations = db.Embedded("operation", migrations)

//go:embed migrations/*.sql
var migrations embed.FS

// State is the state of an operation.
type State string

// The states. An operation that is Running or Undoing has not ended.
const (
	Running   State = "running"
	Undoing   State = "undoing" // its steps are being undone, the last one first
	Succeeded State = "succeeded"
	Failed    State = "failed"
	TimedOut  State = "timed_out" // if no running process knew the operation, it is undone later, see Operation.NotCompensated
	Canceled  State = "canceled"
)

// Ended reports whether an operation in this state has ended.
func (s State) Ended() bool { return s != Running && s != Undoing }

// ErrBusy means that a resource has an operation that has not ended.
var ErrBusy = fault.Sentinel(fault.Conflict, "OperationInProgress", "the resource has an operation that has not ended")

// ErrUnknownKind means that this process does not know the operation in full, see [Step], because another release has begun the operation.
var ErrUnknownKind = fault.Sentinel(fault.Unavailable, "UnknownKind", "a process of the release that runs the operation must take the report")

// ErrStale means that the work of a token is not wanted, or no longer wanted: the operation has ended, is being undone, or is at another
// step.
var ErrStale = fault.Sentinel(fault.Conflict, "StaleStep", "the step is not the operation's current one")

// Kind is a kind of operation, with the type D of the data that its steps share. The code that begins operations and the code that
// runs them use the same value. D must have a JSON form. Name is required. It is stored, so it must not change.
//
// Another release may have begun an operation, with fields in D that this release does not know. When a step changes the data, these fields
// stay, in D and in the structs, maps and slices in D. A step removes such a field only if it removes the struct, the slice element or the
// map key with the field, or if it leaves the struct empty and the struct has the tag omitzero. If a step changes the number of elements of a
// slice, only the elements that the step has not changed keep their unknown fields. If the number stays the same, a changed element keeps the
// unknown fields of the earlier element at its position. A type with its own method UnmarshalJSON keeps only what it encodes itself.
type Kind[D any] struct {
	Name string
	// Version is the version of the kind's steps. A release that adds a step, or changes what a step means, has a higher Version. The
	// version is stored with each operation, and a runner with a lower version does not run the operation, see [Step]. Default 0.
	Version int
	// Timeout is how long an operation may take in total. Undoing the operation may then take the same time once more. Default 10 minutes.
	Timeout time.Duration
	// Priority orders operations that wait for a slot: the highest first. Operations with a priority above 0 have additional slots of a
	// runner, which operations of priority 0 cannot occupy. Default 0.
	Priority int
	// Preempts means that an operation of this kind replaces an operation of another kind on the same resource: [Begin] ends the other
	// operation as Canceled, without undoing it and without calling its [OnEnd]. Set Preempts for deletions, which clean up after all
	// other operations.
	Preempts bool
	// PreemptsSame means that the operation also ends one of its own kind in this way.
	PreemptsSame bool
}

// Store has the operations of a component. It is safe for concurrent use. Every method may fail with Unavailable while the database cannot
// be reached.
type Store struct{ db *sqlx.DB }

// NewStore returns the operations in d. The database must have the tables of [Migrations]. The caller closes d.
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

// Begin adds an operation on a resource, and returns its ID. It writes in the transaction of ctx if ctx has one (see [db.Tx]), otherwise in
// a transaction of its own. A runner that knows the kind finds the operation at its next poll, or at once after [Runner.Notify]. The
// operation stores the request of ctx, and its steps have this request in their contexts. An operation with an empty resource excludes no
// other operation. Errors:
//
//   - ErrBusy: the resource has an operation that has not ended, and the new operation does not preempt it. That operation may end at this moment: [Store.Current]
//     tells, and then Begin may be called again.
//   - Invalid: the data have no JSON form or more than 65,535 bytes, the resource has more than 255 bytes, or the version is negative.
func Begin[D any](ctx context.Context, s *Store, k Kind[D], resource string, data *D) (string, error) {
	r, err := newRow(k, resource, data)
	if err != nil {
		return "", err
	}
	return s.begin(ctx, r, preemption{k.Preempts, k.PreemptsSame}, 0)
}

// Record adds an operation that has ended already. So the list of a resource's operations also shows a change that was made at once,
// without steps. The operation has succeeded if failed is nil; otherwise it has failed with this error. Record writes in the transaction of ctx if
// ctx has one, like Begin, and returns the ID. The parameter took is the time that the change has taken: the operation was
// created this time ago. If the kind preempts, Record ends an open operation on the resource, as Begin does;
// otherwise the open operation stays. [OnEnd] is not called, and [Store.Retry] refuses the recorded operation. Errors: those of Begin, but
// ErrBusy only if the kind preempts, and not the open operation.
func Record[D any](ctx context.Context, s *Store, k Kind[D], resource string, data *D, took time.Duration, failed error) (string, error) {
	r, err := newRow(k, resource, data)
	if err != nil {
		return "", err
	}
	r.State, r.Steps = Succeeded, noSteps
	if failed != nil {
		r.State = Failed
		r.setError(failed)
	}
	return s.begin(ctx, r, preemption{k.Preempts, k.PreemptsSame}, max(took, 0))
}

// noSteps is the stored form of the steps of an operation of [Record].
const noSteps = "[]"

// newRow returns the row of a new operation. Errors: Invalid.
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

// preemption says which operations a new one ends: those of other kinds, and those of its own kind.
type preemption struct{ others, same bool }

// ends reports whether a new operation ends the other one.
func (p preemption) ends(r, other *row) bool {
	if r.Kind == other.Kind {
		return p.same
	}
	return p.others
}

// begin adds an operation that was created a time ago.
func (s *Store) begin(ctx context.Context, r row, p preemption, ago time.Duration) (string, error) {
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
		if p != (preemption{}) && r.Resource != "" {
			if err := s.preempt(ctx, tx, &r, p, now); err != nil {
				return err
			}
		}
		r.CreatedAt, r.UpdatedAt, r.DueAt, r.DeadlineAt = now.Add(-ago), now, &now, now.Add(r.timeout())
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

// insertError returns ErrBusy if an insertion has failed because the resource has another operation: the column active is unique. It
// returns any other error as it is.
func (s *Store) insertError(ctx context.Context, tx *sqlx.Tx, r *row, err error) error {
	if !errors.Is(err, fault.Conflict) {
		return err
	}
	// FOR UPDATE reads the data that are committed now, and not those at the start of the transaction.
	switch other, readErr := s.readActive(ctx, tx, r.Resource, "FOR UPDATE"); {
	case readErr != nil: // such as a deadlock, after which the transaction is repeated
		return readErr
	case other != nil:
		return busyError(r, other)
	}
	return fault.New(fault.Conflict, "operation %s on %s: the other operation has just ended: %w", r.Kind, r.Resource, ErrBusy)
}

// preempt ends the open operation on the resource of the new operation r, if there is one. Errors: ErrBusy, if r does not end the open operation.
func (s *Store) preempt(ctx context.Context, tx *sqlx.Tx, r *row, p preemption, now time.Time) error {
	other, err := s.readActive(ctx, tx, r.Resource, "FOR UPDATE")
	switch {
	case other == nil:
		return err
	case !p.ends(r, other):
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

// Current returns the operation on a resource that has not ended, or is not compensated. Errors: NotFound, if the resource has no such
// operation. If ctx is that of a [db.Tx], Current reads in the transaction.
func (s *Store) Current(ctx context.Context, resource string) (*Op, error) {
	var op *Op
	err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		op, err = s.current(ctx, tx, resource, "")
		return err
	})
	return op, err
}

// Lock does what [Store.Current] does, in a transaction, and locks the operation until the end of the transaction. A transaction that also
// writes rows of the component must call Lock first, because a runner locks in the same order. Errors: NotFound, if the resource has no
// open operation; the transaction can continue.
func (s *Store) Lock(ctx context.Context, tx *sqlx.Tx, resource string) (*Op, error) {
	return s.current(ctx, tx, resource, "FOR UPDATE")
}

// DataOf returns the data of an operation, with the changes of its steps. For example, a component needs the data of an operation that it
// is about to preempt. The caller owns the result. Errors: Invalid, if the data cannot be read as D.
func DataOf[D any](op *Op) (*D, error) {
	data := new(D)
	if err := json.Unmarshal(op.data, data); err != nil {
		return nil, fault.New(fault.Invalid, "data of operation %s: %w", op.ID, err)
	}
	return data, nil
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

// readActive returns the operation on a resource that has not ended or is not compensated. It returns nil if the resource has no such operation.
func (s *Store) readActive(ctx context.Context, q sqlx.QueryerContext, resource, lock string) (*row, error) {
	r := new(row)
	err := db.Error(sqlx.GetContext(ctx, q, r, selectRows+`WHERE active = ? `+lock, resource))
	if errors.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // see the doc
	}
	return r, err
}

// Wanted returns nil if the work of a token is still wanted from the process with this name: the operation has not ended, its current step
// has the token, and the step does not wait for another peer. Otherwise Wanted returns ErrStale. A process calls Wanted before it begins
// the work, because the message may be old.
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

// marshalData returns data as JSON, or an error if the JSON does not fit into the column.
func marshalData(data any) ([]byte, error) {
	raw, err := json.Marshal(data)
	if err == nil {
		err = checkSize(raw)
	}
	return raw, err
}

// checkSize returns an error if data do not fit into the column.
func checkSize(raw json.RawMessage) error {
	if len(raw) > maxData {
		return fmt.Errorf("data have %d bytes, at most %d fit", len(raw), maxData)
	}
	return nil
}

// checkText returns Invalid if a text cannot be stored unchanged. The parameter what names the text in the error.
func checkText(what, text string, most int) error {
	if len(text) > most || !utf8.ValidString(text) {
		return fault.New(fault.Invalid, "%s %q has more than %d bytes, or is not UTF-8", what, db.Cut(text, most), most)
	}
	return nil
}
