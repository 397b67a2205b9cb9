package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/listing"
)

// maxFilterValues and maxExpressions are the maximum numbers of filter values and of regular expressions in a request. They bound the size of
// the SQL statement, and the time for matching.
const maxFilterValues, maxExpressions = 100, 5

// checkCount returns an error if a query has too many values of filters.
func (l *list) checkCount(q url.Values, v Version) error {
	values, expressions := 0, 0
	for _, f := range l.filters {
		if !f.has(v) {
			continue
		}
		values += len(q[f.Name])
		if f.Operator == listing.Regexp {
			expressions += len(q[f.Name])
		}
		if values > maxFilterValues || expressions > maxExpressions {
			return fieldError(f.Name, fmt.Sprintf("Too many filters: a request has at most %d values, and at most %d regular expressions.", maxFilterValues, maxExpressions))
		}
	}
	return nil
}

// read returns the selection of a query that fits the schema.
func (l *list) read(ctx context.Context, q url.Values, v Version, enforce func(ctx context.Context, rule string, target map[string]any) error) (out listing.Query, err error) {
	out.Limit, out.Marker = l.MaxLimit, lastOf(q["marker"])
	if out.Limit == 0 {
		out.Limit = defaultMaxLimit
	}
	if n, err := strconv.Atoi(lastOf(q["limit"])); err == nil { // otherwise limit is empty, or does not fit into an int
		out.Limit = min(n, out.Limit)
	}
	if err := l.checkCount(q, v); err != nil {
		return out, err
	}
	for _, f := range l.filters {
		given := q[f.Name]
		if len(given) == 0 || !f.has(v) {
			continue
		}
		denied, err := checkRule(ctx, enforce, f.Rule, f.Denied)
		switch {
		case err != nil:
			return out, err
		case denied != nil && !l.IgnoreDenied:
			return out, denied
		}
		condition, err := f.condition(given)
		switch {
		case err != nil:
			return out, err
		case denied == nil:
			out.Conditions = append(out.Conditions, condition)
		}
	}
	if err := checkRanges(out.Conditions); err != nil {
		return out, err
	}
	if len(l.sorts) == 0 {
		out.Sort = l.defaultOrder(nil, l.Default.Desc)
		return out, nil
	}
	out.Sort, err = l.readSort(ctx, q, v, enforce)
	return out, err
}

// lastOf returns the last value of a parameter, which counts if a client gives several.
func lastOf(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// checkRanges returns an error, in Nova's words, if a lower bound of a column is above an upper one, so that no item can have both.
func checkRanges(list []listing.Condition) error {
	for _, low := range list {
		for _, high := range list {
			if low.Operator == listing.AtLeast && high.Operator == listing.AtMost && low.Column != "" && low.Column == high.Column && isAbove(low.Values[0], high.Values[0]) {
				return fieldError(low.Name, fmt.Sprintf("The value of %s must be less than or equal to %s.", low.Name, high.Name))
			}
		}
	}
	return nil
}

// isAbove reports whether a is above b. Values of different types have no order.
func isAbove(a, b any) bool {
	switch a := a.(type) {
	case int64:
		n, ok := b.(int64)
		return ok && a > n
	case time.Time:
		at, ok := b.(time.Time)
		return ok && a.After(at)
	}
	return false
}

// checkRule enforces a rule. If the rule denies the request, the result denied is the error for the client: the parameter instead, or the error
// of enforce if instead is nil. The result err is the error of an enforcement that could not decide.
func checkRule(ctx context.Context, enforce func(ctx context.Context, rule string, target map[string]any) error, rule string, instead error) (denied, err error) {
	if rule == "" {
		return nil, nil
	}
	err = enforce(ctx, rule, nil)
	switch {
	case err == nil:
		return nil, nil
	case statusOf(err) >= statusClientGone: // the policy could not decide
		return nil, err
	case instead != nil:
		return instead, nil
	}
	return err, nil
}

// condition returns the condition of a filter for the values of a request. All values are checked. With the operator [listing.In] all of them
// count, with another operator only the last one.
func (f *listFilter) condition(values []string) (listing.Condition, error) {
	out := listing.Condition{Name: f.Name, Column: f.Column, Operator: f.Operator}
	if f.Operator == listing.In {
		values = f.acceptedOf(values)
	}
	for _, text := range values {
		value, problem := f.parse(text)
		if problem != "" {
			if f.Invalid != "" {
				return out, fieldError(f.Name, strings.ReplaceAll(f.Invalid, "%s", shortenText(text)))
			}
			return out, wrongQuery(f.Name, text, quotePython(shortenText(text))+" "+problem)
		}
		if f.Operator != listing.In {
			out.Values = nil
		}
		out.Values = append(out.Values, value)
	}
	return out, nil
}

// acceptedOf returns the values that a filter with the operator In accepts, or all values if the filter accepts none.
func (f *listFilter) acceptedOf(values []string) []string {
	if len(f.Values) == 0 {
		return values
	}
	accepted := slices.DeleteFunc(slices.Clone(values), func(text string) bool { return !f.accepts(text) })
	if len(accepted) == 0 {
		return values
	}
	return accepted
}

// accepts reports whether a text is one of the Values of the filter, or the filter accepts all texts.
func (f *listFilter) accepts(text string) bool {
	return len(f.Values) == 0 || slices.ContainsFunc(f.Values, func(v string) bool { return strings.EqualFold(v, text) })
}

// parse returns the value of the filter. The result problem says why the text is not a value, in the words of Python's jsonschema where it has any.
func (f *listFilter) parse(text string) (value any, problem string) {
	switch f.Kind {
	case listing.Text:
		if !f.accepts(text) {
			return nil, "is not one of [" + strings.Join(quoteAll(f.Values), ", ") + "]"
		}
	case listing.Integer:
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if errors.Is(err, strconv.ErrSyntax) {
			return nil, "is not of type 'integer'"
		}
		return n, "" // if the number is out of range, n is the nearest int64
	case listing.Boolean:
		if b, ok := booleans[strings.ToLower(strings.TrimSpace(text))]; ok {
			return b, ""
		}
		return nil, "is not of type 'boolean'"
	case listing.Time:
		if t, ok := parseISO8601(text); ok {
			return t, ""
		}
		return nil, "is not a 'date-time'"
	}
	if f.Operator == listing.Regexp {
		re, err := listing.CompileRegexp(text)
		if err != nil {
			return nil, "is not a 'regex'"
		}
		return re, ""
	}
	return text, ""
}

// quoteAll quotes texts as Python does.
func quoteAll(list []string) []string {
	out := make([]string, len(list))
	for i, text := range list {
		out[i] = quotePython(text)
	}
	return out
}

// booleans are the texts that OpenStack accepts as a boolean, in lower case.
var booleans = map[string]bool{
	"true": true, "1": true, "on": true, "yes": true, "t": true, "y": true,
	"false": false, "0": false, "off": false, "no": false, "f": false, "n": false,
}

// isoForms are the accepted forms of ISO 8601.
var isoForms = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "20060102T150405Z0700", "20060102T150405", time.DateOnly,
}

// parseISO8601 returns a time in UTC. A text without a time zone means UTC. In UTC, the time must be in the years 1 to 9999: databases
// store no other years.
func parseISO8601(text string) (time.Time, bool) {
	for _, form := range isoForms {
		if t, err := time.Parse(form, text); err == nil {
			t = t.UTC()
			return t, t.Year() >= 1 && t.Year() <= 9999
		}
	}
	return time.Time{}, false
}

// readSort reads the order of a query by the rules of oslo: if a key has no direction, it gets the first direction of the query.
func (l *list) readSort(ctx context.Context, q url.Values, v Version, enforce func(ctx context.Context, rule string, target map[string]any) error) ([]listing.SortKey, error) {
	keys, dirs := l.sortParameters(q)
	if err := l.checkDirections(keys, dirs); err != nil {
		return nil, err
	}
	var columns []string
	for _, key := range keys {
		at := slices.IndexFunc(l.sorts, func(s listSort) bool { return s.Name == key && s.has(v) })
		if at < 0 {
			return nil, wrongQuery("sort_key", key, quotePython(shortenText(key))+" is not one of "+pythonReprOf(l.sortNames(v)))
		}
		denied, err := checkRule(ctx, enforce, l.sorts[at].Rule, l.sorts[at].Denied)
		if err = cmp.Or(err, denied); err != nil {
			return nil, err
		}
		if i := len(columns); l.sorts[at].Column != "" {
			columns = append(columns, l.sorts[at].Column)
		} else if i < len(dirs) { // the key has no effect, nor has its direction
			dirs = slices.Delete(slices.Clone(dirs), i, i+1)
		}
	}
	return l.sortKeys(columns, dirs), nil
}

// sortKeys returns the order: the columns with their directions, then the default key. Columns without a direction get the first direction.
func (l *list) sortKeys(columns, dirs []string) (out []listing.SortKey) {
	desc := l.Default.Desc
	if len(dirs) > 0 {
		desc = dirs[0] == "desc"
	}
	for i, column := range columns {
		k := listing.SortKey{Column: column, Desc: desc}
		if i < len(dirs) {
			k.Desc = dirs[i] == "desc"
		}
		out = append(out, k)
	}
	return l.defaultOrder(out, desc)
}

// sortParameters returns the keys and directions of the parameters sort_key, sort_dir and sort.
func (l *list) sortParameters(q url.Values) (keys, dirs []string) {
	keys, dirs = q["sort_key"], q["sort_dir"]
	if !l.Combined {
		return keys, dirs
	}
	for item := range strings.SplitSeq(lastOf(q["sort"]), ",") {
		if item != "" {
			key, dir, _ := strings.Cut(item, ":")
			keys, dirs = append(keys, key), append(dirs, cmp.Or(dir, "asc"))
		}
	}
	return keys, dirs
}

// checkDirections returns an error for an unknown direction, or for more directions than keys.
func (l *list) checkDirections(keys, dirs []string) error {
	if len(dirs) > max(len(keys), 1) {
		return fieldError("sort_dir", "Invalid input received: Sort direction size exceeds sort key size")
	}
	for _, d := range dirs {
		switch {
		case d == "asc" || d == "desc":
		case l.InvalidDirection != "":
			return fieldError("sort_dir", l.InvalidDirection)
		default:
			return wrongQuery("sort_dir", d, quotePython(shortenText(d))+" is not one of ['asc', 'desc']")
		}
	}
	return nil
}

// defaultOrder appends the default key, unless keys already have its column.
func (l *list) defaultOrder(keys []listing.SortKey, desc bool) []listing.SortKey {
	if l.Default.Column == "" || slices.ContainsFunc(keys, func(k listing.SortKey) bool { return k.Column == l.Default.Column }) {
		return keys
	}
	return append(keys, listing.SortKey{Column: l.Default.Column, Desc: desc})
}
