package config

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/internal/text"
)

// Sample writes a configuration file in which each option of the struct is a comment with its default,
// its help text, its type and its bounds. The file has no effect until an operator removes the # before
// an option. Sample does not read the struct's values. The parameter defaults is like [Source.Defaults], or nil. Errors:
// Invalid, if defaults has an option that does not exist; the first error of w. Sample panics as [Load] does.
func Sample(w io.Writer, opts any, defaults map[string]string) error {
	work := reflect.New(structOf(opts).Type()).Elem()
	l := newLoader()
	l.declareFields(work, defaultSection)
	l.setNamed(rankDefaults, "program's default ", defaults)
	if err := errors.Join(l.errs...); err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) } // Flush returns the error
	list := func(options map[string]*option) {
		for _, name := range slices.Sorted(maps.Keys(options)) {
			o := options[name]
			printf("\n")
			text.Comment(out, o.describeOption())
			printf("#%s = %s\n", name, strings.ReplaceAll(o.sampleValue(), "\n", "\n#  "))
		}
	}
	for i, section := range slices.Sorted(maps.Keys(l.options)) {
		if i > 0 {
			printf("\n")
		}
		printf("[%s]\n", section)
		list(l.options[section])
	}
	for i := range l.families {
		f := &l.families[i]
		printf("\n")
		if f.elem == nil {
			text.Comment(out, fmt.Sprintf("Sections [%s%s] have options of their own.", f.prefix, sampleName))
			continue
		}
		text.Comment(out, fmt.Sprintf("Any number of sections [%s%s] may exist. Each has these options.", f.prefix, sampleName))
		printf("#[%s%s]\n", f.prefix, sampleName)
		l.declareMember(f, sampleName, "")
		list(l.options[f.prefix+sampleName])
	}
	return out.Flush()
}

// sampleValue returns the default of the program, or else that of the tag.
func (o *option) sampleValue() string {
	if o.rank == rankDefaults {
		return o.value
	}
	return o.tag.Get("default")
}

// describeOption returns the sentences about an option in a sample.
func (o *option) describeOption() string {
	about := o.tag.Get("help")
	if about != "" {
		about = strings.ToUpper(about[:1]) + about[1:] + ". "
	}
	about += strings.ToUpper(o.describeType()[:1]) + o.describeType()[1:]
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
		about += ", matches " + v
	}
	about += "."
	if o.hasTag("required") {
		about += " Required."
	}
	if o.hasTag("secret") {
		about += " Secret: " + o.name + "_file may name a file with the value."
	}
	if o.reload {
		about += " A change takes effect on SIGHUP."
	}
	if v := o.tag.Get("deprecated"); v != "" {
		about += " Older names: " + v + "."
	}
	if v := o.tag.Get("unsupported"); v != "" {
		about += " No other value is supported: " + v + "."
	}
	if v := o.tag.Get("removed"); v != "" {
		about += " The option has no effect any more: " + v + "."
	}
	return about
}
