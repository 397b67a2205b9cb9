package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/service/api"
)

// TestHistory: the history has each route, field, filter and sort key that a version adds, removes or changes. It also has the version from
// which unknown parameters are refused. It has nothing else.
func TestHistory(t *testing.T) {
	t.Parallel()
	type part struct {
		Rack  string `json:"rack" since:"3.3"`
		Shelf string `json:"shelf"`
	}
	type disk struct {
		ID     string `json:"id"`
		Cost   int    `json:"cost" since:"3.2" until:"3.6"`
		Parts  []part `json:"parts" since:"3.2"`
		Price  *part  `json:"price" until:"3.4"`
		Always int    `json:"always" since:"3.1"`
		Size   int    `json:"size" until:"3.6"`
		Bytes  string `json:"bytes" name:"size" since:"3.7"`
	}
	type list struct {
		Disks []disk `json:"disks"`
	}
	type create struct {
		Name string `json:"name,omitempty" since:"3.7"`
	}
	m, _ := newMux(api.Config{
		Microversions: &api.Microversions{Service: "disk", Min: "3.1", Max: "3.9"}, Authenticate: asRole, Enforce: enforceByRole,
	})
	lists := disks
	lists.Lenient, lists.StrictSince = true, "3.5"
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/disks", List: &lists}, func(context.Context, *api.Request[api.None]) (list, error) { return list{}, nil })
	api.HandleRoute(m, api.Route{Pattern: "POST /v3/disks", Min: "3.4"}, func(context.Context, *api.Request[create]) (api.None, error) { return api.None{}, nil })
	api.HandleRoute(m, api.Route{Pattern: "POST /v3/disks/{id}/action", Action: "spin", Max: "3.8"}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/late", Min: "3.8"}, func(context.Context, *api.Request[api.None]) (disk, error) { return disk{}, nil })
	for _, ends := range [][2]string{{"", "3.5"}, {"3.6", ""}} {
		api.HandleRoute(m, api.Route{Pattern: "GET /v3/twice", Min: ends[0], Max: ends[1]}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
	}
	var got strings.Builder
	for _, c := range m.History() {
		fmt.Fprintf(&got, "%s %s: %s\n", c.Version, c.Where, c.What)
	}
	want := `3.2 GET /v3/disks: reply: disks[].cost is added
3.2 GET /v3/disks: reply: disks[].parts is added
3.2 GET /v3/disks: filter changes-before is added
3.2 GET /v3/disks: sort key label is added
3.3 GET /v3/disks: reply: disks[].parts[].rack is added
3.3 GET /v3/disks: reply: disks[].price.rack is added
3.4 GET /v3/disks: sort key label is removed
3.4 GET /v3/disks: sort key former is removed
3.4 POST /v3/disks: the route is added
3.5 GET /v3/disks: reply: disks[].price is removed
3.5 GET /v3/disks: unknown parameters are refused
3.6 GET /v3/twice: the route is changed
3.7 GET /v3/disks: reply: disks[].cost is removed
3.7 GET /v3/disks: reply: disks[].size is changed
3.7 POST /v3/disks: request: name is added
3.8 GET /v3/late: the route is added
3.9 POST /v3/disks/{id}/action (spin): the route is removed
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	plain, _ := newMux(api.Config{})
	if got := plain.History(); got != nil {
		t.Errorf("without microversions: %v", got)
	}
}
