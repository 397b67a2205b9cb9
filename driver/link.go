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

// link is the connection to the process that runs now. Kind.Client gets it as its
// grpc.ClientConnInterface, so the driver that Kind.Client returns stays usable when the program is restarted.
type link struct {
	name    string
	observe func(method string, took time.Duration, err error) // or nil
	check   func() error                                       // returns the reason why conn is nil
	end     func(context.Context) error                        // closes the driver, as supervisor.close

	conn atomic.Pointer[grpc.ClientConn] // nil while no program can be called

	shut   atomic.Bool   // set by drain
	n      atomic.Int64  // running calls
	idle   chan struct{} // gets an element when n becomes 0 after shut was set
	cut    chan struct{} // closed to cancel streams
	cutOne sync.Once
}

// newLink returns a link without a connection. Its check and end must be set.
func newLink(name string, observe func(string, time.Duration, error)) *link {
	return &link{name: name, observe: observe, idle: make(chan struct{}, 1), cut: make(chan struct{})}
}

// close closes the driver without a deadline of the caller.
func (l *link) close() error { return l.end(context.Background()) }

// begin returns the connection for one call, or an error with
// code Unavailable. Call ended after the call.
func (l *link) begin() (*grpc.ClientConn, error) {
	l.n.Add(1)
	c := l.conn.Load()
	if l.shut.Load() {
		l.ended()
		return nil, fault.New(fault.Unavailable, "driver %s is closed", l.name)
	}
	if c == nil {
		l.ended()
		if err := l.check(); err != nil {
			return nil, err
		}
		return nil, fault.New(fault.Unavailable, "driver %s is being restarted", l.name) // the program was restarted between Load and check
	}
	return c, nil
}

// ended records the end of a call.
func (l *link) ended() {
	if l.n.Add(-1) == 0 && l.shut.Load() {
		select {
		case l.idle <- struct{}{}:
		default:
		}
	}
}

// drain refuses new calls, cancels streams, and waits for running calls
// until ctx ends.
func (l *link) drain(ctx context.Context) {
	l.shut.Store(true)
	l.cutOne.Do(func() { close(l.cut) })
	for l.n.Load() > 0 {
		select {
		case <-l.idle:
		case <-ctx.Done():
			return
		}
	}
}

// Invoke implements grpc.ClientConnInterface.
func (l *link) Invoke(ctx context.Context, method string, req, resp any, opts ...grpc.CallOption) error {
	began := time.Now()
	c, err := l.begin()
	if err == nil {
		var out outcome
		if err = c.Invoke(outgoingContext(ctx), method, req, resp, out.options(opts)...); err != nil {
			err = out.err(ctx, l.name, method, err)
		}
		l.ended()
	}
	if l.observe != nil {
		l.observe(method, time.Since(began), err)
	}
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (l *link) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	began := time.Now()
	c, err := l.begin()
	if err != nil {
		if l.observe != nil {
			l.observe(method, time.Since(began), err)
		}
		return nil, err
	}
	defer l.ended() // drain cancels streams and does not wait for them
	s := &clientStream{link: l, method: method, began: began, user: ctx, many: desc.ServerStreams}
	ctx, s.cancel = context.WithCancel(outgoingContext(ctx))
	go func() {
		select {
		case <-l.cut:
		case <-ctx.Done():
		}
		s.cancel()
	}()
	s.ClientStream, err = c.NewStream(ctx, desc, method, s.out.options(opts)...)
	if err != nil {
		return nil, s.finish(err)
	}
	return s, nil
}

// clientStream is a stream of calls to a driver.
type clientStream struct {
	grpc.ClientStream
	link   *link
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
		case <-s.link.cut:
			err = fault.New(fault.Canceled, "driver %s: %s was cut off: the driver is closed", s.link.name, shortMethod(s.method))
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
