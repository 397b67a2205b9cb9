package api_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/service/api"
)

// TestBase: a link begins with the name from the Host header only if the address of the connection or the TLS certificate confirms
// the name.
func TestBase(t *testing.T) {
	t.Parallel()
	const evil = "evil.example.org"
	for _, tt := range []struct {
		name, host, public string
		tls                bool
		want               string // "ADDR" stands for the address of the server
	}{
		{"the server's address", "ADDR", "", false, "http://ADDR"},
		{"the server's address without a port", "127.0.0.1", "", false, "http://127.0.0.1"},
		{"localhost", "localhost:80", "", false, "http://localhost:80"},
		{"another name", evil, "", false, "http://ADDR"},
		{"another name with a port", evil + ":8774", "", false, "http://ADDR"},
		{"a name that begins like the address", "127.0.0.1.example.org", "", false, "http://ADDR"},
		{"another address", "192.0.2.1", "", false, "http://ADDR"},
		{"a public URL", evil, "https://api.example.org/volume/", false, "https://api.example.org/volume"},
		{"a name verified by TLS", "example.com", "", true, "https://example.com"}, // the name in httptest's certificate
		{"another name by TLS", evil, "", true, "https://ADDR"},
	} {
		m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler), PublicURL: tt.public})
		api.Handle(m, "GET /base", func(_ context.Context, r *api.Request[api.None]) (string, error) { return api.Base(r.Request), nil })
		api.HandleRoute(m, api.Route{Pattern: "GET /next", List: &listing.Spec{MaxLimit: 1}}, func(_ context.Context, r *api.Request[api.None]) ([]api.Link, error) {
			return r.NextPage(1, "x"), nil
		})
		m.Discover(api.Discovery{ID: "v1", Path: "/v1"})
		srv := httptest.NewUnstartedServer(m)
		start := map[bool]func(){false: srv.Start, true: srv.StartTLS}[tt.tls]
		start()
		t.Cleanup(srv.Close)
		addr := srv.Listener.Addr().String()
		client := srv.Client()
		if tt.tls {
			tr, _ := client.Transport.(*http.Transport)
			tr.TLSClientConfig.ServerName = "example.com"
			tr.TLSClientConfig.MinVersion = tls.VersionTLS13
		}
		for path, suffix := range map[string]string{"/base": `"`, "/next": "/next?marker=x", "/": "/v1/"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = strings.ReplaceAll(tt.host, "ADDR", addr)
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			var body strings.Builder
			if err := res.Write(&body); err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if want := `"` + strings.ReplaceAll(tt.want, "ADDR", addr) + suffix; !strings.Contains(body.String(), want) || tt.host == evil && strings.Contains(body.String(), evil) {
				t.Errorf("%s: GET %s: want %s, got %s", tt.name, path, want, &body)
			}
		}
	}
	for _, public := range []string{"api.example.org", "ftp://x", "https://", "https://u:p@x", "https://x/?a=b", "http://[::1"} {
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.Contains(got, "PublicURL") {
					t.Errorf("%s: panic %q", public, got)
				}
			}()
			api.New(api.Config{PublicURL: public})
		}()
	}
}
