package api

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Nova also accepts numbers as text. It checks such a number only after the schema, with other error messages. The functions in
// this file do the same.

// plainText returns a JSON text, or the digits of a JSON number. It returns "" for null and for an empty value.
func plainText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil { // also null
		return s
	}
	return string(raw)
}

// parseWhole returns an integer of at least low. It returns low for an empty value. Errors: Invalid.
func parseWhole(name string, raw json.RawMessage, low int) (int, error) {
	if len(raw) == 0 {
		return low, nil
	}
	n, err := strconv.ParseInt(plainText(raw), 10, 64)
	switch {
	case err != nil && !strings.Contains(err.Error(), "range"):
		return 0, fault.New(fault.Invalid, "Invalid input received: %s must be an integer", name)
	case n < int64(low):
		return 0, fault.New(fault.Invalid, "Invalid input received: %s must be >= %d", name, low)
	case n > math.MaxInt32:
		return 0, fault.New(fault.Invalid, "Invalid input received: %s must be <= %d", name, math.MaxInt32)
	}
	return int(n), nil
}

// parseFactor returns a positive number. It returns 1 for an empty value. Errors: Invalid.
func parseFactor(raw json.RawMessage) (float64, error) {
	if len(raw) == 0 {
		return 1, nil
	}
	x, err := strconv.ParseFloat(plainText(raw), 64)
	if err != nil || x <= 0 || x > 3.40282e+38 {
		return 0, fault.New(fault.Invalid, "Invalid input received: 'rxtx_factor' argument must be a float between 0 and 3.40282e+38")
	}
	return x, nil
}

// parseTruth reads a text that stands for a boolean. ok is false if the text does not stand for a boolean.
func parseTruth(text string) (value, ok bool) {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "true", "1", "on", "yes", "t", "y":
		return true, true
	case "false", "0", "off", "no", "f", "n":
		return false, true
	}
	return false, false
}

// isTrue reports whether a text stands for true.
func isTrue(text string) bool {
	value, _ := parseTruth(text)
	return value
}
