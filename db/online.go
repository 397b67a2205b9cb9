package db

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// DataMigration converts rows from an old form to the form that this version of a
// program writes. The program runs meanwhile and reads both forms. When the
// migration has converted all rows of an installation, the next version of the
// program needs neither the old form nor the migration. Nova calls this an online
// data migration.
type DataMigration struct {
	// Name is unique in the program. Operators see it in reports.
	Name string
	// Left counts the rows that have the old form.
	Left func(ctx context.Context, q sqlx.QueryerContext) (int64, error)
	// Batch converts up to n rows in the transaction and returns how many it
	// converted. It may run several times, see [Tx]. It returns 0 only if no row
	// has the old form, or if it cannot convert any of them.
	Batch func(ctx context.Context, tx *sqlx.Tx, n int) (int, error)
}

// MigrateData runs migrations, one after the other, in batches of 500 rows. Each
// batch is one transaction. MigrateData converts at most limit rows in total, or all rows if limit is 0, and returns one
// report for each migration. If a migration fails, the next ones still run. If ctx ends, the reports have its error.
// MigrateData may be called again, and by several processes at the same time.
func MigrateData(ctx context.Context, d *sqlx.DB, limit int, list ...DataMigration) DataReports {
	out := make(DataReports, 0, len(list))
	for _, m := range list {
		left := int64(-1) // no limit
		if limit > 0 {
			left = int64(limit) - out.Done()
		}
		out = append(out, m.convertRows(ctx, d, left))
	}
	return out
}

// convertRows converts limit rows at most, or all if limit is negative.
func (m *DataMigration) convertRows(ctx context.Context, d *sqlx.DB, limit int64) DataReport {
	r := DataReport{Name: m.Name}
	size := defaultBatch
	for {
		if limit >= 0 {
			size = int(min(limit-r.Done, defaultBatch))
		}
		if size == 0 {
			break
		}
		var n int
		r.Err = Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) (err error) {
			n, err = m.Batch(ctx, tx, size)
			return err
		})
		if r.Err != nil || n == 0 {
			break
		}
		r.Done += int64(n)
	}
	left, err := m.Left(ctx, d)
	switch r.Left = left; {
	case err != nil && r.Err == nil:
		r.Err = Error(err)
	case err == nil && r.Err == nil && left > 0 && size > 0:
		r.Err = fault.New(fault.Precondition, "%d rows were left in their old form", left)
	}
	return r
}

// DataReport is the result of one [DataMigration].
type DataReport struct {
	Name string
	Done int64 // converted rows
	Left int64 // rows that still have the old form; not known if Err is the error of DataMigration.Left
	Err  error // the error of Batch or Left; Precondition if the rows that are left cannot be converted
}

// DataReports are the results of [MigrateData], in the order of the migrations.
type DataReports []DataReport

// Done returns how many rows all migrations converted.
func (r DataReports) Done() (n int64) {
	for _, one := range r {
		n += one.Done
	}
	return n
}

// ExitCode returns the exit code of nova-manage db online_data_migrations:
//
//   - 0: all rows are converted.
//   - 1: the command must run again. A migration stopped at the limit, or a migration failed
//     but rows were converted.
//   - 2: a migration failed, and no row was converted.
func (r DataReports) ExitCode() int {
	code := 0
	for _, one := range r {
		if one.Err == nil && one.Left > 0 {
			return 1
		}
		if one.Err != nil {
			code = 2
		}
	}
	if code == 2 && r.Done() > 0 {
		return 1
	}
	return code
}
