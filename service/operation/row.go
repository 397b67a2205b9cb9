package operation

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// row is an operation in the database.
type row struct {
	ID              string     `db:"id"`
	Kind            string     `db:"kind"`
	Resource        string     `db:"resource"`
	Active          *string    `db:"active"` // the resource, or the ID without a resource; NULL when nothing is left to do (see the method over)
	Priority        int        `db:"priority"`
	State           State      `db:"state"`
	Outcome         State      `db:"outcome"` // the final state after undoing
	KindVersion     int        `db:"kind_version"`
	Steps           string     `db:"steps"`     // the names of the steps as a JSON array; "" until a runner has seen the operation
	Step            int        `db:"step"`      // the position of the step to do or to undo
	StepName        string     `db:"step_name"` // the step to do or to undo; "" until a runner has seen the operation
	Entry           int        `db:"entry"`     // the number in the token: 0 at first, and a new random number at each later entry into a step
	Reported        int        `db:"reported"`  // the entry that a report has last ended, or -1
	Attempts        int        `db:"attempts"`  // failed attempts at the step in a row
	Waits           int        `db:"waits"`     // how often the step has waited in this entry
	Peer            *string    `db:"peer"`      // the peer that the step waits for
	Events          int        `db:"events"`
	Input           string     `db:"input"`
	Data            string     `db:"data"`
	ErrorCode       string     `db:"error_code"`
	Error           string     `db:"error"`
	Fence           int64      `db:"fence"` // the fencing token: it grows when a process acquires the lease, and when another process changes the row
	Owner           string     `db:"owner"` // "" if no process has a lease
	DueAt           *time.Time `db:"due_at"`
	DeadlineAt      time.Time  `db:"deadline_at"`
	StepDeadlineAt  *time.Time `db:"step_deadline_at"`
	TimeoutMS       int64      `db:"timeout_ms"`
	RequestID       string     `db:"request_id"`
	GlobalRequestID string     `db:"global_request_id"`
	Traceparent     string     `db:"traceparent"`
	ProjectID       string     `db:"project_id"`
	UserID          string     `db:"user_id"`
	CreatedAt       time.Time  `db:"created_at"`
	UpdatedAt       time.Time  `db:"updated_at"`
	EndedAt         *time.Time `db:"ended_at"`
	UnknownAt       *time.Time `db:"unknown_at"` // the time since which no running process knows the operation
}

// selectRows begins a SELECT of rows. It names the columns, because a later release may have added columns.
var selectRows = `SELECT ` + db.Columns[row]() + ` FROM operations `

// noData is the data of an operation whose steps have changed nothing.
const noData = "null"

func (r *row) timeout() time.Duration { return time.Duration(r.TimeoutMS) * time.Millisecond }

// data returns the operation's data with the changes of its steps.
func (r *row) data() json.RawMessage {
	if r.Data == noData {
		return json.RawMessage(r.Input)
	}
	return json.RawMessage(r.Data)
}

// setData sets the operation's data, if they have changed.
func (r *row) setData(data json.RawMessage) {
	if string(data) != string(r.data()) {
		r.Data = string(data)
	}
}

// err returns the error because of which the operation is being undone.
func (r *row) err() error {
	var code fault.Code
	_ = code.UnmarshalText([]byte(r.ErrorCode)) // a code that only a later release knows becomes Internal
	return fault.New(code, "%s", r.Error)
}

func (r *row) setError(err error) {
	r.ErrorCode, r.Error = fault.CodeOf(err).String(), db.Cut(err.Error(), maxError)
}

// request returns the request that the operation belongs to.
func (r *row) request() reqctx.Request {
	return reqctx.Request{ID: r.RequestID, GlobalID: r.GlobalRequestID, Traceparent: r.Traceparent, UserID: r.UserID, ProjectID: r.ProjectID}
}

// op returns the operation for the functions of its step.
func (r *row) op() *Op {
	op := &Op{
		ID: r.ID, Kind: r.Kind, Resource: r.Resource, State: r.State, StepName: r.StepName, Attempt: r.Attempts, Waits: r.Waits,
		Token: r.ID + "/" + strconv.Itoa(r.Entry), data: r.data(),
	}
	if r.State != Running && r.State != Succeeded {
		op.Err = r.err()
	}
	return op
}

// parseToken returns the operation's ID and the number of the entry in an [Op.Token].
func parseToken(token string) (id string, entry int, ok bool) {
	id, n, found := strings.Cut(token, "/")
	entry, err := strconv.Atoi(n)
	return id, entry, found && err == nil && entry >= 0 && strconv.Itoa(entry) == n
}

// newToken gives the operation another token. The token's number is random, so that a process with an earlier token cannot guess it,
// and fits into the column of 32 bits.
func (r *row) newToken() {
	for last := r.Entry; r.Entry == last || r.Entry == r.Reported; {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		r.Entry = int(binary.BigEndian.Uint32(b[:]) >> 1)
	}
}

// waitsForAnother reports whether the step waits for a peer other than the given one.
func (r *row) waitsForAnother(peer string) bool {
	return r.Peer != nil && *r.Peer != db.Cut(peer, maxID)
}

// over reports whether nothing remains to do for the operation. An operation that timed out while no process knew it has ended, but is
// still due, because it is not compensated yet.
func (r *row) over() bool { return r.State.Ended() && r.DueAt == nil }

// markEnded records that the operation has ended in a state.
func (r *row) markEnded(state State, now time.Time) {
	r.State, r.Active, r.DueAt, r.EndedAt, r.Peer, r.StepDeadlineAt, r.UnknownAt = state, nil, nil, &now, nil, nil, nil
}

// retryLater makes the operation wait for its next attempt.
func (r *row) retryLater(now time.Time, delay time.Duration) {
	due := now.Add(delay)
	r.Owner, r.DueAt, r.Attempts, r.Waits = "", &due, r.Attempts+1, 0
}

// enter makes a step the next step to do or to undo.
func (k *kind) enter(r *row, step int, now time.Time) {
	r.newToken()
	r.Step, r.Attempts, r.Waits, r.Peer, r.StepDeadlineAt, r.StepName = step, 0, 0, nil, nil, ""
	if step >= 0 && step < len(k.steps) {
		r.StepName = k.steps[step].name
		if limit := k.steps[step].limit; limit > 0 && r.State == Running {
			end := now.Add(limit)
			r.StepDeadlineAt = &end
		}
	}
}

// stepDone moves the operation to the next step. After the last step the operation has succeeded.
func (k *kind) stepDone(r *row, now time.Time) {
	r.ErrorCode, r.Error = "", ""
	if r.Step+1 < len(k.steps) {
		k.enter(r, r.Step+1, now)
		return
	}
	r.Step++
	r.markEnded(Succeeded, now)
}

// compensate begins to undo the operation, with the current step first. The parameter outcome is the state after undoing.
func (k *kind) compensate(r *row, outcome State, err error, now time.Time) {
	r.State, r.Outcome, r.DeadlineAt = Undoing, outcome, now.Add(r.timeout())
	r.setError(err)
	k.enterUndo(r, min(r.Step, len(k.steps)-1), now)
}

// stepUndone moves the operation to the previous step that can be undone.
func (k *kind) stepUndone(r *row, now time.Time) { k.enterUndo(r, r.Step-1, now) }

// enterUndo enters the next step to undo: the given step, or the nearest step before it that has an Undo or an UndoTx. If no such step
// exists, the operation has ended.
func (k *kind) enterUndo(r *row, step int, now time.Time) {
	for step >= 0 && !k.steps[step].undoes() {
		step--
	}
	if k.enter(r, step, now); step < 0 {
		r.markEnded(r.Outcome, now)
	}
}

// saveRow replaces prev, the row as it was read, with next. It returns 0 if the row has changed since it was read. A renewal of the
// lease does not count as a change: saveRow keeps the renewed due_at unless prev and next have different values.
func saveRow(ctx context.Context, q sqlx.ExecerContext, prev, next *row) (int64, error) {
	return db.Exec(ctx, q, `UPDATE operations SET state = ?, outcome = ?, active = ?, kind_version = ?, steps = ?, step = ?, step_name = ?, entry = ?, reported = ?, attempts = ?, waits = ?,
		peer = ?, events = ?, data = ?, error_code = ?, error = ?, fence = ?, owner = ?, due_at = CASE WHEN ? THEN due_at ELSE ? END, deadline_at = ?,
		step_deadline_at = ?, updated_at = ?, ended_at = ?, unknown_at = ? WHERE id = ? AND fence = ? AND state = ? AND entry = ? AND events = ? AND owner = ?`,
		next.State, next.Outcome, next.Active, next.KindVersion, next.Steps, next.Step, next.StepName, next.Entry, next.Reported, next.Attempts, next.Waits,
		next.Peer, next.Events, next.Data, next.ErrorCode, next.Error, next.Fence, next.Owner, next.DueAt == prev.DueAt, next.DueAt, next.DeadlineAt,
		next.StepDeadlineAt, next.UpdatedAt, next.EndedAt, next.UnknownAt, prev.ID, prev.Fence, prev.State, prev.Entry, prev.Events, prev.Owner)
}

// insertEvent adds an event to the events of an operation.
func insertEvent(ctx context.Context, tx *sqlx.Tx, id string, seq int, e *Event, now time.Time) error {
	_, err := db.Exec(ctx, tx, `INSERT INTO operation_events (operation_id, seq, step, result, host, reporter, error_code, error, began_at, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id, seq, e.StepName, e.Result, e.Host, e.Reporter, e.ErrorCode, e.Error, e.Began, now)
	return err
}

// newEvent returns the event of an attempt at a step.
func newEvent(step, result, host string, err error, began time.Time) *Event {
	e := &Event{StepName: step, Result: result, Host: host, Began: began}
	if err != nil {
		e.ErrorCode, e.Error = fault.CodeOf(err).String(), db.Cut(err.Error(), maxError)
	}
	return e
}

// timedOut returns the error of an operation, or of a step, whose time is over. The error ends with the last error of the row.
func (r *row) timedOut(what string, limit time.Duration) error {
	text := fmt.Sprintf("%s not done within %v", what, limit)
	if r.Error != "" {
		text += ": " + r.Error
	}
	return fault.New(fault.Timeout, "%s", text)
}
