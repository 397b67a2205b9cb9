package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/listing"
)

// defaultMaxLimit is the limit of a page if a Spec has none.
const defaultMaxLimit = 1000

// list is a listing.Spec with parsed versions.
type list struct {
	*listing.Spec

	filters []listFilter
	sorts   []listSort
	edges   []Version // sorted; from each of them on, the parameters differ from those of the version before
}

// listFilter and listSort are parts of a Spec with their versions.
type (
	listFilter struct {
		listing.Filter
		span
	}
	listSort struct {
		listing.Sort
		span
	}
)

// newList checks a Spec for a route with the versions in. It returns nil if spec is nil.
func newList(spec *listing.Spec, in span) (*list, error) {
	if spec == nil {
		return nil, nil //nolint:nilnil // the route is not a list
	}
	l := &list{Spec: spec}
	taken := map[string][]span{"limit": {{}}, "marker": {{}}}
	if len(spec.Sorts) > 0 {
		taken["sort_key"], taken["sort_dir"] = []span{{}}, []span{{}}
	}
	if spec.Combined {
		taken["sort"] = []span{{}}
	}
	for _, f := range spec.Filters {
		at, err := l.checkPart(f.Name, f.Since, f.Until, in, taken)
		if err == nil {
			err = checkFilter(&f)
		}
		if err != nil {
			return nil, fmt.Errorf("filter %q: %w", f.Name, err)
		}
		l.filters = append(l.filters, listFilter{f, at})
	}
	taken = map[string][]span{}
	for _, s := range spec.Sorts {
		at, err := l.checkPart(s.Name, s.Since, s.Until, in, taken)
		switch {
		case err != nil:
		case s.Column == "":
			err = errors.New("it has no column")
		case s.Denied != nil && s.Rule == "":
			err = errors.New("the error Denied has no effect without a Rule")
		}
		if err != nil {
			return nil, fmt.Errorf("sort key %q: %w", s.Name, err)
		}
		l.sorts = append(l.sorts, listSort{s, at})
	}
	if err := l.checkOptions(); err != nil {
		return nil, err
	}
	slices.SortFunc(l.edges, compareVersions)
	l.edges = slices.Compact(l.edges)
	return l, nil
}

// checkOptions checks the fields that are not of one filter or key.
func (l *list) checkOptions() error {
	strict, err := parseSpan(l.StrictSince, "")
	switch {
	case err != nil:
		return fmt.Errorf("StrictSince: %w", err)
	case l.StrictSince != "" && !l.Lenient:
		return errors.New("StrictSince has no effect without Lenient")
	case l.StrictSince != "":
		l.edges = append(l.edges, strict.min)
	}
	if l.MaxLimit < 0 {
		return fmt.Errorf("MaxLimit is %d: write a number above 0, or 0 for %d", l.MaxLimit, defaultMaxLimit)
	}
	if len(l.Sorts) == 0 && (l.Combined || l.InvalidDirection != "") {
		return errors.New("the fields Combined and InvalidDirection have no effect without Sorts")
	}
	return nil
}

// checkPart checks the name and the versions of a filter or sort key, and records its edges. taken has the versions of each name so
// far.
func (l *list) checkPart(name, since, until string, in span, taken map[string][]span) (span, error) {
	at, err := parseSpan(since, until)
	switch {
	case err != nil:
		return at, err
	case name == "":
		return at, errors.New("it has no name")
	case !at.overlaps(in):
		return at, fmt.Errorf("the versions %s are outside of the route's, %s", at, in)
	case slices.ContainsFunc(taken[name], at.overlaps):
		return at, errors.New("another parameter has the name in the same versions")
	}
	taken[name] = append(taken[name], at)
	if at.min != (Version{}) {
		l.edges = append(l.edges, at.min)
	}
	if at.max != (Version{}) {
		l.edges = append(l.edges, Version{at.max.Major, at.max.Minor + 1})
	}
	return at, nil
}

// operatorKinds are the kinds of values that each operator compares.
var operatorKinds = map[listing.Operator][]listing.Kind{
	listing.Equal:   {listing.Text, listing.Integer, listing.Boolean, listing.Time},
	listing.In:      {listing.Text, listing.Integer},
	listing.Prefix:  {listing.Text},
	listing.Regexp:  {listing.Text},
	listing.AtLeast: {listing.Integer, listing.Time},
	listing.AtMost:  {listing.Integer, listing.Time},
	listing.Refused: {listing.Text},
}

// checkFilter returns an error if the parts of a filter do not fit together.
func checkFilter(f *listing.Filter) error {
	kinds, known := operatorKinds[f.Operator]
	switch {
	case !known:
		return fmt.Errorf("the operator %q does not exist: use a constant of package listing", f.Operator)
	case !slices.Contains(kinds, f.Kind):
		return fmt.Errorf("the operator %q cannot compare the kind %q: use one of %q", f.Operator, f.Kind, kinds)
	case len(f.Values) > 0 && (f.Kind != listing.Text || f.Operator != listing.Equal && f.Operator != listing.In):
		return errors.New("the field Values is for texts that are Equal or In")
	case f.Operator == listing.Refused && (f.Column != "" || f.Rule != ""):
		return errors.New("it is refused for all clients, so Column and Rule have no effect")
	case f.Denied != nil && f.Rule == "":
		return errors.New("the error Denied has no effect without a Rule")
	}
	return nil
}

// rules returns the rules of filters and sort keys.
func (l *list) rules() []string {
	var out []string
	for _, f := range l.filters {
		out = append(out, f.Rule)
	}
	for _, s := range l.sorts {
		out = append(out, s.Rule)
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

// outside returns an error text if a filter or sort key is in none of the versions.
func (l *list) outside(all span) string {
	for _, f := range l.filters {
		if !f.overlaps(all) {
			return fmt.Sprintf("List: filter %q: the versions %s are outside of the API's, %s", f.Name, f.span, all)
		}
	}
	for _, s := range l.sorts {
		if !s.overlaps(all) {
			return fmt.Sprintf("List: sort key %q: the versions %s are outside of the API's, %s", s.Name, s.span, all)
		}
	}
	return ""
}

// strictAt reports whether a version refuses unknown parameters.
func (l *list) strictAt(v Version) bool {
	strict, _ := parseSpan(l.StrictSince, "") // checkOptions has reported its error
	return !l.Lenient || l.StrictSince != "" && strict.has(v)
}

// schemas returns the schemas of the query, one for each range of versions in which the parameters are the same.
func (l *list) schemas(in span) []Schema {
	var out []Schema
	from := span{}
	add := func(s span) {
		if s.overlaps(in) {
			out = append(out, Schema{Min: textOfVersion(s.min), Max: textOfVersion(s.max), JSON: l.schemaText(s.min)})
		}
	}
	for _, edge := range l.edges {
		from.max = Version{edge.Major, edge.Minor - 1}
		if edge.Minor == 0 {
			from.max = Version{edge.Major - 1, math.MaxUint16}
		}
		add(from)
		from = span{min: edge}
	}
	add(from)
	return out
}

// textOfVersion returns the text of a version, or "" for the zero value.
func textOfVersion(v Version) string {
	if v == (Version{}) {
		return ""
	}
	return v.String()
}

// schemaText returns the schema of the query in a version.
func (l *list) schemaText(v Version) string {
	texts := func(schema map[string]any) map[string]any { return map[string]any{"type": "array", "items": schema} }
	properties := map[string]any{
		"limit":  texts(map[string]any{"type": "string", "pattern": "^[0-9]*$"}),
		"marker": texts(map[string]any{"type": "string"}),
	}
	if names := l.sortNames(v); len(names) > 0 {
		properties["sort_key"] = texts(map[string]any{"enum": names})
		direction := map[string]any{"enum": []string{"asc", "desc"}}
		if l.InvalidDirection != "" { // the direction is checked later, with this text
			direction = map[string]any{"type": "string"}
		}
		properties["sort_dir"] = texts(direction)
		if l.Combined {
			properties["sort"] = texts(map[string]any{"type": "string", "description": "key:dir,key"})
		}
	}
	for _, f := range l.filters {
		if !f.has(v) || f.Operator == listing.Refused {
			continue
		}
		one := texts(map[string]any{"type": "string"})
		if f.Kind != listing.Text {
			one["description"] = kindTexts[f.Kind]
		}
		if f.Rule != "" {
			one["x-policy-rule"] = f.Rule
		}
		properties[f.Name] = one
	}
	text, err := json.Marshal(map[string]any{"type": "object", "additionalProperties": !l.strictAt(v), "properties": properties})
	if err != nil {
		panic("api: the schema of a list: " + err.Error()) // it has only texts
	}
	return string(text)
}

// kindTexts describe the kinds of values for the OpenAPI document.
var kindTexts = map[listing.Kind]string{listing.Integer: "An integer.", listing.Boolean: "A boolean, such as true or 0.", listing.Time: "A time in a form of ISO 8601, by default in UTC."}

// sortNames returns the sort keys of a version.
func (l *list) sortNames(v Version) []string {
	var out []string
	for _, s := range l.sorts {
		if s.has(v) {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}

// checkRefused returns an error if a query has a filter that the list refuses. It is called before the validation by the
// schema, because the schema does not have the filter.
func (l *list) checkRefused(q url.Values, v Version) error {
	for _, f := range l.filters {
		if values := q[f.Name]; f.Operator == listing.Refused && len(values) > 0 && f.has(v) {
			text := "Invalid filter field: %s."
			if f.Invalid != "" {
				text = f.Invalid
			}
			return fieldError(f.Name, strings.ReplaceAll(text, "%s", shortenText(f.Name)))
		}
	}
	return nil
}

// maxFilterValues and maxExpressions are how many values of filters, and how many regular expressions, a request may have. They bound the size of the
// statement, and the time for matching.
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

// read returns what a query selects. The query fits the schema.
func (l *list) read(ctx context.Context, q url.Values, v Version, enforce func(ctx context.Context, rule string, target map[string]any) error) (out listing.Query, err error) {
	out.Limit, out.Marker = l.MaxLimit, q.Get("marker")
	if out.Limit == 0 {
		out.Limit = defaultMaxLimit
	}
	if n, err := strconv.Atoi(q.Get("limit")); err == nil { // otherwise it is empty, or the number does not fit into an int
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
		case denied != nil && l.IgnoreDenied:
			continue
		case denied != nil:
			return out, denied
		}
		conditions, err := f.conditions(given)
		if err != nil {
			return out, err
		}
		out.Conditions = append(out.Conditions, conditions...)
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

// checkRule returns as denied the error for the client if the rule denies it. err is an error that does not deny.
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

// conditions returns the conditions of a filter for the values of a request.
func (f *listFilter) conditions(values []string) ([]listing.Condition, error) {
	var out []listing.Condition
	for i, text := range values {
		value, problem := parseFilter(&f.Filter, text)
		if problem != "" {
			if f.Invalid != "" {
				return nil, fieldError(f.Name, strings.ReplaceAll(f.Invalid, "%s", shortenText(text)))
			}
			return nil, wrongQuery(f.Name, text, quotePython(shortenText(text))+" "+problem)
		}
		if i > 0 && f.Operator == listing.In {
			out[0].Values = append(out[0].Values, value)
			continue
		}
		out = append(out, listing.Condition{Name: f.Name, Column: f.Column, Operator: f.Operator, Values: []any{value}})
	}
	return out, nil
}

// parseFilter returns the value of a filter. problem says why the text is not a value, in the words of Python's jsonschema where it has any.
func parseFilter(f *listing.Filter, text string) (value any, problem string) {
	switch f.Kind {
	case listing.Text:
		if len(f.Values) > 0 && !slices.ContainsFunc(f.Values, func(v string) bool { return strings.EqualFold(v, text) }) {
			return nil, "is not one of [" + strings.Join(quoteAll(f.Values), ", ") + "]"
		}
	case listing.Integer:
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if errors.Is(err, strconv.ErrSyntax) {
			return nil, "is not of type 'integer'"
		}
		return n, "" // out of range: n is the nearest int64
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

// parseISO8601 returns a time in UTC. Without a zone the text is in UTC.
func parseISO8601(text string) (time.Time, bool) {
	for _, form := range isoForms {
		if t, err := time.Parse(form, text); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

// readSort reads the order of a query by the rules of oslo: a key without a direction has the first given direction.
func (l *list) readSort(ctx context.Context, q url.Values, v Version, enforce func(ctx context.Context, rule string, target map[string]any) error) ([]listing.SortKey, error) {
	keys, dirs := l.sortParameters(q)
	if err := l.checkDirections(keys, dirs); err != nil {
		return nil, err
	}
	desc := l.Default.Desc
	if len(dirs) > 0 {
		desc = dirs[0] == "desc"
	}
	var out []listing.SortKey
	for i, key := range keys {
		at := slices.IndexFunc(l.sorts, func(s listSort) bool { return s.Name == key && s.has(v) })
		if at < 0 {
			return nil, wrongQuery("sort_key", key, quotePython(shortenText(key))+" is not one of "+pythonReprOf(l.sortNames(v)))
		}
		denied, err := checkRule(ctx, enforce, l.sorts[at].Rule, l.sorts[at].Denied)
		if err = cmp.Or(err, denied); err != nil {
			return nil, err
		}
		k := listing.SortKey{Column: l.sorts[at].Column, Desc: desc}
		if i < len(dirs) {
			k.Desc = dirs[i] == "desc"
		}
		out = append(out, k)
	}
	return l.defaultOrder(out, desc), nil
}

// sortParameters returns the keys and directions of sort_key and sort_dir, and of sort.
func (l *list) sortParameters(q url.Values) (keys, dirs []string) {
	keys, dirs = q["sort_key"], q["sort_dir"]
	if !l.Combined {
		return keys, dirs
	}
	for item := range strings.SplitSeq(q.Get("sort"), ",") {
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

// defaultOrder appends the default key, unless keys have its column.
func (l *list) defaultOrder(keys []listing.SortKey, desc bool) []listing.SortKey {
	if l.Default.Column == "" || slices.ContainsFunc(keys, func(k listing.SortKey) bool { return k.Column == l.Default.Column }) {
		return keys
	}
	return append(keys, listing.SortKey{Column: l.Default.Column, Desc: desc})
}
