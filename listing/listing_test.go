package listing_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
)

// TestCompileRegexp: an expression whose match could take long is refused. A match of an accepted
// expression is fast.
func TestCompileRegexp(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"[", "(?=x)", "a{1001}", "a{1000}{1000}", strings.Repeat("a", 1025), strings.Repeat("a{1000}", 3), "(x{100}){20}", "((((" + strings.Repeat("a{9}", 200)} {
		if re, err := listing.CompileRegexp(text); fault.CodeOf(err) != fault.Invalid || re != nil {
			t.Errorf("%.40s: %v", text, err)
		}
	}
	begin := time.Now()
	for _, text := range []string{"", "^web-[0-9]+$", "(?i)ä|b", "(x+x+)+y", strings.Repeat("(a|b)*", 50), "(.*){30}z", strings.Repeat("a?", 255) + strings.Repeat("a", 255)} {
		re, err := listing.CompileRegexp(text)
		if err != nil {
			t.Errorf("%.40s: %v", text, err)
			continue
		}
		re.MatchString(strings.Repeat("x", 255))
		re.MatchString(strings.Repeat("a", 255))
	}
	if took := time.Since(begin); took > 2*time.Second { // a pattern that backtracks would take years
		t.Errorf("took %v", took)
	}
}

// TestRequiredText: RequiredText returns the longest literal text that each match of an expression
// contains, or "".
func TestRequiredText(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]string{"web": "web", "^web-[0-9]+x$": "web-", "a|b": "", "(?i)web": "", "": "", "[ab]": "", "a.bcd": "bcd", "(?i:w)eb": "eb"} {
		if got := listing.RequiredText(regexp.MustCompile(expr)); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// TestTake: a condition that was taken is not in the query any more.
func TestTake(t *testing.T) {
	t.Parallel()
	q := listing.Query{Conditions: []listing.Condition{{Name: "a", Values: []any{"1"}}, {Name: "b", Values: []any{"2"}}, {Name: "a", Operator: listing.Prefix, Values: []any{"3"}}}}
	got := q.Take("a")
	if diff := cmp.Diff([]listing.Condition{{Name: "a", Values: []any{"1"}}, {Name: "a", Operator: listing.Prefix, Values: []any{"3"}}}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]listing.Condition{{Name: "b", Values: []any{"2"}}}, q.Conditions); diff != "" {
		t.Error(diff)
	}
	if q.Take("a") != nil || !got[0].Match("1") || got[0].Match("12") || !got[1].Match("34") || got[1].Match("43") {
		t.Errorf("%+v, %+v", got, q)
	}
}
