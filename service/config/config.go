// Package config fills a struct of options from INI files, the environment
// and flags, as oslo.config does, except that a name nobody declared is an
// error: a misspelt option must not be silently without effect.
//
//	type Options struct {
//		Workers  int    `ini:"workers" default:"4" help:"calls handled at once"`
//		Database struct {
//			Connection string `ini:"connection" secret:"true" help:"URL of the database"`
//		} `section:"database"`
//		Drivers map[string]map[string]string `sections:"driver_"`
//	}
//
//	var opts Options
//	err := config.Load(&opts, config.Source{Files: files, Env: os.Environ()})
//
// A field with the tag ini is an option: a string, bool, integer, float,
// [time.Duration] (a plain number is in seconds) or []string (separated by
// commas). Its further tags are default, in the form a file has it; help; and
// secret, which keeps the value out of errors. Options stand in [DEFAULT], or
// in the section of the struct field around them. A map field with the
// tag sections takes every section whose name starts so, with raw values, by
// the rest of the name: [driver_acme] is Drivers["acme"]. Embedded structs
// count as if their fields stood in the outer one; other fields are left alone.
//
// The package reads no environment by itself and expands no variables: a $ in a
// password stays.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Source says where values come from, the weakest first: an option's default,
// Files, Env, Flags.
type Source struct {
	// Files are read in this order: a later one overrides an earlier one.
	Files []string
	// Env are variables as of os.Environ. OS_DATABASE__CONNECTION is the option
	// connection of [database]; others are ignored, as they may be anybody's.
	Env []string
	// Flags are options given on the command line, as "workers" or
	// "database.connection".
	Flags map[string]string
}

// Load sets the options in the struct that opts points to. The error, with code
// Invalid, has one line for each thing that is wrong, which says where it
// stands, and opts is then as it was. It panics if the struct is not
// as the package comment says: a programmer's error.
func Load(opts any, src Source) error {
	target := reflect.ValueOf(opts)
	if target.Kind() != reflect.Pointer || target.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: Load of %T, want a pointer to a struct", opts))
	}
	target = target.Elem()
	work := reflect.New(target.Type()).Elem()
	work.Set(target)
	l := &loader{options: map[string]map[string]*option{defaultSection: {}}}
	l.declare(work, defaultSection)
	for _, file := range src.Files {
		l.file(file)
	}
	l.env(src.Env)
	for _, name := range slices.Sorted(maps.Keys(src.Flags)) {
		section, key, ok := strings.Cut(name, ".")
		if !ok {
			section, key = defaultSection, name
		}
		l.set("flag "+name, section, key, src.Flags[name])
	}
	for _, section := range slices.Sorted(maps.Keys(l.options)) {
		for _, name := range slices.Sorted(maps.Keys(l.options[section])) {
			o := l.options[section][name]
			if err := assign(o.field, o.value); err != nil {
				l.fail("%s: [%s] %s: %s", o.where, section, name, o.wrong(err))
			}
		}
	}
	if l.errs != nil {
		return errors.Join(l.errs...)
	}
	target.Set(work)
	return nil
}

// defaultSection is where options stand that no section struct is around of.
const defaultSection = "DEFAULT"

type option struct {
	field  reflect.Value
	secret bool
	value  string // the strongest seen so far
	where  string // it stands
}

// wrong says what is wrong with the value, which an error must not show if
// it is secret.
func (o *option) wrong(err error) string {
	if o.secret {
		return "the value " + err.Error()
	}
	return fmt.Sprintf("%q %s", o.value, err)
}

type loader struct {
	options map[string]map[string]*option // by section and name
	free    []free
	errs    []error
}

// free is a declared family of sections with raw values.
type free struct {
	prefix string
	values map[string]map[string]string
}

func (l *loader) fail(format string, args ...any) {
	l.errs = append(l.errs, fault.New(fault.Invalid, format, args...))
}

// declare finds the options in a struct.
func (l *loader) declare(v reflect.Value, section string) {
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag
		name := v.Type().Field(i).Name
		switch {
		case tag.Get("ini") != "":
			o := &option{field: f, secret: tag.Get("secret") == "true", value: tag.Get("default"), where: "default"}
			if !f.CanSet() || l.options[section][tag.Get("ini")] != nil {
				panic("config: field " + name + " is not exported, or its option is declared twice")
			}
			if o.value == "" && f.Kind() != reflect.String && f.Kind() != reflect.Slice {
				o.value = "0"
			}
			if err := assign(f, o.value); err != nil {
				panic("config: field " + name + ": default " + o.wrong(err))
			}
			l.options[section][tag.Get("ini")] = o
		case tag.Get("section") != "":
			s := tag.Get("section")
			if l.options[s] == nil {
				l.options[s] = map[string]*option{}
			}
			l.declare(f, s)
		case tag.Get("sections") != "":
			values := map[string]map[string]string{}
			f.Set(reflect.ValueOf(values))
			l.free = append(l.free, free{tag.Get("sections"), values})
		case v.Type().Field(i).Anonymous && f.Kind() == reflect.Struct:
			l.declare(f, section)
		}
	}
}

func (l *loader) file(path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		l.fail("read configuration: %w", err)
		return
	}
	entries, err := parse(path, string(text))
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	for _, e := range entries {
		l.set(fmt.Sprintf("%s:%d", path, e.line), e.section, e.key, e.value)
	}
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
	for section, options := range l.options {
		for name, o := range options {
			k := strings.ToUpper("OS_" + section + "__" + name)
			if v, ok := vars[k]; ok {
				o.value, o.where = v, "environment "+k
			}
		}
	}
}

// set takes one value. An empty key declares that the section stands there.
func (l *loader) set(where, section, key, value string) {
	if options, ok := l.options[section]; ok {
		switch o := options[key]; {
		case o != nil:
			o.value, o.where = value, where
		case key != "":
			l.fail("%s: [%s] %s: no such option%s", where, section, key, l.hint(section, key))
		}
		return
	}
	for _, f := range l.free {
		if rest, ok := strings.CutPrefix(section, f.prefix); ok && rest != "" {
			if f.values[rest] == nil {
				f.values[rest] = map[string]string{}
			}
			if key != "" {
				f.values[rest][key] = value
			}
			return
		}
	}
	switch {
	case key == "":
		l.fail("%s: [%s]: no such section%s", where, section, suggest(section, maps.Keys(l.options)))
	case strings.HasPrefix(where, "flag "):
		l.fail("%s: no such section%s", where, suggest(section, maps.Keys(l.options)))
	default: // a file's section was told once, at its head
	}
}

// hint names where the option could have been meant to stand.
func (l *loader) hint(section, key string) string {
	for _, other := range slices.Sorted(maps.Keys(l.options)) {
		if other != section && l.options[other][key] != nil {
			return "; it belongs to [" + other + "]"
		}
	}
	return suggest(key, maps.Keys(l.options[section]))
}

// suggest names the known name that is nearest to one that is not known.
func suggest(name string, known func(yield func(string) bool)) string {
	nearest := slices.SortedFunc(known, func(a, b string) int {
		return cmp.Or(cmp.Compare(distance(name, a), distance(name, b)), cmp.Compare(a, b))
	})
	if len(nearest) == 0 {
		return ""
	}
	return "; the nearest is " + nearest[0]
}

// distance is the Levenshtein distance, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
