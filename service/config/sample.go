package config

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Sample writes a file with all options of a struct as comments, for an operator to set
// some: what each is for, its type, its bounds and its default. With the comments taken
// off it is a file of the defaults. It panics as [Load] does.
func Sample(w io.Writer, opts any) error {
	work := reflect.New(pointer(opts).Type()).Elem()
	l := newLoader()
	l.declare(work, defaultSection)
	out := bufio.NewWriter(w)
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) } // the writer keeps the error
	for i, section := range slices.Sorted(maps.Keys(l.options)) {
		if i > 0 {
			say("\n")
		}
		say("[%s]\n", section)
		for _, name := range slices.Sorted(maps.Keys(l.options[section])) {
			o := l.options[section][name]
			say("\n")
			comment(say, o.about())
			say("#%s = %s\n", name, strings.ReplaceAll(o.tag.Get("default"), "\n", "\n#  "))
		}
	}
	for _, f := range l.free {
		say("\n")
		comment(say, fmt.Sprintf("Sections [%sNAME] have options of their own.", f.prefix))
	}
	return out.Flush()
}

// about says what an option is.
func (o *option) about() string {
	text := o.tag.Get("help")
	if text != "" {
		text = strings.ToUpper(text[:1]) + text[1:] + ". "
	}
	text += strings.ToUpper(o.kind()[:1]) + o.kind()[1:]
	if v := o.tag.Get("min"); v != "" {
		text += ", at least " + v
	}
	if v := o.tag.Get("max"); v != "" {
		text += ", at most " + v
	}
	if o.choices != nil {
		text += ": " + strings.Join(o.choices, ", ")
	}
	if v := o.tag.Get("regex"); v != "" {
		text += ", of the form " + v
	}
	text += "."
	for _, extra := range []struct{ tag, text string }{
		{"required", "It must be set."},
		{"secret", "Secret: " + o.name + "_file may name a file that has it."},
		{"reloadable", "A change takes effect on SIGHUP."},
	} {
		if o.is(extra.tag) {
			text += " " + extra.text
		}
	}
	if v := o.tag.Get("deprecated"); v != "" {
		text += " It was called " + v + "."
	}
	if v := o.tag.Get("removed"); v != "" {
		text += " It has no effect any more: " + v + "."
	}
	return text
}

// comment writes a text as comments of at most 79 columns.
func comment(say func(string, ...any), text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 79 && line != "#" {
			say("%s\n", line)
			line = "#"
		}
		line += " " + word
	}
	say("%s\n", line)
}
