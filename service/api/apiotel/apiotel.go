// Package apiotel makes OpenTelemetry spans of the requests of a REST API.
//
//	traces := apiotel.New(provider)
//	mux := api.New(api.Config{Observe: traces.Observe})
//	app.Add("http", service.HTTP(":8776", traces.Handler(mux)))
//
// If the request has a W3C traceparent header, its span is a child of the span in that header. The name of the span is the method and the
// route, such as "GET /v3/volumes/{id}". The span has the attributes of OpenTelemetry's conventions for a server, and the request id. The
// attribute url.path is set only after the request, because then the Mux knows whether the path has a secret (api.Route.SecretPath). So
// samplers do not see this attribute, and a CORS preflight does not have it. A reply with a status of 500 or more marks the span as an error.
// The handler finds the span in the context, and in the field Traceparent of reqctx.Request, which package rpc sends with each call.
package apiotel

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// Traces makes spans. It is safe for concurrent use.
type Traces struct{ tracer trace.Tracer }

// New returns Traces that makes spans with the provider p. The caller shuts p down.
func New(p trace.TracerProvider) *Traces {
	return &Traces{p.Tracer("github.com/armature-go/armature/service/api")}
}

// Handler returns a handler that makes a span around each request that next answers. The handler next is an [api.Mux].
func (t *Traces) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w3c := propagation.TraceContext{}
		ctx := w3c.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		attrs := []attribute.KeyValue{
			attribute.String("http.request.method", knownMethod(r.Method)),
			attribute.String("url.scheme", scheme),
			attribute.String("server.address", r.Host),
			attribute.String("network.protocol.version", strings.TrimPrefix(r.Proto, "HTTP/")),
		}
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			attrs = append(attrs, attribute.String("client.address", host))
		}
		if agent := r.UserAgent(); agent != "" {
			attrs = append(attrs, attribute.String("user_agent.original", agent))
		}
		ctx, span := t.tracer.Start(ctx, knownMethod(r.Method), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attrs...))
		defer span.End()
		r = r.WithContext(ctx)
		r.Header = r.Header.Clone()                          // the original header belongs to the server
		w3c.Inject(ctx, propagation.HeaderCarrier(r.Header)) // the Mux reads the trace from the header
		next.ServeHTTP(w, r)
	})
}

// knownMethod returns the name of a known method, or _OTHER.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "_OTHER"
}

// Observe adds the result of a request to its span. It is for the field Observe of api.Config.
func (t *Traces) Observe(ctx context.Context, o api.Observation) {
	span := trace.SpanFromContext(ctx)
	if o.Pattern != "" {
		span.SetName(o.Pattern)
		_, route, _ := strings.Cut(o.Pattern, " ")
		span.SetAttributes(attribute.String("http.route", route))
	}
	span.SetAttributes(attribute.String("url.path", o.Path), attribute.Int("http.response.status_code", o.Status), attribute.String("request.id", reqctx.From(ctx).ID))
	if o.Status >= http.StatusInternalServerError {
		span.SetAttributes(attribute.String("error.type", strconv.Itoa(o.Status)))
		span.SetStatus(codes.Error, "")
	}
}
