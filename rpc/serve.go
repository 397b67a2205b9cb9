package rpc

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc/bus"
)

// delivery is a message in the server, from its receipt until it is acknowledged or returned. If it is a call, the delivery lasts until
// the reply is sent.
type delivery struct {
	*bus.Delivery

	server   *Server
	topic    string         // the topic that delivered the message
	id       string         // the message's id, or a new one if the message has none
	info     Info           // describes the message
	method   endpoint       // the message's method; zero if the field known is false
	known    bool           // the server has a handler for the method
	from     reqctx.Request // the request context of the caller
	named    bool           // the field from is not empty
	deadline time.Time      // by the monotonic clock, which does not jump; zero: none
	slot     bool           // the delivery holds a handler slot

	// While the handler runs:
	since time.Time          // when the handler was started
	stop  context.CancelFunc // ends the handler's context
	gone  atomic.Bool        // the caller has given up
	due   time.Time          // the time of the next heartbeat; guarded by Server.mu
}

// newDelivery decodes a message. The error, with code Invalid, says why the message cannot be handled.
func (s *Server) newDelivery(m *bus.Delivery, topic string) (*delivery, error) {
	d := &delivery{Delivery: m, server: s, topic: topic, id: m.ID, info: infoOf(m.Message), slot: true, stop: func() {}}
	if d.id == "" { // the message of another program: two messages without an id are not copies of each other
		d.id = newID()
	}
	switch size := m.Size(); {
	case m.Malformed != nil:
		return d, m.Malformed
	case s.limits.MaxMessage > 0 && size > s.limits.MaxMessage:
		return d, bus.TooLarge(size, s.limits.MaxMessage)
	}
	switch m.Kind {
	case bus.Call, bus.Cast, bus.Fanout, bus.Cancel:
	default:
		return d, fault.New(fault.Invalid, "the message is a %s, want a call, cast, fanout or cancel", m.Kind)
	}
	var err error
	if d.from, d.named, err = decodeContext(m.Header); err != nil {
		return d, err
	}
	if !m.Deadline.IsZero() {
		now := time.Now()
		d.deadline = now.Add(m.Deadline.Sub(now))
	}
	d.method, d.known = s.methods[methodKey{d.info.Version.Major, d.info.Method}]
	return d, nil
}

// durable reports whether the message is a cast of an AtLeastOnce method.
func (d *delivery) durable() bool {
	return d.Kind == bus.Cast && (d.Durable || d.known && d.method.Delivery == AtLeastOnce)
}

// releaseSlot frees the handler slot for the next message. Only the first call has an effect.
func (d *delivery) releaseSlot() {
	if d.slot {
		d.slot = false
		<-d.server.slots
	}
}

// workLoop is one of the goroutines that run handlers. Only one of them receives at a time. A goroutine that has received a
// message first lets another one receive: it passes the baton to a waiting goroutine, or starts a new one. Then it handles its message
// itself, so no message changes goroutines.
func (s *Server) workLoop(work context.Context, in *[4]inlet) {
	for {
		m, topic := s.receive(in)
		if m == nil {
			return
		}
		select {
		case s.baton <- struct{}{}:
		default:
			s.wg.Go(func() { s.workLoop(work, in) })
		}
		s.serve(work, m, topic)
		select {
		case <-s.baton:
		case <-s.stopping:
			return
		}
	}
}

// receive waits for a free slot and a message, and returns the message and its topic. The message then holds the slot.
// receive returns nil when the server stops.
func (s *Server) receive(in *[4]inlet) (m *bus.Delivery, topic string) {
	select {
	case s.slots <- struct{}{}:
	case <-s.stopping:
		return nil, ""
	}
	for {
		var i int
		var ok bool
		select { // the channel of a topic that is closed or not used is nil, which is never ready
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

// serve handles one message. Each class of messages has its own function.
func (s *Server) serve(work context.Context, m *bus.Delivery, topic string) {
	d, err := s.newDelivery(m, topic)
	defer d.releaseSlot()
	if err != nil {
		d.releaseSlot()
		s.rejectMalformed(work, d, err)
		return
	}
	ctx := work
	if d.named {
		ctx = reqctx.With(work, d.from)
	}
	switch {
	case d.Kind == bus.Cancel, d.info.Method == methodCancel:
		s.serveCancel(d)
	case d.Kind == bus.Fanout && d.info.Method == methodPing && d.ReplyTo != "":
		s.servePing(work, d)
	case !d.deadline.IsZero() && !time.Now().Before(d.deadline):
		s.serveExpired(ctx, d)
	case d.durable():
		s.serveDurable(ctx, work, d)
	case d.Kind == bus.Call:
		s.serveCall(ctx, work, d)
	default:
		s.serveOneWay(ctx, work, d)
	}
}

// serveCancel handles a cancel message: it ends the context of the call's handler, if the handler runs.
func (s *Server) serveCancel(d *delivery) {
	_ = d.Ack() // a redelivery has no effect
	s.mu.Lock()
	r := s.running[d.Correlation]
	s.mu.Unlock()
	if r != nil && r.ReplyTo != "" && r.gone.CompareAndSwap(false, true) {
		atomic.AddUint64(&s.stats.Canceled, 1)
		r.stop()
	}
}

// servePing answers a ping that was sent to all servers.
func (s *Server) servePing(work context.Context, d *delivery) {
	_ = d.Ack() // a redelivery does no harm: it is only answered again
	s.reply(work, d, &Description{}, nil)
}

// serveExpired drops a request whose deadline has passed. The reply has the server's time: a caller that still waits
// has a different clock, and sends the request again. The reply is sent once, because most callers have given up.
func (s *Server) serveExpired(ctx context.Context, d *delivery) {
	_ = d.Ack() // a redelivered message has also expired
	atomic.AddUint64(&s.stats.Expired, 1)
	s.cfg.Logger.DebugContext(ctx, "expired request dropped", "method", d.info.String(), "deadline", d.deadline)
	d.releaseSlot()
	if d.ReplyTo == "" {
		return
	}
	send, cancel := context.WithTimeout(context.Background(), graceTime)
	s.bus.Send(send, d.ReplyTo, s.signInstance(newExpired(d.id)), func(error) { cancel() }) //nolint:contextcheck // it does not depend on the handlers' context
}

// serveCall runs the handler of a call and sends the reply.
func (s *Server) serveCall(ctx, work context.Context, d *delivery) {
	resp, err, ran := s.runOnce(ctx, d)
	switch {
	case !ran:
	case d.ReplyTo == "" && err != nil: // from another program: a Client always sets ReplyTo
		s.cfg.Logger.DebugContext(ctx, "call without a reply topic failed", "method", d.info.String(), "error", err)
	case d.ReplyTo != "" && !d.gone.Load():
		s.reply(work, d, resp, err)
	}
}

// serveOneWay runs the handler of a fanout, or of a cast of an AtMostOnce method.
func (s *Server) serveOneWay(ctx, work context.Context, d *delivery) {
	if d.Kind == bus.Cast && d.Redelivered { // a fanout is not redelivered: its topic ends with the server
		s.countLostServer(ctx, work, d)
		return
	}
	if _, err, ran := s.runOnce(ctx, d); ran && err != nil {
		s.cfg.Logger.ErrorContext(ctx, "handler of a one-way message failed", "method", d.info.String(), "kind", d.Kind, "error", err)
	}
}

// runOnce acknowledges a message before it runs the handler, so that the message is not handled twice. The result ran is false if the
// message could not be acknowledged, or if the handler of another copy of the message runs. Only a bus that delivers a message twice
// creates such a copy.
func (s *Server) runOnce(ctx context.Context, d *delivery) (resp any, err error, ran bool) { //nolint:revive // the error is the handler's
	if err := d.Ack(); err != nil {
		s.cfg.Logger.DebugContext(ctx, "message not acknowledged, it will be redelivered", "method", d.info.String(), "error", err)
		return nil, nil, false
	}
	ctx, d.stop = s.handlerContext(ctx, d)
	defer d.stop()
	if !s.track(d) { //nolint:contextcheck // a heartbeat has its own timeout
		return nil, nil, false
	}
	resp, err = s.invoke(ctx, d)
	s.untrack(d)
	d.releaseSlot()
	return resp, err, true
}

// handlerContext returns the handler's context, which ends at the caller's deadline or after the method's timeout.
func (s *Server) handlerContext(ctx context.Context, d *delivery) (context.Context, context.CancelFunc) {
	end := d.deadline
	limit := d.method.timeout
	if most := s.limits.ConsumerTimeout; d.durable() && limit == 0 && most > 0 {
		limit = most - most/10 // leaves time to end the delivery
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

// invoke decodes the request and runs the handler inside the interceptors. A panic becomes an Internal error.
func (s *Server) invoke(ctx context.Context, d *delivery) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.ErrorContext(ctx, "handler panicked", "method", d.info.String(), "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "%s: panic in the handler", d.info)
		}
	}()
	name, iface := s.cfg.Interface.Name, s.cfg.Interface.ofMajor(d.info.Version.Major)
	switch { // the version is checked first, because the server does not know a method that is newer than itself
	case d.info.Interface == name && (iface == nil || !iface.Version.Accepts(d.info.Version)):
		return nil, fmt.Errorf("%s needs version %s, the server has %s: %w", d.info, d.info.Version, s.versionText(), ErrUnsupportedVersion)
	case d.info.Interface != name || !d.known:
		return nil, fmt.Errorf("%s on a server of %s %s: %w", d.info, name, s.versionText(), ErrNoSuchMethod)
	}
	req, err := d.method.decode(d.Payload)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: decode the request: %w", d.info, err)
	}
	if resp, err = s.chain.invoke(ctx, d.info, req, d.method.call); err != nil {
		_ = err.Error() // if Error panics, for example because err holds a nil pointer, the handler has panicked
	}
	return resp, err
}

// track records that the handler of d runs. It returns false if the handler of a message with the same id runs already.
func (s *Server) track(d *delivery) bool {
	d.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, dup := s.running[d.id]; dup {
		return false
	}
	s.running[d.id] = d
	s.scheduleHeartbeatLocked(d)
	atomic.StoreUint64(&s.stats.InFlight, uint64(len(s.running)))
	return true
}

func (s *Server) untrack(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, d.id)
	atomic.StoreUint64(&s.stats.InFlight, uint64(len(s.running)))
}
