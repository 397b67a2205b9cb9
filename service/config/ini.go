package config

import (
	"strings"

	"github.com/armature-go/armature/fault"
)

// entry is an option in a file, or the head of a section if key is empty.
type entry struct {
	line                int
	section, key, value string
}

// parseINI parses oslo.config's form of INI. A comment is a whole line that
// begins with # or ;, so that a value may contain a #. A line that begins with a
// blank continues the value above. The first = or : separates key and value. One
// pair of quotes around a value is removed; nothing is unescaped. The package
// gopkg.in/ini.v1 does not have these rules, and does not tell line numbers.
//
// A line [name] begins a section. An empty line or a comment ends a value, as in oslo.config. Any other line is an error and is
// skipped. After a malformed section head, all options up to the next section head are also skipped, because their section is
// not known. An error does not contain the line, because the line may be a part of a password.
func parseINI(path, text string) (out []entry, errs []error) { //nolint:gocognit // see CONTRIBUTING.md
	section, known := defaultSection, true // known is false after a malformed section head
	open := false                          // the next line may continue the last entry
	line := 0
	fail := func(what string) {
		errs = append(errs, fault.New(fault.Invalid, "%s:%d: %s", path, line, what))
		open = false
	}
	for raw := range strings.SplitSeq(strings.TrimPrefix(text, "\ufeff"), "\n") {
		line++
		s := strings.TrimRight(raw, " \t\r\v\f")
		switch {
		case s == "":
			open = false
		case s[0] == ' ' || s[0] == '\t':
			switch {
			case !known: // it continues a skipped option
				continue
			case !open:
				fail("the line begins with a blank, but no option above can be continued; write an option in the first column")
				continue
			}
			out[len(out)-1].value += "\n" + strings.TrimLeft(s, " \t")
		case s[0] == '#' || s[0] == ';':
			open = false
		case s[0] == '[':
			open = false
			if known = len(s) > 2 && s[len(s)-1] == ']'; !known {
				fail("the head of a section has the form [name]")
				continue
			}
			section = s[1 : len(s)-1]
			out = append(out, entry{line: line, section: section})
		default:
			key, value, detail := splitOption(s)
			if detail != "" {
				fail(detail)
				continue
			}
			if !known {
				continue
			}
			out = append(out, entry{line, section, key, value})
			open = true
		}
	}
	return out, errs
}

// splitOption splits a line into a key and a value. If the line is not an option, detail says what is wrong; otherwise
// detail is empty.
func splitOption(line string) (key, value, detail string) {
	i := strings.IndexAny(line, "=:")
	if i < 0 {
		return "", "", "want [section], a comment, or name = value"
	}
	if key = strings.TrimRight(line[:i], " \t"); key == "" {
		return "", "", "the name before the value is missing"
	}
	return key, trimQuotes(strings.TrimLeft(line[i+1:], " \t")), ""
}

// trimQuotes removes a pair of equal quotes around s.
func trimQuotes(s string) string {
	if n := len(s); n > 1 && s[0] == s[n-1] && (s[0] == '"' || s[0] == '\'') {
		return s[1 : n-1]
	}
	return s
}
