package api_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// enforceOwner allows administrators every rule. It allows members the rule "member", but only for objects of their project.
// The rule "broken" fails.
func enforceOwner(ctx context.Context, rule string, target map[string]any) error {
	who := reqctx.From(ctx)
	switch {
	case rule == "broken":
		return fault.New(fault.Unavailable, "the policy cannot be read")
	case strings.Contains(strings.Join(who.Roles, " "), "admin"):
		return nil
	case rule == "member" && (target == nil || target["project_id"] == who.ProjectID) && strings.Contains(strings.Join(who.Roles, " "), "member"):
		return nil
	}
	return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
}

type ownedDisk struct{ ID, Project string }

func noDisk(id string) error { return fault.New(fault.NotFound, "Disk %s could not be found.", id) }

func loadDisk(_ context.Context, r *http.Request) (*ownedDisk, error) {
	id := r.PathValue("id")
	project, ok := map[string]string{"a": "p1", "b": "p2", "none": ""}[id]
	if !ok {
		return nil, noDisk(id)
	}
	return &ownedDisk{id, project}, nil
}

var diskTarget = api.Target[*ownedDisk]{
	Load:    loadDisk,
	Policy:  func(d *ownedDisk) map[string]any { return map[string]any{"project_id": d.Project} },
	Missing: func(r *http.Request) error { return noDisk(r.PathValue("id")) },
}

// TestTarget: the reply depends on the client's role and on the owner of the object. If the client may not use an object of
// another project, the reply is as for an object that does not exist. If the client may not use an object of its own project,
// the request is denied. The handler gets the object.
func TestTarget(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{Authenticate: asRole, Enforce: enforceOwner})
	calls := 0
	show := func(_ context.Context, _ *api.Request[api.None], d *ownedDisk) (map[string]string, error) {
		calls++
		return map[string]string{"id": d.ID}, nil
	}
	group := api.NewGroup(m, api.Route{Pattern: "/v1/{id}", Rule: "member"})
	api.HandleTarget(group, api.Route{Pattern: "GET"}, diskTarget, show)
	api.HandleTarget(group, api.Route{Pattern: "GET /admin", Rule: "admin"}, diskTarget, show)
	api.HandleTarget(group, api.Route{Pattern: "GET /broken", Rule: "broken"}, diskTarget, show)
	unowned, empty := diskTarget, diskTarget
	unowned.Policy = func(*ownedDisk) map[string]any { return map[string]any{} }
	api.HandleTarget(group, api.Route{Pattern: "GET /unowned"}, unowned, show)
	empty.Policy = func(*ownedDisk) map[string]any { return nil }
	api.HandleTarget(group, api.Route{Pattern: "GET /empty"}, empty, show)
	wrong := diskTarget
	wrong.Missing = func(*http.Request) error { return nil }
	api.HandleTarget(group, api.Route{Pattern: "GET /wrong"}, wrong, show)
	api.HandleTarget(group, api.Route{Pattern: "GET /early", Rule: "admin"}, api.Target[*ownedDisk]{Load: loadDisk}, show)
	api.HandleTarget(group, api.Route{Pattern: "PUT"}, diskTarget, func(_ context.Context, _ *api.Request[create], d *ownedDisk) (map[string]string, error) {
		calls++
		return map[string]string{"id": d.ID}, nil
	})
	for _, tt := range []struct{ role, project, method, path, want string }{
		{"member", "p1", "GET", "/v1/a", `200 {"id":"a"}`},
		{"member", "p1", "GET", "/v1/b", "404 Disk b could not be found."},
		{"member", "p1", "GET", "/v1/c", "404 Disk c could not be found."},
		{"reader", "p1", "GET", "/v1/a", "403 Policy doesn't allow member to be performed."},
		{"reader", "p1", "GET", "/v1/b", "404 Disk b could not be found."},
		{"member", "", "GET", "/v1/a", "404 Disk a could not be found."},
		{"admin", "p2", "GET", "/v1/a", `200 {"id":"a"}`},
		{"admin", "", "GET", "/v1/b", `200 {"id":"b"}`},
		{"admin", "p2", "GET", "/v1/c", "404 Disk c could not be found."},
		{"member", "p1", "GET", "/v1/a/admin", "403 Policy doesn't allow admin to be performed."},
		{"member", "p1", "GET", "/v1/b/admin", "404 Disk b could not be found."},
		{"member", "p1", "GET", "/v1/b/broken", "503"},
		{"member", "p1", "GET", "/v1/a/unowned", "403"},
		{"member", "p1", "GET", "/v1/a/empty", "403"},
		{"member", "p1", "GET", "/v1/b/wrong", "404 The resource could not be found."},
		{"member", "p1", "GET", "/v1/c/early", "403"}, // the rule does not depend on the object
		{"admin", "p1", "GET", "/v1/c/early", "404 Disk c could not be found."},
		{"member", "p1", "PUT", "/v1/b", "400"}, // without a body, Load is not called
	} {
		before := calls
		w := send(t, m, tt.method, tt.path, "", "X-Test-Role", tt.role, "X-Test-Project", tt.project)
		status, says, _ := strings.Cut(tt.want, " ")
		if !strings.Contains(w.Body.String(), says) || (status == "200") != (calls > before) || (status == "200") != (w.Code == 200) {
			t.Errorf("%s of %q: %s %s = %d %s, want %s", tt.role, tt.project, tt.method, tt.path, w.Code, w.Body, tt.want)
		}
		if status != "200" && !strings.Contains(w.Body.String(), `"code":`+status) {
			t.Errorf("%s of %q: %s %s = %d %s, want %s", tt.role, tt.project, tt.method, tt.path, w.Code, w.Body, tt.want)
		}
	}
}

// TestWrongTarget: HandleTarget panics if a part of the Target is missing or has no effect.
func TestWrongTarget(t *testing.T) {
	t.Parallel()
	noMissing := diskTarget
	noMissing.Missing = nil
	for _, tt := range []struct {
		target api.Target[*ownedDisk]
		rule   string
		says   string
	}{
		{api.Target[*ownedDisk]{}, "member", "Load is required"},
		{noMissing, "member", "Missing is required with a Policy"},
		{diskTarget, "", "Policy has no effect without a Rule"},
		{api.Target[*ownedDisk]{Load: loadDisk, Missing: diskTarget.Missing}, "member", "Missing has no effect without a Policy"},
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, tt.says) || !strings.Contains(text, "target_test.go") {
					t.Errorf("%q, want %s", text, tt.says)
				}
			}()
			m, _ := newMux(api.Config{Enforce: enforceOwner})
			api.HandleTarget(m, api.Route{Pattern: "GET /v1/{id}", Rule: tt.rule}, tt.target, func(context.Context, *api.Request[api.None], *ownedDisk) (api.None, error) {
				return api.None{}, nil
			})
		}()
	}
}
