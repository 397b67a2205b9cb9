package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Interface is what the server offers. Required.
	Interface *Interface
	// Partial lets the server start although defined methods of the interface have no handler. Calls of these fail
	// with ErrNoSuchMethod. It is for tests.
	Partial bool
	// Host is the server's own name, by which it alone can be addressed. No
	// two servers of an interface have the same. Empty: only Any reaches it. See [CheckHost].
	Host string
	// MaxInFlight is how many handlers run at once. A message for which no slot
	// is free is not taken from the bus, so that an idle sibling gets it.
	// Default 64.
	MaxInFlight int
	// MaxDeliveries is how many delivery attempts of a cast of an AtLeastOnce method may fail before the cast
	// becomes a dead letter. Default 10, which takes about a minute.
	MaxDeliveries int
	// MaxUnavailable is how long a cast of an AtLeastOnce method is delivered again that fails with Unavailable,
	// which says that nothing was done, as when a database is away: the sum of the delays between
	// the attempts, which do not count as MaxDeliveries. Default 1 h.
	MaxUnavailable time.Duration
	// Dedup remembers the casts of AtLeastOnce methods that have been handled.
	// Default NewDedup(0, 0), in this process.
	Dedup Dedup
	// Interceptors stand around each handler, the first outermost.
	Interceptors []Interceptor
	// Logger gets the events that no caller sees. Default slog.Default().
	Logger *slog.Logger
}

const (
	// replyTime is how long a reply is tried that the caller's topic does not
	// take: time enough for the caller to restore its connection.
	replyTime = 10 * time.Second
	// stopGrace is how long Stop waits for handlers whose contexts it
	// canceled.
	stopGrace = time.Second
)

// Server answers the requests for one interface. Add the handlers with
// [Handle], then Start it. It has the Start and Stop of a service part. Its
// methods are safe for concurrent use.
type Server struct {
	bus     bus.Bus
	cfg     ServerConfig
	limits  bus.Capabilities // since Start
	methods map[string]endpoint
	chain   chain
	slots   chan struct{} // a token for each running handler
	baton   chan struct{} // makes another goroutine the one that takes messages

	mu       sync.Mutex
	started  bool
	instance string             // see instance.go
	intake   context.CancelFunc // ends the subscriptions
	abort    context.CancelFunc // cancels the handlers
	stopping chan struct{}
	done     chan struct{} // closed when intake and handlers have ended
	running  map[string]*delivery
	settling map[string]*settlement // by id, of AtLeastOnce casts
	replaced *recent[int]           // by lifeKey, the progress of the message by which this server has replaced one
	heart    *time.Timer            // sends the heartbeats; nil before the first is wanted
	due      time.Time              // when heart goes off; zero if it does not
	cut      bool                   // the handlers that still run are cut off
	wg       sync.WaitGroup         // handlers, and replies under way
	stats    ServerStats            // accessed atomically

	deadTopic atomic.Bool // the topic of dead letters exists
}

// ServerStats counts what happened to a server's messages since it was made.
type ServerStats struct {
	// Interface is the name of the server's interface.
	Interface string
	// InFlight is how many handlers run now.
	InFlight uint64
	// Expired is how many requests were not run because their deadline had passed.
	Expired uint64
	// Canceled is how many running handlers were canceled by their callers.
	Canceled uint64
	// Redelivered is how many casts were sent again for their next delivery attempt.
	Redelivered uint64
	// Duplicate is how many casts were not run because they had been.
	Duplicate uint64
	// DeadLettered is how many messages became dead letters, Malformed how many
	// of them could not be read.
	DeadLettered, Malformed uint64
	// LostReplies is how many replies could not be sent to their callers.
	LostReplies uint64
}

// NewServer returns a server without handlers. It starts nothing. It panics if
// cfg lacks an interface or names a host that [CheckHost] refuses.
func NewServer(b bus.Bus, cfg ServerConfig) *Server {
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
	if cfg.MaxDeliveries <= 0 {
		cfg.MaxDeliveries = 10
	}
	if cfg.Dedup == nil {
		cfg.Dedup = NewDedup(0, 0)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		bus: b, cfg: cfg, chain: newChain(cfg.Interceptors),
		methods:  make(map[string]endpoint),
		slots:    make(chan struct{}, cfg.MaxInFlight),
		baton:    make(chan struct{}),
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
		running:  make(map[string]*delivery),
		settling: make(map[string]*settlement),
		replaced: newRecent[int](rememberSize, rememberTime),
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
		Interface:    s.cfg.Interface.Name,
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
// server are kept for it. ctx bounds only the call itself. Errors: Unavailable if the bus is away; Precondition if Start
// was called before, or if defined methods of the interface have no handler, which the error names; Invalid if the bus
// cannot carry the names of the server's topics, or if an AtLeastOnce method may run for longer than the bus waits for
// an acknowledgement: then the message would be delivered again while it runs.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return fault.New(fault.Precondition, "rpc server %s was started before", s.cfg.Interface.Name)
	}
	if missing := s.missingLocked(); len(missing) > 0 && !s.cfg.Partial {
		return fault.New(fault.Precondition, "start a server of %s: methods without a handler: %s", s.cfg.Interface.Name, strings.Join(missing, ", "))
	}
	s.limits = s.bus.Capabilities()
	limit := s.limits.ConsumerTimeout
	for name, e := range s.methods {
		if e.Delivery == AtLeastOnce && limit > 0 && e.timeout >= limit {
			return fault.New(fault.Invalid, "method %s.%s may run for %v, but the bus delivers an unacknowledged message again after %v: "+
				"give the method a shorter timeout, or the bus a longer consumer timeout", s.cfg.Interface.Name, name, e.timeout, limit)
		}
	}
	if err := checkTopics(s.limits.MaxTopic, s.cfg.Interface.Name, s.cfg.Host); err != nil {
		return fmt.Errorf("start a server of %s: %w", s.cfg.Interface.Name, err)
	}
	life := context.WithoutCancel(ctx)
	sub, intake := context.WithCancel(life)
	work, abort := context.WithCancel(context.Background())
	keep := context.AfterFunc(ctx, intake)
	var leave func()
	in, err := s.subscribe(sub)
	if err == nil { // before a message is taken
		leave, err = s.openInstanceLocked(sub)
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
	go s.consume(work, in, leave) //nolint:contextcheck // ends when Stop ends the subscriptions, and closes s.done
	return nil
}

// missingLocked names the defined methods of the interface that have no handler.
func (s *Server) missingLocked() (names []string) {
	for _, m := range s.cfg.Interface.Methods() {
		if _, ok := s.methods[m.Name]; !ok {
			names = append(names, m.Name)
		}
	}
	return names
}

// inlet is a topic that the server takes messages from. ch is nil if there is
// none, or no longer.
type inlet struct {
	topic string
	ch    <-chan *bus.Delivery
}

// subscribe returns the topics of the server, those of its own name last.
func (s *Server) subscribe(ctx context.Context) (in [4]inlet, err error) {
	name, host := s.cfg.Interface.Name, s.cfg.Host
	fanout := topicOf(bus.Fanout, name, Any)
	subs := []bus.Subscription{
		{Topic: topicOf(bus.Cast, name, Any)},
		{Topic: topicOf(bus.Call, name, Any), Mode: bus.Live},
	}
	if host == Any {
		subs = append(subs, bus.Subscription{Topic: name + "." + newID() + suffixCalls, Mode: bus.Private, Fanout: fanout})
	} else {
		subs = append(subs,
			bus.Subscription{Topic: topicOf(bus.Call, name, host), Mode: bus.Live, Fanout: fanout},
			bus.Subscription{Topic: topicOf(bus.Cast, name, host)})
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

// consume takes messages until the subscriptions end. The instance leaves when all replies are sent.
func (s *Server) consume(work context.Context, in [4]inlet, leave func()) {
	defer close(s.done)
	defer leave()
	defer s.wg.Wait()
	queues := in
	s.wg.Go(func() { s.workLoop(work, &in) })
	<-s.stopping
	for _, q := range queues {
		if q.ch == nil {
			continue
		}
		s.wg.Go(func() { // until the bus has put back what it had sent ahead
			for d := range q.ch {
				s.decline(work, d, q.topic)
			}
		})
	}
}

// Stop takes no new message, waits until the handlers have returned and their
// replies are sent, and returns nil. If ctx ends first, the handlers' contexts
// are canceled, and the error, with code Timeout or Canceled, names the
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
		return "replies that the bus has not taken"
	}
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = fmt.Sprintf("%s (request %s)", r.Method, r.RequestID)
	}
	return fmt.Sprintf("%d handlers: %s", len(list), strings.Join(names, ", "))
}
