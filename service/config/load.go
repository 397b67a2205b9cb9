package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
)

// defaultSection is the section of options outside of a section struct.
const defaultSection = "DEFAULT"

// rank orders sources: a source of a higher rank overrides one of a lower rank. Each file has its own rank.
type rank int

const (
	rankDefaults  rank = 1
	rankFile      rank = 2 // of the first file; the next file has 3
	rankEnv       rank = math.MaxInt - 2
	rankFlags     rank = math.MaxInt - 1
	rankOverrides rank = math.MaxInt
)

// isFile reports whether r is the rank of a file.
func (r rank) isFile() bool { return r >= rankFile && r < rankEnv }

// loader collects the options of a struct, their values from all sources, and the errors and warnings.
type loader struct {
	options  map[string]map[string]*option // by section and name
	aliases  map[string]map[string]*option // by older section and older name
	byCase   map[string]string             // declared sections by their names in lower case
	families []family
	strict   *option                      // the option with the tag strict, or nil
	next     rank                         // of the next file
	others   map[string]map[string]string // values in files that are not declared; variables may use them
	unknown  []unknown
	places   map[string]string // origins of the options in families, by placeKey
	files    []string          // the files that were read
	unread   bool              // a file could not be read
	warnings []warning
	errs     []error
}

// warning is a log line that waits for logWarnings.
type warning struct {
	msg    string
	fields []any
}

// unknown is an option or a section in a file or in the environment that is not declared.
type unknown struct {
	text string
	why  string // why protection may be meant, so that this is always an error; else ""
}

// family is a declared family of sections with raw values, see the tag sections.
type family struct {
	prefix   string
	values   map[string]map[string]string
	field    reflect.Value
	protects bool // has the tag protects
}

func newLoader() *loader {
	return &loader{
		options: map[string]map[string]*option{defaultSection: {}}, aliases: map[string]map[string]*option{},
		byCase: map[string]string{}, others: map[string]map[string]string{}, places: map[string]string{}, next: rankFile,
	}
}

// loadStruct sets the fields of the struct work from all sources. The loader is never nil.
func loadStruct(work reflect.Value, src Source) (*loader, error) {
	l := newLoader()
	l.declareFields(work, defaultSection)
	for section := range l.options {
		l.byCase[strings.ToLower(section)] = section
	}
	for section := range l.aliases {
		if l.options[section] == nil {
			l.byCase[strings.ToLower(section)] = section
		}
	}
	l.setNamed(rankDefaults, "program's default ", src.Defaults)
	for _, path := range src.Files {
		l.readPath(path)
	}
	l.setEnv(src.Env)
	l.setNamed(rankFlags, "flag ", src.Flags)
	l.setNamed(rankOverrides, "program's override ", src.Overrides)
	lenient := src.Lenient
	if l.strict != nil && l.strict.assignValue(l.strict.value) == nil {
		lenient = lenient || !l.strict.field.Bool()
	}
	l.reportUnknown(lenient)
	if lenient {
		l.expandVariables()
	}
	l.assignFields()
	if l.errs == nil {
		if v, ok := reflect.TypeAssert[interface{ Validate() error }](work.Addr()); ok {
			if err := v.Validate(); err != nil {
				l.errs = append(l.errs, fault.New(fault.Invalid, "%w", err))
			}
		}
	}
	return l, errors.Join(l.errs...)
}

// reportUnknown makes errors of the unknown options, or warnings if they are ignored and cannot be meant for protection.
func (l *loader) reportUnknown(lenient bool) {
	for _, u := range l.unknown {
		switch {
		case !lenient:
			l.addError("%s", u.text)
		case u.why != "":
			l.addError("%s; this is an error even though unknown options are ignored, because %s: correct the name, or remove it", u.text, u.why)
		default:
			l.addWarning("unknown configuration ignored", "detail", u.text)
		}
	}
}

// assignFields sets the fields of all options, and collects what is wrong with their values.
func (l *loader) assignFields() {
	for o := range l.allOptions() {
		switch {
		case o.hasTag("required") && o.value == "":
			l.addError("[%s] %s is required: set it in a file or as %s", o.section, o.name, envName(o.section, o.name))
			o.bad = true
			continue
		case o.tag.Get("removed") != "":
			if o.where != "default" {
				l.addWarning("configuration option has no effect", "where", o.where, "section", o.section, "option", o.name, "reason", o.tag.Get("removed"))
			}
			continue
		case o.tag.Get("unsupported") != "" && o.where != "default" && !o.hasDefaultValue():
			l.addError("%s: [%s] %s = %s is not supported: %s", o.where, o.section, o.name, o.maskedValue(), o.tag.Get("unsupported"))
			o.bad = true
			continue
		case o.isUnset():
			continue // the field has its zero value
		}
		if err := o.assignValue(o.value); err != nil {
			l.addError("%s: [%s] %s: %s", o.where, o.section, o.name, o.describeError(err))
			o.resetDefault()
		}
	}
}

// hasDefaultValue reports whether the value means the same as the default: "False" is false.
func (o *option) hasDefaultValue() bool {
	if text := o.tag.Get("default"); o.value == text || o.assignValue(o.value) != nil {
		return o.value == text
	}
	got := o.field.Interface()
	o.resetDefault()
	o.bad = false
	return reflect.DeepEqual(got, o.field.Interface())
}

// resetDefault sets the field to its default, because the value has an error.
func (o *option) resetDefault() {
	o.bad = true
	o.field.SetZero()
	if text := o.tag.Get("default"); text != "" {
		o.values = nil
		_ = o.assignValue(text) // newOption checked the default
	}
}

// addError adds an error with the code Invalid.
func (l *loader) addError(format string, args ...any) {
	l.errs = append(l.errs, fault.New(fault.Invalid, format, args...))
}

// addWarning adds a log line with fields.
func (l *loader) addWarning(msg string, fields ...any) {
	l.warnings = append(l.warnings, warning{msg, fields})
}

// logWarnings logs the warnings that are not in logged, and adds them to logged.
func (l *loader) logWarnings(src Source, logged map[string]bool) {
	log := src.Logger
	if log == nil {
		log = slog.Default()
	}
	for _, w := range l.warnings {
		if key := fmt.Sprintf("%s %q", w.msg, w.fields); !logged[key] {
			logged[key] = true
			log.Warn(w.msg, w.fields...)
		}
	}
}

// allOptions iterates over the options in the order of their sections and names.
func (l *loader) allOptions() func(yield func(*option) bool) {
	return func(yield func(*option) bool) {
		for _, section := range slices.Sorted(maps.Keys(l.options)) {
			for _, name := range slices.Sorted(maps.Keys(l.options[section])) {
				if !yield(l.options[section][name]) {
					return
				}
			}
		}
	}
}

// declareFields adds the options and families of a struct. It panics if a tag is wrong.
func (l *loader) declareFields(v reflect.Value, section string) {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		require := func(tag, want string, is bool) {
			if !is || !f.CanSet() {
				panic("config: field " + field.Name + ": the tag " + tag + " requires an exported " + want + ", not " + f.Type().String())
			}
		}
		switch tag := field.Tag; {
		case tag.Get("ini") != "":
			l.declareOption(newOption(f, field, section))
		case tag.Get("section") != "":
			require("section", "struct", f.Kind() == reflect.Struct)
			s := tag.Get("section")
			if l.options[s] == nil {
				l.options[s] = map[string]*option{}
			}
			l.declareFields(f, s)
		case tag.Get("sections") != "":
			require("sections", "map[string]map[string]string", f.Type() == reflect.TypeFor[map[string]map[string]string]())
			values := map[string]map[string]string{}
			f.Set(reflect.ValueOf(values))
			l.families = append(l.families, family{tag.Get("sections"), values, f, tag.Get("protects") == "true"})
		case field.Anonymous && f.Kind() == reflect.Struct:
			l.declareFields(f, section)
		}
	}
}

// declareOption adds an option with its older names. It panics if another field has the same option.
func (l *loader) declareOption(o *option) {
	if l.options[o.section][o.name] != nil {
		panic("config: option " + o.name + " of section " + o.section + ": another field has the same option")
	}
	l.options[o.section][o.name] = o
	if o.hasTag("strict") {
		l.strict = o
	}
	l.declareAliases(o)
}

// declareAliases adds the older names of an option.
func (l *loader) declareAliases(o *option) {
	for older := range strings.SplitSeq(o.tag.Get("deprecated"), ",") {
		if older = strings.TrimSpace(older); older == "" {
			continue
		}
		section, name, ok := strings.Cut(older, ".")
		if !ok {
			section, name = o.section, older
		}
		if l.aliases[section] == nil {
			l.aliases[section] = map[string]*option{}
		}
		l.aliases[section][name] = o
	}
}

// readPath reads a file, or the files *.conf of a directory in the order of their names.
func (l *loader) readPath(path string) {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		l.readFile(path)
		return
	}
	var entries []fs.DirEntry
	if err == nil {
		entries, err = os.ReadDir(path)
	}
	if err != nil {
		l.addError("read configuration: %w", err)
		l.unread = true
		return
	}
	for _, e := range entries { // ReadDir sorts them by name
		if !e.IsDir() && filepath.Ext(e.Name()) == ".conf" && e.Name()[0] != '.' {
			l.readFile(filepath.Join(path, e.Name()))
		}
	}
}

// readFile sets the options in a file, which gets the next rank.
func (l *loader) readFile(path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		l.addError("read configuration: %w", err)
		l.unread = true
		return
	}
	l.files = append(l.files, path)
	entries, errs := parseINI(path, string(text))
	l.errs = append(l.errs, errs...)
	for _, e := range entries {
		l.setKey(l.next, fmt.Sprintf("%s:%d", path, e.line), e.section, e.key, e.value)
	}
	l.next++
}

// setNamed sets options by names as in Source.Defaults. The origin of a value is the prefix and the name.
func (l *loader) setNamed(r rank, prefix string, values map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		section, key, ok := strings.Cut(name, ".")
		if !ok {
			section, key = defaultSection, name
		}
		l.setKey(r, prefix+name, section, key, values[name])
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

// setVariable sets the option of a family that a variable names. Any other variable with a section and an
// option is unknown. A variable without a double underscore belongs to another program.
func (l *loader) setVariable(k, value string) {
	where := "environment " + k
	longest := ""
	for section := range l.byCase {
		if section = l.byCase[section]; strings.HasPrefix(strings.ToUpper(k), envName(section, "")) && len(section) > len(longest) {
			longest = section
		}
	}
	if longest != "" {
		name := strings.ToLower(k[len(envName(longest, "")):])
		hint := l.hintOption(longest, name)
		if k != strings.ToUpper(k) {
			hint += "; write the name of the variable in upper case"
		}
		l.addUnknown(rankEnv, l.mayProtect(longest, name, value), "%s: [%s] %s: no such option%s", where, longest, name, hint)
		return
	}
	for i := range l.families {
		if section, name, ok := l.families[i].splitVariable(k); ok {
			l.setKey(rankEnv, where, section, name, value)
			return
		}
	}
	section, name, ok := strings.Cut(strings.TrimPrefix(k, "OS_"), "__")
	if !ok || section == "" || name == "" {
		return
	}
	section = strings.ToLower(section)
	l.addUnknown(rankEnv, l.mayProtect(section, "", ""), "%s: [%s]: no such section%s", where, section, l.hintSection(section))
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
	if section != defaultSection {
		if known, ok := l.byCase[strings.ToLower(section)]; ok && known != defaultSection {
			section = known
		}
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
	if l.options[section] != nil || l.aliases[section] != nil { // or the section existed, and its options have other sections now
		if key != "" {
			l.addUnknown(r, l.mayProtect(section, key, value), "%s: [%s] %s: no such option%s", where, section, key, l.hintOption(section, key))
		}
		return
	}
	for i := range l.families {
		if f := &l.families[i]; len(section) > len(f.prefix) && strings.EqualFold(section[:len(f.prefix)], f.prefix) {
			l.setFamily(f, where, section[len(f.prefix):], key, value)
			return
		}
	}
	switch {
	case key == "":
		l.addUnknown(r, l.mayProtect(section, "", ""), "%s: [%s]: no such section%s", where, section, l.hintSection(section))
	case !r.isFile():
		l.addUnknown(r, "", "%s: no such section%s", where, l.hintSection(section))
	default: // the head of a file's section is the error already
	}
}

// setKnown sets a declared option by its name, by the name of the file that has its value, or by an older name. It reports whether
// there is one.
func (l *loader) setKnown(r rank, where, section, key, value string) bool {
	if o := l.options[section][key]; o != nil {
		if o.byFile != "" && o.rank == r {
			l.addError("%s: [%s] %s is set, and %s names a file with its value: remove one of them", where, section, key, o.byFile)
			o.bad = true
			return true
		}
		o.setValue(r, where, value, false)
		return true
	}
	if name, ok := strings.CutSuffix(key, fileSuffix); ok {
		if o := l.options[section][name]; o != nil && o.hasTag("secret") {
			l.readSecret(o, r, where, key, value)
			return true
		}
	}
	o := l.aliases[section][key]
	if o == nil {
		return false
	}
	l.addWarning("configuration option was renamed, use its new name", "where", where, "section", section, "option", key, "new_section", o.section, "new_name", o.name)
	if o.rank != r || o.byAlias {
		o.setValue(r, where, value, true)
	}
	return true
}

// setFamily sets an option in a section of a family. An empty key stands for the head of the section. Sections
// whose names differ by upper and lower case are one; it has the name that comes first.
func (l *loader) setFamily(f *family, where, rest, key, value string) {
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
	if key != "" {
		f.values[rest][key] = value
		l.places[placeKey(f.prefix+rest, key)] = where
	}
}

// placeKey is the key of an option in places.
func placeKey(section, name string) string { return strings.ToLower(section) + "." + name }

// addUnknown collects an option or a section that is not declared. In a file or in the environment it may
// belong to another program, unless why is not empty; in any other source it is an error.
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

// readSecret sets an option from the file that key names. Other users must not be able to read the file.
func (l *loader) readSecret(o *option, r rank, where, key, path string) {
	fail := func(format string, args ...any) {
		o.bad = true
		l.addError("%s: [%s] %s: %s", where, o.section, key, fmt.Sprintf(format, args...))
	}
	if o.rank == r && o.byFile == "" {
		fail("%s is set, too: remove one of them", o.name)
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
		fail("all users can read or write %s, its mode is %04o: run chmod 0600", path, info.Mode().Perm())
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
	o.setValue(r, where, strings.TrimRight(string(raw), "\r\n"), false)
	o.byFile = key
}

// urlPassword matches a URL up to the end of its password.
var urlPassword = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s@]+@`)

// maskPasswords replaces passwords in URLs by ***, also in options without the tag secret.
func maskPasswords(s string) string { return urlPassword.ReplaceAllString(s, "$1:***@") }

// listValues returns the options in the order of allOptions.
func (l *loader) listValues() (out []Value) {
	for o := range l.allOptions() {
		out = append(out, Value{Section: o.section, Name: o.name, Value: o.maskedValue(), Where: o.where, Wrong: o.bad})
	}
	return out
}

// maskedValue returns the value without secrets.
func (o *option) maskedValue() string {
	if o.hasTag("secret") && o.value != "" {
		return "***"
	}
	return maskPasswords(o.value)
}
