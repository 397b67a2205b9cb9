package membership

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Instance is one start of a process. A member with an instance belongs to this process alone: a second process of the same
// kind and host is refused with [ErrHeld] while the first process is up. If a process was replaced while its member was
// down, the replaced process is refused from then on.
type Instance struct {
	// ID is unique to this start, such as a UUID. Empty: several processes may be the member at once.
	ID string `json:"id"`
	// Lock names a lock that this process holds and that only one process can hold at a time, such as a [FileLock]. Start
	// grows with each process that gets the lock. If the member belongs to an instance with the same Lock and a smaller Start,
	// the process of that instance has lost the lock. So it has ended, and the new process replaces it at once. Empty: the process
	// has no such lock.
	Lock  string `json:"lock,omitempty"`
	Start int64  `json:"start,omitempty"`
	// Process describes the process for people: its number, its machine and the time of its start.
	Process string `json:"process,omitempty"`
}

const reasonHeld = "MemberHeld"

// ErrHeld means that a member belongs to another process. Its code is Unavailable, so an App retries a Start that fails with
// ErrHeld: the other process may end.
var ErrHeld = fault.Sentinel(fault.Unavailable, reasonHeld, "the member belongs to another process")

// maxInstance is the maximum size of an Instance as JSON, in bytes.
const maxInstance = 1000

// text returns the form in the database.
func (i Instance) text() (string, error) {
	if i.ID == "" {
		return "", nil
	}
	raw, err := json.Marshal(i)
	if err == nil && (len(raw) > maxInstance || !utf8.ValidString(i.ID+i.Lock+i.Process)) {
		err = fault.New(fault.Invalid, "the instance of a member has more than %d bytes, or is not UTF-8", maxInstance)
	}
	return string(raw), err
}

// parseInstance reads the result of Instance.text.
func parseInstance(text string) (i Instance) {
	if text != "" {
		_ = json.Unmarshal([]byte(text), &i) // a text that is not JSON has no ID, so the member belongs to no process
	}
	return i
}

// heldError returns [ErrHeld] with a description of the holder.
func heldError(kind, host string, holder Instance, seen string) error {
	who := holder.Process
	if who == "" {
		who = "a process without a description"
	}
	return fault.WithReason(fault.New(fault.Unavailable, "%s on host %s belongs to another process: %s%s", kind, host, who, seen), reasonHeld, nil)
}

// admit returns ErrHeld if the instance i must not become the member.
func (m Member) admit(i Instance) error {
	h := m.Instance
	switch {
	case i.ID == h.ID, !m.Up:
		return nil
	case h.Lock != "" && h.Lock == i.Lock && i.Start > h.Start: // the holder has lost its lock, so its process has ended
		return nil
	}
	return heldError(m.Kind, m.Host, h, fmt.Sprintf(", last seen %v ago", m.age.Round(time.Second)))
}

// Holds returns nil if the member belongs to the instance, or does not exist. Otherwise it returns [ErrHeld]. The parameter
// instance is empty for a member that may be several processes, see Instance.ID. With the context of a [db.Tx], Holds reads
// in the transaction.
func (r *Registry) Holds(ctx context.Context, kind, host, instance string) error {
	holders, err := r.holders(ctx, r.reads.For(ctx), `kind = ? AND host = ?`, kind, host)
	if h, known := holders[host]; err == nil && known && h.ID != instance {
		return heldError(kind, host, h, "")
	}
	return err
}

// holders returns, by host, the instances of the members that an SQL condition selects. The condition must select members of one kind.
func (r *Registry) holders(ctx context.Context, q sqlx.QueryerContext, condition string, args ...any) (map[string]Instance, error) {
	var rows []struct{ Host, Instance string }
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT host, instance FROM members WHERE `+condition, args...); err != nil {
		return nil, db.Error(err)
	}
	out := make(map[string]Instance, len(rows))
	for _, row := range rows {
		out[row.Host] = parseInstance(row.Instance)
	}
	return out, nil
}
