package db

import (
	"strings"
	"unicode/utf8"
)

// Cut returns a text that fits into a column, for texts that people read, such as errors. The result is valid
// UTF-8 and has at most maxBytes bytes. maxBytes must be at least 3. If Cut removes a part, the result ends with
// "...". MySQL rejects a text that is longer than its column or is not UTF-8, and SQLite accepts such a text:
// after Cut both accept it.
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
