// Package store is nova-mini's database. It is the source of truth for flavors, servers, the operations on
// servers, services, hosts and claims. The conductor, the scheduler and the API service use the store.
// Compute services have no access to the database.
package store

import (
	"context"
	"embed"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/idempotency"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/quota"
)

//go:embed migrations/*.sql
var files embed.FS

// Migrations returns the migrations of the libraries and of the component, for db.Migrate.
func Migrations() []db.Migrations {
	return []db.Migrations{placement.Migrations, operation.Migrations, membership.Migrations, idempotency.Migrations, quota.Migrations, db.Embedded("", files)}
}

// Store reads and writes the database. It is safe for concurrent use. Every method may fail with
// Unavailable while the database is down. The error codes in the comments of the methods, such as NotFound,
// are those of package fault.
type Store struct {
	db      *sqlx.DB
	claims  *placement.SQL
	ops     *operation.Store
	members *membership.Registry
	caps    *rpccaps.Caps
	replies *idempotency.Store
	limits  Limits
	quotas  *quota.Store // for servers
	counted *quota.Store // for servers, without limits: for changes that the quota must not refuse
	keys    *quota.Store // for key pairs
	groups  *quota.Store // for server groups
	reports reports
}

// New returns a store on a migrated database, without quota limits. The store does not close the database.
func New(d *sqlx.DB) *Store { return NewLimited(d, nil) }

// NewLimited is New with quota limits. It panics if a limit is below -1.
func NewLimited(d *sqlx.DB, limits Limits) *Store {
	members := membership.New(membership.Config{DB: d})
	return &Store{
		db: d, claims: placement.NewSQL(d), ops: operation.NewStore(d), members: members,
		caps:    rpccaps.New(rpccaps.Config{Members: members, Unreported: compute.Unreported}),
		replies: idempotency.New(idempotency.Config{DB: d}),
		limits:  limits,
		quotas:  limits.of(d, Cores, Instances, RAM),
		counted: Limits(nil).of(d, Cores, Instances, RAM),
		keys:    limits.of(d, KeyPairs),
		groups:  limits.of(d, ServerGroups),
	}
}

// Replies returns the store of the replies to requests with the header Idempotency-Key. For a nil Store, as when the OpenAPI document is printed, it returns nil.
func (s *Store) Replies() *idempotency.Store {
	if s == nil {
		return nil
	}
	return s.replies
}

// AfterCommit calls f after the transaction of ctx has committed, see db.AfterCommit.
func (s *Store) AfterCommit(ctx context.Context, f func()) { db.AfterCommit(ctx, s.db, f) }

// get reads one row into out. It returns the parameter missing if the query returns no row.
func (s *Store) get(ctx context.Context, q sqlx.QueryerContext, out any, missing error, query string, args ...any) error {
	err := db.Error(sqlx.GetContext(ctx, q, out, query, args...))
	if fault.CodeOf(err) == fault.NotFound && err != nil {
		return missing
	}
	return err
}

// tx runs f in a transaction. The parameter now of f is the database's time. All times in a transaction come from the
// database's clock, because the clocks of the hosts may differ.
func (s *Store) tx(ctx context.Context, f func(ctx context.Context, tx *sqlx.Tx, now time.Time) error) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		now, err := db.Now(ctx, tx)
		if err != nil {
			return err
		}
		return f(ctx, tx, now)
	})
}
