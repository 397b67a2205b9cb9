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

// Explanation says why a rule allows or denies.
type Explanation struct {
	Rule    string `json:"rule"`
	Allowed bool   `json:"allowed"`
	// Scope says what is wrong with the token's scope. It is "" if the scope is right.
	Scope string `json:"scope,omitempty"`
	// Where is the origin of the rule's check: "default", or file:line. It is "" if the rule does not
	// exist.
	Where string `json:"where"`
	// Parts are the parts of the check that were evaluated. Each part comes before the parts within
	// it. A part that could not change the result is not evaluated.
	Parts []Part `json:"parts"`
}

// Part is an evaluated part of a check.
type Part struct {
	Depth int    `json:"depth"` // how deep the part is nested, from 0
	Check string `json:"check"` // the text of the part
	Held  bool   `json:"held"`  // whether the part is true
}

// String returns the explanation for people: a line for the rule and a line for each part, indented by its
// depth.
func (x *Explanation) String() string {
	var out strings.Builder
	word := map[bool]string{true: "allows", false: "denies"}
	switch {
	case x.Where == "":
		return x.Rule + ": the rule does not exist, so it denies\n"
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

// Explain decides as [Enforcer.Check] does and says which parts of the rule's check allow or deny. It is
// for operators' tools.
func (e *Enforcer) Explain(c Credentials, name string, target map[string]any) *Explanation {
	x := &Explanation{Rule: name}
	r := e.active.Load().findRule(name)
	if r == nil {
		return x
	}
	x.Where = r.where
	if !r.allowsScope(c.tokenScope()) {
		x.Scope = fmt.Sprintf("the rule is for scope %s, the token has scope %s", strings.Join(r.def.Scopes, " or "), c.tokenScope())
		return x
	}
	q := query{creds: &c, target: target, report: func(c check, depth int, held bool) {
		x.Parts = append(x.Parts, Part{depth, c.String(), held})
	}}
	x.Allowed = q.evaluateCheck(r.check)
	x.Parts = parentsFirst(x.Parts)
	return x
}

// parentsFirst reorders a list in which each part follows the parts within it. In the result each part comes before the
// parts within it, as in Explanation.Parts.
func parentsFirst(in []Part) []Part {
	if len(in) == 0 {
		return nil
	}
	root := in[len(in)-1]
	out := []Part{root}
	begin := 0
	for i, p := range in[:len(in)-1] {
		if p.Depth == root.Depth+1 {
			out = append(out, parentsFirst(in[begin:i+1])...)
			begin = i + 1
		}
	}
	return out
}

// Effective is an active rule.
type Effective struct {
	Name  string `json:"name"`
	Check string `json:"check"`
	// Where is the origin of Check: "default", or file:line.
	Where string `json:"where"`
	// Redundant reports that Check is from a file and equal to the default.
	Redundant bool `json:"redundant"`
}

// Rules returns the active rules in the order of their names. The caller owns the result.
func (e *Enforcer) Rules() []Effective {
	s := e.active.Load()
	out := make([]Effective, 0, len(s.rules))
	for _, name := range slices.Sorted(maps.Keys(s.rules)) {
		r := s.rules[name]
		x := Effective{Name: name, Check: r.text, Where: r.where}
		if def, err := parseCheck(r.def.Check); err == nil && r.where != "default" {
			x.Redundant = def.String() == r.check.String()
		}
		out = append(out, x)
	}
	return out
}

// Sample writes a policy file in which each rule is a comment with its default, its description, its
// operations, its scopes, and its older name. The file has no effect until an operator removes the # before
// a rule. It returns the first error of w.
func Sample(w io.Writer, rules []Rule) error {
	out := bufio.NewWriter(w)
	for i, r := range rules {
		if i > 0 {
			_, _ = fmt.Fprintln(out) // Flush returns the error
		}
		text.Comment(out, r.Description)
		for _, o := range r.Operations {
			text.Comment(out, o.Method+" "+o.Path)
		}
		if len(r.Scopes) > 0 {
			text.Comment(out, "Scope: "+strings.Join(r.Scopes, ", "))
		}
		if r.Deprecated != nil {
			text.Comment(out, r.Deprecated.describe())
		}
		_, _ = fmt.Fprintf(out, "#%q: %q\n", r.Name, r.Check) // Flush returns the error
	}
	return out.Flush()
}

// describe returns the sentences about an older name in a sample.
func (d *Deprecated) describe() string {
	note := "Deprecated"
	if d.Since != "" {
		note += " since " + d.Since
	}
	if d.Name != "" {
		note += fmt.Sprintf("; older name: %q", d.Name)
	}
	return strings.TrimRight(note+". "+d.Reason, " ")
}
