package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
)

// ParseOptions reads the options of a driver into a struct. The parameter options is a JSON object or empty; the parameter
// into points to the struct. ParseOptions is for the first line of a driver's open function:
//
//	opts := struct {
//		Dir     string        `option:"dir"`
//		VCPUs   int           `option:"vcpus"`
//		Timeout time.Duration `option:"timeout"`
//	}{VCPUs: 16}
//	if err := driver.ParseOptions(options, &opts); err != nil {
//		return nil, err
//	}
//
// A field has the type string, bool, int, int64, float64 or [time.Duration] (seconds, or a form such as 1m30s), or a named
// type of one of these kinds. A value may be a text, as all values of a configuration file are, or a JSON boolean or number. A
// field whose option is not set keeps its value.
//
// A map[string]string field whose tag ends with an asterisk, such as "label_*", gets the options whose names begin with the text
// before the asterisk and are longer than it. The rest of the name is the key. If a name belongs to several fields, the field whose
// tag is this name gets the option, otherwise the field with the longest text before the asterisk.
//
// An option that the struct does not have, or a value that is not of the field's type, is an error
// with code Invalid. The error has the option's name in its text and as Meta["option"]. A misspelled option is never
// ignored. ParseOptions panics if into is not as described, which is a programmer's error.
func ParseOptions(options json.RawMessage, into any) error {
	var given map[string]json.RawMessage
	if len(options) > 0 {
		if err := json.Unmarshal(options, &given); err != nil {
			return fault.New(fault.Invalid, "the driver's options are not a JSON object: %w", err)
		}
	}
	names, families := optionFields(into)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		value, err := optionText(given[name])
		if err != nil {
			return optionError(name, err.Error())
		}
		if f, ok := names[name]; ok {
			if err := assignOption(f, value); err != nil {
				return optionError(name, err.Error())
			}
			continue
		}
		if !addToFamily(families, name, value) {
			return optionError(name, "no such option"+nearestOption(name, names, families))
		}
	}
	return nil
}

// optionError returns the error for an option with a wrong name or value. The name is in the text and in Meta["option"].
func optionError(name, text string) error {
	return fault.WithReason(fault.New(fault.Invalid, "option %s: %s", name, text), "", map[string]string{"option": name})
}

// optionFields returns the fields of the struct in two maps. The map names has the fields of single options, by the
// option's name. The map families has the fields with tags such as "label_*", by the text before the asterisk.
func optionFields(into any) (names, families map[string]reflect.Value) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("driver: ParseOptions takes a pointer to a struct, not %T", into))
	}
	v = v.Elem()
	names, families = map[string]reflect.Value{}, map[string]reflect.Value{}
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		name := field.Tag.Get("option")
		if name == "" {
			continue
		}
		prefix, family := strings.CutSuffix(name, "*")
		switch {
		case !f.CanSet():
			panic("driver: field " + field.Name + " of the options is not exported")
		case family && f.Type() == reflect.TypeFor[map[string]string]():
			families[prefix] = f
		case !family && slices.Contains(optionKinds, f.Kind()):
			names[name] = f
		default:
			panic("driver: field " + field.Name + " of the options cannot be a " + f.Type().String())
		}
	}
	return names, families
}

// optionKinds are the kinds of fields; a time.Duration is an Int64.
var optionKinds = []reflect.Kind{reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64}

// addToFamily adds an option to the family with the longest prefix of the option's name, and returns false if no family has one.
func addToFamily(families map[string]reflect.Value, name, value string) bool {
	for end := len(name) - 1; end >= 0; end-- {
		f, ok := families[name[:end]]
		if !ok {
			continue
		}
		rest := name[end:]
		if f.IsNil() {
			f.Set(reflect.MakeMap(f.Type()))
		}
		f.SetMapIndex(reflect.ValueOf(rest), reflect.ValueOf(value))
		return true
	}
	return false
}

// nearestOption returns a clause with the most similar option, for the error of an unknown one.
func nearestOption(name string, names, families map[string]reflect.Value) string {
	known := slices.Collect(maps.Keys(names))
	for prefix := range families {
		known = append(known, prefix+"...")
	}
	return text.Nearest(name, slices.Values(known))
}

// optionText returns a JSON value in the form of a configuration file.
func optionText(raw json.RawMessage) (string, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case bool, float64:
		return string(raw), nil
	default:
		return "", errors.New("is neither a text nor a number nor a boolean")
	}
}

// assignOption sets a field. The error does not repeat the value, which may be a password.
func assignOption(f reflect.Value, value string) error {
	if f.Type() == reflect.TypeFor[time.Duration]() {
		d, err := parseSeconds(value)
		f.SetInt(int64(d))
		return err
	}
	switch f.Kind() {
	case reflect.String:
		f.SetString(value)
	case reflect.Bool:
		b, ok := map[string]bool{"true": true, "yes": true, "on": true, "1": true, "false": false, "no": false, "off": false, "0": false}[strings.ToLower(value)]
		if !ok {
			return errors.New("is not a boolean: true or false")
		}
		f.SetBool(b)
	case reflect.Float64:
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return errors.New("is not a number")
		}
		f.SetFloat(n)
	default:
		n, err := strconv.ParseInt(value, 10, f.Type().Bits())
		if err != nil {
			return errors.New("is not an integer, or out of range")
		}
		f.SetInt(n)
	}
	return nil
}

// parseSeconds parses "90" and "0.5", which are seconds, and "1m30s".
func parseSeconds(value string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(value, 64); err == nil {
		if ns := n * float64(time.Second); math.Abs(ns) < math.MaxInt64 { // false for NaN
			return time.Duration(math.Round(ns)), nil
		}
		return 0, errors.New("is out of range for a time")
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, errors.New("is not a time: seconds, or a form such as 1m30s")
	}
	return d, nil
}

// pluginOptions are the options of a driver's section that the worker reads and the driver does not get.
type pluginOptions struct {
	SHA256       string        `option:"plugin_sha256"`
	User         string        `option:"plugin_user"`
	MaxFiles     int           `option:"plugin_max_files"`
	MaxMemoryMiB int           `option:"plugin_max_memory_mib"`
	MaxCrashes   int           `option:"plugin_max_crashes"`
	StartTimeout time.Duration `option:"plugin_start_timeout"`
}

// maxTypos is the largest edit distance, in bytes, at which an unknown name counts as similar to an option of pluginOptions.
const maxTypos = 2

// Configure sets c from the section of a driver in a configuration file. The options plugin_sha256,
// plugin_user, plugin_max_files, plugin_max_memory_mib, plugin_max_crashes and plugin_start_timeout
// (seconds, or a form such as 1m) set the fields of these names. All other options are the driver's own
// and are added to Options, where they override options of the same name.
//
// Configure returns Invalid, with the option's name in the text and as Meta["option"], in two cases:
//
//   - A value is empty, negative, or not of the option's type, or it is 0 for plugin_max_crashes or plugin_start_timeout.
//   - A name is unknown, and it begins with plugin_ or is similar to one of the options above. So a misspelled option that
//     protects, such as the checksum, is never ignored.
//
// Configure also returns Invalid, without an option's name, if Options is not a JSON object. After an error c is unchanged.
func (c *PluginConfig) Configure(section map[string]string) error {
	own := map[string]any{}
	if len(c.Options) > 0 {
		if err := json.Unmarshal(c.Options, &own); err != nil {
			return fault.New(fault.Invalid, "the driver's options are not a JSON object: %w", err)
		}
	}
	if own == nil { // Options is the JSON null
		own = map[string]any{}
	}
	p := pluginOptions{c.SHA256, c.User, c.MaxFiles, c.MaxMemoryMiB, c.MaxCrashes, c.StartTimeout}
	names, _ := optionFields(&p)
	for _, name := range slices.Sorted(maps.Keys(section)) {
		value := section[name]
		f, ours := names[name]
		switch {
		case ours:
			if err := assignPluginOption(f, name, value); err != nil {
				return optionError(name, strconv.Quote(value)+" "+err.Error())
			}
		case isSimilar(name, names):
			return optionError(name, "no such option"+nearestOption(name, names, nil))
		default:
			own[name] = value
		}
	}
	options, err := json.Marshal(own)
	if err != nil {
		return err
	}
	c.Options, c.SHA256, c.User = options, p.SHA256, p.User
	c.MaxFiles, c.MaxMemoryMiB, c.MaxCrashes, c.StartTimeout = p.MaxFiles, p.MaxMemoryMiB, p.MaxCrashes, p.StartTimeout
	return nil
}

// assignPluginOption sets and checks a field of pluginOptions. The error text begins with a verb,
// such as "is too small": the caller writes the value before it.
func assignPluginOption(f reflect.Value, name, value string) error {
	if err := assignOption(f, value); err != nil {
		return err
	}
	switch {
	case value == "":
		return errors.New("is empty; without a value leave the option out")
	case f.CanInt() && (f.Int() < 0 || f.Int() == 0 && (name == "plugin_start_timeout" || name == "plugin_max_crashes")):
		return errors.New("is too small")
	case name == "plugin_sha256":
		return checkSum(value)
	}
	return nil
}

// isSimilar reports whether an unknown name may be a misspelling of one of pluginOptions.
func isSimilar(name string, names map[string]reflect.Value) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	if strings.HasPrefix(name, "plugin_") {
		return true
	}
	for known := range names {
		if text.Distance(name, known) <= maxTypos {
			return true
		}
	}
	return false
}

var sum = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)

// checkSum returns an error if s does not have the form of a SHA-256.
func checkSum(s string) error {
	if !sum.MatchString(s) {
		return errors.New("is not a SHA-256: 64 hexadecimal digits, as sha256sum prints them")
	}
	return nil
}
