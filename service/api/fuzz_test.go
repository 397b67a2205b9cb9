package api_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/service/api"
)

// FuzzRequest: a request with any path, query and version header is answered, and never
// with status 500.
func FuzzRequest(f *testing.F) {
	for _, s := range [][3]string{
		{"/v3/disks", "dry=true&n=3&tag=a&tag=b", "volume 3.10"},
		{"/v3/disks", "n=1e400", "volume latest"},
		{"/v3/late/1", "", "volume 3.50, compute 2.1"},
		{"/v3/disks/", "a=%zz", "volume 3.1.2"},
		{"//v3/../disks", "limit=-1", "volume"},
		{"/disks/%2e%2e", "", ",,"},
		{"/v3", "sort=name:up", "volume 99999999999999999999.1"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	m := versionedMux(api.Config{})
	spec := listing.Spec{
		Sorts:   []listing.Sort{{Name: "name", Column: "name"}},
		Filters: []listing.Filter{{Name: "name", Operator: listing.Regexp}, {Name: "since", Kind: listing.Time, Operator: listing.AtLeast}, {Name: "n", Kind: listing.Integer}},
	}
	api.HandleRoute(m, api.Route{Pattern: "GET /list", List: &spec}, func(_ context.Context, r *api.Request[api.None]) (api.None, error) {
		if r.List.Limit < 0 || r.List.Limit > 1000 {
			return api.None{}, fmt.Errorf("%+v", r.List) // status 500
		}
		return api.None{}, nil
	})
	f.Fuzz(func(t *testing.T, path, query, version string) {
		for _, path := range []string{path, "/list"} {
			for _, method := range []string{"GET", "POST"} {
				r := httptest.NewRequestWithContext(t.Context(), method, "/", nil)
				r.URL.Path, r.URL.RawQuery = path, query
				r.Header.Set("OpenStack-API-Version", version)
				w := httptest.NewRecorder()
				m.ServeHTTP(w, r)
				if w.Code >= 500 || w.Code < 200 || w.Header().Get("X-Openstack-Request-Id") == "" {
					t.Errorf("%s %q ? %q, version %q: %d %s", method, path, query, version, w.Code, w.Body)
				}
			}
		}
	})
}

// FuzzHeaders: a request with any value of the headers that the package reads is answered,
// and never with status 500. The request id in the reply is always the service's own.
func FuzzHeaders(f *testing.F) {
	for _, s := range [][2]string{
		{"application/json", `"abc"`},
		{"application/json; charset=utf-8", "*"},
		{"text/plain", `W/"a", "b"`},
		{"application/json;", "gzip;q=0, br"},
		{`multipart/form-data; boundary="`, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{"a/b;=;", "req-11111111-2222-3333-4444-555555555555"},
		{"", "https://dashboard.example.org"},
	} {
		f.Add(s[0], s[1])
	}
	m := versionedMux(api.Config{Gzip: true, CORS: &api.CORS{Origins: []string{"https://dashboard.example.org"}}})
	f.Fuzz(func(t *testing.T, contentType, value string) {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			r := httptest.NewRequestWithContext(t.Context(), method, "/v3/disks", strings.NewReader(`{"name": "a"}`))
			r.Header.Set("Content-Type", contentType)
			for _, name := range []string{
				"Accept", "Accept-Encoding", "If-Match", "If-None-Match", "Origin", "Access-Control-Request-Method", "Traceparent",
				"X-Openstack-Request-Id", "X-Auth-Token", "X-Forwarded-Proto", "Forwarded", "X-Roles", "Content-Encoding",
			} {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			m.ServeHTTP(w, r)
			id := w.Header().Get("X-Openstack-Request-Id")
			if w.Code >= 500 || w.Code < 200 || id == value || id == "" && method != "OPTIONS" {
				t.Errorf("%s, content type %q, others %q: %d %s, id %q", method, contentType, value, w.Code, w.Body, id)
			}
		}
	})
}
