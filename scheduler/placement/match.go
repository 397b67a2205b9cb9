package placement

import (
	"slices"
	"strconv"
	"strings"
)

// Match reports whether a value meets a condition in the grammar of Nova's extra
// specs:
//
//	>= 4, == 4, != 4, <= 4       the value is a number and compares so; "= 4" means ">= 4"
//	s== a, s!= a, s< a, s>= a    the value compares so as a text; also s<= and s>
//	<in> a                       the value contains a
//	<all-in> a b                 the value contains each of them
//	<or> a <or> b                the value is one of them
//	a                            the value is a
//
// A condition on numbers is not met by a value that is not a number. A condition
// without a word after its operator is not met by any value.
func Match(value, condition string) bool {
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
	"=":    numbers(func(a, b float64) bool { return a >= b }), // as in Nova, for historical reasons
	"==":   numbers(func(a, b float64) bool { return a == b }),
	"!=":   numbers(func(a, b float64) bool { return a != b }),
	">=":   numbers(func(a, b float64) bool { return a >= b }),
	"<=":   numbers(func(a, b float64) bool { return a <= b }),
	"s==":  func(a, b string) bool { return a == b },
	"s!=":  func(a, b string) bool { return a != b },
	"s<":   func(a, b string) bool { return a < b },
	"s<=":  func(a, b string) bool { return a <= b },
	"s>":   func(a, b string) bool { return a > b },
	"s>=":  func(a, b string) bool { return a >= b },
	"<in>": strings.Contains,
}

// numbers returns a comparison of texts that are numbers. It is false if one of them is not.
func numbers(f func(a, b float64) bool) func(string, string) bool {
	return func(value, want string) bool {
		a, err := strconv.ParseFloat(value, 64)
		b, err2 := strconv.ParseFloat(want, 64)
		return err == nil && err2 == nil && f(a, b)
	}
}
