// Package version reads versions of the form MAJOR.MINOR, such as those of RPC interfaces and REST APIs.
package version

import (
	"strconv"
	"strings"
)

// Parse reads a version such as "2.53". Each number has decimal digits only, without a sign and without a leading zero, and at
// most 31 bits. For any other text the result ok is false.
func Parse(s string) (major, minor int, ok bool) {
	first, second, ok := strings.Cut(s, ".")
	if !ok {
		return 0, 0, false
	}
	major, okMajor := parseNumber(first)
	minor, okMinor := parseNumber(second)
	return major, minor, okMajor && okMinor
}

func parseNumber(s string) (int, bool) {
	if len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}
