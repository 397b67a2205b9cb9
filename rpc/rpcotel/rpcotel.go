// Package rpcotel makes OpenTelemetry spans of rpc requests in client and server, and
// connects the spans over the bus.
//
//	traces := rpcotel.New(provider)
//	client := rpc.NewClient(bus, rpc.ClientConfig{Interceptors: []rpc.Interceptor{traces.Client()}})
//	server := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Interceptors: []rpc.Interceptor{traces.Server()}})
//
// Calls, casts and fanouts carry the W3C traceparent as reqctx.Request.Traceparent. Log
// lines also have it. The messages do not carry a tracestate.
//
// A call has a client span and a server span; a cast and a fanout have a producer span
// and a consumer span. The name of a span is "interface.method". The span of a failed
// request has the fault code as error.type.
package rpcotel

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
)

const (
	scope       = "github.com/armature-go/armature/rpc"
	traceparent = "traceparent"
)

// Traces makes spans. It is safe for concurrent use.
type Traces struct{ tracer trace.Tracer }

// New returns Traces whose spans go to the provider p. The caller keeps ownership of p.
func New(p trace.TracerProvider) *Traces { return &Traces{p.Tracer(scope)} }

// Client returns the interceptor for clients.
func (t *Traces) Client() rpc.Interceptor {
	return t.intercept(trace.SpanKindClient, trace.SpanKindProducer)
}

// Server returns the interceptor for servers.
func (t *Traces) Server() rpc.Interceptor {
	return t.intercept(trace.SpanKindServer, trace.SpanKindConsumer)
}

func (t *Traces) intercept(call, other trace.SpanKind) rpc.Interceptor {
	return func(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
		kind := other
		if info.Kind == "call" {
			kind = call
		}
		ctx, span := t.tracer.Start(withParentSpan(ctx), info.Interface+"."+info.Method, trace.WithSpanKind(kind), trace.WithAttributes(
			attribute.String("rpc.system", "armature"),
			attribute.String("rpc.service", info.Interface),
			attribute.String("rpc.method", info.Method),
			attribute.String("messaging.operation.name", info.Kind),
			attribute.String("messaging.destination.name", destination(info)),
		))
		defer span.End()
		resp, err := next(withTraceparent(ctx), req)
		if err != nil {
			span.SetAttributes(attribute.String("error.type", fault.CodeOf(err).String()))
			span.SetStatus(codes.Error, err.Error())
		}
		return resp, err
	}
}

func destination(info rpc.Info) string {
	if info.Host == rpc.Any {
		return info.Interface
	}
	return info.Interface + "." + info.Host
}

// withParentSpan adds the span of the request's traceparent to ctx, unless ctx has a
// span.
func withParentSpan(ctx context.Context) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	from := reqctx.From(ctx).Traceparent
	if from == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: from})
}

// withTraceparent sets the traceparent of the reqctx.Request to that of the current
// span, for rpc and for log lines.
func withTraceparent(ctx context.Context) context.Context {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	r := reqctx.From(ctx)
	if carrier[traceparent] == "" || carrier[traceparent] == r.Traceparent {
		return ctx
	}
	r.Traceparent = carrier[traceparent]
	return reqctx.With(ctx, r)
}
