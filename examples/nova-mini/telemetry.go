package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"

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
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpcotel"
	"github.com/armature-go/armature/rpc/rpcprom"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apiotel"
	"github.com/armature-go/armature/service/api/apiprom"
	"github.com/armature-go/armature/service/operation/operationprom"
	"github.com/armature-go/armature/service/serviceprom"
	"github.com/armature-go/armature/tlsfile"
)

type telemetryOptions struct {
	Endpoint string  `ini:"otlp_endpoint" help:"URL of a collector of traces with OTLP over HTTP, such as http://127.0.0.1:4318 (default: no traces)"`
	CAFile   string  `ini:"otlp_cafile" protects:"true" help:"authorities that are trusted for the collector's certificate (default: the system's)"`
	CertFile string  `ini:"otlp_certfile" protects:"true" help:"client certificate for the collector"`
	Server   string  `ini:"otlp_server_name" protects:"true" help:"name that the collector's certificate must have (default: the host of otlp_endpoint)"`
	KeyFile  string  `ini:"otlp_keyfile" protects:"true" help:"private key of otlp_certfile, with mode 0600, or 0640 if the file belongs to root"`
	Ratio    float64 `ini:"sample_ratio" default:"1.0" min:"0" max:"1" help:"sampling ratio: the share of new traces that this process exports"`
}

// collector returns the options of the exporter of traces.
func (o *telemetryOptions) collector() ([]otlptracehttp.Option, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fault.New(fault.Invalid, "%q is not of the form http://host:4318", o.Endpoint)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.Invalid, "unknown parameters %q: remove them", u.RawQuery+u.Fragment)
	}
	secure, err := tlsFrom(tlsfile.Client{CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile, ServerName: o.Server})
	if err != nil {
		return nil, fmt.Errorf("read otlp_cafile, otlp_certfile and otlp_keyfile: %w", err)
	}
	out := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(u.JoinPath("v1", "traces").String())}
	if secure != nil {
		if u.Scheme != "https" {
			return nil, fault.New(fault.Invalid, "the URL begins with http://, but files for TLS are set: use https://")
		}
		out = append(out, otlptracehttp.WithTLSClientConfig(secure))
	}
	return out, nil
}

// telemetry has the metrics and the traces of a process.
type telemetry struct {
	registry *prometheus.Registry
	requests *apiprom.Metrics
	rpc      *rpcprom.Metrics
	drivers  *driverprom.Metrics
	database *dbprom.Metrics
	service  *serviceprom.Metrics
	runners  *operationprom.Metrics
	provider *sdktrace.TracerProvider // nil: no traces
	traces   *apiotel.Traces          // nil: no traces
}

func newTelemetry(ctx context.Context, app *service.App, o *options, log *slog.Logger) (*telemetry, error) {
	t := &telemetry{registry: prometheus.NewRegistry(), requests: apiprom.New(), rpc: rpcprom.New(), drivers: driverprom.New(), service: serviceprom.New(), database: dbprom.New(), runners: operationprom.New()}
	t.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		t.service, t.requests, t.rpc, t.drivers, t.database, t.runners,
	)
	t.service.Add(app)
	if o.Telemetry.Endpoint == "" {
		return t, nil
	}
	to, err := o.Telemetry.collector()
	if err != nil {
		return nil, err
	}
	out, err := otlptracehttp.New(ctx, to...)
	if err != nil {
		return nil, fmt.Errorf("option otlp_endpoint in section opentelemetry: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("traces not exported", "option", "otlp_endpoint of [opentelemetry]", "error", err)
	}))
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(out), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.Telemetry.Ratio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "nova-mini"), attribute.String("host.name", o.Host))),
	)
	t.traces = apiotel.New(t.provider)
	app.AddLabeled("traces", "option otlp_endpoint", service.Funcs{OnStop: func(ctx context.Context) error {
		if err := t.provider.Shutdown(ctx); err != nil { // an error here does not fail the stop
			log.WarnContext(ctx, "last traces lost", "option", "otlp_endpoint of [opentelemetry]", "error", err)
		}
		return nil
	}})
	return t, nil
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
