package operation

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
)

// position returns the position of a step, or -1.
func (k *kind) position(name string) int {
	return slices.IndexFunc(k.steps, func(s step) bool { return s.name == name })
}

// joinNames returns the names of the steps in their stored form.
func (k *kind) joinNames() string {
	names := make([]string, len(k.steps))
	for i := range k.steps {
		names[i] = k.steps[i].name
	}
	raw, _ := json.Marshal(names) // strings have a JSON form
	return string(raw)
}

// stepNames returns the names of steps from their stored form.
func stepNames(steps string) (out []string) {
	_ = json.Unmarshal([]byte(steps), &out) // steps is empty until a runner has seen the operation; the result is then nil
	return out
}

// adopt returns the kind with the steps of an operation, in the operation's order. It sets the position of the operation's current step by
// the step's name. An operation that no runner has seen gets the steps and the version of this release. If this release does not know the
// operation in full, adopt returns nil and changes nothing. The receiver k may be nil.
func (k *kind) adopt(o *row) *kind {
	if k == nil || o.KindVersion > k.version {
		return nil
	}
	if o.Steps == "" {
		// Steps is also empty if a runner of an older release, which stores only the position, has run the operation. In this case the step
		// at that position must have the same name in this release.
		if o.Step >= len(k.steps) || o.StepName != "" && k.position(o.StepName) != o.Step {
			return nil
		}
		o.KindVersion, o.Steps = k.version, k.names
		return k
	}
	own := k.withSteps(o.Steps)
	if own == nil {
		return nil
	}
	at := o.Step
	if o.StepName != "" {
		if at = own.position(o.StepName); at < 0 {
			return nil
		}
	}
	if at >= len(own.steps) {
		return nil
	}
	o.Step = at
	return own
}

// withSteps returns the kind with the steps of an operation, or nil if the kind does not have one of them.
func (k *kind) withSteps(steps string) *kind {
	if steps == k.names {
		return k
	}
	own := &kind{version: k.version, names: steps, onEnd: k.onEnd}
	for _, name := range stepNames(steps) {
		at := k.position(name)
		if at < 0 {
			return nil
		}
		own.steps = append(own.steps, k.steps[at])
	}
	if len(own.steps) == 0 {
		return nil
	}
	return own
}

// variant has the parts of an operation that decide whether a process knows the operation in full.
type variant struct {
	Kind        string `db:"kind"`
	KindVersion int    `db:"kind_version"`
	Steps       string `db:"steps"`
	StepName    string `db:"step_name"`
	Step        int    `db:"step"`
}

func (r *row) variant() variant { return variant{r.Kind, r.KindVersion, r.Steps, r.StepName, r.Step} }

func (v variant) row() *row {
	return &row{Kind: v.Kind, KindVersion: v.KindVersion, Steps: v.Steps, StepName: v.StepName, Step: v.Step}
}

func (v variant) String() string {
	out := fmt.Sprintf("kind %s version %d", v.Kind, v.KindVersion)
	switch {
	case v.Steps != "":
		out += " with the steps " + strings.Join(stepNames(v.Steps), ", ")
	case v.StepName != "":
		out += fmt.Sprintf(" with the step %s at position %d", v.StepName, v.Step)
	}
	return out
}

// variantKey is an SQL expression. Its value for a row equals variant.key of the row. A database handles one expression with a list of many
// variants better than one condition for each variant.
const variantKey = "CONCAT(kind_version, '\n', step, '\n', steps, '\n', step_name, '\n', kind)"

func (v variant) key() string {
	return strings.Join([]string{strconv.Itoa(v.KindVersion), strconv.Itoa(v.Step), v.Steps, v.StepName, v.Kind}, "\n")
}

// excludeUnknown returns a condition that excludes the variants in r.unknown.
func (r *Runner) excludeUnknown() (where string, args []any) {
	if len(r.unknown) == 0 {
		return "", nil
	}
	return ` AND ` + variantKey + ` NOT IN (?)`, []any{slices.Collect(maps.Keys(r.unknown))}
}

// sweepUnknown looks for operations that this process does not know and that have been due for at least Lease. It marks and counts these
// operations, and ends those whose deadline has passed. Each poll calls it, but it does this work at most every Lease/3.
func (r *Runner) sweepUnknown(ctx context.Context) error {
	if time.Since(r.swept) < r.cfg.Lease/3 {
		return nil
	}
	due := r.now().Add(-r.cfg.Lease)
	var list []variant
	if err := r.cfg.Store.db.SelectContext(ctx, &list, `SELECT DISTINCT kind, kind_version, steps, step_name, step FROM operations WHERE due_at <= ?`, due); err != nil {
		return db.Error(err)
	}
	clear(r.unknown)
	var keys, names []string
	for _, v := range list {
		if r.kinds[v.Kind].adopt(v.row()) == nil {
			keys, names = append(keys, v.key()), append(names, v.String())
			r.unknown[v.key()] = true
		}
	}
	n := 0
	if len(keys) > 0 {
		if err := r.markUnknown(ctx, due, keys); err != nil {
			return err
		}
		query, args, err := sqlx.In(`SELECT COUNT(*) FROM operations WHERE due_at <= ? AND `+variantKey+` IN (?)`, due, keys)
		if err != nil {
			return err
		}
		if err := r.cfg.Store.db.GetContext(ctx, &n, query, args...); err != nil {
			return db.Error(err)
		}
	}
	if was := r.unknownCount.Swap(int64(n)); was == 0 && n > 0 {
		r.cfg.Logger.WarnContext(ctx, "unknown operations wait for a process of another release", "operations", n, "unknown", distinctTexts(names))
	}
	r.swept = time.Now()
	return nil
}

// distinctTexts joins texts for a log line, without duplicates.
func distinctTexts(list []string) string {
	slices.Sort(list)
	return strings.Join(slices.Compact(list), "; ")
}

// markUnknown marks the operations of unknown variants that have been due since the time due or longer, and ends those whose deadline has
// passed. The parameter keys are the keys of the variants. An operation that is already marked is not marked again.
func (r *Runner) markUnknown(ctx context.Context, due time.Time, keys []string) error {
	const batch = 100
	for read := batch; read == batch; {
		now := r.now()
		query, args, err := sqlx.In(selectRows+`WHERE due_at <= ? AND `+variantKey+` IN (?) AND (unknown_at IS NULL OR deadline_at <= ? AND state IN (?, ?))
			ORDER BY due_at, id LIMIT ?`, due, keys, now, Running, Undoing, batch)
		if err != nil {
			return err
		}
		var list []row
		if err := r.cfg.Store.db.SelectContext(ctx, &list, query, args...); err != nil {
			return db.Error(err)
		}
		read = len(list)
		for i := range list {
			o := &list[i]
			var err error
			if o.State.Ended() || o.DeadlineAt.After(now) {
				_, err = db.Exec(ctx, r.cfg.Store.db, `UPDATE operations SET unknown_at = ? WHERE id = ? AND fence = ? AND due_at <= ?`, now, o.ID, o.Fence, due)
			} else {
				err = r.endUnknown(ctx, o, now)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// notCompensated begins the part of an error that says why an operation is not compensated.
const notCompensated = "; not compensated: "

// endUnknown ends an operation that no running process knows as TimedOut, without undoing it. The columns due_at and active stay set: a
// process that knows the operation can undo it later, and until then the resource is not free. If the row has changed since it was read,
// endUnknown does nothing.
func (r *Runner) endUnknown(ctx context.Context, o *row, now time.Time) error {
	next := *o
	if o.State == Running {
		next.Outcome = TimedOut
		next.setError(o.timedOut("operation", o.timeout()))
	}
	why := notCompensated + "no running process knows " + o.variant().String() + ": start a process of the release that began the operation, or cancel the operation"
	next.Error = db.Cut(next.Error, maxError-len(why)) + why
	next.State, next.EndedAt, next.Owner, next.Peer, next.StepDeadlineAt = TimedOut, &now, "", nil, nil
	next.UnknownAt = cmp.Or(o.UnknownAt, &now)
	next.Fence, next.UpdatedAt = o.Fence+1, now
	n, err := saveRow(ctx, r.cfg.Store.db, o, &next)
	if n > 0 {
		r.cfg.Logger.ErrorContext(ctx, "operation timed out, not compensated", "operation", o.ID, "kind", o.Kind, "resource", o.Resource, "unknown", o.variant().String())
	}
	return err
}

// compensateLate begins to undo an operation that has timed out while no running process knew it.
func (x *execution) compensateLate(ctx context.Context) bool {
	x.log.WarnContext(ctx, "compensating timed-out operation", "step", x.row.StepName)
	return x.writeOrPostpone(ctx, nil, func(r *row) {
		now := x.now()
		r.State, r.EndedAt, r.DeadlineAt = Undoing, nil, now.Add(r.timeout())
		r.Error, _, _ = strings.Cut(r.Error, notCompensated)
		if x.kind.enterUndo(r, r.Step, now); !r.State.Ended() {
			due := x.leaseEnd(r.DeadlineAt, now)
			r.DueAt = &due
		}
	})
}
