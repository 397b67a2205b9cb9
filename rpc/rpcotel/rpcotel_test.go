package rpcotel_test

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpcotel"
	"github.com/armature-go/armature/rpc/rpctest"
)

var (
	iface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
	start = rpc.Method[string, string]{Interface: iface, Name: "start", Since: rpc.Version{Major: 1}}
	event = rpc.Method[string, rpc.None]{Interface: iface, Name: "event", Since: rpc.Version{Major: 1}}
)

// TestSpans: for every kind of request, the server's span is a child of the client's span. Requests
// that the handler sends belong to the same trace. If the caller's context has a trace, the spans
// continue that trace.
func TestSpans(t *testing.T) {
	t.Parallel()
	rec := tracetest.NewSpanRecorder()
	tp := trace.NewTracerProvider(trace.WithSpanProcessor(rec))
	bus := rpctest.NewBus(t)
	c := rpc.NewClient(bus, rpc.ClientConfig{Interceptors: []rpc.Interceptor{rpcotel.New(tp).Client()}})
	defer c.Close()
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "h", Interceptors: []rpc.Interceptor{rpcotel.New(tp).Server()}})
	rpc.Handle(srv, start, func(ctx context.Context, _ *string) (*string, error) {
		if err := rpc.Fanout(ctx, c, event, new(string)); err != nil {
			t.Error(err)
		}
		return nil, fault.New(fault.Denied, "no")
	})
	got := make(chan string, 1)
	rpc.Handle(srv, event, func(ctx context.Context, _ *string) (*rpc.None, error) {
		got <- reqctx.From(ctx).Traceparent
		return &rpc.None{}, nil
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	const outside = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := reqctx.With(t.Context(), reqctx.Request{ID: "req-1", Traceparent: outside})
	if _, err := rpc.Call(ctx, c, start, "h", new(string)); fault.CodeOf(err) != fault.Denied {
		t.Error(err)
	}
	last := <-got
	if err := srv.Stop(t.Context()); err != nil { // after Stop all spans have ended
		t.Error(err)
	}

	spans := map[oteltrace.SpanKind]trace.ReadOnlySpan{}
	for _, s := range rec.Ended() {
		spans[s.SpanKind()] = s
	}
	want := []struct {
		kind, parent oteltrace.SpanKind
		name         string
		failed       bool
	}{
		{oteltrace.SpanKindClient, 0, "backup.start", true},
		{oteltrace.SpanKindServer, oteltrace.SpanKindClient, "backup.start", true},
		{oteltrace.SpanKindProducer, oteltrace.SpanKindServer, "backup.event", false},
		{oteltrace.SpanKindConsumer, oteltrace.SpanKindProducer, "backup.event", false},
	}
	if len(rec.Ended()) != len(want) {
		t.Fatalf("%d spans, want %d", len(rec.Ended()), len(want))
	}
	for _, w := range want {
		s := spans[w.kind]
		if s == nil {
			t.Errorf("no %v span", w.kind)
			continue
		}
		parent := "b7ad6b7169203331"
		if p := spans[w.parent]; p != nil {
			parent = p.SpanContext().SpanID().String()
		}
		if s.Name() != w.name || s.Parent().SpanID().String() != parent || s.SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" ||
			(s.Status().Code == codes.Error) != w.failed {
			t.Errorf("%v span %q, trace %v, parent %v, status %v; want %q, parent %s", w.kind, s.Name(),
				s.SpanContext().TraceID(), s.Parent().SpanID(), s.Status(), w.name, parent)
		}
	}
	if consumer := spans[oteltrace.SpanKindConsumer]; consumer != nil {
		if want := "00-0af7651916cd43dd8448eb211c80319c-" + consumer.SpanContext().SpanID().String() + "-01"; last != want {
			t.Errorf("the handler's traceparent is %s, want that of the server-side span %s", last, want)
		}
	}
}
