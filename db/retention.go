package db

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

const (
	// defaultBatch is small. So other writers do not wait for long, and a Galera cluster and replicas accept the
	// transaction.
	defaultBatch = 500
	maxBatch     = 10_000 // SQLite allows 32,766 parameters
)

// Retention describes the rows of a table that [Purge] removes, and where it moves
// them. Table and Where are required.
//
//	n, err := db.Purge(ctx, d, db.Retention{
//		Table:   "servers",
//		Where:   "deleted_at < ?", Args: []any{now.AddDate(0, -3, 0)},
//		History: "servers_history",
//		Parts:   []db.Part{{Table: "server_tags", Column: "server_id"}}, // without History: deleted
//	})
type Retention struct {
	// Table is the table whose rows are removed.
	Table string
	// Key is a unique column. Rows are removed in the order of this column. Default "id".
	Key string
	// Where is the condition for the rows, as SQL. Args are its parameters.
	Where string
	Args  []any
	// History is the table that the rows are moved to. It has all columns of
	// Table, with the same names. It may have more columns with defaults, such as
	// archived_at. Default: the rows are deleted.
	History string
	// Parts are rows of other tables that belong to the rows of Table. They are
	// removed first, in the order of this list, because of foreign keys.
	Parts []Part
	// Batch is how many rows of Table one transaction removes. Default 500, at
	// most 10,000.
	Batch int
	// Max bounds the rows of Table that one call removes. Default 0: no bound.
	Max int
	// Pause is the time between two batches. In this time other writers can
	// write. Default 0.
	Pause time.Duration
}

// Part describes rows of another table that are removed together with a row.
type Part struct {
	Table string
	// Column refers to Retention.Key: a row of the part belongs to the row of Retention.Table with this key.
	Column string
	// History is the table that the rows are moved to, as in Retention.History.
	History string
}

// Purge moves or deletes rows in batches. Each batch is one transaction with all parts of its rows, so that no row is
// half moved and locks are short. Purge reads the table once, in the order of Key. It stops at the end of the table, when
// it has removed Max rows, or when ctx ends. It returns how many rows of Table it removed, even with an error: these rows
// stay removed. Purge may be called again, and by any number of processes at the same time.
//
// Inside a [Tx] on d, Purge joins the transaction, and all batches are part of it.
// So a component can move a row to its history when it deletes the row.
//
// Errors: Invalid if Table or Where is empty, or if a name of a table or a column has
// characters other than letters, digits and _; Precondition if a history table lacks
// columns, with their names; those of [Tx].
func Purge(ctx context.Context, d *sqlx.DB, r Retention) (int64, error) {
	if r.Key == "" {
		r.Key = "id"
	}
	if r.Batch <= 0 {
		r.Batch = defaultBatch
	}
	r.Batch = min(r.Batch, maxBatch)
	if err := r.checkFields(); err != nil {
		return 0, err
	}
	moves, err := r.moves(ctx, d)
	if err != nil {
		return 0, fmt.Errorf("purge %s: %w", r.Table, err)
	}
	var total int64
	var last any // the key of the last row that was removed
	for {
		size := r.Batch
		if r.Max > 0 {
			size = int(min(int64(size), int64(r.Max)-total))
		}
		if size == 0 {
			return total, nil
		}
		keys, err := r.purgeBatch(ctx, d, moves, last, size)
		if err != nil {
			return total, fmt.Errorf("purge %s: %w", r.Table, err)
		}
		total += int64(len(keys))
		if len(keys) < size {
			return total, nil
		}
		last = keys[size-1]
		if !backoff.Sleep(ctx, r.Pause) {
			return total, fmt.Errorf("purge %s: %w", r.Table, context.Cause(ctx))
		}
	}
}

// move is the removal of rows of one table: of a [Part], or of Retention.Table itself. The field columns has the columns
// that are copied to the history, as SQL, or "".
type move struct {
	Part
	columns string
}

// moves returns the moves of a batch, in their order. The rows of Parts are removed first, because their foreign keys may
// refer to Table.
func (r *Retention) moves(ctx context.Context, d *sqlx.DB) (out []move, err error) {
	for _, p := range append(slices.Clone(r.Parts), Part{r.Table, r.Key, r.History}) {
		columns, err := p.sharedColumns(ctx, d)
		if err != nil {
			return nil, err
		}
		out = append(out, move{p, columns})
	}
	return out, nil
}

// purgeBatch removes the next rows, size at most, in one transaction, and returns their keys. If last is not nil, the
// rows come after the key last.
func (r *Retention) purgeBatch(ctx context.Context, d *sqlx.DB, moves []move, last any, size int) (keys []any, err error) {
	err = Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
		var err error
		if keys, err = r.lockRows(ctx, tx, last, size); err != nil || len(keys) == 0 {
			return err
		}
		for _, m := range moves {
			if err := m.moveRows(ctx, tx, m.columns, keys); err != nil {
				return err
			}
		}
		return nil
	})
	return keys, err
}

// checkFields returns Invalid if a field cannot be part of a statement.
func (r *Retention) checkFields() error {
	names := []string{r.Table, r.Key}
	for _, p := range append(slices.Clone(r.Parts), Part{r.Table, r.Key, r.History}) {
		names = append(names, p.Table, p.Column)
		if p.History != "" {
			names = append(names, p.History)
		}
	}
	if err := checkNames(names...); err != nil {
		return fmt.Errorf("purge: %w", err)
	}
	if r.Where == "" {
		return fault.New(fault.Invalid, "purge %s: Where is empty: use 1 = 1 for all rows", r.Table)
	}
	return nil
}

// lockRows locks the next rows and returns their keys. If last is not nil, the rows
// come after the key last.
func (r *Retention) lockRows(ctx context.Context, tx *sqlx.Tx, last any, size int) (keys []any, err error) {
	key := quoteName(r.Key)
	where := clause{[]string{"(" + r.Where + ")"}, slices.Clone(r.Args)}
	if last != nil {
		where.addTerm(key+" > ?", last)
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT ? FOR UPDATE`,
		key, quoteName(r.Table), strings.Join(where.terms, " AND "), key), append(where.args, size)...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err has the error
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var key any
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		keys = append(keys, textValue(key, types[0]))
	}
	return keys, rows.Err()
}

// sharedColumns returns the columns of the table as SQL, or "" if the rows have no
// history. It fails with Precondition if the history lacks a column.
func (p *Part) sharedColumns(ctx context.Context, d *sqlx.DB) (string, error) {
	if p.History == "" {
		return "", nil
	}
	from, err := listColumns(ctx, d, p.Table)
	if err != nil {
		return "", err
	}
	to, err := listColumns(ctx, d, p.History)
	if err != nil {
		return "", err
	}
	var missing []string
	for i, col := range from {
		if !slices.Contains(to, col) {
			missing = append(missing, col)
		}
		from[i] = quoteName(col)
	}
	if len(missing) > 0 {
		return "", fault.New(fault.Precondition, "the history table %s lacks columns of %s: %s", p.History, p.Table, strings.Join(missing, ", "))
	}
	return strings.Join(from, ", "), nil
}

// listColumns returns the names of a table's columns.
func listColumns(ctx context.Context, d *sqlx.DB, table string) (cols []string, err error) {
	var q sqlx.QueryerContext = d
	if o := currentTx(ctx, d); o != nil {
		q = o.tx
	}
	rows, err := q.QueryContext(ctx, "SELECT * FROM "+quoteName(table)+" WHERE 1 = 0")
	if err != nil {
		return nil, Error(err)
	}
	defer func() { _ = rows.Close() }() // the query has no rows
	cols, err = rows.Columns()
	if err == nil {
		err = rows.Err()
	}
	return cols, Error(err)
}

// moveRows moves the rows with the keys to the history, if there is one, and deletes them from the table.
func (p *Part) moveRows(ctx context.Context, tx *sqlx.Tx, columns string, keys []any) error {
	where := fmt.Sprintf(`FROM %s WHERE %s IN (?%s)`, quoteName(p.Table), quoteName(p.Column), strings.Repeat(", ?", len(keys)-1))
	if p.History != "" {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s %s`, quoteName(p.History), columns, columns, where), keys...); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, "DELETE "+where, keys...)
	return err
}
