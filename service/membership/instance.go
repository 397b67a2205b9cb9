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

// Instance is one start of a process. A member with an instance belongs to this process alone: a second process of the
// same kind and host is refused with [ErrHeld] while the first one is up. A process that was replaced while its member
// was down is refused from then on.
type Instance struct {
	// ID is unique to this start, such as a UUID. Empty: several processes may be the member at once.
	ID string `json:"id"`
	// Lock names a lock that this process holds and that only one process can hold at a time, such as a [FileLock].
	// Start grows with each process that gets the lock. A holder with the same Lock and a smaller Start is dead, so
	// it is replaced at once. Empty: no such lock.
	Lock  string `json:"lock,omitempty"`
	Start int64  `json:"start,omitempty"`
	// Process describes the process for people: its number, its machine and the time of its start.
	Process string `json:"process,omitempty"`
}

const reasonHeld = "MemberHeld"

// ErrHeld means that a member belongs to another process. Its code is Unavailable, so an App whose part fails with it
// tries again: the other process may end.
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

// parseInstance reads a text of Instance.text.
func parseInstance(text string) (i Instance) {
	if text != "" {
		_ = json.Unmarshal([]byte(text), &i) // a text that is not JSON gives no ID, so the member belongs to no process
	}
	return i
}

// heldError is [ErrHeld] with the name of the holder.
func heldError(kind, host string, holder Instance, seen string) error {
	who := holder.Process
	if who == "" {
		who = "a process without a description"
	}
	return fault.WithReason(fault.New(fault.Unavailable, "%s on host %s is another process: %s%s", kind, host, who, seen), reasonHeld, nil)
}

// admit returns ErrHeld if an instance must not become the member.
func (m Member) admit(i Instance) error {
	h := m.Instance
	switch {
	case i.ID == h.ID, !m.Up:
		return nil
	case h.Lock != "" && h.Lock == i.Lock && i.Start > h.Start: // it has lost its lock, so it has ended
		return nil
	}
	return heldError(m.Kind, m.Host, h, fmt.Sprintf(", last seen %v ago", m.age.Round(time.Second)))
}

// Holds returns nil if the member belongs to the instance, or does not exist, and [ErrHeld] otherwise. The instance is empty
// for a member that may be several processes, see Instance.ID. In a transaction of [db.Tx], Holds reads in the transaction.
func (r *Registry) Holds(ctx context.Context, kind, host, instance string) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		holders, err := r.holders(ctx, tx, `kind = ? AND host = ?`, kind, host)
		if h, known := holders[host]; err == nil && known && h.ID != instance {
			return heldError(kind, host, h, "")
		}
		return err
	})
}

// holders returns the instances of members of one kind, by host.
func (r *Registry) holders(ctx context.Context, tx *sqlx.Tx, where string, args ...any) (map[string]Instance, error) {
	var rows []struct{ Host, Instance string }
	if err := tx.SelectContext(ctx, &rows, `SELECT host, instance FROM members WHERE `+where, args...); err != nil {
		return nil, db.Error(err)
	}
	out := make(map[string]Instance, len(rows))
	for _, row := range rows {
		out[row.Host] = parseInstance(row.Instance)
	}
	return out, nil
}
