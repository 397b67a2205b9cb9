package policy

import (
	"fmt"
	"slices"
	"strings"
)

// query is a question.
type query struct {
	creds  *Credentials
	target map[string]any
	seen   func(c check, depth int, held bool) // for Explain
	depth  int
}

// check is a part of a rule's check.
type check interface {
	holds(q *query) bool
	String() string
}

type (
	always bool
	both   []check // and
	either []check // or
	not    struct{ of check }
	// ref is another rule, which link finds.
	ref struct {
		name string
		rule *rule
	}
	// role and generic compare with a text that may have the target's attributes.
	role    struct{ want template }
	generic struct {
		kind    string
		literal bool // kind is a text itself
		want    template
	}
)

// ask judges a part, and tells Explain.
func (q *query) ask(c check) bool {
	if q.seen == nil {
		return c.holds(q)
	}
	depth := q.depth
	q.depth++
	held := c.holds(q)
	q.depth = depth
	q.seen(c, depth, held)
	return held
}

func (a always) holds(*query) bool { return bool(a) }

func (a always) String() string {
	if a {
		return "@"
	}
	return "!"
}

func (b both) holds(q *query) bool {
	for _, c := range b {
		if !q.ask(c) {
			return false
		}
	}
	return true
}

func (b both) String() string { return join(b, " and ") }

func (e either) holds(q *query) bool {
	return slices.ContainsFunc(e, q.ask)
}

func (e either) String() string { return join(e, " or ") }

func join(list []check, with string) string {
	var out []string
	for _, c := range list {
		switch c.(type) {
		case both, either:
			out = append(out, "("+c.String()+")")
		default:
			out = append(out, c.String())
		}
	}
	return strings.Join(out, with)
}

func (n not) holds(q *query) bool { return !q.ask(n.of) }

func (n not) String() string { return "not " + join([]check{n.of}, "") }

func (r *ref) holds(q *query) bool { return r.rule != nil && q.ask(r.rule.check) }

func (r *ref) String() string { return "rule:" + r.name }

func (r *role) holds(q *query) bool {
	want, ok := r.want.fill(q)
	if !ok {
		return false
	}
	for _, has := range q.creds.Roles {
		if strings.EqualFold(has, want) {
			return true
		}
	}
	return false
}

func (r *role) String() string { return "role:" + r.want.text }

func (g *generic) holds(q *query) bool {
	want, ok := g.want.fill(q)
	if !ok {
		return false
	}
	if g.literal {
		return unquote(g.kind) == want
	}
	switch g.kind {
	case "user_id":
		return q.creds.UserID != "" && q.creds.UserID == want
	case "project_id", "tenant_id":
		return q.creds.ProjectID != "" && q.creds.ProjectID == want
	case "domain_id":
		return q.creds.DomainID != "" && q.creds.DomainID == want
	case "system_scope", "system":
		return q.creds.SystemScope != "" && q.creds.SystemScope == want
	case "is_admin":
		return show(q.creds.IsAdmin) == want
	}
	return matches(q.creds.Extra, g.kind, want)
}

func (g *generic) String() string { return g.kind + ":" + g.want.text }

// matches looks a name up, which with dots leads into maps; in a list any item will do.
func matches(in any, path, want string) bool {
	switch v := in.(type) {
	case map[string]any:
		if x, ok := v[path]; ok && matches(x, "", want) {
			return true
		}
		head, rest, dotted := strings.Cut(path, ".")
		x, ok := v[head]
		return ok && dotted && matches(x, rest, want)
	case []any:
		for _, x := range v {
			if matches(x, path, want) {
				return true
			}
		}
		return false
	case []string:
		for _, x := range v {
			if path == "" && x == want {
				return true
			}
		}
		return false
	}
	return path == "" && show(in) == want
}

// show writes a value as Python does.
func show(v any) string {
	switch x := v.(type) {
	case string:
		return x
	case bool:
		if x {
			return "True"
		}
		return "False"
	case nil:
		return "None"
	}
	return fmt.Sprint(v)
}

func unquote(s string) string {
	if n := len(s); n >= 2 && (s[0] == '\'' || s[0] == '"') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}

// template is a text with %(NAME)s in it.
type template struct {
	text  string
	whole string // the one name that is all of it
	parts []part
}

type part struct{ text, name string }

// newTemplate reads a text. The error says what is wrong with it.
func newTemplate(text string) (template, error) {
	t := template{text: text}
	rest := text
	for {
		before, after, ok := strings.Cut(rest, "%(")
		if before != "" {
			t.parts = append(t.parts, part{text: strings.ReplaceAll(before, "%%", "%")})
		}
		if !ok {
			break
		}
		name, after, ok := strings.Cut(after, ")s")
		if !ok || name == "" {
			return t, fmt.Errorf("%q has a %%( without a name and )s", text)
		}
		t.parts = append(t.parts, part{name: name})
		rest = after
	}
	if len(t.parts) == 1 {
		t.whole = t.parts[0].name
	}
	return t, nil
}

// fill puts the target's attributes in. Not ok: one is not there.
func (t *template) fill(q *query) (string, bool) {
	if t.whole != "" {
		return q.attribute(t.whole)
	}
	if len(t.parts) == 1 {
		return t.parts[0].text, true
	}
	var out strings.Builder
	for _, p := range t.parts {
		out.WriteString(p.text)
		if p.name == "" {
			continue
		}
		v, ok := q.attribute(p.name)
		if !ok {
			return "", false
		}
		out.WriteString(v)
	}
	return out.String(), true
}

// attribute returns one of the target's.
func (q *query) attribute(name string) (string, bool) {
	if v, ok := q.target[name]; ok {
		return show(v), true
	}
	if q.target == nil {
		switch name { // the asker's own, see Enforce
		case "project_id":
			return q.creds.ProjectID, q.creds.ProjectID != ""
		case "user_id":
			return q.creds.UserID, q.creds.UserID != ""
		}
		return "", false
	}
	var in any = q.target
	for {
		m, ok := in.(map[string]any)
		if !ok {
			return "", false
		}
		head, rest, dotted := strings.Cut(name, ".")
		v, ok := m[head]
		if !ok {
			return "", false
		}
		if !dotted {
			return show(v), true
		}
		in, name = v, rest
	}
}
