package component_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/armature-go/armature/internal/waittest"
)

// TestTraceExport: while the collector of traces refuses them, one line a minute says so. A line says when the collector takes them again.
func TestTraceExport(t *testing.T) {
	t.Parallel()
	var refused, taken atomic.Int32
	var works atomic.Bool
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if works.Load() {
			taken.Add(1)
			return
		}
		refused.Add(1)
		w.WriteHeader(http.StatusBadRequest)
	}))
	defer collector.Close()
	w := newWorld()
	p, log, stop := w.start(t, nil, "OS_DEFAULT__HOST=h1", "OS_DEFAULT__LISTEN=127.0.0.1:0", "OS_DEFAULT__STATE_PATH="+t.TempDir(), "OS_OPENTELEMETRY__OTLP_ENDPOINT="+collector.URL)
	<-p.App.Started()
	ask := func() bool {
		for range 520 { // a batch is exported after 512 requests
			res, err := http.Get("http://" + p.Addr() + "/v1") //nolint:noctx // the server is in this process
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
		return true
	}
	waittest.Until(t, "three refused exports", func() bool { return ask() && refused.Load() >= 3 })
	works.Store(true)
	waittest.Until(t, "an accepted export", func() bool {
		return ask() && taken.Load() >= 1 && strings.Contains(log.String(), "trace export works again")
	})
	stop()
	text := log.String()
	if n := strings.Count(text, "trace export failed"); n != 1 || !strings.Contains(text, "otlp_endpoint") || strings.Contains(text, "traces incomplete") {
		t.Errorf("%d lines about failed exports, want 1:\n%s", n, text)
	}
}
