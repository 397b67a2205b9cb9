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

// ParseOptions reads the options of a driver, a JSON object or nothing, into the struct that into
// points to. It is for the first line of a driver's open function:
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
// A field is a string, bool, int, float64 or [time.Duration] (seconds, or a form such as 1m30s). The
// values may be text, as all values of a configuration file are, or JSON's own. A field that has no
// option keeps its value. A map[string]string field whose tag ends with an asterisk, such as
// "label_*", takes every option that begins so, by the rest of its name.
//
// An option that the struct does not have, or a value that is not of the field's type, is an error
// with code Invalid that names the option, also as Meta["option"]: a misspelt option must not be without
// effect in silence. ParseOptions panics if into is not as described: a programmer's error.
func ParseOptions(options json.RawMessage, into any) error {
	var given map[string]json.RawMessage
	if len(options) > 0 {
		if err := json.Unmarshal(options, &given); err != nil {
			return fault.New(fault.Invalid, "options: they are not a JSON object: %w", err)
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
		if !takeFamily(families, name, value) {
			return optionError(name, "no such option"+nearest(name, names, families))
		}
	}
	return nil
}

// optionError returns the error for an option with a wrong name or value. Its details have the name, too.
func optionError(name, text string) error {
	return fault.WithReason(fault.New(fault.Invalid, "option %s: %s", name, text), "", map[string]string{"option": name})
}

// optionFields returns the fields of the struct that into points to: by the names of options, and those
// of families by their prefixes.
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

// optionKinds are those of fields; a time.Duration is an Int64.
var optionKinds = []reflect.Kind{reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64}

func takeFamily(families map[string]reflect.Value, name, value string) bool {
	for prefix, f := range families {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || rest == "" {
			continue
		}
		if f.IsNil() {
			f.Set(reflect.MakeMap(f.Type()))
		}
		f.SetMapIndex(reflect.ValueOf(rest), reflect.ValueOf(value))
		return true
	}
	return false
}

// nearest names the option that may be meant.
func nearest(name string, names, families map[string]reflect.Value) string {
	known := slices.Collect(maps.Keys(names))
	for prefix := range families {
		known = append(known, prefix+"...")
	}
	return text.Nearest(name, slices.Values(known))
}

// optionText returns a value as a configuration file has it.
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

// parseSeconds reads "90", "0.5" (seconds) and "1m30s".
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

// pluginOptions are those options of a driver's section that are the worker's.
type pluginOptions struct {
	SHA256       string        `option:"plugin_sha256"`
	User         string        `option:"plugin_user"`
	MaxFiles     int           `option:"plugin_max_files"`
	MaxMemoryMiB int           `option:"plugin_max_memory_mib"`
	MaxCrashes   int           `option:"plugin_max_crashes"`
	StartTimeout time.Duration `option:"plugin_start_timeout"`
}

// mistyped is how many bytes a name may differ from that of an option that may be meant.
const mistyped = 2

// Configure sets c as the section of a driver in a configuration file says. The options plugin_sha256,
// plugin_user, plugin_max_files, plugin_max_memory_mib, plugin_max_crashes and plugin_start_timeout
// (seconds, or a form such as 1m) set the fields of these names; all other options are the driver's own
// and become Options, over those that Options has.
//
// The error has code Invalid and names the option, also as Meta["option"]: a value that is empty, negative or not of the
// option's type, and a name that begins with plugin_ or looks like such an option and is not one. An
// option that protects, such as the checksum, is never without effect in silence.
func (c *PluginConfig) Configure(section map[string]string) error {
	own := map[string]any{}
	if len(c.Options) > 0 {
		if err := json.Unmarshal(c.Options, &own); err != nil {
			return fault.New(fault.Invalid, "options: they are not a JSON object: %w", err)
		}
	}
	p := pluginOptions{c.SHA256, c.User, c.MaxFiles, c.MaxMemoryMiB, c.MaxCrashes, c.StartTimeout}
	names, _ := optionFields(&p)
	for _, name := range slices.Sorted(maps.Keys(section)) {
		value := section[name]
		f, ours := names[name]
		if !ours {
			if meant(name, names) {
				return optionError(name, "no such option"+nearest(name, names, nil))
			}
			own[name] = value
			continue
		}
		err := assignOption(f, value)
		switch {
		case err != nil:
		case value == "":
			err = errors.New("is empty; without a value leave the option out")
		case f.CanInt() && (f.Int() < 0 || f.Int() == 0 && (name == "plugin_start_timeout" || name == "plugin_max_crashes")):
			err = errors.New("is too small")
		case name == "plugin_sha256":
			err = checkSum(value)
		}
		if err != nil {
			return optionError(name, strconv.Quote(value)+" "+err.Error())
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

// meant reports whether a name may be meant for one of the worker's options.
func meant(name string, names map[string]reflect.Value) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	if strings.HasPrefix(name, "plugin_") {
		return true
	}
	for known := range names {
		if text.Distance(name, known) <= mistyped {
			return true
		}
	}
	return false
}

var sum = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)

// checkSum judges a SHA-256 before it is compared.
func checkSum(s string) error {
	if !sum.MatchString(s) {
		return errors.New("is not a SHA-256: 64 hexadecimal digits, as sha256sum prints them")
	}
	return nil
}
