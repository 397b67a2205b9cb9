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
	"github.com/armature-go/armature/internal/text"
)

// defaultSection is where options stand that no section struct is around of.
const defaultSection = "DEFAULT"

// rank is how much a source counts, the least first; each file has one of its own.
type rank int

const (
	rankDefaults  rank = 1
	rankFile      rank = 2 // of the first one
	rankEnv       rank = math.MaxInt - 2
	rankFlags     rank = math.MaxInt - 1
	rankOverrides rank = math.MaxInt
)

func (r rank) file() bool { return r >= rankFile && r < rankEnv }

type loader struct {
	options map[string]map[string]*option // by section and name
	aliases map[string]map[string]*option // by older ones
	byCase  map[string]string             // the declared sections, by their names in lower case
	free    []free
	strict  *option                      // the option that says whether unknown ones are errors
	next    rank                         // of the next file
	others  map[string]map[string]string // what stands in files, and nobody has declared
	unknown []unknown
	places  map[string]string // where what stands in free sections does, by SECTION.NAME
	files   []string          // that were read
	unread  bool              // a file could not be
	warns   []string
	errs    []error
}

// unknown is something in a file or in the environment that is not declared.
type unknown struct {
	text string
	// protects says that an option that protects may be meant: then it is never ignored.
	protects bool
}

// free is a declared family of sections with raw values.
type free struct {
	prefix string
	values map[string]map[string]string
	field  reflect.Value
}

func newLoader() *loader {
	return &loader{
		options: map[string]map[string]*option{defaultSection: {}}, aliases: map[string]map[string]*option{},
		byCase: map[string]string{}, others: map[string]map[string]string{}, places: map[string]string{}, next: rankFile,
	}
}

// load fills the struct work.
func load(work reflect.Value, src Source) (*loader, error) {
	l := newLoader()
	l.declare(work, defaultSection)
	for section := range l.options {
		l.byCase[strings.ToLower(section)] = section
	}
	for section := range l.aliases {
		if l.options[section] == nil {
			l.byCase[strings.ToLower(section)] = section
		}
	}
	l.named(rankDefaults, "program's default ", src.Defaults)
	for _, path := range src.Files {
		l.path(path)
	}
	l.env(src.Env)
	l.named(rankFlags, "flag ", src.Flags)
	l.named(rankOverrides, "program's override ", src.Overrides)
	lenient := src.Lenient
	if l.strict != nil && l.strict.assign(l.strict.value) == nil {
		lenient = lenient || !l.strict.field.Bool()
	}
	for _, u := range l.unknown {
		switch {
		case !lenient:
			l.fail("%s", u.text)
		case u.protects:
			l.fail("%s; it is not ignored, though unknown options are: an option that protects may be meant", u.text)
		default:
			l.warnf("ignored: %s", u.text)
		}
	}
	if lenient {
		l.expand()
	}
	l.assign()
	if l.errs == nil {
		if v, ok := reflect.TypeAssert[interface{ Validate() error }](work.Addr()); ok {
			if err := v.Validate(); err != nil {
				l.errs = append(l.errs, fault.New(fault.Invalid, "%w", err))
			}
		}
	}
	return l, errors.Join(l.errs...)
}

// assign sets the fields of all options.
func (l *loader) assign() {
	for o := range l.all() {
		switch {
		case o.is("required") && o.value == "":
			l.fail("[%s] %s is required; set it in a file, or as %s", o.section, o.name, envName(o.section, o.name))
			o.bad = true
			continue
		case o.tag.Get("removed") != "":
			if o.where != "default" {
				l.warnf("%s: [%s] %s has no effect: %s", o.where, o.section, o.name, o.tag.Get("removed"))
			}
			continue
		case o.tag.Get("unsupported") != "" && o.where != "default" && o.value != o.tag.Get("default"):
			l.fail("%s: [%s] %s = %s is not supported: %s", o.where, o.section, o.name, o.shown(), o.tag.Get("unsupported"))
			o.bad = true
			continue
		case o.unset():
			continue // the field has its zero value
		}
		if err := o.assign(o.value); err != nil {
			l.fail("%s: [%s] %s: %s", o.where, o.section, o.name, o.wrong(err))
			o.reset()
		}
	}
}

// reset gives the field of an option whose value is wrong its default.
func (o *option) reset() {
	o.bad = true
	o.field.SetZero()
	if text := o.tag.Get("default"); text != "" {
		o.values = nil
		_ = o.assign(text) // it was right when the option was declared
	}
}

func (l *loader) fail(format string, args ...any) {
	l.errs = append(l.errs, fault.New(fault.Invalid, format, args...))
}

func (l *loader) warnf(format string, args ...any) {
	l.warns = append(l.warns, fmt.Sprintf(format, args...))
}

// warn logs the warnings that were not said before.
func (l *loader) warn(src Source, said map[string]bool) {
	log := src.Logger
	if log == nil {
		log = slog.Default()
	}
	for _, w := range l.warns {
		if !said[w] {
			said[w] = true
			log.Warn("configuration: " + w)
		}
	}
}

// all returns the options by section and name.
func (l *loader) all() func(yield func(*option) bool) {
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

// declare finds the options in a struct.
func (l *loader) declare(v reflect.Value, section string) {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		tag := field.Tag
		switch {
		case tag.Get("ini") != "":
			o := newOption(f, field, section)
			if l.options[section][o.name] != nil {
				panic("config: field " + field.Name + ": its option is declared twice")
			}
			l.options[section][o.name] = o
			if o.is("strict") {
				l.strict = o
			}
			l.declareAliases(o)
		case tag.Get("section") != "":
			s := tag.Get("section")
			if f.Kind() != reflect.Struct || !f.CanSet() {
				panic("config: field " + field.Name + ": the tag section is for an exported struct, not for " + f.Type().String())
			}
			if l.options[s] == nil {
				l.options[s] = map[string]*option{}
			}
			l.declare(f, s)
		case tag.Get("sections") != "":
			if f.Type() != reflect.TypeFor[map[string]map[string]string]() || !f.CanSet() {
				panic("config: field " + field.Name + ": the tag sections is for an exported map[string]map[string]string, not for " + f.Type().String())
			}
			values := map[string]map[string]string{}
			f.Set(reflect.ValueOf(values))
			l.free = append(l.free, free{tag.Get("sections"), values, f})
		case field.Anonymous && f.Kind() == reflect.Struct:
			l.declare(f, section)
		}
	}
}

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

// path reads a file, or the files of a directory.
func (l *loader) path(path string) {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		l.file(path)
		return
	}
	var entries []fs.DirEntry
	if err == nil {
		entries, err = os.ReadDir(path)
	}
	if err != nil {
		l.fail("read configuration: %w", err)
		l.unread = true
		return
	}
	for _, e := range entries { // by name
		if !e.IsDir() && filepath.Ext(e.Name()) == ".conf" && e.Name()[0] != '.' {
			l.file(filepath.Join(path, e.Name()))
		}
	}
}

func (l *loader) file(path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		l.fail("read configuration: %w", err)
		l.unread = true
		return
	}
	l.files = append(l.files, path)
	entries, errs := parse(path, string(text))
	l.errs = append(l.errs, errs...)
	for _, e := range entries {
		l.set(l.next, fmt.Sprintf("%s:%d", path, e.line), e.section, e.key, e.value)
	}
	l.next++
}

func (l *loader) named(r rank, what string, values map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		section, key, ok := strings.Cut(name, ".")
		if !ok {
			section, key = defaultSection, name
		}
		l.set(r, what+name, section, key, values[name])
	}
}

func envName(section, name string) string {
	return strings.ToUpper("OS_" + strings.ReplaceAll(section, "-", "_") + "__" + strings.ReplaceAll(name, "-", "_"))
}

// env looks for the declared options only. A name in the environment is in
// upper case, so the sections' and options' own case does not matter.
func (l *loader) env(env []string) {
	vars := make(map[string]string, len(env))
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "OS_") {
			vars[k] = v
		}
	}
	known := map[string]bool{}
	look := func(section, name string) {
		k := envName(section, name)
		known[k] = true
		if v, ok := vars[k]; ok {
			l.set(rankEnv, "environment "+k, section, name, v)
		}
	}
	for _, section := range slices.Sorted(maps.Keys(l.aliases)) {
		for _, name := range slices.Sorted(maps.Keys(l.aliases[section])) {
			look(section, name)
		}
	}
	for o := range l.all() {
		look(o.section, o.name)
		if o.is("secret") {
			look(o.section, o.name+fileSuffix)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(vars)) { // of another program's section, or misspelt
		for section := range l.options {
			if name, ok := strings.CutPrefix(k, envName(section, "")); ok && !known[k] {
				name = strings.ToLower(name)
				l.unknown = append(l.unknown, unknown{fmt.Sprintf("environment %s: [%s] %s: no such option%s", k, section, name, l.hint(section, name)), l.protected(section, name)})
			}
		}
	}
}

// fileSuffix makes the name of the option that names a file with a secret.
const fileSuffix = "_file"

// set takes one value. An empty key declares that the section stands there.
func (l *loader) set(r rank, where, section, key, value string) {
	if section != defaultSection {
		if known, ok := l.byCase[strings.ToLower(section)]; ok && known != defaultSection {
			section = known
		}
	}
	if o := l.options[section][key]; o != nil {
		if o.byFile != "" && o.rank == r {
			l.fail("%s: [%s] %s stands beside %s, which names a file with it: only one of them can count", where, section, key, o.byFile)
			o.bad = true
			return
		}
		o.take(r, where, value, false)
		return
	}
	if name, ok := strings.CutSuffix(key, fileSuffix); ok {
		if o := l.options[section][name]; o != nil && o.is("secret") {
			l.secret(o, r, where, key, value)
			return
		}
	}
	if o := l.aliases[section][key]; o != nil {
		l.warnf("%s: [%s] %s is called [%s] %s now", where, section, key, o.section, o.name)
		if o.rank != r || o.byAlias {
			o.take(r, where, value, true)
		}
		return
	}
	if r.file() {
		if l.others[section] == nil {
			l.others[section] = map[string]string{}
		}
		l.others[section][key] = value
	}
	if l.options[section] != nil {
		if key != "" {
			l.strange(r, l.protected(section, key), "%s: [%s] %s: no such option%s", where, section, key, l.hint(section, key))
		}
		return
	}
	if _, ok := l.aliases[section]; ok && key == "" {
		return // options that stood there stand elsewhere now
	}
	for _, f := range l.free {
		if n := len(f.prefix); len(section) > n && strings.EqualFold(section[:n], f.prefix) {
			rest := section[n:]
			if f.values[rest] == nil {
				f.values[rest] = map[string]string{}
			}
			l.places[section+"."+key] = where
			if key != "" {
				f.values[rest][key] = value
			}
			return
		}
	}
	switch {
	case key == "":
		l.strange(r, l.protected(section, ""), "%s: [%s]: no such section%s", where, section, text.Nearest(section, maps.Keys(l.options)))
	case !r.file():
		l.strange(r, false, "%s: no such section%s", where, text.Nearest(section, maps.Keys(l.options)))
	default: // a file's section was told once, at its head
	}
}

// strange is something that is not declared. Only in files may it be another program's.
func (l *loader) strange(r rank, protects bool, format string, args ...any) {
	if r.file() {
		l.unknown = append(l.unknown, unknown{fmt.Sprintf(format, args...), protects})
		return
	}
	l.fail(format, args...)
}

// mistyped is how many bytes a name may differ from another one that may be meant.
const mistyped = 2

// protected reports whether a name that is not declared may be meant for an option with the tag
// protects: one of a similar name, or of the same name in another section; or, without a name,
// whether the section's own name is similar to that of a section with such options.
func (l *loader) protected(section, name string) bool {
	for o := range l.all() {
		similar := text.Distance(strings.ToLower(section), strings.ToLower(o.section)) <= mistyped
		if name != "" {
			similar = o.name == name || o.section == section && text.Distance(name, o.name) <= mistyped
		}
		if o.is("protects") && similar {
			return true
		}
	}
	return false
}

func (o *option) take(r rank, where, value string, byAlias bool) {
	if !o.is("multi") || !r.file() || !o.rank.file() {
		o.values = nil
	}
	o.values = append(o.values, value)
	if o.is("multi") {
		value = strings.Join(o.values, "\n")
	}
	o.rank, o.where, o.value, o.byAlias, o.byFile = r, where, value, byAlias, ""
}

// maxSecret is how long a file with a secret may be, in bytes.
const maxSecret = 64 << 10

// secret reads a secret from a file.
func (l *loader) secret(o *option, r rank, where, key, path string) {
	fail := func(format string, args ...any) {
		o.bad = true
		l.fail("%s: [%s] %s: %s", where, o.section, key, fmt.Sprintf(format, args...))
	}
	if o.rank == r && o.byFile == "" {
		fail("it stands beside %s: only one of them can count", o.name)
		return
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		fail("%v", err)
		return
	case !info.Mode().IsRegular():
		fail("%s is not a file", path)
		return
	case info.Mode().Perm()&0o006 != 0:
		fail("everybody can read or write %s, whose mode is %04o: make it 0600", path, info.Mode().Perm())
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
	o.take(r, where, strings.TrimRight(string(raw), "\r\n"), false)
	o.byFile = key
}

// password is one in a URL.
var password = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s@]+@`)

// redact hides passwords in URLs, also of options that nobody has marked as secret.
func redact(s string) string { return password.ReplaceAllString(s, "$1:***@") }

// values returns the options as they are.
func (l *loader) values() (out []Value) {
	for o := range l.all() {
		out = append(out, Value{Section: o.section, Name: o.name, Value: o.shown(), Where: o.where, Wrong: o.bad})
	}
	return out
}

// shown returns the value as people may see it.
func (o *option) shown() string {
	if o.is("secret") && o.value != "" {
		return "***"
	}
	return redact(o.value)
}
