package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/session"
)

// writtenNeutron is a Keystone and a Neutron that only lists ports and security groups.
type writtenNeutron struct {
	*network.Neutron

	ports  map[string][]string // the groups of each port, by its id
	groups map[string]string   // the name of each group, by its id
	asked  atomic.Int32        // the number of requests to Neutron
	down   atomic.Bool
}

func newWrittenNeutron(t *testing.T, ports map[string][]string, groups map[string]string) *writtenNeutron {
	t.Helper()
	n := &writtenNeutron{ports: ports, groups: groups}
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	mux.HandleFunc("POST /v3/auth/tokens", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Subject-Token", "token")
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, `{"token": {"expires_at": "2100-01-01T00:00:00.000000Z", "catalog": [{"type": "network", "endpoints": [{"interface": "public", "region_id": "r", "url": %q}]}]}}`, srv.URL)
	})
	list := func(kind string, objects func(ids []string) []map[string]any) {
		mux.HandleFunc("GET /v2.0/"+kind, func(w http.ResponseWriter, r *http.Request) {
			n.asked.Add(1)
			if n.down.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]any{strings.ReplaceAll(kind, "-", "_"): objects(r.URL.Query()["id"])})
		})
	}
	list("ports", func(ids []string) (out []map[string]any) {
		for id, groups := range n.ports {
			if slices.Contains(ids, id) {
				out = append(out, map[string]any{"id": id, "security_groups": groups})
			}
		}
		return out
	})
	list("security-groups", func(ids []string) (out []map[string]any) {
		for id, name := range n.groups {
			if slices.Contains(ids, id) {
				out = append(out, map[string]any{"id": id, "name": name})
			}
		}
		return out
	})
	var err error
	if n.Neutron, err = network.New(session.Config{AuthURL: srv.URL + "/v3", Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSecurityGroups: as in Nova, a server shows the groups that its ports have in Neutron, once for each port. A list asks Neutron once for all its servers. If Neutron is away, the
// groups are the last ones that nova-mini knows.
func TestSecurityGroups(t *testing.T) {
	t.Parallel()
	var all sync.Map // the network service of each cloud, by its store
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		own, _ := all.Load(c.store)
		neutron := own.(*writtenNeutron) //nolint:forcetypeassert // see all
		made, given := func(port string) network.Interface { return network.Interface{Port: network.Port{ID: port}} }, func(port string) network.Interface {
			return network.Interface{Request: network.Request{Port: port}, Port: network.Port{ID: port}}
		}
		for i, tt := range []struct {
			name, want, away string
			has              *network.Wanted
			requests         int32
		}{
			{"no port", "", "", &network.Wanted{}, 0},
			{"no network", "", "", nil, 0},
			{"own port", `[{"name":"default"},{"name":"web"}]`, `[{"name":"default"}]`, &network.Wanted{Interfaces: []network.Interface{made("p-own")}}, 2},
			{"given port", `[{"name":"web"}]`, "", &network.Wanted{Interfaces: []network.Interface{given("p-given")}}, 2},
			{"two ports", `[{"name":"web"},{"name":"default"},{"name":"web"}]`, `[{"name":"asked"}]`, &network.Wanted{Interfaces: []network.Interface{given("p-given"), made("p-own")}, Groups: []network.Group{{ID: "g", Name: "asked"}}}, 2},
			{"no group", "", `[{"name":"default"}]`, &network.Wanted{Interfaces: []network.Interface{made("p-none")}}, 1},
			{"a group without a name", `[{"name":"g3"}]`, "", &network.Wanted{Interfaces: []network.Interface{given("p-nameless")}}, 2},
			{"a group of others", "", "", &network.Wanted{Interfaces: []network.Interface{given("p-hidden")}}, 2},
			{"a deleted port", "", "", &network.Wanted{Interfaces: []network.Interface{given("p-gone")}}, 1},
		} {
			neutron.down.Store(false)
			id := c.addActive(fmt.Sprint("s", i))
			c.exec(`UPDATE servers SET networks = ? WHERE id = ?`, db.JSONOf(tt.has), id)
			shown := func(method, path, body string) string {
				c.Helper()
				status, reply := c.ask("member", method, path, body)
				var one struct {
					Server  map[string]json.RawMessage
					Servers []map[string]json.RawMessage
				}
				if err := json.Unmarshal([]byte(reply), &one); err != nil || status != http.StatusOK {
					c.Fatalf("%s: %s %s: %d %s", tt.name, method, path, status, reply)
				}
				for _, s := range one.Servers {
					if string(s["id"]) == `"`+id+`"` {
						return string(s["security_groups"])
					}
				}
				return string(one.Server["security_groups"])
			}
			neutron.asked.Store(0)
			if got := shown("GET", "/servers/"+id, ""); got != tt.want || neutron.asked.Load() != tt.requests {
				t.Errorf("%s: %s, want %s; %d requests, want %d", tt.name, got, tt.want, neutron.asked.Load(), tt.requests)
			}
			if got := shown("GET", "/servers/detail", ""); got != tt.want {
				t.Errorf("%s, in a list: %s, want %s", tt.name, got, tt.want)
			}
			neutron.asked.Store(0)
			c.at = "2.74"
			if got := shown("PUT", "/servers/"+id, `{"server": {"name": "s"}}`); got != "" || neutron.asked.Load() != 0 {
				t.Errorf("%s, changed, in 2.74: %s; %d requests", tt.name, got, neutron.asked.Load())
			}
			c.at = "2.75"
			if got := shown("PUT", "/servers/"+id, `{"server": {"name": "s"}}`); got != tt.want {
				t.Errorf("%s, changed, in 2.75: %s, want %s", tt.name, got, tt.want)
			}
			c.at = ""
			neutron.down.Store(true)
			if got := shown("GET", "/servers/"+id, ""); got != tt.away {
				t.Errorf("%s, while Neutron is away: %s, want %s", tt.name, got, tt.away)
			}
		}
		neutron.down.Store(false)
		neutron.asked.Store(0)
		if status, reply := c.ask("member", "GET", "/servers/detail", ""); status != http.StatusOK || neutron.asked.Load() != 2 {
			t.Errorf("the list: %d requests to Neutron, want 2: %d %.200s", neutron.asked.Load(), status, reply)
		}
	}, func(cfg *api.Config) {
		n := newWrittenNeutron(t, map[string][]string{"p-own": {"g1", "g2"}, "p-given": {"g2"}, "p-none": {}, "p-nameless": {"g3"}, "p-hidden": {"g4"}},
			map[string]string{"g1": "default", "g2": "web", "g3": ""})
		all.Store(cfg.Store, n)
		cfg.Network = n.Neutron
	})
}
