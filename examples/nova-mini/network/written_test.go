package network_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// TestNoAddress: a port without an address is refused, unless its owner has asked for none, or it gets one when it is bound. As in Nova, an attachment does not check
// it. Neutron has the attribute ip_allocation only with some of its plug-ins.
func TestNoAddress(t *testing.T) {
	t.Parallel()
	n, mux := written(t)
	mux.HandleFunc("GET /v2.0/ports/{id}", func(w http.ResponseWriter, r *http.Request) { // the id is the allocation
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"port": {"id": %q, "network_id": "n", "project_id": "p", "tenant_id": "p", "fixed_ips": [], "ip_allocation": %q}}`, r.PathValue("id"), r.PathValue("id"))
	})
	for allocation, refused := range map[string]bool{"immediate": true, "none": false, "deferred": false} {
		list := []network.Request{{Port: allocation}}
		got, err := n.Check(t.Context(), network.Client{Project: "p"}, list, false, 1)
		if refused && (!errors.Is(err, fault.Invalid) || err.Error() != "Port "+allocation+" requires a FixedIP in order to be used.") || !refused && (err != nil || got[0].Network != "n") {
			t.Errorf("%s: %v, %v", allocation, got, err)
		}
		if _, err := n.Check(t.Context(), network.Client{Project: "p", Server: "s"}, list, false, 1); err != nil {
			t.Errorf("attach, %s: %v", allocation, err)
		}
	}
}

// written returns a client of a network service whose routes the test adds to the mux.
func written(t *testing.T) (*network.Neutron, *http.ServeMux) {
	t.Helper()
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	mux.HandleFunc("POST /v3/auth/tokens", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Subject-Token", "token")
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, `{"token": {"expires_at": "2100-01-01T00:00:00.000000Z", "catalog": [{"type": "network", "endpoints": [{"interface": "public", "region_id": "r", "url": %q}]}]}}`, srv.URL)
	})
	n, err := network.New(session.Config{AuthURL: srv.URL + "/v3", Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	return n, mux
}

// TestGroupNames: the names of a port are sorted, and the number of requests for the groups of many ports is bounded. A URL has at most 150 ids, as in Nova, and a reply may have several pages.
func TestGroupNames(t *testing.T) {
	t.Parallel()
	n, mux := written(t)
	var requests []string
	list := func(kind, attributes string) {
		mux.HandleFunc("GET /v2.0/"+kind, func(w http.ResponseWriter, r *http.Request) {
			ids := r.URL.Query()["id"]
			requests = append(requests, fmt.Sprintf("%d %s with %v", len(ids), kind, r.URL.Query()["fields"]))
			name, links := strings.ReplaceAll(kind, "-", "_"), ""
			if len(ids) > 100 { // the second page has the others
				next := url.Values{"id": ids[100:]}
				ids, links = ids[:100], fmt.Sprintf(`, "%s_links": [{"rel": "next", "href": "http://%s%s?%s"}]`, name, r.Host, r.URL.Path, next.Encode())
			}
			all := make([]string, len(ids))
			for i, id := range ids {
				all[i] = fmt.Sprintf(`{"id": %q, %s}`, id, strings.ReplaceAll(attributes, "ID", id))
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"%s": [%s]%s}`, name, strings.Join(all, ", "), links)
		})
	}
	list("ports", `"security_groups": ["b", "a"]`)
	list("security-groups", `"name": "group ID"`)
	var ids []string
	for i := range 160 {
		ids = append(ids, fmt.Sprintf("%036d", i), fmt.Sprintf("%036d", i)) // each twice
	}
	got, err := n.GroupNames(t.Context(), "", ids)
	if err != nil || len(got) != 160 || !slices.Equal(got[ids[310]], []string{"group a", "group b"}) {
		t.Errorf("%d ports, %v, %v", len(got), got[ids[310]], err)
	}
	want := []string{"150 ports with [id security_groups]", "50 ports with []", "10 ports with [id security_groups]", "2 security-groups with [id name]"}
	if !slices.Equal(requests, want) {
		t.Errorf("requests %q, want %q", requests, want)
	}
	requests = nil
	if got, err := n.GroupNames(t.Context(), "", nil); len(got)+len(requests) != 0 || err != nil {
		t.Errorf("no ports: %v, %v, requests %q", got, err, requests)
	}
}

// TestRequests: networks and subnets are read by one request for all interfaces of a server.
func TestRequests(t *testing.T) {
	t.Parallel()
	n, mux := written(t)
	var requests []string
	answer := func(pattern string, reply func(r *http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			requests = append(requests, fmt.Sprint(r.Method, " ", strings.TrimPrefix(r.URL.Path, "/v2.0/"), " ", r.URL.Query()["id"]))
			w.Header().Set("Content-Type", "application/json")
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusCreated)
			}
			_ = json.NewEncoder(w).Encode(reply(r))
		})
	}
	type object = map[string]any
	each := func(r *http.Request, of func(id string) object) (out []object) {
		for _, id := range r.URL.Query()["id"] {
			if id != "gone" {
				out = append(out, of(id))
			}
		}
		return out
	}
	made := 0
	answer("GET /v2.0/quotas/p", func(*http.Request) any { return object{"quota": object{"port": 10}} })
	answer("GET /v2.0/ports", func(*http.Request) any { return object{"ports": []object{}} })
	answer("POST /v2.0/ports", func(r *http.Request) any {
		var in struct{ Port object }
		_ = json.NewDecoder(r.Body).Decode(&in)
		made++
		port := in.Port
		port["id"] = fmt.Sprint("port-", made)
		subnet := fmt.Sprint("subnet of ", port["network_id"])
		port["fixed_ips"] = []object{{"subnet_id": subnet, "ip_address": "10.0.0.1"}, {"subnet_id": subnet, "ip_address": "10.0.0.2"}}
		return object{"port": port}
	})
	answer("GET /v2.0/networks", func(r *http.Request) any {
		return object{"networks": each(r, func(id string) object {
			return object{"id": id, "name": "name of " + id, "mtu": 1400, "project_id": "p", "subnets": []string{"s"}}
		})}
	})
	answer("GET /v2.0/subnets", func(r *http.Request) any {
		return object{"subnets": each(r, func(id string) object {
			return object{"id": id, "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.254", "enable_dhcp": true, "host_routes": []object{{"destination": "10.1.0.0/16", "nexthop": "10.0.0.9"}}}
		})}
	})
	list := []network.Request{{Network: "b"}, {Network: "a"}, {Network: "b"}}
	got, err := n.Check(t.Context(), network.Client{Project: "p"}, list, false, 1)
	if want := []string{"GET quotas/p []", "GET ports []", "GET networks [a b]"}; err != nil || !slices.Equal(got, list) || !slices.Equal(requests, want) {
		t.Errorf("check: %v, %v, requests %q, want %q", got, err, requests, want)
	}
	if _, err := n.Check(t.Context(), network.Client{Project: "p"}, []network.Request{{Network: "a"}, {Network: "gone"}}, false, 1); !errors.Is(err, fault.NotFound) || err.Error() != "Network gone could not be found." {
		t.Errorf("a network that does not exist: %v", err)
	}
	requests = nil
	ports, err := n.Allocate(t.Context(), network.Server{ID: "s", Project: "p", Host: "h", Wanted: wanted(list...)})
	want := []string{"GET ports []", "POST ports []", "POST ports []", "POST ports []", "GET networks [a b]", "GET subnets [subnet of a subnet of b]"}
	if err != nil || len(ports) != 3 || !slices.Equal(requests, want) {
		t.Fatalf("allocate: %+v, %v, requests %q, want %q", ports, err, requests, want)
	}
	for i, one := range ports {
		p, in := one.Port, list[i].Network
		if p.NetworkName != "name of "+in || p.MTU != 1400 || p.Host != "h" || len(p.Addresses) != 2 || len(p.Subnets) != 1 || p.Subnets[0].ID != "subnet of "+in || p.Subnets[0].Routes[0].Gateway != "10.0.0.9" {
			t.Errorf("%s: %+v", in, p)
		}
	}
	if p, err := n.Attach(t.Context(), network.Server{ID: "s", Project: "p", Host: "h", Wanted: wanted(network.Request{Network: "gone"})}); !errors.Is(err, fault.NotFound) || p == nil {
		t.Errorf("a network that is gone when its port is made: %+v, %v", p, err)
	}
}
