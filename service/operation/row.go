package operation

import (
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// row is an operation's.
type row struct {
	ID              string     `db:"id"`
	Kind            string     `db:"kind"`
	Resource        string     `db:"resource"`
	Active          *string    `db:"active"`
	Priority        int        `db:"priority"`
	State           State      `db:"state"`
	Outcome         State      `db:"outcome"` // the state that an undoing one ends in
	Step            int        `db:"step"`    // to be done next, or to be undone
	Attempts        int        `db:"attempts"`
	Events          int        `db:"events"`
	Input           string     `db:"input"`
	Data            string     `db:"data"`
	ErrorCode       string     `db:"error_code"`
	Error           string     `db:"error"`
	Fence           int64      `db:"fence"`
	Owner           string     `db:"owner"`
	DueAt           *time.Time `db:"due_at"`
	DeadlineAt      time.Time  `db:"deadline_at"`
	TimeoutMS       int64      `db:"timeout_ms"`
	RequestID       string     `db:"request_id"`
	GlobalRequestID string     `db:"global_request_id"`
	Traceparent     string     `db:"traceparent"`
	ProjectID       string     `db:"project_id"`
	UserID          string     `db:"user_id"`
	CreatedAt       time.Time  `db:"created_at"`
	UpdatedAt       time.Time  `db:"updated_at"`
	EndedAt         *time.Time `db:"ended_at"`
}

func (r *row) timeout() time.Duration { return time.Duration(r.TimeoutMS) * time.Millisecond }

// err is why it failed.
func (r *row) err() error {
	var code fault.Code
	_ = code.UnmarshalText([]byte(r.ErrorCode)) // else it is that of a later version: Internal
	return fault.New(code, "%s", r.Error)
}

func (r *row) over(state State, now time.Time) {
	r.State, r.Active, r.DueAt, r.EndedAt = state, nil, nil, &now
}

// later makes it wait for its next attempt, for as long as it returns.
func (r *row) later(now time.Time) time.Duration {
	wait := pause(r.Attempts)
	due := now.Add(wait)
	r.Owner, r.DueAt, r.Attempts = "", &due, r.Attempts+1
	return wait
}

// done notes that the step was done.
func (k *kind) done(r *row, now time.Time) {
	if r.Step, r.Attempts = r.Step+1, 0; r.Step == len(k.steps) {
		r.over(Succeeded, now)
	}
}

// fail ends what goes forward: what was done is undone, from this step on.
func (k *kind) fail(r *row, outcome State, code fault.Code, why string, now time.Time) {
	r.State, r.Outcome, r.Attempts = Undoing, outcome, 0
	r.ErrorCode, r.Error, r.DeadlineAt = code.String(), db.Cut(why, maxError), now.Add(r.timeout())
	r.Step = min(r.Step, len(k.steps)-1)
	k.skip(r, now)
}

// undone notes that the step was undone, or cannot be.
func (k *kind) undone(r *row, now time.Time) {
	r.Step, r.Attempts = r.Step-1, 0
	k.skip(r, now)
}

// skip passes steps that have nothing to undo, and ends the operation after the last.
func (k *kind) skip(r *row, now time.Time) {
	for r.Step >= 0 && k.steps[r.Step].undo == nil && k.steps[r.Step].undoTx == nil {
		r.Step--
	}
	if r.Step < 0 {
		r.over(r.Outcome, now)
	}
}
