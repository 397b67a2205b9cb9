package config

import (
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/internal/text"
)

// hintOption returns a clause for the error of an unknown option: the section that has an option of this
// name, or else the most similar name in the section.
func (l *loader) hintOption(section, key string) string {
	for _, other := range slices.Sorted(maps.Keys(l.options)) {
		if other != section && l.options[other][key] != nil {
			return "; it belongs to [" + other + "]"
		}
	}
	return text.Nearest(key, maps.Keys(l.namesIn(section)))
}

// hintSection returns a clause for the error of an unknown section: the most similar section or family.
func (l *loader) hintSection(section string) string {
	known := slices.Collect(maps.Keys(l.options))
	for _, f := range l.families {
		if f.isNear(section) {
			return "; the nearest is " + f.prefix + "..."
		}
	}
	return text.Nearest(section, slices.Values(known))
}

// hintChoice returns a clause for the error of a value that is not one of the choices: the most similar choice.
func hintChoice(value string, choices []string) string {
	return text.Nearest(value, slices.Values(choices))
}

// namesIn returns the options that a section has, by their names and older names.
func (l *loader) namesIn(section string) map[string]*option {
	out := maps.Clone(l.aliases[section])
	if out == nil {
		out = map[string]*option{}
	}
	maps.Copy(out, l.options[section])
	return out
}

// maxTypos is the largest edit distance, in bytes, at which two names count as similar.
const maxTypos = 2

// similarNames reports whether a and b differ by typing errors: at most maxTypos, and fewer in short names.
// Upper and lower case are the same.
func similarNames(a, b string) bool {
	limit := min(maxTypos, max(1, len(b)/3))
	return text.Distance(strings.ToLower(a), strings.ToLower(b)) <= limit
}

// isNear reports whether the name of a section outside of the family may be a misspelling of a name in the family.
func (f *family) isNear(section string) bool {
	limit := min(maxTypos, len(f.prefix)/3)
	for n := max(0, len(f.prefix)-limit); n <= min(len(section), len(f.prefix)+limit); n++ {
		if text.Distance(strings.ToLower(section[:n]), strings.ToLower(f.prefix)) <= limit {
			return true
		}
	}
	return false
}

// guardWords are the words of names about TLS or identity. An underscore, a hyphen or a point separates the words of a name.
// A guard word with an asterisk at its end stands for all words with this beginning.
var guardWords = []string{
	"ssl*", "tls*", "https", "x509", "cert", "certs", "certfile", "certificate", "certificates", "ca", "cafile", "capath",
	"keyfile", "insecure", "noauth*", "sha256", "checksum", "fingerprint",
}

// isGuardName reports whether a name is about TLS or identity by its words.
func isGuardName(name string) bool {
	for word := range strings.FieldsFuncSeq(strings.ToLower(name), func(r rune) bool { return r == '_' || r == '-' || r == '.' }) {
		for _, guard := range guardWords {
			if prefix, ok := strings.CutSuffix(guard, "*"); word == guard || ok && strings.HasPrefix(word, prefix) {
				return true
			}
		}
	}
	return false
}

// requestsNothing are the values, in lower case, with which an option of TLS or identity requests no protection.
var requestsNothing = []string{"", "false", "no", "off", "0", "none"}

// mayProtect returns why an unknown option, or an unknown section if name is empty, may be meant for protection. Otherwise
// it returns "". An option may be meant for protection if its name is similar to that of an option with the tag protects, or
// if its name is about TLS or identity and its value requests protection. A section may be meant for protection if its name
// is similar to that of a section with such an option, or of a family with the tag protects.
func (l *loader) mayProtect(section, name, value string) string {
	const similar = "an option that protects the service has a similar name"
	nearFamily := func(f family) bool { return f.protects && f.isNear(section) }
	if name == "" && slices.ContainsFunc(l.families, nearFamily) || l.isNearProtected(section, name) {
		return similar
	}
	if name != "" && isGuardName(name) && !slices.Contains(requestsNothing, strings.ToLower(strings.TrimSpace(value))) {
		return "its name is about TLS or identity"
	}
	return ""
}

// isNearProtected reports whether an unknown name, or an unknown section if name is empty, may be a misspelling of an option
// with the tag protects.
func (l *loader) isNearProtected(section, name string) bool {
	for _, sections := range []map[string]map[string]*option{l.options, l.aliases} {
		for other, options := range sections {
			for known, o := range options {
				if o.hasTag("protects") && isMeant(section, name, other, known) {
					return true
				}
			}
		}
	}
	return false
}

// isMeant reports whether an unknown name, or an unknown section if name is empty, may be a misspelling of an option. The
// option has the name known in the section knownSection. In another section the unknown name must be long to count as
// similar, because short names of different options are often similar.
func isMeant(section, name, knownSection, known string) bool {
	if name == "" {
		return similarNames(section, knownSection)
	}
	nearby := section == knownSection || len(known) > 4*maxTypos
	return nearby && similarNames(name, known) || strings.EqualFold(name, known)
}
