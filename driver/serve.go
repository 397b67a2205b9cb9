package driver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/armature-go/armature/driver/driverpb"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// handshake makes a program know that a worker has started it. It is no secret.
var handshake = goplugin.HandshakeConfig{MagicCookieKey: "ARMATURE_DRIVER", MagicCookieValue: "1"}

const (
	logLevelKey = "ARMATURE_LOG_LEVEL"
	// maxRequest is the size of a message that a program takes, in bytes.
	maxRequest = 64 << 20
	// closeTime is how long a program whose worker is gone takes to close its
	// driver.
	closeTime = 10 * time.Second
)

// Serve is the main function of a program that is a driver. It makes the driver
// with open when the worker that started it calls, as [Registry.Add] describes,
// and returns, or ends the process, when that worker has closed it or is gone.
//
//	func main() { driver.Serve(volume.Kind, acme.Open) }
//
// The default logger of log/slog, and what is written to the standard error,
// become the worker's log; records with a context carry the ids of its request. A
// method that panics answers Internal, and the panic is logged. SIGINT and SIGTERM
// are left to the worker, which ends its programs when it has drained.
//
// Started by hand it says what it is, and exits with 2.
func Serve[D Driver](k Kind[D], open func(ctx context.Context, options json.RawMessage) (D, error)) {
	k.check()
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		fmt.Fprintf(os.Stderr, "%s is a %s driver, protocol %d. A worker starts it: put it into the worker's plugin_dir as armature-%s-NAME, and name NAME in its configuration.\n",
			filepath.Base(os.Args[0]), k.Name, k.Protocol, k.Name)
		os.Exit(2)
	}
	level := slog.LevelInfo
	_ = level.UnmarshalText([]byte(os.Getenv(logLevelKey))) // stays Info
	slog.SetDefault(slog.New(reqctx.LogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM) // caught, not ignored: what the driver starts would inherit that

	s := newServer(k, open)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its end, however it comes, is the worker's
		time.AfterFunc(closeTime, func() { os.Exit(1) })
		if err := s.close(); err != nil {
			slog.Error("close the driver", "error", err)
		}
		os.Exit(0)
	}()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{k.Protocol: {pluginName: &grpcPlugin{s: s}}},
		GRPCServer:       s.grpcServer,
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr, JSONFormat: true}),
	})
}

const pluginName = "driver"

// grpcPlugin is what go-plugin wants to know: s in the program, nothing in the
// worker.
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	s *server
}

func (p *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	p.s.register(g)
	return nil
}

func (p *grpcPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// server is the driver's side of the wire.
type server struct {
	driverpb.UnimplementedDriverServer

	kind     string
	services services // by nobody
	make     func(ctx context.Context, options json.RawMessage) (Driver, services, error)

	mu  sync.Mutex             // of Open and Close
	cur atomic.Pointer[opened] // nil before Open and after Close
}

type opened struct {
	d     Driver
	impls map[string]any // by the names of services
}

// services collects what Kind.Register registers.
type services []registration

type registration struct {
	desc *grpc.ServiceDesc
	impl any
}

func (s *services) RegisterService(d *grpc.ServiceDesc, impl any) {
	*s = append(*s, registration{d, impl})
}

func newServer[D Driver](k Kind[D], open func(context.Context, json.RawMessage) (D, error)) *server {
	s := &server{kind: k.Name}
	var none D
	k.Register(&s.services, none)
	s.make = func(ctx context.Context, options json.RawMessage) (Driver, services, error) {
		d, err := open(ctx, options)
		if err != nil {
			return nil, nil, err
		}
		var impls services
		k.Register(&impls, d)
		return d, impls, nil
	}
	return s
}

// grpcServer makes the server that register is to be called with.
func (s *server) grpcServer(opts []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxRequest),
		grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
}

// register registers the kind's services before there is a driver: gRPC takes no
// more once it serves. A call looks up the driver that Open has made.
func (s *server) register(g grpc.ServiceRegistrar) {
	driverpb.RegisterDriverServer(g, s)
	for _, r := range s.services {
		d := *r.desc
		d.HandlerType = (*any)(nil)
		d.Methods = append([]grpc.MethodDesc(nil), d.Methods...)
		for i, m := range d.Methods {
			d.Methods[i].Handler = func(_ any, ctx context.Context, dec func(any) error, ic grpc.UnaryServerInterceptor) (any, error) {
				impl, err := s.impl(d.ServiceName)
				if err != nil {
					return nil, toStatus(err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
				}
				return m.Handler(impl, ctx, dec, ic)
			}
		}
		d.Streams = append([]grpc.StreamDesc(nil), d.Streams...)
		for i, m := range d.Streams {
			d.Streams[i].Handler = func(_ any, ss grpc.ServerStream) error {
				impl, err := s.impl(d.ServiceName)
				if err != nil {
					return err
				}
				return m.Handler(impl, ss)
			}
		}
		g.RegisterService(&d, s)
	}
}

var errNotOpen = fault.Sentinel(fault.Unavailable, "DriverNotOpen", "the driver is not open")

func (s *server) impl(service string) (any, error) {
	o := s.cur.Load()
	if o == nil {
		return nil, errNotOpen
	}
	return o.impls[service], nil
}

// Open implements the service of driver.proto.
func (s *server) Open(ctx context.Context, req *driverpb.OpenRequest) (*driverpb.OpenResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur.Load() != nil {
		return nil, fault.New(fault.Precondition, "the driver is open already")
	}
	d, impls, err := s.make(ctx, req.GetOptions())
	if err != nil {
		return nil, err
	}
	o := &opened{d: d, impls: make(map[string]any, len(impls))}
	for _, r := range impls {
		o.impls[r.desc.ServiceName] = r.impl
	}
	s.cur.Store(o)
	return &driverpb.OpenResponse{Kind: s.kind}, nil
}

// Info implements the service of driver.proto.
func (s *server) Info(ctx context.Context, _ *driverpb.InfoRequest) (*driverpb.InfoResponse, error) {
	o := s.cur.Load()
	if o == nil {
		return nil, errNotOpen
	}
	info, err := o.d.Info(ctx)
	if err != nil {
		return nil, err
	}
	resp := &driverpb.InfoResponse{Name: info.Name, Version: info.Version}
	for _, c := range info.Capabilities {
		resp.Capabilities = append(resp.Capabilities, string(c))
	}
	return resp, nil
}

// Close implements the service of driver.proto.
func (s *server) Close(context.Context, *driverpb.CloseRequest) (*driverpb.CloseResponse, error) {
	return &driverpb.CloseResponse{}, s.close()
}

// close closes the driver if it is open. It waits for an Open that runs.
func (s *server) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.cur.Swap(nil)
	if o == nil {
		return nil
	}
	return o.d.Close()
}

// unary is around every method of a driver that is no stream.
func unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	ctx = incoming(ctx)
	defer func() {
		if r := recover(); r != nil {
			resp, err = nil, panicked(ctx, info.FullMethod, r)
		}
		if err != nil {
			err = toStatus(err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
		}
	}()
	return next(ctx, req)
}

// stream is around every method that is one.
func stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx := incoming(ss.Context())
	defer func() {
		if r := recover(); r != nil {
			err = panicked(ctx, info.FullMethod, r)
		}
		if err != nil {
			err = toStatus(err, ss.SetTrailer)
		}
	}()
	return next(srv, &serverStream{ss, ctx})
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // gRPC's interface has it so
}

func (s *serverStream) Context() context.Context { return s.ctx }

func panicked(ctx context.Context, method string, r any) error {
	slog.ErrorContext(ctx, "a driver's method panicked", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "%s panicked: %v", short(method), r)
}
