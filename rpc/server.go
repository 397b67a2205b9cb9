package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Interface is what the server offers. Required.
	Interface *Interface
	// Host is the server's own name, by which it alone can be addressed. No
	// two servers of an interface have the same. Empty: only Any reaches it.
	Host string
	// MaxInFlight is how many handlers run at once. A message for which no slot
	// is free is not taken from the bus, so that an idle sibling gets it.
	// Default 64.
	MaxInFlight int
	// Interceptors stand around each handler, the first outermost.
	Interceptors []Interceptor
	// Logger gets what no caller hears. Default slog.Default().
	Logger *slog.Logger
}

const (
	// replyTime is how long a reply is tried that the caller's topic does not
	// take: time enough for the caller to restore its connection.
	replyTime = 10 * time.Second
	// A delivery of an AtLeastOnce method that failed is given back after
	// minRedeliver, doubled each time up to maxRedeliver, with jitter.
	minRedeliver = 100 * time.Millisecond
	maxRedeliver = 30 * time.Second
	// maxFailures is how many messages' failures are remembered.
	maxFailures = 10_000
	// stopGrace is how long Stop waits for handlers whose contexts it
	// cancelled.
	stopGrace = time.Second
)

// Server answers the requests for one interface. Add the handlers with
// [Handle], then Start it. It has the Start and Stop of a service part. Its
// methods are safe for concurrent use.
type Server struct {
	bus     Bus
	cfg     ServerConfig
	methods map[string]endpoint
	slots   chan struct{} // a token for each running handler

	mu       sync.Mutex
	started  bool
	intake   context.CancelFunc // ends the subscriptions
	abort    context.CancelFunc // cancels the handlers
	stopping chan struct{}
	done     chan struct{} // closed when intake and handlers have ended
	running  map[*request]struct{}
	failures map[string]int // by message id: failed deliveries of AtLeastOnce methods
}

// endpoint is a method whose types are erased.
type endpoint struct {
	since    Version
	delivery Delivery
	decode   func([]byte) (any, error)
	call     func(context.Context, any) (any, error)
}

// NewServer returns a server without handlers. It starts nothing. It panics if
// cfg lacks an interface or names a host that cannot be one.
func NewServer(bus Bus, cfg ServerConfig) *Server {
	switch {
	case cfg.Interface == nil || cfg.Interface.Name == "":
		panic("rpc: NewServer without an interface")
	case cfg.Host == fanout:
		panic(`rpc: a server cannot be called "fanout": that reaches all of them`)
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = 64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Server{
		bus: bus, cfg: cfg,
		methods:  make(map[string]endpoint),
		slots:    make(chan struct{}, cfg.MaxInFlight),
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
		running:  make(map[*request]struct{}),
		failures: make(map[string]int),
	}
}

// Handle makes the server answer m with h. The context that h gets carries the
// caller's deadline and its [reqctx.Request]; it is cancelled at the end of
// [Server.Stop]. An error that h returns travels to the caller with its code,
// reason and text. A panic becomes an Internal error.
//
// If m is [AtLeastOnce] and the message was a cast, an error has it delivered
// again, later, unless its code says that this is no use: Invalid,
// Unauthenticated, Denied, NotFound, Conflict, Precondition, Unimplemented.
//
// Handle panics, for it is a programmer's error, if the method has a handler
// already, belongs to another interface or needs a newer version than the
// interface has, or if the server was started.
func Handle[Req, Resp any](s *Server, m Method[Req, Resp], h func(context.Context, *Req) (*Resp, error)) {
	s.handle(m.info("", ""), endpoint{
		since:    m.Since,
		delivery: m.Delivery,
		decode: func(b []byte) (any, error) {
			req := new(Req)
			if len(b) == 0 {
				return req, nil
			}
			return req, json.Unmarshal(b, req)
		},
		call: func(ctx context.Context, req any) (any, error) {
			r, ok := req.(*Req)
			if !ok {
				return nil, fault.New(fault.Internal, "an interceptor passed %T, not %T", req, r)
			}
			resp, err := h(ctx, r)
			if err != nil {
				return nil, err
			}
			return resp, nil
		},
	})
}

func (s *Server) handle(info Info, e endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, dup := s.methods[info.Method]
	switch {
	case s.started:
		panic(fmt.Sprintf("rpc: Handle(%s) after Start", info))
	case dup:
		panic(fmt.Sprintf("rpc: %s has two handlers", info))
	case info.Interface != s.cfg.Interface.Name:
		panic(fmt.Sprintf("rpc: %s on a server of %s", info, s.cfg.Interface.Name))
	case !s.cfg.Interface.Version.Accepts(info.Version):
		panic(fmt.Sprintf("rpc: %s since %s, but the interface has version %s", info, info.Version, s.cfg.Interface.Version))
	}
	s.methods[info.Method] = e
}

// Start subscribes to the interface's topics and returns when messages for the
// server are kept for it. It fails with Unavailable if the bus is away, and with
// Precondition if it was called before. ctx bounds only the call itself.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return fault.New(fault.Precondition, "rpc server %s was started before", s.cfg.Interface.Name)
	}
	life := context.WithoutCancel(ctx)
	sub, intake := context.WithCancel(life)
	work, abort := context.WithCancel(context.Background())
	keep := context.AfterFunc(ctx, intake)
	in, err := s.subscribe(sub)
	if !keep() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		intake()
		abort()
		return err
	}
	s.started, s.intake, s.abort = true, intake, abort
	go s.run(work, in) //nolint:contextcheck // ends when Stop ends the subscriptions, and closes s.done
	return nil
}

// subscribe returns the channels of the three topics; those not wanted are nil.
func (s *Server) subscribe(ctx context.Context) (in [3]<-chan *message.Message, err error) {
	name := s.cfg.Interface.Name
	topics := []struct {
		topic string
		mode  Mode
	}{{topic(name, Any), Shared}, {topic(name, fanout), Each}}
	if s.cfg.Host != Any {
		topics = append(topics, struct {
			topic string
			mode  Mode
		}{topic(name, s.cfg.Host), Shared})
	}
	for i, t := range topics {
		if in[i], err = s.bus.Subscribe(ctx, t.topic, t.mode, s.cfg.MaxInFlight); err != nil {
			return in, fmt.Errorf("subscribe to %s: %w", t.topic, err)
		}
	}
	return in, nil
}

// run takes messages while there are free slots, until the subscriptions end.
func (s *Server) run(work context.Context, in [3]<-chan *message.Message) {
	defer close(s.done)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.stopping:
			return
		}
		var m *message.Message
		var i int
		var ok bool
		select { // a closed or unwanted topic is nil, and so never ready
		case m, ok = <-in[0]:
			i = 0
		case m, ok = <-in[1]:
			i = 1
		case m, ok = <-in[2]:
			i = 2
		case <-s.stopping:
			return
		}
		if !ok {
			in[i] = nil
			<-s.slots
			continue
		}
		wg.Go(func() { s.serve(work, m) })
	}
}

// serve handles one message. It gives the slot back when the handler has
// returned, before the reply is sent.
func (s *Server) serve(work context.Context, m *message.Message) {
	release := sync.OnceFunc(func() { <-s.slots })
	defer release()
	log := s.cfg.Logger
	r, err := decodeRequest(m)
	if err != nil { // again and again it would be unreadable
		log.Error("dropped a message that cannot be read", "interface", s.cfg.Interface.Name, "id", m.UUID, "error", err)
		m.Ack()
		return
	}
	ctx := reqctx.With(work, r.from)
	if !r.deadline.IsZero() {
		if !time.Now().Before(r.deadline) {
			m.Ack()
			log.DebugContext(ctx, "dropped an expired request", "method", r.info.String(), "deadline", r.deadline)
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, r.deadline)
		defer cancel()
	}
	e, known := s.methods[r.info.Method]
	again := known && e.delivery == AtLeastOnce && r.info.Kind == KindCast
	if !again {
		m.Ack()
	}
	s.track(r, true)
	resp, err := s.invoke(ctx, r, e, known)
	s.track(r, false)
	release()

	switch {
	case again:
		s.settle(ctx, m, r, err)
	case r.replyTo != "":
		s.reply(ctx, work.Done(), r, resp, err)
	case err != nil:
		log.ErrorContext(ctx, "a handler failed, and no caller waits for the error", "method", r.info.String(), "kind", r.info.Kind, "error", err)
	}
}

// invoke runs the handler behind the interceptors.
func (s *Server) invoke(ctx context.Context, r *request, e endpoint, known bool) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.ErrorContext(ctx, "panic in a handler", "method", r.info.String(), "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "%s: panic in the handler", r.info)
		}
	}()
	iface := s.cfg.Interface
	if r.info.Interface != iface.Name || !known {
		return nil, fmt.Errorf("%s on a server of %s %s: %w", r.info, iface.Name, iface.Version, ErrNoSuchMethod)
	}
	if !iface.Version.Accepts(r.info.Version) {
		return nil, fmt.Errorf("%s needs version %s, the server has %s: %w", r.info, r.info.Version, iface.Version, ErrUnsupportedVersion)
	}
	req, err := e.decode(r.payload)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: decode the request: %w", r.info, err)
	}
	return chain(s.cfg.Interceptors, r.info, e.call)(ctx, req)
}

// settle ends the delivery of an AtLeastOnce cast, or gives it back after a
// while.
func (s *Server) settle(ctx context.Context, m *message.Message, r *request, err error) {
	if err == nil || final(err) {
		if err != nil {
			s.cfg.Logger.ErrorContext(ctx, "gave a cast up: to run it again is no use", "method", r.info.String(), "error", err)
		}
		s.mu.Lock()
		delete(s.failures, m.UUID)
		s.mu.Unlock()
		m.Ack()
		return
	}
	s.mu.Lock()
	if len(s.failures) >= maxFailures { // of messages that a sibling took over, most likely
		clear(s.failures)
	}
	s.failures[m.UUID]++
	n := s.failures[m.UUID]
	s.mu.Unlock()
	wait := min(minRedeliver<<min(n-1, 16), maxRedeliver)
	wait = wait/2 + rand.N(wait/2)
	s.cfg.Logger.WarnContext(ctx, "a cast failed and is delivered again", "method", r.info.String(), "failures", n, "after", wait, "error", err)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.stopping:
	}
	m.Nack()
}

// final reports whether running the same request again is no use.
func final(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Invalid, fault.Unauthenticated, fault.Denied, fault.NotFound, fault.Conflict, fault.Precondition, fault.Unimplemented:
		return true
	default:
		return false
	}
}

// reply sends the result. It outlives the handler's context: a call answered in
// its last moment, or while the server stops, is answered. After the server was
// aborted it is tried once, and not for long.
func (s *Server) reply(ctx context.Context, aborted <-chan struct{}, r *request, resp any, err error) {
	end := time.Now().Add(replyTime)
	if !r.deadline.IsZero() && r.deadline.Before(end) {
		end = r.deadline // nobody waits longer
	}
	select {
	case <-aborted:
		end = time.Now().Add(stopGrace / 2)
	default:
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), end)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		perr := s.bus.Publish(r.replyTo, encodeReply(ctx, r.id, resp, err))
		if perr == nil {
			return
		}
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-t.C:
			if errors.Is(perr, ErrNoConsumer) {
				continue // the caller may be restoring its topic
			}
		case <-ctx.Done():
			t.Stop()
		case <-aborted:
			t.Stop()
		}
		s.cfg.Logger.WarnContext(ctx, "the reply was lost", "method", r.info.String(), "error", perr)
		return
	}
}

func (s *Server) track(r *request, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.running[r] = struct{}{}
		return
	}
	delete(s.running, r)
}

// Stop takes no new message, waits until the handlers have returned and their
// replies are sent, and returns nil. If ctx ends first, the handlers' contexts
// are cancelled, and the error, with code Timeout or Canceled, names the
// requests that were cut off. It is idempotent, and returns at once if the
// server was never started.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	if !s.started {
		s.mu.Unlock()
		return nil
	}
	select {
	case <-s.stopping:
	default:
		close(s.stopping)
	}
	s.mu.Unlock()
	s.intake()
	defer s.abort()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	cut := s.inFlight()
	s.abort()
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
	return fault.New(fault.CodeOf(ctx.Err()), "stop rpc server %s: cut off %s: %w", s.cfg.Interface.Name, cut, ctx.Err())
}

// inFlight lists what runs now.
func (s *Server) inFlight() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for r := range s.running {
		list = append(list, fmt.Sprintf("%s (request %s)", r.info.Method, r.from.ID))
	}
	if len(list) == 0 {
		return "replies that the bus does not take"
	}
	slices.Sort(list)
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d handlers: %s", len(list), strings.Join(list, ", "))
	return out.String()
}
