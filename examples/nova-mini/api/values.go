package api

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Nova also accepts a number as a text. It checks the value of such a number only after the schema, with other error texts. The
// functions in this file do the same.

// plainText returns the value of a JSON string, or a JSON number as it is written. It returns "" for null and for a missing value.
func plainText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil { // null leaves s empty
		return s
	}
	return string(raw)
}

// parseWhole returns the integer in raw, which must be at least low. It returns low for a missing value. Errors: Invalid, with Nova's texts. The parameter name is the name in these texts.
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

// parseFactor returns the positive number in raw. It returns 1 for a missing value. Errors: Invalid.
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

// parseTruth returns the boolean that a text stands for. The result ok is false if the text does not stand for a boolean.
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
