package component

import (
	"errors"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
)

// label returns the names and places of options, NAME or SECTION.NAME, for the errors of a part that does not start.
func (l *loadedOptions[O]) label(names ...string) string {
	var out []string
	for _, option := range names {
		section, name := splitOption(option)
		text := "option " + name
		if section != defaultSection {
			text += " of [" + section + "]"
		}
		if l.isSet(section, name) {
			text += ", " + l.where(section, name)
		} else if flag := l.flags[option]; flag != "" {
			text += " or flag " + flag
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

const defaultSection = "DEFAULT"

// splitOption returns the section and the name of an option NAME or SECTION.NAME.
func splitOption(option string) (section, name string) {
	if section, name, ok := strings.Cut(option, "."); ok {
		return section, name
	}
	return defaultSection, option
}

// isSet reports whether a source other than a default sets an option.
func (l *loadedOptions[O]) isSet(section, name string) bool {
	where := l.config.Where(section, name)
	return where != "" && where != "default" && !strings.HasPrefix(where, "program's default ")
}

// where returns the place of an option that is set.
func (l *loadedOptions[O]) where(section, name string) string { return l.config.Where(section, name) }

// place adds the place of the option that an error names in its Meta. If the error names several options, place uses the
// first one that is set.
func (l *loadedOptions[O]) place(err error) error {
	names := optionsIn(err)
	if len(names) == 0 {
		return err
	}
	section, name := splitOption(names[0])
	for _, option := range names {
		if s, n := splitOption(option); l.isSet(s, n) {
			return fault.New(fault.Invalid, "%s: [%s] %s: %w", l.where(s, n), s, n, err)
		}
	}
	return fault.New(fault.Invalid, "[%s] %s: %w", section, name, err)
}

// placeAll returns the errors that err joins, each with the place of its option. It leaves out errors about options that are already
// known to be wrong, and adds the options of the remaining errors to the known wrong options.
func (l *loadedOptions[O]) placeAll(err error) (out []error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			out = append(out, l.placeAll(one)...)
		}
		return out
	}
	if err == nil || slices.ContainsFunc(optionsIn(err), func(option string) bool { return l.wrong[qualifyOption(option)] }) {
		return nil
	}
	for _, option := range optionsIn(err) {
		l.wrong[qualifyOption(option)] = true
	}
	return []error{l.place(err)}
}

// qualifyOption returns an option in the form SECTION.NAME.
func qualifyOption(option string) string {
	section, name := splitOption(option)
	return section + "." + name
}

// optionsIn returns the options that an error names in its Meta.
func optionsIn(err error) []string {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return strings.Fields(f.Meta["option"])
	}
	return nil
}
