package apiotel_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apiotel"
)

// TestSpans: the span of a request is a child of the client's span and has the name of the route. The
// handler's spans are children of the request's span. The span of a failed request is marked as an error.
// No span has a secret of a path.
func TestSpans(t *testing.T) {
	t.Parallel()
	rec := tracetest.NewSpanRecorder()
	traces := apiotel.New(trace.NewTracerProvider(trace.WithSpanProcessor(rec)))
	mux := api.New(api.Config{Observe: traces.Observe, Logger: slog.New(slog.DiscardHandler)})
	var inside, parent string
	api.Handle(mux, "GET /v1/volumes/{id}", func(ctx context.Context, r *api.Request[api.None]) (map[string]string, error) {
		inside, parent = oteltrace.SpanContextFromContext(ctx).SpanID().String(), reqctx.From(ctx).Traceparent
		if r.PathValue("id") == "broken" {
			return nil, errors.New("no disk")
		}
		return map[string]string{"id": "1"}, nil
	})
	api.HandleRoute(mux, api.Route{Pattern: "GET /v1/tokens/{token}", SecretPath: true}, func(context.Context, *api.Request[api.None]) (api.None, error) {
		return api.None{}, nil
	})
	h := traces.Handler(mux)
	const outside = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, path := range []string{"/v1/volumes/1", "/v1/volumes/broken", "/nowhere", "/v1/tokens/secret", "/v1/tokens/secret/"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		r.Header.Set("Traceparent", outside)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if r.Header.Get("Traceparent") != outside {
			t.Error("the request's own header was changed")
		}
		if path == "/v1/volumes/1" {
			if want := "00-0af7651916cd43dd8448eb211c80319c-" + inside + "-01"; parent != want {
				t.Errorf("traceparent %q in the handler, want %q", parent, want)
			}
		}
	}
	var got []string
	for _, s := range rec.Ended() {
		set := attribute.NewSet(s.Attributes()...)
		status, _ := set.Value("http.response.status_code")
		route, _ := set.Value("http.route")
		path, _ := set.Value("url.path")
		failed := ""
		if s.Status().Code == codes.Error {
			failed = " failed"
		}
		got = append(got, s.Name()+" "+route.AsString()+" "+status.String()+" "+path.AsString()+failed)
		if s.SpanKind() != oteltrace.SpanKindServer || s.Parent().SpanID().String() != "b7ad6b7169203331" || s.Parent().TraceID() != s.SpanContext().TraceID() {
			t.Errorf("span %s: kind %v, parent %v", s.Name(), s.SpanKind(), s.Parent())
		}
		if id, _ := set.Value("request.id"); !reqctx.ValidID(id.AsString()) {
			t.Errorf("request id %q", id.AsString())
		}
	}
	want := []string{
		"GET /v1/volumes/{id} /v1/volumes/{id} 200 /v1/volumes/1", "GET /v1/volumes/{id} /v1/volumes/{id} 500 /v1/volumes/broken failed", "GET  404 /nowhere",
		"GET /v1/tokens/{token} /v1/tokens/{token} 204 /v1/tokens/{token}", "GET  404 /v1/tokens/{token}",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
