package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

func TestMain(m *testing.M) {
	if how := os.Getenv(idleVar); how != "" {
		if err := idleClients(context.Background(), how); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type disk struct {
	Name  string            `json:"name"`
	Size  int               `json:"size"`
	Tags  []string          `json:"tags,omitempty"`
	Meta  map[string]string `json:"meta,omitempty"`
	Ready bool              `json:"ready,omitempty"`
}

type create struct {
	Disk disk `json:"disk"`
}

// logBuffer stores the log. It is safe for concurrent use.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

// newMux returns a Mux with a few routes, and its log.
func newMux(cfg api.Config) (*api.Mux, *logBuffer) {
	out := new(logBuffer)
	cfg.Logger = slog.New(reqctx.LogHandler(slog.NewTextHandler(out, nil)))
	m := api.New(cfg)
	api.Handle(m, "POST /disks", func(_ context.Context, r *api.Request[create]) (create, error) {
		r.Status = http.StatusAccepted
		r.ReplyHeader.Set("Location", "/disks/1")
		return r.Body, nil
	})
	api.Handle(m, "GET /disks/{id}", func(_ context.Context, r *api.Request[api.None]) (map[string]string, error) {
		return map[string]string{"id": r.PathValue("id"), "fields": r.URL.Query().Get("fields"), "accept": r.Header.Get("Accept")}, nil
	})
	api.Handle(m, "DELETE /disks/{id}", func(context.Context, *api.Request[api.None]) (api.None, error) {
		return api.None{}, nil
	})
	return m, out
}

// failing returns a Mux on which GET /x fails with err.
func failing(cfg api.Config, err error) (*api.Mux, *logBuffer) {
	m, out := newMux(cfg)
	for _, method := range []string{"GET", "POST"} {
		api.Handle(m, method+" /x", func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, err })
	}
	return m, out
}

func send(t *testing.T, h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	if _, ok := r.Header["Content-Type"]; !ok && body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// wantFault checks the status and the complete error body.
func wantFault(t *testing.T, w *httptest.ResponseRecorder, status int, name, message string) {
	t.Helper()
	want := map[string]any{name: map[string]any{"code": float64(status), "message": message}}
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("body %q: %v", w.Body, err)
	}
	if w.Code != status || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("status %d, type %q; want %d, application/json", w.Code, w.Header().Get("Content-Type"), status)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
}

func mustMux(m *api.Mux, _ *logBuffer) *api.Mux { return m }
