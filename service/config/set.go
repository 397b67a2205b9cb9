package config

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// setNamed sets options by names as in Source.Defaults. The origin of a value is the prefix and the name.
func (l *loader) setNamed(r rank, prefix string, values map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		l.setOne(r, prefix+name, name, values[name])
	}
}

// setOne sets the option with a name as in Source.Defaults.
func (l *loader) setOne(r rank, where, name, value string) {
	section, key, ok := strings.Cut(name, ".")
	if !ok {
		section, key = defaultSection, name
	}
	l.setKey(r, where, section, key, value)
}

// setFlags sets the options of the command line.
func (l *loader) setFlags(src Source) {
	for _, name := range slices.Sorted(maps.Keys(src.Flags)) {
		l.setOne(rankFlags, "flag "+cmp.Or(src.FlagNames[name], name), name, src.Flags[name])
	}
}

// envName returns the name of an option's environment variable.
func envName(section, name string) string {
	return strings.ToUpper("OS_" + strings.ReplaceAll(section, "-", "_") + "__" + strings.ReplaceAll(name, "-", "_"))
}

// setEnv sets options from variables in the form of os.Environ. A variable's name
// is in upper case, so it does not tell the option's name. Therefore setEnv looks
// for the variable of each declared option.
func (l *loader) setEnv(env []string) {
	vars := make(map[string]string, len(env))
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "OS_") {
			vars[k] = v
		}
	}
	known := map[string]bool{}
	setOption := func(section, name string) {
		k := envName(section, name)
		known[k] = true
		if v, ok := vars[k]; ok {
			l.setKey(rankEnv, "environment "+k, section, name, v)
		}
	}
	for _, section := range slices.Sorted(maps.Keys(l.aliases)) {
		for _, name := range slices.Sorted(maps.Keys(l.aliases[section])) {
			setOption(section, name)
		}
	}
	for o := range l.allOptions() {
		setOption(o.section, o.name)
		if o.hasTag("secret") {
			setOption(o.section, o.name+fileSuffix)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		if !known[k] {
			l.setVariable(k, vars[k])
		}
	}
}

// setVariable sets the option of a family that a variable names. Any other variable with a double underscore names an unknown
// section or option. A variable without a double underscore belongs to another program.
func (l *loader) setVariable(k, value string) {
	where := "environment " + k
	if section := l.sectionOf(k); section != "" {
		l.setSectionVariable(section, k, where, value)
		return
	}
	if l.setFamilyVariable(k, where, value) {
		return
	}
	section, name, ok := strings.Cut(strings.TrimPrefix(k, "OS_"), "__")
	if !ok || section == "" || name == "" {
		return
	}
	section = strings.ToLower(section)
	l.addUnknown(rankEnv, l.mayProtect(section, "", ""), "%s: [%s]: no such section%s", where, section, l.hintSection(section))
}

// sectionOf returns the declared section that a variable names, or "". If several sections match, the result is the
// section with the longest name.
func (l *loader) sectionOf(k string) (longest string) {
	for _, section := range l.byCase {
		if strings.HasPrefix(strings.ToUpper(k), envName(section, "")) && len(section) > len(longest) {
			longest = section
		}
	}
	return longest
}

// setSectionVariable sets the option of a declared section that a variable names. If the section has no such option, the option is unknown.
func (l *loader) setSectionVariable(section, k, where, value string) {
	if name := l.optionOf(section, k); name != "" { // a section that an earlier variable has declared
		l.setKey(rankEnv, where, section, name, value)
		return
	}
	name := strings.ToLower(k[len(envName(section, "")):])
	hint := l.hintOption(section, name)
	if k != strings.ToUpper(k) {
		hint += "; write the name of the variable in upper case"
	}
	l.addUnknown(rankEnv, l.mayProtect(section, name, value), "%s: [%s] %s: no such option%s", where, section, name, hint)
}

// setFamilyVariable sets the option that a variable names in a section of a family. It reports whether a family has such a section.
func (l *loader) setFamilyVariable(k, where, value string) bool {
	for i := range l.families {
		f := &l.families[i]
		if f.elem != nil {
			if l.setMemberVariable(f, k, where, value) {
				return true
			}
			continue
		}
		if section, name, ok := f.splitVariable(k); ok {
			l.setKey(rankEnv, where, section, name, value)
			return true
		}
	}
	return false
}

// splitVariable returns the section of the family and the option that a variable names. Both have the
// spelling that a file has, or else they are in lower case.
func (f *family) splitVariable(k string) (section, name string, ok bool) {
	for _, rest := range slices.Sorted(maps.Keys(f.values)) {
		option, found := strings.CutPrefix(k, envName(f.prefix+rest, ""))
		if !found || option == "" || len(f.prefix+rest) <= len(section) {
			continue
		}
		section, name = f.prefix+rest, strings.ToLower(option)
		for _, known := range slices.Sorted(maps.Keys(f.values[rest])) {
			if envName(section, known) == k {
				name = known
			}
		}
	}
	if section != "" {
		return section, name, true
	}
	tail, found := strings.CutPrefix(k, strings.TrimSuffix(envName(f.prefix, ""), "__"))
	rest, option, ok := strings.Cut(tail, "__")
	return f.prefix + strings.ToLower(rest), strings.ToLower(option), found && ok && rest != "" && option != ""
}

// fileSuffix is the end of the name of an option that names a file with a secret.
const fileSuffix = "_file"

// setKey sets one option, by its name or an older one, or collects an error. An empty key
// stands for the head of a section. The option may belong to a family. The parameter
// where is the origin of the value.
func (l *loader) setKey(r rank, where, section, key, value string) {
	section, ok := l.memberSection(r, where, section, key)
	if !ok {
		return
	}
	if l.setKnown(r, where, section, key, value) {
		return
	}
	if r.isFile() {
		if l.others[section] == nil {
			l.others[section] = map[string]string{}
		}
		l.others[section][key] = value
	}
	if l.options[section] != nil || l.aliases[section] != nil { // in an older section all options may have moved to other sections
		if key != "" {
			l.addUnknown(r, l.mayProtect(section, key, value), "%s: [%s] %s: no such option%s", where, section, key, l.hintOption(section, key))
		}
		return
	}
	for i := range l.families {
		if f := &l.families[i]; f.elem == nil && len(section) > len(f.prefix) && strings.EqualFold(section[:len(f.prefix)], f.prefix) {
			l.setFamily(r, f, where, section[len(f.prefix):], key, value)
			return
		}
	}
	switch {
	case key == "":
		l.addUnknown(r, l.mayProtect(section, "", ""), "%s: [%s]: no such section%s", where, section, l.hintSection(section))
	case !r.isFile():
		l.addUnknown(r, "", "%s: no such section%s", where, l.hintSection(section))
	default: // the error of the section's head is enough
	}
}

// declaredSection returns the section in the spelling of its declaration: names of sections are case-insensitive,
// except DEFAULT. A section that is not declared is returned as it is.
func (l *loader) declaredSection(section string) string {
	known, ok := l.byCase[strings.ToLower(section)]
	if !ok || section == defaultSection || known == defaultSection {
		return section
	}
	return known
}

// setKnown sets a declared option by its name, by an older name, or by the option NAME_file, which names a file with the value. It
// reports whether such an option exists.
func (l *loader) setKnown(r rank, where, section, key, value string) bool {
	o, byFile := l.findKnown(section, key)
	switch {
	case o == nil:
		return false
	case !o.hasTag("multi") && l.isRepeated(r, where, section, key):
		o.bad = true
	case byFile:
		l.readSecret(o, r, where, key, value)
	case o.section != section || o.name != key: // an older name
		l.addWarning("configuration option was renamed, use its new name", "where", where, "section", section, "option", key, "new_section", o.section, "new_name", o.name)
		if o.rank != r || o.byAlias {
			o.setValue(r, where, value, true)
		}
	case o.byFile != "" && o.rank == r:
		l.addError("%s: [%s] %s is set, and %s names a file with its value: remove one of them", where, section, key, o.byFile)
		o.bad = true
	default:
		o.setValue(r, where, value, false)
	}
	return true
}

// findKnown returns the declared option with a name or an older name, or nil. If no option has the name, but the name is NAME_file, findKnown returns the
// secret option NAME and true.
func (l *loader) findKnown(section, key string) (o *option, byFile bool) {
	if o := l.options[section][key]; o != nil {
		return o, false
	}
	if name, ok := strings.CutSuffix(key, fileSuffix); ok {
		if o := l.options[section][name]; o != nil && o.hasTag("secret") {
			return o, true
		}
	}
	return l.aliases[section][key], false
}

// setFamily sets an option in a section of a family. An empty key stands for the head of the section. Sections
// whose names differ only in upper and lower case are one section, with the name that comes first.
func (l *loader) setFamily(r rank, f *family, where, rest, key, value string) {
	for _, known := range slices.Sorted(maps.Keys(f.values)) {
		if strings.EqualFold(known, rest) {
			rest = known
		}
	}
	if f.values[rest] == nil {
		f.values[rest] = map[string]string{}
	}
	if head := placeKey(f.prefix+rest, ""); l.places[head] == "" {
		l.places[head] = where
	}
	if err := checkBytes(value); err != nil { // the value may be secret
		l.addError("%s: [%s] %s: the value %w", where, f.prefix+rest, key, err)
		return
	}
	if key != "" && !l.isRepeated(r, where, f.prefix+rest, key) {
		f.values[rest][key] = value
		l.places[placeKey(f.prefix+rest, key)] = where
	}
}

// isRepeated reports whether the file that is being read has set the option before, and collects an error in this case. Such a file has two values, and only one
// can be the one that the operator wants.
func (l *loader) isRepeated(r rank, where, section, key string) bool {
	if !r.isFile() {
		return false
	}
	at := placeKey(section, key)
	if first, ok := l.seen[at]; ok {
		l.addError("%s: [%s] %s: is already set at %s: remove one of them", where, section, key, first)
		return true
	}
	l.seen[at] = where
	return false
}

// placeKey is the key of an option in places.
func placeKey(section, name string) string { return strings.ToLower(section) + "." + name }

// addUnknown collects an option or a section that is not declared. If it is in a file or in the environment,
// reportUnknown decides later whether it is an error, because it may belong to another program; see unknown.why. In any
// other source it is an error at once.
func (l *loader) addUnknown(r rank, why, format string, args ...any) {
	if r.isFile() || r == rankEnv {
		l.unknown = append(l.unknown, unknown{fmt.Sprintf(format, args...), why})
		return
	}
	l.addError(format, args...)
}

// setValue sets the value from a source. An option with the tag multi collects the values of all files; any
// other source replaces them.
func (o *option) setValue(r rank, where, value string, byAlias bool) {
	if !o.hasTag("multi") || !r.isFile() || !o.rank.isFile() {
		o.values = nil
	}
	o.values = append(o.values, value)
	if o.hasTag("multi") {
		value = strings.Join(o.values, "\n")
	}
	o.rank, o.where, o.value, o.byAlias, o.byFile = r, where, value, byAlias, ""
}

// maxSecret bounds the size of a file with a secret, in bytes.
const maxSecret = 64 << 10

// readSecret sets an option from the file at path, which is the value of key. Other users must not be able to read or write
// the file.
func (l *loader) readSecret(o *option, r rank, where, key, path string) {
	fail := func(format string, args ...any) {
		o.bad = true
		l.addError("%s: [%s] %s: %s", where, o.section, key, fmt.Sprintf(format, args...))
	}
	if o.rank == r && o.byFile == "" {
		fail("%s is also set: remove one of them", o.name)
		return
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		fail("%v", err)
		return
	case !info.Mode().IsRegular():
		fail("%s is not a regular file", path)
		return
	case info.Mode().Perm()&0o006 != 0:
		fail("all users can read or write %s, its mode is %04o: run chmod 0600, or chmod 0640 with the group of the service", path, info.Mode().Perm())
		return
	case info.Size() > maxSecret:
		fail("%s has more than %d bytes", path, maxSecret)
		return
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		fail("%v", err)
		return
	}
	o.setValue(r, where+" ("+path+")", strings.TrimRight(string(raw), "\r\n"), false)
	o.byFile = key
}
