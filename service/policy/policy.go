// Package policy decides who may do what. The component defines the rules in its code, and an
// operator may change them in files. The language is oslo.policy's.
//
//	p, err := policy.New([]policy.Rule{
//		{Name: "admin_or_owner", Check: "role:admin or project_id:%(project_id)s"},
//		{Name: "volume:delete", Check: "rule:admin_or_owner", Description: "Delete a volume",
//			Operations: []policy.Operation{{Method: "DELETE", Path: "/v3/volumes/{id}"}}},
//	}, policy.Config{File: "/etc/volume/policy.yaml"})
//	...
//	err = p.Enforce(ctx, "volume:delete", map[string]any{"project_id": volume.ProjectID})
//
// A check consists of the terms below. The words "and", "or" and "not" and parentheses combine them. "not" binds
// tightest, "or" least.
//
//	@ and !                          true and false; an empty check is also true
//	rule:NAME                        the check of another rule
//	role:NAME                        the user has the role; upper and lower case are equal
//	KIND:%(ATTR)s                    the user's KIND is equal to the target's ATTR
//	KIND:TEXT                        the user's KIND is TEXT
//	'TEXT':%(ATTR)s, True:%(ATTR)s   the target's ATTR is TEXT, or true; False, None and numbers
//	                                 are also possible
//
// KIND is user_id, project_id, domain_id, system_scope, is_admin, or a key of
// Credentials.Extra. The older names tenant_id and system are the same as project_id and system_scope.
// Dots in a KIND or an ATTR lead into nested maps: owner.id. A KIND or ATTR that
// does not exist makes the term false.
//
// The checks http: and https: of oslo.policy are errors, because each request would wait for another process,
// and an outage of that process would stop the whole component.
//
// A rule that is not defined denies. In oslo.policy the rule with the name default decides instead. Here
// that rule decides only if the code defines it.
package policy

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/reqctx"
)

// Rule is a rule that the component defines. Name is required.
type Rule struct {
	// Name identifies the rule in calls of [Enforcer.Enforce] and in files, such as "volume:delete".
	Name string
	// Check is the default check. A file of the operator may replace it. An empty check allows
	// every user.
	Check string
	// Description is one or two sentences for operators, see [Sample].
	Description string
	// Operations are the API operations that use the rule. They have no effect on a decision; see
	// [Sample].
	Operations []Operation
	// Scopes restricts the rule to tokens with one of these scopes: "system", "domain",
	// "project". Default: any scope.
	Scopes []string
	// Deprecated is the rule's name in an older release. Default: the name did not change.
	Deprecated *Deprecated
}

// Operation is an operation of a REST API: an HTTP method and the pattern of a path.
type Operation struct{ Method, Path string }

// Deprecated is the name that a rule had in an older release.
type Deprecated struct {
	// Name is the older name. Several rules may have the same older name, if a rule was split. If a file still uses the
	// older name, its check counts for all of these rules, and the log has a warning for each. A check under the newer
	// name of a rule takes precedence.
	Name string
	// Reason says why the rule changed. Since is the release in which it changed. Both are for
	// operators.
	Reason, Since string
}

// Config names the operator's files. With the zero value all rules have their default checks.
type Config struct {
	// File is a file in YAML or JSON. It maps names of rules to checks. Dirs are directories. All
	// their files, with any extension, are read after File, in the order of their names; a later file
	// overrides an earlier one. Hidden files and subdirectories are not read, as in oslo.policy, and
	// editors' copies (name~ and #name#) are not read either.
	File string
	Dirs []string
	// Required are the paths among File and Dirs that must exist, such as a file that the operator
	// named. A path that is not required and does not exist has no rules.
	Required []string
	// Lenient means that a rule in a file that the code does not define is a warning, and not an error.
	Lenient bool
	// Logger gets warnings about files, each once, and the changes of each reload. Default
	// [slog.Default].
	Logger *slog.Logger
}

// Credentials describe the user whose request is decided. A field that is empty never equals a value
// in a check.
type Credentials struct {
	UserID, ProjectID, DomainID string
	// SystemScope is "all" for a token of the whole system, otherwise empty.
	SystemScope string
	// Roles are names of roles. Upper and lower case are equal.
	Roles   []string
	IsAdmin bool
	// Extra holds other values that checks may use: texts, numbers, bools, and lists and maps of
	// these. For a list the check is true if it is true for one element.
	Extra map[string]any
}

// From returns the credentials of the user of a request.
func From(r reqctx.Request) Credentials {
	return Credentials{UserID: r.UserID, ProjectID: r.ProjectID, DomainID: r.DomainID, SystemScope: r.SystemScope, Roles: r.Roles}
}

// tokenScope returns the scope of the user's token: "system", "domain" or "project". A token without a
// scope counts as a project's.
func (c *Credentials) tokenScope() string {
	switch {
	case c.SystemScope != "":
		return "system"
	case c.DomainID != "":
		return "domain"
	}
	return "project"
}

// Enforcer decides by a set of rules. It is safe for concurrent use: a decision uses the rules before a
// reload or those after, never a mixture. It is a Part and a Reloader of package service: SIGHUP reloads the files.
type Enforcer struct {
	cfg    Config
	rules  []Rule
	active atomic.Pointer[ruleSet]

	mu     sync.Mutex // one reload at a time
	sum    string     // the checksum of the files of the active rules
	files  []string   // the names of those of the files that have rules
	warned map[string]bool
	outage outage.Log // logs the errors of Watch
	// refusal is the text of the error of the last Watch.
	refusal string
}

// ruleSet is a complete set of rules with their references resolved. It does not change.
type ruleSet struct {
	rules map[string]*rule
}

// rule is a rule of a set, with the default check or a file's.
type rule struct {
	def   *Rule
	check check
	text  string // the check's text
	where string // the check's origin: "default", or file:line

	fileOnly bool // the code does not define the rule
}

// New reads the operator's files, and returns an Enforcer with the given rules and those of the files. The
// caller must not change a rule's Operations, Scopes and Deprecated afterwards. New fails with Invalid if one of the
// following is true. The error lists all problems, each problem of a file with its line:
//
//   - A rule is defined twice or has no name, or a scope is unknown.
//   - A check cannot be parsed.
//   - A rule refers to a rule that does not exist, or refers to itself, directly or through other rules.
//   - A file cannot be read, or a required path does not exist.
//   - A file has a rule that is not defined, unless another rule in the files refers to it, or [Config].Lenient is set.
func New(rules []Rule, cfg Config) (*Enforcer, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Enforcer{cfg: cfg, rules: slices.Clone(rules), warned: map[string]bool{}}
	return e, e.loadFiles()
}

// Enforce returns nil if the rule with the given name allows the user of the context's request to act on
// target. The keys of target are the ATTRs of checks. Enforce does not block.
//
// If target is nil, the target's project_id and user_id are the user's own, as in Nova. This is for a list of the
// user's objects, and for a new object. A target that is not nil and lacks these keys has no owner, so
// that a check of the owner denies.
//
// The error is Denied, with oslo.policy's text. Its reason is InvalidScope if the token's scope is not among the
// rule's Scopes, otherwise PolicyNotAuthorized. A rule that does not exist denies.
func (e *Enforcer) Enforce(ctx context.Context, name string, target map[string]any) error {
	return e.Check(From(reqctx.From(ctx)), name, target)
}

// Check decides as [Enforcer.Enforce] does, for a user with the given credentials instead of the context's user.
func (e *Enforcer) Check(c Credentials, name string, target map[string]any) error {
	q := query{creds: &c, target: target}
	r := e.active.Load().findRule(name)
	if r == nil {
		return denyRule(name)
	}
	if !r.allowsScope(c.tokenScope()) {
		return fault.WithReason(fault.New(fault.Denied, "%s requires a scope of %s, request was made with %s scope.",
			name, strings.Join(r.def.Scopes, " or "), c.tokenScope()), "InvalidScope", nil)
	}
	if r.check.isTrue(&q) {
		return nil
	}
	return denyRule(name)
}

// denyRule returns the error of a rule that denies, with oslo.policy's text.
func denyRule(name string) error {
	return fault.WithReason(fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", name), "PolicyNotAuthorized", nil)
}

// findRule returns the rule with this name. If the set does not have it, findRule returns the rule "default" if the code defines
// one, and nil otherwise. A "default" that only a file has does not count, so that a file cannot allow rules that are not
// defined.
func (s *ruleSet) findRule(name string) *rule {
	if r := s.rules[name]; r != nil {
		return r
	}
	if r := s.rules["default"]; r != nil && !r.fileOnly {
		return r
	}
	return nil
}

// allowsScope reports whether the rule may be used with a token of a scope.
func (r *rule) allowsScope(scope string) bool {
	return len(r.def.Scopes) == 0 || slices.Contains(r.def.Scopes, scope)
}

// Start does nothing and returns nil. With Start, Stop and Reload an Enforcer is a part of a service.
func (e *Enforcer) Start(context.Context) error { return nil }

// Stop does nothing and returns nil.
func (e *Enforcer) Stop(context.Context) error { return nil }
