package rpc

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/partial"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Interface is what the server offers, with its older major versions, see Interface.Older. Required.
	Interface *Interface
	// Host is the server's own name, by which a client addresses this server alone. Each server of an interface needs a
	// different name. Empty: only messages to Any and fanouts reach the server. See [CheckHost].
	Host string
	// MaxInFlight is how many handlers run at once, each in a slot. While no slot is
	// free, the server leaves messages on the bus for other servers of the interface.
	// Default 64.
	MaxInFlight int
	// MaxDeliveries is how many delivery attempts of a cast of an AtLeastOnce method may fail; then the cast is dead-lettered.
	// Attempts that failed with Unavailable do not count. Default 10, which takes about a minute.
	MaxDeliveries int
	// MaxUnavailable bounds the redelivery of a cast of an AtLeastOnce method that fails with Unavailable or with
	// ErrUnsupportedVersion: it is the maximum sum of the delays between these attempts. After that the cast is
	// dead-lettered. Unavailable says that nothing was done, for example because a database cannot be reached. After
	// ErrUnsupportedVersion, another server, or this one after its upgrade, may handle the cast. Default 1 h.
	MaxUnavailable time.Duration
	// Interceptors run around each handler, the first outermost.
	Interceptors []Interceptor
	// Logger gets the events that no error reports. Default slog.Default().
	Logger *slog.Logger
}

const (
	// replyTimeout is how long a server tries to send a reply while the caller's topic is
	// missing: the caller has this time to restore its connection.
	replyTimeout = 10 * time.Second
	// stopGrace is how long Stop still waits for handlers after it canceled their
	// contexts.
	stopGrace = time.Second
)

// Server answers the requests for one interface. Add handlers with [Handle], then call Start. It can be a part of a
// service.App: it has Start and Stop. Its methods are safe for concurrent use; it cannot be started again after Stop.
type Server struct {
	bus     bus.Bus
	cfg     ServerConfig
	limits  bus.Capabilities // the capabilities of the bus; set by Start
	methods map[methodKey]endpoint
	chain   chain
	slots   chan struct{} // a token for each running handler
	baton   chan struct{} // passes the receiving of messages to another goroutine, see workLoop

	mu         sync.Mutex
	started    bool
	instance   string             // see instance.go
	endIntake  context.CancelFunc // ends the subscriptions
	abort      context.CancelFunc // cancels the handlers
	stopping   chan struct{}
	done       chan struct{} // closed when intake and handlers have ended
	running    map[string]*delivery
	openCasts  map[string]*openCast // the AtLeastOnce casts in progress; the key is the id
	replaced   *recent[int]         // by lifeKey: the progress of a cast in the newest copy that this server has published
	handled    *recent[struct{}]    // by id: the AtLeastOnce casts that have been handled, so that a redelivery is not handled again
	heartbeats *time.Timer          // runs sendDueHeartbeats; nil before the first call that wants heartbeats
	due        time.Time            // when the timer heartbeats fires; zero if the timer is not set
	aborted    bool                 // Stop canceled the handlers that still ran: no more heartbeats
	wg         sync.WaitGroup       // handlers, and replies that are being sent
	stats      ServerStats          // accessed atomically

	deadTopic atomic.Bool // the topic of dead letters exists
}

// ServerStats are the counters of a server since NewServer.
type ServerStats struct {
	// Interface is the name of the server's interface.
	Interface string
	// InFlight is how many handlers run now.
	InFlight uint64
	// Expired counts the requests that were dropped because their deadline had passed.
	Expired uint64
	// Canceled counts the running handlers that were canceled by their callers.
	Canceled uint64
	// Redelivered counts the casts that were published again for their next delivery attempt.
	Redelivered uint64
	// Duplicate counts the deliveries of casts that had been handled or replaced before.
	Duplicate uint64
	// DeadLettered counts the messages that were dead-lettered; Malformed counts those
	// that could not be read or were too large.
	DeadLettered, Malformed uint64
	// LostReplies counts the replies that could not be sent to their callers.
	LostReplies uint64
}

// NewServer returns a server without handlers, and starts nothing. The server never closes the bus. NewServer panics if cfg has
// no interface, if the interface's name or its Older is not valid, or if [CheckHost] refuses cfg.Host.
func NewServer(b bus.Bus, cfg ServerConfig) *Server {
	if cfg.Interface == nil {
		panic("rpc: NewServer without an interface")
	}
	if err := cmp.Or(checkInterface(cfg.Interface.Name), cfg.Interface.checkOlder(), CheckHost(cfg.Host)); err != nil {
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
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		bus: b, cfg: cfg, chain: newChain(cfg.Interceptors),
		methods:   make(map[methodKey]endpoint),
		slots:     make(chan struct{}, cfg.MaxInFlight),
		baton:     make(chan struct{}),
		stopping:  make(chan struct{}),
		done:      make(chan struct{}),
		running:   make(map[string]*delivery),
		openCasts: make(map[string]*openCast),
		replaced:  newRecent[int](rememberSize, rememberTime),
		handled:   newRecent[struct{}](rememberSize, rememberTime),
	}
	for _, i := range cfg.Interface.all() {
		ping, describe := builtinMethod(i, methodPing), builtinMethod(i, methodDescribe)
		s.add(ping.info("", ""), eraseTypes(ping, func(context.Context, *None) (*Description, error) { return &Description{}, nil }))
		s.add(describe.info("", ""), eraseTypes(describe, func(context.Context, *None) (*Description, error) { return s.describe(i), nil }))
	}
	return s
}

// Versions returns the versions that the server serves, under its interface's name: one for each major version. Other processes
// must know these versions before they send newer messages; they can read them from the server's row of package
// service/membership. Versions may be called before Start.
func (s *Server) Versions() Versions {
	var list []Version
	for _, i := range s.cfg.Interface.all() {
		list = append(list, i.Version)
	}
	slices.Reverse(list)
	return Versions{s.cfg.Interface.Name: list}
}

// versionText formats the result of Versions for an error.
func (s *Server) versionText() string { return textOf(s.Versions()[s.cfg.Interface.Name]) }

// Stats returns the counters. Each counter is read on its own, so one counter may be slightly newer than another.
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

// Start subscribes to the interface's topics. When Start returns nil, the broker already keeps messages for the server. The
// parameter ctx bounds only Start itself. After an error Start may be called again, except after the first of these errors:
//
//   - Precondition: the server was started before.
//   - Precondition: methods of the interface have no handler. The error names the methods. Tests of some methods: see rpctest.Partial.
//   - Invalid: the bus cannot carry the names of the server's topics; or the Timeout of an AtLeastOnce method is not
//     shorter than the bus's Capabilities.ConsumerTimeout, so that the bus would redeliver the message while its handler
//     runs.
//   - Errors of [bus.Bus.Subscribe], such as Unavailable if the broker cannot be reached, and the context's.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return fault.New(fault.Precondition, "rpc server %s was started before", s.cfg.Interface.Name)
	}
	if missing := s.missingLocked(); len(missing) > 0 && !partial.Allowed(ctx) {
		return fault.New(fault.Precondition, "start a server of %s: methods without a handler: %s", s.cfg.Interface.Name, strings.Join(missing, ", "))
	}
	s.limits = s.bus.Capabilities()
	limit := s.limits.ConsumerTimeout
	for key, e := range s.methods {
		if e.Delivery == AtLeastOnce && limit > 0 && e.timeout >= limit {
			return fault.New(fault.Invalid, "method %s.%s may run for %v, but the bus delivers an unacknowledged message again after %v: "+
				"give the method a shorter timeout, or the bus a longer consumer timeout", s.cfg.Interface.Name, key.name, e.timeout, limit)
		}
	}
	if err := checkTopics(s.limits.MaxTopic, s.cfg.Interface.Name, s.cfg.Host); err != nil {
		return fmt.Errorf("start a server of %s: %w", s.cfg.Interface.Name, err)
	}
	life := context.WithoutCancel(ctx)
	sub, endIntake := context.WithCancel(life)
	work, abort := context.WithCancel(context.Background())
	keep := context.AfterFunc(ctx, endIntake)
	var leave func()
	in, err := s.subscribe(sub)
	if err == nil { // before a message is received
		leave, err = s.openInstanceLocked(sub)
	}
	if !keep() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		endIntake()
		abort()
		if leave != nil {
			leave()
		}
		return err
	}
	s.started, s.endIntake, s.abort = true, endIntake, abort
	go s.consume(work, in, leave) //nolint:contextcheck // ends when Stop ends the subscriptions, and closes s.done
	return nil
}

// missingLocked returns the names of the defined methods of the interface that have no handler.
func (s *Server) missingLocked() (names []string) {
	for _, i := range s.cfg.Interface.all() {
		for _, m := range i.Methods() {
			if _, ok := s.methods[methodKey{i.Version.Major, m.Name}]; !ok {
				names = append(names, m.Name)
			}
		}
	}
	return names
}

// inlet is a topic that the server receives messages from. The field ch is nil if the inlet is not used, or
// its subscription has ended.
type inlet struct {
	topic string
	ch    <-chan *bus.Delivery
}

// subscribe subscribes to the topics of the server. The topics for its own host come last.
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

// consume receives messages until the subscriptions end. It calls leave when all replies are sent.
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
		s.wg.Go(func() { // until the subscription has ended
			for d := range q.ch {
				s.returnUnhandled(work, d, q.topic)
			}
		})
	}
}

// Stop ends the subscriptions, waits until the handlers have returned and their
// replies are sent, and returns nil. If ctx ends first, Stop cancels the handlers'
// contexts and waits at most 1 s longer. Then its error has code Timeout or Canceled,
// and names the requests that were cut off. Stop is idempotent, and returns at
// once if the server was never started.
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
	s.endIntake()
	defer s.abort()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	running := s.inFlight()
	s.abort()
	s.mu.Lock()
	s.aborted = true
	s.mu.Unlock()
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
	return fault.New(fault.CodeOf(ctx.Err()), "stop rpc server %s: cut off %s: %w", s.cfg.Interface.Name, running, ctx.Err())
}

// inFlight names the requests whose handlers run now, for an error.
func (s *Server) inFlight() string {
	list := s.listRunning()
	if len(list) == 0 {
		return "replies that the broker has not confirmed"
	}
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = fmt.Sprintf("%s (request %s)", r.Method, r.RequestID)
	}
	return fmt.Sprintf("%d handlers: %s", len(list), strings.Join(names, ", "))
}
