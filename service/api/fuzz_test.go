package api_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/armature-go/armature/service/api"
)

// FuzzRequest: a request with any path, query and version header is answered, and
// never with status 500.
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
	f.Fuzz(func(t *testing.T, path, query, version string) {
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
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.URL.RawQuery = query
		if p, err := (api.Pages{SortKeys: []string{"name"}}).Read(r); err == nil && (p.Limit < 0 || p.Limit > 1000) {
			t.Errorf("%q: %+v", query, p)
		}
	})
}

// FuzzHeaders: a request with any value of the headers that the package reads is answered,
// and never with status 500. The request id of the reply is the service's own.
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
