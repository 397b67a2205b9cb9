package db

import "github.com/armature-go/armature/internal/text"

// Cut returns a text that fits into a column, for texts that people read, such as errors. The result is valid
// UTF-8 and has at most maxBytes bytes. If Cut removes a part, the result ends with "...". Cut panics if it must remove a
// part and maxBytes is less than 3. MySQL rejects a text that is longer than its column or is not UTF-8; SQLite
// accepts it. Both accept the result of Cut.
func Cut(s string, maxBytes int) string { return text.Cut(s, maxBytes) }
