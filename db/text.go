package db

import (
	"strings"
	"unicode/utf8"
)

// Cut returns a text that fits into a column of most bytes, for texts that people read, such as errors. The
// result is valid UTF-8 and has at most most bytes. If Cut removes a part, the result ends with "...". MySQL
// rejects a text that is longer than its column or is not UTF-8, SQLite accepts it: after Cut both accept
// the text. most must be at least 3.
func Cut(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	const mark = "..."
	text = text[:most-len(mark)]
	for !utf8.ValidString(text) { // the cut was within a character
		text = text[:len(text)-1]
	}
	return text + mark
}
