package listing

import (
	"regexp"
	"regexp/syntax"
	"slices"

	"github.com/armature-go/armature/fault"
)

// The limits of a regular expression. Package regexp takes time in proportion to the length of the text and the number of
// instructions, so a match of 255 characters takes at most about two milliseconds.
const (
	maxRegexpBytes        = 1024
	maxRegexpInstructions = 2000 // about one for each character, and for each repetition of it
)

// CompileRegexp compiles a regular expression of a client. The expression has at most 1024 bytes, and at most 2000 instructions after
// repetitions such as {1000} are expanded. These limits bound the time of a match.
//
// Invalid: the text is not a regular expression of package regexp, or exceeds a limit.
func CompileRegexp(text string) (*regexp.Regexp, error) {
	if len(text) > maxRegexpBytes {
		return nil, fault.New(fault.Invalid, "a regular expression has at most %d bytes", maxRegexpBytes)
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fault.New(fault.Invalid, "not a regular expression: %w", err)
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fault.New(fault.Invalid, "not a regular expression: %w", err)
	}
	if len(prog.Inst) > maxRegexpInstructions {
		return nil, fault.New(fault.Invalid, "the regular expression is too complex: use fewer or smaller repetitions")
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, "not a regular expression: %w", err)
	}
	return re, nil
}

// RequiredText returns a text that each match of the expression contains, or "" if it finds none. A database can exclude rows
// without this text before it matches the expression.
func RequiredText(re *regexp.Regexp) (text string) {
	parsed, err := syntax.Parse(re.String(), syntax.Perl)
	if err != nil {
		return ""
	}
	parts := []*syntax.Regexp{parsed}
	if parsed.Op == syntax.OpConcat {
		parts = slices.Clone(parsed.Sub)
	}
	for _, p := range parts {
		if p.Op == syntax.OpLiteral && p.Flags&syntax.FoldCase == 0 && len(p.Rune) > len([]rune(text)) {
			text = string(p.Rune)
		}
	}
	return text
}
