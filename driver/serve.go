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

// handshake tells a program that a worker has started it. It is not a secret.
var handshake = goplugin.HandshakeConfig{MagicCookieKey: "ARMATURE_DRIVER", MagicCookieValue: "1"}

const (
	// logLevelKey is the environment variable with the lowest level that the worker's log accepts.
	logLevelKey = "ARMATURE_LOG_LEVEL"
	// maxRequest is the maximum size of a message to a program, in bytes.
	maxRequest = 64 << 20
	// closeTimeout is how long a program may take to close its driver after its worker has
	// ended.
	closeTimeout = 10 * time.Second
)

// Serve is the main function of a driver's program. When the worker opens the driver, Serve calls the function open, which
// [Registry.Add] describes. Serve returns, or ends the process, when the worker has closed the driver or has ended.
//
//	func main() { driver.Serve(volume.Kind, acme.Open) }
//
// Records of log/slog's default logger, and lines that the program writes to its standard error,
// are written to the worker's log. Records with a context have the ids of its request. If a
// method panics, the worker gets an error with code Internal, and the panic is logged with its stack. The program ignores
// SIGINT and SIGTERM, because the worker ends its programs when it has drained.
//
// If a user starts the program by hand, it prints what it is for, and exits with status 2.
func Serve[D Driver](k Kind[D], open func(ctx context.Context, options json.RawMessage) (D, error)) {
	k.check()
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		fmt.Fprintf(os.Stderr, "%s is a %s driver, protocol %d. A worker starts it: put the program into the worker's plugin_dir as armature-%s-NAME, and write NAME as the driver in the worker's configuration.\n",
			filepath.Base(os.Args[0]), k.Name, k.Protocol, k.Name)
		os.Exit(2)
	}
	level := slog.LevelInfo
	_ = level.UnmarshalText([]byte(os.Getenv(logLevelKey))) // on an error the level stays Info
	slog.SetDefault(slog.New(reqctx.LogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM) // not signal.Ignore, because processes that the driver starts would inherit that

	s := newServer(k, open)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the end of the standard input, even by an error, means that the worker has ended
		time.AfterFunc(closeTimeout, func() { os.Exit(1) })
		if err := s.close(); err != nil {
			slog.Error("driver close failed", "error", err)
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

// pluginName is the name of the program's only plugin, in go-plugin's terms.
const pluginName = "driver"

// grpcPlugin implements go-plugin's GRPCPlugin. The field s is set in the program, and nil in
// the worker.
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	s *server
}

// GRPCServer registers the services in the program.
func (p *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	p.s.register(g)
	return nil
}

// GRPCClient returns the connection to the program, in the worker.
func (p *grpcPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// server is the driver's side of the wire.
type server struct {
	driverpb.UnimplementedDriverServer

	kind     string
	services services                                                                     // the services of the driver's kind, without an implementation
	make     func(ctx context.Context, options json.RawMessage) (Driver, services, error) // opens the driver

	mu  sync.Mutex             // held by Open and Close
	cur atomic.Pointer[opened] // nil before Open and after Close
}

// opened is an open driver.
type opened struct {
	d     Driver
	impls map[string]any // the key is the name of the service
}

// services collects the services that Kind.Register registers.
type services []registration

// registration is a service with its implementation.
type registration struct {
	desc *grpc.ServiceDesc
	impl any
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *services) RegisterService(d *grpc.ServiceDesc, impl any) {
	*s = append(*s, registration{d, impl})
}

// newServer returns the server of a kind. The function open makes the driver.
func newServer[D Driver](k Kind[D], open func(context.Context, json.RawMessage) (D, error)) *server {
	s := &server{kind: k.Name}
	var none D
	k.Register(&s.services, none)
	s.make = func(ctx context.Context, options json.RawMessage) (Driver, services, error) {
		d, err := k.opened(open(ctx, options))
		if err != nil {
			return nil, nil, err
		}
		var impls services
		k.Register(&impls, d)
		return d, impls, nil
	}
	return s
}

// grpcServer makes the gRPC server, with the interceptors of a driver.
func (s *server) grpcServer(opts []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxRequest),
		grpc.ChainUnaryInterceptor(interceptUnary), grpc.ChainStreamInterceptor(interceptStream))...)
}

// register registers the kind's services before the driver is open, because a gRPC server accepts no service
// after it has started to serve. Each call looks up the implementation that Open has made.
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

// impl returns the implementation of a service. It fails with Unavailable if the driver is not open.
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
		return nil, fault.New(fault.Precondition, "the driver is already open")
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
	resp := &driverpb.InfoResponse{Name: info.Name, Version: info.Version, Concurrent: info.Concurrent}
	for _, c := range info.Capabilities {
		resp.Capabilities = append(resp.Capabilities, string(c))
	}
	return resp, nil
}

// Close implements the service of driver.proto.
func (s *server) Close(context.Context, *driverpb.CloseRequest) (*driverpb.CloseResponse, error) {
	return &driverpb.CloseResponse{}, s.close()
}

// close closes the driver if it is open. It waits for a running Open.
func (s *server) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.cur.Swap(nil)
	if o == nil {
		return nil
	}
	return o.d.Close()
}

// interceptUnary is the interceptor of methods without a stream. It adds the request of package reqctx to the context, and turns
// panics and errors into gRPC statuses.
func interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	ctx = incomingContext(ctx)
	defer func() {
		if r := recover(); r != nil {
			resp, err = nil, panicError(ctx, info.FullMethod, r)
		}
		if err != nil {
			err = toStatus(err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
		}
	}()
	resp, err = next(ctx, req)
	readError(err)
	return resp, err
}

// interceptStream is the interceptor of methods with a stream. It does the same as interceptUnary.
func interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx := incomingContext(ss.Context())
	defer func() {
		if r := recover(); r != nil {
			err = panicError(ctx, info.FullMethod, r)
		}
		if err != nil {
			err = toStatus(err, ss.SetTrailer)
		}
	}()
	err = next(srv, &serverStream{ss, ctx})
	readError(err)
	return err
}

// readError calls the methods of a driver's error. These methods may panic, for example because the error is a nil pointer. The
// interceptors, which call readError, recover the panic.
func readError(err error) {
	if err != nil {
		_, _ = err.Error(), fault.From(err)
	}
}

// serverStream is a stream with another context.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // gRPC's interface requires it
}

func (s *serverStream) Context() context.Context { return s.ctx }

// panicError logs a panic and returns the error for the worker.
func panicError(ctx context.Context, method string, r any) error {
	slog.ErrorContext(ctx, "driver method panicked", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "%s panicked: %v", shortMethod(method), r)
}
