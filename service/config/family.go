package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
)

// family is a declared family of sections, see the tag sections. A family with raw values has elem nil.
type family struct {
	prefix   string
	values   map[string]map[string]string // the values of a family with raw values
	elem     reflect.Type                 // type of the options of a typed family
	members  map[string]*member           // sections of a typed family, by the rest of their names in lower case
	field    reflect.Value
	protects bool // has the tag protects
	reload   bool // has the tag reloadable
}

// member is a section of a typed family.
type member struct {
	rest  string        // the section's name without the prefix of the family
	where string        // the section's first place
	opts  reflect.Value // the struct of its options
}

// rawFamily is the type of a family with raw values.
var rawFamily = reflect.TypeFor[map[string]map[string]string]()

// declareFamily adds a family. It panics if the type of the field or its tags are wrong, or if a section could belong to two families.
func (l *loader) declareFamily(v reflect.Value, field reflect.StructField) {
	t := v.Type()
	typed := t.Kind() == reflect.Map && t.Key() == reflect.TypeFor[string]() && t.Elem().Kind() == reflect.Struct
	if !v.CanSet() || t != rawFamily && !typed {
		panic("config: field " + field.Name + ": the tag sections requires an exported map[string]map[string]string, or an exported map[string]T with a struct T, not " + t.String())
	}
	prefix := strings.ToLower(field.Tag.Get("sections"))
	for _, other := range l.families {
		if p := strings.ToLower(other.prefix); strings.HasPrefix(p, prefix) || strings.HasPrefix(prefix, p) {
			panic("config: field " + field.Name + ": its sections could also belong to the family " + other.prefix + ": give the families names of which none begins with the other")
		}
	}
	f := family{prefix: field.Tag.Get("sections"), field: v, protects: field.Tag.Get("protects") == "true", reload: field.Tag.Get("reloadable") == "true"}
	if typed {
		f.elem, f.members = t.Elem(), map[string]*member{}
		if err := checkMember(f.elem, f.prefix); err != nil {
			panic("config: field " + field.Name + ": " + err.Error())
		}
		v.Set(reflect.MakeMap(t))
	} else {
		f.values = map[string]map[string]string{}
		v.Set(reflect.ValueOf(f.values))
	}
	l.families = append(l.families, f)
}

// sampleName stands for the rest of the name of a section of a family in texts.
const sampleName = "NAME"

// checkMember returns an error if a struct cannot be a section of a family. It panics if a tag of its fields is wrong.
func checkMember(elem reflect.Type, prefix string) error {
	l := newLoader()
	section := prefix + sampleName
	delete(l.options, defaultSection)
	l.options[section] = map[string]*option{}
	l.declareFields(reflect.New(elem).Elem(), section)
	switch {
	case len(l.options) > 1 || len(l.families) > 0:
		return fmt.Errorf("the options of a section of a family cannot have sections of their own, as %v has", elem)
	case l.strict != nil:
		return fmt.Errorf("%v has an option with the tag strict, which must be outside of a family", elem)
	case len(l.options[section]) == 0:
		return fmt.Errorf("%v has no field with the tag ini", elem)
	}
	for older := range l.aliases {
		if older != section {
			return fmt.Errorf("%v has an option with the older section %s: options of a family have only older names in the same section", elem, older)
		}
	}
	return nil
}

// typedFamily returns the typed family that a section belongs to, and the rest of the section's name, or nil.
func (l *loader) typedFamily(section string) (f *family, rest string) {
	for i := range l.families {
		f := &l.families[i]
		if f.elem == nil || len(section) <= len(f.prefix) || !strings.EqualFold(section[:len(f.prefix)], f.prefix) {
			continue
		}
		rest := section[len(f.prefix):]
		if _, declared := l.byCase[strings.ToLower(section)]; declared && f.members[strings.ToLower(rest)] == nil {
			continue // a section of its own, whose name begins like the names of the family
		}
		return f, rest
	}
	return nil, ""
}

// memberSection returns the name of a section as it was declared. The first value of a section of a typed family declares the
// section. The result ok is false if the name differs from that of another section only in upper and lower case, or in characters that environment
// variables do not have.
func (l *loader) memberSection(r rank, where, section, key string) (name string, ok bool) {
	f, rest := l.typedFamily(section)
	if f == nil {
		return l.declaredSection(section), true
	}
	name = f.prefix + rest
	known := f.members[strings.ToLower(rest)]
	switch {
	case known == nil:
		if twin := f.twin(rest); twin != nil {
			if key == "" || !r.isFile() { // once for each section of a file
				l.addError("%s: [%s]: the name has the same variables %s... as [%s%s] (%s): rename or remove one of the sections", where, section, envName(name, ""), f.prefix, twin.rest, twin.where)
			}
			return "", false
		}
		l.declareMember(f, rest, where)
	case known.rest != rest:
		if key == "" || !r.isFile() { // once for each section of a file
			l.addError("%s: [%s]: the name differs from [%s%s] (%s) only in upper and lower case: rename or remove one of the sections", where, section, f.prefix, known.rest, known.where)
		}
		return "", false
	}
	return name, true
}

// twin returns the section of the family with the same variables of the environment, or nil.
func (f *family) twin(rest string) *member {
	for _, m := range f.members {
		if envName(m.rest, "") == envName(rest, "") {
			return m
		}
	}
	return nil
}

// declareMember adds a section of a typed family.
func (l *loader) declareMember(f *family, rest, where string) {
	m := &member{rest: rest, where: where, opts: reflect.New(f.elem).Elem()}
	section := f.prefix + rest
	f.members[strings.ToLower(rest)] = m
	l.byCase[strings.ToLower(section)] = section
	l.options[section] = map[string]*option{}
	l.declareFields(m.opts, section)
	for _, o := range l.options[section] {
		o.member, o.reload = true, o.reload || f.reload
	}
	l.places[placeKey(section, "")] = where
}

// storeMembers sets the fields of the typed families.
func (l *loader) storeMembers() {
	for i := range l.families {
		l.families[i].storeMembers()
	}
}

func (f *family) storeMembers() {
	if f.elem == nil {
		return
	}
	out := reflect.MakeMap(f.field.Type())
	for _, m := range f.members {
		out.SetMapIndex(reflect.ValueOf(m.rest), m.opts)
	}
	f.field.Set(out)
}

// optionOf returns the name of the option in a section that a variable names, or "".
func (l *loader) optionOf(section, variable string) string {
	names := l.namesIn(section)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		switch {
		case envName(section, name) == variable:
			return name
		case names[name].hasTag("secret") && envName(section, name+fileSuffix) == variable:
			return name + fileSuffix
		}
	}
	return ""
}

// setMemberVariable sets the option that a variable names in a section of a typed family. The section need not be in a file; then its name
// is in lower case. A section is not declared if only variables with unknown options name it. The function returns false if the variable
// names no section of the family.
func (l *loader) setMemberVariable(f *family, variable, where, value string) bool {
	tail, found := strings.CutPrefix(variable, strings.TrimSuffix(envName(f.prefix, ""), "__"))
	rest, key, ok := strings.Cut(tail, "__")
	if !found || !ok || rest == "" || key == "" {
		return false
	}
	section := f.prefix + strings.ToLower(rest)
	probe := newLoader()
	probe.options[section] = map[string]*option{}
	probe.declareFields(reflect.New(f.elem).Elem(), section)
	name := probe.optionOf(section, variable)
	if name == "" {
		name = strings.ToLower(key)
		l.addUnknown(rankEnv, probe.mayProtect(section, name, value), "%s: [%s] %s: no such option%s", where, section, name, probe.hintOption(section, name))
		return true
	}
	l.setKey(rankEnv, where, section, name, value)
	return true
}

// keepMembers compares the sections of a typed family with those before a reload. If the family cannot be reloaded, keepMembers keeps
// the old sections. It returns the changes, and calls the function keep for each section that stays as it was.
func (f *family) keepMembers(before *family, keep func(section string)) (changes [][]any) {
	for _, key := range slices.Sorted(maps.Keys(f.members)) {
		if m, old := f.members[key], before.members[key]; old == nil || old.rest != m.rest {
			if f.reload {
				changes = append(changes, []any{"section", f.prefix + m.rest, "change", "added", "where", m.where})
				continue
			}
			delete(f.members, key)
			keep(f.prefix + m.rest)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(before.members)) {
		if m, now := before.members[key], f.members[key]; now == nil || now.rest != m.rest {
			if f.reload {
				changes = append(changes, []any{"section", f.prefix + m.rest, "change", "removed"})
				continue
			}
			f.members[key] = m
			keep(f.prefix + m.rest)
		}
	}
	return changes
}

// validateStruct calls Validate of each struct of options within v, and then of v itself. The value v is addressable.
func (l *loader) validateStruct(v reflect.Value, section string) (errs []error) {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		switch tag := field.Tag; {
		case tag.Get("ini") != "":
		case tag.Get("section") != "":
			errs = append(errs, l.validateStruct(f, tag.Get("section"))...)
		case tag.Get("sections") != "" && f.Type() != rawFamily:
			for _, rest := range slices.SortedFunc(slices.Values(f.MapKeys()), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
				one := reflect.New(f.Type().Elem()).Elem() // a value in a map has no address
				one.Set(f.MapIndex(rest))
				errs = append(errs, l.validateStruct(one, tag.Get("sections")+rest.String())...)
			}
		case field.Anonymous && f.Kind() == reflect.Struct && f.CanSet():
			errs = append(errs, l.validateStruct(f, section)...)
		}
	}
	for _, err := range l.validateOne(v, section) {
		// The Validate of an embedded struct is also a method of the outer struct.
		if !slices.ContainsFunc(errs, func(known error) bool { return known.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	return errs
}

// validateOne calls Validate of v, if it has one.
func (l *loader) validateOne(v reflect.Value, section string) (errs []error) {
	if !v.Addr().CanInterface() {
		return nil
	}
	has, ok := reflect.TypeAssert[interface{ Validate() error }](v.Addr())
	if !ok {
		return nil
	}
	for _, err := range splitJoined(has.Validate()) {
		if !l.followsFrom(section, err) {
			errs = append(errs, l.describeInvalid(section, err))
		}
	}
	return errs
}

// followsFrom reports whether an error of Validate is left out because it may follow from another error: it names an option whose wrong value
// was replaced by the default, or it names no option and other errors exist.
func (l *loader) followsFrom(section string, err error) bool {
	names := strings.Fields(optionIn(err))
	for _, name := range names {
		if o := l.optionNamed(section, name); o != nil && o.bad {
			return true
		}
	}
	return len(names) == 0 && l.errs != nil
}

// optionNamed returns the declared option NAME of the section, or SECTION.NAME, or nil.
func (l *loader) optionNamed(section, name string) *option {
	if s, n, ok := strings.Cut(name, "."); ok {
		section, name = s, n
	}
	return l.options[section][name]
}

// splitJoined returns the errors that errors.Join has joined.
func splitJoined(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, one := range joined.Unwrap() {
		out = append(out, splitJoined(one)...)
	}
	return out
}

// describeInvalid adds to an error of Validate the section, or the place of the option that the error names in its Meta.
func (l *loader) describeInvalid(section string, err error) error {
	name := l.firstSet(section, strings.Fields(optionIn(err)))
	if name != "" {
		if s, n, ok := strings.Cut(name, "."); ok {
			section, name = s, n
		}
		if o := l.options[section][name]; o != nil {
			o.bad = true
			if o.where != "default" {
				return fault.New(fault.Invalid, "%s: [%s] %s: %w", o.where, section, name, err)
			}
			return fault.New(fault.Invalid, "[%s] %s: %w", section, name, err)
		}
	}
	if where := l.places[placeKey(section, name)]; name != "" && where != "" { // in a family with raw values
		return fault.New(fault.Invalid, "%s: [%s] %s: %w", where, section, name, err)
	} else if where != "" {
		return fault.New(fault.Invalid, "%s: [%s]: %w", where, section, err)
	}
	if section == defaultSection {
		return fault.New(fault.Invalid, "%w", err)
	}
	return fault.New(fault.Invalid, "[%s]: %w", section, err)
}

// firstSet returns the first of several options that a source sets, or the first one if none is set, or "" if names is
// empty.
func (l *loader) firstSet(section string, names []string) string {
	for _, name := range names {
		if o := l.optionNamed(section, name); o != nil && o.where != "default" && !strings.HasPrefix(o.where, "program's default ") {
			return name
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// optionIn returns the names of the options that an error is about, separated by spaces, in the Meta of a fault, or "".
func optionIn(err error) string {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f.Meta["option"]
	}
	return ""
}
