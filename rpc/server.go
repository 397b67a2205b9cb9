package rpc

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
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
	// two servers of an interface have the same. Empty: only Any reaches it. See [CheckHost].
	Host string
	// MaxInFlight is how many handlers run at once. A message for which no slot
	// is free is not taken from the bus, so that an idle sibling gets it.
	// Default 64.
	MaxInFlight int
	// MaxTries is how often a cast of an AtLeastOnce method is tried before it
	// becomes a dead letter. Default 10, which takes about a minute.
	MaxTries int
	// MaxUnavailable is for how long a cast of an AtLeastOnce method is tried that fails with Unavailable,
	// which says that nothing was done, as when a database is away: the sum of the pauses between
	// the attempts, which do not count as MaxTries. Default 1 h.
	MaxUnavailable time.Duration
	// Dedup remembers the casts of AtLeastOnce methods that have been handled.
	// Default NewDedup(0, 0), in this process.
	Dedup Dedup
	// Interceptors stand around each handler, the first outermost.
	Interceptors []Interceptor
	// Logger gets what no caller hears. Default slog.Default().
	Logger *slog.Logger
}

const (
	// replyTime is how long a reply is tried that the caller's topic does not
	// take: time enough for the caller to restore its connection.
	replyTime = 10 * time.Second
	// stopGrace is how long Stop waits for handlers whose contexts it
	// cancelled.
	stopGrace = time.Second
)

// Server answers the requests for one interface. Add the handlers with
// [Handle], then Start it. It has the Start and Stop of a service part. Its
// methods are safe for concurrent use.
type Server struct {
	bus     Bus
	sender  Sender // the bus, if it is one
	cfg     ServerConfig
	methods map[string]endpoint
	slots   chan struct{} // a token for each running handler
	baton   chan struct{} // makes another goroutine the one that takes messages
	largest int           // message that is handled, in bytes; zero: any
	limit   time.Duration // of a handler of an AtLeastOnce method; zero: none

	mu       sync.Mutex
	started  bool
	instance string             // see instance.go
	intake   context.CancelFunc // ends the subscriptions
	abort    context.CancelFunc // cancels the handlers
	stopping chan struct{}
	done     chan struct{} // closed when intake and handlers have ended
	running  map[string]*request
	settling map[string]*settlement // by id, of AtLeastOnce casts
	replaced *recent[int]           // by lifeKey, the attempt by which this server has replaced a message
	heart    *time.Timer            // sends the heartbeats; nil before the first is wanted
	due      time.Time              // when heart goes off; zero if it does not
	cut      bool                   // the handlers that still run are cut off
	dead     bool                   // the topic of dead letters exists
	wg       sync.WaitGroup         // handlers, and replies under way
	stats    ServerStats            // accessed atomically
}

// ServerStats counts what happened to a server's messages since it was made.
type ServerStats struct {
	// InFlight is how many handlers run now.
	InFlight uint64
	// Expired is how many requests were not run because their deadline had passed.
	Expired uint64
	// Canceled is how many running handlers were cancelled by their callers.
	Canceled uint64
	// Redelivered is how many casts were given back to be tried again.
	Redelivered uint64
	// Duplicate is how many casts were not run because they had been.
	Duplicate uint64
	// DeadLettered is how many messages became dead letters, Malformed how many
	// of them could not be read.
	DeadLettered, Malformed uint64
	// LostReplies is how many replies no caller took.
	LostReplies uint64
}

// limiter is a bus on which an unacknowledged message is taken away from its
// receiver after some time.
type limiter interface{ ConsumerTimeout() time.Duration }

// NewServer returns a server without handlers. It starts nothing. It panics if
// cfg lacks an interface or names a host that [CheckHost] refuses.
func NewServer(bus Bus, cfg ServerConfig) *Server {
	if cfg.Interface == nil || cfg.Interface.Name == "" || strings.Contains(cfg.Interface.Name, " ") {
		panic("rpc: NewServer without an interface, or with one whose name has a space")
	}
	if err := CheckHost(cfg.Host); err != nil {
		panic("rpc: NewServer: " + err.Error())
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = 64
	}
	if cfg.MaxUnavailable <= 0 {
		cfg.MaxUnavailable = time.Hour
	}
	if cfg.MaxTries <= 0 {
		cfg.MaxTries = 10
	}
	if cfg.Dedup == nil {
		cfg.Dedup = NewDedup(0, 0)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		bus: bus, cfg: cfg,
		methods:  make(map[string]endpoint),
		slots:    make(chan struct{}, cfg.MaxInFlight),
		baton:    make(chan struct{}),
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
		running:  make(map[string]*request),
		settling: make(map[string]*settlement),
		replaced: newRecent[int](rememberSize, rememberTime),
	}
	s.sender, _ = bus.(Sender)
	if l, ok := bus.(limiter); ok {
		s.limit = l.ConsumerTimeout()
	}
	if b, ok := bus.(Bounded); ok {
		s.largest = b.MaxMessage()
	}
	for _, name := range []string{methodPing, methodDescribe} {
		m := builtin(cfg.Interface, name)
		s.add(m.info("", ""), erase(m, func(context.Context, *None) (*Description, error) {
			if name == methodPing {
				return &Description{}, nil
			}
			return s.describe(), nil
		}))
	}
	return s
}

// Stats returns the counters. They are those of the moment, one by one.
func (s *Server) Stats() ServerStats {
	st := &s.stats
	return ServerStats{
		InFlight:     atomic.LoadUint64(&st.InFlight),
		Expired:      atomic.LoadUint64(&st.Expired),
		Canceled:     atomic.LoadUint64(&st.Canceled),
		Redelivered:  atomic.LoadUint64(&st.Redelivered),
		Duplicate:    atomic.LoadUint64(&st.Duplicate),
		DeadLettered: atomic.LoadUint64(&st.DeadLettered),
		Malformed:    atomic.LoadUint64(&st.Malformed),
		LostReplies:  atomic.LoadUint64(&st.LostReplies),
	}
}

// Start subscribes to the interface's topics and returns when messages for the
// server are kept for it. It fails with Unavailable if the bus is away, with
// Precondition if it was called before, and with Invalid if the bus cannot carry the names of the server's
// topics, or if an AtLeastOnce
// method may run for longer than the bus leaves a message with its receiver:
// then it would be delivered again while it runs. ctx bounds only the call
// itself.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return fault.New(fault.Precondition, "rpc server %s was started before", s.cfg.Interface.Name)
	}
	for name, e := range s.methods {
		if e.delivery == AtLeastOnce && s.limit > 0 && e.timeout >= s.limit {
			return fault.New(fault.Invalid, "method %s.%s may run for %v, but the bus takes a message away from its receiver after %v: "+
				"give the method a shorter time-out, or the bus a longer consumer time-out", s.cfg.Interface.Name, name, e.timeout, s.limit)
		}
	}
	err := checkTo(s.bus, s.cfg.Interface.Name, s.cfg.Host)
	if b, ok := s.bus.(Bounded); ok && err == nil {
		err = cmp.Or(b.CheckTopic(topic(KindFanout, s.cfg.Interface.Name, Any)), b.CheckTopic(s.cfg.Interface.Name+suffixDead))
	}
	if err != nil {
		return fmt.Errorf("start a server of %s: %w", s.cfg.Interface.Name, err)
	}
	life := context.WithoutCancel(ctx)
	sub, intake := context.WithCancel(life)
	work, abort := context.WithCancel(context.Background())
	keep := context.AfterFunc(ctx, intake)
	var leave func()
	in, err := s.subscribe(sub)
	if err == nil { // before a message is taken
		leave, err = s.attendLocked(sub)
	}
	if !keep() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		intake()
		abort()
		if leave != nil {
			leave()
		}
		return err
	}
	s.started, s.intake, s.abort = true, intake, abort
	go s.run(work, in, leave) //nolint:contextcheck // ends when Stop ends the subscriptions, and closes s.done
	return nil
}

// inlet is a topic that the server takes messages from. ch is nil if there is
// none, or no longer.
type inlet struct {
	topic string
	ch    <-chan *message.Message
}

// subscribe returns the topics of the server, those of its own name last.
func (s *Server) subscribe(ctx context.Context) (in [4]inlet, err error) {
	name, host := s.cfg.Interface.Name, s.cfg.Host
	subs := []Subscription{
		{Topic: topic(KindCast, name, Any)},
		{Topic: topic(KindCall, name, Any), Mode: Live},
	}
	if host == Any {
		subs = append(subs, Subscription{Topic: name + "." + newID() + suffixCalls, Mode: Private, Fanout: topic(KindFanout, name, Any)})
	} else {
		subs = append(subs,
			Subscription{Topic: topic(KindCall, name, host), Mode: Live, Fanout: topic(KindFanout, name, Any)},
			Subscription{Topic: topic(KindCast, name, host)})
	}
	for i, sub := range subs {
		sub.Slots = s.cfg.MaxInFlight
		in[i].topic = sub.Topic
		if in[i].ch, err = s.bus.Subscribe(ctx, sub); err != nil {
			return in, fmt.Errorf("subscribe to %s: %w", sub.Topic, err)
		}
	}
	return in, nil
}

// run takes messages until the subscriptions end. The instance leaves when all replies are sent.
func (s *Server) run(work context.Context, in [4]inlet, leave func()) {
	defer close(s.done)
	defer leave()
	defer s.wg.Wait()
	queues := in
	s.wg.Go(func() { s.work(work, &in) })
	<-s.stopping
	for _, q := range queues {
		if q.ch == nil {
			continue
		}
		s.wg.Go(func() { // until the bus has put back what it had sent ahead
			for m := range q.ch {
				s.decline(work, m, q.topic)
			}
		})
	}
}

// work is a goroutine of handlers. One of them at a time takes a message, when
// there is a free slot, and has another one take the next before it handles its
// own: a message is handled by the goroutine that took it.
func (s *Server) work(work context.Context, in *[4]inlet) {
	for {
		m, from := s.take(in)
		if m == nil {
			return
		}
		select {
		case s.baton <- struct{}{}:
		default:
			s.wg.Go(func() { s.work(work, in) })
		}
		s.serve(work, m, from)
		select {
		case <-s.baton:
		case <-s.stopping:
			return
		}
	}
}

// take returns a message and the topic it came from, with a slot for it, or nil
// when the subscriptions have ended.
func (s *Server) take(in *[4]inlet) (m *message.Message, from string) {
	select {
	case s.slots <- struct{}{}:
	case <-s.stopping:
		return nil, ""
	}
	for {
		var i int
		var ok bool
		select { // a closed or unwanted topic is nil, and so never ready
		case m, ok = <-in[0].ch:
			i = 0
		case m, ok = <-in[1].ch:
			i = 1
		case m, ok = <-in[2].ch:
			i = 2
		case m, ok = <-in[3].ch:
			i = 3
		case <-s.stopping:
			return nil, ""
		}
		if ok {
			return m, in[i].topic
		}
		in[i].ch = nil
	}
}

// slot is the right to run a handler.
type slot struct {
	server *Server
	held   bool
}

// release gives the slot back if it is held.
func (sl *slot) release() {
	if sl.held {
		sl.held = false
		<-sl.server.slots
	}
}

// serve handles one message. It gives the slot back when the handler has
// returned, before the reply is sent.
func (s *Server) serve(work context.Context, m *message.Message, from string) {
	sl := &slot{s, true}
	defer sl.release()
	r, err := decodeRequest(m)
	if size := Size(m); s.largest > 0 && size > s.largest {
		err = fault.New(fault.Invalid, "%w: it has %d bytes, and the limit is %d bytes", ErrTooLarge, size, s.largest)
	}
	if err != nil {
		sl.release()
		s.malformed(work, m, from, err)
		return
	}
	r.topic = from
	if r.info.Kind == KindCancel || r.info.Method == methodCancel {
		_ = Settle(m, true) // if it comes again it does nothing again
		s.cancel(r.about)
		return
	}
	if r.info.Kind == KindFanout && r.info.Method == methodPing && r.replyTo != "" {
		_ = Settle(m, true) // as above
		s.reply(work, r, &Description{}, nil)
		return
	}
	ctx := work
	if r.named {
		ctx = reqctx.With(work, r.from)
	}
	e, known := s.methods[r.info.Method]
	again := r.info.Kind == KindCast && (known && e.delivery == AtLeastOnce || r.info.Delivery == AtLeastOnce)
	ctx, r.stop = s.limited(ctx, r, e, again)
	defer r.stop()
	if !r.deadline.IsZero() && !time.Now().Before(r.deadline) {
		_ = Settle(m, true) // if it comes again it has expired again
		atomic.AddUint64(&s.stats.Expired, 1)
		s.cfg.Logger.DebugContext(ctx, "dropped an expired request", "method", r.info.String(), "deadline", r.deadline)
		sl.release()
		s.expired(r) //nolint:contextcheck // its own: it is sent whatever becomes of the handler's
		return
	}
	if again {
		s.serveDurable(ctx, work, sl, m, r, e, known)
		return
	}
	// A call's deadline ends what kills one server after the other.
	if r.info.Kind == KindCast && m.Metadata[MetaRedelivered] != "" {
		s.redelivered(ctx, work, m, r)
		return
	}
	if err := Settle(m, true); err != nil {
		s.cfg.Logger.DebugContext(ctx, "left a message to its next delivery: it cannot be acknowledged", "method", r.info.String(), "error", err)
		return
	}
	if !s.track(r) { //nolint:contextcheck // a heartbeat has a time of its own
		return // another copy of it runs: only a bus that is no at-most-once bus sends two
	}
	resp, err := s.invoke(ctx, r, e, known)
	s.untrack(r)
	sl.release()
	switch {
	case r.replyTo != "" && !r.gone.Load():
		s.reply(work, r, resp, err)
	case err != nil && r.replyTo == "":
		s.cfg.Logger.ErrorContext(ctx, "a handler failed, and no caller waits for the error", "method", r.info.String(), "kind", r.info.Kind, "error", err)
	}
}

// limited returns the handler's context, and what ends it.
func (s *Server) limited(ctx context.Context, r *request, e endpoint, again bool) (context.Context, context.CancelFunc) {
	end := r.deadline
	limit := e.timeout
	if again && limit == 0 && s.limit > 0 {
		limit = s.limit - s.limit/10 // leaves time to settle
	}
	if limit > 0 {
		if t := time.Now().Add(limit); end.IsZero() || t.Before(end) {
			end = t
		}
	}
	if end.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end)
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
	if len(s.cfg.Interceptors) == 0 {
		return e.call(ctx, req)
	}
	return chain(s.cfg.Interceptors, r.info, e.call)(ctx, req)
}

// track notes that r runs, unless a message of the same id does.
func (s *Server) track(r *request) bool {
	r.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, dup := s.running[r.id]; dup {
		return false
	}
	s.running[r.id] = r
	s.scheduleBeatLocked(r)
	atomic.StoreUint64(&s.stats.InFlight, uint64(len(s.running)))
	return true
}

func (s *Server) untrack(r *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, r.id)
	atomic.StoreUint64(&s.stats.InFlight, uint64(len(s.running)))
}

// cancel ends the context of a running call whose caller has given up.
func (s *Server) cancel(id string) {
	s.mu.Lock()
	r := s.running[id]
	s.mu.Unlock()
	if r != nil && r.replyTo != "" && r.gone.CompareAndSwap(false, true) {
		atomic.AddUint64(&s.stats.Canceled, 1)
		r.stop()
	}
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
	s.mu.Lock()
	s.cut = true
	s.mu.Unlock()
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
	return fault.New(fault.CodeOf(ctx.Err()), "stop rpc server %s: cut off %s: %w", s.cfg.Interface.Name, cut, ctx.Err())
}

// inFlight names what runs now.
func (s *Server) inFlight() string {
	list := s.Running()
	if len(list) == 0 {
		return "replies that the bus does not take"
	}
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = fmt.Sprintf("%s (request %s)", r.Method, r.RequestID)
	}
	return fmt.Sprintf("%d handlers: %s", len(list), strings.Join(names, ", "))
}
