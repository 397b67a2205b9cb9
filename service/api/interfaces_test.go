package api_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/service/api"
)

type hostOf struct {
	Name string `json:"name"`
	Host string `json:"host" rule:"admin"`
}

type late struct {
	Cost int `json:"cost" since:"3.5"`
}

// inside has no field of an interface type. It contains hostOf, whose field Host has the tag rule.
type inside struct {
	List []hostOf `json:"list"`
}

// branchOf contains itself.
type branchOf struct {
	Name string     `json:"name"`
	Sub  []branchOf `json:"sub,omitempty"`
}

// TestInterfaces: if a value of an interface type in a reply is a struct with the tag rule or since, the reply fails with 500 and has no part
// of the value. The log names the type and the field.
func TestInterfaces(t *testing.T) {
	t.Parallel()
	type reply struct {
		One  any            `json:"one,omitempty"`
		List []any          `json:"list,omitempty"`
		Map  map[string]any `json:"map,omitempty"`
		Ptr  *any           `json:"ptr,omitempty"`
		Deep []struct {
			V map[string][]any `json:"v"`
		} `json:"deep,omitempty"`
	}
	secret := hostOf{"a", "secret-host"}
	var boxed any = secret
	loop := map[string]any{}
	loop["loop"] = loop
	deep := reply{}
	deep.Deep = append(deep.Deep, struct {
		V map[string][]any `json:"v"`
	}{map[string][]any{"x": {1, map[string]any{"y": &secret}}}})
	for name, tt := range map[string]struct {
		reply any
		says  string // in the log; "": the reply is shown
	}{
		"any":                {reply{One: secret}, "reply.One has an interface type and holds a api_test.hostOf, so the tag rule of api_test.hostOf.Host has no effect"},
		"pointer":            {reply{One: &secret}, "api_test.hostOf.Host"},
		"slice":              {reply{One: []hostOf{secret}}, "api_test.hostOf.Host"},
		"list":               {reply{List: []any{1, secret}}, "reply.List[] has an interface type"},
		"map":                {reply{Map: map[string]any{"m": secret}}, "reply.Map.m has an interface type"},
		"pointer to any":     {reply{Ptr: &boxed}, "reply.Ptr has an interface type"},
		"deep":               {deep, "api_test.hostOf.Host"},
		"in another struct":  {reply{One: inside{[]hostOf{secret}}}, "api_test.hostOf.Host"},
		"a map of any":       {map[string]any{"m": []any{map[string]any{"n": secret}}}, "api_test.hostOf.Host"},
		"a list of any":      {[]any{secret}, "api_test.hostOf.Host"},
		"of another version": {reply{One: late{1}}, "api_test.late.Cost"},
		"contains itself":    {loop, "nested too deep"},
		"plain":              {reply{One: map[string]any{"a": []any{1, "x", nil, time.Unix(0, 0).UTC(), disk{Name: "d"}}}, Map: map[string]any{"n": nil}}, ""},
		"a tree":             {reply{One: branchOf{"a", []branchOf{{Name: "b"}}}}, ""},
		"nothing":            {reply{}, ""},
	} {
		m, log := newMux(api.Config{Enforce: enforceByRole, Authenticate: asRole, Microversions: &api.Microversions{Service: "disk", Min: "3.1", Max: "3.9"}})
		api.Handle(m, "GET /any", func(context.Context, *api.Request[api.None]) (any, error) { return tt.reply, nil })
		api.Handle(m, "GET /typed", func(context.Context, *api.Request[api.None]) (reply, error) {
			r, _ := tt.reply.(reply)
			return r, nil
		})
		for _, path := range []string{"/any", "/typed"} {
			for _, role := range []string{"", "admin"} {
				if _, typed := tt.reply.(reply); path == "/typed" && !typed {
					continue
				}
				log.reset()
				w := send(t, m, "GET", path, "", "X-Test-Role", role)
				if (w.Code == http.StatusOK) != (tt.says == "") || tt.says != "" && w.Code != 500 || strings.Contains(w.Body.String(), "secret-host") || !strings.Contains(log.String(), tt.says) {
					t.Errorf("%s: GET %s = %d %s\n%s", name, path, w.Code, w.Body, log)
				}
			}
		}
	}
}

// TestBodyOfLaterField: HandleRoute panics if a schema allows a property in a version in which the type does not have the property's field.
func TestBodyOfLaterField(t *testing.T) {
	t.Parallel()
	type body struct {
		Name string `json:"name"`
		Cost int    `json:"cost" since:"3.5"`
		Old  int    `json:"old,omitempty" until:"3.2"`
	}
	const both = `{"type": "object", "properties": {"name": {"type": "string"}, "cost": {"type": "integer"}}}`
	const name = `{"type": "object", "properties": {"name": {"type": "string"}}}`
	const old = `{"type": "object", "properties": {"name": {"type": "string"}, "old": {"type": "integer"}}}`
	for _, tt := range []struct {
		route api.Route
		says  string
	}{
		{api.Route{Body: []api.Schema{{JSON: both}}}, "property cost is allowed in version 3.1, but api_test.body has no field for it"},
		{api.Route{Body: []api.Schema{{JSON: both, Min: "3.3"}}}, "property cost is allowed in version 3.3"},
		{api.Route{Body: []api.Schema{{JSON: old}}}, "property old is allowed in version 3.3"},
		{api.Route{Body: []api.Schema{{JSON: name, Max: "3.4"}, {JSON: both, Min: "3.5"}}}, ""},
		{api.Route{Body: []api.Schema{{JSON: both}}, Min: "3.5"}, ""},
		{api.Route{Body: []api.Schema{{JSON: both}}, NoEffect: []string{"cost"}}, ""},
	} {
		func() {
			defer func() {
				text, _ := recover().(string)
				if !strings.Contains(text, tt.says) || (text == "") != (tt.says == "") {
					t.Errorf("%+v: %q, want %q", tt.route, text, tt.says)
				}
			}()
			m, _ := newMux(api.Config{Microversions: &api.Microversions{Service: "disk", Min: "3.1", Max: "3.9"}})
			tt.route.Pattern = "POST /x"
			api.HandleRoute(m, tt.route, func(context.Context, *api.Request[body]) (api.None, error) { return api.None{}, nil })
		}()
	}
}

// TestTimes: a time that Go does not accept is refused, and the error has the name of the field.
func TestTimes(t *testing.T) {
	t.Parallel()
	type body struct {
		Inner struct {
			At time.Time `json:"at"`
		} `json:"inner"`
	}
	m, _ := newMux(api.Config{})
	api.Handle(m, "POST /times", func(_ context.Context, r *api.Request[body]) (time.Time, error) { return r.Body.Inner.At, nil })
	for text, want := range map[string]int{
		"2026-11-27T12:00:00Z": 200, "2026-11-27T12:00:00.123456789+01:30": 200, "2026-11-27T23:59:59-23:59": 200, "0000-01-01T00:00:00Z": 200,
		"2026-11-27t12:00:00Z": 400, "2026-11-27T12:00:00z": 400, "2026-12-31T23:59:60Z": 400, "2026-11-27T12:00:00": 400, "2026-11-27 12:00:00Z": 400,
		"2026-11-27T12:00:00,5Z": 400, "2026-11-27T24:00:00Z": 400, "2026-02-30T12:00:00Z": 400, "2026-11-27T12:00:00+24:00": 400, "2026-11-27T12:00Z": 400, "x": 400,
		"2026-11-27T1:00:00Z": 400, "2026-11-27T12:00:00.Z": 400,
	} {
		w := send(t, m, "POST", "/times", `{"inner": {"at": "`+text+`"}}`)
		if w.Code != want || want == 400 && !strings.Contains(w.Body.String(), "Invalid input for field/attribute at. Value: "+text) {
			t.Errorf("%s: %d %s, want %d", text, w.Code, w.Body, want)
		}
	}
}

// TestGroupWithoutRouter: NewGroup panics if it gets no router, or a pattern that is not a path. The text of the panic has the place and the reason.
func TestGroupWithoutRouter(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	for says, f := range map[string]func(){
		"the group /a: it has no Router": func() { api.NewGroup(nil, api.Route{Pattern: "/a"}) },
		"the group /b: it has no Router": func() { api.NewGroup((*api.Mux)(nil), api.Route{Pattern: "/b"}) },
		"the group /c: it has no Router": func() { api.NewGroup((*api.Group)(nil), api.Route{Pattern: "/c"}) },
		"its pattern must begin with /":  func() { api.NewGroup(m, api.Route{Pattern: "v1"}) },
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, says) || !strings.Contains(text, "interfaces_test.go") {
					t.Errorf("%q, want %q", text, says)
				}
			}()
			f()
		}()
	}
}
