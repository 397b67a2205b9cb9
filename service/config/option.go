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

// option is a field with the tag ini, and the value that the sources give it.
type option struct {
	section, name string
	field         reflect.Value
	tag           reflect.StructTag
	choices       []string
	regex         *regexp.Regexp

	rank     rank     // the rank of the source from which the value comes
	byAlias  bool     // the value was set by an older name
	byFile   string   // the option NAME_file from whose file the value was read, or ""
	value    string   // the text of the value, as in a file
	values   []string // all values of an option with the tag multi
	expanded string   // the text of the value after its variables were replaced
	where    string   // the origin of the value, see Value.Where
	bad      bool     // the value has an error
	reload   bool     // a reload may change the option
	member   bool     // the option belongs to a section of a family
}

// hasTag reports whether a tag is "true".
func (o *option) hasTag(tag string) bool { return o.tag.Get(tag) == "true" }

// fieldTags are the tags that an option's field may have.
var fieldTags = []string{"ini", "default", "help", "min", "max", "choices", "regex", "multi", "required", "secret", "reloadable", "deprecated", "removed", "unsupported", "protects", "strict", "json"}

// newOption returns the option of a field, with its default. It panics if the field's type or tags are wrong.
func newOption(f reflect.Value, field reflect.StructField, section string) *option {
	o := &option{section: section, name: field.Tag.Get("ini"), field: f, tag: field.Tag, value: field.Tag.Get("default"), where: "default"}
	o.reload = o.hasTag("reloadable")
	fail := func(format string, args ...any) {
		panic("config: field " + field.Name + ": " + fmt.Sprintf(format, args...))
	}
	if !f.CanSet() {
		fail("the field is not exported")
	}
	if err := cmp.Or(checkTags(field.Tag), o.parseConstraints(), o.checkCombinations()); err != nil {
		fail("%v", err)
	}
	if o.value == "" && !o.allowsEmpty() {
		o.value = "0"
	}
	if err := o.assignDefault(); err != nil {
		fail("%v", err)
	}
	return o
}

// parseConstraints parses the tags choices and regex.
func (o *option) parseConstraints() (err error) {
	if text := o.tag.Get("choices"); text != "" {
		for c := range strings.SplitSeq(text, ",") {
			o.choices = append(o.choices, strings.TrimSpace(c))
		}
	}
	if text := o.tag.Get("regex"); text != "" {
		o.regex, err = regexp.Compile(text)
	}
	return err
}

// checkCombinations returns an error if tags cannot be combined or do not fit the field's type.
func (o *option) checkCombinations() error {
	hasDefault := o.tag.Get("default") != ""
	switch {
	case o.hasTag("strict") && o.field.Kind() != reflect.Bool:
		return errors.New("the tag strict requires a bool")
	case o.hasTag("multi") && (o.field.Type() != reflect.TypeFor[[]string]() || hasDefault || o.hasTag("secret")):
		return errors.New("the tag multi requires a []string without the tags default and secret")
	case o.hasTag("required") && hasDefault:
		return errors.New("the tags required and default are both set: remove one, because an option with a default is never missing")
	}
	return nil
}

// assignDefault sets the field to its default. Without a default the field has its zero value, which need not be
// within the bounds. assignDefault panics if the tags min and max are wrong.
func (o *option) assignDefault() error {
	if !o.isUnset() {
		if err := o.assignValue(o.value); err != nil {
			return errors.New("default " + o.describeError(err))
		}
		return nil
	}
	if o.textUnmarshaler() == nil {
		if err := assignField(o.field, o.value); err != nil {
			return errors.New(o.describeError(err))
		}
	}
	_ = o.checkBounds() // only for its panic
	return nil
}

// checkTags returns an error if a field has a tag that does not exist, or if one of flagTags has a value other than "true".
func checkTags(tags reflect.StructTag) error {
	for rest := string(tags); rest != ""; {
		name, _, ok := strings.Cut(rest, ":\"")
		name = strings.TrimSpace(name)
		if !ok || !slices.Contains(fieldTags, name) {
			return fmt.Errorf("the tag %s does not exist", name)
		}
		value := tags.Get(name)
		if slices.Contains(flagTags, name) && value != "true" {
			return fmt.Errorf(`tag %s is %q: write "true", or remove the tag`, name, value)
		}
		_, rest, _ = strings.Cut(rest, name+":"+fmt.Sprintf("%q", value))
	}
	return nil
}

// flagTags are the fieldTags whose value is true or absent.
var flagTags = []string{"required", "secret", "reloadable", "strict", "multi", "protects"}

// isUnset reports whether no source sets the option, and the option has no default.
func (o *option) isUnset() bool { return o.where == "default" && o.tag.Get("default") == "" }

// allowsEmpty reports whether an empty text is a value of the option.
func (o *option) allowsEmpty() bool {
	k := o.field.Kind()
	return k == reflect.String || k == reflect.Slice || k == reflect.Map || o.textUnmarshaler() != nil
}

// textUnmarshaler returns the field as a TextUnmarshaler, or nil if its type is not one.
func (o *option) textUnmarshaler() encoding.TextUnmarshaler {
	u, _ := reflect.TypeAssert[encoding.TextUnmarshaler](o.field.Addr())
	return u
}

// assignValue sets the field and checks choices, regex and bounds. The error text begins with a verb, such as
// "is not an integer", and does not have the value, which may be secret. describeError adds the subject.
func (o *option) assignValue(text string) error { //nolint:gocognit // see CONTRIBUTING.md
	if err := checkBytes(text); err != nil {
		return err
	}
	if u := o.textUnmarshaler(); u != nil {
		if text == "" {
			o.field.SetZero()
			return nil
		}
		err := u.UnmarshalText([]byte(text))
		switch {
		case err == nil:
			return nil
		case o.hasTag("secret"): // the error may have the text in another form, such as with escapes
			return errors.New("is not valid")
		}
		return errors.New("is not valid: " + maskPasswords(strings.ReplaceAll(err.Error(), text, "***")))
	}
	if o.hasTag("multi") {
		o.field.Set(reflect.ValueOf(slices.Clone(o.values)))
	} else if err := assignField(o.field, text); err != nil {
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
			return errors.New("is not one of " + strings.Join(o.choices, ", ") + hintChoice(item, o.choices))
		case o.regex != nil && !o.regex.MatchString(item):
			return fmt.Errorf("does not match %s", o.regex)
		}
	}
	return o.checkBounds()
}

// checkBounds compares the field, or the length of a text, list or map, with the tags min and max.
func (o *option) checkBounds() error {
	for _, b := range []struct {
		tag  string
		want int // the result of cmp.Compare for a value out of bounds
		word string
	}{{"min", -1, "less"}, {"max", 1, "more"}} {
		text := o.tag.Get(b.tag)
		if text == "" {
			continue
		}
		c, verb := o.compareBound(b.tag, text)
		if c == b.want {
			return fmt.Errorf("%s %s than %s", verb, b.word, text)
		}
	}
	return nil
}

// compareBound compares the field with a bound, as cmp.Compare does, and returns the verb for the error. For a text, list or
// map it compares the length, and the verb is "has"; otherwise the verb is "is". compareBound panics if the bound cannot be parsed.
func (o *option) compareBound(tag, text string) (c int, verb string) {
	f := o.field
	counts := f.Kind() == reflect.Slice || f.Kind() == reflect.Map || f.Kind() == reflect.String
	limit := reflect.New(f.Type()).Elem()
	if counts {
		limit = reflect.New(reflect.TypeFor[int]()).Elem()
	}
	if err := assignField(limit, text); err != nil {
		panic("config: the tag " + tag + " of option " + o.name + " " + err.Error())
	}
	switch {
	case counts:
		return cmp.Compare(f.Len(), int(limit.Int())), "has"
	case f.CanInt():
		c = cmp.Compare(f.Int(), limit.Int())
	case f.CanUint():
		c = cmp.Compare(f.Uint(), limit.Uint())
	case f.CanFloat():
		c = cmp.Compare(f.Float(), limit.Float())
	}
	return c, "is"
}

// describeError returns a sentence: the value, and the error text of assignValue. For a secret option the sentence
// does not have the value.
func (o *option) describeError(err error) string {
	if o.hasTag("secret") {
		return "the value " + err.Error()
	}
	return fmt.Sprintf("%q %s", maskPasswords(o.value), err)
}

// describeType returns the option's type in words for operators.
func (o *option) describeType() string {
	switch {
	case o.field.Type() == reflect.TypeFor[time.Duration]():
		return "a duration: seconds, or a form such as 1m30s"
	case o.textUnmarshaler() != nil:
		return "a value of type " + o.field.Type().String()
	}
	switch o.field.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice:
		if o.hasTag("multi") {
			return "a text; the option may be set several times"
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
