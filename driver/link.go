package driver

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/armature-go/armature/fault"
)

// link forwards calls to the process that runs now. Kind.Client gets a view of the link, so the driver that Kind.Client
// returns stays usable when the program is restarted or replaced.
type link struct {
	name        string
	observe     func(method string, took time.Duration, err error) // or nil
	check       func() error                                       // returns the reason why cur is nil
	closeDriver func(context.Context) error                        // closes the driver, as supervisor.close

	cur  atomic.Pointer[route]         // nil while no program can be called
	held atomic.Pointer[chan struct{}] // while it is not nil, new calls wait until the channel is closed
	shut atomic.Bool                   // set by drain
}

// newLink returns a link without a process. The caller must set check and closeDriver.
func newLink(name string, observe func(string, time.Duration, error)) *link {
	return &link{name: name, observe: observe}
}

// close closes the driver without a deadline of the caller.
func (l *link) close() error { return l.closeDriver(context.Background()) }

// view returns a connection for the driver of a protocol.
func (l *link) view(protocol int) *view { return &view{link: l, protocol: protocol} }

// begin returns the process for one call, or an error with code Unavailable. It blocks while calls are held. If ctx ends
// first, it returns Timeout or Canceled. The caller must call endCall of the route after the call.
func (l *link) begin(ctx context.Context, protocol int) (*route, error) {
	for {
		if l.shut.Load() {
			return nil, fault.New(fault.Unavailable, "driver %s is closed", l.name)
		}
		if err := l.awaitHeld(ctx); err != nil {
			return nil, err
		}
		switch r := l.cur.Load(); {
		case r == nil:
			if err := l.check(); err != nil {
				return nil, err
			}
			// Another program was started, or calls were held, between Load and check.
		case r.protocol != protocol:
			return nil, fault.New(fault.Unavailable, "driver %s: its program was replaced by one with protocol %d, but this call is of protocol %d: call Plugin.Driver for each use", l.name, r.protocol, protocol)
		case !r.beginCall(): // the route was retired after Load; by now cur, held or shut has another value
		case l.shut.Load():
			r.endCall() // drain has begun, and may not wait for this call
		default:
			return r, nil
		}
	}
}

// awaitHeld waits while calls are held. If ctx ends first, it returns Timeout or Canceled.
func (l *link) awaitHeld(ctx context.Context) error {
	held := l.held.Load()
	if held == nil {
		return nil
	}
	select {
	case <-*held:
		return nil
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "driver %s: wait for the replacement of its program: %w", l.name, ctx.Err())
	}
}

// holdCalls makes new calls wait until the returned function is called.
func (l *link) holdCalls() (release func()) {
	c := make(chan struct{})
	l.held.Store(&c)
	return func() {
		l.held.Store(nil)
		close(c)
	}
}

// drain refuses new calls, cancels streams, and waits for running calls until ctx ends.
func (l *link) drain(ctx context.Context) {
	l.shut.Store(true)
	if r := l.cur.Load(); r != nil {
		r.retired.Store(true)
		r.cutStreams("the driver is closed")
		r.awaitIdle(ctx)
	}
}

// route is the connection to one process. It counts the calls and streams that run there.
type route struct {
	conn     *grpc.ClientConn
	protocol int

	retired atomic.Bool   // no call may begin
	n       atomic.Int64  // running calls and streams
	idle    chan struct{} // gets an element when n becomes 0 while retired is set
	cut     chan struct{} // closed to cancel streams
	cutOne  sync.Once
	why     string // why streams were canceled; valid when cut is closed
}

func newRoute(p *process) *route {
	return &route{conn: p.conn, protocol: p.protocol, idle: make(chan struct{}, 1), cut: make(chan struct{})}
}

// beginCall records the beginning of a call, and returns false if no call may begin.
func (r *route) beginCall() bool {
	r.n.Add(1)
	if r.retired.Load() {
		r.endCall()
		return false
	}
	return true
}

// endCall records the end of a call.
func (r *route) endCall() {
	if r.n.Add(-1) == 0 && r.retired.Load() {
		select {
		case r.idle <- struct{}{}:
		default:
		}
	}
}

// awaitIdle waits until a retired route has no calls, and returns false if ctx ends first.
func (r *route) awaitIdle(ctx context.Context) bool {
	for r.n.Load() > 0 {
		select {
		case <-r.idle:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// cutStreams cancels the running streams. The errors of the streams contain the text why.
func (r *route) cutStreams(why string) {
	r.cutOne.Do(func() {
		r.why = why
		close(r.cut)
	})
}

// view is the connection of a driver of one protocol. With a fixed route its calls go to one process, which the link does not
// use yet.
type view struct {
	*link

	protocol int
	fixed    *route // or nil
}

// begin does what link.begin does, unless the view has a fixed route.
func (l *view) begin(ctx context.Context) (*route, error) {
	if l.fixed == nil {
		return l.link.begin(ctx, l.protocol)
	}
	if !l.fixed.beginCall() {
		return nil, fault.New(fault.Unavailable, "driver %s is closed", l.name)
	}
	return l.fixed, nil
}

// Invoke implements grpc.ClientConnInterface.
func (l *view) Invoke(ctx context.Context, method string, req, resp any, opts ...grpc.CallOption) error {
	began := time.Now()
	r, err := l.begin(ctx)
	if err == nil {
		var out outcome
		if err = r.conn.Invoke(outgoingContext(ctx), method, req, resp, out.options(opts)...); err != nil {
			err = out.err(ctx, l.name, method, err)
		}
		r.endCall()
	}
	if l.observe != nil {
		l.observe(method, time.Since(began), err)
	}
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (l *view) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	began := time.Now()
	r, err := l.begin(ctx)
	if err != nil {
		if l.observe != nil {
			l.observe(method, time.Since(began), err)
		}
		return nil, err
	}
	s := &clientStream{link: l.link, route: r, method: method, began: began, user: ctx, many: desc.ServerStreams}
	ctx, s.cancel = context.WithCancel(outgoingContext(ctx))
	go func() {
		defer r.endCall() // finish also cancels ctx
		select {
		case <-r.cut:
		case <-ctx.Done():
		}
		s.cancel()
	}()
	s.ClientStream, err = r.conn.NewStream(ctx, desc, method, s.out.options(opts)...)
	if err != nil {
		return nil, s.finish(err)
	}
	return s, nil
}

// clientStream is a stream of calls to a driver.
type clientStream struct {
	grpc.ClientStream
	link   *link
	route  *route
	method string
	began  time.Time
	user   context.Context //nolint:containedctx // the caller's context, which explains errors of the stream
	cancel context.CancelFunc
	out    outcome
	once   sync.Once
	many   bool // the driver sends more than one reply
}

// finish ends the stream and returns the error with a fault code. io.EOF is returned as it is.
func (s *clientStream) finish(err error) error {
	s.cancel()
	if !errors.Is(err, io.EOF) {
		select {
		case <-s.route.cut:
			err = fault.New(fault.Canceled, "driver %s: %s was cut off: %s", s.link.name, shortMethod(s.method), s.route.why)
		default:
			err = s.out.err(s.user, s.link.name, s.method, err)
		}
	}
	s.once.Do(func() {
		if s.link.observe != nil {
			observed := err
			if errors.Is(err, io.EOF) {
				observed = nil
			}
			s.link.observe(s.method, time.Since(s.began), observed)
		}
	})
	return err
}

// RecvMsg implements grpc.ClientStream. io.EOF means the end of the stream without an error.
func (s *clientStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return s.finish(err)
	}
	if !s.many {
		_ = s.finish(io.EOF) // the driver sends one reply only
	}
	return nil
}

// SendMsg implements grpc.ClientStream. io.EOF means that the stream has ended, and that RecvMsg returns the error.
func (s *clientStream) SendMsg(m any) error {
	if err := s.ClientStream.SendMsg(m); err != nil {
		if errors.Is(err, io.EOF) {
			return err
		}
		return s.finish(err)
	}
	return nil
}

// CloseSend implements grpc.ClientStream.
func (s *clientStream) CloseSend() error {
	if err := s.ClientStream.CloseSend(); err != nil {
		return s.finish(err)
	}
	return nil
}
