package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// assignField sets an option's field from the text of its value. The error
// text has no subject, such as "is not an integer", because the value may be secret.
func assignField(f reflect.Value, text string) error {
	if f.Type() == reflect.TypeFor[time.Duration]() {
		d, err := parseDuration(text)
		f.SetInt(int64(d))
		return err
	}
	switch f.Kind() {
	case reflect.String:
		f.SetString(text)
	case reflect.Bool:
		switch strings.ToLower(text) {
		case "true", "1", "on", "yes":
			f.SetBool(true)
		case "false", "0", "off", "no":
			f.SetBool(false)
		default:
			return errors.New("is not a boolean: true, false, yes, no, on, off, 1, 0")
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, f.Type().Bits())
		if err != nil {
			return numberError(err, "an integer")
		}
		f.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, f.Type().Bits())
		if err != nil {
			return numberError(err, "an integer of 0 or more")
		}
		f.SetUint(n)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(text, f.Type().Bits())
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return numberError(err, "a number")
		}
		f.SetFloat(n)
	case reflect.Slice:
		if f.Type().Elem().Kind() != reflect.String {
			return fmt.Errorf("is for an option of type %s, which is not supported", f.Type())
		}
		list := reflect.Zero(f.Type())
		items, err := splitList(text)
		for _, item := range items {
			list = reflect.Append(list, reflect.ValueOf(item).Convert(f.Type().Elem()))
		}
		f.Set(list)
		return err
	case reflect.Map:
		return assignDict(f, text)
	default:
		return fmt.Errorf("is for an option of type %s, which is not supported", f.Type())
	}
	return nil
}

// parseDuration parses "90" and "0.5", which are seconds, and "1m30s".
func parseDuration(text string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		ns := n * float64(time.Second)
		if !(math.Abs(ns) < math.MaxInt64) { // also false for NaN
			return 0, errors.New("is out of range for a duration")
		}
		return time.Duration(math.Round(ns)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errors.New(`is not a duration: write seconds, or a form such as "1m30s"`)
	}
	return d, nil
}

// numberError returns the error of assignField for an error of package strconv.
func numberError(err error, want string) error {
	if errors.Is(err, strconv.ErrRange) {
		return errors.New("is out of range")
	}
	return errors.New("is not " + want)
}

// checkBytes returns an error if a value has bytes that no value of an option can need. They show that the file is not a text, or has another encoding.
func checkBytes(text string) error {
	switch {
	case strings.ContainsRune(text, 0):
		return errors.New("has a NUL byte")
	case !utf8.ValidString(text):
		return errors.New("is not UTF-8: save the file in this encoding")
	}
	return nil
}

// splitList splits a list at commas and trims blanks. An item with a comma is in quotes. Empty items are
// skipped. A text that has only commas is an error, because the list would be empty, as if the option were not set.
func splitList(text string) (out []string, err error) { //nolint:gocognit // see CONTRIBUTING.md
	for rest := text; rest != ""; {
		rest = strings.TrimLeft(rest, " \t\n")
		if rest != "" && (rest[0] == '"' || rest[0] == '\'') {
			end := strings.IndexByte(rest[1:], rest[0])
			if end < 0 {
				return nil, errors.New("has a quote that is not closed")
			}
			item, after := rest[1:1+end], strings.TrimLeft(rest[end+2:], " \t\n")
			if after != "" && after[0] != ',' {
				return nil, errors.New("has text between a closing quote and the next comma")
			}
			out, rest = append(out, item), strings.TrimPrefix(after, ",")
			continue
		}
		item, after, _ := strings.Cut(rest, ",")
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
		rest = after
	}
	if len(out) == 0 && strings.Contains(text, ",") {
		return nil, errors.New("has only commas: name an item, or leave the value empty")
	}
	return out, nil
}

// assignDict sets a map from a list of pairs: a:b,c:d.
func assignDict(f reflect.Value, text string) error {
	if f.Type().Key().Kind() != reflect.String || f.Type().Elem().Kind() != reflect.String {
		return fmt.Errorf("is for an option of type %s, which is not supported", f.Type())
	}
	items, err := splitList(text)
	if err != nil {
		return err
	}
	out := reflect.MakeMap(f.Type())
	for _, item := range items {
		k, v, ok := strings.Cut(item, ":")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		key := reflect.ValueOf(k).Convert(f.Type().Key())
		switch {
		case !ok || k == "":
			return errors.New("does not have the form name:value,name:value")
		case out.MapIndex(key).IsValid():
			return errors.New("has the same name twice")
		}
		out.SetMapIndex(key, reflect.ValueOf(v).Convert(f.Type().Elem()))
	}
	f.Set(out)
	return nil
}
