package policy

import (
	"fmt"
	"slices"
	"strings"
)

// query is one decision: a user wants to act on a target.
type query struct {
	creds  *Credentials
	target map[string]any
	report func(c check, depth int, held bool) // gets each result for Explain; nil: no explanation
	depth  int
}

// check is a node of a parsed check. String returns a text that parses to an equal check.
type check interface {
	isTrue(q *query) bool
	String() string
}

type (
	constant bool
	allOf    []check // and
	anyOf    []check // or
	negation struct{ of check }
	// ref refers to another rule. linkRules sets the rule.
	ref struct {
		name string
		rule *rule
	}
	// role is true if the user has a role with the template's text.
	role struct{ want template }
	// comparison compares a value of the user, or a literal, with the template's text.
	comparison struct {
		kind    string
		literal bool // kind is a literal value, and not the name of a value of the user
		want    template
	}
)

// evaluateCheck returns whether c is true, and reports the result to Explain.
func (q *query) evaluateCheck(c check) bool {
	if q.report == nil {
		return c.isTrue(q)
	}
	depth := q.depth
	q.depth++
	held := c.isTrue(q)
	q.depth = depth
	q.report(c, depth, held)
	return held
}

func (a constant) isTrue(*query) bool { return bool(a) }

func (a constant) String() string {
	if a {
		return "@"
	}
	return "!"
}

func (a allOf) isTrue(q *query) bool {
	for _, c := range a {
		if !q.evaluateCheck(c) {
			return false
		}
	}
	return true
}

func (a allOf) String() string { return joinChecks(a, " and ") }

func (a anyOf) isTrue(q *query) bool {
	return slices.ContainsFunc(a, q.evaluateCheck)
}

func (a anyOf) String() string { return joinChecks(a, " or ") }

// joinChecks returns the texts of a list of checks with a separator. Nested lists are in parentheses.
func joinChecks(list []check, separator string) string {
	var out []string
	for _, c := range list {
		switch c.(type) {
		case allOf, anyOf:
			out = append(out, "("+c.String()+")")
		default:
			out = append(out, c.String())
		}
	}
	return strings.Join(out, separator)
}

func (n negation) isTrue(q *query) bool { return !q.evaluateCheck(n.of) }

func (n negation) String() string { return "not " + joinChecks([]check{n.of}, "") }

func (r *ref) isTrue(q *query) bool { return r.rule != nil && q.evaluateCheck(r.rule.check) }

func (r *ref) String() string { return "rule:" + r.name }

func (r *role) isTrue(q *query) bool {
	want, ok := r.want.expandText(q)
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

func (m *comparison) isTrue(q *query) bool {
	want, ok := m.want.expandText(q)
	if !ok {
		return false
	}
	if m.literal {
		return trimQuotes(m.kind) == want
	}
	switch m.kind {
	case "user_id":
		return q.creds.UserID != "" && q.creds.UserID == want
	case "project_id", "tenant_id":
		return q.creds.ProjectID != "" && q.creds.ProjectID == want
	case "domain_id":
		return q.creds.DomainID != "" && q.creds.DomainID == want
	case "system_scope", "system":
		return q.creds.SystemScope != "" && q.creds.SystemScope == want
	case "is_admin":
		return formatValue(q.creds.IsAdmin) == want
	}
	return matchesValue(q.creds.Extra, m.kind, want)
}

func (m *comparison) String() string { return m.kind + ":" + m.want.text }

// matchesValue reports whether the text of the value at a path is want. Dots in the path lead into nested
// maps, or belong to a key. A list matches if one of its elements matches.
func matchesValue(in any, path, want string) bool {
	switch v := in.(type) {
	case map[string]any:
		if x, ok := v[path]; ok && matchesValue(x, "", want) {
			return true
		}
		head, rest, dotted := strings.Cut(path, ".")
		x, ok := v[head]
		return ok && dotted && matchesValue(x, rest, want)
	case []any:
		return slices.ContainsFunc(v, func(x any) bool { return matchesValue(x, path, want) })
	case []string:
		return path == "" && slices.Contains(v, want)
	}
	return path == "" && formatValue(in) == want
}

// formatValue returns the text of a value as Python's str does, because oslo.policy compares such texts.
func formatValue(v any) string {
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

// trimQuotes removes equal quotes at both ends of s.
func trimQuotes(s string) string {
	if n := len(s); n >= 2 && (s[0] == '\'' || s[0] == '"') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}

// template is a text with attributes of the target, each as %(NAME)s.
type template struct {
	text  string
	whole string // the name, if the template is one attribute and nothing else
	parts []part
}

// part is a text or the name of an attribute.
type part struct{ text, name string }

// parseTemplate parses the right side of a term.
func parseTemplate(text string) (template, error) {
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

// expandText returns the text with the target's attributes in it. It returns false if an attribute does not
// exist.
func (t *template) expandText(q *query) (string, bool) {
	if t.whole != "" {
		return q.findAttribute(t.whole)
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
		v, ok := q.findAttribute(p.name)
		if !ok {
			return "", false
		}
		out.WriteString(v)
	}
	return out.String(), true
}

// findAttribute returns the text of an attribute of the target. Dots in the name lead into nested maps. It
// returns false if the attribute does not exist.
func (q *query) findAttribute(name string) (string, bool) {
	if v, ok := q.target[name]; ok {
		return formatValue(v), true
	}
	if q.target == nil {
		switch name { // without a target, the project and the user are the user's own, see Enforce
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
			return formatValue(v), true
		}
		in, name = v, rest
	}
}
