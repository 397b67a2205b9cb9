package policy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
)

// override is a rule in a file.
type override struct {
	name, text, where string
	check             check
}

// Reload reads the files again and logs which rules changed. SIGHUP calls it. The error is
// Invalid, with all that is wrong, each with its file and line; the rules in force stay then.
// A file that had rules and now is gone, or has none, is such an error: {} in a file says that
// it has no rules on purpose.
func (e *Enforcer) Reload(context.Context) error { return e.load() }

// Watch reads the files again if they have changed. It is for service.Loop.
func (e *Enforcer) Watch(context.Context) error {
	e.mu.Lock()
	seen := e.seen
	e.mu.Unlock()
	_, now, err := e.readFiles()
	if err == nil && now == seen {
		return nil
	}
	return e.load()
}

func (e *Enforcer) load() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	files, seen, err := e.readFiles()
	var overrides []override
	for _, f := range files {
		overrides = append(overrides, f.rules...)
	}
	next, errs := e.compile(overrides)
	errs = append([]error{err}, errs...)
	for _, name := range e.files { // of the rules in force
		if err != nil {
			break // a file without rules may be one that cannot be read
		}
		if i := slices.IndexFunc(files, func(f file) bool { return f.name == name }); i < 0 || len(files[i].rules) == 0 && !files[i].cleared {
			errs = append(errs, fmt.Errorf("%s: the file had rules and has none now: the rules in force stay; write {} into the file to go back to the defaults, or restart the service", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	before := e.set.Swap(next)
	e.seen, e.files = seen, nil
	for _, f := range files {
		if len(f.rules) > 0 {
			e.files = append(e.files, f.name)
		}
	}
	if before != nil {
		changed := next.changes(before)
		e.cfg.Logger.Info("policy: rules reloaded", "changed", len(changed), "rules", changed)
	}
	return nil
}

// changes returns the rules whose check differs from that in another set.
func (s *set) changes(before *set) []string {
	out := []string{}
	all := maps.Clone(before.rules)
	maps.Copy(all, s.rules)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		was, is := "none", "none"
		if r := before.rules[name]; r != nil {
			was = strconv.Quote(r.text)
		}
		if r := s.rules[name]; r != nil {
			is = strconv.Quote(r.text)
		}
		if was != is {
			out = append(out, fmt.Sprintf("%s: %s, was %s", name, is, was))
		}
	}
	return out
}

// file is a file of an operator.
type file struct {
	name    string
	rules   []override
	cleared bool // it says {}: no rules on purpose
}

// names returns those of the files, in the order in which they are read. A file that is named
// and does not exist is left out, unless it is required; a link to nothing is an error, as is
// whatever is neither a file nor, in a directory, a directory.
func (e *Enforcer) names() (out []string, errs []error) {
	exists := func(path string) bool {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(e.cfg.Required, path) {
			errs = append(errs, fmt.Errorf("%s does not exist", path))
		}
		return !errors.Is(err, fs.ErrNotExist)
	}
	if e.cfg.File != "" && exists(e.cfg.File) {
		out = append(out, e.cfg.File)
	}
	for _, dir := range e.cfg.Dirs {
		if !exists(dir) {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, f := range entries { // by name
			path := filepath.Join(dir, f.Name())
			switch name := f.Name(); {
			case strings.HasPrefix(name, "."): // oslo.policy leaves these out, too
			case strings.HasSuffix(name, "~"), strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#"):
				e.warn("%s is an editor's copy and is not read", path)
			default:
				if info, err := os.Stat(path); err == nil && info.IsDir() { // oslo.policy does not read below it
					e.warn("%s is a directory and is not read", path)
					continue
				}
				out = append(out, path)
			}
		}
	}
	return out, errs
}

// readFiles reads the files, and returns a sum of all of them.
func (e *Enforcer) readFiles() (out []file, sum string, err error) {
	names, errs := e.names()
	h := sha256.New()
	for _, name := range names {
		raw, err := readRegular(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, _ = fmt.Fprintf(h, "%q %d\n%s", name, len(raw), raw) // a hash never fails
		f, ferrs := parseFile(name, raw)
		out, errs = append(out, f), append(errs, ferrs...)
	}
	return out, hex.EncodeToString(h.Sum(nil)), errors.Join(errs...)
}

// readRegular reads a file, and refuses what is none: reading a pipe would block.
func readRegular(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return os.ReadFile(name)
}

// parseFile reads a file from names to checks.
func parseFile(name string, raw []byte) (out file, errs []error) {
	out.name = name
	var doc, more yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(raw))
	switch err := in.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return out, nil // nothing but comments
	case err != nil:
		return out, []error{fmt.Errorf("%s: %w", name, err)}
	}
	if err := in.Decode(&more); !errors.Is(err, io.EOF) {
		return out, []error{fmt.Errorf("%s: more than one document: only the first would count, remove the line ---", name)}
	}
	if doc.Kind == 0 || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return out, nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return out, []error{fmt.Errorf("%s:%d: want a map from names of rules to checks", name, top.Line)}
	}
	out.cleared = len(top.Content) == 0
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		k, v := top.Content[i], top.Content[i+1]
		where := fmt.Sprintf("%s:%d", name, k.Line)
		if k.Kind != yaml.ScalarNode || k.Value == "" {
			errs = append(errs, fmt.Errorf("%s: want the name of a rule", where))
			continue
		}
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
		out.rules = append(out.rules, override{k.Value, text, where, c})
	}
	return out, errs
}

// fromYAML reads a check: a text, or a list of lists, of which one must hold whole. The answers
// are those of oslo.policy, but for values that it takes for "always" although no author wrote
// so, such as !, which in YAML is a tag without a value: they are errors.
func fromYAML(v *yaml.Node) (check, string, error) {
	const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle
	switch {
	case v.Kind == yaml.ScalarNode && (v.Tag == "!!null" || v.Value == "" && v.Style&quoted == 0):
		return nil, "", errors.New(`no value: write "@" to allow, "!" to deny, in quotes`)
	case v.Kind == yaml.ScalarNode && v.Tag != "!!str", v.Kind != yaml.ScalarNode && v.Kind != yaml.SequenceNode:
		return nil, "", errors.New("want a text or a list of lists of texts")
	case v.Kind == yaml.ScalarNode:
		c, err := parse(v.Value)
		return c, v.Value, err
	case len(v.Content) == 0:
		return nil, "", errors.New(`an empty list allows everything in oslo.policy: write "@" for that, or "!" to deny`)
	}
	text := func(v *yaml.Node) error {
		if v.Kind != yaml.ScalarNode || v.Tag != "!!str" || v.Value == "" && v.Style&quoted == 0 {
			return fmt.Errorf("line %d: want a text in quotes", v.Line)
		}
		return nil
	}
	var some either
	for _, one := range v.Content {
		items := one.Content
		if one.Kind != yaml.SequenceNode {
			if err := text(one); err != nil {
				return nil, "", err
			}
			if one.Value == "" { // oslo.policy passes over these, and over empty lists
				continue
			}
			items = []*yaml.Node{one}
		}
		if len(items) == 0 {
			continue
		}
		var all both
		for _, item := range items {
			if err := text(item); err != nil {
				return nil, "", err
			}
			c, err := atom(cmp.Or(item.Value, "!")) // beside others, "" is false
			if err != nil {
				return nil, "", fmt.Errorf("line %d: %w", item.Line, err)
			}
			all = append(all, c)
		}
		some = append(some, all)
	}
	if len(some) == 0 {
		return always(false), "!", nil
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
