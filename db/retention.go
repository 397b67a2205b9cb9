package db

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

const (
	// defaultBatch is small enough that other writers do not wait for long, and
	// that a Galera cluster and its replicas take it.
	defaultBatch = 500
	maxBatch     = 10_000 // SQLite takes 32,766 parameters
)

// Retention says which rows of a table have had their time, and where they go.
// Table and Where are required.
//
//	n, err := db.Purge(ctx, d, db.Retention{
//		Table:   "servers",
//		Where:   "deleted_at < ?", Args: []any{now.AddDate(0, -3, 0)},
//		History: "servers_history",
//		Parts:   []db.Part{{Table: "server_tags", Column: "server_id"}}, // they go for good
//	})
type Retention struct {
	Table string
	// Key is the unique column by which rows are taken, in its order. Default
	// "id".
	Key string
	// Where says which rows, as SQL with parameters.
	Where string
	Args  []any
	// History is the table that they are moved to. It has at least the columns of
	// Table by the same names, and may have others with defaults, such as
	// archived_at. Empty: they are deleted.
	History string
	// Parts are the rows of other tables that belong to those, in the order in
	// which they go, before what they belong to.
	Parts []Part
	// Batch is how many rows of Table one transaction takes. Default 500, at most
	// 10,000.
	Batch int
	// Max is how many rows of Table are taken in all. Default 0: all.
	Max int
	// Pause is the time between two batches, in which others come to write.
	// Default 0.
	Pause time.Duration
}

// Part are rows that go with another one.
type Part struct {
	Table string
	// Column refers to Retention.Key.
	Column string
	// History is as in Retention.
	History string
}

// Purge moves or deletes rows in batches, each one transaction with all parts of
// its rows, so that nothing is ever half moved and no lock is held for long. It
// returns how many rows of Table it has taken, also with an error: they stay
// taken, and Purge can be called again, by any number of processes. It goes
// through the table once, in the order of Key, and ends at its end, at Max, or
// with ctx.
//
// In a [Tx] on d it joins, and all batches are one transaction: so a component
// keeps the history of what it deletes itself.
//
// Errors: Invalid if r names no table, or no condition; Precondition if a history
// lacks columns, with their names; those of [Tx].
func Purge(ctx context.Context, d *sqlx.DB, r Retention) (int64, error) {
	if r.Key == "" {
		r.Key = "id"
	}
	if r.Batch <= 0 {
		r.Batch = defaultBatch
	}
	r.Batch = min(r.Batch, maxBatch)
	if err := r.check(); err != nil {
		return 0, err
	}
	// Parts go first, for they may refer to the rest by foreign keys.
	moves := append(slices.Clone(r.Parts), Part{r.Table, r.Key, r.History})
	columns := make([]string, len(moves))
	for i, m := range moves {
		var err error
		if columns[i], err = m.columns(ctx, d); err != nil {
			return 0, fmt.Errorf("purge %s: %w", r.Table, err)
		}
	}
	var total int64
	var last any // key that was taken
	for {
		size := r.Batch
		if r.Max > 0 {
			size = int(min(int64(size), int64(r.Max)-total))
		}
		if size == 0 {
			return total, nil
		}
		var keys []any
		err := Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			var err error
			if keys, err = r.take(ctx, tx, last, size); err != nil || len(keys) == 0 {
				return err
			}
			for i, m := range moves {
				if err := m.move(ctx, tx, columns[i], keys); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, fmt.Errorf("purge %s: %w", r.Table, err)
		}
		total += int64(len(keys))
		if len(keys) < size {
			return total, nil
		}
		last = keys[size-1]
		if err := sleep(ctx, r.Pause); err != nil {
			return total, fmt.Errorf("purge %s: %w", r.Table, err)
		}
	}
}

func (r *Retention) check() error {
	names := []string{r.Table, r.Key}
	for _, p := range append(slices.Clone(r.Parts), Part{r.Table, r.Key, r.History}) {
		names = append(names, p.Table, p.Column)
		if p.History != "" {
			names = append(names, p.History)
		}
	}
	if err := plain(names...); err != nil {
		return fmt.Errorf("purge: %w", err)
	}
	if r.Where == "" {
		return fault.New(fault.Invalid, "purge %s: Where is required (1 = 1 for all rows)", r.Table)
	}
	return nil
}

// take locks the next rows after last, if that is not nil, and returns their
// keys.
func (r *Retention) take(ctx context.Context, tx *sqlx.Tx, last any, size int) (keys []any, err error) {
	key := quote(r.Key)
	where := clause{[]string{"(" + r.Where + ")"}, slices.Clone(r.Args)}
	if last != nil {
		where.add(key+" > ?", last)
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT ? FOR UPDATE`,
		key, quote(r.Table), strings.Join(where.terms, " AND "), key), append(where.args, size)...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has said what there is to say
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var key any
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		keys = append(keys, text(key, types[0]))
	}
	return keys, rows.Err()
}

// columns returns those that both tables have, as SQL.
func (p *Part) columns(ctx context.Context, d *sqlx.DB) (string, error) {
	if p.History == "" {
		return "", nil
	}
	from, err := columnsOf(ctx, d, p.Table)
	if err != nil {
		return "", err
	}
	to, err := columnsOf(ctx, d, p.History)
	if err != nil {
		return "", err
	}
	var missing []string
	for i, col := range from {
		if !slices.Contains(to, col) {
			missing = append(missing, col)
		}
		from[i] = quote(col)
	}
	if len(missing) > 0 {
		return "", fault.New(fault.Precondition, "the history %s lacks columns of %s: %s", p.History, p.Table, strings.Join(missing, ", "))
	}
	return strings.Join(from, ", "), nil
}

func columnsOf(ctx context.Context, d *sqlx.DB, table string) (cols []string, err error) {
	var q sqlx.QueryerContext = d
	if o := current(ctx, d); o != nil {
		q = o.tx
	}
	rows, err := q.QueryContext(ctx, "SELECT * FROM "+quote(table)+" WHERE 1 = 0")
	if err != nil {
		return nil, Error(err)
	}
	defer func() { _ = rows.Close() }() // it has no rows
	cols, err = rows.Columns()
	if err == nil {
		err = rows.Err()
	}
	return cols, Error(err)
}

func (p *Part) move(ctx context.Context, tx *sqlx.Tx, columns string, keys []any) error {
	where := fmt.Sprintf(`FROM %s WHERE %s IN (?%s)`, quote(p.Table), quote(p.Column), strings.Repeat(", ?", len(keys)-1))
	if p.History != "" {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s %s`, quote(p.History), columns, columns, where), keys...); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, "DELETE "+where, keys...)
	return err
}
