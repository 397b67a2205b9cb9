package rpc

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
)

// replySlots is how many replies a broker may send ahead to one client. Taking
// a reply is a map look-up, so it need not be tuned.
const replySlots = 256

// ClientConfig configures a Client. The zero value is usable.
type ClientConfig struct {
	// Timeout is how long a Call or Go waits whose context has no deadline.
	// It also bounds how long a Cast or Fanout waits for a bus that is away.
	// Default 60 s, as oslo.messaging's rpc_response_timeout.
	Timeout time.Duration
	// Caps limits, by interface name, the version that may be sent, for a
	// rolling upgrade. An interface that is not in it is not limited.
	Caps map[string]Version
	// Interceptors stand around each message, the first outermost.
	Interceptors []Interceptor
	// Logger gets what nobody waits for. Default slog.Default().
	Logger *slog.Logger
}

// Client sends requests over a bus, and takes all replies through one private
// topic. It is safe for concurrent use; one client a process is enough.
type Client struct {
	bus   Bus
	cfg   ClientConfig
	topic string // for replies

	mu        sync.Mutex
	pending   map[string]chan<- *message.Message // by the id of the call
	listening bool                               // the reply topic is subscribed to
	dialing   chan struct{}                      // closed when a subscribe under way ends

	life context.Context //nolint:containedctx // the client's own life, ended by Close
	end  context.CancelFunc
	wg   sync.WaitGroup
	late atomic.Int64
}

// NewClient returns a client. It starts nothing: the reply topic is subscribed
// to by the first call.
func NewClient(bus Bus, cfg ClientConfig) *Client {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 60 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	life, end := context.WithCancel(context.Background())
	return &Client{
		bus: bus, cfg: cfg, topic: "reply." + newID(),
		pending: make(map[string]chan<- *message.Message), life: life, end: end,
	}
}

// Allows reports whether the client's cap lets it send what needs version v of
// the interface, so that a caller can choose an older method instead.
func (c *Client) Allows(i *Interface, v Version) bool {
	limit, capped := c.cfg.Caps[i.Name]
	return !capped || limit.Accepts(v)
}

// LateReplies returns how many replies came when nobody waited for them any
// more.
func (c *Client) LateReplies() int64 { return c.late.Load() }

// Close ends the client: calls that wait fail with ErrClosed, although their
// requests may have been executed. It waits for the client's goroutines. The
// bus stays open. It is idempotent and never fails.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock()   // whoever holds it still starts a goroutine to be waited for
	c.mu.Unlock() //nolint:staticcheck // empty on purpose, see above
	c.wg.Wait()
	return nil
}

// Call sends the request to a server, waits for the result and returns it. host
// is [Any] or the name of one server. It blocks until the reply is there or ctx
// ends, or for ClientConfig.Timeout if ctx has no deadline.
//
// The errors are the handler's own, with [fault.IsRemote] true, and the
// client's: ErrNoConsumer, Unavailable (not executed), Unknown (the connection
// broke while sending: may have been executed), Timeout and Canceled (nothing
// is known about the execution), ErrVersionCap, ErrClosed, Invalid if the
// request cannot be encoded.
func Call[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) (*Resp, error) {
	resp, err := c.do(ctx, m.info(KindCall, host), req, func(b []byte) (any, error) {
		out := new(Resp)
		if err := json.Unmarshal(b, out); err != nil {
			return nil, err
		}
		return out, nil
	})
	if err != nil {
		return nil, err
	}
	out, ok := resp.(*Resp)
	if !ok {
		return nil, fault.New(fault.Internal, "%s: an interceptor returned %T, not %T", m.info(KindCall, host), resp, out)
	}
	return out, nil
}

// Go sends the request as [Call] does, but does not wait: the result comes back
// by message into the Pending. ctx bounds the whole exchange, not only the
// sending. The error, if any, is ErrVersionCap or ErrClosed; every other one
// comes through the Pending.
func Go[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) (*Pending[Resp], error) {
	if err := c.allowed(m.info(KindCall, host)); err != nil {
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
		return nil, fmt.Errorf("%s: %w", m.info(KindCall, host), ErrClosed)
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
// [Call], except those of the handler, which nobody hears.
func Cast[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], host string, req *Req) error {
	_, err := c.do(ctx, m.info(KindCast, host), req, nil)
	return err
}

// Fanout sends the request one way to all servers of the interface that run
// now. Errors as [Cast]; that nobody listens is no error.
func Fanout[Req, Resp any](ctx context.Context, c *Client, m Method[Req, Resp], req *Req) error {
	_, err := c.do(ctx, m.info(KindFanout, Any), req, nil)
	return err
}

// do is the one way of all four verbs; the types are gone from here on. decode
// is nil when no reply is expected.
func (c *Client) do(ctx context.Context, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	if err := c.allowed(info); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout)
		defer cancel()
	}
	return chain(c.cfg.Interceptors, info, func(ctx context.Context, req any) (any, error) {
		if decode == nil {
			return nil, c.send(ctx, info, req)
		}
		return c.roundTrip(ctx, info, req, decode)
	})(ctx, req)
}

func (c *Client) allowed(info Info) error {
	limit, capped := c.cfg.Caps[info.Interface]
	if capped && !limit.Accepts(info.Version) {
		return fmt.Errorf("%s needs version %s, capped at %s: %w", info, info.Version, limit, ErrVersionCap)
	}
	if c.life.Err() != nil {
		return fmt.Errorf("%s: %w", info, ErrClosed)
	}
	return nil
}

func (c *Client) send(ctx context.Context, info Info, req any) error {
	m, err := encodeRequest(ctx, info, req)
	if err != nil {
		return err
	}
	to := topic(info.Interface, info.Host)
	if info.Kind == KindFanout {
		to = topic(info.Interface, fanout)
	}
	if err := c.bus.Publish(to, m); err != nil {
		return fmt.Errorf("%s %s: %w", info.Kind, info, err)
	}
	return nil
}

func (c *Client) roundTrip(ctx context.Context, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	start := time.Now()
	if err := c.listen(ctx); err != nil {
		return nil, fmt.Errorf("call %s: subscribe to replies: %w", info, err)
	}
	m, err := encodeRequest(ctx, info, req)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		m.Metadata[MetaDeadline] = d.UTC().Format(time.RFC3339Nano)
	}
	m.Metadata[MetaReplyTo] = c.topic
	got := make(chan *message.Message, 1)
	c.expect(m.UUID, got)
	defer c.expect(m.UUID, nil)
	if err := c.bus.Publish(topic(info.Interface, info.Host), m); err != nil {
		return nil, fmt.Errorf("call %s: %w", info, err)
	}
	select {
	case r := <-got:
		b, err := decodeReply(r)
		if err != nil {
			return nil, fmt.Errorf("call %s: %w", info, err)
		}
		out, err := decode(b)
		if err != nil {
			return nil, fault.New(fault.Internal, "call %s: decode the response: %w", info, err)
		}
		return out, nil
	case <-ctx.Done():
		return nil, fault.New(fault.CodeOf(ctx.Err()), "call %s: no reply within %v: %w",
			info, time.Since(start).Round(time.Millisecond), ctx.Err())
	case <-c.life.Done():
		return nil, fmt.Errorf("call %s: %w while it waited for the reply", info, ErrClosed)
	}
}

// expect sets or, with nil, removes the channel for the reply to a call.
func (c *Client) expect(id string, ch chan<- *message.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch == nil {
		delete(c.pending, id)
		return
	}
	c.pending[id] = ch
}

// listen makes sure that the reply topic exists. The first call subscribes;
// those that come meanwhile wait for it, each no longer than its own context.
func (c *Client) listen(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.listening {
			c.mu.Unlock()
			return nil
		}
		if c.dialing == nil {
			break // with the lock held
		}
		wait := c.dialing
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return fault.New(fault.CodeOf(ctx.Err()), "%w", ctx.Err())
		}
	}
	done := make(chan struct{})
	c.dialing = done
	c.mu.Unlock()

	err := c.subscribe(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.listening = err == nil
	c.dialing = nil
	close(done)
	return err
}

// subscribe subscribes to the reply topic for as long as the client lives. ctx
// bounds only how long it tries.
func (c *Client) subscribe(ctx context.Context) error {
	sub, cancel := context.WithCancel(c.life)
	keep := context.AfterFunc(ctx, cancel)
	replies, err := c.bus.Subscribe(sub, c.topic, Private, replySlots) //nolint:contextcheck // it outlives the call that needs it first
	if !keep() && err == nil {
		err = fault.New(fault.CodeOf(ctx.Err()), "%w", ctx.Err())
	}
	if err == nil && !c.spawn(func() { c.receive(replies) }) {
		err = ErrClosed
	}
	if err != nil {
		cancel()
	}
	return err
}

// receive hands replies to the calls that wait for them until the subscription
// ends.
func (c *Client) receive(replies <-chan *message.Message) {
	for m := range replies {
		m.Ack()
		id := m.Metadata.Get(MetaCorrelation)
		c.mu.Lock()
		ch := c.pending[id]
		delete(c.pending, id)
		c.mu.Unlock()
		if ch == nil {
			c.late.Add(1)
			c.cfg.Logger.Debug("a reply came when nobody waited for it", "correlation_id", id)
			continue
		}
		ch <- m // has room for it
	}
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
