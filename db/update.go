package db

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// reasonChanged is that of an [UpdateIf] whose expectation did not hold.
const reasonChanged = "Changed"

// Values maps columns to values. In [Update.Key] and [Update.If] nil stands for
// NULL, and a slice (other than of bytes) for any one of its elements, nil
// among them.
type Values map[string]any

// Expr is SQL as a value of [Update.Set]: db.Expr("generation + 1"). It is not to
// name another column that is set, for MySQL would take the new value of it.
type Expr string

// Update is a change of one row under a condition. Table, Key and Set are
// required.
type Update struct {
	Table string
	// Key names the row, by its primary key or a unique one.
	Key Values
	// If is what the row must hold.
	If Values
	// Set is what it then gets.
	Set Values
}

// UpdateIf changes a row if it holds what is expected: compare-and-swap, in one
// statement, so that of any number of writers with the same expectation one
// wins. It is Cinder's conditional_update and Nova's save(expected_task_state),
// and says which of the two it was that failed.
//
//	err := db.UpdateIf(ctx, tx, db.Update{
//		Table: "volumes",
//		Key:   db.Values{"id": id},
//		If:    db.Values{"status": []string{"available", "error"}, "host": nil},
//		Set:   db.Values{"status": "deleting", "version": db.Expr("version + 1")},
//	})
//
// Within a transaction the row is locked until its end, whether it was changed
// or not. Names of columns must be plain: letters, digits and _.
//
// Errors, whose messages for users name no table and no column: NotFound if there is no such row; Conflict, reason Changed, if it does
// not hold what is expected: the message names each column that differs with
// what it holds, as the details do (text, NULL for NULL); Invalid if u cannot be a
// statement; Internal if Key names several rows; those of [Error]. A Conflict or
// a NotFound fails no transaction that f does not fail.
func UpdateIf(ctx context.Context, q sqlx.ExtContext, u Update) error {
	if err := u.check(); err != nil {
		return err
	}
	var set, where clause
	for _, col := range slices.Sorted(maps.Keys(u.Set)) {
		set.set(col, u.Set[col])
	}
	where.all(u.Key)
	where.all(u.If)
	query := fmt.Sprintf(`UPDATE "%s" SET %s WHERE %s`, u.Table, strings.Join(set.terms, ", "), strings.Join(where.terms, " AND "))
	args := append(set.args, where.args...)
	// A writer in between can make that the row does not match and then does,
	// but not when this is a transaction, in which differs locks the row.
	for try := 1; ; try++ {
		res, err := q.ExecContext(ctx, query, args...)
		if err != nil {
			return Error(err)
		}
		n, err := res.RowsAffected()
		switch {
		case err != nil:
			return Error(err)
		case n == 1:
			return nil
		case n > 1:
			return fmt.Errorf("%s is the key of %d rows, it must be that of one", u.name(), n)
		}
		if err := u.differs(ctx, q); err != nil {
			return err
		}
		if try == maxTries {
			return &fault.Error{Code: fault.Unavailable, Reason: reasonContention, Private: true, Msg: fmt.Sprintf("%s changed %d times meanwhile", u.name(), try)}
		}
	}
}

func (u *Update) check() error {
	if len(u.Key) == 0 || len(u.Set) == 0 {
		return fault.New(fault.Invalid, "update of %q: Key and Set must have columns", u.Table)
	}
	names := []string{u.Table}
	for _, v := range []Values{u.Key, u.If, u.Set} {
		names = slices.AppendSeq(names, maps.Keys(v))
	}
	return plain(names...)
}

// name says which row it is.
func (u *Update) name() string {
	out := []string{u.Table}
	for _, col := range slices.Sorted(maps.Keys(u.Key)) {
		out = append(out, col+"="+show(u.Key[col]))
	}
	return strings.Join(out, " ")
}

// differs reads the row as it is now, which a plain read in a transaction might
// not, and returns how it differs from what is expected, or nil.
func (u *Update) differs(ctx context.Context, q sqlx.QueryerContext) error {
	cols := slices.Sorted(maps.Keys(u.If))
	sel := clause{terms: []string{"1"}}
	for _, col := range cols {
		var cond clause
		cond.equal(col, u.If[col])
		sel.terms = append(sel.terms, "CASE WHEN "+cond.terms[0]+" THEN 1 ELSE 0 END", quote(col))
		sel.args = append(sel.args, cond.args...)
	}
	var where clause
	where.all(u.Key)
	row, err := q.QueryRowxContext(ctx, fmt.Sprintf(`SELECT %s FROM "%s" WHERE %s FOR UPDATE`,
		strings.Join(sel.terms, ", "), u.Table, strings.Join(where.terms, " AND ")), append(sel.args, where.args...)...).SliceScan()
	if err = Error(err); err != nil {
		if fault.CodeOf(err) == fault.NotFound {
			return &fault.Error{Code: fault.NotFound, Msg: u.name() + " does not exist", User: "The resource could not be found."}
		}
		return err
	}
	meta := map[string]string{}
	var text []string
	for i, col := range cols {
		same, actual := row[1+2*i], row[2+2*i]
		if fmt.Sprint(same) == "1" {
			continue
		}
		meta[col] = show(actual)
		text = append(text, fmt.Sprintf("%s is %s, not %s", col, meta[col], show(u.If[col])))
	}
	if len(text) == 0 {
		return nil
	}
	return &fault.Error{
		Code: fault.Conflict, Reason: reasonChanged, Msg: u.name() + ": " + strings.Join(text, ", "), Meta: meta,
		User: "The resource was changed meanwhile, or its state does not allow this.",
	}
}

// clause is a list of terms with their parameters.
type clause struct {
	terms []string
	args  []any
}

func (c *clause) add(term string, args ...any) {
	c.terms = append(c.terms, term)
	c.args = append(c.args, args...)
}

func (c *clause) set(col string, v any) {
	if e, ok := v.(Expr); ok {
		c.add(quote(col) + " = " + string(e))
		return
	}
	c.add(quote(col)+" = ?", v)
}

func (c *clause) all(v Values) {
	for _, col := range slices.Sorted(maps.Keys(v)) {
		c.equal(col, v[col])
	}
}

func (c *clause) equal(col string, v any) {
	list, ok := alternatives(v)
	if !ok {
		if isNull(v) {
			c.add(quote(col) + " IS NULL")
		} else {
			c.add(quote(col)+" = ?", v)
		}
		return
	}
	var terms []string
	if slices.ContainsFunc(list, isNull) {
		list = slices.DeleteFunc(list, isNull)
		terms = append(terms, quote(col)+" IS NULL")
	}
	if len(list) > 0 {
		terms = append(terms, quote(col)+" IN (?"+strings.Repeat(", ?", len(list)-1)+")")
	}
	if len(terms) == 0 {
		terms = append(terms, "1 = 0")
	}
	c.add("("+strings.Join(terms, " OR ")+")", list...)
}

// alternatives returns the elements of a slice, which a value of a column is
// not.
func alternatives(v any) ([]any, bool) {
	switch v.(type) {
	case driver.Valuer, []byte:
		return nil, false
	}
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Slice || r.Type().Elem().Kind() == reflect.Uint8 {
		return nil, false
	}
	out := make([]any, r.Len())
	for i := range out {
		out[i] = r.Index(i).Interface()
	}
	return out, true
}

// isNull reports whether a value is NULL in the database.
func isNull(v any) bool {
	if v == nil {
		return true
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
		return true
	}
	if val, ok := v.(driver.Valuer); ok {
		got, err := val.Value()
		return err == nil && got == nil
	}
	return false
}

// show is a value's text in messages.
func show(v any) string {
	if isNull(v) {
		return "NULL"
	}
	if list, ok := alternatives(v); ok {
		var texts []string
		for _, one := range list {
			texts = append(texts, show(one))
		}
		return "one of " + strings.Join(texts, ", ")
	}
	if val, ok := v.(driver.Valuer); ok {
		if got, err := val.Value(); err == nil {
			v = got
		}
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer {
		v = r.Elem().Interface()
	}
	switch v := v.(type) {
	case []byte:
		return string(bytes.ToValidUTF8(v, []byte("?")))
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprint(v)
}

func quote(name string) string { return `"` + name + `"` }

// plain refuses names that would have to be escaped, and so all that could be
// more than a name.
func plain(names ...string) error {
	for _, name := range names {
		ok := name != "" && !strings.ContainsFunc(name, func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		})
		if !ok {
			return fault.New(fault.Invalid, "%q is not the name of a column or a table: letters, digits and _ only", name)
		}
	}
	return nil
}
