package policy

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/internal/text"
)

// Explanation says how a rule was judged.
type Explanation struct {
	Rule    string
	Allowed bool
	// Scope is what is wrong with the token's scope, or "".
	Scope string
	// Where is where the rule stands: "default", or a file and a line; "" if there is no
	// such rule.
	Where string
	// Parts are the parts of the check that were judged, from the outside to the inside.
	Parts []Part
}

// Part is a part of a check.
type Part struct {
	Depth int
	Check string
	Held  bool
}

// String is a text for people.
func (x *Explanation) String() string {
	var out strings.Builder
	word := map[bool]string{true: "allows", false: "denies"}
	switch {
	case x.Where == "":
		return x.Rule + ": there is no such rule, which denies\n"
	case x.Scope != "":
		return fmt.Sprintf("%s (%s) denies: %s\n", x.Rule, x.Where, x.Scope)
	}
	fmt.Fprintf(&out, "%s (%s) %s\n", x.Rule, x.Where, word[x.Allowed])
	for _, p := range x.Parts {
		mark := "no "
		if p.Held {
			mark = "yes"
		}
		fmt.Fprintf(&out, "%s%s  %s\n", strings.Repeat("  ", p.Depth+1), mark, p.Check)
	}
	return out.String()
}

// Explain says how a rule judges, and which part of it denies or allows.
func (e *Enforcer) Explain(c Credentials, name string, target map[string]any) *Explanation {
	x := &Explanation{Rule: name}
	r := e.set.Load().find(name)
	if r == nil {
		return x
	}
	x.Where = r.where
	if !r.in(c.scope()) {
		x.Scope = fmt.Sprintf("it is for scope %s, the token has scope %s", strings.Join(r.def.Scopes, " or "), c.scope())
		return x
	}
	q := query{creds: &c, target: target, seen: func(c check, depth int, held bool) {
		x.Parts = append(x.Parts, Part{depth, c.String(), held})
	}}
	x.Allowed = q.ask(r.check)
	x.Parts = outsideIn(x.Parts)
	return x
}

// outsideIn turns parts that come after what they are made of around.
func outsideIn(in []Part) []Part {
	if len(in) == 0 {
		return nil
	}
	root := in[len(in)-1]
	out := []Part{root}
	begin := 0
	for i, p := range in[:len(in)-1] {
		if p.Depth == root.Depth+1 {
			out = append(out, outsideIn(in[begin:i+1])...)
			begin = i + 1
		}
	}
	return out
}

// Effective is a rule as it is in force.
type Effective struct {
	Name, Check string
	// Where is "default", or the file and line of what is in its place.
	Where string
	// Redundant says that a file only repeats the default.
	Redundant bool
}

// Rules returns the rules in force, by name.
func (e *Enforcer) Rules() []Effective {
	s := e.set.Load()
	out := make([]Effective, 0, len(s.rules))
	for _, name := range slices.Sorted(maps.Keys(s.rules)) {
		r := s.rules[name]
		x := Effective{Name: name, Check: r.text, Where: r.where}
		if def, err := parse(r.def.Check); err == nil && r.where != "default" {
			x.Redundant = def.String() == r.check.String()
		}
		out = append(out, x)
	}
	return out
}

// Sample writes a file with all rules as comments, for an operator to change some.
func Sample(w io.Writer, rules []Rule) error {
	out := bufio.NewWriter(w)
	for i, r := range rules {
		if i > 0 {
			_, _ = fmt.Fprintln(out) // the writer keeps the error
		}
		text.Comment(out, r.Description)
		for _, o := range r.Operations {
			text.Comment(out, o.Method+" "+o.Path)
		}
		if len(r.Scopes) > 0 {
			text.Comment(out, "Scope: "+strings.Join(r.Scopes, ", "))
		}
		if d := r.Deprecated; d != nil {
			was := "Deprecated"
			if d.Since != "" {
				was += " since " + d.Since
			}
			if d.Name != "" {
				was += fmt.Sprintf(": it was called %q", d.Name)
			}
			if d.Check != "" {
				was += fmt.Sprintf(": it was %q", d.Check)
			}
			text.Comment(out, strings.TrimRight(was+". "+d.Reason, " "))
		}
		_, _ = fmt.Fprintf(out, "#%q: %q\n", r.Name, r.Check) // the writer keeps the error
	}
	return out.Flush()
}
