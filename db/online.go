package db

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// DataMigration brings rows into the form that this version of a program writes
// them in, while the program runs and reads both forms. Once it has ended
// everywhere, the next version may do without the old form, and without it. It is
// Nova's online data migration.
type DataMigration struct {
	// Name is unique in the program, and what operators see.
	Name string
	// Left counts the rows that have the old form.
	Left func(ctx context.Context, q sqlx.QueryerContext) (int64, error)
	// Batch brings up to n rows into the new form in the transaction, and returns
	// how many it brought. It may run several times, as Tx says. It brings none
	// only if there are none, or none that it can bring.
	Batch func(ctx context.Context, tx *sqlx.Tx, n int) (int, error)
}

// MigrateData runs migrations, one after the other in their order, in batches of
// 500 rows, each one transaction. At most limit rows are brought in all, or as
// many as there are if limit is 0. What fails does not keep the others from
// running. It can be called again, and by several processes at a time. Only a
// context that ends ends it early, with the error in the reports.
func MigrateData(ctx context.Context, d *sqlx.DB, limit int, list ...DataMigration) DataReports {
	out := make(DataReports, 0, len(list))
	for _, m := range list {
		r := DataReport{Name: m.Name}
		room := defaultBatch
		for {
			if limit > 0 {
				if room = min(limit-int(out.Done()+r.Done), defaultBatch); room == 0 {
					break
				}
			}
			var n int
			r.Err = Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) (err error) {
				n, err = m.Batch(ctx, tx, room)
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
		case err == nil && r.Err == nil && left > 0 && room > 0:
			r.Err = fault.New(fault.Precondition, "%d rows were left as they are", left)
		}
		out = append(out, r)
	}
	return out
}

// DataReport says what a [DataMigration] did.
type DataReport struct {
	Name string
	Done int64 // rows brought
	Left int64 // rows that have the old form; not known if Err is that of counting
	Err  error
}

// DataReports are those of all migrations.
type DataReports []DataReport

// Done is how many rows were brought.
func (r DataReports) Done() (n int64) {
	for _, one := range r {
		n += one.Done
	}
	return n
}

// ExitCode is that of nova-manage db online_data_migrations: 0 if nothing is left;
// 1 if rows were brought and there are more, so that it is to be run again; 2 if
// errors are in the way of the rest.
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

// Print writes a table with a line for each migration.
func (r DataReports) Print(w io.Writer) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tab, "MIGRATION\tDONE\tLEFT\tERROR") // Flush returns the error
	for _, one := range r {
		text := ""
		if one.Err != nil {
			text = strings.Join(strings.Fields(one.Err.Error()), " ")
		}
		_, _ = fmt.Fprintf(tab, "%s\t%d\t%d\t%s\n", one.Name, one.Done, one.Left, text) // Flush returns the error
	}
	return tab.Flush()
}
