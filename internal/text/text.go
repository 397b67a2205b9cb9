// Package text makes text for operators: comments of generated files, and hints for misspelt names.
package text

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
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

// Nearest returns a clause with the known name that is most similar to name, to be appended to an
// error: "; the nearest is report_interval". If known is empty, so is the result. Of two names that are
// equally similar, the first in alphabetical order wins.
func Nearest(name string, known func(yield func(string) bool)) string {
	nearest := slices.SortedFunc(known, func(a, b string) int {
		return cmp.Or(cmp.Compare(Distance(name, a), Distance(name, b)), cmp.Compare(a, b))
	})
	if len(nearest) == 0 {
		return ""
	}
	return "; the nearest is " + nearest[0]
}

// Distance returns the Levenshtein distance of a and b: how many bytes must be inserted, deleted or
// replaced to turn one into the other.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
