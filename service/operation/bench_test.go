package operation_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// BenchmarkOperation compares an operation of three empty steps with the minimum of SQL statements for it, each in one
// transaction: begin the operation, acquire its lease, write each step with an event, and write the last step with the
// end.
func BenchmarkOperation(b *testing.B) {
	d, err := db.Open(b.Context(), db.Config{URL: dbtest.MySQL(b), MaxOpen: 40})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := db.Migrate(b.Context(), d, migrations...); err != nil {
		b.Fatal(err)
	}
	ops := operation.NewStore(d)
	var begun, ended atomic.Int64
	r := operation.NewRunner(operation.RunnerConfig{Store: ops, Host: "h", Logger: slog.New(endCounter{&ended})})
	nothing := func(context.Context, *operation.Op, *input) error { return nil }
	operation.Handle(r, create, operation.Step[input]{Name: "a", Do: nothing}, operation.Step[input]{Name: "b", Do: nothing}, operation.Step[input]{Name: "c", Do: nothing})
	if err := r.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer r.Stop(context.WithoutCancel(b.Context()))
	wait := func(open int64) { // waits until at most open operations have not ended
		for begun.Load()-ended.Load() > open {
			waittest.Spend(100*time.Microsecond, "the time between two looks: a longer one would be measured")
		}
	}
	must := func(err error) {
		if err != nil {
			b.Error(err)
		}
	}
	table := compare.New()
	for _, callers := range []int{1, 16} {
		table.Row("operation of three steps", callers,
			compare.Contender{Name: "bare SQL", Op: func() {
				err := bare(b.Context(), d)
				for fault.CodeOf(db.Error(err)) == fault.Unavailable { // after a deadlock
					err = bare(b.Context(), d)
				}
				must(err)
			}},
			compare.Contender{Name: "operation", Op: func() {
				id, err := operation.Begin(b.Context(), ops, create, "", &input{Size: 7})
				must(err)
				begun.Add(1)
				r.Notify(id)
				wait(int64(callers - 1))
			}, Drain: func() { wait(0) }})
	}
}

// endCounter is a log handler that counts the operations that have ended.
type endCounter struct{ n *atomic.Int64 }

func (endCounter) Enabled(context.Context, slog.Level) bool { return true }
func (c endCounter) WithAttrs([]slog.Attr) slog.Handler     { return c }
func (c endCounter) WithGroup(string) slog.Handler          { return c }
func (c endCounter) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "operation ended" {
		c.n.Add(1)
	}
	return nil
}

// bare runs only the SQL statements.
func bare(ctx context.Context, d *sqlx.DB) error {
	id, now := uuid.NewString(), time.Now().UTC()
	_, err := d.ExecContext(ctx, `INSERT INTO operations (id, kind, resource, active, priority, state, outcome, step, attempts, events, input, data,
			error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, project_id, user_id, created_at, updated_at, ended_at)
			VALUES (?, 'bare', '', ?, 0, 'running', '', 0, 0, 0, '{}', 'null', '', '', 0, '', ?, ?, 1, '', '', '', ?, ?, NULL)`, id, id, now, now, now, now)
	if err != nil {
		return err
	}
	if _, err = d.ExecContext(ctx, `UPDATE operations SET owner = 'h', fence = fence + 1, due_at = ? WHERE id = ? AND due_at <= ?`, now.Add(time.Minute), id, now); err != nil {
		return err
	}
	for i := range 3 {
		tx, err := d.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		query := `UPDATE operations SET step = ?, events = events + 1, updated_at = ? WHERE id = ? AND fence = 1`
		if i == 2 {
			query = `UPDATE operations SET state = 'succeeded', active = NULL, due_at = NULL, step = ?, events = events + 1, updated_at = ? WHERE id = ? AND fence = 1`
		}
		if _, err = tx.ExecContext(ctx, query, i+1, now, id); err == nil {
			_, err = tx.ExecContext(ctx, `INSERT INTO operation_events (operation_id, seq, step, result, host, error_code, error, began_at, ended_at)
					VALUES (?, ?, 's', 'done', 'h', '', '', ?, ?)`, id, i, now, now)
		}
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			_ = tx.Rollback()
			return err
		}
	}
	return nil
}
