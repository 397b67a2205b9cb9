package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/service/api"
)

type selfMarshaled struct {
	A int `json:"a" since:"3.2"`
}

func (selfMarshaled) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

type badSchema struct{}

func (badSchema) JSONSchema() string { return `{"type": "nothing"}` }

type recursive struct {
	Next *recursive `json:"next"`
}

type endsEarly struct {
	Old int `json:"old" until:"3.3"`
}

type tree []tree

type describedGroup struct {
	Secrets []*secrets `json:"secrets"`
}

func (describedGroup) JSONSchema() string { return `{"type": "object"}` }

type marshaledList []secrets

func (l marshaledList) MarshalJSON() ([]byte, error) { return json.Marshal([]secrets(l)) }

type describedList struct {
	Next []describedList `json:"next"`
}

func (describedList) JSONSchema() string { return `{"type": "object", "properties": {"next": {}}}` }

type zeroWhenNegative struct {
	A int `json:"a" since:"3.2"`
}

func (z zeroWhenNegative) IsZero() bool { return z.A <= 0 }

type localRef struct{}

func (localRef) JSONSchema() string {
	return `{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}`
}

type sinceInside struct {
	A int `json:"a" since:"3.2"`
}

// TestWrongTags: HandleRoute panics if tags of a type contradict each other or have no effect. The text of the panic has the
// place, and says what to do.
func TestWrongTags(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		register func(m *api.Mux)
		want     string
	}{
		{"since after until", body[struct {
			A int `json:"a" since:"3.4" until:"3.2"`
		}], "A: the tags since and until: the first version 3.4 is after the last version 3.2"},
		{"no version", body[struct {
			A int `json:"a" since:"four"`
		}], "API Version String four is of invalid format"},
		{"after the last version of the API", body[struct {
			A int `json:"a" since:"3.9"`
		}], "the versions 3.9 to the last are outside of the API's, 3.1 to 3.5"},
		{"before the first version of the API", body[struct {
			A int `json:"a" until:"3.0"`
		}], "the versions the first to 3.0 are outside of the API's"},
		{"two fields of one name", body[struct {
			A int `json:"a" until:"3.3"`
			B int `json:"b" name:"a" since:"3.3"`
		}], `the fields A and B both have the name "a" in the versions`},
		{"a second name in each version", body[struct {
			A int `json:"b" name:"a"`
		}], "write the name in the tag json"},
		{"a name of an embedded struct", body[struct {
			A int `json:"user"`
			owner
		}], `the fields A and owner.User both have the name "user"`},
		{"unexported field", body[struct {
			a int `since:"3.2"`
			B int
		}], "a has the tag since, but JSON does not have the field"},
		{"ignored field", body[struct {
			A int `json:"-" max:"3"`
		}], "A has the tag max, but JSON does not have the field"},
		{"field of a type with MarshalJSON", body[selfMarshaled], "A: the tag since has no effect"},
		{"field in a map", body[map[string]sinceInside], "use a struct, or a slice"},
		{"min above max", body[struct {
			A string `json:"a" min:"5" max:"4"`
		}], "field A: min 5 is greater than max 4"},
		{"length below zero", body[struct {
			A string `json:"a" min:"-1"`
		}], "not below 0"},
		{"bounds of a bool", body[struct {
			A bool `json:"a" max:"1"`
		}], "a value of type bool has no bounds"},
		{"bounds of a struct", body[struct {
			A owner `json:"a" max:"1"`
		}], "has no bounds"},
		{"bound of a type with a schema", body[struct {
			A textOrNumber `json:"a" max:"1"`
		}], "describes its own JSON"},
		{"pattern of a number", body[struct {
			A int `json:"a" pattern:"^1$"`
		}], "must be of type string, and not int"},
		{"malformed pattern", body[struct {
			A string `json:"a" pattern:"("`
		}], `the tag pattern:"("`},
		{"unknown format", body[struct {
			A string `json:"a" format:"uid"`
		}], "the format must be one of date,"},
		{"enum value of another type", body[struct {
			A int `json:"a" enum:"1,two"`
		}], `the tag enum:"1,two"`},
		{"enum value twice", body[struct {
			A string `json:"a" enum:"x,x"`
		}], `the value "x" is given twice`},
		{"no enum value", body[struct {
			A string `json:"a" enum:""`
		}], "write the values, separated by commas"},
		{"space in an enum", body[struct {
			A string `json:"a" enum:"x, y"`
		}], "write the values without spaces"},
		{"field in no version", body[struct {
			A *[]endsEarly `json:"a" since:"3.4"`
		}], "the fields around it in 3.4 to the last: no version has the field"},
		{"field of an embedded struct in no version", body[struct {
			endsEarly `since:"3.4"`
		}], "no version has the field"},
		{"empty rule", body[struct {
			A string `json:"a" rule:""`
		}], "the tag rule must be the name of a rule"},
		{"malformed schema", body[badSchema], "its method JSONSchema"},
		{"type that contains itself", body[recursive], "contains itself"},
		{"value that JSON does not have", body[struct{ A func() }], "JSON cannot express the type func()"},
		{"number as a name", body[map[int]string], "the names of an object must be strings"},
		{"slice that contains itself", body[tree], "contains itself"},
		{"rule inside a type with a schema", body[describedGroup], "secrets.Host: the tag rule has no effect, because api_test.describedGroup has its own"},
		{"rule inside a slice with MarshalJSON", body[marshaledList], "secrets.Host: the tag rule has no effect, because api_test.marshaledList has its own"},
		{"schema of an embedded type", body[struct {
			describedList
			A int `json:"a"`
		}], "does not describe the other fields"},
		{"version in a struct with IsZero", body[struct {
			A zeroWhenNegative `json:"a,omitzero"`
		}], "A: the option omitzero cannot use the method IsZero of api_test.zeroWhenNegative"},
		{"option string of a slice", body[struct {
			A []int `json:"a,string"` //nolint:staticcheck // refused
		}], "the option string of the tag json is for a string, a number or a bool"},
		{"name that encoding/json ignores", body[struct {
			A int `json:"a'b"` //nolint:staticcheck // refused
		}], `encoding/json refuses the name "a'b"`},
		{"name with a comma", body[struct {
			A int `json:"a" until:"3.1"`
			B int `json:"b" name:"a,omitempty" since:"3.2"`
		}], `encoding/json refuses the name "a,omitempty"`},
		{"bound without an end", body[struct {
			A float64 `json:"a" max:"Inf"`
		}], "the bound must be a number in the form of JSON"},
		{"bounds of an array", body[struct {
			A [2]int `json:"a" min:"3"`
		}], "a value of type [2]int has no bounds"},
		{"interface with methods", body[struct {
			A fmt.Stringer `json:"a"`
		}], "a request cannot be decoded into the interface fmt.Stringer"},
		{"reference that a reply's schema does not have", func(m *api.Mux) {
			api.Handle(m, "POST /x", func(context.Context, *api.Request[api.None]) (struct{ A localRef }, error) {
				return struct{ A localRef }{}, nil
			})
		}, "the schema of the reply"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				p := fmt.Sprint(recover())
				if !strings.Contains(p, tt.want) || !strings.Contains(p, "POST /x") || !strings.Contains(p, "wrongtags_test.go:") {
					t.Errorf("panic %q, want %q with the route and the line", p, tt.want)
				}
			}()
			tt.register(api.New(api.Config{Microversions: versionsOfDisks, Enforce: enforceRoles}))
		})
	}
	for name, register := range map[string]func(*api.Mux){
		"of a field": func(m *api.Mux) {
			body[struct {
				A string `json:"a" rule:"disk:hots"`
			}](m)
		},
		"of a route": func(m *api.Mux) {
			api.HandleRoute(m, api.Route{Pattern: "GET /x", Rule: "disk:hots"}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
		},
	} {
		t.Run("unknown rule "+name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, "rule disk:hots does not exist") || !strings.Contains(p, "wrongtags_test.go:") {
					t.Errorf("panic %q", p)
				}
			}()
			register(api.New(api.Config{Enforce: enforceRoles, Rules: []string{"disk:host"}}))
		})
	}
	t.Run("rule without Enforce", func(t *testing.T) {
		t.Parallel()
		defer func() {
			if p := fmt.Sprint(recover()); !strings.Contains(p, "the rule disk:host of a field is never enforced: Config.Enforce is nil") {
				t.Errorf("panic %q", p)
			}
		}()
		body[struct {
			A string `json:"a" rule:"disk:host"`
		}](api.New(api.Config{}))
	})
	t.Run("versions without Microversions", func(t *testing.T) {
		t.Parallel()
		defer func() {
			if p := fmt.Sprint(recover()); !strings.Contains(p, "fields of its bodies or parameters of its list, have versions, but its path is not under the Prefix of Microversions") {
				t.Errorf("panic %q", p)
			}
		}()
		body[sinceInside](api.New(api.Config{}))
	})
}

// body registers a route with a body of type B.
func body[B any](m *api.Mux) {
	api.Handle(m, "POST /x", func(context.Context, *api.Request[B]) (api.None, error) { return api.None{}, nil })
}
