package db

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// reasonChanged is the Reason of the Conflict of [UpdateIf]: the row does not have the expected values.
const reasonChanged = "Changed"

// Values maps columns to values. nil, a nil pointer and a nil []byte mean NULL. In [Update.Key] and [Update.If] a slice means
// that the column has one of the elements; an element may be nil, and an empty slice matches no row. A []byte and a
// [driver.Valuer] are one value. In [Update.If] [NotNull] means any value but NULL; it cannot be in a slice. In [Update.Set] a
// value may be an [Expr].
type Values map[string]any

// NotNull is the condition of a column that must have a value: db.Values{"host": db.NotNull}.
const NotNull condition = "IS NOT NULL"

// condition is SQL that follows the name of a column.
type condition string

// Expr is SQL as a value of [Update.Set]: db.Expr("generation + 1"). The SQL is not checked: never build it from a request. It
// must not contain another column of Set, because MySQL would use that column's new value.
type Expr string

// Update is a conditional change of one row. Table, Key and Set are required.
type Update struct {
	Table string
	// Key identifies the row by its primary key or another unique key.
	Key Values
	// If has the values that the row must have. Default: no condition.
	If Values
	// Set has the new values.
	Set Values
}

// UpdateIf changes a row if the row has the expected values. It is a compare-and-swap in
// one statement: if several writers expect the same value and change it, one succeeds
// and the others get a Conflict. UpdateIf does what Cinder's conditional_update and Nova's
// save(expected_task_state) do. In addition, its error says why the update failed.
//
//	err := db.UpdateIf(ctx, tx, db.Update{
//		Table: "volumes",
//		Key:   db.Values{"id": id},
//		If:    db.Values{"status": []string{"available", "error"}, "host": nil},
//		Set:   db.Values{"status": "deleting", "version": db.Expr("version + 1")},
//	})
//
// Inside a transaction the row is locked until the transaction ends, whether the row
// changed or not. Names of columns and tables have only letters, digits and _.
//
// Errors. The text for users (see [fault.WithUser]) names no table and no column. The error's own message, which is for
// operators and logs, names both.
//
//   - NotFound: the row does not exist.
//   - Conflict, reason Changed: the row does not have the values of If. The message names each column that differs, with its
//     value and the expected one. Meta maps the column to the row's value as text, "NULL" if it is NULL.
//   - Invalid: Key or Set is empty; a name has characters other than letters, digits and _; a number is NaN or infinite; or a
//     value is not allowed in its field: [NotNull] outside of If or in a slice, [Expr] outside of Set or empty, a slice in Set.
//   - Unavailable, reason Contention: other writers changed the row during each of 20 attempts.
//   - Internal: Key identifies several rows. They have been changed: roll the transaction back. Outside of a transaction the
//     change stays.
//   - Those of [Error].
//
// After NotFound or Conflict a transaction can continue: the database did not end it.
func UpdateIf(ctx context.Context, q sqlx.ExtContext, u Update) error {
	if err := u.checkFields(); err != nil {
		return err
	}
	var set, where clause
	for _, col := range slices.Sorted(maps.Keys(u.Set)) {
		set.addSet(col, u.Set[col])
	}
	where.addAllEqual(u.Key)
	where.addAllEqual(u.If)
	query := fmt.Sprintf(`UPDATE "%s" SET %s WHERE %s`, u.Table, strings.Join(set.terms, ", "), strings.Join(where.terms, " AND "))
	args := append(set.args, where.args...)
	// Another writer may change the row after the UPDATE did not match, so that
	// findDifference finds no difference. In a transaction this happens at most once,
	// because findDifference locks the row.
	for attempt := 1; ; attempt++ {
		n, err := Exec(ctx, q, query, args...)
		if err != nil {
			return err
		}
		switch {
		case n == 1:
			return nil
		case n > 1:
			return fmt.Errorf("update %s: the key matches %d rows, want one: use a unique key", u.rowName(), n)
		}
		if err := u.findDifference(ctx, q); err != nil {
			return err
		}
		if attempt == maxAttempts {
			return fault.WithPrivate(fault.WithReason(
				fault.New(fault.Unavailable, "update %s: other writers changed the row during each of %d attempts", u.rowName(), attempt), engine.ReasonContention, nil))
		}
	}
}

// checkFields returns Invalid if a field cannot be part of a statement.
func (u *Update) checkFields() error {
	if len(u.Key) == 0 || len(u.Set) == 0 {
		return fault.New(fault.Invalid, "update %q: Key and Set must have columns", u.Table)
	}
	names := []string{u.Table}
	for _, v := range []Values{u.Key, u.If, u.Set} {
		names = slices.AppendSeq(names, maps.Keys(v))
	}
	if err := checkNames(names...); err != nil {
		return err
	}
	for _, field := range []struct {
		name   string
		values Values
	}{{"Key", u.Key}, {"If", u.If}, {"Set", u.Set}} {
		for _, col := range slices.Sorted(maps.Keys(field.values)) {
			if detail := checkValue(field.name, field.values[col]); detail != "" {
				return fault.New(fault.Invalid, "update %s: %s %s: %s", u.Table, field.name, col, detail)
			}
		}
	}
	return nil
}

// checkValue returns the detail of the Invalid error for a value in a field of Update, or "" if the value is allowed.
func checkValue(field string, v any) string {
	if list, ok := listElements(v); ok {
		return checkListValue(field, list)
	}
	switch v := v.(type) {
	case condition:
		if field != "If" {
			return "NotNull is a condition, use it in If"
		}
		return ""
	case Expr:
		if field != "Set" {
			return "Expr is a new value, use it in Set"
		}
		if strings.TrimSpace(string(v)) == "" {
			return "Expr is empty"
		}
		return ""
	}
	plain, err := driver.DefaultParameterConverter.ConvertValue(v)
	if f, ok := plain.(float64); ok && err == nil && (math.IsNaN(f) || math.IsInf(f, 0)) {
		return fmt.Sprintf("%v is not a value of a column", f)
	}
	return "" // the database's driver judges other values
}

// checkListValue does what checkValue does, for a list.
func checkListValue(field string, list []any) string {
	if field == "Set" {
		return "a column cannot be set to a list"
	}
	for _, one := range list {
		if one == NotNull {
			return "NotNull cannot be in a list"
		}
		if detail := checkValue(field, one); detail != "" {
			return detail
		}
	}
	return ""
}

// rowName returns the table and the key, for messages to operators.
func (u *Update) rowName() string {
	out := []string{u.Table}
	for _, col := range slices.Sorted(maps.Keys(u.Key)) {
		out = append(out, col+"="+formatValue(u.Key[col]))
	}
	return strings.Join(out, " ")
}

// findDifference returns a Conflict with the columns that do not have the expected
// values, NotFound if the row does not exist, or nil. It reads with FOR UPDATE: a
// plain read in a transaction may return outdated values.
func (u *Update) findDifference(ctx context.Context, q sqlx.QueryerContext) error {
	cols := slices.Sorted(maps.Keys(u.If))
	sel := clause{terms: []string{"1"}}
	for _, col := range cols {
		var cond clause
		cond.addEqual(col, u.If[col])
		sel.terms = append(sel.terms, "CASE WHEN "+cond.terms[0]+" THEN 1 ELSE 0 END", quoteName(col))
		sel.args = append(sel.args, cond.args...)
	}
	var where clause
	where.addAllEqual(u.Key)
	row, err := q.QueryRowxContext(ctx, fmt.Sprintf(`SELECT %s FROM "%s" WHERE %s FOR UPDATE`,
		strings.Join(sel.terms, ", "), u.Table, strings.Join(where.terms, " AND ")), append(sel.args, where.args...)...).SliceScan()
	if err = Error(err); err != nil {
		if fault.CodeOf(err) == fault.NotFound {
			return fault.WithUser(fault.New(fault.NotFound, "%s does not exist", u.rowName()), "The resource could not be found.")
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
		meta[col] = formatValue(actual)
		text = append(text, fmt.Sprintf("%s is %s, want %s", col, meta[col], formatValue(u.If[col])))
	}
	if len(text) == 0 {
		return nil
	}
	return fault.WithUser(
		fault.WithReason(fault.New(fault.Conflict, "%s: %s", u.rowName(), strings.Join(text, "; ")), reasonChanged, meta),
		"The resource has changed, or its state does not allow the request.")
}

// clause is a list of SQL terms with their parameters.
type clause struct {
	terms []string
	args  []any
}

// addTerm appends a term.
func (c *clause) addTerm(term string, args ...any) {
	c.terms = append(c.terms, term)
	c.args = append(c.args, args...)
}

// addSet appends an assignment for SET.
func (c *clause) addSet(col string, v any) {
	if e, ok := v.(Expr); ok {
		c.addTerm(quoteName(col) + " = " + string(e))
		return
	}
	c.addTerm(quoteName(col)+" = ?", v)
}

// addAllEqual appends a condition for each column of v.
func (c *clause) addAllEqual(v Values) {
	for _, col := range slices.Sorted(maps.Keys(v)) {
		c.addEqual(col, v[col])
	}
}

// addEqual appends the condition that a column has the value v, in the sense of Values.
func (c *clause) addEqual(col string, v any) {
	if cond, ok := v.(condition); ok {
		c.addTerm(quoteName(col) + " " + string(cond))
		return
	}
	list, ok := listElements(v)
	if !ok {
		if isNull(v) {
			c.addTerm(quoteName(col) + " IS NULL")
		} else {
			c.addTerm(quoteName(col)+" = ?", v)
		}
		return
	}
	var terms []string
	if slices.ContainsFunc(list, isNull) {
		list = slices.DeleteFunc(list, isNull)
		terms = append(terms, quoteName(col)+" IS NULL")
	}
	if len(list) > 0 {
		terms = append(terms, quoteName(col)+" IN (?"+strings.Repeat(", ?", len(list)-1)+")")
	}
	if len(terms) == 0 {
		terms = append(terms, "1 = 0") // an empty list: no row has the value
	}
	c.addTerm("("+strings.Join(terms, " OR ")+")", list...)
}

// listElements returns the elements of a slice. It returns false if v is the value of
// a column, such as a slice of bytes.
func listElements(v any) ([]any, bool) {
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
	switch r := reflect.ValueOf(v); r.Kind() { //nolint:exhaustive // a column value of another kind cannot be nil
	case reflect.Pointer:
		if r.IsNil() {
			return true
		}
	case reflect.Slice:
		if _, ok := v.(driver.Valuer); !ok && r.IsNil() && r.Type().Elem().Kind() == reflect.Uint8 {
			return true
		}
	}
	if val, ok := v.(driver.Valuer); ok {
		got, err := val.Value()
		return err == nil && got == nil
	}
	return false
}

// formatValue returns the text of a value for messages.
func formatValue(v any) string {
	if isNull(v) {
		return "NULL"
	}
	if v == NotNull {
		return "any value but NULL"
	}
	if list, ok := listElements(v); ok {
		var texts []string
		for _, one := range list {
			texts = append(texts, formatValue(one))
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

func quoteName(name string) string { return `"` + name + `"` }

// checkNames returns Invalid if a name is empty or has characters other than ASCII letters, digits and _. So a name cannot
// end its quotes and inject SQL.
func checkNames(names ...string) error {
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
