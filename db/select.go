package db

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jmoiron/sqlx/reflectx"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
)

// Select returns the page with the conditions, the order, the marker and the limit of a client's request.
//
//	rows, more, err := db.List[Volume](ctx, d, db.Page{From: "volumes", Key: "id", Within: "project_id = ?", WithinArgs: []any{project}}.Select(query))
//
// The conditions are added to those of the page. Both databases give the same rows: texts are compared character by character. A
// regular expression ([listing.Regexp]) is not SQL: the page reads the rows that fulfill all other conditions and matches the expression on
// each, until the page is full. For that, the type of the rows must be a struct whose field for the column is a string or a *string.
//
// [List] and [ListFunc] fail with Internal for such a page if a condition has no Column (see [listing.Query.Take]), or if its operator does
// not fit the column or the type of the rows. These are errors of the component, not of the client.
func (p Page) Select(q listing.Query) Page {
	p.conditions = append(slices.Clip(p.conditions), q.Conditions...)
	p.Sort, p.Marker, p.Limit = q.Sort, q.Marker, q.Limit
	return p
}

// addConditions adds the conditions of the page as SQL.
func (p *Page) addConditions(to *clause) error {
	for _, c := range p.conditions {
		if c.Column == "" {
			return fault.New(fault.Internal, "list a page: the filter %s has no column, and the component did not apply it: call Take of the query", c.Name)
		}
		if err := checkNames(strings.Split(c.Column, ".")...); err != nil {
			return fault.New(fault.Internal, "list a page: the filter %s: %w", c.Name, err)
		}
		var one clause
		for _, v := range c.Values {
			term, args, err := conditionTerm(pageKey{SortKey: SortKey{Column: c.Column}}.quotedName(), c.Operator, v)
			if err != nil {
				return fault.New(fault.Internal, "list a page: the filter %s: %w", c.Name, err)
			}
			one.addTerm(term, args...)
		}
		switch {
		case len(one.terms) > 0:
			to.addTerm("("+strings.Join(one.terms, " OR ")+")", one.args...)
		case c.Operator == listing.In:
			to.addTerm("1 = 0")
		default:
			return fault.New(fault.Internal, "list a page: the filter %s has no value", c.Name)
		}
	}
	return nil
}

// conditionTerm returns the SQL of an operator for one value.
func conditionTerm(col string, op listing.Operator, v any) (term string, args []any, err error) {
	text, isText := v.(string)
	re, isRegexp := v.(*regexp.Regexp)
	switch {
	case op == listing.Regexp && isRegexp:
		if text = listing.RequiredText(re); text != "" {
			return "INSTR(" + col + ", ?) > 0", []any{text}, nil
		}
		return col + " IS NOT NULL", nil, nil
	case (op == listing.Equal || op == listing.In) && isText: // MySQL's = ignores spaces at the end of a text
		return col + " = ? AND LENGTH(" + col + ") = LENGTH(?)", []any{text, text}, nil
	case op == listing.Prefix && isText:
		term, args = "INSTR("+col+", ?) = 1", []any{text}
		if bound := textBelow(text); bound != "" { // an index can serve this
			term, args = col+" > ? AND "+term, []any{bound, text}
		}
		return term, args, nil
	case isText || isRegexp:
	case op == listing.Equal || op == listing.In:
		return col + " = ?", []any{v}, nil
	case op == listing.AtLeast:
		return col + " >= ?", []any{v}, nil
	case op == listing.AtMost:
		return col + " <= ?", []any{v}, nil
	}
	return "", nil, fmt.Errorf("the operator %q cannot compare a %T", op, v)
}

// textBelow returns a text that is less than each text with the prefix, or "". It cannot return the prefix itself, because MySQL compares as if the
// shorter text had spaces at its end: there "ab\t" is less than "ab". Instead it replaces the last character of the
// prefix by two characters: the one with the next lower code point, and the one with the highest code point. Both
// databases order texts by code points.
func textBelow(prefix string) string {
	prefix = strings.TrimRight(prefix, "\x00")
	last, size := utf8.DecodeLastRuneInString(prefix)
	if last == utf8.RuneError { // empty, or not UTF-8
		return ""
	}
	before := last - 1
	if !utf8.ValidRune(before) { // a surrogate, which no text has
		before = 0xD7FF
	}
	return prefix[:len(prefix)-size] + string(before) + string(utf8.MaxRune)
}

// rowMatch is a regular expression on a field of the rows.
type rowMatch struct {
	listing.Condition

	index []int // the index of the field in the struct
}

// rowMatches returns the regular expressions of the page, for rows of type t.
func (p *Page) rowMatches(t reflect.Type) ([]rowMatch, error) {
	var out []rowMatch
	for _, c := range p.conditions {
		if c.Operator != listing.Regexp {
			continue
		}
		name := c.Column[strings.LastIndexByte(c.Column, '.')+1:]
		index, ok := textField(t, name)
		if !ok {
			return nil, fault.New(fault.Internal, "list a page: the filter %s matches a regular expression, but %s has no text field for the column %s", c.Name, t, name)
		}
		out = append(out, rowMatch{c, index})
	}
	return out, nil
}

// textField returns the index of the field of a struct that has the text of a column.
func textField(t reflect.Type, column string) (index []int, ok bool) {
	if t.Kind() != reflect.Struct {
		return nil, false
	}
	info := structMapper.TypeMap(t).GetByPath(column)
	if info == nil {
		return nil, false
	}
	of := info.Field.Type
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	return info.Index, of.Kind() == reflect.String
}

// has reports whether a row matches. The row is a struct.
func (m *rowMatch) has(row reflect.Value) bool {
	field := reflectx.FieldByIndexesReadOnly(row, m.index)
	if field.Kind() == reflect.Pointer {
		if field.IsNil() {
			return false
		}
		field = field.Elem()
	}
	return m.Match(field.String())
}

// hasAll reports whether a row matches all regular expressions.
func hasAll(matches []rowMatch, row reflect.Value) bool {
	for i := range matches {
		if !matches[i].has(row) {
			return false
		}
	}
	return true
}
