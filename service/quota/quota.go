// Package quota limits how much a project may use of a class, such as "volumes" or "gigabytes". Any number of processes may share
// the database: a limit is never exceeded, because usage is counted in the transaction in which the component writes its own
// row.
//
//	q := quota.New(quota.Config{DB: d, Limits: map[string]int64{"volumes": 10, "gigabytes": 1000}})
//	err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//		if err := q.Reserve(ctx, tx, quota.Claim{Consumer: v.ID, Project: v.ProjectID, Amounts: map[string]int64{"volumes": 1, "gigabytes": v.Size}}); err != nil {
//			return err // 403: errors.Is(err, quota.ErrExceeded)
//		}
//		return insertVolume(ctx, tx, v)
//	})
//
// A claim belongs to a consumer, such as the id of a resource. So a retry counts once, [Store.Release] needs the
// consumer only, and [Store.Repair] can count usage again. A claim has no time limit: the component releases it in the transaction that
// removes the row of the consumer.
//
// The tables are those of [Migrations].
package quota

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Migrations creates the tables, on MySQL, MariaDB and SQLite. A component gives them to [db.Migrate] and [db.Check], before its own.
var Migrations = db.Embedded("quota", migrations)

//go:embed migrations/*.sql
var migrations embed.FS

// Unlimited as the value of a limit means: no limit.
const Unlimited = -1

// ErrExceeded is the error of a claim for which a limit leaves no room. Its code is Exhausted, which package api answers with 403.
// Meta has "class", "limit", "used" and "requested", each as a text. If the limits of several classes leave no room, each text has the
// values of all these classes, sorted by class and separated by ", ".
var ErrExceeded = &fault.Error{Code: fault.Exhausted, Reason: "QuotaExceeded", Msg: "quota exceeded"}

// Config configures a [Store]. DB and Limits are required.
type Config struct {
	// DB is the database with the tables. The caller closes it.
	DB *sqlx.DB
	// Limits are the classes, each with the limit of a project that has no limit of its own. [Unlimited]: no limit. A class
	// that is not in Limits does not exist.
	Limits map[string]int64
}

// Store counts usage. It is safe for concurrent use.
type Store struct {
	cfg Config
}

// New returns a Store. It panics without a DB or without a class. It also panics if a class has an empty name, a name of
// more than 64 bytes or a limit below -1. These are programmers' errors.
func New(cfg Config) *Store {
	if cfg.DB == nil || len(cfg.Limits) == 0 {
		panic("quota: Config needs a DB and Limits")
	}
	for class, limit := range cfg.Limits {
		if class == "" || len(class) > 64 || limit < Unlimited {
			panic(fmt.Sprintf("quota: class %q has the limit %d: the name must have 1 to 64 bytes, and the limit must be at least -1 (no limit)", class, limit))
		}
	}
	cfg.Limits = maps.Clone(cfg.Limits)
	return &Store{cfg}
}

// Claim has the amounts that a consumer uses.
type Claim struct {
	// Consumer is the id of the object that uses the amounts, such as a resource, of 1 to 64 bytes. A consumer has one claim.
	Consumer string
	// Project is the project whose limits apply, of 1 to 255 bytes. The claim of a consumer keeps its project.
	Project string
	// Amounts are the amounts by class, each at least 0. A class that is missing has the amount 0.
	Amounts map[string]int64
}

// check returns an error if the claim is malformed.
func (s *Store) check(c Claim) error {
	switch {
	case c.Consumer == "" || len(c.Consumer) > 64:
		return fault.New(fault.Invalid, "quota claim: the consumer %.80q must have 1 to 64 bytes", c.Consumer)
	case c.Project == "" || len(c.Project) > 255:
		return fault.New(fault.Invalid, "quota claim of %s: the project %.80q must have 1 to 255 bytes", c.Consumer, c.Project)
	}
	for class, n := range c.Amounts {
		if err := s.checkClass(class); err != nil {
			return err
		}
		if n < 0 {
			return fault.New(fault.Invalid, "quota claim of %s: the amount of %s is %d, below 0", c.Consumer, class, n)
		}
	}
	return nil
}

// checkClass returns an error if a class does not exist.
func (s *Store) checkClass(class string) error {
	if _, ok := s.cfg.Limits[class]; !ok {
		return fault.New(fault.Invalid, "quota class %.80q does not exist; the classes are %s", class, strings.Join(slices.Sorted(maps.Keys(s.cfg.Limits)), ", "))
	}
	return nil
}

// claimRow is a row of quota_claims. The column until is not used, and NULL. Release 0.1 uses it, and runs with the
// schema of release 0.2, so only the schema of release 0.3 may drop it.
type claimRow struct {
	Consumer string `db:"consumer"`
	Class    string `db:"class"`
	Project  string `db:"project"`
	Amount   int64  `db:"amount"`
}

// Reserve makes the claims of consumers. If a consumer has a claim already, Reserve replaces it: the consumer then has the new amounts,
// which may be more or less. Either all claims are made, or none. The parameter tx is a transaction of [db.Tx] on the database. The claims
// count when tx commits. Until then, other transactions that claim for the same project and class wait. Call Reserve late in tx, so that
// they wait briefly.
//
// Errors: ErrExceeded, if a class whose amount grows would exceed its limit; Invalid, if a claim is malformed, if the claims have several
// projects, or if two claims have the same consumer; Conflict, if a consumer has a claim of another project; those of the database. After an
// error, tx must be rolled back.
func (s *Store) Reserve(ctx context.Context, tx *sqlx.Tx, claims ...Claim) error {
	changes, consumers := map[string]int64{}, map[string]bool{}
	for _, c := range claims {
		err := s.check(c)
		switch {
		case err != nil:
			return err
		case c.Project != claims[0].Project:
			return fault.New(fault.Invalid, "quota claims of the projects %s and %s: make the claims of each project in a call of its own", claims[0].Project, c.Project)
		case consumers[c.Consumer]:
			return fault.New(fault.Invalid, "quota claim of %s: the call has two claims of this consumer: make one claim with all amounts", c.Consumer)
		}
		consumers[c.Consumer] = true
	}
	for _, c := range claims {
		if err := s.writeClaim(ctx, tx, c, changes); err != nil {
			return err
		}
	}
	if len(claims) == 0 {
		return nil
	}
	return s.addUsage(ctx, tx, claims[0].Project, changes)
}

// writeClaim writes the rows of a claim. It adds the differences from the consumer's previous amounts to changes.
func (s *Store) writeClaim(ctx context.Context, tx *sqlx.Tx, c Claim, changes map[string]int64) error {
	var have map[string]claimRow
	classes := s.classes()
	err := insertClaims(ctx, tx, c, classes)
	if errors.Is(err, fault.Conflict) { // the consumer has a claim
		if have, err = claimOf(ctx, tx, c.Consumer); err == nil { // the claim may lack rows for classes that are new in Limits
			classes = slices.DeleteFunc(classes, func(class string) bool { _, ok := have[class]; return ok })
			err = insertClaims(ctx, tx, c, classes)
		}
	}
	if err != nil {
		return fmt.Errorf("quota claim of %s: %w", c.Consumer, err)
	}
	for class, n := range c.Amounts {
		changes[class] += n
	}
	for class, row := range have {
		if row.Project != c.Project {
			return fault.New(fault.Conflict, "quota claim of %s: it belongs to the project %s, and not to %s: release it first", c.Consumer, row.Project, c.Project)
		}
		changes[class] -= row.Amount
		_, err := db.Exec(ctx, tx, `UPDATE quota_claims SET amount = ? WHERE consumer = ? AND class = ?`, c.Amounts[class], c.Consumer, row.Class)
		if err != nil {
			return fmt.Errorf("quota claim of %s: %w", c.Consumer, err)
		}
	}
	return nil
}

// classes returns the classes, sorted: transactions lock rows in this order, so that no two wait for each other.
func (s *Store) classes() []string { return slices.Sorted(maps.Keys(s.cfg.Limits)) }

// insertClaims inserts a row for each class, with the amount 0 for a class that the claim does not have. So a later change finds
// all rows, and locks no gap between rows, in which other transactions insert theirs.
func insertClaims(ctx context.Context, tx *sqlx.Tx, c Claim, classes []string) error {
	if len(classes) == 0 {
		return nil
	}
	var values []string
	var args []any
	for _, class := range classes {
		values = append(values, "(?, ?, ?, ?)")
		args = append(args, c.Consumer, class, c.Project, c.Amounts[class])
	}
	_, err := db.Exec(ctx, tx, `INSERT INTO quota_claims (consumer, class, project, amount) VALUES `+strings.Join(values, ", "), args...)
	return err
}

// claimOf locks and returns the rows of a consumer's claim, by class.
func claimOf(ctx context.Context, tx *sqlx.Tx, consumer string) (map[string]claimRow, error) {
	var rows []claimRow
	if err := tx.SelectContext(ctx, &rows, `SELECT `+db.Columns[claimRow]()+` FROM quota_claims WHERE consumer = ? ORDER BY class FOR UPDATE`, consumer); err != nil {
		return nil, fmt.Errorf("read the quota claim of %s: %w", consumer, db.Error(err))
	}
	out := make(map[string]claimRow, len(rows))
	for _, row := range rows {
		out[row.Class] = row
	}
	return out, nil
}

// usageRow is a row of quota_usage.
type usageRow struct {
	Class string `db:"class"`
	Used  int64  `db:"used"`
	Max   *int64 `db:"max"`
}

// addUsage changes the usage of a project by the amounts of the classes. It returns ErrExceeded if an amount is above 0 and the
// limit leaves no room.
func (s *Store) addUsage(ctx context.Context, tx *sqlx.Tx, project string, changes map[string]int64) error {
	maps.DeleteFunc(changes, func(_ string, n int64) bool { return n == 0 })
	if len(changes) == 0 {
		return nil
	}
	classes := slices.Sorted(maps.Keys(changes))
	rows, err := lockUsage(ctx, tx, project, classes)
	if err != nil {
		return err
	}
	var args []any
	var over exceeded
	for _, class := range classes {
		row, n := rows[class], changes[class]
		if limit := s.limitOf(row); n > 0 && limit != Unlimited && n > limit-row.Used {
			over.add(class, n, row.Used, limit)
		}
		args = append(args, class, max(row.Used+n, 0))
	}
	if len(over.classes) > 0 {
		return over.err()
	}
	query, args, err := sqlx.In(`UPDATE quota_usage SET used = CASE class`+strings.Repeat(" WHEN ? THEN ?", len(classes))+` END WHERE project = ? AND class IN (?)`, append(args, project, classes)...)
	if err == nil {
		_, err = db.Exec(ctx, tx, query, args...)
	}
	if err != nil {
		return fmt.Errorf("change the quota usage of project %s: %w", project, err)
	}
	return nil
}

// lockUsage locks and returns the rows of a project's usage, by class. It inserts those that do not exist.
func lockUsage(ctx context.Context, tx *sqlx.Tx, project string, classes []string) (map[string]usageRow, error) {
	query, args, err := sqlx.In(`SELECT class, used, max FROM quota_usage WHERE project = ? AND class IN (?) ORDER BY class FOR UPDATE`, project, classes)
	if err != nil {
		return nil, fmt.Errorf("read the quota usage of project %s: %w", project, err)
	}
	for range 2 {
		var rows []usageRow
		if err := tx.SelectContext(ctx, &rows, query, args...); err != nil {
			return nil, fmt.Errorf("read the quota usage of project %s: %w", project, db.Error(err))
		}
		out := map[string]usageRow{}
		for _, row := range rows {
			out[row.Class] = row
		}
		if len(out) == len(classes) {
			return out, nil
		}
		missing := slices.DeleteFunc(slices.Clone(classes), func(class string) bool { _, ok := out[class]; return ok })
		if err := insertUsage(ctx, tx, project, missing); err != nil {
			return nil, err
		}
	}
	return nil, fault.New(fault.Unavailable, "the quota usage of project %s was deleted meanwhile: try again", project)
}

// insertUsage inserts rows without usage. Rows that exist stay.
func insertUsage(ctx context.Context, tx *sqlx.Tx, project string, classes []string) error {
	for _, class := range classes {
		_, err := db.Exec(ctx, tx, `INSERT INTO quota_usage (project, class, used) VALUES (?, ?, 0)`, project, class)
		if err != nil && !errors.Is(err, fault.Conflict) { // Conflict: another transaction has inserted it
			return fmt.Errorf("insert the quota usage of project %s: %w", project, err)
		}
	}
	return nil
}

// limitOf returns the limit of a project for the class of a row.
func (s *Store) limitOf(row usageRow) int64 {
	if row.Max != nil {
		return *row.Max
	}
	if limit, ok := s.cfg.Limits[row.Class]; ok {
		return limit
	}
	return Unlimited // a class that was removed from Limits, whose claims are released
}

// exceeded has the figures of the classes whose limits leave no room.
type exceeded struct{ classes, requested, used, limits []string }

func (e *exceeded) add(class string, requested, used, limit int64) {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	e.classes, e.requested = append(e.classes, class), append(e.requested, number(requested))
	e.used, e.limits = append(e.used, number(used)), append(e.limits, number(limit))
}

// err returns ErrExceeded with the figures.
func (e *exceeded) err() error {
	list := func(texts []string) string { return strings.Join(texts, ", ") }
	classes, requested, used, limits := list(e.classes), list(e.requested), list(e.used), list(e.limits)
	err := fault.New(fault.Exhausted, "Quota exceeded for %s: Requested %s, but already used %s of %s %s", classes, requested, used, limits, classes)
	return fault.WithReason(err, ErrExceeded.Reason, map[string]string{"class": classes, "requested": requested, "used": used, "limit": limits})
}

// Release ends the claim of a consumer. Without a claim it does nothing, so it may be repeated. Errors: those of the database.
func (s *Store) Release(ctx context.Context, tx *sqlx.Tx, consumer string) error {
	have, err := claimOf(ctx, tx, consumer)
	if err != nil || len(have) == 0 {
		return err
	}
	changes, project := map[string]int64{}, ""
	for class, row := range have {
		changes[class], project = -row.Amount, row.Project
	}
	if err := s.addUsage(ctx, tx, project, changes); err != nil {
		return err
	}
	if _, err := db.Exec(ctx, tx, `DELETE FROM quota_claims WHERE consumer = ?`, consumer); err != nil {
		return fmt.Errorf("release the quota claim of %s: %w", consumer, err)
	}
	return nil
}

// Usage is a project's use of a class.
type Usage struct {
	Class string
	Used  int64 // the sum of the claims
	// Limit is the project's limit of the class, or [Unlimited]. Used may be above Limit after the limit was lowered.
	Limit int64
}

// Usage returns a project's use of each class, sorted by class. Errors: those of the database.
func (s *Store) Usage(ctx context.Context, project string) ([]Usage, error) {
	var rows []usageRow
	err := s.cfg.DB.SelectContext(ctx, &rows, `SELECT class, used, max FROM quota_usage WHERE project = ?`, project)
	if err != nil {
		return nil, fmt.Errorf("read the quota usage of project %s: %w", project, db.Error(err))
	}
	var out []Usage
	for _, class := range s.classes() {
		u := Usage{Class: class, Limit: s.cfg.Limits[class]}
		for _, row := range rows {
			if row.Class == class {
				u.Used, u.Limit = row.Used, s.limitOf(row)
			}
		}
		out = append(out, u)
	}
	return out, nil
}

// SetLimit sets a project's own limit of a class. A nil limit removes the project's own limit, so that the limit of [Config] applies. A
// limit may be below the project's usage: then no claim may grow. Errors: Invalid, if the class does not exist or the limit is
// below [Unlimited]; those of the database.
func (s *Store) SetLimit(ctx context.Context, project, class string, limit *int64) error {
	if err := s.checkClass(class); err != nil {
		return err
	}
	if project == "" || len(project) > 255 {
		return fault.New(fault.Invalid, "quota limit of %s: the project %.80q must have 1 to 255 bytes", class, project)
	}
	if limit != nil && *limit < Unlimited {
		return fault.New(fault.Invalid, "quota limit of %s for the project %s: %d is below -1 (no limit)", class, project, *limit)
	}
	return db.Tx(ctx, s.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := lockUsage(ctx, tx, project, []string{class}); err != nil {
			return err
		}
		if _, err := db.Exec(ctx, tx, `UPDATE quota_usage SET max = ? WHERE project = ? AND class = ?`, limit, project, class); err != nil {
			return fmt.Errorf("set the limit of %s: %w", class, err)
		}
		return nil
	})
}

// Repaired is a usage that was wrong. Was is the wrong value, and Is the right one.
type Repaired struct {
	Project, Class string
	Was, Is        int64
}

// Consumers returns the consumers that have a claim of a class of this Store, sorted. A component compares them with its own
// rows: it releases the claims of consumers that do not exist, and reserves missing claims. Errors: those of the database.
func (s *Store) Consumers(ctx context.Context) ([]string, error) {
	query, args, err := sqlx.In(`SELECT DISTINCT consumer FROM quota_claims WHERE class IN (?) ORDER BY consumer`, s.classes())
	if err != nil {
		return nil, fmt.Errorf("read the consumers of quotas: %w", err)
	}
	out := []string{}
	if err := s.cfg.DB.SelectContext(ctx, &out, query, args...); err != nil {
		return nil, fmt.Errorf("read the consumers of quotas: %w", db.Error(err))
	}
	return out, nil
}

// Repair counts all usage again from the claims, and returns the usage that was wrong. Usage becomes wrong only if rows are changed
// by hand, or restored from a copy. If no usage is wrong, Repair makes one query. Other processes may make claims meanwhile. Errors: those
// of the database; the usage that was repaired before the error stays repaired.
func (s *Store) Repair(ctx context.Context) ([]Repaired, error) {
	var keys []struct {
		Project string `db:"project"`
		Class   string `db:"class"`
	}
	err := s.cfg.DB.SelectContext(ctx, &keys, `SELECT project, class FROM (
		SELECT project, class, used AS difference FROM quota_usage UNION ALL SELECT project, class, -amount FROM quota_claims) both_sides
		GROUP BY project, class HAVING SUM(difference) <> 0 ORDER BY project, class`)
	if err != nil {
		return nil, fmt.Errorf("read the quota usage: %w", db.Error(err))
	}
	var out []Repaired
	for _, k := range keys {
		r := Repaired{Project: k.Project, Class: k.Class}
		if err := db.Tx(ctx, s.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error { return repairUsage(ctx, tx, &r) }); err != nil {
			return out, err
		}
		if r.Was != r.Is {
			out = append(out, r)
		}
	}
	return out, nil
}

// repairUsage counts one usage again. It locks the row before it reads the claims, so that it sees all claims of transactions that have
// changed the row.
func repairUsage(ctx context.Context, tx *sqlx.Tx, r *Repaired) error {
	rows, err := lockUsage(ctx, tx, r.Project, []string{r.Class})
	if err != nil {
		return err
	}
	r.Was = rows[r.Class].Used
	err = tx.GetContext(ctx, &r.Is, `SELECT COALESCE(SUM(amount), 0) FROM quota_claims WHERE project = ? AND class = ?`, r.Project, r.Class)
	if err != nil {
		return fmt.Errorf("count the usage of %s of project %s again: %w", r.Class, r.Project, db.Error(err))
	}
	if _, err := db.Exec(ctx, tx, `UPDATE quota_usage SET used = ? WHERE project = ? AND class = ?`, r.Is, r.Project, r.Class); err != nil {
		return fmt.Errorf("repair the usage of %s of project %s: %w", r.Class, r.Project, err)
	}
	return nil
}
