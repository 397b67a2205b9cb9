package operation

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Operation is one operation as people see it.
type Operation struct {
	ID        string          `json:"id"`
	Kind      string          `json:"kind"`
	Resource  string          `json:"resource"`
	State     State           `json:"state"`
	Step      int             `json:"step"` // how many are done, or, while it is undone, are left
	Attempts  int             `json:"attempts"`
	Input     json.RawMessage `json:"input"`
	Data      json.RawMessage `json:"data"`                 // the input as the steps have left it; null: as it was
	ErrorCode string          `json:"error_code,omitempty"` // of fault
	Error     string          `json:"error,omitempty"`
	Owner     string          `json:"owner,omitempty"` // who has it, or had it last
	RequestID string          `json:"request_id"`
	// GlobalRequestID is the client's own id of the request, or "".
	GlobalRequestID string     `json:"global_request_id,omitempty"`
	ProjectID       string     `json:"project_id"`
	UserID          string     `json:"user_id"`
	Deadline        time.Time  `json:"deadline_at"`
	Created         time.Time  `json:"created_at"`
	Updated         time.Time  `json:"updated_at"`
	Ended           *time.Time `json:"ended_at,omitempty"`
	// Events are what was done, of [Store.Show] only.
	Events []Event `json:"events,omitempty"`
}

// Event is one attempt at a step.
type Event struct {
	Step      string    `json:"step" db:"step"`
	Result    string    `json:"result" db:"result"` // done, retry, back, failed, undone, not undone
	Host      string    `json:"host" db:"host"`
	ErrorCode string    `json:"error_code,omitempty" db:"error_code"`
	Error     string    `json:"error,omitempty" db:"error"`
	Began     time.Time `json:"began_at" db:"began_at"`
	Ended     time.Time `json:"ended_at" db:"ended_at"`
}

func (r *row) view() Operation {
	step := r.Step
	if r.State == Undoing {
		step++
	}
	return Operation{
		ID: r.ID, Kind: r.Kind, Resource: r.Resource, State: r.State, Step: step, Attempts: r.Attempts,
		Input: json.RawMessage(r.Input), Data: json.RawMessage(r.Data), ErrorCode: r.ErrorCode, Error: r.Error, Owner: r.Owner,
		RequestID: r.RequestID, GlobalRequestID: r.GlobalRequestID, ProjectID: r.ProjectID, UserID: r.UserID,
		Deadline: r.DeadlineAt, Created: r.CreatedAt, Updated: r.UpdatedAt, Ended: r.EndedAt,
	}
}

// Filter says which operations to list. The zero value is all.
type Filter struct {
	Resource, Kind string
	State          State
	// Open lists those that are not over only.
	Open bool
	// Marker is the ID of the last one of the page before.
	Marker string
	// Limit is how many to return at most. Default 1000, which 0 stands for.
	Limit int
}

// List returns operations, the newest first. Invalid: the marker or the state does not exist, or the limit is
// negative.
func (s *Store) List(ctx context.Context, f Filter) ([]Operation, error) {
	switch f.State {
	case "", Running, Undoing, Succeeded, Failed, TimedOut, Canceled:
	default:
		return nil, fault.New(fault.Invalid, "list operations: unknown state %q", f.State)
	}
	if f.Limit < 0 {
		return nil, fault.New(fault.Invalid, "list operations: the limit %d is negative", f.Limit)
	}
	where, args := "", []any(nil)
	add := func(term string, v ...any) {
		if where != "" {
			where += " AND "
		}
		where, args = where+term, append(args, v...)
	}
	if f.Resource != "" {
		add("resource = ?", f.Resource)
	}
	if f.Kind != "" {
		add("kind = ?", f.Kind)
	}
	if f.State != "" {
		add("state = ?", f.State)
	}
	if f.Open {
		add("active IS NOT NULL")
	}
	if f.Limit == 0 {
		f.Limit = 1000
	}
	rows, _, err := db.List[row](ctx, s.db, db.Page{
		From: "operations", Where: where, Args: args, Sort: []db.SortKey{{Column: "created_at", Desc: true}}, Key: "id", Marker: f.Marker, Limit: f.Limit,
	})
	if err != nil {
		return nil, err
	}
	out := make([]Operation, len(rows))
	for i := range rows {
		out[i] = rows[i].view()
	}
	return out, nil
}

// Show returns an operation with its events. NotFound.
func (s *Store) Show(ctx context.Context, id string) (*Operation, error) {
	r, err := s.read(ctx, s.db, id, "")
	if err != nil {
		return nil, err
	}
	out := r.view()
	if err := s.db.SelectContext(ctx, &out.Events, `SELECT step, result, host, error_code, error, began_at, ended_at FROM operation_events
		WHERE operation_id = ? ORDER BY seq`, id); err != nil {
		return nil, db.Error(err)
	}
	return &out, nil
}

func (s *Store) read(ctx context.Context, q sqlx.QueryerContext, id, lock string) (*row, error) {
	r := new(row)
	err := db.Error(sqlx.GetContext(ctx, q, r, `SELECT * FROM operations WHERE id = ? `+lock, id))
	if err != nil && fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "there is no operation %s", id)
	}
	return r, err
}

// Cancel ends an operation that is not over: what it has done is undone, then it is
// canceled. Whoever runs it stops at the end of its lease at the latest. Errors:
// NotFound; Precondition if it is over, or undone already.
func (s *Store) Cancel(ctx context.Context, id, why string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		r, err := s.read(ctx, tx, id, "FOR UPDATE")
		if err != nil {
			return err
		}
		if r.State != Running {
			return fault.New(fault.Precondition, "operation %s is %s", id, r.State)
		}
		_, err = exec(ctx, tx, `UPDATE operations SET state = ?, outcome = ?, attempts = 0, fence = fence + 1, due_at = ?, deadline_at = ?, error_code = ?, error = ?,
			updated_at = ? WHERE id = ?`, Undoing, Canceled, now, now.Add(r.timeout()), fault.Canceled.String(), db.Cut(why, maxError), now, id)
		return err
	})
}

// Retry makes an operation that has failed, timed out or was canceled run again, from its
// first step, as what was done has been undone, with as much time as it had at first.
// Errors: NotFound; Precondition if it is not over, or has succeeded; ErrBusy if its
// resource has another operation by now.
func (s *Store) Retry(ctx context.Context, id string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		r, err := s.read(ctx, tx, id, "FOR UPDATE")
		if err != nil {
			return err
		}
		if !r.State.Over() || r.State == Succeeded {
			return fault.New(fault.Precondition, "operation %s is %s", id, r.State)
		}
		active := r.ID
		if r.Resource != "" {
			active = r.Resource
			var n int
			if err := tx.GetContext(ctx, &n, `SELECT COUNT(*) FROM operations WHERE active = ?`, active); err != nil {
				return db.Error(err)
			}
			if n > 0 {
				return fault.New(fault.Conflict, "retry of operation %s on %s: %w", id, r.Resource, ErrBusy)
			}
		}
		_, err = exec(ctx, tx, `UPDATE operations SET state = ?, outcome = '', active = ?, step = 0, attempts = 0, data = 'null', error_code = '', error = '',
			fence = fence + 1, due_at = ?, deadline_at = ?, ended_at = NULL, updated_at = ? WHERE id = ?`,
			Running, active, now, now.Add(r.timeout()), now, id)
		return err
	})
}

// Purge forgets operations that ended longer than age ago, with their events, and returns
// how many they were, also with an error. It is for a loop, see db.Purge.
func (s *Store) Purge(ctx context.Context, age time.Duration) (int64, error) {
	now, err := db.Now(ctx, s.db)
	if err != nil {
		return 0, err
	}
	return db.Purge(ctx, s.db, db.Retention{
		Table: "operations", Where: "ended_at <= ?", Args: []any{now.Add(-age)}, Parts: []db.Part{{Table: "operation_events", Column: "operation_id"}},
	})
}
