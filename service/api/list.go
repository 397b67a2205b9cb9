package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/armature-go/armature/listing"
)

// defaultMaxLimit is the maximum number of items of a page if a Spec has no MaxLimit.
const defaultMaxLimit = 1000

// list is a listing.Spec with parsed versions.
type list struct {
	*listing.Spec

	filters []listFilter
	sorts   []listSort
	edges   []Version // sorted; in each of these versions, the parameters differ from those of the previous version
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

// newList checks a Spec for a route. The parameter in has the versions of the route. The result is nil if spec is nil.
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
		if err == nil {
			err = checkSort(&s)
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

// checkOptions checks the fields that do not belong to one filter or sort key.
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

// checkPart checks the name and the versions of a filter or sort key, and records its edges. The parameter taken has the versions of each name
// that was already checked.
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
	case f.Denied != nil && f.Rule == "":
		return errors.New("the error Denied has no effect without a Rule")
	}
	return nil
}

// checkSort returns an error if the parts of a sort key do not fit together.
func checkSort(s *listing.Sort) error {
	switch {
	case s.Column == "" && (s.Rule != "" || s.Denied != nil):
		return errors.New("it has no column and so no effect: Rule and Denied have none, too")
	case s.Denied != nil && s.Rule == "":
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

// outside returns an error text if the API has none of the versions of a filter or sort key, or "".
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

// strictAt reports whether unknown parameters are refused in a version.
func (l *list) strictAt(v Version) bool {
	strict, _ := parseSpan(l.StrictSince, "") // checkOptions has reported its error
	return !l.Lenient || l.StrictSince != "" && strict.has(v)
}

// schemas returns the schemas of the query: one for each range of versions with the same parameters.
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

// schemaText returns the schema of the query for a version.
func (l *list) schemaText(v Version) string {
	texts := func(schema map[string]any) map[string]any { return map[string]any{"type": "array", "items": schema} }
	properties := map[string]any{
		"limit":  texts(map[string]any{"type": "string", "pattern": "^[0-9]*$"}),
		"marker": texts(map[string]any{"type": "string"}),
	}
	if names := l.sortNames(v); len(names) > 0 {
		properties["sort_key"] = texts(map[string]any{"enum": names})
		direction := map[string]any{"enum": []string{"asc", "desc"}}
		if l.InvalidDirection != "" { // the direction is checked later, and the error has this text
			direction = map[string]any{"type": "string"}
		}
		properties["sort_dir"] = texts(direction)
		if l.Combined {
			properties["sort"] = texts(map[string]any{"type": "string", "description": "key:dir,key"})
		}
	}
	for _, f := range l.filters {
		if !f.has(v) {
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
		panic("api: the schema of a list: " + err.Error()) // not reached: the schema has only texts
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
