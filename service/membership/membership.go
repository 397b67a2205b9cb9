// Package membership records the services of a component and whether they are alive. Each service has a row in the component's
// database and sends heartbeats. The times of heartbeats come from the database's clock, so the clocks of the hosts may differ.
//
//	r := membership.New(membership.Config{DB: d})
//	app.Add("member", r.Member(membership.MemberConfig{Self: membership.Self{Kind: "volume-worker", Host: host}}))
//	...
//	list, err := r.List(ctx, "volume-worker") // each is up, or down with the reason
//
// A member is up if it has not left, if its last heartbeat is at most DownAfter old, and if no operator has forced it
// down. A member is enabled unless an operator has disabled it: a disabled member continues its work and gets no new
// work. The rules are those of Nova's services.
//
// If only one process may be a member, such as the worker of a host, its [Self] has an [Instance]: a second process with the same
// kind and host is refused. With a [FileLock], a process that replaces a killed process is accepted at once.
//
// The table is created by [Migrations].
package membership

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Migrations creates the table, on MySQL, MariaDB and SQLite. A component gives them to [db.Migrate] and [db.Check], before its own.
var Migrations = db.Embedded("membership", migrations)

//go:embed migrations/*.sql
var migrations embed.FS

// Config configures a [Registry]. DB is required.
type Config struct {
	// DB is the database with the table. The caller closes it.
	DB *sqlx.DB
	// DownAfter is the heartbeat timeout: a member without a heartbeat for this time is down. Default 60 s, as Nova's
	// service_down_time.
	DownAfter time.Duration
}

// Registry is the table of members. It is safe for concurrent use. Every method may fail with Unavailable while the
// database cannot be reached.
type Registry struct {
	cfg        Config
	reads      *db.Readers // gives the transaction of a context, or the database
	heartbeats heartbeats
}

// New returns a registry. It does not connect.
func New(cfg Config) *Registry {
	cfg.DownAfter = cmp.Or(cfg.DownAfter, time.Minute)
	return &Registry{cfg: cfg, reads: db.NewReaders(cfg.DB)}
}

// Self describes a service that becomes a member.
type Self struct {
	// Kind is the kind of service, such as "volume-worker". Host is the name of its host. Together they identify the member: a
	// host may have members of several kinds. Both are required.
	Kind, Host string
	// Version is a number that grows when the service can do more. Other services can wait until all members have a version, see
	// [Registry.MinVersion].
	Version int
	// Interfaces are the versions of the RPC interfaces that the service serves, by the interface's name, such as {"volume":
	// {"1.4", "2.0"}}. Take them from the RPC servers, by rpccaps.Of. At most 1,200 bytes as JSON. Nil: the service reports no
	// versions, so others must assume the lowest versions. All processes of one member must serve the same versions.
	Interfaces map[string][]string
	// Data is any other text, such as JSON, of at most 64 KiB.
	Data string
	// Instance identifies the process, if only one process may be the member. Default: several processes may be the member.
	Instance Instance
}

// Member is a service that has joined.
type Member struct {
	Kind           string    `db:"kind"`
	Host           string    `db:"host"`
	ID             string    `db:"id"` // a UUID
	Version        int       `db:"version"`
	Data           string    `db:"data"`
	Disabled       bool      `db:"disabled"`
	DisabledReason string    `db:"disabled_reason"`
	ForcedDown     bool      `db:"forced_down"`
	Departed       bool      `db:"departed"`   // the member has left
	JoinedAt       time.Time `db:"joined_at"`  // the member's last start
	SeenAt         time.Time `db:"seen_at"`    // the member's last heartbeat
	CreatedAt      time.Time `db:"created_at"` // the member's first start

	// Interfaces are the versions that the member serves, see [Self]. Nil: the versions are not known, because the release of the
	// process does not report them, or is a later release that reports them in another form.
	Interfaces map[string][]string `db:"-"`
	// Instance is the process that the member belongs to. Its ID is empty if several processes may be the member.
	Instance Instance `db:"-"`
	// Up reports whether the member is alive. If it is not, Why gives the reason.
	Up  bool   `db:"-"`
	Why string `db:"-"`

	age    time.Duration // the age of the last heartbeat
	serves serves
}

// Name returns the host's name, so that a Member is a host of package scheduler.
func (m Member) Name() string { return m.Host }

// Unfit returns why a member must get no new work: it is down, or an operator has disabled it. It returns "" if the member may
// get new work.
func (m Member) Unfit() string {
	if m.Up && m.Disabled {
		return "disabled: " + m.DisabledReason
	}
	return m.Why
}

// Join makes a service a member. The service may have been a member before. An operator's settings stay: disabled and forced
// down. Errors: Invalid if Kind or Host is empty, or Instance is too long; [ErrHeld] if the member is up and belongs to another
// process, which the error names. If several instances join at once, one of them becomes the member.
func (r *Registry) Join(ctx context.Context, s Self) error {
	return r.join(ctx, s, "", false)
}

// join does what Join does. A MemberPart calls it with its process; otherwise process is empty.
func (r *Registry) join(ctx context.Context, s Self, process string, announced bool) error {
	return r.enter(ctx, s, func(ctx context.Context, tx *sqlx.Tx, e entry) error {
		now := serves{Interfaces: s.Interfaces, JoinedAt: e.now, Joined: true, Announced: announced, Process: process}.after(e.is, r.cfg.DownAfter, e.now)
		if e.is == nil {
			return r.insert(ctx, tx, s, e, now, false)
		}
		text, err := now.text()
		if err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `UPDATE members SET version = ?, data = ?, instance = ?, serves = ?, departed = FALSE, joined_at = ?, seen_at = UTC_TIMESTAMP(6)
			WHERE kind = ? AND host = ?`, s.Version, s.Data, e.instance, text, e.now, s.Kind, s.Host)
		return err
	})
}

// entry is the state that a service finds when it becomes a member.
type entry struct {
	is       *Member // nil: the member does not exist
	instance string  // the text of Self.Instance
	now      time.Time
}

// enter calls write in a transaction that has locked the member. It returns ErrHeld if the service must not become the member.
func (r *Registry) enter(ctx context.Context, s Self, write func(context.Context, *sqlx.Tx, entry) error) error {
	if s.Kind == "" || s.Host == "" {
		return fault.New(fault.Invalid, "member %q on host %q: kind and host must not be empty", s.Kind, s.Host)
	}
	instance, err := s.Instance.text()
	if err != nil {
		return err
	}
	attempt := func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, s.Kind, s.Host)
		if err != nil {
			return err
		}
		e := entry{instance: instance}
		if len(list) > 0 {
			e.is = &list[0]
			if err := e.is.admit(s.Instance); err != nil {
				return err
			}
		}
		if e.now, err = db.Now(ctx, tx); err != nil {
			return err
		}
		return write(ctx, tx, e)
	}
	err = db.Tx(ctx, r.cfg.DB, attempt)
	if err != nil && fault.CodeOf(err) == fault.Conflict { // another process has entered first, so the member exists now
		err = db.Tx(ctx, r.cfg.DB, attempt)
	}
	return err
}

// insert creates a member.
func (r *Registry) insert(ctx context.Context, tx *sqlx.Tx, s Self, e entry, report serves, departed bool) error {
	text, err := report.text()
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, tx, `INSERT INTO members (kind, host, id, version, data, instance, serves, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, FALSE, '', FALSE, ?, ?, ?, ?)`,
		s.Kind, s.Host, uuid.NewString(), s.Version, s.Data, e.instance, text, departed, e.now, e.now, e.now)
	return err
}

// Leave makes a member down at once. Call it when the process of the member stops. If the instance has only announced itself, see
// [Registry.Announce], Leave ends the announcement. It changes nothing, and returns nil, if the member does not exist or belongs
// to another instance.
func (r *Registry) Leave(ctx context.Context, kind, host, instance string) error {
	return r.markDeparted(ctx, kind, host, instance, "")
}

// markDeparted does what Leave does. It changes nothing if process is not empty and another process has joined since.
func (r *Registry) markDeparted(ctx context.Context, kind, host, instance, process string) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, kind, host)
		switch {
		case err != nil || len(list) == 0:
			return err
		case list[0].Instance.ID != instance && instance != "" && list[0].serves.Process == instance: // the instance has only announced itself
			return r.writeServes(ctx, tx, kind, host, list[0].withdrawn())
		case list[0].Instance.ID != instance:
			return nil
		}
		if now := list[0].serves; process != "" && now.Process != process && now.Joined {
			return nil
		}
		report := list[0].serves
		if process == "" {
			report.Announced = false // the whole member leaves
		}
		if !report.Announced {
			report.Ended = list[0].SeenAt.Add(list[0].age)
		}
		if _, err = db.Exec(ctx, tx, `UPDATE members SET departed = TRUE WHERE kind = ? AND host = ?`, kind, host); err != nil || report.JoinedAt.IsZero() {
			return err
		}
		return r.writeServes(ctx, tx, kind, host, report)
	})
}

// Remove removes a member. Errors: NotFound if the member does not exist; Precondition if the member is up, because its next
// heartbeat would bring it back.
func (r *Registry) Remove(ctx context.Context, kind, host string) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, kind, host)
		if err != nil {
			return err
		}
		if len(list) > 0 && list[0].Up {
			return fault.New(fault.Precondition, "%s on host %s is up, and a member that is up cannot be removed", kind, host)
		}
		if err := db.ExecOne(ctx, tx, notFound(kind, host), `DELETE FROM members WHERE kind = ? AND host = ?`, kind, host); err != nil {
			return err
		}
		return r.keepHistory(ctx, tx, &list[0])
	})
}

// Disable excludes a member from new work, for a reason; [Registry.Enable] undoes this. NotFound: the member does not exist.
func (r *Registry) Disable(ctx context.Context, kind, host, reason string) error {
	return db.ExecOne(ctx, r.cfg.DB, notFound(kind, host), `UPDATE members SET disabled = TRUE, disabled_reason = ? WHERE kind = ? AND host = ?`, reason, kind, host)
}

// Enable undoes [Registry.Disable]. NotFound: the member does not exist.
func (r *Registry) Enable(ctx context.Context, kind, host string) error {
	return db.ExecOne(ctx, r.cfg.DB, notFound(kind, host), `UPDATE members SET disabled = FALSE, disabled_reason = '' WHERE kind = ? AND host = ?`, kind, host)
}

// ForceDown makes a member down in spite of its heartbeats, for example after its host was fenced off. If the parameter down is
// false, ForceDown undoes this. NotFound: the member does not exist.
func (r *Registry) ForceDown(ctx context.Context, kind, host string, down bool) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, kind, host)
		switch {
		case err != nil:
			return err
		case len(list) == 0:
			return notFound(kind, host)
		case list[0].ForcedDown == down:
			return nil
		}
		if _, err := db.Exec(ctx, tx, `UPDATE members SET forced_down = ? WHERE kind = ? AND host = ?`, down, kind, host); err != nil || list[0].serves.JoinedAt.IsZero() {
			return err
		}
		return r.writeServes(ctx, tx, kind, host, list[0].forced(down))
	})
}

// List returns the members of a kind, or all members if kind is empty, sorted by kind and host. It reads the database. For a kind
// without members it returns an empty list. Errors: those of [db.Error].
func (r *Registry) List(ctx context.Context, kind string) ([]Member, error) {
	if kind == "" {
		return r.list(ctx, r.cfg.DB, `ORDER BY kind, host`)
	}
	return r.list(ctx, r.cfg.DB, `WHERE kind = ? ORDER BY host`, kind)
}

// Get returns one member. NotFound: the member does not exist.
func (r *Registry) Get(ctx context.Context, kind, host string) (*Member, error) {
	list, err := r.list(ctx, r.cfg.DB, `WHERE kind = ? AND host = ?`, kind, host)
	if err == nil && len(list) == 0 {
		return nil, notFound(kind, host)
	}
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// memberRow is a row of the table.
type memberRow struct {
	Member

	Text   string `db:"instance"`
	Report string `db:"serves"`
}

// list returns the members that the SQL clause where selects.
func (r *Registry) list(ctx context.Context, q sqlx.QueryerContext, where string, args ...any) ([]Member, error) {
	list := []Member{}
	rows := []struct {
		memberRow

		Now time.Time `db:"now"`
	}{}
	err := sqlx.SelectContext(ctx, q, &rows, `SELECT `+db.Columns[memberRow]()+`, UTC_TIMESTAMP(6) AS now FROM members `+where, args...)
	if err != nil {
		return nil, db.Error(err)
	}
	for _, row := range rows {
		m := row.Member
		m.Instance, m.age = parseInstance(row.Text), row.Now.Sub(row.SeenAt)
		m.serves = parseServes(row.Report, m.JoinedAt)
		m.Interfaces = m.serves.Interfaces
		m.Up, m.Why = m.judge(r.cfg.DownAfter)
		list = append(list, m)
	}
	return list, nil
}

// judge reports whether a member is up. If it is not, why is the reason.
func (m Member) judge(downAfter time.Duration) (up bool, why string) {
	switch {
	case m.ForcedDown:
		return false, "an operator has forced it down"
	case m.Departed && m.serves.Announced:
		return false, "it is starting or stopping"
	case m.Departed:
		return false, "it was stopped"
	case m.age > downAfter:
		return false, fmt.Sprintf("it was last seen %v ago", m.age.Round(time.Second))
	case m.age < -downAfter: // as in Nova: otherwise the member would be up for as long as the clock was wrong
		return false, fmt.Sprintf("its last heartbeat is %v in the future: the database's clock was set back", -m.age.Round(time.Second))
	}
	return true, ""
}

// Counts reports whether other services must use only what this member supports: the member has not left, or is announced (see
// [MemberPart.Announcement]), and is not forced down. A member without heartbeats counts, because it may come back. (In Nova
// every service that is not deleted counts, so a host that is lost for good limits all other hosts.)
func (m Member) Counts() bool { return !m.ForcedDown && (!m.Departed || m.serves.Announced) }

// MinVersion returns the lowest version of a kind's members that count, see [Member.Counts]. Use only the functions of this
// version. It returns 0 if no member of the kind counts. Errors: those of [db.Error].
func (r *Registry) MinVersion(ctx context.Context, kind string) (int, error) {
	list, err := r.List(ctx, kind)
	if err != nil {
		return 0, err
	}
	least := 0
	for _, m := range list {
		if m.Counts() && (least == 0 || m.Version < least) {
			least = m.Version
		}
	}
	return least, nil
}

func notFound(kind, host string) error {
	return fault.New(fault.NotFound, "member %s on host %s does not exist", kind, host)
}
