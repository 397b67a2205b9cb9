package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/armature-go/armature/fault"
)

// Config is a configuration that can be read again while it is in use. It is safe for
// concurrent use, and a part of package service that SIGHUP reloads.
type Config[T any] struct {
	src     Source
	current atomic.Pointer[loaded[T]]

	mu    sync.Mutex // one reload at a time
	said  map[string]bool
	hooks []hook[T]
}

// loaded is one reading of a configuration.
type loaded[T any] struct {
	opts   T
	values []Value
	files  []string
	places map[string]string
}

type hook[T any] struct {
	check func(old, next *T) error
	apply func(old, next *T)
}

// Open reads a configuration. Errors and panics are those of [Load].
func Open[T any](src Source) (*Config[T], error) {
	c, err := Inspect[T](src)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Inspect is Open for a tool that looks for everything that is wrong: beside an error the configuration
// has what is right, with the defaults of options that are [Value.Wrong]. It is nil if a file could not be
// read. A configuration that has an error is not for use, and must not be reloaded.
func Inspect[T any](src Source) (*Config[T], error) {
	c := &Config[T]{src: src, said: map[string]bool{}}
	next := new(loaded[T])
	l, err := load(pointer(&next.opts), src)
	if l.unread {
		return nil, err
	}
	l.warn(src, c.said)
	next.values, next.files, next.places = l.values(), l.files, l.places
	c.current.Store(next)
	return c, err
}

// Files returns the files that were read, in their order: a later one wins.
func (c *Config[T]) Files() []string { return c.current.Load().files }

// Where returns where an option stands, as [Value].Where; for an empty name, where the head of a section
// of a family does. Of what does not exist it is empty.
func (c *Config[T]) Where(section, name string) string {
	now := c.current.Load()
	for _, v := range now.values {
		if v.Section == section && v.Name == name {
			return v.Where
		}
	}
	return now.places[section+"."+name]
}

// Current returns the options. They do not change, and must not be changed: after a reload
// there are others.
func (c *Config[T]) Current() *T { return &c.current.Load().opts }

// Values returns each option with where it stands, by section and name; secrets are
// masked.
func (c *Config[T]) Values() []Value { return c.current.Load().values }

// OnChange adds what is to happen when a reload changes an option. First every check is
// asked, in the order in which they were added: an error of one, and nothing changes.
// Then, when the new options are those of Current, every apply is called. Each may be
// nil.
func (c *Config[T]) OnChange(check func(old, next *T) error, apply func(old, next *T)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks = append(c.hooks, hook[T]{check, apply})
}

// Reload reads everything again: all of it takes effect, or nothing does, and the error,
// as of [Load], says why. Only options that are reloadable change; a change of others,
// and of families of sections, is logged, and waits for a restart.
func (c *Config[T]) Reload(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, next := c.current.Load(), new(loaded[T])
	l, err := load(pointer(&next.opts), c.src)
	if err != nil {
		return err
	}
	was := newLoader()
	before := old.opts
	was.declareOnly(reflect.ValueOf(&before).Elem(), defaultSection)
	log := c.src.Logger
	if log == nil {
		log = slog.Default()
	}
	next.values, next.files, next.places = l.values(), l.files, l.places
	changed := false
	i := -1
	for o := range l.all() {
		i++
		prev := was.options[o.section][o.name]
		if reflect.DeepEqual(o.field.Interface(), prev.field.Interface()) {
			continue
		}
		if !o.is("reloadable") {
			log.Warn("configuration: a changed option waits for a restart", "section", o.section, "option", o.name, "where", o.where)
			o.field.Set(prev.field)
			next.values[i] = old.values[i]
			continue
		}
		changed = true
		log.Info("configuration: an option has changed", "section", o.section, "option", o.name, "where", o.where, "value", next.values[i].Value)
	}
	for i, f := range l.free {
		prev := was.free[i].field
		if !reflect.DeepEqual(f.field.Interface(), prev.Interface()) {
			log.Warn("configuration: changed sections wait for a restart", "sections", f.prefix+"*")
		}
		f.field.Set(prev)
	}
	l.warn(c.src, c.said)
	if !changed {
		return nil
	}
	var errs []error
	if v, ok := any(&next.opts).(interface{ Validate() error }); ok { // with the options that stay
		if err := v.Validate(); err != nil {
			errs = append(errs, fault.New(fault.Invalid, "%w", err))
		}
	}
	for _, h := range c.hooks {
		if h.check != nil {
			if err := h.check(&old.opts, &next.opts); err != nil {
				errs = append(errs, fault.New(fault.Invalid, "%w", err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the configuration stays as it was: %w", err)
	}
	c.current.Store(next)
	for _, h := range c.hooks {
		if h.apply != nil {
			h.apply(&old.opts, &next.opts)
		}
	}
	return nil
}

// declareOnly finds the options in a struct, and leaves their values.
func (l *loader) declareOnly(v reflect.Value, section string) {
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
			l.declareOnly(f, s)
		case tag.Get("sections") != "":
			l.free = append(l.free, free{field: f})
		case field.Anonymous && f.Kind() == reflect.Struct:
			l.declareOnly(f, section)
		}
	}
}

// Start does nothing: with Stop and Reload it makes the configuration a part of a service.
func (c *Config[T]) Start(context.Context) error { return nil }

// Stop does nothing.
func (c *Config[T]) Stop(context.Context) error { return nil }
