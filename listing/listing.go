// Package listing describes the lists of an API as data: the attributes by which a client may filter and sort (a [Spec]), and what one
// request selects (a [Query]).
//
// A Spec is declared once. Package service/api makes a Query from a request according to the Spec, and package db reads the rows of
// the Query. Neither of these two packages imports the other.
//
//	var volumes = listing.Spec{
//		Filters: []listing.Filter{
//			{Name: "status", Column: "status", Operator: listing.In},
//			{Name: "name", Column: "name", Operator: listing.Regexp},
//			{Name: "changes-since", Column: "updated_at", Kind: listing.Time, Operator: listing.AtLeast},
//			{Name: "host", Column: "host", Since: "3.8", Rule: "volume:filter_by_host"},
//		},
//		Sorts:   []listing.Sort{{Name: "name", Column: "name"}, {Name: "created", Column: "created_at"}},
//		Default: listing.SortKey{Column: "created_at", Desc: true},
//	}
//
//	api.HandleRoute(mux, api.Route{Pattern: "GET /v3/volumes", List: &volumes}, func(ctx context.Context, r *api.Request[api.None]) (out page, err error) {
//		rows, _, err := db.List[Volume](ctx, d, db.Page{From: "volumes", Key: "id", Within: "project_id = ?", WithinArgs: []any{project}}.Select(r.List))
//		...
//		if len(rows) > 0 {
//			out.Links = r.NextPage(len(rows), rows[len(rows)-1].ID)
//		}
//	})
package listing

import (
	"regexp"
	"slices"
	"strings"
)

// Operator says how a filter compares an attribute with the value that a client gives. An attribute without a value (NULL) never
// matches. If the client gives several values, the last one counts, as in OpenStack, except for [In].
type Operator string

// The operators.
const (
	// Equal: the attribute has the value. Texts are equal if they have the same characters, including spaces at the end.
	Equal Operator = ""
	// In: the attribute has one of the values that the client gives.
	In Operator = "in"
	// Prefix: the attribute, a text, begins with the value.
	Prefix Operator = "prefix"
	// Regexp: the attribute is a text. The value is a regular expression of package regexp, which must match a part of the text. See
	// [CompileRegexp] for the limits of expressions.
	Regexp Operator = "regexp"
	// AtLeast: the attribute, a number or a time, is not below the value. AtMost: the attribute is not above the value. A
	// request that gives both bounds for one Column, the lower bound above the upper one, is refused with status 400.
	AtLeast Operator = "at least"
	AtMost  Operator = "at most"
)

// Kind is the kind of the values of a filter.
type Kind string

// The kinds.
const (
	// Text is any text.
	Text Kind = ""
	// Integer is a decimal integer. A number that does not fit into an int64 counts as the nearest int64.
	Integer Kind = "integer"
	// Boolean is one of the texts that OpenStack accepts, such as true, 1, on and yes.
	Boolean Kind = "boolean"
	// Time is a time in a form of ISO 8601. Without a zone it is in UTC.
	Time Kind = "time"
)

// Filter is a parameter by which a client may filter. Name is required.
type Filter struct {
	// Name is the name of the parameter.
	Name string
	// Column is the column of the database, such as "name" or "volumes.name". Empty: the handler applies the filter, see [Query.Take].
	Column string
	// Operator and Kind say what the filter does. Default: [Equal] to a [Text].
	Operator Operator
	Kind     Kind
	// Values are the values that the filter accepts. They need the kind Text. Upper and lower case are not distinguished. Another
	// value is refused with the text Invalid. If a request gives several values to an [In], and at least one of them is accepted,
	// the others are ignored. Empty: all values.
	Values []string
	// Since and Until are the first and the last microversion of the filter. In other versions it is an unknown parameter. Empty:
	// the first and the last version of the route.
	Since, Until string
	// Rule is a policy rule, which is checked with a nil target. Only clients that the rule allows may use the filter. For other clients the request is
	// refused, or the filter is ignored if IgnoreDenied of the Spec is set. Empty: all clients.
	Rule string
	// Denied is the error for clients that the rule denies. Default: the error of the policy.
	Denied error
	// Invalid is the text of the error, with status 400, if the value is not of the Kind, is not one of Values or is not a regular expression.
	// In the text, %s is replaced by the value. Default: a text that names the parameter and the value.
	Invalid string
}

// Sort is a value of the parameter sort_key. Name is required. Without a Column the key is accepted, but the key and its direction
// have no effect. The other fields have the same meaning as in [Filter].
type Sort struct {
	Name, Column string
	Since, Until string
	Rule         string
	Denied       error
}

// SortKey is a column to sort by. Column may be "table.column". NULLs come first in ascending order and last in descending order.
type SortKey struct {
	Column string
	Desc   bool
}

// Spec declares a list. The zero value declares a list with pages, one order and no filters.
type Spec struct {
	// MaxLimit is the maximum number of items of a page, and the default. 0: 1000.
	MaxLimit int
	Filters  []Filter
	// Sorts are the values of sort_key. Without Sorts the list has one order, and sort_key and sort_dir are unknown parameters.
	Sorts []Sort
	// Default is the order if the client gives no sort_key. It is also appended to the client's keys, unless they have its Column. If
	// a request has a direction, its first direction is also that of Default, and of each sort_key without a sort_dir. Otherwise these
	// keys have the direction of Default. A key of the parameter sort without a direction is ascending. If Default is the zero value,
	// the rows have the order of the client's keys and then of the list's unique column, such as the Key of package db's Page.
	Default SortKey
	// Combined also accepts the parameter sort in the form "key:dir,key".
	Combined bool
	// Lenient ignores unknown parameters, in microversions before StrictSince, or in all microversions if StrictSince is
	// empty. Default: a request with an unknown parameter is refused with 400.
	Lenient     bool
	StrictSince string
	// IgnoreDenied ignores a filter whose Rule denies the client, provided that the filter's value is valid. Default: the
	// request is refused. In both cases a request with a sort key whose Rule denies the client is refused.
	IgnoreDenied bool
	// InvalidDirection is the text of the error for a sort_dir other than asc and desc. Default: a text that names the parameter
	// and the value.
	InvalidDirection string
}

// Condition is a filter with the values that a client gives.
type Condition struct {
	// Name and Column are those of the filter.
	Name, Column string
	Operator     Operator
	// Values are of the type string, int64, bool or [time.Time] (UTC), by the filter's Kind, or *[regexp.Regexp] for [Regexp]. Operators
	// other than [In] have one value.
	Values []any
}

// Match reports whether a text fulfills a condition whose values are texts or regular expressions. Other values never match.
func (c *Condition) Match(text string) bool {
	return slices.ContainsFunc(c.Values, func(v any) bool {
		switch v := v.(type) {
		case *regexp.Regexp:
			return v.MatchString(text)
		case string:
			return v == text || c.Operator == Prefix && strings.HasPrefix(text, v)
		}
		return false
	})
}

// Query is what one request for a list selects: items that fulfill all conditions, in an order, at most Limit of them after a marker.
type Query struct {
	Conditions []Condition
	Sort       []SortKey
	// Marker is the id of the last item of the previous page. Empty: this is the first page.
	Marker string
	// Limit is the maximum number of items. 0: the page is empty.
	Limit int
}

// Take removes the conditions of a filter from the query, and returns them. A handler takes the conditions without a Column, and
// applies them itself. Package db refuses a query that still has conditions without a Column, so no filter is forgotten.
func (q *Query) Take(name string) []Condition {
	var out, rest []Condition
	for _, c := range q.Conditions {
		if c.Name == name {
			out = append(out, c)
		} else {
			rest = append(rest, c)
		}
	}
	q.Conditions = rest
	return out
}
