package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// enforceByRole denies each rule that is not one of the client's roles. The rule "broken" fails.
func enforceByRole(ctx context.Context, rule string, _ map[string]any) error {
	if slices.Contains(reqctx.From(ctx).Roles, rule) {
		return nil
	}
	if rule == "broken" {
		return fault.New(fault.Unavailable, "the policy cannot be read")
	}
	return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
}

// asRole returns the identity of a client with the project in the header X-Test-Project and the roles in the header X-Test-Role.
func asRole(r *http.Request) (reqctx.Request, error) {
	return reqctx.Request{UserID: "u", ProjectID: r.Header.Get("X-Test-Project"), Roles: strings.Fields(r.Header.Get("X-Test-Role"))}, nil
}

// disks is a list with each kind of filter.
var disks = listing.Spec{
	MaxLimit: 100, Lenient: true, StrictSince: "3.5", Combined: true, Default: listing.SortKey{Column: "created_at", Desc: true},
	Filters: []listing.Filter{
		{Name: "status", Column: "state", Operator: listing.In},
		{Name: "name", Column: "name", Operator: listing.Regexp},
		{Name: "path", Column: "path", Operator: listing.Prefix},
		{Name: "owner", Column: "owner"},
		{Name: "size", Column: "size_gib", Kind: listing.Integer, Operator: listing.AtLeast, Invalid: "Invalid size filter [%s]"},
		{Name: "ready", Column: "ready", Kind: listing.Boolean},
		{Name: "changes-since", Column: "updated_at", Kind: listing.Time, Operator: listing.AtLeast},
		{Name: "changes-before", Column: "updated_at", Kind: listing.Time, Operator: listing.AtMost, Since: "3.2"},
		{Name: "host", Column: "host", Rule: "admin"},
		{Name: "rack", Column: "rack", Rule: "admin", Denied: fault.New(fault.Invalid, "Invalid filter field: rack.")},
		{Name: "zone", Column: "zone", Rule: "broken"},
		{Name: "kind", Values: []string{"fast", "slow"}, Operator: listing.In, Column: "kind"},
		{Name: "custom"},
	},
	Sorts: []listing.Sort{
		{Name: "name", Column: "name"},
		{Name: "created_at", Column: "created_at"},
		{Name: "host", Column: "host", Rule: "admin", Denied: fault.New(fault.Denied, "Only administrators can sort by host")},
		{Name: "label", Column: "label", Since: "3.2", Until: "3.3"},
		{Name: "former", Until: "3.3"},
	},
}

// listMux serves GET /v3/disks. The handler passes each request to the function see.
func listMux(spec *listing.Spec, see func(*api.Request[api.None])) *api.Mux {
	m, _ := newMux(api.Config{
		Microversions: &api.Microversions{Service: "disk", Min: "3.0", Max: "3.9", Prefix: "/v3"}, Authenticate: asRole, Enforce: enforceByRole,
	})
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/disks", List: spec}, func(_ context.Context, r *api.Request[api.None]) (api.None, error) {
		see(r)
		return api.None{}, nil
	})
	return m
}

// TestList: the handler of a list gets the selection that the query describes, or the request is refused. Both depend on the version and on
// the client's role.
func TestList(t *testing.T) {
	t.Parallel()
	var got *api.Request[api.None]
	m := listMux(&disks, func(r *api.Request[api.None]) { got = r })
	created := listing.SortKey{Column: "created_at", Desc: true}
	all := listing.Query{Limit: 100, Sort: []listing.SortKey{created}}
	with := func(list ...listing.Condition) listing.Query {
		q := all
		q.Conditions = list
		return q
	}
	sorted := func(keys ...listing.SortKey) listing.Query { return listing.Query{Limit: 100, Sort: keys} }
	paged := func(limit int, marker string) listing.Query {
		return listing.Query{Limit: limit, Marker: marker, Sort: all.Sort}
	}
	since := func(at time.Time) listing.Query {
		return with(listing.Condition{Name: "changes-since", Column: "updated_at", Operator: listing.AtLeast, Values: []any{at}})
	}
	noon := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		version, role, query string
		want                 listing.Query
		says                 string // the status and a part of the error
	}{
		{"", "", "", all, ""},
		{"", "", "limit=10&marker=m", paged(10, "m"), ""},
		{"", "", "limit=0&marker=m", paged(0, "m"), ""},
		{"", "", "limit=00", paged(0, ""), ""},
		{"", "", "limit=", all, ""},
		{"", "", "limit=101", all, ""},
		{"", "", "limit=99999999999999999999999", all, ""},
		{"", "", "limit=-1", all, "400 Invalid input for query parameters limit. Value: -1. '-1' does not match '^[0-9]*$'"},
		{"", "", "limit=1e3", all, "400 does not match"},
		{"", "", "limit=%2B5", all, "400 '+5' does not match '^[0-9]*$'"},
		{"", "", "limit=%1b", all, `400 '\\x1b' does not match`},
		{"", "", "sort_key=name&sort_dir=desc&sort_key=created_at", sorted(listing.SortKey{Column: "name", Desc: true}, created), ""},
		{"", "", "sort_key=name&sort_dir=asc", sorted(listing.SortKey{Column: "name"}, listing.SortKey{Column: "created_at"}), ""},
		{"", "", "sort=name,created_at:desc", sorted(listing.SortKey{Column: "name"}, created), ""},
		{"", "", "sort=name:up", all, "400 'up' is not one of ['asc', 'desc']"},
		{"", "", "sort=:desc", all, "400 '' is not one of ['created_at', 'former', 'host', 'name']"},
		{"", "", "sort_dir=asc", sorted(listing.SortKey{Column: "created_at"}), ""},
		{"", "", "sort_dir=asc&sort_dir=asc", all, "400 Sort direction size exceeds sort key size"},
		{"", "", "sort_key=password", all, "400 'password' is not one of ['created_at', 'former', 'host', 'name']"},
		{"", "", "sort_key=name&sort_dir=up", all, "400 'up' is not one of ['asc', 'desc']"},
		{"", "", "sort_key=a%1b", all, `400 'a\\x1b' is not one of`},
		{"", "", "sort_key=label", all, "400 'label' is not one of"},
		{"3.2", "", "sort_key=label&sort_dir=desc", sorted(listing.SortKey{Column: "label", Desc: true}, created), ""},
		{"3.4", "", "sort_key=label", all, "400 'label' is not one of"},
		{"", "", "sort_key=host", all, "403 Only administrators can sort by host"},
		{"", "admin", "sort_key=host&sort_dir=desc", sorted(listing.SortKey{Column: "host", Desc: true}, created), ""},

		{"", "", "status=a&status=b", with(listing.Condition{Name: "status", Column: "state", Operator: listing.In, Values: []any{"a", "b"}}), ""},
		{"", "", "owner=a&owner=b", with(listing.Condition{Name: "owner", Column: "owner", Values: []any{"b"}}), ""},
		{"", "", "size=ten&size=10", all, "400 Invalid size filter [ten]"},
		{"", "", "limit=10&limit=5&marker=m&marker=n", paged(5, "n"), ""},
		{"", "", "sort=name&sort=created_at", sorted(listing.SortKey{Column: "created_at"}), ""},
		{"", "", "sort_key=former&sort_dir=asc", all, ""},
		{"", "", "sort_key=former", all, ""},
		{"", "", "sort_key=name&sort_key=former&sort_key=created_at&sort_dir=asc&sort_dir=asc&sort_dir=desc", sorted(listing.SortKey{Column: "name"}, created), ""},
		{"3.4", "", "sort_key=former", all, "400 'former' is not one of"},
		{"", "", "path=/a", with(listing.Condition{Name: "path", Column: "path", Operator: listing.Prefix, Values: []any{"/a"}}), ""},
		{"", "", "kind=none&kind=FAST&kind=other", with(listing.Condition{Name: "kind", Column: "kind", Operator: listing.In, Values: []any{"FAST"}}), ""},
		{"", "", "kind=FAST&kind=slow", with(listing.Condition{Name: "kind", Column: "kind", Operator: listing.In, Values: []any{"FAST", "slow"}}), ""},
		{"", "", "kind=odd&kind=other", all, "400 Invalid input for query parameters kind. Value: odd. 'odd' is not one of ['fast', 'slow']"},
		{"", "", "custom=x", with(listing.Condition{Name: "custom", Values: []any{"x"}}), ""},
		{"", "", "size=10", with(listing.Condition{Name: "size", Column: "size_gib", Operator: listing.AtLeast, Values: []any{int64(10)}}), ""},
		{"", "", "size=99999999999999999999", with(listing.Condition{Name: "size", Column: "size_gib", Operator: listing.AtLeast, Values: []any{int64(1<<63 - 1)}}), ""},
		{"", "", "size=ten", all, "400 Invalid size filter [ten]"},
		{"", "", "ready=YES", with(listing.Condition{Name: "ready", Column: "ready", Values: []any{true}}), ""},
		{"", "", "ready=maybe", all, "400 Invalid input for query parameters ready. Value: maybe. 'maybe' is not of type 'boolean'"},
		{"", "", "name=w%2Bb", with(listing.Condition{Name: "name", Column: "name", Operator: listing.Regexp, Values: []any{regexp.MustCompile("w+b")}}), ""},
		{"", "", "name=[", all, "400 Invalid input for query parameters name. Value: [. '[' is not a 'regex'"},
		{"", "", "name=" + strings.Repeat("a", 1025), all, "400 is not a 'regex'"},
		{"", "", "name=" + strings.Repeat("a{1000}", 100), all, "400 is not a 'regex'"},
		{"", "", "changes-since=2026-11-27T12:00:00Z", since(noon), ""},
		{"", "", "changes-since=2026-11-27T13:00:00%2B01:00", since(noon), ""},
		{"", "", "changes-since=2026-11-27T12:00:00", since(noon), ""},
		{"", "", "changes-since=20261127T120000Z", since(noon), ""},
		{"", "", "changes-since=yesterday", all, "400 Invalid input for query parameters changes-since. Value: yesterday. 'yesterday' is not a 'date-time'"},
		{"", "", "changes-since=0000-12-31T23:59:59Z", all, "400 '0000-12-31T23:59:59Z' is not a 'date-time'"}, // a database has no such years
		{"", "", "changes-since=0001-01-01T00:00:00%2B00:01", all, "400 is not a 'date-time'"},
		{"", "", "changes-since=9999-12-31T23:59:59-00:01", all, "400 is not a 'date-time'"},
		{"", "", "changes-since=9999-12-31T23:59:59.9999999Z", since(time.Date(9999, 12, 31, 23, 59, 59, 999999900, time.UTC)), ""},
		{"", "", strings.Repeat("status=a&", 101), all, "400 Too many filters: a request has at most 100 values"},
		{"", "", strings.Repeat("name=a&", 6), all, "400 Too many filters"},
		{"3.1", "", "changes-before=x", all, ""},
		{"3.2", "", "changes-before=x", all, "400 'x' is not a 'date-time'"},
		{"3.2", "", "changes-before=2026-11-27T12:00:00Z&changes-since=2026-11-27T13:00:00%2B01:00", with(
			listing.Condition{Name: "changes-since", Column: "updated_at", Operator: listing.AtLeast, Values: []any{noon}},
			listing.Condition{Name: "changes-before", Column: "updated_at", Operator: listing.AtMost, Values: []any{noon}}), ""},
		{"3.2", "", "changes-since=2026-11-27T12:00:01Z&changes-before=2026-11-27T12:00:00Z", all, "400 The value of changes-since must be less than or equal to changes-before."},
		{"3.1", "", "changes-since=2026-11-27T12:00:00Z&changes-before=2026-11-26T12:00:00Z", since(noon), ""},
		{"", "", "host=n1", all, "403 Policy doesn't allow admin to be performed."},
		{"", "", "rack=r1", all, "400 Invalid filter field: rack."},
		{"", "admin", "host=n1", with(listing.Condition{Name: "host", Column: "host", Values: []any{"n1"}}), ""},
		{"", "", "zone=z", all, "503"},

		{"3.4", "", "surprise=1", all, ""},
		{"3.5", "", "surprise=1", all, "400 Additional properties are not allowed ('surprise' was unexpected)"},
		{"3.5", "", "a%1b=1", all, `400 ('a\\x1b' was unexpected)`},
		{"", "", "a;b", all, "400 Malformed query"},
		{"", "", "status=%ff", all, "400 Query string is not UTF-8 encoded"},
	} {
		got = nil
		header := []string{"X-Test-Role", tt.role}
		if tt.version != "" {
			header = append(header, "OpenStack-API-Version", "disk "+tt.version)
		}
		w := send(t, m, "GET", "/v3/disks?"+tt.query, "", header...)
		if status, says, _ := strings.Cut(tt.says, " "); tt.says != "" {
			if got != nil || !strings.Contains(w.Body.String(), `"code":`+status) || !strings.Contains(w.Body.String(), says) {
				t.Errorf("%s %s %.80s = %d %s, want %s", tt.version, tt.role, tt.query, w.Code, w.Body, tt.says)
			}
			continue
		}
		if got == nil {
			t.Errorf("%s %s %s = %d %s", tt.version, tt.role, tt.query, w.Code, w.Body)
			continue
		}
		if diff := cmp.Diff(tt.want, got.List, cmp.Comparer(func(a, b *regexp.Regexp) bool { return a.String() == b.String() })); diff != "" {
			t.Errorf("%s %s %s (-want +got):\n%s", tt.version, tt.role, tt.query, diff)
		}
	}
}

// TestListBounds: bounds that no item can meet are refused, if both bounds are for the same column.
func TestListBounds(t *testing.T) {
	t.Parallel()
	m := listMux(&listing.Spec{Filters: []listing.Filter{
		{Name: "min", Column: "size", Kind: listing.Integer, Operator: listing.AtLeast},
		{Name: "max", Column: "size", Kind: listing.Integer, Operator: listing.AtMost},
		{Name: "until", Column: "at", Kind: listing.Integer, Operator: listing.AtMost},
		{Name: "a", Kind: listing.Integer, Operator: listing.AtLeast},
		{Name: "b", Kind: listing.Integer, Operator: listing.AtMost},
	}}, func(*api.Request[api.None]) {})
	for query, says := range map[string]string{
		"min=2&max=2": "", "min=3&until=1": "", "a=3&b=1": "", "max=1": "",
		"min=3&max=2": "The value of min must be less than or equal to max.", "max=9&max=2&min=1&min=3": "The value of min must be less than or equal to max.",
		"max=2&max=9&min=3": "",
	} {
		w := send(t, m, "GET", "/v3/disks?"+query, "")
		if want := map[bool]int{true: 204, false: 400}[says == ""]; w.Code != want || !strings.Contains(w.Body.String(), says) {
			t.Errorf("%s: %d %s, want %d %s", query, w.Code, w.Body, want, says)
		}
	}
}

// TestListIgnoresDenied: a list may ignore filters that the policy denies, but not if the policy fails.
func TestListIgnoresDenied(t *testing.T) {
	t.Parallel()
	var got listing.Query
	m := listMux(&listing.Spec{IgnoreDenied: true, Filters: []listing.Filter{{Name: "host", Column: "host", Rule: "admin"}, {Name: "zone", Column: "zone", Rule: "broken"}, {Name: "at", Column: "at", Kind: listing.Time, Rule: "admin"}}},
		func(r *api.Request[api.None]) { got = r.List })
	if w := send(t, m, "GET", "/v3/disks?host=n1", ""); w.Code != 204 || len(got.Conditions) != 0 || got.Limit != 1000 {
		t.Errorf("%d %s, %+v", w.Code, w.Body, got)
	}
	if w := send(t, m, "GET", "/v3/disks?at=noon", ""); w.Code != 400 {
		t.Errorf("an ignored filter with a wrong value: %d %s", w.Code, w.Body)
	}
	if w := send(t, m, "GET", "/v3/disks?host=n1", "", "X-Test-Role", "admin"); w.Code != 204 || len(got.Conditions) != 1 {
		t.Errorf("%d %s, %+v", w.Code, w.Body, got)
	}
	if w := send(t, m, "GET", "/v3/disks?zone=z", ""); w.Code != 503 {
		t.Errorf("%d %s, %+v", w.Code, w.Body, got)
	}
}

// TestNextPage: only a full page has a link to the next page. The link also has the other parameters.
func TestNextPage(t *testing.T) {
	t.Parallel()
	var links [3][]api.Link
	m := listMux(&disks, func(r *api.Request[api.None]) {
		links = [3][]api.Link{r.NextPage(2, "b"), r.NextPage(1, "b"), r.NextPage(0, "")}
	})
	send(t, m, "GET", "http://localhost/v3/disks?limit=2&status=a&marker=x&status=b", "")
	want := []api.Link{{Rel: "next", Href: "http://localhost/v3/disks?limit=2&marker=b&status=a&status=b"}}
	if diff := cmp.Diff([3][]api.Link{want}, links); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	send(t, m, "GET", "/v3/disks?limit=0", "")
	if links[2] != nil {
		t.Errorf("a page of limit 0 has a next link: %v", links[2])
	}
}

// TestListDocument: the OpenAPI document has the parameters of each version.
func TestListDocument(t *testing.T) {
	t.Parallel()
	m := listMux(&disks, func(*api.Request[api.None]) {})
	for version, want := range map[string]string{
		"3.1": "changes-since custom host kind limit marker name owner path rack ready size sort sort_dir sort_key status zone",
		"3.2": "changes-before changes-since custom host kind limit marker name owner path rack ready size sort sort_dir sort_key status zone",
	} {
		v, err := api.ParseVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(m.OpenAPI(api.About{Title: "disks"}, v))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Paths map[string]map[string]struct {
				Parameters []struct {
					Name, In string
					Schema   struct {
						Items struct {
							Enum []string
						}
						Rule string `json:"x-policy-rule"`
					}
				}
			}
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range doc.Paths["/v3/disks"]["get"].Parameters {
			if p.In == "query" {
				names = append(names, p.Name)
			}
			if p.Name == "sort_key" && strings.Contains(strings.Join(p.Schema.Items.Enum, " "), "label") != (version == "3.2") {
				t.Errorf("%s: sort_key is one of %v", version, p.Schema.Items.Enum)
			}
			if p.Name == "host" && p.Schema.Rule != "admin" {
				t.Errorf("%s: host has the rule %q", version, p.Schema.Rule)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
	}
}

// TestWrongList: HandleRoute panics if the declaration of a list contradicts itself, or has a part without an effect.
func TestWrongList(t *testing.T) {
	t.Parallel()
	filter := func(f listing.Filter) *listing.Spec { return &listing.Spec{Filters: []listing.Filter{f}} }
	sort := func(list ...listing.Sort) *listing.Spec { return &listing.Spec{Sorts: list} }
	denied := fault.New(fault.Denied, "no")
	for _, tt := range []struct {
		spec *listing.Spec
		says string
	}{
		{filter(listing.Filter{}), `filter "": it has no name`},
		{filter(listing.Filter{Name: "a", Since: "3.5", Until: "3.4"}), "the first version 3.5 is after the last version 3.4"},
		{filter(listing.Filter{Name: "a", Since: "x"}), "API Version String x"},
		{filter(listing.Filter{Name: "a", Since: "3.10"}), "the versions 3.10 to the last are outside of the API's"},
		{filter(listing.Filter{Name: "a", Operator: "like"}), `the operator "like" does not exist`},
		{filter(listing.Filter{Name: "a", Operator: listing.AtLeast}), `cannot compare the kind ""`},
		{filter(listing.Filter{Name: "a", Kind: "float"}), `cannot compare the kind "float"`},
		{filter(listing.Filter{Name: "a", Operator: listing.Regexp, Kind: listing.Time}), "cannot compare"},
		{filter(listing.Filter{Name: "a", Denied: denied}), "Denied has no effect without a Rule"},
		{filter(listing.Filter{Name: "limit"}), "another parameter has the name"},
		{&listing.Spec{Filters: []listing.Filter{{Name: "a", Until: "3.4"}, {Name: "a", Since: "3.4"}}}, "another parameter has the name"},
		{sort(listing.Sort{Name: "a", Rule: "admin"}), "it has no column"},
		{sort(listing.Sort{Name: "a", Column: "a"}, listing.Sort{Name: "a", Column: "b"}), "another parameter has the name"},
		{sort(listing.Sort{Name: "a", Column: "a", Denied: denied}), "Denied has no effect"},
		{sort(listing.Sort{Name: "a", Column: "a", Until: "2.9"}), "outside"},
		{&listing.Spec{Filters: []listing.Filter{{Name: "sort_key"}}, Sorts: []listing.Sort{{Name: "a", Column: "a"}}}, "another parameter has the name"},
		{&listing.Spec{StrictSince: "3.5"}, "StrictSince has no effect without Lenient"},
		{&listing.Spec{Lenient: true, StrictSince: "5"}, "StrictSince: API Version String 5"},
		{&listing.Spec{MaxLimit: -1}, "MaxLimit is -1"},
		{&listing.Spec{Combined: true}, "no effect without Sorts"},
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, tt.says) || !strings.Contains(text, "list_test.go") {
					t.Errorf("%+v: %s; want %s", tt.spec, text, tt.says)
				}
			}()
			listMux(tt.spec, func(*api.Request[api.None]) {})
		}()
	}
	for says, register := range map[string]func(){
		"the field Query must be nil": func() {
			m, _ := newMux(api.Config{})
			api.HandleRoute(m, api.Route{Pattern: "GET /a", List: &listing.Spec{}, Query: []api.Schema{{JSON: `{}`}}}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
		},
		"rule admin of the list is never enforced": func() {
			m, _ := newMux(api.Config{})
			api.HandleRoute(m, api.Route{Pattern: "GET /a", List: filter(listing.Filter{Name: "a", Rule: "admin"})}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
		},
		"have versions, but its path is not under": func() {
			m, _ := newMux(api.Config{})
			api.HandleRoute(m, api.Route{Pattern: "GET /a", List: filter(listing.Filter{Name: "a", Since: "3.1"})}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
		},
		"are for one route": func() {
			m, _ := newMux(api.Config{})
			api.NewGroup(m, api.Route{Pattern: "/a", List: &listing.Spec{}})
		},
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, says) {
					t.Errorf("%s; want %s", text, says)
				}
			}()
			register()
		}()
	}
}
