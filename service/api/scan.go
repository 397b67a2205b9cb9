package api

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/armature-go/armature/fault"
)

// scanBody returns an error for a body that encoding/json accepts although it is dangerous:
//
//   - an object with the same name twice, because one program uses the first value and another program the last;
//   - bytes that are not UTF-8, or half of a surrogate pair;
//   - values nested deeper than maxDepth;
//   - numbers with an exponent of more than three digits, because the validation of each such number may take up to 0.1 s.
//
// The parameter raw need not be JSON, because the decoder finds all other errors.
func scanBody(raw []byte, maxDepth int) error {
	if !utf8.Valid(raw) {
		return fault.New(fault.Invalid, "Malformed request body: it is not UTF-8")
	}
	s := scanner{raw: raw, max: maxDepth}
	err := s.scanValue(1)
	if err == nil && s.lone {
		err = fault.New(fault.Invalid, "Malformed request body: it has half of a surrogate pair, which is not a character")
	}
	return err
}

// scanner reads a body once, from the beginning to the end.
type scanner struct {
	raw []byte
	at  int // index of the next byte
	max int // maximum depth

	lone bool // half of a surrogate pair was found
}

// skipSpace skips white space.
func (s *scanner) skipSpace() {
	for s.at < len(s.raw) && (s.raw[s.at] == ' ' || s.raw[s.at] == '\n' || s.raw[s.at] == '\t' || s.raw[s.at] == '\r') {
		s.at++
	}
}

// peekByte skips white space and returns the next byte without reading it, or 0 at the end.
func (s *scanner) peekByte() byte {
	s.skipSpace()
	if s.at >= len(s.raw) {
		return 0
	}
	return s.raw[s.at]
}

// scanValue reads one value. If the body is not JSON, it may skip the rest.
func (s *scanner) scanValue(depth int) error {
	if depth > s.max {
		return fault.New(fault.Invalid, "Malformed request body: it is nested deeper than %d", s.max)
	}
	switch s.peekByte() {
	case '{':
		return s.scanObject(depth)
	case '[':
		return s.scanArray(depth)
	case '"':
		s.scanString()
	case 0:
	default: // a number or a word
		start := s.at
		for s.at < len(s.raw) && bytes.IndexByte([]byte(",]} \n\t\r"), s.raw[s.at]) < 0 {
			s.at++
		}
		if s.at == start {
			s.at = len(s.raw) // not JSON
		}
		if isNumber := bytes.IndexByte([]byte("-0123456789"), s.raw[start]) >= 0; isNumber && hasLargeExponent(s.raw[start:s.at]) {
			return fault.New(fault.Invalid, "Malformed request body: the number %s is out of range", shortenText(string(s.raw[start:s.at])))
		}
	}
	return nil
}

// hasLargeExponent reports whether a number has an exponent of more than three digits.
func hasLargeExponent(number []byte) bool {
	i := bytes.IndexAny(number, "eE")
	return i >= 0 && len(bytes.TrimLeft(number[i+1:], "+-0")) > 3
}

// scanObject reads an object. The next byte is its brace.
func (s *scanner) scanObject(depth int) error {
	s.at++
	var names nameSet
	for {
		switch s.peekByte() {
		case '}':
			s.at++
			return nil
		case ',':
			s.at++
		case '"':
			name := s.scanString()
			if !names.add(name) {
				return fault.New(fault.Invalid, "Malformed request body: an object has the name %s twice", quotePython(shortenText(string(name))))
			}
			if s.peekByte() == ':' {
				s.at++
				if err := s.scanValue(depth + 1); err != nil {
					return err
				}
			}
		default:
			s.at = len(s.raw)
			return nil
		}
	}
}

// nameSet is a set of the names of an object. It allocates no memory for up to 16 names.
type nameSet struct {
	few  [16][]byte
	n    int             // the number of names in few
	many map[string]bool // all names, if there are more than 16; otherwise nil
}

// add adds a name. It returns false if the set already has the name.
func (s *nameSet) add(name []byte) bool {
	if s.many == nil {
		for _, known := range s.few[:s.n] {
			if bytes.Equal(known, name) {
				return false
			}
		}
		if s.n < len(s.few) {
			s.few[s.n] = name
			s.n++
			return true
		}
		s.many = make(map[string]bool, 2*s.n)
		for _, known := range s.few {
			s.many[string(known)] = true
		}
	}
	if s.many[string(name)] {
		return false
	}
	s.many[string(name)] = true
	return true
}

// scanArray reads an array. The next byte is its bracket.
func (s *scanner) scanArray(depth int) error {
	s.at++
	for {
		switch s.peekByte() {
		case ']':
			s.at++
			return nil
		case ',':
			s.at++
		case 0:
			return nil
		default:
			if err := s.scanValue(depth + 1); err != nil {
				return err
			}
		}
	}
}

// scanString reads a string and returns its value. The next byte is its quote.
func (s *scanner) scanString() []byte {
	s.at++
	start, plain := s.at, true
	for s.at < len(s.raw) {
		switch s.raw[s.at] {
		case '\\':
			plain = false
			s.skipEscape()
		case '"':
			out := s.raw[start:s.at]
			s.at++
			if !plain {
				out = unescapeString(out)
			}
			return out
		}
		s.at++
	}
	s.at = len(s.raw)
	return s.raw[min(start, len(s.raw)):]
}

// skipEscape moves the position s.at from a backslash to the byte after the backslash, where scanString continues. The digits of \uXXXX
// then count as ordinary bytes. For a surrogate pair, skipEscape moves s.at to the byte after the second backslash. It sets lone for a half
// without the other half, because encoding/json would replace such a half with another character.
func (s *scanner) skipEscape() {
	s.at++
	switch r := s.codeUnit(s.at); {
	case r < 0xD800 || r > 0xDFFF:
	case r < 0xDC00 && s.at+5 < len(s.raw) && s.raw[s.at+5] == '\\' && s.codeUnit(s.at+6) >= 0xDC00 && s.codeUnit(s.at+6) <= 0xDFFF:
		s.at += 6
	default:
		s.lone = true
	}
}

// codeUnit returns the UTF-16 code unit of a text uXXXX at an index, or 0 if the text at the index has another form.
func (s *scanner) codeUnit(at int) uint64 {
	if at+5 > len(s.raw) || s.raw[at] != 'u' {
		return 0
	}
	n, err := strconv.ParseUint(string(s.raw[at+1:at+5]), 16, 32)
	if err != nil {
		return 0
	}
	return n
}

// unescapeString returns the value of a JSON string with escapes.
func unescapeString(inner []byte) []byte {
	var out string
	quoted := append(append([]byte{'"'}, inner...), '"')
	if json.Unmarshal(quoted, &out) != nil {
		return inner
	}
	return []byte(out)
}
