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
			o.values[i], _ = l.expandText(o.section, o.values[i], path) // the items have the same errors as o.value, which are reported above
		}
		o.expanded = value
	}
	for o := range l.allOptions() { // after the loop above, so that no value is expanded twice
		o.value = o.expanded
	}
}

// expandText replaces the variables in a text of a section. The path has the options whose values led to
// this text, so that a cycle is found. An error names the variable.
func (l *loader) expandText(section, text string, path []string) (string, error) {
	var errs []error
	out := variablePattern.ReplaceAllStringFunc(text, func(found string) string {
		if found == `\$` || found == "$$" {
			return "$"
		}
		name := strings.Trim(found, "${}")
		home, value, ok := l.lookUp(section, name)
		if !ok {
			errs = append(errs, fmt.Errorf("variable %s: option %s does not exist; write $$ for a $", found, name))
			return ""
		}
		if slices.Contains(path, home+"."+name) {
			errs = append(errs, fmt.Errorf("variable %s refers to itself", found))
			return ""
		}
		value, err := l.expandText(home, value, append(slices.Clone(path), home+"."+name))
		errs = append(errs, err)
		return value
	})
	return out, errors.Join(errs...)
}

// lookUp returns the value of the option that a variable names, and the section of the option. A name without a
// section is looked up in the section of the variable, and then in the default section.
func (l *loader) lookUp(section, name string) (home, value string, ok bool) {
	homes := []string{section, defaultSection}
	if s, key, qualified := strings.Cut(name, "."); qualified {
		homes, name = []string{s}, key
	}
	for _, home := range homes {
		if o := l.options[home][name]; o != nil {
			return home, o.value, true
		}
		if value, ok := l.others[home][name]; ok {
			return home, value, true
		}
	}
	return "", "", false
}
