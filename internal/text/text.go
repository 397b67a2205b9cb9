// Package text makes text for operators: comments of generated files, hints for misspelled names, commands for a shell, and texts of a bounded size.
package text

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Comment writes words to w as a comment with lines of at most 79 columns, unless one word is longer.
// For empty words it writes nothing. It ignores errors of w: w must keep its first error.
func Comment(w io.Writer, words string) {
	line := "#"
	for word := range strings.FieldsSeq(words) {
		if len(line)+1+len(word) > 79 && line != "#" {
			_, _ = fmt.Fprintln(w, line) // w keeps the error
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		_, _ = fmt.Fprintln(w, line) // w keeps the error
	}
}

// After returns " after 1.2s", to be appended to an error, or "" for less than half a millisecond.
func After(d time.Duration) string {
	if d = d.Round(time.Millisecond); d <= 0 {
		return ""
	}
	return " after " + d.String()
}

// Nearest returns a clause with the known name that is most similar to name, to be appended to an
// error: "; the nearest is report_interval". If no known name is similar, the result is empty, because a name that
// is not similar would mislead. A known name is similar if its [Distance] to name is 1, or at most a third of the
// length of the longer name. It is also similar if it contains name, and name has at least 4 bytes. Upper and lower
// case are equal. If two names are equally similar, the result has the first one in alphabetical order.
func Nearest(name string, known func(yield func(string) bool)) string {
	lower := strings.ToLower(name)
	distance := func(s string) int { return Distance(lower, strings.ToLower(s)) }
	nearest := slices.SortedFunc(known, func(a, b string) int {
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a, b))
	})
	for _, s := range nearest {
		similar := distance(s) <= max(1, max(len(name), len(s))/3)
		if similar || len(name) >= 4 && strings.Contains(strings.ToLower(s), lower) {
			return "; the nearest is " + s
		}
	}
	return ""
}

// Distance returns the number of typing errors that turn a into b: bytes that are inserted, deleted or replaced,
// and neighbors that are swapped.
func Distance(a, b string) int {
	var before []int // the row of two bytes ago
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, next[j]+1, row[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// Cut returns the text as valid UTF-8 of at most maxBytes bytes. If Cut removes a part, the result ends with "...". maxBytes
// must then be at least 3.
func Cut(text string, maxBytes int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxBytes {
		return text
	}
	const mark = "..."
	text = text[:maxBytes-len(mark)]
	for !utf8.ValidString(text) { // the cut was within a character
		text = text[:len(text)-1]
	}
	return text + mark
}

// plainWord matches the words that mean the same in a shell command without quotes.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./@%+=:,-]+$`)

// ShellWord returns a word in the form in which a shell command must have it: in quotes if necessary. A command in a text that an operator may copy, such as
// an error, has the paths and names of the operator in this form.
func ShellWord(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
