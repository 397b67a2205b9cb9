package config

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// option is a field that can be set.
type option struct {
	section, name string
	field         reflect.Value
	tag           reflect.StructTag
	choices       []string
	regex         *regexp.Regexp

	rank    rank // of the strongest source seen so far
	byAlias bool
	byFile  string // the NAME_file that it was read from
	value   string
	values  []string // of one that is multi
	later   string   // value, with variables expanded
	where   string   // it stands
	bad     bool     // what was said of it is an error
}

func (o *option) is(tag string) bool { return o.tag.Get(tag) == "true" }

// tags are those that a field may have.
var tags = []string{"ini", "default", "help", "min", "max", "choices", "regex", "multi", "required", "secret", "reloadable", "deprecated", "removed", "unsupported", "protects", "strict", "json"}

// newOption makes an option of a field. It panics if its tags are wrong.
func newOption(f reflect.Value, field reflect.StructField, section string) *option {
	o := &option{section: section, name: field.Tag.Get("ini"), field: f, tag: field.Tag, value: field.Tag.Get("default"), where: "default"}
	fail := func(format string, args ...any) {
		panic("config: field " + field.Name + ": " + fmt.Sprintf(format, args...))
	}
	if !f.CanSet() {
		fail("it is not exported")
	}
	for rest := string(field.Tag); rest != ""; {
		name, _, ok := strings.Cut(rest, ":\"")
		name = strings.TrimSpace(name)
		if !ok || !slices.Contains(tags, name) {
			fail("there is no tag %s", name)
		}
		value := field.Tag.Get(name)
		switch name {
		case "required", "secret", "reloadable", "strict", "multi", "protects":
			if value != "true" {
				fail("tag %s is %q, and can only be true", name, value)
			}
		}
		quoted := fmt.Sprintf("%q", value)
		_, rest, _ = strings.Cut(rest, name+":"+quoted)
	}
	if text := o.tag.Get("choices"); text != "" {
		for c := range strings.SplitSeq(text, ",") {
			o.choices = append(o.choices, strings.TrimSpace(c))
		}
	}
	if text := o.tag.Get("regex"); text != "" {
		var err error
		if o.regex, err = regexp.Compile(text); err != nil {
			fail("%v", err)
		}
	}
	switch {
	case o.is("strict") && f.Kind() != reflect.Bool:
		fail("strict is for a bool")
	case o.is("multi") && (f.Type() != reflect.TypeFor[[]string]() || o.value != "" || o.is("secret")):
		fail("multi is for a []string without a default, which is not secret")
	}
	if o.value == "" && !o.text() {
		o.value = "0"
	}
	if o.is("required") && o.tag.Get("default") != "" {
		fail("what is required has no default")
	}
	if o.unset() { // that need not be within the bounds
		if o.unmarshaler() == nil {
			if err := assign(o.field, o.value); err != nil {
				fail("%s", o.wrong(err))
			}
		}
		_ = o.bounds() // which panics if the tags are wrong
		return o
	}
	if err := o.assign(o.value); err != nil {
		fail("default %s", o.wrong(err))
	}
	return o
}

// unset reports whether nobody has set the option, and it has no default.
func (o *option) unset() bool { return o.where == "default" && o.tag.Get("default") == "" }

// text reports whether an empty text is a value of the option.
func (o *option) text() bool {
	k := o.field.Kind()
	return k == reflect.String || k == reflect.Slice || k == reflect.Map || o.unmarshaler() != nil
}

func (o *option) unmarshaler() encoding.TextUnmarshaler {
	u, _ := reflect.TypeAssert[encoding.TextUnmarshaler](o.field.Addr())
	return u
}

// assign sets the field. The error says what the text is not, and does not repeat it.
func (o *option) assign(text string) error {
	if u := o.unmarshaler(); u != nil {
		if text == "" {
			o.field.SetZero()
			return nil
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return errors.New("is not one: " + strings.ReplaceAll(err.Error(), text, "it"))
		}
		return nil
	}
	if o.is("multi") {
		o.field.Set(reflect.ValueOf(slices.Clone(o.values)))
	} else if err := assign(o.field, text); err != nil {
		return err
	}
	items := []string{text}
	if o.field.Kind() == reflect.Slice {
		items = items[:0]
		for i := range o.field.Len() {
			items = append(items, o.field.Index(i).String())
		}
	}
	for _, item := range items {
		switch {
		case o.choices != nil && !slices.Contains(o.choices, item):
			return errors.New("is none of " + strings.Join(o.choices, ", "))
		case o.regex != nil && !o.regex.MatchString(item):
			return fmt.Errorf("does not match %s", o.regex)
		}
	}
	return o.bounds()
}

// bounds compares the value with min and max.
func (o *option) bounds() error {
	for _, b := range []struct {
		tag  string
		want int // the sign of the comparison that is wrong
		word string
	}{{"min", -1, "less"}, {"max", 1, "more"}} {
		text := o.tag.Get(b.tag)
		if text == "" {
			continue
		}
		limit := reflect.New(o.field.Type()).Elem()
		var c int
		switch f := o.field; {
		case f.Kind() == reflect.Slice || f.Kind() == reflect.Map || f.Kind() == reflect.String:
			limit = reflect.New(reflect.TypeFor[int]()).Elem()
			if err := assign(limit, text); err != nil {
				panic("config: tag " + b.tag + " of " + o.name + " " + err.Error())
			}
			if c = cmp.Compare(f.Len(), int(limit.Int())); c == b.want {
				return fmt.Errorf("has %s than %s", b.word, text)
			}
		default:
			if err := assign(limit, text); err != nil {
				panic("config: tag " + b.tag + " of " + o.name + " " + err.Error())
			}
			switch {
			case f.CanInt():
				c = cmp.Compare(f.Int(), limit.Int())
			case f.CanUint():
				c = cmp.Compare(f.Uint(), limit.Uint())
			case f.CanFloat():
				c = cmp.Compare(f.Float(), limit.Float())
			}
			if c == b.want {
				return fmt.Errorf("is %s than %s", b.word, text)
			}
		}
	}
	return nil
}

// wrong says what is wrong with the value, which an error must not show if
// it is secret.
func (o *option) wrong(err error) string {
	if o.is("secret") {
		return "the value " + err.Error()
	}
	return fmt.Sprintf("%q %s", redact(o.value), err)
}

// kind names the type for people.
func (o *option) kind() string {
	switch {
	case o.field.Type() == reflect.TypeFor[time.Duration]():
		return "a time: seconds, or a form such as 1m30s"
	case o.unmarshaler() != nil:
		return "a value of type " + o.field.Type().String()
	}
	switch o.field.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice:
		if o.is("multi") {
			return "a text, which may be given several times"
		}
		return "a list, separated by commas"
	case reflect.Map:
		return "a dictionary, such as a:b,c:d"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a text"
	default:
		return "an integer"
	}
}
