package api

import (
	"reflect"
	"slices"
	"strings"
)

// Change is a change by a microversion in one route, see [Mux.History].
type Change struct {
	// Version is the first version with the change.
	Version Version
	// Where names the route: its pattern, followed by its action in parentheses if it has one.
	Where string
	// What describes the change, such as "reply: volumes[].cost is added".
	What string
}

// History returns the changes of each microversion after the first: added, removed or changed routes, fields of bodies, filters, and sort
// keys. It derives them from the routes and their types. The list is complete, except that the JSON texts of [Schema]s are not compared. It is
// sorted by version, then by route in the order of registration. Without microversions it is empty.
func (m *Mux) History() []Change {
	if m.versions == nil {
		return nil
	}
	var out []Change
	for _, r := range m.all {
		h := history{all: span{m.versions.min, m.versions.max}, where: r.Pattern}
		if r.Action != "" {
			h.where += " (" + r.Action + ")"
		}
		h.note("the route", r.span, h.all)
		in := r.intersect(h.all)
		h.noteFields("request", r.inShape, in)
		h.noteFields("reply", r.outShape, in)
		h.noteList(r.list, in)
		out = append(out, h.changes...)
	}
	slices.SortStableFunc(out, func(a, b Change) int { return compareVersions(a.Version, b.Version) })
	return slices.Compact(joinChanges(out))
}

const added, removed, changed = " is added", " is removed", " is changed"

// joinChanges replaces a removal and an addition of the same name in the same version by one change, "is changed".
func joinChanges(list []Change) []Change {
	both := map[Change]int{} // the number of removals and additions, by the change that replaces them
	join := func(c Change) Change {
		c.What = strings.TrimSuffix(strings.TrimSuffix(c.What, added), removed) + changed
		return c
	}
	for _, c := range slices.Compact(list) {
		both[join(c)]++
	}
	for i, c := range list {
		if j := join(c); both[j] > 1 {
			list[i] = j
		}
	}
	return list
}

// history collects the changes of one route.
type history struct {
	all     span // the versions of the API
	where   string
	changes []Change
}

// note records in which versions a route, field or query parameter is added and removed. The argument part has the versions of the route,
// field or query parameter. The argument around has the versions of its container, such as the route of a field.
func (h *history) note(what string, part, around span) {
	part = part.intersect(around)
	if around.min.before(part.min) {
		h.add(part.min, what+added)
	}
	if part.max != (Version{}) && (around.max == (Version{}) || part.max.before(around.max)) {
		h.add(Version{part.max.Major, part.max.Minor + 1}, what+removed)
	}
}

// add adds a change, if the API has the version and it is not the first one.
func (h *history) add(v Version, what string) {
	if h.all.has(v) && v != h.all.min {
		h.changes = append(h.changes, Change{v, h.where, what})
	}
}

// noteFields adds the changes of the fields of a body.
func (h *history) noteFields(body string, s *shape, in span) {
	if s != nil && len(s.edges) > 0 {
		h.noteType(s, s.of, body+": ", "", in)
	}
}

// noteType adds the changes of the fields of t, a type within the body. The parameter path is the place of t in the body.
func (h *history) noteType(s *shape, t reflect.Type, body, path string, in span) {
	if t = structAt(t); t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		h.noteType(s, t.Elem(), body, path+"[]", in)
		return
	}
	for _, p := range s.fields[t] {
		at := joinPath(path, p.name)
		eff := p.intersect(in)
		if eff.max != (Version{}) && eff.max.before(eff.min) {
			continue // in none of the route's versions
		}
		h.note(body+at, p.span, in)
		h.noteType(s, p.Type, body, at, eff)
	}
}

// noteList adds the changes of the parameters of a list.
func (h *history) noteList(l *list, in span) {
	if l == nil {
		return
	}
	for _, f := range l.filters {
		h.note("filter "+f.Name, f.span, in)
	}
	for _, s := range l.sorts {
		h.note("sort key "+s.Name, s.span, in)
	}
	if l.StrictSince != "" {
		strict, _ := parseSpan(l.StrictSince, "") // checkOptions has reported its error
		h.add(strict.min, "unknown parameters are refused")
	}
}
