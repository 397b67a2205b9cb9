package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
	"github.com/armature-go/armature/rpc/internal/names"
)

const (
	// The delay before the next delivery attempt of a cast of an AtLeastOnce method is minRedeliver after the first
	// failure, doubled after each further one up to maxRedeliver, with jitter.
	minRedeliver = 100 * time.Millisecond
	maxRedeliver = 30 * time.Second
	// maxRedeliveries is how many servers may be lost that had a message
	// before the message counts as the reason. It is the default delivery limit
	// of RabbitMQ's quorum queues.
	maxRedeliveries = 20
	// settleTime bounds the publishing of a message for its next delivery attempt, or
	// as a dead letter, while the server stops.
	settleTime = 10 * time.Second
	// confirmTime bounds it while the server runs: the bus waits for the confirmation as long as
	// its connection lives, so this only keeps the server from waiting for ever.
	confirmTime = 24 * time.Hour
	// retryLater is the delay before a message goes back that this server cannot handle now.
	retryLater = time.Second
)

// settlement is the delivery of an AtLeastOnce cast that this server has.
type settlement struct {
	progress int           // of the message
	arrived  chan struct{} // closed when a newer copy has come
	done     chan struct{} // closed when the delivery is settled
}

// progressOf grows each time that servers publish a message anew.
func progressOf(m *bus.Message) int {
	return m.Failures + m.Redeliveries + int(m.Waited.Milliseconds())
}

// ended is the progress of a message that has become a dead letter: no attempt follows.
const ended = math.MaxInt

// lifeKey distinguishes a message from the one that is made of its dead letter when that is sent again.
func lifeKey(m *bus.Message) string { return m.ID + "/" + strconv.Itoa(m.Requeues) }

// serveDurable handles a cast of an AtLeastOnce method. A second delivery of a message waits until the
// first is settled: then it is known whether the message was handled, or was replaced by a newer copy.
// The arrival of the newer copy tells the first that its publish is confirmed.
func (s *Server) serveDurable(ctx, work context.Context, d *delivery) {
	ctx, d.stop = s.handlerContext(ctx, d)
	defer d.stop()
	own := &settlement{progressOf(d.Message), make(chan struct{}), make(chan struct{})}
	for {
		s.mu.Lock()
		earlier := s.settling[d.id]
		if earlier == nil {
			s.settling[d.id] = own
		} else if own.progress > earlier.progress {
			select {
			case <-earlier.arrived:
			default:
				close(earlier.arrived)
			}
		}
		s.mu.Unlock()
		if earlier == nil {
			break
		}
		if own.progress <= earlier.progress {
			d.releaseSlot()
			<-earlier.done
			s.discardCopy(ctx, d)
			return
		}
		<-earlier.done
	}
	defer func() {
		s.mu.Lock()
		delete(s.settling, d.id)
		s.mu.Unlock()
		close(own.done)
	}()
	open, err := s.attemptOnce(ctx, work, d)
	d.releaseSlot()
	if open {
		s.settle(ctx, work, d, err)
	}
}

// discardCopy acknowledges a second delivery if the message was handled or replaced. If not, the first was
// returned to the bus, and so is the second.
func (s *Server) discardCopy(ctx context.Context, d *delivery) {
	if seen, err := s.cfg.Dedup.Seen(context.WithoutCancel(ctx), d.id); err == nil && seen || s.superseded(d.Message) {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, d)
		return
	}
	_ = d.Nack() // on an error the bus redelivers it by itself
}

// attemptOnce runs the handler of an AtLeastOnce cast, unless the message was handled or replaced before. open
// reports whether the message is still to be settled, by err.
func (s *Server) attemptOnce(ctx, work context.Context, d *delivery) (open bool, err error) {
	seen, err := s.cfg.Dedup.Seen(ctx, d.id)
	if err == nil && (seen || s.superseded(d.Message)) {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, d)
		return false, nil
	}
	if d.Redelivered {
		s.countLostServer(ctx, work, d)
		return false, nil
	}
	if err != nil {
		return true, fault.New(fault.Unavailable, "look up whether the message was handled: %v", err)
	}
	if !s.track(d) { //nolint:contextcheck // a call has the same id; a heartbeat has a time of its own
		s.waitRunning(retryLater)
		_ = d.Nack() // on an error the bus redelivers it by itself
		return false, nil
	}
	defer s.untrack(d)
	if _, err := s.invoke(ctx, d); err != nil {
		return true, err
	}
	if err := s.cfg.Dedup.Add(context.WithoutCancel(ctx), d.id); err != nil {
		s.cfg.Logger.WarnContext(ctx, "handled message not recorded, a redelivery would be handled again", "method", d.info.String(), "id", d.id, "error", err)
	}
	return true, nil
}

// settle ends the delivery of an AtLeastOnce cast: acknowledged, sent again for its next
// attempt, or a dead letter.
func (s *Server) settle(ctx, work context.Context, d *delivery, err error) {
	if err == nil {
		s.acknowledge(ctx, d)
		return
	}
	if work.Err() != nil { // the server is cut off, which is not the message's fault
		_ = d.Nack() // on an error the bus redelivers it by itself
		return
	}
	ctx = context.WithoutCancel(ctx)
	next := *d.Message
	reason := fmt.Sprintf("%v: %v", fault.CodeOf(err), err)
	var delay time.Duration
	giveUp := final(err)
	if fault.CodeOf(err) == fault.Unavailable {
		// Not an attempt: nothing was done. The sum of the delays needs no clock that servers share.
		reason = fmt.Sprintf("%s (tried for %v)", reason, d.Waited.Round(time.Second))
		delay = backoff.Jitter(min(max(d.Waited, minRedeliver), maxRedeliver))
		next.Waited += delay
		giveUp = d.Waited >= s.cfg.MaxUnavailable
	} else {
		next.Failures++
		delay = backoff.Delay(next.Failures, minRedeliver, maxRedeliver)
		giveUp = giveUp || next.Failures >= s.cfg.MaxDeliveries
	}
	if giveUp {
		s.deadLetter(ctx, work, d, next.Failures, reason)
		return
	}
	s.cfg.Logger.WarnContext(ctx, "cast failed, delivered again", "method", d.info.String(), "failures", next.Failures, "waited", next.Waited, "delay", delay, "error", err)
	if !s.waitRunning(delay) {
		s.decline(work, d.Delivery, d.topic)
		return
	}
	s.requeue(ctx, work, d, &next)
}

// countLostServer counts that the message was lost with a server, and ends its delivery: the next one has the
// count. The count travels with the message, because a message that kills its servers leaves none that
// could remember.
func (s *Server) countLostServer(ctx, work context.Context, d *delivery) {
	next := *d.Message
	next.Redeliveries++
	switch {
	case s.superseded(d.Message):
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, d)
	case next.Redeliveries >= maxRedeliveries:
		s.deadLetter(ctx, work, d, d.Failures, fmt.Sprintf("%d servers were lost that had it", next.Redeliveries))
	default:
		s.requeue(context.WithoutCancel(ctx), work, d, &next)
	}
}

// decline ends the delivery of a message that came, or waited for its next attempt, when the server began to stop. A
// cast is published anew, because a message that goes back counts as lost with its server.
func (s *Server) decline(work context.Context, m *bus.Delivery, topic string) {
	if m.Kind == bus.Cast && !m.Redelivered {
		if err := s.replace(work, m, m.Message, topic, progressOf(m.Message)); err == nil {
			return
		}
	}
	_ = m.Nack() // on an error the bus redelivers it by itself
}

// requeue publishes next, which is the message with a higher count, and acknowledges the message when that is confirmed.
func (s *Server) requeue(ctx, work context.Context, d *delivery, next *bus.Message) {
	atomic.AddUint64(&s.stats.Redelivered, 1)
	err := s.replace(work, d.Delivery, next, d.topic, progressOf(next))
	switch {
	case err == nil:
	case errors.Is(err, fault.Invalid):
		s.deadLetter(ctx, work, d, next.Failures, fmt.Sprintf("it cannot be published again: %v", err))
	default:
		s.cfg.Logger.WarnContext(ctx, "requeue failed, message returned with old attempt count", "topic", d.topic, "id", d.ID, "attempt", d.Attempt(), "error", err)
		_ = d.Nack() // on an error the bus redelivers it by itself
	}
}

// replace publishes next in place of m, and acknowledges m when the bus has confirmed next. m stays
// unacknowledged until then: an unconfirmed publish has an unknown outcome, and m must not be delivered beside
// next. If the connection is lost before the confirmation, next is published again. On an
// error m is still to be settled: next was certainly not published, or the server ends. progress is
// what [Server.superseded] compares with.
func (s *Server) replace(work context.Context, m *bus.Delivery, next *bus.Message, topic string, progress int) error {
	ctx, cancel := s.untilStopped(work)
	defer cancel()
	s.mu.Lock()
	own := s.settling[m.ID]
	s.mu.Unlock()
	arrived := func() bool { return false }
	if own != nil && progress != ended {
		go func() { // ends with ctx
			select {
			case <-own.arrived:
				cancel()
			case <-ctx.Done():
			}
		}()
		arrived = func() bool {
			select {
			case <-own.arrived:
				return true
			default:
				return false
			}
		}
	}
	wait := backoff.Backoff{Min: minRedeliver, Max: maxRedeliver}
	for {
		err := s.bus.Publish(ctx, topic, next)
		switch {
		case err == nil, arrived():
			if m.ID != "" {
				s.replaced.put(lifeKey(m.Message), progress)
			}
			_ = m.Ack() // on an error it comes again, and is superseded
			return nil
		case ctx.Err() != nil, errors.Is(err, ErrClosed), bus.OutcomeOf(err) != bus.Unknown:
			return err
		case !next.Persistent(): // at most once: rather lost than doubled
			_ = m.Ack()
			return nil
		}
		s.cfg.Logger.WarnContext(ctx, "publish has an unknown outcome, publishing again", "topic", topic, "id", m.ID, "error", err)
		wait.Wait(ctx)
	}
}

// untilStopped returns a context that ends with work, or settleTime after the server begins to stop.
func (s *Server) untilStopped(work context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(work, confirmTime)
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-s.stopping:
		}
		backoff.Sleep(ctx, settleTime)
		cancel()
	}()
	return ctx, cancel
}

// superseded reports whether this server has replaced m by a newer copy, or made it a dead letter. Then m
// came again because its acknowledgement was lost, or is one of several copies.
func (s *Server) superseded(m *bus.Message) bool {
	if m.ID == "" {
		return false
	}
	newest, ok := s.replaced.get(lifeKey(m))
	return ok && progressOf(m) < newest
}

// deadLetter makes the message a dead letter, and acknowledges it when that is confirmed. If it fails, the message is
// delivered again.
func (s *Server) deadLetter(ctx, work context.Context, d *delivery, failures int, reason string) {
	ctx = context.WithoutCancel(ctx)
	letter := *d.Message
	letter.Failures = failures
	letter.Dead = &bus.Dead{Reason: cutText(reason, maxText), Topic: d.topic, Server: s.cfg.Host, At: time.Now()}
	to := s.cfg.Interface.Name + suffixDead
	err := s.createDeadTopic(ctx, to)
	if err == nil {
		err = s.replace(work, d.Delivery, &letter, to, ended)
		if errors.Is(err, fault.Invalid) {
			err = s.replace(work, d.Delivery, truncateLetter(&letter), to, ended)
		}
	}
	log := s.cfg.Logger.With("topic", d.topic, "id", d.ID, "reason", letter.Dead.Reason)
	if err != nil {
		log.ErrorContext(ctx, "dead-lettering failed, message delivered again", "error", err)
		s.deadTopic.Store(false)
		s.waitRunning(retryLater)
		_ = d.Nack() // on an error the bus redelivers it by itself
		return
	}
	atomic.AddUint64(&s.stats.DeadLettered, 1)
	log.ErrorContext(ctx, "message dead-lettered", "dead_letters", to)
}

// createDeadTopic makes sure that the topic of dead letters exists.
func (s *Server) createDeadTopic(ctx context.Context, topic string) error {
	if s.deadTopic.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := s.bus.CreateTopic(ctx, topic); err != nil {
		return err
	}
	s.deadTopic.Store(true)
	return nil
}

// truncateLetter returns a dead letter that every bus can carry: of a payload and metadata that are too
// large it has the beginning, and says so.
func truncateLetter(m *bus.Message) *bus.Message {
	c := *m
	if len(c.Envelope()) > maxText {
		c = bus.Message{Failures: m.Failures, Redeliveries: m.Redeliveries, Requeues: m.Requeues}
	}
	dead := *m.Dead
	dead.Topic, dead.Server = cutText(dead.Topic, names.Max), cutText(dead.Server, names.Max)
	dead.Truncated = len(m.Payload)
	c.ID, c.Dead, c.Payload = cutText(m.ID, names.Max), &dead, m.Payload[:min(len(m.Payload), maxText)]
	c.Waited, c.ReplyTo, c.Correlation, c.Instance, c.Header = 0, "", "", "", nil
	if from := m.Header[headerContext]; from != "" && len(from) <= maxText {
		c.Header = map[string]string{headerContext: from}
	}
	return &c
}

// rejectMalformed ends the delivery of a message that cannot be read, or is too large. A caller that waits
// for a reply gets one.
func (s *Server) rejectMalformed(work context.Context, d *delivery, err error) {
	atomic.AddUint64(&s.stats.Malformed, 1)
	if d.ReplyTo != "" {
		s.reply(work, d, nil, err)
	}
	s.deadLetter(work, work, d, d.Failures, fmt.Sprintf("malformed: %v", err))
}

func (s *Server) acknowledge(ctx context.Context, d *delivery) {
	if err := d.Ack(); err != nil {
		s.cfg.Logger.DebugContext(ctx, "handled message not acknowledged, it will be redelivered", "method", d.info.String(), "id", d.id, "error", err)
	}
}

// waitRunning waits, and reports whether the server still runs.
func (s *Server) waitRunning(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stopping:
		return false
	}
}

// final reports whether another attempt would fail again.
func final(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Invalid, fault.Unauthenticated, fault.Denied, fault.NotFound, fault.Conflict, fault.Precondition, fault.Unimplemented:
		return true
	default:
		return false
	}
}
