package policy_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/policy"
)

// enforcer returns an Enforcer. Without a logger in cfg it logs nothing.
func enforcer(t testing.TB, cfg policy.Config, rules ...policy.Rule) *policy.Enforcer {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e, err := policy.New(rules, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var ada = policy.Credentials{
	UserID: "u1", ProjectID: "p1", Roles: []string{"Member", "reader"},
	Extra: map[string]any{
		"user_domain_id": "d1", "is_admin_project": true, "number": 7, "none": nil, "list": []any{"a", "b"}, "texts": []string{"x"},
		"token":       map[string]any{"user": map[string]any{"id": "u9"}, "roles": []any{map[string]any{"id": "r1"}, map[string]any{"id": "r2"}}},
		"dotted.name": "whole",
	},
}

var thing = map[string]any{
	"project_id": "p1", "user_id": "u2", "public": true, "private": false, "size": 7, "empty": "", "nothing": nil, "role": "MEMBER",
	"target.user.id": "u1", "owner": map[string]any{"id": "u1", "domain": map[string]any{"id": "d1"}}, "list_item": "b", "word": "a b",
}

// TestChecks: the language of checks is that of oslo.policy's documentation and tests. The user ada is a
// member and a reader in project p1. The thing belongs to project p1 and user u2.
func TestChecks(t *testing.T) {
	t.Parallel()
	for check, want := range map[string]bool{
		"": true, "@": true, "!": false, "not !": true, "not @": false, "not not @": true, "(@)": true, "((!))": false, "  @  ": true,
		"role:member": true, "role:MEMBER": true, "role:admin": false, "role:%(role)s": true, "role:%(none)s": false, "role:": false,
		"user_id:u1": true, "user_id:u2": false, "user_id:%(user_id)s": false, "user_id:%(target.user.id)s": true, "user_id:%(owner.id)s": true,
		"project_id:%(project_id)s": true, "tenant_id:%(project_id)s": true, "project_id:p2": false, "project_id:": false, "domain_id:": false,
		"user_domain_id:%(owner.domain.id)s": true, "user_domain_id:%(owner.domain.name)s": false, "user_domain_id:%(owner.id.deeper)s": false,
		"is_admin:True": false, "is_admin:False": true, "is_admin:true": false, "is_admin_project:True": true, "system_scope:all": false, "system:all": false,
		"number:7": true, "number:%(size)s": true, "number:8": false, "none:None": true, "none:": false, "unknown:x": false, "unknown:None": false,
		"list:a": true, "list:%(list_item)s": true, "list:c": false, "texts:x": true, "texts:y": false,
		"token.user.id:u9": true, "token.user.id:u1": false, "token.user:u9": false, "token.roles.id:r2": true, "token.roles.id:r3": false, "dotted.name:whole": true,
		"'p1':%(project_id)s": true, `"p1":%(project_id)s`: true, "'p2':%(project_id)s": false, "True:%(public)s": true, "False:%(private)s": true, "True:%(private)s": false,
		"None:%(nothing)s": true, "7:%(size)s": true, "8:%(size)s": false, "True:%(missing)s": false, "'':%(empty)s": true, "'a b':%(word)s": true,
		"user_id:u%(size)s": false, "number:%(size)s%%": false, "user_domain_id:d%%": false, "'p1-u2':%(project_id)s-%(user_id)s": true, "'p1-x':%(project_id)s-%(missing)s": false,
		"role:member and user_id:u1": true, "role:member and user_id:u2": false, "role:admin or user_id:u1": true, "role:admin or user_id:u2": false,
		"ROLE:member": false, "role:member AND user_id:u1": true, "role:admin OR user_id:u1": true, "NOT role:admin": true, "not role:member": false,
		"@ or @ and !": true, "! and @ or @": true, "(@ or @) and !": false, "! or @ and @": true, "not ! and !": false, "not (! and !)": true, "not @ or @": true,
		"@ and not !": true, "@ and not @": false, "(role:admin or role:member) and (user_id:u1 or user_id:u2)": true,
		"((@) and (not (!)))": true, "@ and (@ and (@ and !))": false, "@ or ! or !": true, "! or ! or !": false, "@ and @ and @": true, "@ and @ and !": false,
		"project_id:%(project_id)s and not role:admin": true, "(project_id:%(project_id)s)": true, "rule:yes": true, "rule:no": false, "not rule:no": true,
		"rule:yes and rule:both": true, "rule:both": true, "tab:x\tor\n@": true,
	} {
		e := enforcer(t, policy.Config{}, policy.Rule{Name: "r", Check: check}, policy.Rule{Name: "yes", Check: "@"}, policy.Rule{Name: "no", Check: "!"},
			policy.Rule{Name: "both", Check: "rule:yes and not rule:no"})
		if err := e.Check(ada, "r", thing); err == nil != want {
			t.Errorf("%q: %v, want %v", check, err, want)
		}
	}
	for check, want := range map[string]string{
		"role:a and":    `after column 8: want a check, not the end`,
		"and role:a":    `column 1: want a check, not "and"`,
		"role:a role:b": `column 8: want "and", "or" or the end, not "role:b"`,
		"(role:a":       `after column 2: want "and", "or" or ")", not the end`,
		"role:a)":       `column 7: want "and", "or" or the end, not ")"`,
		"not(role:a)":   `column 11: want "and", "or" or the end, not ")"`,
		"nothing":       `column 1: want KIND:VALUE, @ or !, not "nothing"`,
		":x":            `want KIND:VALUE`,
		"user_id:%(x":   `has a %( without a name and )s`,
		"user_id:%()s":  `has a %( without a name and )s`,
		"http://x/y":    "not supported",
		"https:%(x)s":   "not supported",
		"not":           "want a check, not the end",
		"rule:missing":  "refers to rule missing, which does not exist",
		"rule:r":        "refers to itself: r -> r",
		strings.Repeat("(", 200) + "@" + strings.Repeat(")", 200): "nested deeper than 100",
		strings.Repeat("not ", 200) + "@":                         "nested deeper than 100",
	} {
		_, err := policy.New([]policy.Rule{{Name: "r", Check: check}}, policy.Config{})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want Invalid with %s", check, err, want)
		}
	}
}

// TestEnforce: Enforce decides for the user of the context's request. A rule that does not exist denies,
// and so does a token with a wrong scope.
func TestEnforce(t *testing.T) {
	t.Parallel()
	e := enforcer(t, policy.Config{}, policy.Rule{Name: "get", Check: "project_id:%(project_id)s"},
		policy.Rule{Name: "admin", Check: "role:admin", Scopes: []string{"system", "domain"}}, policy.Rule{Name: "any", Check: "@"})
	member := reqctx.Request{UserID: "u", ProjectID: "p"}
	for _, tt := range []struct {
		name   string
		caller reqctx.Request
		rule   string
		target map[string]any
		reason string // "": allowed
	}{
		{"target of the caller's project", member, "get", map[string]any{"project_id": "p"}, ""},
		{"target of another project", member, "get", map[string]any{"project_id": "q"}, "PolicyNotAuthorized"},
		{"no target", member, "get", nil, ""},
		{"target without an owner", member, "get", map[string]any{"id": "x"}, "PolicyNotAuthorized"},
		{"no caller, no target", reqctx.Request{}, "get", nil, "PolicyNotAuthorized"},
		{"no caller, target with an empty owner", reqctx.Request{}, "get", map[string]any{"project_id": ""}, "PolicyNotAuthorized"},
		{"rule does not exist", member, "put", nil, "PolicyNotAuthorized"},
		{"admin of a project", reqctx.Request{ProjectID: "p", Roles: []string{"admin"}}, "admin", nil, "InvalidScope"},
		{"admin of the system", reqctx.Request{SystemScope: "all", Roles: []string{"admin"}}, "admin", nil, ""},
		{"admin of a domain", reqctx.Request{DomainID: "d", Roles: []string{"admin"}}, "admin", nil, ""},
		{"reader of the system", reqctx.Request{SystemScope: "all", Roles: []string{"reader"}}, "admin", nil, "PolicyNotAuthorized"},
	} {
		err := e.Enforce(reqctx.With(t.Context(), tt.caller), tt.rule, tt.target)
		reason := ""
		if err != nil {
			reason = fault.From(err).Reason
		}
		if reason != tt.reason || err != nil && fault.CodeOf(err) != fault.Denied {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.reason)
		}
	}
	if err := e.Enforce(reqctx.With(t.Context(), member), "put", nil); err.Error() != "Policy doesn't allow put to be performed." {
		t.Error(err)
	}
	withDefault := enforcer(t, policy.Config{}, policy.Rule{Name: "default", Check: "role:admin"})
	if err := withDefault.Check(policy.Credentials{Roles: []string{"admin"}}, "put", nil); err != nil {
		t.Errorf("a defined rule named default, for a rule that does not exist: %v", err)
	}
}

// TestBadRules: New returns all errors in the rules of the code at once.
func TestBadRules(t *testing.T) {
	t.Parallel()
	_, err := policy.New([]policy.Rule{
		{Name: "a", Check: "@"},
		{Name: "a", Check: "!"},
		{Check: "@"},
		{Name: "b", Check: "@", Scopes: []string{"galaxy"}},
		{Name: "c", Check: "rule:d"},
		{Name: "d", Check: "not rule:e"},
		{Name: "e", Check: "role:x or rule:c"},
	}, policy.Config{})
	for _, want := range []string{`rule "a" is defined twice`, `rule "" is defined twice, or has no name`, `scope "galaxy" does not exist`, "refers to itself: c -> d -> e -> c"} {
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

// TestSample: the sample has all rules. It does not change a decision, neither as it is nor after all its
// rules are uncommented.
func TestSample(t *testing.T) {
	t.Parallel()
	rules := []policy.Rule{
		{Name: "get", Check: `role:reader or "a b":%(x)s`, Description: strings.Repeat("Read a volume. ", 12), Operations: []policy.Operation{{Method: "GET", Path: "/v3/volumes/{id}"}}, Scopes: []string{"project"}},
		{Name: "volume:show", Check: "", Deprecated: &policy.Deprecated{Name: "show", Reason: "Renamed.", Since: "3.0"}},
	}
	var out bytes.Buffer
	if err := policy.Sample(&out, rules); err != nil {
		t.Fatal(err)
	}
	var uncommented []string
	for line := range strings.Lines(out.String()) {
		if len(line) > 80 {
			t.Errorf("a line is longer than 79 columns: %s", line)
		}
		if strings.HasPrefix(line, `#"`) {
			uncommented = append(uncommented, line[1:])
		}
	}
	for i, text := range []string{out.String(), strings.Join(uncommented, "")} {
		e := enforcer(t, policy.Config{File: write(t, filepath.Join(t.TempDir(), "p.yaml"), text)}, rules...)
		for _, r := range e.Rules() {
			if (r.Where == "default") != (i == 0) || i == 1 && !r.Redundant {
				t.Errorf("%s: rule %+v, uncommented: %v", text, r, i == 1)
			}
		}
	}
	for _, want := range []string{"# GET /v3/volumes/{id}", "# Scope: project", `# Deprecated since 3.0; older name: "show". Renamed.`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s\nlacks %s", &out, want)
		}
	}
}

// TestExplain: an explanation shows each evaluated part, including the part that denies.
func TestExplain(t *testing.T) {
	t.Parallel()
	e := enforcer(t, policy.Config{}, policy.Rule{Name: "owner", Check: "project_id:%(project_id)s"},
		policy.Rule{Name: "delete", Check: "rule:owner and (role:admin or not role:reader)"}, policy.Rule{Name: "system", Check: "@", Scopes: []string{"system"}})
	for rule, want := range map[string]string{
		"delete": `delete (default) denies
  no   rule:owner and (role:admin or not role:reader)
    yes  rule:owner
      yes  project_id:%(project_id)s
    no   role:admin or not role:reader
      no   role:admin
      no   not role:reader
        yes  role:reader
`,
		"system": "system (default) denies: the rule is for scope system, the token has scope project\n",
		"none":   "none: the rule does not exist, so it denies\n",
	} {
		x := e.Explain(ada, rule, thing)
		if diff := cmp.Diff(want, x.String()); diff != "" || x.Allowed {
			t.Errorf("%s (-want +got):\n%s", rule, diff)
		}
	}
	if x := e.Explain(ada, "owner", thing); !x.Allowed || !strings.HasPrefix(x.String(), "owner (default) allows") {
		t.Error(x)
	}
}

var _ interface {
	service.Part
	service.Reloader
} = (*policy.Enforcer)(nil)

// FuzzCheck: each text is a check or an error with code Invalid. Check and Explain decide equally. The
// printed form of a check is a check that decides equally.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{
		"", "@", "!", "role:a and not (user_id:%(user_id)s or 'x y':%(z)s)", "((", "not not", "a:b:c", "%(", "x:%(y", "role:a) or (b:c", "True:%(a)s", "or", "'", "''", "a' b'", "(((@)))", "rule:r",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := policy.New([]policy.Rule{{Name: "r", Check: text}}, policy.Config{})
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Fatal(err)
			}
			return
		}
		x := e.Explain(ada, "r", thing)
		if (e.Check(ada, "r", thing) == nil) != x.Allowed {
			t.Errorf("%q: Check and Explain differ", text)
		}
		printed := x.Parts[0].Check
		reparsed, err := policy.New([]policy.Rule{{Name: "r", Check: printed}}, policy.Config{})
		if err != nil {
			t.Fatalf("%q is printed as %q, which is not a check: %v", text, printed, err)
		}
		if y := reparsed.Explain(ada, "r", thing); y.Parts[0].Check != printed || y.Allowed != x.Allowed {
			t.Errorf("%q is printed as %q, which is printed as %q; allowed %v and %v", text, printed, y.Parts[0].Check, x.Allowed, y.Allowed)
		}
	})
}

// BenchmarkEnforce measures a decision that follows references to three rules.
func BenchmarkEnforce(b *testing.B) {
	e := enforcer(b, policy.Config{}, policy.Rule{Name: "admin", Check: "role:admin"}, policy.Rule{Name: "owner", Check: "project_id:%(project_id)s"},
		policy.Rule{Name: "admin_or_owner", Check: "rule:admin or rule:owner"}, policy.Rule{Name: "volume:delete", Check: "rule:admin_or_owner and not role:banned", Scopes: []string{"project"}})
	ctx := reqctx.With(b.Context(), reqctx.Request{UserID: "u1", ProjectID: "p1", Roles: []string{"member", "reader"}})
	target := map[string]any{"project_id": "p1"}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Enforce(ctx, "volume:delete", target); err != nil {
			b.Fatal(err)
		}
	}
}

func Example() {
	p, err := policy.New([]policy.Rule{
		{Name: "admin_or_owner", Check: "role:admin or project_id:%(project_id)s"},
		{Name: "volume:delete", Check: "rule:admin_or_owner", Description: "Delete a volume"},
	}, policy.Config{})
	if err != nil {
		panic(err)
	}
	ctx := reqctx.With(context.Background(), reqctx.Request{ProjectID: "p1", Roles: []string{"member"}})
	fmt.Println(p.Enforce(ctx, "volume:delete", map[string]any{"project_id": "p1"}))
	fmt.Println(p.Enforce(ctx, "volume:delete", map[string]any{"project_id": "p2"}))
	fmt.Print(p.Explain(policy.From(reqctx.From(ctx)), "volume:delete", map[string]any{"project_id": "p2"}))
	// Output:
	// <nil>
	// Policy doesn't allow volume:delete to be performed.
	// volume:delete (default) denies
	//   no   rule:admin_or_owner
	//     no   role:admin or project_id:%(project_id)s
	//       no   role:admin
	//       no   project_id:%(project_id)s
}
