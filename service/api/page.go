package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Page is the part of a list that a client requests.
type Page struct {
	// Limit is the maximum number of items. 0: the page is empty.
	Limit int
	// Marker is the id of the last item of the previous page. Empty: this is the first page.
	Marker string
	// Sort are the keys to sort by, the most significant one first. Empty: the list's default order.
	Sort []SortKey
	// Filters are the filters of the request, with all their values.
	Filters map[string][]string
}

// SortKey is a key to sort by. The order is ascending unless Desc is set.
type SortKey struct {
	Key  string
	Desc bool
}

// Pages are the rules of a list.
type Pages struct {
	// MaxLimit is the maximum number of items of a page, and the default. 0: 1000.
	MaxLimit int
	// SortKeys are the keys by which a client may sort. If it is empty, the list has one order,
	// and sort_key, sort_dir and sort are unknown parameters.
	SortKeys []string
	// Filters are the parameters by which a client may filter.
	Filters []string
	// Lenient ignores unknown parameters, as Nova does in its first versions. Default:
	// they are Invalid.
	Lenient bool
}

// Read reads the query of a request: limit, marker, the filters, and the order. The order is in sort_key and sort_dir, which
// may be repeated, or in sort, as "key:dir,key". Without a limit, or with one that is larger than MaxLimit, the limit is
// MaxLimit. limit=0 requests an empty page, as in OpenStack.
//
// Read fails with Invalid if the query is malformed, if it has an unknown parameter (see Lenient) or sort key, or if the
// limit or a direction cannot be parsed.
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
		if strings.Trim(s, "0123456789") != "" {
			return Page{}, wrongQuery("limit", s, quotePython(shortenText(s))+" does not match '^[0-9]*$'")
		}
		if n, err := strconv.Atoi(s); err == nil { // otherwise the number does not fit into an int
			out.Limit = min(n, p.MaxLimit)
		}
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
			return Page{}, wrongQuery(name, values[0], unexpectedName(name))
		}
	}
	return out, nil
}

// sort reads the keys and directions of a query.
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
			return nil, wrongQuery("sort_key", k, quotePython(shortenText(k))+" is not one of "+pythonReprOf(p.SortKeys))
		}
		s := SortKey{Key: k}
		if i < len(dirs) {
			switch dirs[i] {
			case "desc":
				s.Desc = true
			case "asc", "":
			default:
				return nil, wrongQuery("sort_dir", dirs[i], quotePython(shortenText(dirs[i]))+" is not one of ['asc', 'desc']")
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// wrongQuery returns the error for a parameter of the query.
func wrongQuery(name, value, detail string) error {
	return fieldError(name, fmt.Sprintf("Invalid input for query parameters %s. Value: %s. %s", shortenText(name), shortenText(value), detail))
}

// Link is a link in OpenStack's form.
type Link struct {
	Rel  string `json:"rel" enum:"self,bookmark,next,previous,describedby,alternate,collection"`
	Href string `json:"href" format:"uri"`
	Type string `json:"type,omitempty"`
}

// Next returns the link to the next page. got is the number of items of this page, and last is the id of its last item.
// The result is nil if this page is empty, or has fewer items than Limit.
func (p Page) Next(r *http.Request, got int, last string) []Link {
	if got < p.Limit || got == 0 {
		return nil
	}
	q := r.URL.Query()
	q.Set("marker", last)
	return []Link{{Rel: "next", Href: Base(r) + r.URL.Path + "?" + q.Encode()}}
}
