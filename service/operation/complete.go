package operation

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Complete says how a step ended that waits for another process to do it: it has returned
// [Again], and whoever did the work has reported. It is for any process that knows the
// kind, and takes part in the transaction of ctx, if that has one, so that the report and
// what follows from it are one change; after its end, call [Runner.Wake] if there are more
// steps. With err nil it is as if the step had returned nil: it is done, and after the
// last step the operation has succeeded. Else it is as if the step had returned err.
// Whoever runs the step at that moment stops. Errors: NotFound: the resource has no
// operation that is not over; Precondition: it is not at that step. Both mean that nobody
// waits for the news any more.
func (r *Runner) Complete(ctx context.Context, resource, step string, err error) error {
	return db.Tx(ctx, r.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		now, dbErr := db.Now(ctx, tx)
		if dbErr != nil {
			return dbErr
		}
		var list []row
		if dbErr := tx.SelectContext(ctx, &list, `SELECT * FROM operations WHERE active = ? FOR UPDATE`, resource); dbErr != nil {
			return db.Error(dbErr)
		}
		if len(list) == 0 {
			return fault.New(fault.NotFound, "%s has no operation that is not over", resource)
		}
		o := &list[0]
		k := r.kinds[o.Kind]
		if k == nil || o.State != Running || o.Step >= len(k.steps) || k.steps[o.Step].name != step {
			return fault.New(fault.Precondition, "operation %s %s on %s is not at step %s", o.Kind, o.ID, resource, step)
		}
		e := &Event{Step: step, Result: "done", Host: r.cfg.Host, Began: o.UpdatedAt}
		next := *o
		next.Owner, next.DueAt, next.UpdatedAt = "", &now, now
		next.Events++
		switch {
		case err == nil:
			k.done(&next, now)
		case passing(err):
			e.fail("retry", err)
			next.later(now)
		default:
			e.fail("failed", err)
			k.fail(&next, Failed, fault.CodeOf(err), err.Error(), now)
		}
		if _, err := exec(ctx, tx, `UPDATE operations SET state = ?, outcome = ?, active = ?, step = ?, attempts = ?, events = ?, error_code = ?, error = ?,
			owner = ?, fence = fence + 1, due_at = ?, deadline_at = ?, updated_at = ?, ended_at = ? WHERE id = ?`,
			next.State, next.Outcome, next.Active, next.Step, next.Attempts, next.Events, next.ErrorCode, next.Error,
			next.Owner, next.DueAt, next.DeadlineAt, next.UpdatedAt, next.EndedAt, o.ID); err != nil {
			return err
		}
		return e.insert(ctx, tx, o.ID, o.Events, now)
	})
}

// WakeResource is Wake for the operation on a resource that is not over, if it has one.
func (r *Runner) WakeResource(ctx context.Context, resource string) error {
	var id []string
	if err := r.cfg.Store.db.SelectContext(ctx, &id, `SELECT id FROM operations WHERE active = ?`, resource); err != nil {
		return db.Error(err)
	}
	if len(id) > 0 {
		r.Wake(id[0])
	}
	return nil
}

func (e *Event) fail(result string, err error) {
	e.Result, e.ErrorCode, e.Error = result, fault.CodeOf(err).String(), db.Cut(err.Error(), maxError)
}

// insert adds the event to those of an operation.
func (e *Event) insert(ctx context.Context, tx *sqlx.Tx, id string, seq int, now time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO operation_events (operation_id, seq, step, result, host, error_code, error, began_at, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id, seq, e.Step, e.Result, e.Host, e.ErrorCode, e.Error, e.Began, now)
	return err
}
