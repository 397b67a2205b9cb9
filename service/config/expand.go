package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// variable is one in a value, or an escaped $, in oslo.config's forms.
var variable = regexp.MustCompile(`\\\$|\$\$|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_.-]*\}`)

// expand puts the values of other options in the place of variables.
func (l *loader) expand() {
	for o := range l.all() {
		fail := func(err error) {
			if err == nil {
				return
			}
			text := err.Error()
			if o.is("secret") { // it may have a part of it
				text = "a $ begins a variable that has no value; a $ itself is written $$"
			}
			l.fail("%s: [%s] %s: %s", o.where, o.section, o.name, text)
		}
		path := []string{o.section + "." + o.name}
		value, err := l.expanded(o.section, o.value, path)
		fail(err)
		for i := range o.values {
			o.values[i], _ = l.expanded(o.section, o.values[i], path) // as they are in value
		}
		o.later = value
	}
	for o := range l.all() { // only now, so that each was expanded once
		o.value = o.later
	}
}

// expanded returns text with the values of variables, as it stands in a section. path are
// the options whose values it is a part of.
func (l *loader) expanded(section, text string, path []string) (string, error) {
	var errs []error
	out := variable.ReplaceAllStringFunc(text, func(found string) string {
		if found == `\$` || found == "$$" {
			return "$"
		}
		name := strings.Trim(found, "${}")
		places := [][2]string{{section, name}, {defaultSection, name}}
		if s, key, ok := strings.Cut(name, "."); ok {
			places = [][2]string{{s, key}}
		}
		for _, p := range places {
			value, ok := l.others[p[0]][p[1]]
			if o := l.options[p[0]][p[1]]; o != nil {
				value, ok = o.value, true
			}
			if !ok {
				continue
			}
			full := p[0] + "." + p[1]
			if slices.Contains(path, full) {
				errs = append(errs, fmt.Errorf("%s stands for itself", found))
				return ""
			}
			value, err := l.expanded(p[0], value, append(slices.Clone(path), full))
			errs = append(errs, err)
			return value
		}
		errs = append(errs, fmt.Errorf("there is no option %s that %s could stand for; a $ itself is written $$", name, found))
		return ""
	})
	return out, errors.Join(errs...)
}
