package api_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apitest"
)

// actionMux returns a Mux with handlers of several actions for one pattern.
func actionMux(cfg api.Config) *api.Mux {
	cfg.Microversions = volumeVersions
	if cfg.Enforce == nil {
		cfg.Enforce = func(context.Context, string, map[string]any) error { return nil }
	}
	m, _ := newMux(cfg)
	const pattern = "POST /v3/disks/{id}/action"
	api.HandleRoute(m, api.Route{
		Pattern: pattern, Action: "extend", Rule: "disk:extend", Status: http.StatusAccepted, Summary: "Make it larger", Errors: []int{409},
		Body: []api.Schema{{JSON: `{"type": "object", "required": ["extend"], "properties": {"extend": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer"}}}}}`}},
	}, func(_ context.Context, r *api.Request[struct{ Extend struct{ Size int } }]) (api.None, error) {
		if r.Body.Extend.Size > 100 {
			return api.None{}, fault.New(fault.Conflict, "too large")
		}
		return api.None{}, nil
	})
	api.HandleRoute(m, api.Route{Pattern: pattern, Action: "detach", Status: http.StatusAccepted}, func(context.Context, *api.Request[api.None]) (api.None, error) {
		return api.None{}, nil
	})
	for _, v := range []struct{ low, high string }{{"", "3.9"}, {"3.20", ""}} {
		api.HandleRoute(m, api.Route{Pattern: pattern, Action: "show", Min: v.low, Max: v.high}, func(_ context.Context, r *api.Request[api.None]) (map[string]string, error) {
			return map[string]string{"id": r.PathValue("id"), "since": v.low}, nil
		})
	}
	return m
}

// TestActions: a body must have exactly one name, which selects the handler.
func TestActions(t *testing.T) {
	t.Parallel()
	var asked []string
	m := actionMux(api.Config{
		Authenticate: func(r *http.Request) (reqctx.Request, error) {
			if r.Header.Get("X-Auth-Token") == "" {
				return reqctx.Request{}, fault.New(fault.Unauthenticated, "who?")
			}
			return reqctx.Request{UserID: "u"}, nil
		},
		Enforce: func(_ context.Context, rule string, _ map[string]any) error {
			asked = append(asked, rule)
			return nil
		},
	})
	for _, tt := range []struct {
		version, body string
		status        int
		says          string
	}{
		{"3.0", `{"extend": {"size": 2}}`, 202, ""},
		{"3.0", `{"extend": {"size": "2"}}`, 400, "Invalid input for field/attribute size. Value: 2. '2' is not of type 'integer'"},
		{"3.0", `{"extend": null}`, 400, "Invalid input for field/attribute extend. Value: None. None is not of type 'object'"},
		{"3.0", `{"extend": {"size": 101}}`, 409, "too large"},
		{"3.0", `{"detach": null}`, 202, ""},
		{"3.0", `{"detach": {"any": "thing"}}`, 202, ""},
		{"3.0", `{"show": null}`, 200, ""},
		{"3.10", `{"show": null}`, 400, "There is no such action: show"},
		{"3.20", `{"show": null}`, 200, ""},
		{"3.0", `{"explode": null}`, 400, "There is no such action: explode"},
		{"3.0", `{"": null}`, 400, "There is no such action: "},
		{"3.0", `{}`, 400, "Malformed request body"},
		{"3.0", `{"detach": null, "show": null}`, 400, "Malformed request body"},
		{"3.0", `["detach"]`, 400, "Malformed request body"},
		{"3.0", `null`, 400, "Malformed request body"},
		{"3.0", ``, 400, "Malformed request body"},
		{"3.0", `{"detach"`, 400, "Malformed request body"},
	} {
		w := send(t, m, "POST", "/v3/disks/7/action", tt.body, "OpenStack-API-Version", "volume "+tt.version, "X-Auth-Token", "t", "Content-Type", "application/json")
		if w.Code != tt.status || tt.says != "" && decodeFault(t, w.Body.Bytes()) != tt.says {
			t.Errorf("%s %s = %d %s, want %d with %q", tt.version, tt.body, w.Code, w.Body, tt.status, tt.says)
		}
	}
	if diff := cmp.Diff([]string{"disk:extend", "disk:extend", "disk:extend", "disk:extend"}, asked); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	wantFault(t, send(t, m, "POST", "/v3/disks/7/action", `{"explode": null}`), 401, "unauthorized", "who?")
	wantFault(t, send(t, m, "POST", "/v3/disks/7/action", `hello`, "X-Auth-Token", "t", "Content-Type", "text/plain"), 415, "badMediaType", "The media type of the body must be application/json.")
}

// TestActionsOpenAPI: all actions of a pattern are one operation of the document. The operation has the bodies and
// replies of the actions that exist in the version.
func TestActionsOpenAPI(t *testing.T) {
	t.Parallel()
	m := actionMux(api.Config{})
	for v, want := range map[api.Version][]string{{Major: 3, Minor: 0}: {"extend", "detach", "show"}, {Major: 3, Minor: 10}: {"extend", "detach"}} {
		raw, err := json.Marshal(m.OpenAPI(api.About{Title: "Volumes", Version: "3"}, v))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Paths map[string]map[string]struct {
				OperationID string
				RequestBody struct {
					Content map[string]struct {
						Schema struct {
							OneOf []struct{ Title, Description string }
						}
					}
				}
				Responses map[string]struct{ Content map[string]any }
			}
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		op := doc.Paths["/v3/disks/{id}/action"]["post"]
		var got []string
		for _, one := range op.RequestBody.Content["application/json"].Schema.OneOf {
			got = append(got, one.Title)
			if one.Title == "extend" && one.Description != "Make it larger" {
				t.Errorf("extend is described as %q", one.Description)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || op.OperationID != "postV3DisksIdAction" {
			t.Errorf("version %v, %s (-want +got):\n%s", v, op.OperationID, diff)
		}
		_, accepted := op.Responses["202"]
		_, conflict := op.Responses["409"]
		if show := op.Responses["200"].Content != nil; !accepted || !conflict || show != (len(want) == 3) {
			t.Errorf("version %v: responses %v", v, op.Responses)
		}
	}
}

// TestOptionalBody: if only some of the actions with the same status reply with a body, the document says that the body of
// the reply is optional.
func TestOptionalBody(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	type size struct {
		Size int `json:"size"`
	}
	def := api.Route{Pattern: "POST /disks/{id}/action", Status: http.StatusAccepted}
	def.Action = "measure"
	api.HandleRoute(m, def, func(context.Context, *api.Request[api.None]) (size, error) { return size{1}, nil })
	only, err := apitest.NewChecker(m.OpenAPI(api.About{Title: "Disks", Version: "1"}, api.Version{}))
	if err != nil {
		t.Fatal(err)
	}
	def.Action = "wipe"
	api.HandleRoute(m, def, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
	both, err := apitest.NewChecker(m.OpenAPI(api.About{Title: "Disks", Version: "1"}, api.Version{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		c    *apitest.Checker
		body string
		ok   bool
	}{{only, "", false}, {only, `{"size": 1}`, true}, {both, "", true}, {both, `{"size": 1}`, true}, {both, `{}`, false}} {
		if err := tt.c.Check(http.MethodPost, "/disks/7/action", http.StatusAccepted, []byte(tt.body)); (err == nil) != tt.ok {
			t.Errorf("body %q, both actions %v: %v", tt.body, tt.c == both, err)
		}
	}
}

// TestOperationIDs: each operation has its own id.
func TestOperationIDs(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	for _, p := range []string{"GET /v3", "GET /v3/{$}", "GET /a-b", "GET /a/b"} {
		api.Handle(m, p, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
	}
	raw, err := json.Marshal(m.OpenAPI(api.About{}, api.Version{}))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			if other := ids[op.OperationID]; other != "" {
				t.Errorf("%s %s and %s are both %s", method, path, other, op.OperationID)
			}
			ids[op.OperationID] = path
		}
	}
}
