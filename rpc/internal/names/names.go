// Package names checks the names of hosts and topics. Every broker accepts a valid name.
package names

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Max is the maximum length of a name in bytes, with all its prefixes and suffixes. An AMQP short string cannot be
// longer.
const Max = 255

// Fault returns what is wrong with a name, without the subject, such as "is empty". It returns "" if the name is valid.
func Fault(name string) string {
	switch {
	case isPlain(name): // the usual case, checked fast
		return ""
	case len(name) > Max:
		return "is longer than the 255 bytes that a broker allows"
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

// isPlain reports whether a name is valid and all ASCII.
func isPlain(name string) bool {
	part := false // the part before the next dot is not empty
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
