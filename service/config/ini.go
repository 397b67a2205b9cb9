package config

import (
	"strings"

	"github.com/armature-go/armature/fault"
)

// entry is one option in a file, or, without a key, a section's head.
type entry struct {
	line                int
	section, key, value string
}

// parse reads oslo.config's form of INI: a comment is a whole line that starts
// with # or ;, so that a # in a value stays; a line that starts with a blank
// continues the value above; key and value are split at the first = or :, one
// pair of quotes around a value is taken off; nothing is unescaped. gopkg.in's
// ini knows neither these rules nor the lines that errors name.
//
// Lines that are none of these are errors, and left out. An error never repeats the line: it could
// be a password's.
func parse(path, text string) (out []entry, errs []error) {
	section := defaultSection
	open := false // the last entry can be continued
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
			if !open {
				fail("a continuation line, but nothing to continue; an option begins in the first column")
				continue
			}
			out[len(out)-1].value += "\n" + strings.TrimLeft(s, " \t")
		case s[0] == '#' || s[0] == ';':
			open = false
		case s[0] == '[':
			open = false
			if len(s) < 3 || s[len(s)-1] != ']' {
				fail("a section's head is [name]")
				continue
			}
			section = s[1 : len(s)-1]
			out = append(out, entry{line: line, section: section})
		default:
			i := strings.IndexAny(s, "=:")
			if i < 0 {
				fail("neither a section, nor a comment, nor name = value")
				continue
			}
			key := strings.TrimRight(s[:i], " \t")
			if key == "" {
				fail("a value without a name")
				continue
			}
			out = append(out, entry{line, section, key, unquote(strings.TrimLeft(s[i+1:], " \t"))})
			open = true
		}
	}
	return out, errs
}

func unquote(s string) string {
	if n := len(s); n > 1 && s[0] == s[n-1] && (s[0] == '"' || s[0] == '\'') {
		return s[1 : n-1]
	}
	return s
}
