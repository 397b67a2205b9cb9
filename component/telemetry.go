package component

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/armature-go/armature/db/dbprom"
	"github.com/armature-go/armature/driver/driverprom"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpcotel"
	"github.com/armature-go/armature/rpc/rpcprom"
	"github.com/armature-go/armature/scheduler/schedulerprom"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apiotel"
	"github.com/armature-go/armature/service/api/apiprom"
	"github.com/armature-go/armature/service/auth/authprom"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/membershipprom"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/operation/operationprom"
	"github.com/armature-go/armature/service/serviceprom"
)

// telemetry has the metrics and the traces of a process.
type telemetry struct {
	registry *prometheus.Registry
	requests *apiprom.Metrics
	rpc      *rpcprom.Metrics
	drivers  *driverprom.Metrics
	database *dbprom.Metrics
	service  *serviceprom.Metrics
	runners  *operationprom.Metrics
	tokens   *authprom.Metrics
	decided  *schedulerprom.Metrics
	members  *membershipprom.Metrics
	provider *sdktrace.TracerProvider // nil: no traces
	traces   *apiotel.Traces          // nil: no traces
	log      *slog.Logger
}

// newTelemetry returns the metrics and the traces of a service of a component. If there is an error, it returns telemetry without
// traces as well as the error.
func newTelemetry(ctx context.Context, app *service.App, name, process string, o *Options, log *slog.Logger, dry bool) (*telemetry, error) {
	t := &telemetry{
		registry: prometheus.NewRegistry(), requests: apiprom.New(), rpc: rpcprom.New(), drivers: driverprom.New(), service: serviceprom.New(),
		database: dbprom.New(), runners: operationprom.New(), tokens: authprom.New(), decided: schedulerprom.New(), members: membershipprom.New(), log: log,
	}
	t.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewBuildInfoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		t.service, t.requests, t.rpc, t.drivers, t.database, t.runners, t.tokens, t.decided, t.members,
	)
	t.service.Add(app)
	if o.Telemetry.Endpoint == "" {
		return t, nil
	}
	to, err := o.Telemetry.Collector()
	if err != nil || dry {
		return t, err
	}
	out, err := otlptracehttp.New(ctx, to...)
	if err != nil {
		return t, fmt.Errorf("prepare the export of traces: %w", err)
	}
	var limiter outage.Limiter
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Log(context.WithoutCancel(ctx), limiter.Level(slog.LevelWarn), "traces incomplete", "option", traceOption, "error", err)
	}))
	whole := name // the process with all services has the name of the component
	if process != AllInOne {
		whole += "-" + process
	}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&exporter{SpanExporter: out, log: log}), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.Telemetry.Ratio))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.namespace", name), attribute.String("service.name", whole), attribute.String("host.name", o.Host),
		)),
	)
	t.traces = apiotel.New(t.provider)
	return t, nil
}

// traceOption is the option of the exporter of traces, as log lines name it.
const traceOption = "otlp_endpoint of [opentelemetry]"

// exporter logs the errors of an exporter of traces: the first at once and then at most one a minute, because the SDK exports every 5 s. A later success is logged, too.
type exporter struct {
	sdktrace.SpanExporter

	log     *slog.Logger
	results outage.Group
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error, because the SDK would only log it.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.results.Note(ctx, e.log, slog.LevelWarn, "trace export", "", err, "option", traceOption)
	return nil
}

// addDatabase adds the metrics of a database.
func (t *telemetry) addDatabase(name string, d *sqlx.DB, members *membership.Registry, ops *operation.Store) {
	t.registry.MustRegister(collectors.NewDBStatsCollector(d.DB, name))
	t.members.Add(members)
	t.runners.AddStore(ops)
}

// addParts adds the part that exports the last traces.
func (t *telemetry) addParts(app *service.App) {
	if t.provider == nil {
		return
	}
	app.AddLabeled("traces", "option otlp_endpoint", service.Funcs{OnStop: func(ctx context.Context) error {
		if err := t.provider.Shutdown(ctx); err != nil { // an error here does not fail the stop
			t.log.WarnContext(ctx, "last traces lost", "option", traceOption, "error", err)
		}
		return nil
	}})
}

// metrics returns the page for Prometheus.
func (t *telemetry) metrics() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// around returns a handler that records a span for each request to h.
func (t *telemetry) around(h http.Handler) http.Handler {
	if t.traces == nil {
		return h
	}
	return t.traces.Handler(h)
}

// observe adds a request of the API to the metrics and the traces.
func (t *telemetry) observe(ctx context.Context, o api.Observation) {
	t.requests.Observe(ctx, o)
	if t.traces != nil {
		t.traces.Observe(ctx, o)
	}
}

// client returns the interceptors of an RPC client.
func (t *telemetry) client() []rpc.Interceptor {
	out := []rpc.Interceptor{t.rpc.Client()}
	if t.provider != nil {
		out = append(out, rpcotel.New(t.provider).Client())
	}
	return out
}

// server returns the interceptors of an RPC server.
func (t *telemetry) server() []rpc.Interceptor {
	out := []rpc.Interceptor{t.rpc.Server()}
	if t.provider != nil {
		out = append(out, rpcotel.New(t.provider).Server())
	}
	return out
}
