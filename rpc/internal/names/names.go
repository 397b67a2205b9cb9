// Package names has the rule for names of hosts and topics: what every broker can take.
package names

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Max is how many bytes a name may have, with all that stands before and after it: an AMQP short
// string has no more.
const Max = 255

// Fault returns what is wrong with a name as the predicate of a sentence. It is empty if nothing is.
func Fault(name string) string {
	switch {
	case plain(name): // nearly always
		return ""
	case len(name) > Max:
		return "is longer than the 255 bytes that a broker takes"
	case !utf8.ValidString(name):
		return "is not valid UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		return "has a control character"
	case strings.ContainsFunc(name, unicode.IsSpace) || strings.ContainsAny(name, "*>"):
		return "has a space, a * or a >"
	case slices.Contains(strings.Split(name, "."), ""):
		return "has an empty part"
	}
	return ""
}

// plain reports whether a name is all ASCII, and well.
func plain(name string) bool {
	part := false // the part before the next dot has something
	for i := range len(name) {
		switch c := name[i]; {
		case c <= ' ' || c >= 0x7f || c == '*' || c == '>':
			return false
		case c == '.' && !part:
			return false
		default:
			part = c != '.'
		}
	}
	return part && len(name) <= Max
}
