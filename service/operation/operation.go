// Package operation makes accepted work end, whoever dies on the way. An operation is a
// row in the component's database, written in the transaction of the change that it
// belongs to. Some process leases it, does its steps one after another, and writes down
// each step that is done; if that process dies another goes on from there. Every
// operation ends: it succeeds, fails, is cancelled, or runs out of its time.
//
//	var Create = operation.Kind[CreateInput]{Name: "volume.create", Timeout: 10 * time.Minute}
//
//	// The API: the change and the operation in one transaction, then a hint.
//	err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//		... // INSERT the volume
//		id, err = operation.Begin(ctx, ops, Create, volume.ID, &CreateInput{...})
//		return err
//	})
//	runner.Wake(id) // or a cast to the process that has the runner
//
//	// The conductor: what there is to do, and how to undo it.
//	operation.Handle(runner, Create,
//		operation.Step[CreateInput]{Name: "schedule", Do: c.schedule, Undo: c.release},
//		operation.Step[CreateInput]{Name: "build", Do: c.build, Undo: c.destroy},
//		operation.Step[CreateInput]{Name: "activate", DoTx: c.activate})
//	app.Add("operations", runner)
//
// A step is done at least once, so it has to be idempotent, except that DoTx is done
// exactly once, as it is one transaction with the note that it is done. A step that waits
// for another process returns [Again]; [Runner.Complete] ends it, in the transaction of the
// report. Times are those of the database's clock; only durations are measured here.
package operation

import (
	"context"
	_ "embed" // the schema
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Schema makes the tables, on MySQL, MariaDB and SQLite. It is a migration: a component
// copies it into a file among its own, for db.Migrate.
//
//go:embed schema.sql
var Schema string

// Schema2 is a later migration, which follows Schema.
//
//go:embed schema2.sql
var Schema2 string

// State is how far an operation is.
type State string

// The states. The first two are those of an operation that is not over.
const (
	Running   State = "running"
	Undoing   State = "undoing" // its steps are undone, the last one first
	Succeeded State = "succeeded"
	Failed    State = "failed"
	TimedOut  State = "timed_out"
	Canceled  State = "canceled"
)

// Over reports whether an operation in this state has ended.
func (s State) Over() bool { return s != Running && s != Undoing }

// ErrBusy means that a resource has an operation that is not over.
var ErrBusy = fault.Sentinel(fault.Conflict, "OperationInProgress", "the resource has an operation that is not over")

// Kind is a kind of operation, with the type of its input: one value for those who begin
// operations and those who run them. Name is required, and is stored: it does not change.
type Kind[In any] struct {
	Name string
	// Timeout is how long an operation may take in all, and how long undoing it may
	// then take. Default 10 minutes.
	Timeout time.Duration
	// Priority orders what waits: the higher first. An operation of a priority above 0
	// also finds a place when those of 0 fill a runner. Default 0.
	Priority int
	// Wins says that it does not wait for another operation on its resource, but ends
	// that one, as canceled and without undoing it: a deletion, which cleans up all
	// the same.
	Wins bool
}

// Store is the operations of a component. It is safe for concurrent use. Every method
// may fail with Unavailable while the database is away.
type Store struct{ db *sqlx.DB }

// NewStore returns the operations in d, which has the tables of [Schema] and stays the
// caller's.
func NewStore(d *sqlx.DB) *Store { return &Store{d} }

// Begin adds an operation on a resource, in the transaction of ctx if it has one (see
// db.Tx), else in one of its own, and returns its ID. The operation is found by whichever
// runner knows its kind, at its next look; [Runner.Wake] makes it at once. The context's
// request is the operation's: its steps have it in their contexts. With an empty resource
// it is alone with itself. Errors: ErrBusy if the resource has an operation that is not
// over and this one does not win; Invalid if there is no JSON for the input, or it has more than
// 65,535 bytes, or if the resource has more than 255.
func Begin[In any](ctx context.Context, s *Store, k Kind[In], resource string, in *In) (string, error) {
	raw, err := marshal(in)
	if err != nil {
		return "", fault.New(fault.Invalid, "operation %s: input: %w", k.Name, err)
	}
	if err := errors.Join(fits("kind", k.Name, maxName), fits("resource", resource, maxID)); err != nil {
		return "", fault.New(fault.Invalid, "operation %s: %w", k.Name, err)
	}
	if k.Timeout <= 0 {
		k.Timeout = defaultTimeout
	}
	return s.begin(ctx, row{
		Kind: k.Name, Resource: resource, Priority: k.Priority, Input: string(raw), Data: noData,
	}, k.Timeout, k.Wins)
}

const defaultTimeout = 10 * time.Minute

func (s *Store) begin(ctx context.Context, r row, timeout time.Duration, wins bool) (string, error) {
	who := reqctx.From(ctx)
	r.ID = uuid.NewString()
	r.State, r.RequestID, r.GlobalRequestID, r.Traceparent = Running, db.Cut(who.ID, maxName), db.Cut(who.GlobalID, maxName), db.Cut(who.Traceparent, maxName)
	r.ProjectID, r.UserID = who.ProjectID, who.UserID
	if err := errors.Join(fits("project", r.ProjectID, maxID), fits("user", r.UserID, maxID)); err != nil {
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
		var other []row
		if r.Resource != "" {
			if err := tx.SelectContext(ctx, &other, `SELECT * FROM operations WHERE active = ? FOR UPDATE`, r.Resource); err != nil {
				return db.Error(err)
			}
		}
		for i := range other {
			if !wins {
				return fault.New(fault.Conflict, "operation %s on %s: %s %s: %w", r.Kind, r.Resource, other[i].Kind, other[i].ID, ErrBusy)
			}
			why := fmt.Sprintf("%s %s takes its place", r.Kind, r.ID)
			if err := s.end(ctx, tx, &other[i], now, Canceled, fault.Canceled, why); err != nil {
				return err
			}
		}
		r.CreatedAt, r.UpdatedAt, r.DueAt, r.DeadlineAt, r.TimeoutMS = now, now, &now, now.Add(timeout), timeout.Milliseconds()
		_, err = tx.NamedExecContext(ctx, `INSERT INTO operations (id, kind, resource, active, priority, state, outcome, step, attempts, events, input, data,
			error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, global_request_id, traceparent, project_id, user_id, created_at, updated_at, ended_at)
			VALUES (:id, :kind, :resource, :active, :priority, :state, :outcome, :step, :attempts, :events, :input, :data,
			:error_code, :error, :fence, :owner, :due_at, :deadline_at, :timeout_ms, :request_id, :global_request_id, :traceparent, :project_id, :user_id, :created_at, :updated_at, :ended_at)`, r)
		return db.Error(err)
	})
	if err != nil {
		return "", err
	}
	return r.ID, nil
}

// end ends an operation that has been read FOR UPDATE.
func (s *Store) end(ctx context.Context, tx *sqlx.Tx, r *row, now time.Time, state State, code fault.Code, why string) error {
	_, err := exec(ctx, tx, `UPDATE operations SET state = ?, active = NULL, due_at = NULL, fence = fence + 1, error_code = ?, error = ?,
		updated_at = ?, ended_at = ? WHERE id = ?`, state, code.String(), db.Cut(why, maxError), now, now, r.ID)
	return err
}

func exec(ctx context.Context, q sqlx.ExecerContext, query string, args ...any) (int64, error) {
	res, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, db.Error(err)
	}
	n, err := res.RowsAffected()
	return n, db.Error(err)
}
