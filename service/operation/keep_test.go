package operation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/service/operation"
)

// The types of the data of this release.
type (
	thisBase struct {
		B string `json:"b"`
	}
	thisPart struct {
		A int            `json:"a,omitempty"`
		M map[string]int `json:"m,omitempty"`
		P *thisPart      `json:"p,omitempty"`
	}
	thisData struct {
		thisBase

		In  thisPart            `json:"in"`
		P   *thisPart           `json:"p,omitempty"`
		L   []thisPart          `json:"l,omitempty"`
		Map map[string]thisPart `json:"map,omitempty"`
	}
)

// The types of the data of the next release: in each struct, the field x is new.
type (
	nextBase struct {
		B string `json:"b"`
		X int    `json:"x_base"`
	}
	nextPart struct {
		X int            `json:"x,omitempty"`
		A int            `json:"a,omitempty"`
		M map[string]int `json:"m,omitempty"`
		P *nextPart      `json:"p,omitempty"`
	}
	nextData struct {
		nextBase

		Xs  map[string]json.Number `json:"xs"`
		In  nextPart               `json:"in"`
		P   *nextPart              `json:"p,omitempty"`
		L   []nextPart             `json:"l,omitempty"`
		Map map[string]nextPart    `json:"map,omitempty"`
	}
)

// fillPart fills a part of the next release with random values.
func fillPart(r *rand.Rand, depth int) nextPart {
	p := nextPart{X: 1 + r.IntN(1e6), A: 1 + r.IntN(1e9)}
	if r.IntN(3) == 0 {
		p.A = 0
	}
	for i := range r.IntN(3) {
		if p.M == nil {
			p.M = map[string]int{}
		}
		p.M[fmt.Sprint("k", i)] = r.IntN(100)
	}
	if depth > 0 && r.IntN(2) == 0 {
		inner := fillPart(r, depth-1)
		p.P = &inner
	}
	return p
}

func fillData(r *rand.Rand) *nextData {
	d := &nextData{nextBase: nextBase{"<b>", r.IntN(1e6)}, Xs: map[string]json.Number{"<&>": "12345678901234567890.10"}, In: fillPart(r, 2)}
	if r.IntN(3) > 0 {
		p := fillPart(r, 2)
		d.P = &p
	}
	for i := range r.IntN(4) {
		p := fillPart(r, 1)
		p.A = 1 + r.IntN(1e9) // so that no two elements are equal
		d.L = append(d.L, p)
		if d.Map == nil {
			d.Map = map[string]nextPart{}
		}
		d.Map[fmt.Sprint("k", i)] = fillPart(r, 1)
	}
	return d
}

// edit changes a field that both releases know. If it gets the same random numbers, it changes the data of both releases in the same
// way.
func edit(v reflect.Value, r *rand.Rand) {
	switch f := v.FieldByName([]string{"B", "In", "P", "L", "Map"}[r.IntN(5)]); f.Kind() {
	case reflect.String:
		f.SetString(fmt.Sprint("<", r.IntN(100)))
	case reflect.Struct:
		editPart(f, r, true)
	case reflect.Pointer:
		editPointer(f, r)
	case reflect.Slice:
		editList(f, r)
	default:
		editMap(f, r, func(e reflect.Value) { editPart(e, r, true) })
	}
}

// editPart changes a part. If clears is true, editPart may set a to 0; then the JSON does not have a.
func editPart(v reflect.Value, r *rand.Rand, clears bool) {
	switch r.IntN(4) {
	case 0:
		editMap(v.FieldByName("M"), r, func(e reflect.Value) { e.SetInt(r.Int64N(100)) })
	case 1:
		editPointer(v.FieldByName("P"), r)
	case 2:
		if clears {
			v.FieldByName("A").SetInt(0)
			return
		}
		fallthrough
	default:
		v.FieldByName("A").SetInt(1 + r.Int64N(1e9))
	}
}

func editPointer(f reflect.Value, r *rand.Rand) {
	switch {
	case f.IsNil():
		f.Set(reflect.New(f.Type().Elem()))
		f.Elem().FieldByName("A").SetInt(1 + r.Int64N(1e9))
	case r.IntN(3) == 0:
		f.SetZero()
	default:
		editPart(f.Elem(), r, true)
	}
}

func editList(f reflect.Value, r *rand.Rand) {
	n := f.Len()
	switch at, what := r.IntN(n+1), r.IntN(4); {
	case what == 0 || n == 0 || at == n:
		e := reflect.New(f.Type().Elem()).Elem()
		e.FieldByName("A").SetInt(1 + r.Int64N(1e9))
		f.Set(reflect.Append(f, e))
	case what == 1:
		f.Set(reflect.AppendSlice(f.Slice(0, at), f.Slice(at+1, n)))
	case what == 2:
		reflect.Swapper(f.Interface())(at, r.IntN(n))
	default:
		editPart(f.Index(at), r, false)
	}
}

func editMap(f reflect.Value, r *rand.Rand, change func(reflect.Value)) {
	if f.IsNil() {
		f.Set(reflect.MakeMap(f.Type()))
	}
	key := reflect.ValueOf(fmt.Sprint("k", r.IntN(4)))
	old := f.MapIndex(key)
	e := reflect.New(f.Type().Elem()).Elem()
	switch {
	case !old.IsValid():
		change(e)
	case r.IntN(3) == 0:
		f.SetMapIndex(key, reflect.Value{})
		return
	default:
		e.Set(old)
		if e.Kind() == reflect.Struct { // the copy has the map and the pointer of the original
			raw, _ := json.Marshal(old.Interface())
			e.SetZero()
			_ = json.Unmarshal(raw, e.Addr().Interface())
		}
		change(e)
	}
	f.SetMapIndex(key, e)
}

// TestUnknownFields: steps of this release change the data of operations that the next release has begun. The fields that this release
// does not know stay, in every struct that the steps do not remove. All other changes of the steps are stored.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	const steps = 8
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		random := func(resource string, step int) *rand.Rand {
			var n uint64
			_, _ = fmt.Sscan(resource, &n)
			return rand.New(rand.NewPCG(seed, n*100+uint64(step)))
		}
		kind := operation.Kind[thisData]{Name: "edit"}
		var list []operation.Step[thisData]
		for i := range steps {
			list = append(list, operation.Step[thisData]{Name: fmt.Sprint("s", i), Do: func(_ context.Context, op *operation.Op, data *thisData) error {
				edit(reflect.ValueOf(data).Elem(), random(op.Resource, i))
				return nil
			}})
		}
		operation.Handle(b.runner, kind, list...)
		b.start()
		for n := range 25 {
			resource := strconv.Itoa(n + 1)
			want := fillData(random(resource, steps))
			id, err := operation.Begin(t.Context(), b.ops, operation.Kind[nextData]{Name: kind.Name}, resource, want)
			if err != nil {
				t.Fatal(err)
			}
			b.runner.Notify(id)
			var did []string
			for i := range steps {
				edit(reflect.ValueOf(want).Elem(), random(resource, i))
				raw, err := json.Marshal(want)
				if err != nil {
					t.Fatal(err)
				}
				want = new(nextData)
				if err := json.Unmarshal(raw, want); err != nil {
					t.Fatal(err)
				}
				did = append(did, string(raw))
			}
			o := b.ends(id, operation.Succeeded)
			got, has := new(nextData), o.Data
			if string(has) == "null" { // no step has changed the data
				has = o.Input
			}
			if err := json.Unmarshal(has, got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(nextData{})); diff != "" {
				t.Fatalf("operation %d (-want +got):\n%s\nfrom %s by\n%s\nto %s", n, diff, o.Input, strings.Join(did, "\n"), has)
			}
		}
	})
}

// aliased has its own JSON methods. It can also read JSON in which its field has an older name.
type aliased struct{ Name string }

func (a aliased) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"name": a.Name})
}

func (a *aliased) UnmarshalJSON(raw []byte) error {
	var v map[string]string
	err := json.Unmarshal(raw, &v)
	if a.Name = v["name"]; v["old_name"] != "" {
		a.Name = v["old_name"]
	}
	return err
}

// TestUnknownFieldsOf: after a step has changed the data, the stored JSON is right in special cases too, such as names in another case, empty
// values, types with their own JSON methods, and arrays.
func TestUnknownFieldsOf(t *testing.T) {
	t.Parallel()
	type element struct {
		A int `json:"a"`
	}
	type data struct {
		N     int               `json:"n,omitempty"`
		In    element           `json:"in,omitzero"`
		Own   *aliased          `json:"own,omitempty"`
		Raw   json.RawMessage   `json:"raw,omitempty"`
		Any   any               `json:"any,omitempty"`
		List  []element         `json:"list,omitempty"`
		Texts map[string]string `json:"texts,omitempty"`
		Other element           `json:"other,omitzero"`
		Two   [2]element        `json:"two,omitzero"`
	}
	for name, tt := range map[string]struct {
		raw, want string
		change    func(d *data)
	}{
		"a name in another case":         {`{"N":5,"x":1}`, `{"n":6,"x":1}`, func(d *data) { d.N++ }},
		"cleared, in another case":       {`{"N":5,"x":1}`, `{"x":1}`, func(d *data) { d.N = 0 }},
		"an empty field stays":           {`{"n":0,"list":[],"x":1}`, `{"own":{"name":"b"},"n":0,"list":[],"x":1}`, func(d *data) { d.Own = &aliased{"b"} }},
		"a type that decodes itself":     {`{"own":{"old_name":"a","x":"1"},"y":2}`, `{"own":{"name":"b"},"y":2}`, func(d *data) { d.Own.Name = "b" }},
		"raw JSON":                       {`{"raw":{"a":1,"b":{"c":1,"d":2}},"x":1}`, `{"raw":{"b":{"c":3}},"x":1}`, func(d *data) { d.Raw = json.RawMessage(`{"b":{"c":3}}`) }},
		"any JSON":                       {`{"any":{"a":1,"b":2},"x":1}`, `{"any":{"b":2},"x":1}`, func(d *data) { delete(d.Any.(map[string]any), "a") }}, //nolint:forcetypeassert // an object
		"a map without a key":            {`{"texts":{"a":"1","b":"2"},"x":1}`, `{"texts":{"b":"2"},"x":1}`, func(d *data) { delete(d.Texts, "a") }},
		"an empty map":                   {`{"texts":{"a":"1"},"x":1}`, `{"x":1}`, func(d *data) { clear(d.Texts) }},
		"an element that is changed":     {`{"list":[{"a":1,"x":1},{"a":2,"x":2}]}`, `{"list":[{"a":1,"x":1},{"a":3,"x":2}]}`, func(d *data) { d.List[1].A = 3 }},
		"an element before":              {`{"list":[{"a":1,"x":1},{"a":2,"x":2}]}`, `{"list":[{"a":0},{"a":1,"x":1},{"a":2,"x":2}]}`, func(d *data) { d.List = append([]element{{}}, d.List...) }},
		"elements in another order":      {`{"list":[{"a":1,"x":1},{"a":2,"x":2}]}`, `{"list":[{"a":2,"x":2},{"a":1,"x":1}]}`, func(d *data) { slices.Reverse(d.List) }},
		"fewer elements, and one is new": {`{"list":[{"a":1,"x":1},{"a":2,"x":2},{"a":3,"x":3}]}`, `{"list":[{"a":9},{"a":3,"x":3}]}`, func(d *data) { d.List = []element{{9}, {3}} }},
		"an empty struct is omitted with its unknown fields": {`{"in":{"a":1,"x":1},"x":1}`, `{"x":1}`, func(d *data) { d.In.A = 0 }},
		"an empty struct with a new field":                   {`{"in":{"x":1}}`, `{"in":{"a":1,"x":1}}`, func(d *data) { d.In.A = 1 }},
		"an object that becomes an array":                    {`{"any":{"a":1},"x":1}`, `{"any":[1],"x":1}`, func(d *data) { d.Any = []int{1} }},
		"a field of the next release twice":                  {`{"x":1,"x":2,"n":1}`, `{"n":2,"x":2}`, func(d *data) { d.N = 2 }},
		// These are the limits that ADR 30 names.
		"a value that is moved":                   {`{"in":{"a":1,"x":1}}`, `{"other":{"a":1}}`, func(d *data) { d.Other, d.In = d.In, element{} }},
		"an array of the size of the type":        {`{"two":[{"a":1,"x":1},{"a":2,"x":2}]}`, `{"two":[{"a":9,"x":1},{"a":2,"x":2}]}`, func(d *data) { d.Two[0].A = 9 }},
		"an array with more elements":             {`{"two":[{"a":1,"x":1},{"a":2},{"a":3}]}`, `{"two":[{"a":9},{"a":2}]}`, func(d *data) { d.Two[0].A = 9 }},
		"an array with fewer elements":            {`{"two":[{"a":1,"x":1}]}`, `{"two":[{"a":9},{"a":0}]}`, func(d *data) { d.Two[0].A = 9 }},
		"an array that is not changed":            {`{"two":[{"a":1,"x":1},{"a":2},{"a":3}],"n":1}`, `{"two":[{"a":1,"x":1},{"a":2},{"a":3}],"n":2}`, func(d *data) { d.N = 2 }},
		"keys that differ by case":                {`{"n":1,"N":2}`, `{"n":3}`, func(d *data) { d.N++ }},
		"keys that differ by case, and no change": {`{"n":1,"N":2,"in":{"a":1}}`, `{"n":1,"in":{"a":2}}`, func(d *data) { d.In.A = 2 }},
		"spaces": {` { "x" : 1.50 , "n" : 1 } `, `{"n":2,"x":1.50}`, func(d *data) { d.N = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
				b := newBench(t, d, operation.RunnerConfig{})
				kind := operation.Kind[data]{Name: "edit"}
				operation.Handle(b.runner, kind, operation.Step[data]{Name: "a", Do: func(_ context.Context, _ *operation.Op, data *data) error {
					tt.change(data)
					return nil
				}})
				raw := json.RawMessage(tt.raw)
				id, err := operation.Begin(t.Context(), b.ops, operation.Kind[json.RawMessage]{Name: kind.Name}, "", &raw)
				if err != nil {
					t.Fatal(err)
				}
				b.start()
				if o := b.ends(id, operation.Succeeded); string(o.Data) != tt.want && !sameFields(o.Data, tt.want) {
					t.Errorf("%s became %s, want %s", tt.raw, o.Data, tt.want)
				}
			})
		})
	}
}

// sameFields compares two objects, and ignores the order of their fields.
func sameFields(a json.RawMessage, b string) bool {
	x, y := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	return json.Unmarshal(a, &x) == nil && json.Unmarshal([]byte(b), &y) == nil && maps.EqualFunc(x, y, func(v, w json.RawMessage) bool { return string(v) == string(w) })
}
