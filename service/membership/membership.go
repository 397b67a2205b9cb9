// Package membership knows which services of a component live: each has a row in the
// component's database, in which it leaves signs of life by the database's clock, so
// that the clocks of the hosts do not matter.
//
//	r := membership.New(membership.Config{DB: d})
//	app.Add("member", r.Member(membership.MemberConfig{Self: membership.Self{Kind: "volume-worker", Host: host}}))
//	...
//	list, err := r.List(ctx, "volume-worker") // with up or down, and why
//
// A member is up if it has not left, was seen within DownAfter, and nobody says that it
// is down. It is enabled unless an operator has disabled it: it does what it has, and
// gets nothing new. The meaning of all this is that of Nova's services.
//
// Where only one process may be a member, such as the worker of a host, its [Self] has an [Instance]:
// a second process with the same kind and host is refused. A [FileLock] lets a process that was killed
// in again at once.
//
// The table is that of schema.sql and schema2.sql, which [Schema] and [Schema2] have, for the component's
// migrations.
package membership

import (
	"cmp"
	"context"
	_ "embed" // the schema
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Schema makes the table, on MySQL, MariaDB and SQLite. It is a migration: a component
// copies it into a file among its own, for db.Migrate.
//
//go:embed schema.sql
var Schema string

// Schema2 is a later migration, which follows Schema.
//
//go:embed schema2.sql
var Schema2 string

// Config configures a [Registry]. DB is required.
type Config struct {
	// DB has the table, and stays the caller's.
	DB *sqlx.DB
	// DownAfter is how long a member may be silent and still be up. Default 60 s, as
	// Nova's service_down_time.
	DownAfter time.Duration
}

// Registry is the table of members. It is safe for concurrent use. Every method may
// fail with Unavailable while the database is away.
type Registry struct {
	cfg   Config
	beats beats
}

// New returns a registry.
func New(cfg Config) *Registry {
	cfg.DownAfter = cmp.Or(cfg.DownAfter, time.Minute)
	return &Registry{cfg: cfg}
}

// Self is what a service says of itself.
type Self struct {
	// Kind is what it is, such as "volume-worker", Host where: together they are the
	// member. One host may have members of several kinds.
	Kind, Host string
	// Version is a number that grows with what it can do, so that others can wait
	// until all can, see [Registry.MinVersion].
	Version int
	// Data is anything else, such as JSON; at most 64 KiB.
	Data string
	// Instance is the process, if only one may be the member. Default: several may be.
	Instance Instance
}

// Member is a service that is known.
type Member struct {
	Kind           string    `db:"kind"`
	Host           string    `db:"host"`
	ID             string    `db:"id"` // a UUID
	Version        int       `db:"version"`
	Data           string    `db:"data"`
	Disabled       bool      `db:"disabled"`
	DisabledReason string    `db:"disabled_reason"`
	ForcedDown     bool      `db:"forced_down"`
	Departed       bool      `db:"departed"`   // it has stopped, and said so
	JoinedAt       time.Time `db:"joined_at"`  // its last start
	SeenAt         time.Time `db:"seen_at"`    // its last sign of life
	CreatedAt      time.Time `db:"created_at"` // its first start

	// Instance is the process that the member belongs to. Its ID is empty if several may be the member.
	Instance Instance `db:"-"`
	// Up says that it lives, Why why not.
	Up  bool   `db:"-"`
	Why string `db:"-"`

	silent time.Duration
}

// Name returns the host's, so that a member is a host of package scheduler as it is.
func (m Member) Name() string { return m.Host }

// Unfit says why nothing new is to be given to a member: it is down, or an operator has
// disabled it. Empty: it is fit.
func (m Member) Unfit() string {
	if m.Up && m.Disabled {
		return "disabled: " + m.DisabledReason
	}
	return m.Why
}

// Join makes a service a member, or one that comes back. What an operator has said of
// it stays so. Invalid: it has no kind or no host. [ErrHeld]: the member is up and belongs to another
// process; the error names it. Of several that join at once, one becomes the member.
func (r *Registry) Join(ctx context.Context, s Self) error {
	if s.Kind == "" || s.Host == "" {
		return fault.New(fault.Invalid, "member %q on host %q: it needs both names", s.Kind, s.Host)
	}
	instance, err := s.Instance.text()
	if err != nil {
		return err
	}
	join := func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, s.Kind, s.Host)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			_, err = db.Exec(ctx, tx, `INSERT INTO members (kind, host, id, version, data, instance, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
				VALUES (?, ?, ?, ?, ?, ?, FALSE, '', FALSE, FALSE, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))`,
				s.Kind, s.Host, uuid.NewString(), s.Version, s.Data, instance)
			return err
		}
		if err := list[0].admit(s.Instance); err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `UPDATE members SET version = ?, data = ?, instance = ?, departed = FALSE, joined_at = UTC_TIMESTAMP(6), seen_at = UTC_TIMESTAMP(6)
			WHERE kind = ? AND host = ?`, s.Version, s.Data, instance, s.Kind, s.Host)
		return err
	}
	err = db.Tx(ctx, r.cfg.DB, join)
	if err != nil && fault.CodeOf(err) == fault.Conflict { // another process has joined first: now there is a member
		err = db.Tx(ctx, r.cfg.DB, join)
	}
	return err
}

// Leave says that a member stops: it is down at once. A member that does not exist, or that belongs to
// another instance, is left alone without an error.
func (r *Registry) Leave(ctx context.Context, kind, host, instance string) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		holders, err := r.holders(ctx, tx, `kind = ? AND host = ? FOR UPDATE`, kind, host)
		if err != nil || holders[host].ID != instance {
			return err
		}
		_, err = db.Exec(ctx, tx, `UPDATE members SET departed = TRUE WHERE kind = ? AND host = ?`, kind, host)
		return err
	})
}

// Remove forgets a member. NotFound: there is none; Precondition: it is up, and would
// only come back.
func (r *Registry) Remove(ctx context.Context, kind, host string) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, kind, host)
		if err != nil {
			return err
		}
		if len(list) > 0 && list[0].Up {
			return fault.New(fault.Precondition, "%s on host %s is up", kind, host)
		}
		return db.ExecOne(ctx, tx, notFound(kind, host), `DELETE FROM members WHERE kind = ? AND host = ?`, kind, host)
	})
}

// Disable says that a member gets nothing new, and why; Enable that it does again.
// NotFound.
func (r *Registry) Disable(ctx context.Context, kind, host, reason string) error {
	return db.ExecOne(ctx, r.cfg.DB, notFound(kind, host), `UPDATE members SET disabled = TRUE, disabled_reason = ? WHERE kind = ? AND host = ?`, reason, kind, host)
}

// Enable is the opposite of Disable.
func (r *Registry) Enable(ctx context.Context, kind, host string) error {
	return db.ExecOne(ctx, r.cfg.DB, notFound(kind, host), `UPDATE members SET disabled = FALSE, disabled_reason = '' WHERE kind = ? AND host = ?`, kind, host)
}

// ForceDown says that a member is down, whatever it says itself, such as after its host
// was fenced off, or with down false that nobody says so any more. NotFound.
func (r *Registry) ForceDown(ctx context.Context, kind, host string, down bool) error {
	return db.ExecOne(ctx, r.cfg.DB, notFound(kind, host), `UPDATE members SET forced_down = ? WHERE kind = ? AND host = ?`, down, kind, host)
}

// List returns the members of a kind, or all if that is empty, by kind and host.
func (r *Registry) List(ctx context.Context, kind string) ([]Member, error) {
	if kind == "" {
		return r.list(ctx, r.cfg.DB, `ORDER BY kind, host`)
	}
	return r.list(ctx, r.cfg.DB, `WHERE kind = ? ORDER BY host`, kind)
}

// Get returns one member. NotFound.
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

func (r *Registry) list(ctx context.Context, q sqlx.QueryerContext, where string, args ...any) ([]Member, error) {
	list := []Member{}
	rows := []struct {
		Member

		Text string    `db:"instance"`
		Now  time.Time `db:"now"`
	}{}
	err := sqlx.SelectContext(ctx, q, &rows, `SELECT members.*, UTC_TIMESTAMP(6) AS now FROM members `+where, args...)
	if err != nil {
		return nil, db.Error(err)
	}
	for _, row := range rows {
		m := row.Member
		m.Instance, m.silent = parseInstance(row.Text), row.Now.Sub(row.SeenAt)
		m.Up, m.Why = m.judge(r.cfg.DownAfter)
		list = append(list, m)
	}
	return list, nil
}

// judge reports whether a member lives, and why not.
func (m Member) judge(downAfter time.Duration) (up bool, why string) {
	switch {
	case m.ForcedDown:
		return false, "an operator says that it is down"
	case m.Departed:
		return false, "it was stopped"
	case m.silent > downAfter:
		return false, fmt.Sprintf("it was last seen %v ago", m.silent.Round(time.Second))
	case m.silent < -downAfter: // as in Nova: else it would be up for as long as the clock was wrong
		return false, fmt.Sprintf("its last heartbeat is %v in the future: the database's clock was set back", -m.silent.Round(time.Second))
	}
	return true, ""
}

// MinVersion returns the least version of a kind's members that have not left and are
// not forced down, whether they were seen lately or not: one that is only silent may come
// back. What the least one cannot do nobody may ask for. 0: there is none. (In Nova all
// that are not deleted count, so that a host that is gone for good holds all others
// back.)
func (r *Registry) MinVersion(ctx context.Context, kind string) (int, error) {
	list, err := r.List(ctx, kind)
	if err != nil {
		return 0, err
	}
	least := 0
	for _, m := range list {
		if !m.Departed && !m.ForcedDown && (least == 0 || m.Version < least) {
			least = m.Version
		}
	}
	return least, nil
}

func notFound(kind, host string) error {
	return fault.New(fault.NotFound, "there is no %s on host %s", kind, host)
}
