package operation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Operation describes one operation for operators.
type Operation struct {
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Resource string `json:"resource"`
	State    State  `json:"state"`
	// NotCompensated means that the operation has timed out while no running process knew it, and that its steps are not undone yet. A runner
	// that knows the operation undoes them. Until then the resource is not free.
	NotCompensated bool `json:"not_compensated,omitempty"`
	// UnknownSince is the time since which the operation is unknown: it waits, because no running process knows it in full, see [Step].
	UnknownSince *time.Time `json:"unknown_since,omitempty"`
	// KindVersion is the version of the kind, and Steps are the names of the operation's steps in that version. Both are those of the release
	// that has first run the operation. Steps is empty until a runner has seen the operation.
	KindVersion int      `json:"kind_version"`
	Steps       []string `json:"steps,omitempty"`
	// StepsDone is the number of completed steps. While the operation is being undone, it is the number of steps that are not undone yet.
	// StepName is the step that is being done or undone; it is empty until a runner has seen the operation.
	StepsDone int    `json:"step"`
	StepName  string `json:"step_name"`
	// Attempts is the number of failed attempts at the step in a row.
	Attempts int `json:"attempts"`
	// WaitsFor is the peer that the step waits for, see [WaitFor].
	WaitsFor string `json:"waits_for,omitempty"`
	// Input is the data with which the operation was begun. Data is the data after the changes of the steps. Data is null if no step has changed the
	// data.
	Input json.RawMessage `json:"input"`
	Data  json.RawMessage `json:"data"`
	// ErrorCode, a code of package fault, and Error are the reason why the operation has ended or is being undone. Before that, they are the last
	// error of the current step.
	ErrorCode string `json:"error_code,omitempty"`
	Error     string `json:"error,omitempty"`
	// Owner is the process that runs the operation. Empty: the operation waits.
	Owner     string `json:"owner,omitempty"`
	RequestID string `json:"request_id"`
	// GlobalRequestID is the client's own id of the request, or "".
	GlobalRequestID string     `json:"global_request_id,omitempty"`
	ProjectID       string     `json:"project_id"`
	UserID          string     `json:"user_id"`
	Deadline        time.Time  `json:"deadline_at"`
	Created         time.Time  `json:"created_at"`
	Updated         time.Time  `json:"updated_at"`
	Ended           *time.Time `json:"ended_at,omitempty"`
	// Events are the attempts at steps, oldest first. Only [Store.Show] reads them.
	Events []Event `json:"events,omitempty"`
}

// Event is one attempt at a step.
type Event struct {
	StepName string `json:"step" db:"step"`
	// Result is done, retry, back, failed, undone or not undone. It is rerun, in an event without a step, when [Store.Retry] has made the
	// operation run again.
	Result string `json:"result" db:"result"`
	// Host is the process that made the attempt, or that received the report of its end.
	Host string `json:"host" db:"host"`
	// Reporter is the process that did the work and reported its end ([Runner.EndStep]). Empty: the attempt ended without a report.
	Reporter  string    `json:"reporter,omitempty" db:"reporter"`
	ErrorCode string    `json:"error_code,omitempty" db:"error_code"`
	Error     string    `json:"error,omitempty" db:"error"`
	Began     time.Time `json:"began_at" db:"began_at"`
	Ended     time.Time `json:"ended_at" db:"ended_at"`
}

func (r *row) view() Operation {
	out := Operation{
		ID: r.ID, Kind: r.Kind, Resource: r.Resource, State: r.State, KindVersion: r.KindVersion, Steps: stepNames(r.Steps), StepsDone: r.Step, StepName: r.StepName, Attempts: r.Attempts,
		Input: json.RawMessage(r.Input), Data: json.RawMessage(r.Data), ErrorCode: r.ErrorCode, Error: r.Error, Owner: r.Owner,
		RequestID: r.RequestID, GlobalRequestID: r.GlobalRequestID, ProjectID: r.ProjectID, UserID: r.UserID,
		Deadline: r.DeadlineAt, Created: r.CreatedAt, Updated: r.UpdatedAt, Ended: r.EndedAt,
	}
	if r.State == Undoing {
		out.StepsDone++
	}
	if r.Peer != nil {
		out.WaitsFor = *r.Peer
	}
	if r.DueAt != nil {
		out.NotCompensated, out.UnknownSince = r.State.Ended(), r.UnknownAt
	}
	if out.UnknownSince != nil { // the row still has the last owner, whose lease has expired
		out.Owner = ""
	}
	return out
}

// Filter says which operations to list. A listed operation meets all conditions of the filter. The zero value lists all operations.
type Filter struct {
	Resource, Kind string
	State          State
	// RequestID is the ID of the request that the operation belongs to.
	RequestID string
	// Requested lists only operations that belong to a request. It leaves out operations that the component has begun by itself.
	Requested bool
	// UpdatedSince and UpdatedUntil bound the time of the last change, both inclusive. Zero: no bound.
	UpdatedSince, UpdatedUntil time.Time
	// Open lists only operations that have not ended, or are not compensated.
	Open bool
	// Unknown lists only unknown operations: those that no running process knows in full, see [Step].
	Unknown bool
	// Marker is the ID of the last operation of the previous page.
	Marker string
	// Limit is the maximum number of returned operations. Default 1000.
	Limit int
}

// conditions returns the SQL conditions of the filter. An empty text means no condition.
func (f *Filter) conditions() (where string, args []any) {
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
	if f.RequestID != "" {
		add("request_id = ?", f.RequestID)
	}
	if f.Requested {
		add("request_id <> ''")
	}
	if !f.UpdatedSince.IsZero() {
		add("updated_at >= ?", f.UpdatedSince)
	}
	if !f.UpdatedUntil.IsZero() {
		add("updated_at <= ?", f.UpdatedUntil)
	}
	if f.Open {
		add("active IS NOT NULL")
	}
	if f.Unknown {
		add("unknown_at IS NOT NULL AND due_at IS NOT NULL")
	}
	return where, args
}

// List returns operations, the newest first. Operations with the same creation time are in descending order of their IDs. Invalid: the marker
// or the state does not exist, or the limit is negative.
func (s *Store) List(ctx context.Context, f Filter) ([]Operation, error) {
	switch f.State {
	case "", Running, Undoing, Succeeded, Failed, TimedOut, Canceled:
	default:
		return nil, fault.New(fault.Invalid, "list operations: unknown state %q", f.State)
	}
	if f.Limit < 0 {
		return nil, fault.New(fault.Invalid, "list operations: the limit %d is negative", f.Limit)
	}
	where, args := f.conditions()
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

// OpenCount is the number of operations of one kind in one state, see [Store.CountOpen].
type OpenCount struct {
	Kind  string `db:"kind"`
	State State  `db:"state"`
	// Count is the number of operations.
	Count int `db:"count"`
	// Oldest is the age of the oldest operation, by the database's clock.
	Oldest time.Duration `db:"-"`
}

// CountOpen counts the operations that have not ended, and those that are not compensated, by kind and state. It reads each such operation
// once, with an index. Errors: those of [db.Error].
func (s *Store) CountOpen(ctx context.Context) ([]OpenCount, error) {
	var rows []struct {
		OpenCount

		Created time.Time `db:"created"`
		Now     time.Time `db:"now"`
	}
	err := s.db.SelectContext(ctx, &rows, `SELECT kind, state, COUNT(*) AS count, MIN(created_at) AS created, UTC_TIMESTAMP(6) AS now FROM operations
		WHERE due_at IS NOT NULL GROUP BY kind, state ORDER BY kind, state`)
	if err != nil {
		return nil, db.Error(err)
	}
	out := make([]OpenCount, len(rows))
	for i, r := range rows {
		out[i] = r.OpenCount
		out[i].Oldest = max(0, r.Now.Sub(r.Created))
	}
	return out, nil
}

// Show returns an operation with its events. NotFound: the operation does not exist.
func (s *Store) Show(ctx context.Context, id string) (*Operation, error) {
	r, err := s.read(ctx, s.db, id, "")
	if err != nil {
		return nil, err
	}
	out := r.view()
	if err := s.db.SelectContext(ctx, &out.Events, `SELECT step, result, host, reporter, error_code, error, began_at, ended_at FROM operation_events
		WHERE operation_id = ? ORDER BY seq`, id); err != nil {
		return nil, db.Error(err)
	}
	return &out, nil
}

func (s *Store) read(ctx context.Context, q sqlx.QueryerContext, id, lock string) (*row, error) {
	r := new(row)
	err := db.Error(sqlx.GetContext(ctx, q, r, selectRows+`WHERE id = ? `+lock, id))
	if errors.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "operation %s does not exist", id)
	}
	return r, err
}

// change reads an operation, calls f to change the row, and writes the changed row, in one transaction. The operation gets a new token and its
// full timeout again.
func (s *Store) change(ctx context.Context, id string, f func(ctx context.Context, tx *sqlx.Tx, next *row, now time.Time) error) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		r, err := s.read(ctx, tx, id, "FOR UPDATE")
		if err != nil {
			return err
		}
		next := *r
		if err := f(ctx, tx, &next, now); err != nil {
			return err
		}
		next.newToken()
		next.Fence, next.Attempts, next.Waits, next.Peer, next.StepDeadlineAt = r.Fence+1, 0, 0, nil, nil
		next.DeadlineAt, next.UpdatedAt = now.Add(r.timeout()), now
		switch {
		case next.State.Ended():
			next.Owner, next.DueAt = "", nil
		case r.Owner == "" || r.State.Ended(): // otherwise the lease ends first, so that no two runners run the operation
			next.Owner, next.DueAt = "", &now
		}
		_, err = saveRow(ctx, tx, r, &next)
		return s.insertError(ctx, tx, &next, err)
	})
}

// Cancel ends an operation that runs: its steps are undone, then it is Canceled. The parameter why is the text of its error. The runner that
// runs the operation stops at the end of its lease at the latest. An operation that is not compensated is Canceled at once: it is never
// compensated, its [OnEnd] is not called, and its resource is free. Errors: NotFound; Precondition if the operation has ended or is being
// undone already.
func (s *Store) Cancel(ctx context.Context, id, why string) error {
	return s.change(ctx, id, func(_ context.Context, _ *sqlx.Tx, r *row, now time.Time) error {
		if r.State.Ended() && !r.over() {
			r.setError(fault.New(fault.Canceled, "%s%sit was canceled", why, notCompensated))
			r.markEnded(Canceled, now)
			return nil
		}
		if r.State != Running {
			return fault.New(fault.Precondition, "operation %s is %s", id, r.State)
		}
		r.State, r.Outcome = Undoing, Canceled
		r.setError(fault.New(fault.Canceled, "%s", why))
		return nil
	})
}

// Retry makes an operation that has failed, timed out or was canceled run again, from its first step and with its first data, because its work
// has been undone. The operation gets its full Timeout again. Its steps are those of the release of the runner that runs the operation next. Errors:
// NotFound; Precondition if the operation has not ended, has succeeded, has no steps ([Record]), or is not compensated; ErrBusy if its
// resource has another operation now.
func (s *Store) Retry(ctx context.Context, id string) error {
	return s.change(ctx, id, func(ctx context.Context, tx *sqlx.Tx, r *row, now time.Time) error {
		if !r.State.Ended() || r.State == Succeeded {
			return fault.New(fault.Precondition, "operation %s is %s", id, r.State)
		}
		if r.Steps == noSteps {
			return fault.New(fault.Precondition, "operation %s has no steps: it was recorded after its end", id)
		}
		if !r.over() {
			return fault.New(fault.Precondition, "operation %s is %s and not compensated: start a process of the release that began it, or cancel the operation first", id, r.State)
		}
		r.Active = &r.ID
		if r.Resource != "" {
			r.Active = &r.Resource
			if other, err := s.readActive(ctx, tx, r.Resource, ""); err != nil || other != nil {
				return cmp.Or(err, fault.New(fault.Conflict, "retry of operation %s on %s: %w", id, r.Resource, ErrBusy))
			}
		}
		r.State, r.Outcome, r.Steps, r.Step, r.StepName, r.Data, r.ErrorCode, r.Error, r.EndedAt = Running, "", "", 0, "", noData, "", "", nil
		r.Events++
		return insertEvent(ctx, tx, id, r.Events-1, &Event{Result: "rerun", Began: now}, now)
	})
}

// Purge deletes operations that ended longer than age ago, with their events. It returns the number of deleted operations, even with an error.
// Operations that are not compensated stay. Call Purge in a loop, see [db.Purge].
func (s *Store) Purge(ctx context.Context, age time.Duration) (int64, error) {
	now, err := db.Now(ctx, s.db)
	if err != nil {
		return 0, err
	}
	return db.Purge(ctx, s.db, db.Retention{
		Table: "operations", Where: "ended_at <= ? AND active IS NULL", Args: []any{now.Add(-age)}, Parts: []db.Part{{Table: "operation_events", Column: "operation_id"}},
	})
}
