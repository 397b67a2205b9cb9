package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Page is the part of a list that a client asks for.
type Page struct {
	// Limit is how many items it has at most. 0: the page is empty.
	Limit int
	// Marker is the id of the last item that the client has seen; empty: none.
	Marker string
	// Sort are the keys to sort by, the first one first; empty: the default.
	Sort []SortKey
	// Filters are the other parameters that were given, with all their values.
	Filters map[string][]string
}

// SortKey is a key to sort by.
type SortKey struct {
	Key  string
	Desc bool
}

// Pages are the rules of a list.
type Pages struct {
	// MaxLimit is how many items a page has at most, and by default. 0: 1000.
	MaxLimit int
	// SortKeys are those that a client may sort by. Without any the list has one order,
	// and sort_key, sort_dir and sort are unknown parameters.
	SortKeys []string
	// Filters are the parameters by which a client may filter.
	Filters []string
	// Lenient ignores other parameters, as Nova does in its first versions. Default:
	// they are Invalid.
	Lenient bool
}

// Read reads the query of a request: limit, marker, sort_key and sort_dir, each several
// times, or sort with "key:dir,key", and the filters. A limit that is larger than
// MaxLimit, or 0, is MaxLimit, as in OpenStack. Invalid: anything else that is not as
// [Pages] says.
func (p Pages) Read(r *http.Request) (Page, error) {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return Page{}, err
	}
	if p.MaxLimit <= 0 {
		p.MaxLimit = 1000
	}
	out := Page{Limit: p.MaxLimit, Marker: q.Get("marker"), Filters: map[string][]string{}}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil && strings.Trim(s, "0123456789") == "" {
			n, err = p.MaxLimit, nil // more digits than an int has
		}
		if err != nil || n < 0 {
			return Page{}, wrongQuery("limit", s, fmt.Sprintf("'%s' does not match '^[0-9]*$'", shorten(s)))
		}
		out.Limit = min(n, p.MaxLimit)
	}
	known := []string{"limit", "marker"}
	if len(p.SortKeys) > 0 {
		known = append(known, "sort_key", "sort_dir", "sort")
		if out.Sort, err = p.sort(q); err != nil {
			return Page{}, err
		}
	}
	for name, values := range q {
		switch {
		case slices.Contains(known, name):
		case slices.Contains(p.Filters, name):
			out.Filters[name] = values
		case !p.Lenient:
			return Page{}, wrongQuery(name, values[0], fmt.Sprintf("Additional properties are not allowed ('%s' was unexpected)", shorten(name)))
		}
	}
	return out, nil
}

func (p Pages) sort(q url.Values) ([]SortKey, error) {
	keys, dirs := q["sort_key"], q["sort_dir"]
	for item := range strings.SplitSeq(q.Get("sort"), ",") {
		if item == "" {
			continue
		}
		key, dir, _ := strings.Cut(item, ":")
		keys, dirs = append(keys, key), append(dirs, dir)
	}
	if len(dirs) > len(keys) {
		return nil, wrongQuery("sort_dir", strings.Join(dirs, ","), "there are more directions than keys")
	}
	var out []SortKey
	for i, k := range keys {
		if !slices.Contains(p.SortKeys, k) {
			return nil, wrongQuery("sort_key", k, fmt.Sprintf("'%s' is not one of %s", shorten(k), reprOf(p.SortKeys)))
		}
		s := SortKey{Key: k}
		if i < len(dirs) {
			switch dirs[i] {
			case "desc":
				s.Desc = true
			case "asc", "":
			default:
				return nil, wrongQuery("sort_dir", dirs[i], fmt.Sprintf("'%s' is not one of ['asc', 'desc']", shorten(dirs[i])))
			}
		}
		out = append(out, s)
	}
	return out, nil
}

func wrongQuery(name, value, why string) error {
	return fieldError(name, fmt.Sprintf("Invalid input for query parameters %s. Value: %s. %s", shorten(name), shorten(value), why))
}

// Link is a reference as OpenStack writes it.
type Link struct {
	Rel  string `json:"rel"`
	Href string `json:"href"`
	Type string `json:"type,omitempty"`
}

// Next returns the link to the page after this one, for a list that has got items of
// which the last has the id last; nil if the page was not full, or empty.
func (p Page) Next(r *http.Request, got int, last string) []Link {
	if got < p.Limit || got == 0 {
		return nil
	}
	q := r.URL.Query()
	q.Set("marker", last)
	return []Link{{Rel: "next", Href: Base(r) + r.URL.Path + "?" + q.Encode()}}
}
