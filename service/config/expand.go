package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// variablePattern matches a variable in a value, or an escaped $, in oslo.config's forms.
var variablePattern = regexp.MustCompile(`\\\$|\$\$|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_.-]*\}`)

// expandVariables replaces the variables in the values of all options.
func (l *loader) expandVariables() {
	for o := range l.allOptions() {
		path := []string{o.section + "." + o.name}
		value, err := l.expandText(o.section, o.value, path)
		if err != nil {
			text := err.Error()
			if o.hasTag("secret") { // the error may have a part of the value
				text = "the value has a variable that does not exist; write $$ for a $"
			}
			l.addError("%s: [%s] %s: %s", o.where, o.section, o.name, text)
		}
		for i := range o.values {
			o.values[i], _ = l.expandText(o.section, o.values[i], path) // value has the same errors
		}
		o.expanded = value
	}
	for o := range l.allOptions() { // after the loop above, so that no value is expanded twice
		o.value = o.expanded
	}
}

// expandText replaces the variables in a text of a section. The path has the options whose values led to
// this text, so that a cycle is found. Errors have the variables' names.
func (l *loader) expandText(section, text string, path []string) (string, error) {
	var errs []error
	out := variablePattern.ReplaceAllStringFunc(text, func(found string) string {
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
				errs = append(errs, fmt.Errorf("variable %s refers to itself", found))
				return ""
			}
			value, err := l.expandText(p[0], value, append(slices.Clone(path), full))
			errs = append(errs, err)
			return value
		}
		errs = append(errs, fmt.Errorf("variable %s: there is no option %s; write $$ for a $", found, name))
		return ""
	})
	return out, errors.Join(errs...)
}
