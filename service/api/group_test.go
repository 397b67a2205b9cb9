package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/service/api"
)

// TestGroup: the routes of a group have the fields of the group. The route's own Min, Max, Rule, Status and Summary take precedence. The
// route's Errors are added to those of the group.
func TestGroup(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{Microversions: versionsOfDisks, Authenticate: rolesOf, Enforce: enforceRoles})
	all := api.NewGroup(m, api.Route{Pattern: "/v3", Errors: []int{403}})
	g := api.NewGroup(all, api.Route{Pattern: "/disks", Min: "3.2", Rule: "disk:any", Status: 202, Errors: []int{404}, Summary: "Disks"})
	handler := func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil }
	api.Handle(g, "POST", handler)
	api.Handle(g, "GET /{id}", handler)
	api.HandleRoute(g, api.Route{Pattern: "DELETE /{id}", Min: "3.3", Max: "3.4", Rule: "disk:delete", Status: 204, Errors: []int{409}, Summary: "Delete a disk"}, handler)
	api.HandleRoute(api.NewGroup(m, api.Route{Pattern: "/open", Public: true}), api.Route{Pattern: "GET /it"}, handler)
	tests := []struct {
		method, path, version, roles string
		want                         int
	}{
		{"POST", "/v3/disks", "3.2", "disk:any", 202},
		{"POST", "/v3/disks", "3.1", "disk:any", 404},
		{"POST", "/v3/disks", "3.2", "disk:delete", 403},
		{"GET", "/v3/disks/1", "3.5", "disk:any", 202},
		{"DELETE", "/v3/disks/1", "3.3", "disk:delete", 204},
		{"DELETE", "/v3/disks/1", "3.3", "disk:any", 403},
		{"DELETE", "/v3/disks/1", "3.2", "disk:delete", 404},
		{"DELETE", "/v3/disks/1", "3.5", "disk:delete", 404},
		{"GET", "/open/it", "3.1", "", 204},
	}
	for _, tt := range tests {
		if w := send(t, m, tt.method, tt.path, "", "OpenStack-API-Version", "volume "+tt.version, "X-Auth-Token", tt.roles); w.Code != tt.want {
			t.Errorf("%s %s of %s as %s: status %d, want %d: %s", tt.method, tt.path, tt.version, tt.roles, w.Code, tt.want, w.Body)
		}
	}
	doc := fmt.Sprint(m.OpenAPI(api.About{}, must(api.ParseVersion("3.3"))))
	for _, want := range []string{"summary:Delete a disk", "summary:Disks", "403:map", "404:map", "409:map"} {
		if !strings.Contains(doc, want) {
			t.Errorf("the document lacks %q:\n%s", want, doc)
		}
	}
}

// TestWrongGroup: NewGroup refuses fields that a group cannot have.
func TestWrongGroup(t *testing.T) {
	t.Parallel()
	for want, def := range map[string]api.Route{
		"Action, Body, Idempotency, List, NoEffect, Query, Reply, SecretPath and Statuses are for one route": {Pattern: "/x", Action: "extend"},
		"/{secret}: Action, Body": {Pattern: "/{secret}", SecretPath: true},
		"/y: Action, Body":        {Pattern: "/y", Statuses: []int{207}},
		"without a method":        {Pattern: "GET /x"},
	} {
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, want) || !strings.Contains(p, "group_test.go:") {
					t.Errorf("panic %q, want %q", p, want)
				}
			}()
			api.NewGroup(api.New(api.Config{}), def)
		}()
	}
}

// TestWrongRouteOfGroup: the path of a route in a group must begin with /. Without the /, the path would continue the last word of the
// group's path.
func TestWrongRouteOfGroup(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"GET detail", "GET example.org/x", "GET  /x"} {
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, pattern+" in the group /v3/disks: the path of a route must begin with /") || !strings.Contains(p, "group_test.go:") {
					t.Errorf("%s: panic %q", pattern, p)
				}
			}()
			api.Handle(api.NewGroup(api.New(api.Config{}), api.Route{Pattern: "/v3/disks"}), pattern,
				func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
		}()
	}
}
