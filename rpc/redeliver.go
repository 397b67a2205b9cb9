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
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/names"
)

const (
	// The delay before the next delivery attempt of a cast of an AtLeastOnce method is minRedeliver after the first
	// failure, doubled after each further one up to maxRedeliver, with jitter.
	minRedeliver = 100 * time.Millisecond
	maxRedeliver = 30 * time.Second
	// maxRedeliveries is the number of servers that were lost while they had a message, after which the message counts as
	// the cause and is dead-lettered. The number is the default delivery limit of RabbitMQ's quorum queues.
	maxRedeliveries = 20
	// republishStopTimeout bounds the publishing of a message, for its next delivery attempt or as a dead letter, from the moment when
	// the server begins to stop.
	republishStopTimeout = 10 * time.Second
	// republishTimeout bounds the same publishing while the server runs. The bus waits for the confirmation as long as its connection
	// lives, so this timeout only prevents an endless wait.
	republishTimeout = 24 * time.Hour
	// retryLater is how long the server keeps a message that cannot be handled now, before the server returns the message to the bus.
	retryLater = time.Second
)

// openCast is a delivery of an AtLeastOnce cast that is not yet acknowledged, republished or dead-lettered.
type openCast struct {
	progress int           // the result of progressOf for the message
	arrived  chan struct{} // closed when a newer copy of the message has arrived
	done     chan struct{} // closed when the delivery has ended
}

// progressOf returns a number that orders the copies of a message that servers publish: a newer copy has a greater number.
func progressOf(m *bus.Message) int {
	return m.Failures + m.Redeliveries + int(m.Waited.Milliseconds())
}

// ended is the progress of a message that has become a dead letter: no newer copy follows.
const ended = math.MaxInt

// lifeKey returns the message's id together with the number of times that its dead letter was requeued, because a requeued dead letter
// starts anew.
func lifeKey(m *bus.Message) string { return m.ID + "/" + strconv.Itoa(m.Requeues) }

// serveDurable handles a cast of an AtLeastOnce method. A second delivery of a message waits until the
// first has ended: then the server knows whether the message was handled, or was replaced by a newer copy.
// If the second delivery is the newer copy, its arrival shows that the first delivery has published it.
func (s *Server) serveDurable(ctx, work context.Context, d *delivery) {
	ctx, d.stop = s.handlerContext(ctx, d)
	defer d.stop()
	own := &openCast{progressOf(d.Message), make(chan struct{}), make(chan struct{})}
	for {
		s.mu.Lock()
		earlier := s.openCasts[d.id]
		if earlier == nil {
			s.openCasts[d.id] = own
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
		delete(s.openCasts, d.id)
		s.mu.Unlock()
		close(own.done)
	}()
	open, err := s.attemptOnce(ctx, work, d)
	d.releaseSlot()
	if open {
		s.endCast(ctx, work, d, err)
	}
}

// discardCopy ends a second delivery after the first one has ended. It acknowledges the second if the message was
// handled or replaced. Otherwise the first delivery was returned to the bus, and discardCopy returns the second as
// well.
func (s *Server) discardCopy(ctx context.Context, d *delivery) {
	if _, seen := s.handled.get(d.id); seen || s.superseded(d.Message) {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, d)
		return
	}
	_ = d.Nack() // on an error the bus redelivers it by itself
}

// attemptOnce runs the handler of an AtLeastOnce cast. It does not run the handler if the message was handled or replaced before, if the
// bus redelivered the message, or if the handler of a message with the same id runs already. If open is true, the caller must end the
// delivery with the result err; otherwise the delivery has ended.
func (s *Server) attemptOnce(ctx, work context.Context, d *delivery) (open bool, err error) {
	if _, seen := s.handled.get(d.id); seen || s.superseded(d.Message) {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, d)
		return false, nil
	}
	if d.Redelivered {
		s.countLostServer(ctx, work, d)
		return false, nil
	}
	if !s.track(d) { //nolint:contextcheck // the heartbeat that track schedules has its own timeout
		s.waitRunning(retryLater)
		_ = d.Nack() // on an error the bus redelivers it by itself
		return false, nil
	}
	defer s.untrack(d)
	if _, err := s.invoke(ctx, d); err != nil {
		return true, err
	}
	s.handled.put(d.id, struct{}{})
	return true, nil
}

// endCast ends the delivery of an AtLeastOnce cast after its handler returned err: the message is acknowledged, published
// for its next delivery attempt, or dead-lettered.
func (s *Server) endCast(ctx, work context.Context, d *delivery, err error) {
	if err == nil {
		s.acknowledge(ctx, d)
		return
	}
	if work.Err() != nil { // Stop canceled the handlers, so err does not count as a failed attempt
		_ = d.Nack() // on an error the bus redelivers it by itself
		return
	}
	ctx = context.WithoutCancel(ctx)
	next := *d.Message
	reason := fmt.Sprintf("%v: %v", fault.CodeOf(err), err)
	var delay time.Duration
	giveUp := isFinal(err)
	if fault.CodeOf(err) == fault.Unavailable || errors.Is(err, ErrUnsupportedVersion) { // a later attempt may succeed, for example after an upgrade of the server
		// This attempt does not count as failed, because nothing was done. Waited is a sum of delays and not a start time, because the
		// clocks of servers differ.
		if tried := d.Waited.Round(time.Second); tried > 0 {
			reason = fmt.Sprintf("%s (tried for %v)", reason, tried)
		}
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
	s.cfg.Logger.WarnContext(ctx, "cast failed, next delivery attempt scheduled", "method", d.info.String(), "failures", next.Failures, "waited", next.Waited, "delay", delay, "error", err)
	if !s.waitRunning(delay) {
		s.returnUnhandled(work, d.Delivery, d.topic)
		return
	}
	s.requeue(ctx, work, d, &next)
}

// countLostServer adds one to the message's number of lost servers. Then it publishes the message anew, or dead-letters it, and ends
// this delivery. The message itself has the number of lost servers, because a process that is killed by the message cannot store the
// number.
func (s *Server) countLostServer(ctx, work context.Context, d *delivery) {
	next := *d.Message
	next.Redeliveries++
	switch {
	case s.superseded(d.Message):
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, d)
	case next.Redeliveries >= maxRedeliveries:
		s.deadLetter(ctx, work, d, d.Failures, fmt.Sprintf("%d servers were lost while they had the message", next.Redeliveries))
	default:
		s.requeue(context.WithoutCancel(ctx), work, d, &next)
	}
}

// returnUnhandled ends the delivery of a message that arrived, or waited for its next attempt, when the server began to
// stop. A cast is published anew: after a Nack its redelivery would count as the loss of a server.
func (s *Server) returnUnhandled(work context.Context, m *bus.Delivery, topic string) {
	if m.Kind == bus.Cast && !m.Redelivered {
		if err := s.replace(work, m, m.Message, topic, progressOf(m.Message)); err == nil {
			return
		}
	}
	_ = m.Nack() // on an error the bus redelivers it by itself
}

// requeue publishes next, which is the message with a higher counter, and acknowledges d when the publish is confirmed.
func (s *Server) requeue(ctx, work context.Context, d *delivery, next *bus.Message) {
	atomic.AddUint64(&s.stats.Redelivered, 1)
	err := s.replace(work, d.Delivery, next, d.topic, progressOf(next))
	switch {
	case err == nil:
	case errors.Is(err, fault.Invalid):
		s.deadLetter(ctx, work, d, next.Failures, fmt.Sprintf("the message cannot be published again: %v", err))
	default:
		s.cfg.Logger.WarnContext(ctx, "requeue failed, message returned with old attempt count", "topic", d.topic, "id", d.ID, "attempt", d.Attempt(), "error", err)
		_ = d.Nack() // on an error the bus redelivers it by itself
	}
}

// replace publishes next in place of m, and acknowledges m when the bus has confirmed next. Until then m stays unacknowledged: an
// unconfirmed publish has an unknown outcome, and a returned m would be delivered beside next. If the connection is lost before the
// confirmation, next is published again. On an error the caller must end the delivery of m: next was certainly not published, or the
// server stops. The parameter progress is the number of next for [Server.superseded].
func (s *Server) replace(work context.Context, m *bus.Delivery, next *bus.Message, topic string, progress int) error {
	ctx, cancel := s.untilStopped(work)
	defer cancel()
	s.mu.Lock()
	own := s.openCasts[m.ID]
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
	delay := backoff.Backoff{Min: minRedeliver, Max: maxRedeliver}
	for {
		err := s.bus.Publish(ctx, topic, next)
		switch {
		case err == nil, arrived():
			if m.ID != "" {
				s.replaced.put(lifeKey(m.Message), progress)
			}
			_ = m.Ack() // if Ack fails, m is redelivered, and is superseded then
			return nil
		case ctx.Err() != nil, errors.Is(err, ErrClosed), bus.OutcomeOf(err) != bus.Unknown:
			return err
		case !next.Persistent(): // at most once: a loss is better than a duplicate
			_ = m.Ack()
			return nil
		}
		s.cfg.Logger.WarnContext(ctx, "publish of unknown outcome, publishing again", "topic", topic, "id", m.ID, "error", err)
		delay.Wait(ctx)
	}
}

// untilStopped returns a context that ends with work, republishStopTimeout after the server begins to stop, or after republishTimeout.
func (s *Server) untilStopped(work context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(work, republishTimeout)
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-s.stopping:
		}
		backoff.Sleep(ctx, republishStopTimeout)
		cancel()
	}()
	return ctx, cancel
}

// superseded reports whether this server has replaced m by a newer copy, or dead-lettered it. In that case m is one of several copies,
// or was redelivered because its acknowledgement was lost.
func (s *Server) superseded(m *bus.Message) bool {
	if m.ID == "" {
		return false
	}
	newest, ok := s.replaced.get(lifeKey(m))
	return ok && progressOf(m) < newest
}

// deadLetter publishes the message as a dead letter, and acknowledges it when the publish is confirmed. If that fails,
// the message is returned to the bus after retryLater, and delivered again.
func (s *Server) deadLetter(ctx, work context.Context, d *delivery, failures int, reason string) {
	ctx = context.WithoutCancel(ctx)
	letter := *d.Message
	letter.Failures = failures
	letter.Dead = &bus.Dead{Reason: text.Cut(reason, maxText), Topic: d.topic, Server: s.cfg.Host, At: time.Now()}
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

// createDeadTopic creates the topic of dead letters, once for each server.
func (s *Server) createDeadTopic(ctx context.Context, topic string) error {
	if s.deadTopic.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, republishStopTimeout)
	defer cancel()
	if err := s.bus.CreateTopic(ctx, topic); err != nil {
		return err
	}
	s.deadTopic.Store(true)
	return nil
}

// truncateLetter returns a dead letter that every bus can carry. It keeps the beginning of a payload that is too large, and
// drops most metadata. Dead.Truncated says how many bytes the payload had.
func truncateLetter(m *bus.Message) *bus.Message {
	c := *m
	if len(c.Envelope()) > maxText {
		c = bus.Message{Failures: m.Failures, Redeliveries: m.Redeliveries, Requeues: m.Requeues}
	}
	dead := *m.Dead
	dead.Topic, dead.Server = text.Cut(dead.Topic, names.Max), text.Cut(dead.Server, names.Max)
	dead.Truncated = len(m.Payload)
	c.ID, c.Dead, c.Payload = text.Cut(m.ID, names.Max), &dead, m.Payload[:min(len(m.Payload), maxText)]
	c.Waited, c.ReplyTo, c.Correlation, c.Instance, c.Header = 0, "", "", "", nil
	if from := m.Header[headerContext]; from != "" && len(from) <= maxText {
		c.Header = map[string]string{headerContext: from}
	}
	return &c
}

// rejectMalformed dead-letters a message that cannot be read, or is too large. A caller that waits for a reply gets
// err.
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

// waitRunning waits for the duration d. It returns false at once when the server stops.
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

// isFinal reports whether another attempt would also fail, by the error's code.
func isFinal(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Invalid, fault.Unauthenticated, fault.Denied, fault.NotFound, fault.Conflict, fault.Precondition, fault.Unimplemented:
		return true
	default:
		return false
	}
}
