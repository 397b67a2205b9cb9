package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/internal/text"
)

// override is a rule in a file.
type override struct {
	name, text, where string
	check             check
}

// Reload reads the files again. Invalid, with all that is wrong, each with its file and
// line: the rules that were in force stay so. It is what SIGHUP does.
func (e *Enforcer) Reload(context.Context) error { return e.load() }

// Watch reads the files again if they have changed. It is for service.Loop.
func (e *Enforcer) Watch(context.Context) error {
	e.mu.Lock()
	seen := e.seen
	e.mu.Unlock()
	_, now, err := e.read()
	if err == nil && now == seen {
		return nil
	}
	return e.load()
}

func (e *Enforcer) load() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	overrides, seen, err := e.read()
	next, errs := e.compile(overrides)
	if err := errors.Join(append([]error{err}, errs...)...); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	e.set.Store(next)
	e.seen = seen
	return nil
}

// files returns the names of those that are read, in their order.
func (e *Enforcer) files() ([]string, error) {
	var out []string
	if e.cfg.File != "" {
		out = append(out, e.cfg.File)
	}
	for _, dir := range e.cfg.Dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, f := range entries { // by name
			if ext := filepath.Ext(f.Name()); !f.IsDir() && (ext == ".yaml" || ext == ".yml" || ext == ".json") {
				out = append(out, filepath.Join(dir, f.Name()))
			}
		}
	}
	return out, nil
}

// read reads the files, and returns a sum of all of them.
func (e *Enforcer) read() (out []override, sum string, err error) {
	names, err := e.files()
	if err != nil {
		return nil, "", err
	}
	var errs []error
	h := sha256.New()
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, _ = fmt.Fprintf(h, "%q %d\n%s", name, len(raw), raw) // a hash never fails
		list, ferrs := readFile(name, raw)
		out, errs = append(out, list...), append(errs, ferrs...)
	}
	return out, hex.EncodeToString(h.Sum(nil)), errors.Join(errs...)
}

// readFile reads a file from names to checks.
func readFile(name string, raw []byte) (out []override, errs []error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, []error{fmt.Errorf("%s: %w", name, err)}
	}
	if doc.Kind == 0 || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil // nothing but comments
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, []error{fmt.Errorf("%s:%d: want a map from names of rules to checks", name, top.Line)}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		k, v := top.Content[i], top.Content[i+1]
		where := fmt.Sprintf("%s:%d", name, k.Line)
		if line := seen[k.Value]; line > 0 {
			errs = append(errs, fmt.Errorf("%s: rule %s stands on line %d already", where, k.Value, line))
			continue
		}
		seen[k.Value] = k.Line
		c, text, err := fromYAML(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: rule %s: %w", where, k.Value, err))
			continue
		}
		out = append(out, override{k.Value, text, where, c})
	}
	return out, errs
}

// fromYAML reads a check: a text, or a list of lists, of which one must hold whole.
func fromYAML(v *yaml.Node) (check, string, error) {
	if v.Kind == yaml.ScalarNode {
		if v.Tag == "!!null" {
			return always(true), "", nil
		}
		c, err := parse(v.Value)
		return c, v.Value, err
	}
	if v.Kind != yaml.SequenceNode {
		return nil, "", errors.New("want a check, or a list of lists of checks")
	}
	var some either
	for _, one := range v.Content {
		items := one.Content
		if one.Kind == yaml.ScalarNode {
			items = []*yaml.Node{one}
		}
		var all both
		for _, item := range items {
			if item.Kind != yaml.ScalarNode {
				return nil, "", fmt.Errorf("line %d: want a check", item.Line)
			}
			c, err := atom(cmp.Or(item.Value, "@"))
			if err != nil {
				return nil, "", fmt.Errorf("line %d: %w", item.Line, err)
			}
			all = append(all, c)
		}
		if len(all) > 0 {
			some = append(some, all)
		}
	}
	if len(some) == 0 {
		return always(true), "", nil
	}
	return some, some.String(), nil
}

// compile makes a set of the rules and what files say of them.
func (e *Enforcer) compile(overrides []override) (*set, []error) {
	s := &set{rules: make(map[string]*rule, len(e.rules))}
	var errs []error
	older := map[string]*Rule{} // by older name
	for i := range e.rules {
		def := &e.rules[i]
		if def.Name == "" || s.rules[def.Name] != nil {
			errs = append(errs, fmt.Errorf("rule %q is defined twice, or has no name", def.Name))
			continue
		}
		for _, scope := range def.Scopes {
			if scope != "system" && scope != "domain" && scope != "project" {
				errs = append(errs, fmt.Errorf("rule %s: there is no scope %q: system, domain and project are", def.Name, scope))
			}
		}
		r := &rule{def: def, text: def.Check, where: "default"}
		var err error
		if r.check, err = parse(def.Check); err != nil {
			errs = append(errs, fmt.Errorf("rule %s: %w", def.Name, err))
			r.check = always(false)
		}
		if d := def.Deprecated; d != nil {
			if d.Name != "" {
				older[d.Name] = def
			}
			if d.Check != "" {
				c, err := parse(d.Check)
				if err != nil {
					errs = append(errs, fmt.Errorf("rule %s: its older check: %w", def.Name, err))
				} else if e.cfg.OldDefaults {
					r.check = either{r.check, c}
				}
			}
		}
		s.rules[def.Name] = r
	}
	named := map[string]bool{} // in files under their own names
	for _, o := range overrides {
		named[o.name] = true
	}
	for _, o := range overrides {
		r := s.rules[o.name]
		if def := older[o.name]; r == nil && def != nil {
			e.warn("%s: rule %s is %s now: %s", o.where, o.name, def.Name, def.Deprecated.Reason)
			if named[def.Name] {
				continue
			}
			r = s.rules[def.Name]
		}
		switch {
		case r != nil:
			r.check, r.text, r.where = o.check, o.text, o.where
		case e.cfg.Lenient:
			e.warn("%s: there is no rule %s%s", o.where, o.name, nearest(o.name, s.rules))
			s.rules[o.name] = &rule{def: &Rule{Name: o.name}, check: o.check, text: o.text, where: o.where}
		case referred(o.name, overrides): // a rule that others in the files are made of
			s.rules[o.name] = &rule{def: &Rule{Name: o.name}, check: o.check, text: o.text, where: o.where}
		default:
			errs = append(errs, fmt.Errorf("%s: there is no rule %s%s", o.where, o.name, nearest(o.name, s.rules)))
		}
	}
	return s, append(errs, s.link()...)
}

// referred reports whether a rule in a file is part of another one there.
func referred(name string, overrides []override) bool {
	found := false
	for _, o := range overrides {
		walk(o.check, func(r *ref) { found = found || r.name == name })
	}
	return found
}

func walk(c check, f func(*ref)) {
	switch v := c.(type) {
	case *ref:
		f(v)
	case not:
		walk(v.of, f)
	case both:
		for _, c := range v {
			walk(c, f)
		}
	case either:
		for _, c := range v {
			walk(c, f)
		}
	}
}

// link finds the rules that rules refer to.
func (s *set) link() (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(s.rules)) {
		r := s.rules[name]
		walk(r.check, func(to *ref) {
			if to.rule = s.rules[to.name]; to.rule == nil {
				errs = append(errs, fmt.Errorf("%s: rule %s refers to rule %s, which there is not%s", r.where, name, to.name, nearest(to.name, s.rules)))
			}
		})
	}
	done := map[string]bool{}
	var visit func(name string, path []string)
	visit = func(name string, path []string) {
		if i := slices.Index(path, name); i >= 0 {
			errs = append(errs, fmt.Errorf("%s: rule %s refers to itself: %s", s.rules[name].where, name, strings.Join(append(path[i:], name), " -> ")))
			done[name] = true
			return
		}
		r := s.rules[name]
		if done[name] || r == nil {
			return
		}
		walk(r.check, func(to *ref) { visit(to.name, append(slices.Clip(path), name)) })
		done[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(s.rules)) {
		visit(name, nil)
	}
	return errs
}

// warn says something once.
func (e *Enforcer) warn(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !e.warned[text] {
		e.warned[text] = true
		e.cfg.Logger.Warn("policy: " + text)
	}
}

// nearest names the rule that may have been meant.
func nearest(name string, rules map[string]*rule) string {
	best, least := "", max(len(name)/2+1, 3)
	for _, other := range slices.Sorted(maps.Keys(rules)) {
		if d := text.Distance(name, other); d < least {
			best, least = other, d
		}
	}
	if best == "" {
		return ""
	}
	return "; the nearest is " + best
}
