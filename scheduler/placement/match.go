package placement

import (
	"slices"
	"strconv"
	"strings"
)

// matchesSpec reports whether a value meets a condition, see [Request].Specs.
func matchesSpec(value, condition string) bool {
	words := strings.Fields(condition)
	if len(words) == 0 {
		return value == condition
	}
	op, words := words[0], words[1:]
	compare, known := operators[op]
	switch {
	case op == "<or>":
		for i := 0; i < len(words); i += 2 {
			if words[i] == value {
				return true
			}
		}
		return false
	case op == "<all-in>":
		return len(words) > 0 && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(value, w) })
	case !known:
		return value == condition
	case len(words) == 0:
		return false
	}
	return compare(value, words[0])
}

var operators = map[string]func(value, want string) bool{
	"=":    compareNumbers(func(a, b float64) bool { return a >= b }), // as in Nova, for historical reasons
	"==":   compareNumbers(func(a, b float64) bool { return a == b }),
	"!=":   compareNumbers(func(a, b float64) bool { return a != b }),
	">=":   compareNumbers(func(a, b float64) bool { return a >= b }),
	"<=":   compareNumbers(func(a, b float64) bool { return a <= b }),
	"s==":  func(a, b string) bool { return a == b },
	"s!=":  func(a, b string) bool { return a != b },
	"s<":   func(a, b string) bool { return a < b },
	"s<=":  func(a, b string) bool { return a <= b },
	"s>":   func(a, b string) bool { return a > b },
	"s>=":  func(a, b string) bool { return a >= b },
	"<in>": strings.Contains,
}

// compareNumbers returns a comparison of texts that are numbers. The comparison is false if one of the texts is not a
// number.
func compareNumbers(f func(a, b float64) bool) func(string, string) bool {
	return func(value, want string) bool {
		a, err := strconv.ParseFloat(value, 64)
		b, err2 := strconv.ParseFloat(want, 64)
		return err == nil && err2 == nil && f(a, b)
	}
}
