// Package policy says who may do what, by rules that the component has in its code and an
// operator may change in a file, in the language of oslo.policy.
//
//	p, err := policy.New([]policy.Rule{
//		{Name: "admin_or_owner", Check: "role:admin or project_id:%(project_id)s"},
//		{Name: "volume:delete", Check: "rule:admin_or_owner", Description: "Delete a volume",
//			Operations: []policy.Operation{{Method: "DELETE", Path: "/v3/volumes/{id}"}}},
//	}, policy.Config{File: "/etc/volume/policy.yaml"})
//	...
//	err = p.Enforce(ctx, "volume:delete", map[string]any{"project_id": volume.ProjectID})
//
// A check is made of these, with and, or, not and parentheses; not binds tighter than and,
// and and tighter than or:
//
//	@ and !                          always and never; an empty check is always, too
//	rule:NAME                        another rule
//	role:NAME                        the user has the role, in whatever case
//	KIND:%(ATTR)s                    what the user has as KIND is the target's ATTR
//	KIND:TEXT                        ... is TEXT
//	'TEXT':%(ATTR)s, True:%(ATTR)s   the target's ATTR is TEXT, or true
//
// KIND is user_id, project_id, domain_id, system_scope, is_admin, or a name in
// Credentials.Extra; with dots it leads into maps there. What is not there makes a check
// false. The checks http: and https: of oslo.policy are refused: a question to another
// process in the way of each request is a service of its own, and an outage of it an
// outage of all.
//
// A rule that nobody has defined denies. In oslo.policy a rule named default stands for
// those; here one is asked only if it is defined in code.
package policy

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Rule is a rule as the component defines it. Name is required.
type Rule struct {
	// Name is what it is asked by, such as "volume:delete".
	Name string
	// Check is who may, unless a file says something else.
	Check       string
	Description string
	// Operations are those of the API that ask it, for people.
	Operations []Operation
	// Scopes are those of which the user's token must have one: "system", "domain",
	// "project". Empty: any.
	Scopes []string
	// Deprecated is what the rule was before.
	Deprecated *Deprecated
}

// Operation is one of an API.
type Operation struct{ Method, Path string }

// Deprecated is a rule's older form.
type Deprecated struct {
	// Name is its older name, if it had one: a file that has it counts.
	Name string
	// Check is its older check, if it had one: see [Config.OldDefaults].
	Check         string
	Reason, Since string
}

// Config says where an operator's rules are. The zero value has none.
type Config struct {
	// File is a file in YAML, or JSON, from names of rules to checks. Dirs are directories
	// whose files are read after it, by name, whatever their names are; later ones win.
	// Hidden files and directories below are not read, as in oslo.policy, and neither are
	// editors' copies (name~, #name#).
	File string
	Dirs []string
	// Required are those of File and Dirs that must exist, such as one that an operator has
	// named. The others have no rules if they do not exist.
	Required []string
	// OldDefaults lets in who an older check of a rule lets in, too, unless a file has
	// the rule. It is for the time of an upgrade: while it is on nobody can say who may
	// do what by looking at the rules. (oslo.policy's enforce_new_defaults is the
	// opposite, and on by default, too.)
	OldDefaults bool
	// Lenient makes rules in files that nobody has defined a warning. Default: an
	// error.
	Lenient bool
	Logger  *slog.Logger
}

// Credentials are who asks.
type Credentials struct {
	UserID, ProjectID, DomainID string
	// SystemScope is "all" for a token of the whole system.
	SystemScope string
	Roles       []string
	IsAdmin     bool
	// Extra is whatever else checks ask for: texts, bools, lists and maps of them.
	Extra map[string]any
}

// From returns the credentials of a request.
func From(r reqctx.Request) Credentials {
	return Credentials{UserID: r.UserID, ProjectID: r.ProjectID, DomainID: r.DomainID, SystemScope: r.SystemScope, Roles: r.Roles}
}

// scope returns what a token is for: the system, else a domain, else a project.
func (c *Credentials) scope() string {
	switch {
	case c.SystemScope != "":
		return "system"
	case c.DomainID != "":
		return "domain"
	}
	return "project"
}

// Enforcer is a set of rules. It is safe for concurrent use, and a part of package
// service that SIGHUP reloads.
type Enforcer struct {
	cfg   Config
	rules []Rule
	set   atomic.Pointer[set]

	mu     sync.Mutex // one reload at a time
	seen   string     // the sum of the files that set was made of
	files  []string   // those of them that have rules
	warned map[string]bool
}

// set is all rules as they are in force.
type set struct {
	rules map[string]*rule
}

// rule is a rule in force.
type rule struct {
	def   *Rule
	check check
	text  string // of the check
	where string // it stands: "default", or file:line
}

// New returns the rules with those of the operator's files. Invalid, with all that is
// wrong: a rule twice, a check that cannot be read, a rule that refers to one that there
// is not or, by others, to itself, an unknown scope, a file that cannot be read.
func New(rules []Rule, cfg Config) (*Enforcer, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Enforcer{cfg: cfg, rules: slices.Clone(rules), warned: map[string]bool{}}
	return e, e.load()
}

// ErrScope is the error of a token of another scope than the rule is for.
var ErrScope = fault.Sentinel(fault.Denied, "InvalidScope", "the token has another scope")

// Enforce says whether who asks, by the context's request, may do what a rule is about to
// target. Without a target, nil, its project_id and user_id are the asker's own, as in
// Nova: for a list of what they have, and for what they make. A target that is there but
// does not name its owner has none. The error is Denied, in oslo.policy's words; ErrScope
// if the token's scope is wrong.
func (e *Enforcer) Enforce(ctx context.Context, name string, target map[string]any) error {
	return e.Check(From(reqctx.From(ctx)), name, target)
}

// Check is Enforce for somebody else.
func (e *Enforcer) Check(c Credentials, name string, target map[string]any) error {
	q := query{creds: &c, target: target}
	r := e.set.Load().find(name)
	if r == nil {
		return denied(name)
	}
	if !r.in(c.scope()) {
		return &fault.Error{Code: fault.Denied, Reason: "InvalidScope", Msg: fmt.Sprintf(
			"%s requires a scope of %s, request was made with %s scope.", name, strings.Join(r.def.Scopes, " or "), c.scope())}
	}
	if r.check.holds(&q) {
		return nil
	}
	return denied(name)
}

func denied(name string) error {
	return &fault.Error{Code: fault.Denied, Reason: "PolicyNotAuthorized", Msg: "Policy doesn't allow " + name + " to be performed."}
}

func (s *set) find(name string) *rule {
	if r := s.rules[name]; r != nil {
		return r
	}
	return s.rules["default"]
}

func (r *rule) in(scope string) bool {
	return len(r.def.Scopes) == 0 || slices.Contains(r.def.Scopes, scope)
}

// Start does nothing: with Stop and Reload it makes the rules a part of a service.
func (e *Enforcer) Start(context.Context) error { return nil }

// Stop does nothing.
func (e *Enforcer) Stop(context.Context) error { return nil }
