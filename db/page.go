package db

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
)

// SortKey is a column to sort by. NULLs come first in ascending order, which is the default of both databases, so that an index can
// serve the order.
type SortKey = listing.SortKey

// Page describes the rows that [List] reads: up to Limit rows after a marker, in a
// total order. This is OpenStack's pagination with limit and marker, by keyset: a
// late page costs as much as the first one. If a row is inserted or deleted between
// two pages, every other row still appears exactly once.
//
// From, Key and Limit are required.
type Page struct { //nolint:recvcheck // Select returns a changed copy
	// Columns are the columns to read, as SQL. Default: those of the rows' type, see [Columns]. A type that is not a struct
	// has no default.
	Columns string
	// From is a table or a join, as SQL.
	From string
	// Where is a condition for the rows of the page, as SQL. Args are its parameters.
	Where string
	Args  []any
	// Within is a condition for the rows of the page and for the marker's row, as SQL. If it restricts
	// the tenant, a marker of another tenant is not found. WithinArgs are its parameters.
	Within     string
	WithinArgs []any
	// Sort is the order. [List] appends Key, in the direction of the last column, so that the
	// order is total. Columns after Key in Sort have no effect. A column must not be a
	// FLOAT, because MySQL rounds the values of a FLOAT when it returns them. A page is cheap
	// if all columns have the same direction and an index has the columns of Sort and Key.
	Sort []SortKey
	// Key is a unique column without NULLs. A marker is a value of this column.
	Key string
	// Marker is the Key of the last row of the previous page. It is empty for the first page. The
	// marker's row must exist, in MarkerFrom, and match Within. It need not match Where any more.
	Marker string
	// MarkerFrom is a table or a join for the marker's row, as SQL. It must have the columns of Key, Sort and Within. It can also have rows that
	// From does not have, such as deleted ones. Default: From.
	MarkerFrom string
	// Limit bounds the rows of the page. 0 is allowed.
	Limit int

	conditions []listing.Condition // see Select
}

// List reads a page into a slice of structs as sqlx does (or of plain values, for one
// column). It reports whether more rows follow. If there are no rows, the slice is
// empty and not nil.
//
//	servers, more, err := db.List[Server](ctx, d, db.Page{
//		From:  "servers",
//		Where: "project_id = ?", Args: []any{project},
//		Sort:  []db.SortKey{{Column: "created_at", Desc: true}},
//		Key:   "id", Marker: marker, Limit: 1000,
//	})
//
// The component writes all SQL of the page: never pass a user's text. [Page.Select] adds the filters and sort keys that a
// user chooses, from a list of allowed filters and columns.
//
// Errors: Invalid, reason MarkerNotFound, if the marker's row does not exist (it may have
// been deleted) or does not match Within; Invalid if a field of the page is wrong;
// Internal if Key is not unique; those of [Error].
func List[T any](ctx context.Context, q sqlx.QueryerContext, p Page) (rows []T, more bool, err error) {
	if slices.ContainsFunc(p.conditions, func(c listing.Condition) bool { return c.Operator == listing.Regexp }) {
		return ListFunc(ctx, q, p, func(*T) bool { return true })
	}
	p.Columns = columnsOr[T](p.Columns)
	query, args, err := p.buildQuery(ctx, q)
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

// ListFunc works like [List], with a condition that SQL cannot express: the page has only rows for
// which the function keep returns true. T is a struct. ListFunc reads rows one by one until the page is
// full, so Where should exclude most of the rows that keep rejects. The pointer that keep gets is valid
// during the call only.
func ListFunc[T any](ctx context.Context, q sqlx.QueryerContext, p Page, keep func(*T) bool) (rows []T, more bool, err error) {
	p.Columns = columnsOr[T](p.Columns)
	query, args, err := p.buildQuery(ctx, q)
	if err != nil {
		return nil, false, err
	}
	matches, err := p.rowMatches(reflect.TypeFor[T]())
	if err != nil {
		return nil, false, err
	}
	cursor, err := q.QueryxContext(ctx, query, args...)
	if err != nil {
		return nil, false, Error(err)
	}
	defer func() { _ = cursor.Close() }() // cursor.Err has the error
	rows = []T{}
	for cursor.Next() {
		var row T
		if err := cursor.StructScan(&row); err != nil {
			return nil, false, Error(err)
		}
		switch {
		case !hasAll(matches, reflect.ValueOf(&row).Elem()), !keep(&row):
		case len(rows) == p.Limit:
			return rows, true, nil
		default:
			rows = append(rows, row)
		}
	}
	return rows, false, Error(cursor.Err())
}

// reasonMarker is the reason of the error for a marker whose row does not exist.
const reasonMarker = "MarkerNotFound"

// buildQuery returns the SELECT for the page, without its LIMIT, and its parameters. It reads the marker's
// row.
func (p *Page) buildQuery(ctx context.Context, q sqlx.QueryerContext) (query string, args []any, err error) {
	if p.Limit < 0 {
		return "", nil, fault.New(fault.Invalid, "list a page: limit %d is negative", p.Limit)
	}
	if p.From == "" {
		return "", nil, fault.New(fault.Invalid, "list a page: From is empty")
	}
	if p.Columns == "" {
		return "", nil, fault.New(fault.Invalid, "list a page: Columns is empty, and the rows are not structs")
	}
	keys, err := p.totalOrder()
	if err != nil {
		return "", nil, err
	}
	var where clause
	if p.Where != "" {
		where.addTerm("("+p.Where+")", p.Args...)
	}
	if p.Within != "" {
		where.addTerm("("+p.Within+")", p.WithinArgs...)
	}
	if err := p.addConditions(&where); err != nil {
		return "", nil, err
	}
	if p.Marker != "" {
		marker, err := p.readMarker(ctx, q, keys)
		if err != nil {
			return "", nil, err
		}
		if err := p.checkNulls(ctx, q, &keys[0]); err != nil {
			return "", nil, err
		}
		addAfter(&where, keys, marker)
	}
	query = "SELECT " + p.Columns + " FROM " + p.From
	if len(where.terms) > 0 {
		query += " WHERE " + strings.Join(where.terms, " AND ")
	}
	var order []string
	for _, k := range keys {
		order = append(order, k.orderTerm())
	}
	return query + " ORDER BY " + strings.Join(order, ", "), where.args, nil
}

// pageKey is a column of the total order.
type pageKey struct {
	SortKey

	notNull bool // the column is known to have no NULLs
}

// totalOrder returns Sort up to Key, without duplicates, with Key at its end.
func (p *Page) totalOrder() ([]pageKey, error) {
	var out []pageKey
	seen := map[string]bool{}
	end := SortKey{Column: p.Key}
	if n := len(p.Sort); n > 0 {
		end.Desc = p.Sort[n-1].Desc
	}
	for _, k := range append(slices.Clip(p.Sort), end) {
		if err := checkNames(strings.Split(k.Column, ".")...); err != nil {
			return nil, fmt.Errorf("sort key: %w", err)
		}
		if !seen[k.Column] { // a column has no effect the second time
			seen[k.Column] = true
			out = append(out, pageKey{k, k.Column == p.Key})
		}
		if k.Column == p.Key {
			break
		}
	}
	return out, nil
}

// readMarker reads the columns of the order from the marker's row.
func (p *Page) readMarker(ctx context.Context, q sqlx.QueryerContext, keys []pageKey) (values []any, err error) {
	var cols []string
	for _, k := range keys {
		cols = append(cols, k.quotedName())
	}
	query, args := fmt.Sprintf(`SELECT %s FROM %s WHERE %s = ?`, strings.Join(cols, ", "), cmp.Or(p.MarkerFrom, p.From), cols[len(cols)-1]), []any{p.Marker}
	if p.Within != "" {
		query, args = query+" AND ("+p.Within+")", append(args, p.WithinArgs...)
	}
	rows, err := q.QueryxContext(ctx, query+" LIMIT 2", args...)
	if err != nil {
		return nil, fmt.Errorf("read the marker's row: %w", Error(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err has the error
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, fmt.Errorf("read the marker's row: %w", Error(err))
	}
	n := 0
	for ; rows.Next(); n++ {
		if values, err = rows.SliceScan(); err != nil {
			return nil, fmt.Errorf("read the marker's row: %w", Error(err))
		}
	}
	switch err := rows.Err(); {
	case err != nil:
		return nil, fmt.Errorf("read the marker's row: %w", Error(err))
	case n == 0:
		return nil, p.markerError()
	case n > 1:
		return nil, fmt.Errorf("read the marker's row: %s is not unique in %s: use a unique column as Key", p.Key, p.From)
	}
	for i, v := range values {
		values[i] = textValue(v, types[i])
	}
	switch id := values[len(values)-1].(type) {
	case int64, uint64, string: // in MySQL, 12 = '12abc' and 'a' = 'a ' are true
		if fmt.Sprint(id) != p.Marker {
			return nil, p.markerError()
		}
	}
	return values, nil
}

// textValue returns the value of a text column as a string. MySQL's driver reads it
// as bytes, and a parameter of bytes is binary, for which MySQL uses no index.
func textValue(v any, t *sql.ColumnType) any {
	b, ok := v.([]byte)
	if name := t.DatabaseTypeName(); !ok || strings.HasSuffix(name, "BINARY") || strings.HasSuffix(name, "BLOB") {
		return v
	}
	return string(b)
}

// checkNulls sets k.notNull on SQLite if the column has no NULL now. SQLite's planner
// uses no index for k < ? OR k IS NULL, even if k cannot be NULL. If a row with a NULL
// is inserted later, the page may lack it, as it may lack any row that is inserted between
// two pages.
func (p *Page) checkNulls(ctx context.Context, q sqlx.QueryerContext, k *pageKey) error {
	if d, ok := q.(interface{ DriverName() string }); !ok || d.DriverName() != engine.SQLite || !k.nullsLast() {
		return nil
	}
	var found bool
	err := sqlx.GetContext(ctx, q, &found, fmt.Sprintf("SELECT EXISTS (SELECT 1 FROM %s WHERE %s IS NULL)", p.From, k.quotedName()))
	k.notNull = !found
	return Error(err)
}

// markerError returns the error for a marker whose row does not exist, in Nova's words.
func (p *Page) markerError() error {
	return fault.WithReason(fault.New(fault.Invalid, "marker [%s] not found", p.Marker), reasonMarker, nil)
}

// addAfter adds the condition for rows that come after the given values in the order of keys:
// a > ? OR a = ? AND (b > ? OR b = ? AND (...)).
func addAfter(c *clause, keys []pageKey, values []any) {
	var text strings.Builder
	var args []any
	for i, k := range keys {
		last := i == len(keys)-1
		var gt, eq clause
		k.addAfter(&gt, values[i])
		eq.addEqualKey(k, values[i])
		text.WriteString("(" + gt.terms[0])
		args = append(args, gt.args...)
		if !last {
			text.WriteString(" OR " + eq.terms[0] + " AND ")
			args = append(args, eq.args...)
		}
	}
	text.WriteString(strings.Repeat(")", len(keys)))
	// The bound of the first key follows from the condition above, but no planner
	// finds this bound. Without this term each page would read all rows before the page.
	k := keys[0]
	if v := values[0]; len(keys) > 1 && v != nil {
		k.addBound(c, k.compareSign()+"=", v)
	}
	c.addTerm(text.String(), args...)
}

// addEqualKey adds the condition that a key has the value v, or is NULL if v is nil.
func (c *clause) addEqualKey(k pageKey, v any) {
	if v == nil {
		c.addTerm(k.quotedName() + " IS NULL")
		return
	}
	c.addTerm(k.quotedName()+" = ?", v)
}

// addAfter adds one term, which is true for values that come after v.
func (k pageKey) addAfter(c *clause, v any) {
	switch {
	case v == nil && k.nullsLast():
		c.addTerm("1 = 0")
	case v == nil:
		c.addTerm(k.quotedName() + " IS NOT NULL")
	default:
		k.addBound(c, k.compareSign(), v)
	}
}

// addBound adds one term, which compares the key with v. The parameter sign is the operator, and v is not nil. If NULLs come last, the term is true for them.
func (k pageKey) addBound(c *clause, sign string, v any) {
	if k.nullsLast() {
		c.addTerm(fmt.Sprintf("(%s %s ? OR %s IS NULL)", k.quotedName(), sign, k.quotedName()), v)
		return
	}
	c.addTerm(k.quotedName()+" "+sign+" ?", v)
}

// nullsLast reports whether NULLs may exist and come last.
func (k pageKey) nullsLast() bool {
	return !k.notNull && k.Desc
}

// compareSign returns the operator for values that come later.
func (k pageKey) compareSign() string {
	if k.Desc {
		return "<"
	}
	return ">"
}

// orderTerm returns the term of ORDER BY for the key.
func (k pageKey) orderTerm() string {
	if k.Desc {
		return k.quotedName() + " DESC"
	}
	return k.quotedName() + " ASC"
}

// quotedName returns the column in quotes, with its table if Column has one.
func (k pageKey) quotedName() string {
	return quoteName(strings.ReplaceAll(k.Column, ".", `"."`))
}
