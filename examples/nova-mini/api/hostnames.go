package api

import (
	"cmp"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
)

// maxHostname is the longest host name that every guest accepts.
const maxHostname = 63

// hostnameOf returns the host name of a server. A server of an earlier release has none, so it follows from the name.
func hostnameOf(s *store.Server) string {
	return cmp.Or(s.Hostname, hostnameFor(s.Name, s.ID))
}

// hostnameFor returns the host name that Nova gives to a server without one: its name in lower case, without the characters that a host
// name cannot have, or Server-ID.
func hostnameFor(name, id string) string {
	var out strings.Builder
	n := 0
	for _, r := range name {
		if r > 0xFF { // outside of Latin-1: Nova removes it before it counts
			continue
		}
		if n++; n > maxHostname {
			break
		}
		switch {
		case r == ' ' || r == '_' || r == '.':
			out.WriteByte('-')
		case r == '-' || isWord(r):
			out.WriteRune(r)
		}
	}
	return cmp.Or(strings.Trim(strings.ToLower(out.String()), ".-"), "Server-"+id)
}

// isWord reports whether Python's \w matches a character of Latin-1 other than the underscore.
func isWord(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return true
	case r == 0xAA, r == 0xB2, r == 0xB3, r == 0xB5, r == 0xB9, r == 0xBA, r >= 0xBC && r <= 0xBE:
		return true
	}
	return r >= 0xC0 && r != 0xD7 && r != 0xF7
}
