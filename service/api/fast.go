package api

import (
	"bytes"
	"encoding/json"
	"math"
	"regexp"
	"strconv"
	"unicode/utf8"
)

// fast is a part of a schema in a form that judges a body's text without decoding it. It
// knows the keywords that bodies of REST APIs mostly use, and only says yes: when it
// meets something that it does not know, or that looks wrong, the whole schema is asked,
// which has the last word, and the words.
type fast struct {
	unknown    bool // there is a keyword that it does not know
	types      map[string]bool
	properties map[string]*fast
	required   map[string]uint // bit of a mask
	all        uint64          // the mask with all bits
	patterns   []patterned
	others     *fast // additionalProperties; nil: any
	closed     bool  // additionalProperties: false
	items      *fast
	unique     bool
	enum       [][]byte // as JSON
	pattern    *regexp.Regexp
	lengths    bounds // of a text
	sizes      bounds // of an array
	counts     bounds // of an object
	values     bounds // of a number
}

// patterned is one of patternProperties.
type patterned struct {
	name *regexp.Regexp
	*fast
}

// bounds are a minimum and a maximum.
type bounds struct{ min, max float64 }

func (b bounds) have(n float64) bool { return n >= b.min && n <= b.max }

// newFast makes a fast of a schema's document.
func newFast(doc any) *fast {
	f := &fast{}
	for _, b := range []*bounds{&f.lengths, &f.sizes, &f.counts, &f.values} {
		*b = bounds{math.Inf(-1), math.Inf(1)}
	}
	if b, ok := doc.(bool); ok {
		f.unknown = !b
		return f
	}
	m, ok := doc.(map[string]any)
	f.unknown = !ok
	for keyword, v := range m {
		if !f.add(keyword, v) {
			f.unknown = true
		}
	}
	return f
}

// add takes a keyword up, and reports whether it knows it.
func (f *fast) add(keyword string, v any) bool {
	switch keyword {
	case "$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly":
		return true
	case "type":
		f.types = map[string]bool{}
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, t := range list {
			name, ok := t.(string)
			if !ok {
				return false
			}
			f.types[name] = true
		}
		return true
	case "properties":
		m, ok := v.(map[string]any)
		f.properties = make(map[string]*fast, len(m))
		for name, s := range m {
			f.properties[name] = newFast(s)
		}
		return ok
	case "patternProperties":
		m, ok := v.(map[string]any)
		for text, s := range m {
			re, err := regexp.Compile(text)
			ok = ok && err == nil
			f.patterns = append(f.patterns, patterned{re, newFast(s)})
		}
		return ok
	case "required":
		list, ok := v.([]any)
		f.required = make(map[string]uint, len(list))
		for i, name := range list {
			text, isText := name.(string)
			ok = ok && isText && i < 64
			f.required[text] = uint(i)
			f.all |= 1 << (i % 64)
		}
		return ok
	case "additionalProperties":
		if b, ok := v.(bool); ok {
			f.closed = !b
			return true
		}
		f.others = newFast(v)
		return true
	case "items":
		f.items = newFast(v)
		return true
	case "uniqueItems":
		unique, ok := v.(bool)
		f.unique = unique
		return ok
	case "enum":
		list, ok := v.([]any)
		for _, item := range list {
			raw, err := json.Marshal(item)
			ok = ok && err == nil
			f.enum = append(f.enum, raw)
		}
		return ok
	case "pattern":
		text, _ := v.(string)
		re, err := regexp.Compile(text)
		f.pattern = re
		return err == nil
	case "minLength":
		return limit(&f.lengths.min, v)
	case "maxLength":
		return limit(&f.lengths.max, v)
	case "minItems":
		return limit(&f.sizes.min, v)
	case "maxItems":
		return limit(&f.sizes.max, v)
	case "minProperties":
		return limit(&f.counts.min, v)
	case "maxProperties":
		return limit(&f.counts.max, v)
	case "minimum":
		return limit(&f.values.min, v)
	case "maximum":
		return limit(&f.values.max, v)
	}
	return false
}

// exact is up to where a float64 has every integer.
const exact = 1 << 53

func limit(to *float64, v any) bool {
	n, ok := v.(json.Number)
	if !ok {
		return false
	}
	x, err := n.Float64()
	*to = x
	return err == nil && math.Abs(x) < exact && x == math.Trunc(x)
}

// accepts reports that raw, which has been scanned, keeps to the schema. False says
// nothing.
func (f *fast) accepts(raw []byte) bool {
	s := &scanner{raw: raw}
	return s.accept(f) && s.next() == 0
}

func (s *scanner) accept(f *fast) bool {
	if f.unknown {
		return false
	}
	s.space()
	begin := s.at
	var ok bool
	switch s.next() {
	case '{':
		ok = f.allows("object") && s.acceptObject(f)
	case '[':
		ok = f.allows("array") && s.acceptArray(f)
	case '"':
		ok = f.allows("string") && s.acceptText(f)
	default:
		ok = s.acceptWord(f)
	}
	if !ok || f.enum == nil {
		return ok
	}
	for _, e := range f.enum {
		if bytes.Equal(e, s.raw[begin:s.at]) {
			return true
		}
	}
	return false
}

func (f *fast) allows(typ string) bool { return f.types == nil || f.types[typ] }

func (s *scanner) acceptObject(f *fast) bool {
	s.at++
	var seen uint64
	n := 0.0
	for first := true; ; first = false {
		c := s.next()
		if c == '}' && first {
			s.at++
			break
		}
		name, plain := s.plain()
		if !plain || s.next() != ':' {
			return false
		}
		s.at++
		n++
		if bit, ok := f.required[string(name)]; ok {
			seen |= 1 << bit
		}
		p := f.properties[string(name)]
		for _, o := range f.patterns {
			if !o.name.Match(name) {
				continue
			}
			if p != nil { // it has to keep to both
				return false
			}
			p = o.fast
		}
		switch {
		case p != nil:
		case f.closed:
			return false
		case f.others != nil:
			p = f.others
		default:
			p = anything
		}
		if !s.accept(p) {
			return false
		}
		c = s.next()
		s.at++
		if c == '}' {
			break
		}
		if c != ',' {
			return false
		}
	}
	return seen == f.all && f.counts.have(n)
}

// anything is a schema that takes every value.
var anything = newFast(true)

func (s *scanner) acceptArray(f *fast) bool {
	s.at++
	n := 0.0
	items := f.items
	if items == nil {
		items = anything
	}
	var few [8][]byte
	seen := few[:0]
	for first := true; ; first = false {
		c := s.next()
		if c == ']' && first {
			s.at++
			break
		}
		begin := s.at
		if !s.accept(items) {
			return false
		}
		n++
		if f.unique { // those that are accepted are the same if their texts are, but for objects and arrays
			item := s.raw[begin:s.at]
			if c == '{' || c == '[' || len(seen) == cap(seen) {
				return false
			}
			for _, o := range seen {
				if bytes.Equal(o, item) {
					return false
				}
			}
			seen = append(seen, item)
		}
		c = s.next()
		s.at++
		if c == ']' {
			break
		}
		if c != ',' {
			return false
		}
	}
	return f.sizes.have(n)
}

// plain passes a text without escapes.
func (s *scanner) plain() (text []byte, ok bool) {
	if s.next() != '"' {
		return nil, false
	}
	s.at++
	end := bytes.IndexByte(s.raw[s.at:], '"')
	if end < 0 {
		return nil, false
	}
	text = s.raw[s.at : s.at+end]
	if bytes.IndexByte(text, '\\') >= 0 {
		return nil, false
	}
	s.at += end + 1
	return text, true
}

func (s *scanner) acceptText(f *fast) bool {
	text, ok := s.plain()
	return ok && f.lengths.have(float64(utf8.RuneCount(text))) && (f.pattern == nil || f.pattern.Match(text))
}

// acceptWord passes an integer, true, false or null.
func (s *scanner) acceptWord(f *fast) bool {
	begin := s.at
	for s.at < len(s.raw) && (s.raw[s.at] == '-' || s.raw[s.at] >= '0' && s.raw[s.at] <= '9' || s.raw[s.at] >= 'a' && s.raw[s.at] <= 'z') {
		s.at++
	}
	switch word := s.raw[begin:s.at]; string(word) {
	case "true", "false":
		return f.allows("boolean")
	case "null":
		return f.allows("null")
	default:
		n, err := strconv.ParseInt(string(word), 10, 54)
		return err == nil && (n != 0 || len(word) == 1) && // -0
			(f.allows("integer") || f.allows("number")) && f.values.have(float64(n))
	}
}
