package config

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/internal/text"
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
			text.Comment(out, o.about())
			say("#%s = %s\n", name, strings.ReplaceAll(o.tag.Get("default"), "\n", "\n#  "))
		}
	}
	for _, f := range l.free {
		say("\n")
		text.Comment(out, fmt.Sprintf("Sections [%sNAME] have options of their own.", f.prefix))
	}
	return out.Flush()
}

// about says what an option is.
func (o *option) about() string {
	about := o.tag.Get("help")
	if about != "" {
		about = strings.ToUpper(about[:1]) + about[1:] + ". "
	}
	about += strings.ToUpper(o.kind()[:1]) + o.kind()[1:]
	if v := o.tag.Get("min"); v != "" {
		about += ", at least " + v
	}
	if v := o.tag.Get("max"); v != "" {
		about += ", at most " + v
	}
	if o.choices != nil {
		about += ": " + strings.Join(o.choices, ", ")
	}
	if v := o.tag.Get("regex"); v != "" {
		about += ", of the form " + v
	}
	about += "."
	if o.is("required") {
		about += " It must be set."
	}
	if o.is("secret") {
		about += " Secret: " + o.name + "_file may name a file that has it."
	}
	if o.is("reloadable") {
		about += " A change takes effect on SIGHUP."
	}
	if v := o.tag.Get("deprecated"); v != "" {
		about += " It was called " + v + "."
	}
	if v := o.tag.Get("unsupported"); v != "" {
		about += " No other value is supported: " + v + "."
	}
	if v := o.tag.Get("removed"); v != "" {
		about += " It has no effect any more: " + v + "."
	}
	return about
}
