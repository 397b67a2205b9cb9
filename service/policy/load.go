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
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/internal/text"
)

// override is a rule in a file of the operator.
type override struct {
	name, text, where string
	check             check
}

// Reload reads the files again and logs the rules whose checks changed. Package service calls it on SIGHUP. Only one
// reload runs at a time, and decisions continue meanwhile. After an error the active rules stay as they are. The error is
// Invalid and lists all problems, like the error of [New].
//
// It is also an error if a file that had rules has none now or does not exist, so that a lost file does not open an API.
// To remove all rules of a file, write {} into it.
func (e *Enforcer) Reload(context.Context) error { return e.loadFiles() }

// Watch reads the files. If a file has changed or cannot be read, Watch does what [Enforcer.Reload] does, with the same
// errors. It logs an error at ERROR, but not again while the error stays the same. It is for service.Loop, which does not log these errors
// at ERROR again, and safe for concurrent use.
func (e *Enforcer) Watch(ctx context.Context) error {
	e.mu.Lock()
	_, sum, err := e.readFilesLocked()
	unchanged := err == nil && sum == e.sum
	e.mu.Unlock()
	if unchanged {
		return e.noteRefusal(ctx, nil)
	}
	return outage.Logged(e.noteRefusal(ctx, e.loadFiles()))
}

// noteRefusal logs the error of changed files at ERROR, or at DEBUG if the last check had the same error, and returns the error.
func (e *Enforcer) noteRefusal(ctx context.Context, err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	level, refusal := slog.LevelError, fmt.Sprint(err)
	if refusal == e.refusal {
		level = slog.LevelDebug
	}
	var effect []any
	if err != nil {
		effect = []any{"effect", "the rules that were read before stay in force"}
	}
	e.refusal = refusal
	e.outage.Note(ctx, e.cfg.Logger, level, "reload of policy files", err, level == slog.LevelError, effect...)
	return err
}

// loadFiles reads the files, makes a set of rules and activates the set, unless there is an error.
func (e *Enforcer) loadFiles() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	files, sum, err := e.readFilesLocked()
	var overrides []override
	for _, f := range files {
		overrides = append(overrides, f.rules...)
	}
	next, errs := e.compileLocked(overrides)
	errs = append([]error{err}, errs...)
	for _, name := range e.files { // the files of the active rules
		if err != nil {
			break // a file without rules may be the file with the error
		}
		if i := slices.IndexFunc(files, func(f file) bool { return f.name == name }); i < 0 || len(files[i].rules) == 0 && !files[i].cleared {
			errs = append(errs, fmt.Errorf("%s: the file had rules and has none now: the active rules stay; write {} into the file to use the defaults, or restart the service", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	before := e.active.Swap(next)
	e.sum, e.files = sum, nil
	for _, f := range files {
		if len(f.rules) > 0 {
			e.files = append(e.files, f.name)
		}
	}
	if before != nil {
		changed := next.listChanges(before)
		e.cfg.Logger.Info("policy rules reloaded", "changed", len(changed), "rules", changed)
	}
	return nil
}

// listChanges returns a text for each rule whose check differs from the check in the earlier set, before.
func (s *ruleSet) listChanges(before *ruleSet) []string {
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

// file is a file of the operator.
type file struct {
	name    string
	rules   []override
	cleared bool // the file is {}: it has no rules on purpose
}

// listFilesLocked returns the names of the files in the order in which they are read. A configured path
// that does not exist is skipped, unless it is required. A symbolic link to a missing file is not skipped:
// reading the file fails.
func (e *Enforcer) listFilesLocked() (out []string, errs []error) {
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
		if exists(dir) {
			files, err := e.listDirLocked(dir)
			if out = append(out, files...); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return out, errs
}

// listDirLocked returns the policy files of a directory, in the order of their names. It skips directories and editors' copies,
// with a warning. It also skips hidden files, without a warning, because oslo.policy does the same.
func (e *Enforcer) listDirLocked(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, f := range entries {
		path := filepath.Join(dir, f.Name())
		switch name := f.Name(); {
		case strings.HasPrefix(name, "."):
		case strings.HasSuffix(name, "~"), strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#"):
			e.warnOnceLocked("policy file skipped: an editor's copy", "file", path)
		case isDir(path):
			e.warnOnceLocked("policy file skipped: a directory", "file", path)
		default:
			out = append(out, path)
		}
	}
	return out, err
}

// isDir reports whether path is a directory, or a symbolic link to one.
func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// readFilesLocked reads all files and returns their rules and a checksum of names and contents. If some files have
// errors, it returns the rules of the other files, and the errors.
func (e *Enforcer) readFilesLocked() (out []file, sum string, err error) {
	names, errs := e.listFilesLocked()
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

// readRegular reads a regular file. Anything else is an error: reading a pipe would block.
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

// parseFile parses a file that maps names of rules to checks. It returns all errors, and the rules that
// have no error.
func parseFile(name string, raw []byte) (out file, errs []error) {
	out.name = name
	var doc, more yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(raw))
	switch err := in.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return out, nil // the file is empty, or has only comments
	case err != nil:
		return out, []error{fmt.Errorf("%s: %w", name, err)}
	}
	if err := in.Decode(&more); !errors.Is(err, io.EOF) {
		return out, []error{fmt.Errorf("%s: the file has more than one document, and only the first has an effect: remove the line ---", name)}
	}
	if doc.Kind == 0 || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return out, nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return out, []error{fmt.Errorf("%s:%d: want a map of names of rules to checks", name, top.Line)}
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
			errs = append(errs, fmt.Errorf("%s: rule %s is on line %d already", where, k.Value, line))
			continue
		}
		seen[k.Value] = k.Line
		c, text, err := parseYAML(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: rule %s: %w", where, k.Value, err))
			continue
		}
		out.rules = append(out.rules, override{k.Value, text, where, c})
	}
	return out, errs
}

// parseYAML parses the value of a rule: a text, or a list of lists of texts. The outer list is true if all texts
// of at least one inner list are true. Decisions are equal to oslo.policy's, with one exception: a value that oslo.policy reads as
// "always true", although its author surely meant something else, is an error. An example is an unquoted !,
// which in YAML is a tag without a value.
func parseYAML(v *yaml.Node) (check, string, error) {
	switch {
	case v.Kind == yaml.ScalarNode && (v.Tag == "!!null" || isEmptyScalar(v)):
		return nil, "", errors.New(`no value: write "@" to allow or "!" to deny, with the quotes`)
	case v.Kind == yaml.ScalarNode && v.Tag != "!!str", v.Kind != yaml.ScalarNode && v.Kind != yaml.SequenceNode:
		return nil, "", errors.New("want a text or a list of lists of texts")
	case v.Kind == yaml.ScalarNode:
		c, err := parseCheck(v.Value)
		return c, v.Value, err
	case len(v.Content) == 0:
		return nil, "", errors.New(`an empty list, which allows everything in oslo.policy: write "@" to allow or "!" to deny, with the quotes`)
	}
	var alternatives anyOf
	for _, one := range v.Content {
		terms, err := parseAlternative(one)
		if err != nil {
			return nil, "", err
		}
		if len(terms) > 0 { // oslo.policy skips empty lists and texts
			alternatives = append(alternatives, terms)
		}
	}
	if len(alternatives) == 0 {
		return constant(false), "!", nil
	}
	return alternatives, alternatives.String(), nil
}

// isEmptyScalar reports whether a value is empty and has no quotes. YAML does not read such a value as a text.
func isEmptyScalar(v *yaml.Node) bool {
	return v.Value == "" && v.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0
}

// requireText returns an error unless v is a text.
func requireText(v *yaml.Node) error {
	if v.Kind != yaml.ScalarNode || v.Tag != "!!str" || isEmptyScalar(v) {
		return fmt.Errorf("line %d: want a text in quotes", v.Line)
	}
	return nil
}

// parseAlternative parses an item of the outer list: a text, or a list of texts.
func parseAlternative(one *yaml.Node) (terms allOf, err error) {
	items := one.Content
	if one.Kind != yaml.SequenceNode {
		if err := requireText(one); err != nil || one.Value == "" {
			return nil, err
		}
		items = []*yaml.Node{one}
	}
	for _, item := range items {
		if err := requireText(item); err != nil {
			return nil, err
		}
		c, err := parseTerm(cmp.Or(item.Value, "!")) // in an inner list, "" is false
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", item.Line, err)
		}
		terms = append(terms, c)
	}
	return terms, nil
}

// defaultRules makes a set from the rules in code. It returns the renamed rules by their older names, and all errors.
func (e *Enforcer) defaultRules() (s *ruleSet, renamed map[string][]*Rule, errs []error) {
	s, renamed = &ruleSet{rules: make(map[string]*rule, len(e.rules))}, map[string][]*Rule{}
	for i := range e.rules {
		def := &e.rules[i]
		if def.Name == "" || s.rules[def.Name] != nil {
			errs = append(errs, fmt.Errorf("rule %q is defined twice, or has no name", def.Name))
			continue
		}
		r, faults := newRule(def)
		s.rules[def.Name], errs = r, append(errs, faults...)
		if def.Deprecated != nil && def.Deprecated.Name != "" {
			renamed[def.Deprecated.Name] = append(renamed[def.Deprecated.Name], def)
		}
	}
	return s, renamed, errs
}

// compileLocked makes a set from the rules in code and the overrides in files. It returns all errors.
func (e *Enforcer) compileLocked(overrides []override) (*ruleSet, []error) {
	s, renamed, errs := e.defaultRules()
	overridden := map[string]bool{} // rules that files have under their current names
	for _, o := range overrides {
		overridden[o.name] = true
	}
	for _, o := range overrides {
		e.warnAttributesLocked(&o)
		r, newer := s.rules[o.name], renamed[o.name]
		switch {
		case r != nil:
			r.override(&o)
		case len(newer) > 0:
			e.warnRenamedLocked(&o, newer)
			for _, def := range newer {
				if !overridden[def.Name] {
					s.rules[def.Name].override(&o)
				}
			}
		case isReferenced(o.name, overrides): // other rules in the files use it
			s.rules[o.name] = o.newRule()
		case e.cfg.Lenient:
			e.warnOnceLocked("policy rule does not exist", "where", o.where, "rule", o.name, "nearest", nearestRule(o.name, s.rules))
			s.rules[o.name] = o.newRule()
		default:
			errs = append(errs, fmt.Errorf("%s: rule %s does not exist%s", o.where, o.name, hintRule(o.name, s.rules)))
		}
	}
	return s, append(errs, s.linkRules()...)
}

// warnRenamedLocked logs one warning about an older name, with all rules that had this name and each of their reasons.
func (e *Enforcer) warnRenamedLocked(o *override, newer []*Rule) {
	var names, reasons []string
	for _, def := range newer {
		names = append(names, def.Name)
		if !slices.Contains(reasons, def.Deprecated.Reason) {
			reasons = append(reasons, def.Deprecated.Reason)
		}
	}
	e.warnOnceLocked("policy rule was renamed, use its new names", "where", o.where, "rule", o.name, "new_names", names, "reason", strings.Join(reasons, " "))
}

// newRule returns a rule of the code with its default. It returns all errors.
func newRule(def *Rule) (r *rule, errs []error) {
	for _, scope := range def.Scopes {
		if scope != "system" && scope != "domain" && scope != "project" {
			errs = append(errs, fmt.Errorf("rule %s: scope %q does not exist: use system, domain or project", def.Name, scope))
		}
	}
	r = &rule{def: def, text: def.Check, where: "default"}
	var err error
	if r.check, err = parseCheck(def.Check); err != nil {
		errs = append(errs, fmt.Errorf("rule %s: %w", def.Name, err))
		r.check = constant(false)
	}
	return r, errs
}

// override replaces the rule's check by that of a file.
func (r *rule) override(o *override) { r.check, r.text, r.where = o.check, o.text, o.where }

// newRule returns the rule that exists in files alone.
func (o *override) newRule() *rule {
	return &rule{def: &Rule{Name: o.name}, check: o.check, text: o.text, where: o.where, fileOnly: true}
}

// isReferenced reports whether a check in the files refers to the rule with this name.
func isReferenced(name string, overrides []override) bool {
	found := false
	for _, o := range overrides {
		walkRefs(o.check, func(r *ref) { found = found || r.name == name })
	}
	return found
}

// walkRefs calls f for each reference to a rule in c, from left to right. It does not follow the references.
func walkRefs(c check, f func(*ref)) {
	walkTerms(c, func(term check) {
		if r, ok := term.(*ref); ok {
			f(r)
		}
	})
}

// walkTerms calls f for each term of c, from left to right.
func walkTerms(c check, f func(check)) {
	switch v := c.(type) {
	case negation:
		walkTerms(v.of, f)
	case allOf:
		for _, c := range v {
			walkTerms(c, f)
		}
	case anyOf:
		for _, c := range v {
			walkTerms(c, f)
		}
	default:
		f(v)
	}
}

// tokenAttributes are the left sides of terms that all tokens know, and oslo.policy's other names of a token's attributes.
var tokenAttributes = []string{
	"rule", "role", "roles", "user_id", "project_id", "tenant_id", "domain_id", "system_scope", "system", "is_admin", "is_admin_project", "user_domain_id",
	"project_domain_id", "service_roles", "service_user_id", "service_project_id",
}

// warnAttributesLocked logs a warning for each term whose left side differs from a known one by one typing error, such as roel:admin. A token may have any attributes, so such a term is no error.
func (e *Enforcer) warnAttributesLocked(o *override) {
	walkTerms(o.check, func(term check) {
		m, ok := term.(*comparison)
		if !ok || m.literal || slices.Contains(tokenAttributes, m.kind) {
			return
		}
		for _, known := range tokenAttributes {
			if text.Distance(m.kind, known) == 1 {
				e.warnOnceLocked("policy check compares an attribute of the token that may be misspelled", "where", o.where, "rule", o.name, "check", m.String(), "nearest", known)
				return
			}
		}
	})
}

// linkRules resolves the references between rules. It returns an error for each reference to a rule that
// does not exist, and for each cycle.
func (s *ruleSet) linkRules() (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(s.rules)) {
		r := s.rules[name]
		walkRefs(r.check, func(to *ref) {
			if to.rule = s.rules[to.name]; to.rule == nil {
				errs = append(errs, fmt.Errorf("%s: rule %s refers to rule %s, which does not exist%s", r.where, name, to.name, hintRule(to.name, s.rules)))
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
		walkRefs(r.check, func(to *ref) { visit(to.name, append(slices.Clip(path), name)) })
		done[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(s.rules)) {
		visit(name, nil)
	}
	return errs
}

// warnOnceLocked logs a warning with its fields, unless the same warning was logged before: Watch reads the
// files many times.
func (e *Enforcer) warnOnceLocked(msg string, fields ...any) {
	if key := fmt.Sprintf("%s %q", msg, fields); !e.warned[key] {
		e.warned[key] = true
		e.cfg.Logger.Warn(msg, fields...)
	}
}

// hintRule returns a clause with the nearest rule, to be appended to an error, or "".
func hintRule(name string, rules map[string]*rule) string {
	if nearest := nearestRule(name, rules); nearest != "" {
		return "; the nearest is " + nearest
	}
	return ""
}

// nearestRule returns the name that is most similar to name, or "" if none is similar.
func nearestRule(name string, rules map[string]*rule) string {
	best, least := "", max(len(name)/2+1, 3)
	for _, other := range slices.Sorted(maps.Keys(rules)) {
		if d := text.Distance(name, other); d < least {
			best, least = other, d
		}
	}
	return best
}
