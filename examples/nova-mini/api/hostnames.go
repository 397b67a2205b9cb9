package api

import (
	"cmp"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
)

// maxHostname is the longest host name that every guest accepts.
const maxHostname = 63

// hostnameOf returns the host name of a server. A server of an earlier release has no host name, so hostnameOf derives one from the server's name.
func hostnameOf(s *store.Server) string {
	return cmp.Or(s.Hostname, hostnameFor(s.Name, s.ID))
}

// hostnameFor returns the host name that Nova gives to a server for which the client has chosen none. It is the server's name in lower case, without
// the characters that a host name cannot have. If nothing is left of the name, it is Server-ID.
func hostnameFor(name, id string) string {
	var out strings.Builder
	n := 0
	for _, r := range name {
		if r > 0xFF { // Nova first removes the characters outside of Latin-1, so they do not count
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

// isWord reports whether Python's \w matches a character of Latin-1. It returns false for the underscore.
func isWord(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return true
	case r == 0xAA, r == 0xB2, r == 0xB3, r == 0xB5, r == 0xB9, r == 0xBA, r >= 0xBC && r <= 0xBE:
		return true
	}
	return r >= 0xC0 && r != 0xD7 && r != 0xF7
}
