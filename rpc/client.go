package rpc

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	// replySlots is the prefetch of a client's reply topic. Handling a reply is a map look-up, so the prefetch need not be tuned.
	replySlots = 256
	// graceTime is how long a call still waits for its reply after the bus
	// reported that sending has an unknown outcome. It also bounds the sending of a
	// cancel.
	graceTime = 3 * time.Second
)

// ClientConfig configures a Client. The zero value is usable.
type ClientConfig struct {
	// Timeout is the timeout of a Call or Go whose context has no deadline. It is also how
	// long a Cast or Fanout without a deadline waits for a broker that cannot be reached.
	// Default 60 s, as oslo.messaging's rpc_response_timeout.
	Timeout time.Duration
	// HeartbeatTimeout is how long a call waits without a heartbeat. Then the call
	// fails with ErrHeartbeatLost, even if its deadline is much later. The server sends
	// two heartbeats in that time while the handler runs, and none for a call that
	// waits in a queue. The timeout is checked every HeartbeatTimeout/8, so the call fails at most that much late. Default 30 s;
	// negative: only the deadline counts. It is oslo.messaging's call_monitor_timeout. The loss of a server's process is detected
	// sooner, whatever the timeout is: see ErrServerLost.
	HeartbeatTimeout time.Duration
	// Caps limits, by interface name, the versions that the client may send. An interface
	// that is not a key has the limit of AutoCaps, if any. Default: no limit.
	Caps Versions
	// AutoCaps returns the caps of the interfaces that Caps does not name: the versions that all running servers accept. So the client
	// sends only messages that all running servers support, even during a rolling upgrade. An interface that the answer does not name
	// has the lowest version as its cap: MAJOR.0 of the oldest major version, see Interface.Older. An interface with an empty list may
	// not be used at all.
	//
	// The client first calls AutoCaps in Start, or with its first message. Then it calls AutoCaps every CapsEvery, after an ErrUnsupportedVersion, in
	// [Client.Reload], and before a message fails with ErrVersionCap. While AutoCaps fails, the last caps stay, and messages cause a call at most
	// every 100 ms.
	//
	// AutoCaps must be safe for concurrent use. It may send messages with its own context through the client that is its argument. Such messages do
	// not wait for the caps if they need only the lowest version. Package service/membership/rpccaps has implementations. Default nil: no limit.
	AutoCaps func(context.Context, *Client) (Versions, error)
	// CapsEvery is the time between two calls of AutoCaps. Each interval is shortened at random by up to a tenth. If a server starts with an older
	// version than all others, clients may send this server messages that it does not support, for at most this long. Default 10 s.
	CapsEvery time.Duration
	// CapsWait is how long messages wait for the first success of AutoCaps, within their own deadlines. After this time the
	// client is ready without the caps: it logs a warning, sends only messages of the lowest version, and continues to call AutoCaps.
	// Default 10 s.
	CapsWait time.Duration
	// Interceptors run around each message, the first outermost.
	Interceptors []Interceptor
	// Logger gets the events that no error reports, such as late replies. Default slog.Default().
	Logger *slog.Logger
}

// Client sends requests over a bus, and receives all replies on one private topic. It is safe for concurrent use; one client for a process is enough.
// It can be a part of a service.App: it has Start, Stop, Check and Reload.
type Client struct {
	bus          bus.Bus
	cfg          ClientConfig
	topic        string // for replies
	limits       bus.Capabilities
	caps         *caps
	interceptors chain

	mu       sync.Mutex
	pending  map[string]*waiter // the key is the id of the call
	routes   map[routeKey]*route
	peers    map[string]*peer // the key is the id of the server's instance
	pings    map[string]ping  // the key is the id of the ping message
	watching *time.Timer      // runs tick; nil before the first call
	ticking  bool             // the timer watching is set

	listening   atomic.Bool // the reply topic is subscribed to
	subscribing singleflight.Group

	skewLines outage.Limiter // limits the log lines about servers whose clocks disagree

	life  context.Context //nolint:containedctx // the client's own life, ended by Close
	end   context.CancelFunc
	wg    sync.WaitGroup
	stats ClientStats // accessed atomically
}

// ClientStats are the counters of a client since NewClient.
type ClientStats struct {
	// Late counts the replies that came after their calls had ended.
	Late uint64
	// Canceled counts the cancel messages that were sent because callers had given up.
	Canceled uint64
	// HeartbeatLost counts the calls that failed with ErrHeartbeatLost.
	HeartbeatLost uint64
	// Lost counts the calls that failed with ErrServerLost.
	Lost uint64
}

// NewClient returns a client, which the caller must close. NewClient starts nothing: the first call subscribes to the reply topic. The client never
// closes the bus.
func NewClient(b bus.Bus, cfg ClientConfig) *Client {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 60 * time.Second
	}
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = 30 * time.Second
	}
	cfg.CapsEvery = cmp.Or(max(cfg.CapsEvery, 0), 10*time.Second)
	cfg.CapsWait = cmp.Or(max(cfg.CapsWait, 0), 10*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	life, end := context.WithCancel(context.Background())
	return &Client{
		bus: b, cfg: cfg, topic: prefixReply + newID(), interceptors: newChain(cfg.Interceptors), limits: b.Capabilities(),
		pending: make(map[string]*waiter), life: life, end: end, caps: newCaps(),
		routes: make(map[routeKey]*route), peers: make(map[string]*peer), pings: make(map[string]ping),
	}
}

// Stats returns the counters. Each counter is read on its own, so one counter may be slightly newer than another.
func (c *Client) Stats() ClientStats {
	return ClientStats{
		Late:          atomic.LoadUint64(&c.stats.Late),
		Canceled:      atomic.LoadUint64(&c.stats.Canceled),
		HeartbeatLost: atomic.LoadUint64(&c.stats.HeartbeatLost),
		Lost:          atomic.LoadUint64(&c.stats.Lost),
	}
}

// Close ends the client. Calls that wait for a reply fail with ErrClosed; their requests
// may have been executed. Close waits for the client's goroutines. The bus stays open.
// Close is idempotent and never fails.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock() // spawn may still add a goroutine to wg under this lock
	if c.watching != nil {
		c.watching.Stop()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// Start begins to read the version caps, see ClientConfig.AutoCaps, and returns nil at once. A client that is not started begins
// to read the caps with its first message.
func (c *Client) Start(context.Context) error {
	c.startCaps()
	return nil
}

// Stop is Close, without regard to the context.
func (c *Client) Stop(context.Context) error { return c.Close() }

// Call sends the request to a server, waits for the result and returns it. The parameter host is [Any] or the name of one server. Call blocks until
// the reply comes or ctx ends, or for ClientConfig.Timeout if ctx has no deadline. With ClientConfig.AutoCaps, the first messages of the client wait,
// within this time, until the client knows its version caps.
//
// An error is the handler's own, with [fault.IsRemote] true, or one of these:
//
//   - ErrNoConsumer, Unavailable: the request was not executed.
//   - Unknown: the connection broke while sending, or ErrServerLost or
//     ErrHeartbeatLost. The request may have been executed.
//   - Timeout, Canceled: ctx ended. The request may have been executed.
//   - ErrVersionCap: nothing was sent.
//   - ErrClosed: the client or the bus was closed. If the call already waited for its reply, the request may have been executed.
//   - Invalid: the request cannot be encoded, [CheckHost] refuses the host, or the
//     bus cannot carry the names of its topics. ErrTooLarge: the request is too large.
//   - ErrReplyTooLarge, from the server: the handler ran, but its reply is too large.
//
// If ctx is canceled, the client tells the server, which cancels the handler's
// context. The message may come too late.
func Call[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) (*Resp, error) {
	resp, err := c.send(ctx, m.Interface, m.info(bus.Call, host), req, func(b []byte) (any, error) {
		out := new(Resp)
		if err := decodePayload(b, out); err != nil {
			return nil, err
		}
		return out, nil
	})
	if err != nil {
		return nil, err
	}
	out, ok := resp.(*Resp)
	if !ok {
		return nil, fault.New(fault.Internal, "%s: an interceptor returned %T, want %T", m.info(bus.Call, host), resp, out)
	}
	return out, nil
}

// Go is [Call] without waiting: the Pending gets the result when the reply comes.
// The parameter ctx bounds the whole exchange, not only the sending. Go itself fails with ErrVersionCap or ErrClosed, or with Timeout
// or Canceled if ctx ends before the client knows its version caps; every other error comes from Pending.Wait.
func Go[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) (*Pending[Resp], error) {
	if err := c.allowed(ctx, m.Interface, m.info(bus.Call, host)); err != nil {
		return nil, err
	}
	p := &Pending[Resp]{done: make(chan struct{})}
	exchange := func() {
		defer close(p.done)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(c.life, cancel)() //nolint:contextcheck // so that Close does not wait for a broker that cannot be reached
		p.resp, p.err = Call(ctx, c, m, host, req)
	}
	if !c.spawn(exchange) {
		return nil, fmt.Errorf("%s: %w", m.info(bus.Call, host), ErrClosed)
	}
	return p, nil
}

// Pending is the result of [Go], which may not have come yet. It is safe for concurrent use.
type Pending[Resp any] struct {
	done chan struct{}
	resp *Resp
	err  error
}

// Done returns a channel that is closed when the result has come.
func (p *Pending[Resp]) Done() <-chan struct{} { return p.done }

// Wait blocks until the result comes, and returns what [Call] would have returned.
// If ctx ends first, Wait returns Timeout or Canceled; the request goes on, and Wait
// may be called again.
func (p *Pending[Resp]) Wait(ctx context.Context) (*Resp, error) {
	select {
	case <-p.done:
		return p.resp, p.err
	case <-ctx.Done():
		return nil, fault.New(fault.CodeOf(ctx.Err()), "wait for a reply: %w", ctx.Err())
	}
}

// Cast sends the request to one server and does not wait for it to be handled. The parameter host is [Any] or the name of one server. Cast returns
// when the broker has confirmed the message; the message of an [AtLeastOnce] method then survives a restart of the broker. The message has no
// deadline: it waits in its queue while the server is down. Only the sending is bounded by ctx, or by ClientConfig.Timeout if ctx has no deadline.
// Errors: those of [Call], except the handler's error, which only the server logs.
func Cast[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) error {
	_, err := c.send(ctx, m.Interface, m.info(bus.Cast, host), req, nil)
	return err
}

// Fanout sends the request to all servers of the interface that run now, and does not wait until they have handled it. Errors: those of [Cast].
// Fanout returns nil if no server runs.
func Fanout[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], req *Req) error {
	_, err := c.send(ctx, m.Interface, m.info(bus.Fanout, Any), req, nil)
	return err
}

// send is the common part of Call, Go, Cast and Fanout. The request and the result are untyped from here on. The parameter decode is
// nil if no reply is expected.
func (c *Client) send(ctx context.Context, i *Interface, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout)
		defer cancel()
	}
	if err := checkTopics(c.limits.MaxTopic, info.Interface, info.Host); err != nil {
		return nil, fmt.Errorf("%s %s.%s: %w", info.Kind, info.Interface, info.Method, err)
	}
	if err := c.allowed(ctx, i, info); err != nil {
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

// spawn runs f in a goroutine that Close waits for. It returns false, and does not run f, if the client is closed.
func (c *Client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		return false
	}
	c.wg.Go(f)
	return true
}
