package apitest_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apitest"
)

// newMux returns an API whose replies have the status and the body that the query names.
func newMux() *api.Mux {
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	answer := func(_ context.Context, r *api.Request[api.None]) (any, error) {
		status, err := strconv.Atoi(r.URL.Query().Get("status"))
		if err != nil {
			return nil, err
		}
		r.Status = status
		switch r.URL.Query().Get("what") {
		case "none":
			return api.None{}, nil
		case "error":
			return nil, api.WithStatus(status, fault.New(fault.Invalid, "what is wrong"))
		case "text":
			return map[string]string{"n": "one"}, nil
		}
		return map[string]int{"n": 1}, nil
	}
	one := []api.Schema{{JSON: `{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}`}}
	api.HandleRoute(m, api.Route{Pattern: "GET /things/{id}", Reply: one, Errors: []int{404}}, answer)
	api.HandleRoute(m, api.Route{Pattern: "GET /things/none", Status: http.StatusNoContent}, func(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
		_, err := answer(ctx, r)
		return api.None{}, err
	})
	m.Health(func(context.Context) error { return nil })
	return m
}

// TestChecker: the checker reports a reply that does not fit the document, both in a client and in a test that calls the handler. It
// reports no reply that fits the document.
func TestChecker(t *testing.T) {
	t.Parallel()
	m := newMux()
	c, err := apitest.NewChecker(m.OpenAPI(api.About{Title: "things", Version: "1"}, api.Version{}))
	if err != nil {
		t.Fatal(err)
	}
	// These are the replies of a service with a mistake.
	broken := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("broken") == "" {
			m.ServeHTTP(w, r)
			return
		}
		status, _ := strconv.Atoi(r.URL.Query().Get("broken"))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, r.URL.Query().Get("body"))
	})
	srv := httptest.NewServer(broken)
	defer srv.Close()
	client := &http.Client{Transport: c.Transport(http.DefaultTransport)}
	for _, tt := range []struct{ path, says string }{
		{"/things/7?status=200", ""},
		{"/things/7?status=200&what=text", "got string, want integer"},
		{"/things/7?status=201", "status 201 is not in the document, which has the statuses [200 404]"},
		{"/things/7?status=200&what=none", "does not fit the document"},
		{"/things/7?status=404&what=error", ""},
		{"/things/7?status=418&what=error", ""},
		{"/things/7?status=404", "does not fit the document"},
		{"/things/7?broken=500&body=argh", "does not fit the document"},
		{"/things/none?status=204", ""},
		{"/things/none?broken=204", ""},
		{"/things/none?broken=200&body={}", "status 200 is not in the document"},
		{"/livez", ""},
		{"/nowhere", ""},
		{"/nowhere?broken=404&body={}", "does not fit the document"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tt.path, http.NoBody)
		w := httptest.NewRecorder()
		c.Handler(broken).ServeHTTP(w, r)
		if text := w.Body.String(); (w.Code == apitest.StatusWrong) != (tt.says != "") || !strings.Contains(text, tt.says) {
			t.Errorf("%s by the handler: %d %s, want %q", tt.path, w.Code, text, tt.says)
		}
		res, err := client.Get(srv.URL + tt.path) //nolint:noctx // only a test uses this client
		switch {
		case err == nil:
			body, readErr := io.ReadAll(res.Body)
			res.Body.Close()
			if tt.says != "" || readErr != nil {
				t.Errorf("%s by the transport: %d %s, want %q", tt.path, res.StatusCode, body, tt.says)
			}
		case tt.says == "" || !strings.Contains(err.Error(), tt.says):
			t.Errorf("%s by the transport: %v, want %q", tt.path, err, tt.says)
		}
	}
	for _, bad := range []any{[]byte("{"), map[string]any{}, map[string]any{"paths": map[string]any{"/x": map[string]any{}}}, make(chan int)} {
		if _, err := apitest.NewChecker(bad); err == nil {
			t.Errorf("NewChecker accepts the document %v", bad)
		}
	}
}
