package operation

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

// place is a place in the JSON of an operation's data where a step of this release has changed the data. This release may not know all fields
// of the data.
type place struct {
	fresh       func() any // returns a pointer to a new value of the type of the operation's data
	open, close string     // the JSON before and after the place
}

// merge returns the JSON of the data after a function has changed them. The parameter raw is the stored JSON, before is the JSON that
// encoding/json makes of the decoded data, and after is the JSON that it makes of the changed data. So before and after differ by the changes
// of the function. The difference between raw and before is the part that the type does not know, and merge keeps that part. All three come
// from encoding/json.
func (p place) merge(raw, before, after json.RawMessage) json.RawMessage {
	raw = bytes.TrimSpace(raw)
	switch {
	case bytes.Equal(before, after):
		return raw
	case opensWith('{', raw, before, after):
		return p.mergeObjects(raw, before, after)
	case opensWith('[', raw, before, after):
		return p.mergeArrays(raw, before, after)
	}
	return after
}

// opensWith reports whether all values are objects, or all are arrays.
func opensWith(c byte, values ...json.RawMessage) bool {
	return !slices.ContainsFunc(values, func(v json.RawMessage) bool { return len(v) == 0 || v[0] != c })
}

// mergeObjects does what merge does, for objects. A field of raw stays if neither before nor after has it. The type does not know such a field,
// or does not encode it because it is empty.
func (p place) mergeObjects(raw, before, after json.RawMessage) json.RawMessage {
	was, known, now := readObject(raw), readObject(before), readObject(after)
	out := make(object, len(now))
	for i, m := range now {
		old := was.field(m.key, known, now)
		out[i] = m
		if old >= 0 {
			prev := json.RawMessage(`{}`) // an empty object, which the type does not encode
			if at := known.find(m.key); at >= 0 {
				prev = known[at].value
			}
			out[i].value = p.field(m.key).merge(was[old].value, prev, m.value)
		}
	}
	if p.isStruct() {
		for _, o := range was {
			if !known.has(o.key) && !now.has(o.key) {
				out = append(out, o)
			}
		}
	}
	return out.encode()
}

// field returns the place of a field of an object.
func (p place) field(key string) place {
	name, _ := json.Marshal(key)
	return place{p.fresh, p.open + "{" + string(name) + ":", "}" + p.close}
}

// isStruct reports whether encoding/json decodes the object at a place into the fields of a struct, and so ignores fields that the struct does
// not have. The result is false for a map, for raw JSON, and inside a type that decodes itself.
func (p place) isStruct() bool {
	d := json.NewDecoder(strings.NewReader(p.open + `{"\u0000":null}` + p.close))
	d.DisallowUnknownFields()
	err := d.Decode(p.fresh())
	return err != nil && strings.HasPrefix(err.Error(), "json: unknown field") // encoding/json has no error type for this case
}

// mergeArrays does what merge does, for arrays. An element of after that is equal to an element of before gets that element's form
// in raw. If the number of elements has not changed, a changed element is merged with the earlier element at the same position.
func (p place) mergeArrays(raw, before, after json.RawMessage) json.RawMessage {
	var was, known, now []json.RawMessage
	if errors.Join(json.Unmarshal(raw, &was), json.Unmarshal(before, &known), json.Unmarshal(after, &now)) != nil || len(was) != len(known) {
		return after
	}
	from := equalElements(known, now)
	element := place{p.fresh, p.open + "[", "]" + p.close}
	out := slices.Clone(now)
	for i, at := range from {
		switch {
		case at >= 0:
			out[i] = was[at]
		case len(now) == len(known) && !slices.Contains(from, i):
			out[i] = element.merge(was[i], known[i], now[i])
		}
	}
	var list []byte
	for _, v := range out {
		list = append(append(list, ','), v...)
	}
	return slices.Concat([]byte{'['}, bytes.TrimPrefix(list, []byte{','}), []byte{']'})
}

// equalElements returns, for each element of now, the position of an equal element of before, or -1. It returns no position twice, and prefers
// equal elements at the same position.
func equalElements(before, now []json.RawMessage) []int {
	from := make([]int, len(now))
	free := map[string][]int{} // the other positions in before, by element
	for i, v := range before {
		if i >= len(now) || !bytes.Equal(v, now[i]) {
			free[string(v)] = append(free[string(v)], i)
		}
	}
	for i, v := range now {
		from[i] = -1
		if i < len(before) && bytes.Equal(v, before[i]) {
			from[i] = i
		} else if at := free[string(v)]; len(at) > 0 {
			from[i], free[string(v)] = at[0], at[1:]
		}
	}
	return from
}

// member is a field of a JSON object.
type member struct {
	key   string
	value json.RawMessage
}

// object is a JSON object, in the order of its fields.
type object []member

// readObject reads an object that encoding/json has decoded before.
func readObject(raw json.RawMessage) (out object) {
	d := json.NewDecoder(bytes.NewReader(raw))
	_, _ = d.Token() // the brace
	for d.More() {
		var m member
		key, err := d.Token()
		if err != nil || d.Decode(&m.value) != nil {
			return out
		}
		m.key, _ = key.(string)
		if at := out.find(m.key); at >= 0 { // of two fields with the same name, the last one counts
			out[at] = m
			continue
		}
		out = append(out, m)
	}
	return out
}

// encode returns the JSON of an object.
func (o object) encode() json.RawMessage {
	var list []byte
	for _, m := range o {
		name, _ := json.Marshal(m.key) // a string has a JSON form
		list = append(append(append(append(list, ','), name...), ':'), m.value...)
	}
	return slices.Concat([]byte{'{'}, bytes.TrimPrefix(list, []byte{','}), []byte{'}'})
}

// find returns the position of a field, or -1.
func (o object) find(key string) int {
	return slices.IndexFunc(o, func(m member) bool { return m.key == key })
}

// field returns the position of the field that encoding/json has decoded as key, or -1. It ignores the case of field names, as encoding/json
// does. But a field in another case does not count if known or now has a field with exactly its name.
func (o object) field(key string, known, now object) int {
	if at := o.find(key); at >= 0 {
		return at
	}
	return slices.IndexFunc(o, func(m member) bool {
		return strings.EqualFold(m.key, key) && known.find(m.key) < 0 && now.find(m.key) < 0
	})
}

// has reports whether an object has a field with a name that encoding/json accepts for key.
func (o object) has(key string) bool {
	return slices.ContainsFunc(o, func(m member) bool { return strings.EqualFold(m.key, key) })
}
