package db

import (
	"strings"
	"unicode/utf8"
)

// Cut returns a text that is stored for people, such as that of an error: in valid UTF-8, of at most
// so many bytes, with "..." at its end if something was cut off. MySQL refuses a text that is longer
// than its column, or is not UTF-8; SQLite takes it: after Cut both take it. most is at least 3.
func Cut(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	const mark = "..."
	text = text[:most-len(mark)]
	for !utf8.ValidString(text) { // a character was cut
		text = text[:len(text)-1]
	}
	return text + mark
}
