package db

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// Nulls says where NULLs come in an order.
type Nulls uint8

const (
	// NullsSmallest has NULLs first in ascending order, last in descending. It is
	// what both databases do by themselves, and so what an index serves.
	NullsSmallest Nulls = iota
	// NullsFirst has them first in either direction.
	NullsFirst
	// NullsLast has them last in either direction.
	NullsLast
)

// SortKey is a column to sort by.
type SortKey struct {
	Column string
	Desc   bool
	Nulls  Nulls
}

// Page says which rows [List] reads: those after a marker, in an order in which
// every row has its place. It is OpenStack's pagination, with limit and marker,
// made of keysets: a page costs the same however far it is from the first, and
// rows that come or go meanwhile make no other row appear twice or never.
//
// From, Key and Limit are required.
type Page struct {
	// Columns are those to read, as SQL. Default *.
	Columns string
	// From is a table or a join, as SQL.
	From string
	// Where is a condition, as SQL, with parameters, that the rows of the page fulfil.
	Where string
	Args  []any
	// Within is a condition, as SQL, with parameters, that the rows and the row of the
	// marker fulfil, such as whose they are: the marker of another tenant is not found.
	Within     string
	WithinArgs []any
	// Sort is the order. Key ends it, in the direction of what is before it, and
	// makes it total; what follows a Key in it counts for nothing. A column may
	// not be a FLOAT, whose values MySQL rounds when it shows them. An index on
	// the columns of Sort and Key makes a page cheap, if the directions are all
	// the same and NULLs are the smallest.
	Sort []SortKey
	// Key is the unique column, not NULL, that markers are values of.
	Key string
	// Marker is the Key of the last row of the page before, empty for the first
	// page. Its row must exist and fulfil Within, but need not fulfil Where any more.
	Marker string
	// Limit is the most rows that are returned, 0 or more.
	Limit int
}

// List reads a page into a slice of structs as of sqlx (or of plain values, for
// one column), and reports whether rows follow.
//
//	servers, more, err := db.List[Server](ctx, d, db.Page{
//		From:  "servers",
//		Where: "project_id = ?", Args: []any{project},
//		Sort:  []db.SortKey{{Column: "created_at", Desc: true}},
//		Key:   "id", Marker: marker, Limit: 1000,
//	})
//
// The SQL is the component's own. Columns of Sort may be what a user asked for,
// but then the component looks them up in a list of those it offers.
//
// Errors: Invalid, reason MarkerNotFound, if there is no such row, for it was
// deleted, or never was; Invalid if the page cannot be asked for; Internal if Key
// is not unique; those of [Error].
func List[T any](ctx context.Context, q sqlx.QueryerContext, p Page) (rows []T, more bool, err error) {
	query, args, err := p.query(ctx, q)
	if err != nil {
		return nil, false, err
	}
	rows = []T{}
	if err := sqlx.SelectContext(ctx, q, &rows, query+" LIMIT ?", append(args, p.Limit+1)...); err != nil {
		return nil, false, Error(err)
	}
	if len(rows) > p.Limit {
		return rows[:p.Limit], true, nil
	}
	return rows, false, nil
}

// ListFunc is [List] for a condition that SQL cannot express: the page has only rows for
// which keep returns true. T is a struct. Rows are read one by one until the page is
// full, so that Where should exclude most of the others. The row that keep gets is valid
// during the call.
func ListFunc[T any](ctx context.Context, q sqlx.QueryerContext, p Page, keep func(*T) bool) (rows []T, more bool, err error) {
	query, args, err := p.query(ctx, q)
	if err != nil {
		return nil, false, err
	}
	cursor, err := q.QueryxContext(ctx, query, args...)
	if err != nil {
		return nil, false, Error(err)
	}
	defer func() { _ = cursor.Close() }() // Err reports what matters
	rows = []T{}
	for cursor.Next() {
		var row T
		if err := cursor.StructScan(&row); err != nil {
			return nil, false, Error(err)
		}
		switch {
		case !keep(&row):
		case len(rows) == p.Limit:
			return rows, true, nil
		default:
			rows = append(rows, row)
		}
	}
	return rows, false, Error(cursor.Err())
}

const reasonMarker = "MarkerNotFound"

func (p *Page) query(ctx context.Context, q sqlx.QueryerContext) (query string, args []any, err error) {
	if p.Limit < 0 {
		return "", nil, fault.New(fault.Invalid, "limit %d is negative", p.Limit)
	}
	if p.From == "" {
		return "", nil, fault.New(fault.Invalid, "a page needs From")
	}
	keys, err := p.keys()
	if err != nil {
		return "", nil, err
	}
	var where clause
	if p.Where != "" {
		where.add("("+p.Where+")", p.Args...)
	}
	if p.Within != "" {
		where.add("("+p.Within+")", p.WithinArgs...)
	}
	if p.Marker != "" {
		marker, err := p.marker(ctx, q, keys)
		if err != nil {
			return "", nil, err
		}
		if err := p.lookForNull(ctx, q, &keys[0]); err != nil {
			return "", nil, err
		}
		after(&where, keys, marker)
	}
	query = "SELECT *"
	if p.Columns != "" {
		query = "SELECT " + p.Columns
	}
	query += " FROM " + p.From
	if len(where.terms) > 0 {
		query += " WHERE " + strings.Join(where.terms, " AND ")
	}
	var order []string
	for _, k := range keys {
		order = append(order, k.order()...)
	}
	return query + " ORDER BY " + strings.Join(order, ", "), where.args, nil
}

// pageKey is a key, of which it may be known that it has no NULLs.
type pageKey struct {
	SortKey

	notNull bool
}

// keys returns the total order.
func (p *Page) keys() ([]pageKey, error) {
	var out []pageKey
	seen := map[string]bool{}
	end := SortKey{Column: p.Key}
	if n := len(p.Sort); n > 0 {
		end.Desc = p.Sort[n-1].Desc
	}
	for _, k := range append(slices.Clip(p.Sort), end) {
		if err := plain(strings.Split(k.Column, ".")...); err != nil {
			return nil, fmt.Errorf("sort key: %w", err)
		}
		if k.Nulls > NullsLast {
			return nil, fault.New(fault.Invalid, "sort key %s: there is no order of NULLs %d", k.Column, k.Nulls)
		}
		if !seen[k.Column] { // the same once more changes nothing
			seen[k.Column] = true
			out = append(out, pageKey{k, k.Column == p.Key})
		}
		if k.Column == p.Key {
			break
		}
	}
	return out, nil
}

// marker reads the values of the keys in the marker's row.
func (p *Page) marker(ctx context.Context, q sqlx.QueryerContext, keys []pageKey) (values []any, err error) {
	var cols []string
	for _, k := range keys {
		cols = append(cols, k.name())
	}
	query, args := fmt.Sprintf(`SELECT %s FROM %s WHERE %s = ?`, strings.Join(cols, ", "), p.From, cols[len(cols)-1]), []any{p.Marker}
	if p.Within != "" {
		query, args = query+" AND ("+p.Within+")", append(args, p.WithinArgs...)
	}
	rows, err := q.QueryxContext(ctx, query+" LIMIT 2", args...)
	if err != nil {
		return nil, fmt.Errorf("marker: %w", Error(err))
	}
	defer func() { _ = rows.Close() }() // Err has said what there is to say
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, fmt.Errorf("marker: %w", Error(err))
	}
	n := 0
	for ; rows.Next(); n++ {
		if values, err = rows.SliceScan(); err != nil {
			return nil, fmt.Errorf("marker: %w", Error(err))
		}
	}
	switch err := rows.Err(); {
	case err != nil:
		return nil, fmt.Errorf("marker: %w", Error(err))
	case n == 0:
		return nil, p.noMarker()
	case n > 1:
		return nil, fmt.Errorf("%s is not unique in %s, so it cannot be the key of pages", p.Key, p.From)
	}
	for i, v := range values {
		values[i] = text(v, types[i])
	}
	switch id := values[len(values)-1].(type) {
	case int64, uint64, string: // MySQL compares 12 = '12abc' and 'a' = 'a ' as true
		if fmt.Sprint(id) != p.Marker {
			return nil, p.noMarker()
		}
	}
	return values, nil
}

// text makes a text what MySQL's driver reads as bytes, which as a parameter
// would be binary, and compare with no index.
func text(v any, t *sql.ColumnType) any {
	b, ok := v.([]byte)
	if name := t.DatabaseTypeName(); !ok || strings.HasSuffix(name, "BINARY") || strings.HasSuffix(name, "BLOB") {
		return v
	}
	return string(b)
}

// lookForNull helps SQLite's planner, which uses no index for k < ? OR k IS NULL,
// even if k cannot be NULL. Rows that come later may be missed by any page.
func (p *Page) lookForNull(ctx context.Context, q sqlx.QueryerContext, k *pageKey) error {
	if d, ok := q.(interface{ DriverName() string }); !ok || d.DriverName() != driverSQLite || !k.nullsLast() {
		return nil
	}
	var found bool
	err := sqlx.GetContext(ctx, q, &found, fmt.Sprintf("SELECT EXISTS (SELECT 1 FROM %s WHERE %s IS NULL)", p.From, k.name()))
	k.notNull = !found && k.Nulls == NullsSmallest // whose order says nothing of NULLs
	return Error(err)
}

func (p *Page) noMarker() error {
	return &fault.Error{Code: fault.Invalid, Reason: reasonMarker, Msg: fmt.Sprintf("marker [%s] not found", p.Marker)}
}

// after adds the condition of being after the values of keys:
// a > ? OR a = ? AND (b > ? OR b = ? AND (...)).
func after(c *clause, keys []pageKey, values []any) {
	var text strings.Builder
	var args []any
	for i, k := range keys {
		last := i == len(keys)-1
		var gt, eq clause
		k.after(&gt, values[i])
		eq.equalTo(k, values[i])
		text.WriteString("(" + gt.terms[0])
		args = append(args, gt.args...)
		if !last {
			text.WriteString(" OR " + eq.terms[0] + " AND ")
			args = append(args, eq.args...)
		}
	}
	text.WriteString(strings.Repeat(")", len(keys)))
	// The bound of the first key alone follows from the rest, but no planner
	// finds that, and begins at the first page.
	k := keys[0]
	if v := values[0]; len(keys) > 1 && v != nil {
		var gt clause
		k.after(&gt, v)
		c.add(strings.NewReplacer(" > ", " >= ", " < ", " <= ").Replace(gt.terms[0]), gt.args...)
	}
	c.add(text.String(), args...)
}

func (c *clause) equalTo(k pageKey, v any) {
	if v == nil {
		c.add(k.name() + " IS NULL")
		return
	}
	c.add(k.name()+" = ?", v)
}

// after adds one term, which holds for values that come after v.
func (k pageKey) after(c *clause, v any) {
	switch last := k.nullsLast(); {
	case v == nil && last:
		c.add("1 = 0")
	case v == nil:
		c.add(k.name() + " IS NOT NULL")
	case last:
		c.add(fmt.Sprintf("(%s %s ? OR %s IS NULL)", k.name(), k.sign(), k.name()), v)
	default:
		c.add(k.name()+" "+k.sign()+" ?", v)
	}
}

func (k pageKey) nullsLast() bool {
	return !k.notNull && (k.Nulls == NullsLast || k.Nulls == NullsSmallest && k.Desc)
}

func (k pageKey) sign() string {
	if k.Desc {
		return "<"
	}
	return ">"
}

func (k pageKey) order() []string {
	dir := " ASC"
	if k.Desc {
		dir = " DESC"
	}
	switch {
	case k.notNull:
	case k.Nulls == NullsFirst && k.Desc:
		return []string{"(" + k.name() + " IS NULL) DESC", k.name() + dir}
	case k.Nulls == NullsLast && !k.Desc:
		return []string{"(" + k.name() + " IS NULL) ASC", k.name() + dir}
	}
	return []string{k.name() + dir}
}

// name is quoted, and may have the name of a table before it.
func (k pageKey) name() string {
	return quote(strings.ReplaceAll(k.Column, ".", `"."`))
}
