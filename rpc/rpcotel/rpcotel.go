// Package rpcotel makes OpenTelemetry spans of rpc requests, on both sides, and
// joins them over the bus.
//
//	client := rpc.NewClient(bus, rpc.ClientConfig{Interceptors: []rpc.Interceptor{rpcotel.Client(provider)}})
//	server := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Interceptors: []rpc.Interceptor{rpcotel.Server(provider)}})
//
// The W3C traceparent travels with calls, casts and fanouts as
// reqctx.Request.Traceparent, which also stands on log lines. A tracestate does
// not travel.
//
// A call makes a client span and a server span, a cast and a fanout a producer
// span and a consumer span; they are called "interface.method". A failed one has
// the fault code as error.type.
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

// Client returns the interceptor for clients.
func Client(p trace.TracerProvider) rpc.Interceptor {
	return intercept(p.Tracer(scope), trace.SpanKindClient, trace.SpanKindProducer)
}

// Server returns the interceptor for servers.
func Server(p trace.TracerProvider) rpc.Interceptor {
	return intercept(p.Tracer(scope), trace.SpanKindServer, trace.SpanKindConsumer)
}

func intercept(tracer trace.Tracer, call, other trace.SpanKind) rpc.Interceptor {
	return func(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
		kind := other
		if info.Kind == "call" {
			kind = call
		}
		ctx, span := tracer.Start(parent(ctx), info.Interface+"."+info.Method, trace.WithSpanKind(kind), trace.WithAttributes(
			attribute.String("rpc.system", "armature"),
			attribute.String("rpc.service", info.Interface),
			attribute.String("rpc.method", info.Method),
			attribute.String("messaging.operation.name", info.Kind),
			attribute.String("messaging.destination.name", destination(info)),
		))
		defer span.End()
		resp, err := next(carry(ctx), req)
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

// parent returns ctx with the span that the request came with, if ctx has none.
func parent(ctx context.Context) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	from := reqctx.From(ctx).Traceparent
	if from == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: from})
}

// carry puts the current span where rpc and the log take it from.
func carry(ctx context.Context) context.Context {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	r := reqctx.From(ctx)
	if carrier[traceparent] == "" || carrier[traceparent] == r.Traceparent {
		return ctx
	}
	r.Traceparent = carrier[traceparent]
	return reqctx.With(ctx, r)
}
