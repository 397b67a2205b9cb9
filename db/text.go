package db

import "github.com/armature-go/armature/internal/text"

// Cut shortens s to at most maxBytes bytes, so that s fits into a column. It is for texts that people read, such as
// errors. The result is valid UTF-8: each run of invalid bytes becomes U+FFFD. If s is too long, Cut removes its end, and the result
// ends with "...", which counts in maxBytes. For a column VARCHAR(n) maxBytes is n: n bytes are at most n
// characters. Cut panics if it must remove a part and maxBytes is less than 3. MySQL rejects a text that is too long for its column
// or is not UTF-8; SQLite accepts such a text. Both accept the result of Cut.
func Cut(s string, maxBytes int) string { return text.Cut(s, maxBytes) }
