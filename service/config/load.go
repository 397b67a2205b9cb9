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
	rankFile      rank = 2 // rank of the first file; the second file has 3
	rankEnv       rank = math.MaxInt - 2
	rankFlags     rank = math.MaxInt - 1
	rankOverrides rank = math.MaxInt
)

// isFile reports whether r is the rank of a file.
func (r rank) isFile() bool { return r >= rankFile && r < rankEnv }

// loader collects the options of a struct, their values from all sources, and the errors and warnings.
type loader struct {
	options  map[string]map[string]*option // the keys are the section and the name
	aliases  map[string]map[string]*option // the keys are the older section and the older name
	byCase   map[string]string             // declared sections by their names in lower case
	families []family
	strict   *option                      // the option with the tag strict, or nil
	next     rank                         // rank of the next file
	others   map[string]map[string]string // undeclared options in files, with their values; variables may use them
	unknown  []unknown
	places   map[string]string // origins of the options in families, by placeKey
	seen     map[string]string // origins of the options that the current file has set, by placeKey
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
	why  string // why the name may be meant for protection, so that it is an error even in lenient mode; "": it is not meant so
}

func newLoader() *loader {
	return &loader{
		options: map[string]map[string]*option{defaultSection: {}}, aliases: map[string]map[string]*option{},
		byCase: map[string]string{}, others: map[string]map[string]string{}, places: map[string]string{}, next: rankFile,
	}
}

// loadStruct sets the fields of a struct, work, from all sources. The loader is never nil.
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
	l.setFlags(src)
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
	l.storeMembers()
	if !l.unread {
		l.errs = append(l.errs, l.validateStruct(work, defaultSection)...)
	}
	return l, errors.Join(l.errs...)
}

// reportUnknown reports unknown options and sections as errors. In lenient mode it reports those that cannot be meant for
// protection as warnings.
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

// assignFields sets the fields of all options, and collects the errors of their values.
func (l *loader) assignFields() {
	for o := range l.allOptions() {
		switch {
		case o.hasTag("required") && (o.value == "" || o.isUnset()):
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
			o.resetDefault()
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

// hasDefaultValue reports whether the value means the same as the default: "False" is false. It changes the field.
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
			l.declareFamily(f, field)
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
	l.seen = map[string]string{}
	for _, e := range entries {
		l.setKey(l.next, fmt.Sprintf("%s:%d", path, e.line), e.section, e.key, e.value)
	}
	l.next++
}

var (
	// urlUsers matches one URL, or a list of URLs, up to the last @.
	urlUsers = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://\S*@`)
	// urlScheme matches the beginning of a URL. In a list of URLs it also matches the end of the host before the URL.
	urlScheme = regexp.MustCompile(`^([^@,:]*,)?[A-Za-z][A-Za-z0-9+.-]*://`)
)

// maskPasswords replaces passwords in URLs by ***, even in options without the tag secret. A URL may have several hosts, each
// with a user and a password, and a value may be a list of URLs. A password may have an @ that is not encoded. If the form is
// not clear, a part of a host is also masked, so that no part of a password is shown.
func maskPasswords(s string) string {
	return urlUsers.ReplaceAllStringFunc(s, func(found string) string {
		var out strings.Builder
		for part := range strings.SplitAfterSeq(found, "@") {
			scheme := urlScheme.FindString(part)
			user, _, hasPassword := strings.Cut(part[len(scheme):], ":")
			switch {
			case part == "": // after the last @
			case hasPassword:
				out.WriteString(scheme + user + ":***@")
			case scheme != "": // a user without a password
				out.WriteString(part)
			default: // the rest of a password
				out.WriteString("***@")
			}
		}
		return out.String()
	})
}

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
