package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/armature-go/armature/fault"
)

// Config is a configuration that can be reloaded while it is in use. T is the struct of options. A Config is
// safe for concurrent use. It is a Part and a Reloader of package service: SIGHUP reloads it.
type Config[T any] struct {
	src     Source
	current atomic.Pointer[loaded[T]]

	mu     sync.Mutex      // one reload at a time
	logged map[string]bool // the warnings that were logged
	hooks  []hook[T]
}

// loaded is the result of one load. It does not change.
type loaded[T any] struct {
	opts   T
	values []Value
	files  []string
	places map[string]string
}

// hook is a pair of functions of OnChange.
type hook[T any] struct {
	check func(old, next *T) error
	apply func(old, next *T)
}

// Open loads a configuration. It fails and panics as [Load] does.
func Open[T any](src Source) (*Config[T], error) {
	c, err := Inspect[T](src)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Inspect works like [Open], for a tool that lists all errors of a configuration. With an error it still returns a
// Config, in which options with a wrong value have their defaults, see [Value.Wrong]. It returns no Config if a
// file cannot be read. If Inspect has returned an error, do not run a service with the Config, and do not reload it.
func Inspect[T any](src Source) (*Config[T], error) {
	c := &Config[T]{src: src, logged: map[string]bool{}}
	next := new(loaded[T])
	l, err := loadStruct(structOf(&next.opts), src)
	if l.unread {
		return nil, err
	}
	l.logWarnings(src, c.logged)
	next.values, next.files, next.places = l.listValues(), l.files, l.places
	c.current.Store(next)
	return c, err
}

// Files returns the files that were read: a later file overrides an earlier one. The caller must not
// change the result.
func (c *Config[T]) Files() []string { return c.current.Load().files }

// Where returns the origin of an option's value, as in Value.Where. The option may belong to a section of a family,
// whose name is case-insensitive. For such a section and an empty name, the result is the origin of the section's
// head, or of its first option if it has no head. If the option or the section does not exist, the result is "".
func (c *Config[T]) Where(section, name string) string {
	now := c.current.Load()
	for _, v := range now.values {
		if v.Name == name && (v.Section == section || section != defaultSection && v.Section != defaultSection && strings.EqualFold(v.Section, section)) {
			return v.Where
		}
	}
	return now.places[placeKey(section, name)]
}

// Current returns the current options. The struct does not change, and the caller must not change it: a
// reload makes a new struct.
func (c *Config[T]) Current() *T { return &c.current.Load().opts }

// Values returns all options in the order of their sections and names. Secrets are masked. The caller
// must not change the result.
func (c *Config[T]) Values() []Value { return c.current.Load().values }

// OnChange adds two functions for a reload that changes an option. Each function may be nil. All check functions are called
// first, in the order of the calls of OnChange. If one of them returns an error, nothing changes. Otherwise the new
// options become those of Current, and all apply functions are called. The functions must not call OnChange or Reload,
// which would block for ever.
func (c *Config[T]) OnChange(check func(old, next *T) error, apply func(old, next *T)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks = append(c.hooks, hook[T]{check, apply})
}

// Reload loads the configuration again. Options with the tag reloadable change all together. After an error no option has changed. A
// change of any other option, or of a family of sections without that tag, is logged and takes effect after a restart. The
// error is that of [Load] or of a check function, with code Invalid. One reload runs at a time; a second reload waits.
func (c *Config[T]) Reload(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, next := c.current.Load(), new(loaded[T])
	l, err := loadStruct(structOf(&next.opts), c.src)
	if err != nil {
		return err
	}
	next.values, next.files, next.places = l.listValues(), l.files, keepPlaces(l, old.places)
	changes := keepFixed(l, old, next, cmp.Or(c.src.Logger, slog.Default()))
	l.logWarnings(c.src, c.logged)
	if len(changes) == 0 {
		return nil
	}
	if err := c.checkReload(l, &old.opts, &next.opts); err != nil {
		return fmt.Errorf("reload configuration, nothing changed: %w", err)
	}
	c.current.Store(next)
	for _, fields := range changes {
		cmp.Or(c.src.Logger, slog.Default()).Info("option changed", fields...)
	}
	for _, h := range c.hooks {
		if h.apply != nil {
			h.apply(&old.opts, &next.opts)
		}
	}
	return nil
}

// keepFixed sets the options and families that cannot be reloaded back to their old values, and logs a warning for each one that
// would have changed. It returns the fields of a log line for each option that changes.
func keepFixed[T any](l *loader, old, next *loaded[T], log *slog.Logger) (changes [][]any) {
	oldLoader := newLoader()
	before := old.opts
	oldLoader.indexFields(reflect.ValueOf(&before).Elem(), defaultSection)
	for o := range l.allOptions() {
		prev := oldLoader.options[o.section][o.name]
		switch {
		case prev == nil: // the option is in a new section of a family
		case reflect.DeepEqual(o.field.Interface(), prev.field.Interface()):
		case o.reload:
			changes = append(changes, []any{"section", o.section, "option", o.name, "where", o.where, "value", o.maskedValue()})
		default:
			log.Warn("changed option requires a restart", "section", o.section, "option", o.name, "where", o.where)
			o.field.Set(prev.field)
			is := func(v Value) bool { return v.Section == o.section && v.Name == o.name }
			next.values[slices.IndexFunc(next.values, is)] = old.values[slices.IndexFunc(old.values, is)]
		}
	}
	for i := range l.families {
		f, prev := &l.families[i], &oldLoader.families[i]
		if f.elem != nil {
			changes = append(changes, f.keepMembers(prev, func(section string) {
				log.Warn("changed section requires a restart", "section", section)
				keepValues(old, next, section)
			})...)
			f.storeMembers()
			continue
		}
		switch {
		case reflect.DeepEqual(f.field.Interface(), prev.field.Interface()):
		case f.reload:
			changes = append(changes, []any{"sections", f.prefix + "*"})
			continue
		default:
			log.Warn("changed sections require a restart", "sections", f.prefix+"*")
		}
		f.field.Set(prev.field)
	}
	return changes
}

// keepValues gives a section the values that it had before a reload.
func keepValues[T any](old, next *loaded[T], section string) {
	next.values = slices.DeleteFunc(next.values, func(v Value) bool { return v.Section == section })
	for _, v := range old.values {
		if v.Section == section {
			next.values = append(next.values, v)
		}
	}
	slices.SortStableFunc(next.values, func(a, b Value) int { return strings.Compare(a.Section, b.Section) })
}

// keepPlaces returns the origins of the options in families after a reload. Families that cannot be reloaded keep their old origins.
func keepPlaces(l *loader, old map[string]string) map[string]string {
	places := map[string]string{}
	for _, source := range []struct {
		places map[string]string
		reload bool
	}{{old, false}, {l.places, true}} {
		for key, where := range source.places {
			if slices.ContainsFunc(l.families, func(f family) bool {
				return f.reload == source.reload && strings.HasPrefix(key, strings.ToLower(f.prefix))
			}) {
				places[key] = where
			}
		}
	}
	return places
}

// checkReload returns Invalid, with the errors of the Validate methods or of the check functions, if one of them refuses a change.
func (c *Config[T]) checkReload(l *loader, old, next *T) error {
	errs := l.validateStruct(reflect.ValueOf(next).Elem(), defaultSection) // loadStruct has validated the new values, but not together with the options that stay
	for _, h := range c.hooks {
		if h.check != nil {
			if err := h.check(old, next); err != nil {
				errs = append(errs, fault.New(fault.Invalid, "%w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// indexFields finds the options and families of a struct as declareFields does, but does not set their
// fields.
func (l *loader) indexFields(v reflect.Value, section string) {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		tag := field.Tag
		switch {
		case tag.Get("ini") != "":
			l.options[section][tag.Get("ini")] = &option{field: f}
		case tag.Get("section") != "":
			s := tag.Get("section")
			if l.options[s] == nil {
				l.options[s] = map[string]*option{}
			}
			l.indexFields(f, s)
		case tag.Get("sections") != "":
			l.indexFamily(f, tag.Get("sections"))
		case field.Anonymous && f.Kind() == reflect.Struct:
			l.indexFields(f, section)
		}
	}
}

// indexFamily finds the sections of a family, and the options in them if the family is typed.
func (l *loader) indexFamily(v reflect.Value, prefix string) {
	f := family{prefix: prefix, field: v}
	if v.Type() != rawFamily {
		f.members = map[string]*member{}
		for rest, opts := range v.Seq2() {
			m := &member{rest: rest.String(), opts: reflect.New(opts.Type()).Elem()}
			m.opts.Set(opts)
			f.members[strings.ToLower(m.rest)] = m
			l.options[prefix+m.rest] = map[string]*option{}
			l.indexFields(m.opts, prefix+m.rest)
		}
	}
	l.families = append(l.families, f)
}

// Start does nothing and returns nil. With Start, Stop and Reload a Config is a part of a service.
func (c *Config[T]) Start(context.Context) error { return nil }

// Stop does nothing and returns nil.
func (c *Config[T]) Stop(context.Context) error { return nil }
