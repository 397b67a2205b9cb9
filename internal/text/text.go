// Package text is what packages that write for operators have in common.
package text

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Comment writes words as a comment of lines of at most 79 columns. Without a word it writes
// nothing. Errors are the writer's, which has to keep them.
func Comment(w io.Writer, words string) {
	line := "#"
	for word := range strings.FieldsSeq(words) {
		if len(line)+1+len(word) > 79 && line != "#" {
			_, _ = fmt.Fprintln(w, line) // see above
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		_, _ = fmt.Fprintln(w, line) // see above
	}
}

// Nearest returns a clause that names the known name which is nearest to one that is not known,
// to be put after the words of an error. Without known names it is empty.
func Nearest(name string, known func(yield func(string) bool)) string {
	nearest := slices.SortedFunc(known, func(a, b string) int {
		return cmp.Or(cmp.Compare(Distance(name, a), Distance(name, b)), cmp.Compare(a, b))
	})
	if len(nearest) == 0 {
		return ""
	}
	return "; the nearest is " + nearest[0]
}

// Distance is the Levenshtein distance, in bytes.
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
