package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	// replySlots is how many replies a broker may send ahead to one client.
	// Taking a reply is a map look-up, so it need not be tuned.
	replySlots = 256
	// graceTime is how long a call goes on waiting for its reply when the bus
	// does not know whether it was sent. Also how long a cancel is tried.
	graceTime = 3 * time.Second
)

// ClientConfig configures a Client. The zero value is usable.
type ClientConfig struct {
	// Timeout is how long a Call or Go waits whose context has no deadline.
	// It also bounds how long a Cast or Fanout waits for a bus that is away.
	// Default 60 s, as oslo.messaging's rpc_response_timeout.
	Timeout time.Duration
	// HeartbeatTimeout is how long a call waits without hearing from the server, which
	// sends two heartbeats in that time while the handler runs. Then the
	// call fails with ErrHeartbeatLost although its deadline may be far. No heartbeats come for a call that
	// waits in a queue. The timeout is checked every HeartbeatTimeout/8, so it is detected at most that much
	// late. Default 30 s; negative: only the deadline counts. It is oslo.messaging's call_monitor_timeout.
	// A server whose process is gone is found sooner, whatever the timeout is: see ErrServerLost.
	HeartbeatTimeout time.Duration
	// Caps limits, by interface name, the version that may be sent, for a
	// rolling upgrade. An interface that is not in it is not limited.
	Caps map[string]Version
	// AutoCaps returns caps for interfaces that Caps does not name: of each the
	// oldest version among the servers that live. It is called by the first
	// message, which fails if it does, then again every CapsEvery by one that
	// is sent, which does not wait for it, and by [Client.RefreshCaps]. If it
	// fails then, the last caps stay. It must be safe for concurrent use.
	AutoCaps func(context.Context) (map[string]Version, error)
	// CapsEvery is how old what AutoCaps returned may become. Default 60 s.
	CapsEvery time.Duration
	// Interceptors stand around each message, the first outermost.
	Interceptors []Interceptor
	// Logger gets the events that no caller sees, such as late replies. Default slog.Default().
	Logger *slog.Logger
}

// Client sends requests over a bus, and takes all replies through one private
// topic. It is safe for concurrent use; one client a process is enough.
type Client struct {
	bus          bus.Bus
	cfg          ClientConfig
	topic        string // for replies
	limits       bus.Capabilities
	caps         caps
	interceptors chain

	mu       sync.Mutex
	pending  map[string]*waiter // by the id of the call
	routes   map[routeKey]*route
	peers    map[string]*peer // by the id of the instance
	pings    map[string]ping  // by the id of the message
	watching *time.Timer      // runs tick; nil before the first call
	ticking  bool             // it is set

	listening   atomic.Bool // the reply topic is subscribed to
	subscribing singleflight.Group

	life  context.Context //nolint:containedctx // the client's own life, ended by Close
	end   context.CancelFunc
	wg    sync.WaitGroup
	stats ClientStats // accessed atomically
}

// ClientStats counts what happened to a client's messages since it was made.
type ClientStats struct {
	// Late is how many replies came after their calls had ended.
	Late uint64
	// Canceled is how many servers were told that the caller has given up.
	Canceled uint64
	// HeartbeatLost is how many calls failed with ErrHeartbeatLost.
	HeartbeatLost uint64
	// Lost is how many calls failed with ErrServerLost.
	Lost uint64
}

// NewClient returns a client. It starts nothing: the reply topic is subscribed
// to by the first call.
func NewClient(b bus.Bus, cfg ClientConfig) *Client {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 60 * time.Second
	}
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = 30 * time.Second
	}
	if cfg.CapsEvery <= 0 {
		cfg.CapsEvery = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	life, end := context.WithCancel(context.Background())
	return &Client{
		bus: b, cfg: cfg, topic: prefixReply + newID(), interceptors: newChain(cfg.Interceptors), limits: b.Capabilities(),
		pending: make(map[string]*waiter), life: life, end: end,
		routes: make(map[routeKey]*route), peers: make(map[string]*peer), pings: make(map[string]ping),
	}
}

// Stats returns the counters. They are those of the moment, one by one.
func (c *Client) Stats() ClientStats {
	return ClientStats{
		Late:          atomic.LoadUint64(&c.stats.Late),
		Canceled:      atomic.LoadUint64(&c.stats.Canceled),
		HeartbeatLost: atomic.LoadUint64(&c.stats.HeartbeatLost),
		Lost:          atomic.LoadUint64(&c.stats.Lost),
	}
}

// Close ends the client: calls that wait fail with ErrClosed, although their
// requests may have been executed. It waits for the client's goroutines. The
// bus stays open. It is idempotent and never fails.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock() // a holder may still start a goroutine to be waited for
	if c.watching != nil {
		c.watching.Stop()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// Start does nothing: with Stop it makes the client a part of a service.
func (c *Client) Start(context.Context) error { return nil }

// Stop is Close.
func (c *Client) Stop(context.Context) error { return c.Close() }

// Call sends the request to a server, waits for the result and returns it. host
// is [Any] or the name of one server. It blocks until the reply is there or ctx
// ends, or for ClientConfig.Timeout if ctx has no deadline.
//
// The errors are the handler's own, with [fault.IsRemote] true, and the
// client's: ErrNoConsumer, Unavailable (not executed), Unknown (the connection
// broke while sending, ErrServerLost or ErrHeartbeatLost: may have been executed), Timeout and
// Canceled (nothing is known about the execution), ErrVersionCap, ErrClosed,
// Invalid if the request cannot be encoded, ErrTooLarge if it is too large, or Invalid if [CheckHost] refuses
// the host or the bus cannot carry its topics; ErrReplyTooLarge from the server whose reply is too large.
//
// If ctx is canceled, the server is told, and cancels the handler's context;
// whether that comes in time is not certain.
func Call[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) (*Resp, error) {
	resp, err := c.do(ctx, m.info(bus.Call, host), req, func(b []byte) (any, error) {
		out := new(Resp)
		if err := decode(b, out); err != nil {
			return nil, err
		}
		return out, nil
	})
	if err != nil {
		return nil, err
	}
	out, ok := resp.(*Resp)
	if !ok {
		return nil, fault.New(fault.Internal, "%s: an interceptor returned %T, not %T", m.info(bus.Call, host), resp, out)
	}
	return out, nil
}

// Go sends the request as [Call] does, but does not wait: the result comes back
// by message into the Pending. ctx bounds the whole exchange, not only the
// sending. The error, if any, is ErrVersionCap or ErrClosed; every other one
// comes through the Pending.
func Go[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) (*Pending[Resp], error) {
	if err := c.allowed(ctx, m.info(bus.Call, host)); err != nil {
		return nil, err
	}
	p := &Pending[Resp]{done: make(chan struct{})}
	run := func() {
		defer close(p.done)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(c.life, cancel)() //nolint:contextcheck // Close does not wait for a bus that is away
		p.resp, p.err = Call(ctx, c, m, host, req)
	}
	if !c.spawn(run) {
		return nil, fmt.Errorf("%s: %w", m.info(bus.Call, host), ErrClosed)
	}
	return p, nil
}

// Pending is a result that has not come yet. It is safe for concurrent use.
type Pending[Resp any] struct {
	done chan struct{}
	resp *Resp
	err  error
}

// Done is closed when the result is there.
func (p *Pending[Resp]) Done() <-chan struct{} { return p.done }

// Wait blocks until the result is there, and returns it as [Call] would have.
// If ctx ends first it returns Timeout or Canceled; the request goes on, and
// Wait may be called again.
func (p *Pending[Resp]) Wait(ctx context.Context) (*Resp, error) {
	select {
	case <-p.done:
		return p.resp, p.err
	case <-ctx.Done():
		return nil, fault.New(fault.CodeOf(ctx.Err()), "wait for a reply: %w", ctx.Err())
	}
}

// Cast sends the request one way, to one server: [Any], or the one named host.
// It returns when the bus has taken the message, and for an [AtLeastOnce]
// method that means that the message survives a restart of the broker. A cast
// has no deadline of its own: it waits for a server that is away. Errors as
// [Call], except those of the handler, which stay in the server's log.
func Cast[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) error {
	_, err := c.do(ctx, m.info(bus.Cast, host), req, nil)
	return err
}

// Fanout sends the request one way to all servers of the interface that run
// now. Errors as [Cast]; no server is not an error.
func Fanout[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], req *Req) error {
	_, err := c.do(ctx, m.info(bus.Fanout, Any), req, nil)
	return err
}

// do is the one way of all four verbs; the types are gone from here on. decode
// is nil when no reply is expected.
func (c *Client) do(ctx context.Context, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout)
		defer cancel()
	}
	if err := checkTopics(c.limits.MaxTopic, info.Interface, info.Host); err != nil {
		return nil, fmt.Errorf("%s %s.%s: %w", info.Kind, info.Interface, info.Method, err)
	}
	if err := c.allowed(ctx, info); err != nil {
		return nil, err
	}
	if c.interceptors == nil {
		return c.transmit(ctx, info, req, decode)
	}
	return c.interceptors(ctx, info, req, func(ctx context.Context, req any) (any, error) {
		return c.transmit(ctx, info, req, decode)
	})
}

func (c *Client) transmit(ctx context.Context, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	if decode != nil {
		return c.roundTrip(ctx, info, req, decode)
	}
	m, err := newRequest(ctx, info, req)
	if err != nil {
		return nil, err
	}
	if err := c.bus.Publish(ctx, topicOf(m.Kind, info.Interface, info.Host), m); err != nil {
		return nil, fmt.Errorf("%s %s: %w", info.Kind, info, err)
	}
	return nil, nil //nolint:nilnil // a cast has no result
}

func (c *Client) allowed(ctx context.Context, info Info) error {
	if c.life.Err() != nil {
		return fmt.Errorf("%s: %w", info, ErrClosed)
	}
	limit, capped, err := c.capOf(ctx, info.Interface)
	if err != nil {
		return fmt.Errorf("%s: %w", info, err)
	}
	if capped && !limit.Accepts(info.Version) {
		return fmt.Errorf("%s needs version %s, capped at %s: %w", info, info.Version, limit, ErrVersionCap)
	}
	return nil
}

// spawn runs f in a goroutine that Close waits for, unless the client is
// closed.
func (c *Client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		return false
	}
	c.wg.Go(f)
	return true
}
