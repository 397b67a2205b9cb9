package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/names"
)

const (
	// A cast of an AtLeastOnce method that failed is tried again after
	// minRedeliver, doubled each time up to maxRedeliver, with jitter.
	minRedeliver = 100 * time.Millisecond
	maxRedeliver = 30 * time.Second
	// maxRedeliveries is how many servers may be lost that had a message in hand
	// before it is taken for what killed them. It is the default delivery limit
	// of RabbitMQ's quorum queues.
	maxRedeliveries = 20
	// settleTime bounds the publishing of a message that is tried again, or that
	// is a dead letter, while the server stops.
	settleTime = 10 * time.Second
	// confirmTime bounds it while the server runs: the bus waits for the confirmation as long as
	// its connection lives, so this is only not to wait for ever.
	confirmTime = 24 * time.Hour
	// maxReason bounds the text of a dead letter's reason and of an error that is sent to the caller, in
	// bytes.
	maxReason = 8 << 10
)

// settlement is the delivery of an AtLeastOnce cast that is in hand.
type settlement struct {
	attempt int           // of the message, see attempts
	arrived chan struct{} // closed when a newer copy has come
	done    chan struct{} // closed when the delivery is settled
}

// serveDurable handles a cast of an AtLeastOnce method. A second delivery of a message waits until the
// first is settled: then it is known whether the message was handled, or was replaced by a newer copy.
// The arrival of the newer copy tells the first that its publish is confirmed.
func (s *Server) serveDurable(ctx, work context.Context, sl *slot, m *message.Message, r *request, e endpoint, known bool) {
	own := &settlement{attempts(m), make(chan struct{}), make(chan struct{})}
	for {
		s.mu.Lock()
		earlier := s.settling[r.id]
		if earlier == nil {
			s.settling[r.id] = own
		} else if own.attempt > earlier.attempt {
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
		if own.attempt <= earlier.attempt {
			sl.release()
			<-earlier.done
			s.discard(ctx, m, r)
			return
		}
		<-earlier.done
	}
	defer func() {
		s.mu.Lock()
		delete(s.settling, r.id)
		s.mu.Unlock()
		close(own.done)
	}()
	open, err := s.once(ctx, work, m, r, e, known)
	sl.release()
	if open {
		s.settle(ctx, work, m, r, err)
	}
}

// discard acknowledges a second delivery if the message was handled or replaced. If not, the first was
// returned to the bus, and so is the second.
func (s *Server) discard(ctx context.Context, m *message.Message, r *request) {
	if seen, err := s.cfg.Dedup.Seen(context.WithoutCancel(ctx), r.id); err == nil && seen || s.superseded(m) {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, m, r)
		return
	}
	_ = Settle(m, false) // else the bus redelivers it by itself
}

// once runs the handler of an AtLeastOnce cast, unless the message was handled or replaced before. It
// reports whether the message is still to be settled, by err.
func (s *Server) once(ctx, work context.Context, m *message.Message, r *request, e endpoint, known bool) (open bool, err error) {
	seen, err := s.cfg.Dedup.Seen(ctx, r.id)
	if err == nil && (seen || s.superseded(m)) {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, m, r)
		return false, nil
	}
	if m.Metadata[MetaRedelivered] != "" {
		s.redelivered(ctx, work, m, r)
		return false, nil
	}
	if err != nil {
		return true, fault.New(fault.Unavailable, "look up whether the message was handled: %v", err)
	}
	if !s.track(r) { //nolint:contextcheck // a call has the same id; a heartbeat has a time of its own
		s.pause(time.Second)
		_ = Settle(m, false) // else the bus redelivers it by itself
		return false, nil
	}
	defer s.untrack(r)
	if _, err := s.invoke(ctx, r, e, known); err != nil {
		return true, err
	}
	if err := s.cfg.Dedup.Add(context.WithoutCancel(ctx), r.id); err != nil {
		s.cfg.Logger.WarnContext(ctx, "it could not be noted that a message was handled: if it comes again it is handled again", "method", r.info.String(), "id", r.id, "error", err)
	}
	return true, nil
}

// settle ends the delivery of an AtLeastOnce cast: acknowledged, tried again
// later, or a dead letter.
func (s *Server) settle(ctx, work context.Context, m *message.Message, r *request, err error) {
	if err == nil {
		s.acknowledge(ctx, m, r)
		return
	}
	if work.Err() != nil { // the server is cut off, which is not the message's fault
		_ = Settle(m, false) // else the bus gives it back by itself
		return
	}
	ctx = context.WithoutCancel(ctx)
	reason := fmt.Sprintf("%v: %v", fault.CodeOf(err), err)
	key, n := MetaFailures, count(m, MetaFailures)+1
	wait := min(minRedeliver<<min(n-1, 16), maxRedeliver)
	waited := time.Duration(count(m, MetaWaited)) * time.Millisecond
	if fault.CodeOf(err) == fault.Unavailable {
		// Not an attempt: nothing was done. The sum of the pauses needs no clock that servers share.
		wait = min(max(waited, minRedeliver), maxRedeliver)
		reason = fmt.Sprintf("%s (tried for %v)", reason, waited.Round(time.Second))
	}
	wait = wait/2 + rand.N(wait/2)
	if fault.CodeOf(err) == fault.Unavailable {
		key, n = MetaWaited, int((waited + wait).Milliseconds())
	}
	switch {
	case final(err), key == MetaFailures && n >= s.cfg.MaxTries:
		s.bury(ctx, work, m, r.topic, n, reason)
		return
	case key == MetaWaited && waited >= s.cfg.MaxUnavailable:
		s.bury(ctx, work, m, r.topic, count(m, MetaFailures), reason)
		return
	}
	s.cfg.Logger.WarnContext(ctx, "a cast failed and is delivered again", "method", r.info.String(), key, n, "after", wait, "error", err)
	if !s.pause(wait) {
		s.decline(work, m, r.topic)
		return
	}
	s.requeue(ctx, work, m, r.topic, key, n)
}

// redelivered counts that the message was lost with a server, and ends its delivery: the next one has the
// count. The count travels with the message, because a message that kills its servers leaves none that
// could remember.
func (s *Server) redelivered(ctx, work context.Context, m *message.Message, r *request) {
	n := count(m, MetaRedeliveries) + 1
	switch {
	case s.superseded(m):
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, m, r)
	case n >= maxRedeliveries:
		s.bury(ctx, work, m, r.topic, count(m, MetaFailures), fmt.Sprintf("%d servers were lost that had it", n))
	default:
		s.requeue(context.WithoutCancel(ctx), work, m, r.topic, MetaRedeliveries, n)
	}
}

// decline ends the delivery of a message that came, or waited for its next attempt, when the server began to stop. A
// cast is published anew, because what is given back counts as lost with its server.
func (s *Server) decline(work context.Context, m *message.Message, topic string) {
	if KindOf(m) == KindCast && m.Metadata[MetaRedelivered] == "" {
		if err := s.replace(work, m, clone(work, m), topic, attempts(m)); err == nil {
			return
		}
	}
	_ = Settle(m, false) // else the bus redelivers it by itself
}

// requeue publishes the message anew with a higher count, and acknowledges this one when that is confirmed.
func (s *Server) requeue(ctx, work context.Context, m *message.Message, topic, key string, n int) {
	atomic.AddUint64(&s.stats.Redelivered, 1)
	next := clone(ctx, m)
	next.Metadata[key] = strconv.Itoa(n)
	err := s.replace(work, m, next, topic, attempts(next))
	log := s.cfg.Logger.With("topic", topic, "id", m.UUID, "error", err)
	switch {
	case err == nil:
	case errors.Is(err, fault.Invalid):
		s.bury(ctx, work, m, topic, count(next, MetaFailures), fmt.Sprintf("it cannot be published again: %v", err))
	default:
		log.WarnContext(ctx, "requeue failed, message returned with old attempt count")
		_ = Settle(m, false) // else the bus redelivers it by itself
	}
}

// ended replaces the attempt of a message that has become a dead letter: no attempt follows.
const ended = math.MaxInt

// replace publishes next in place of m, and acknowledges m when the bus has confirmed next. m stays
// unacknowledged until then: an unconfirmed publish has an unknown outcome, and m must not be delivered beside
// next. If the connection is lost before the confirmation, next is published again. On an
// error m is still to be settled: next was certainly not published, or the server ends. attempt is
// what [Server.superseded] compares with.
func (s *Server) replace(work context.Context, m, next *message.Message, topic string, attempt int) error {
	ctx, cancel := s.untilStopped(work)
	defer cancel()
	s.mu.Lock()
	own := s.settling[m.UUID]
	s.mu.Unlock()
	arrived := func() bool { return false }
	if own != nil && attempt != ended {
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
	for delay := minRedeliver; ; delay = min(2*delay, maxRedeliver) {
		err := s.bus.Publish(topic, clone(ctx, next))
		switch {
		case err == nil, arrived():
			if m.UUID != "" {
				s.replaced.put(lifeKey(m), attempt)
			}
			_ = Settle(m, true) // else it comes again, and is superseded
			return nil
		case ctx.Err() != nil, errors.Is(err, ErrClosed), fault.CodeOf(err) != fault.Unknown:
			return err
		case !Durable(next): // at most once: rather lost than doubled
			_ = Settle(m, true)
			return nil
		}
		s.cfg.Logger.WarnContext(ctx, "publish has an unknown outcome, publishing again", "topic", topic, "id", m.UUID, "error", err)
		t := time.NewTimer(delay/2 + rand.N(delay/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
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
		t := time.NewTimer(settleTime)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
			cancel()
		}
	}()
	return ctx, cancel
}

// superseded reports whether this server has replaced m by a newer copy, or made it a dead letter. Then m
// came again because its acknowledgement was lost, or is one of several copies.
func (s *Server) superseded(m *message.Message) bool {
	if m.UUID == "" {
		return false
	}
	newest, ok := s.replaced.get(lifeKey(m))
	return ok && attempts(m) < newest
}

// attempts grows each time that servers publish a message anew.
func attempts(m *message.Message) int {
	return count(m, MetaFailures) + count(m, MetaRedeliveries) + count(m, MetaWaited)
}

// lifeKey tells a message from what is made of its dead letter when that is sent again.
func lifeKey(m *message.Message) string { return m.UUID + "/" + m.Metadata[MetaRequeues] }

// bury makes m a dead letter, and acknowledges it when that is confirmed. If it fails, m is delivered
// again.
func (s *Server) bury(ctx, work context.Context, m *message.Message, topic string, failures int, reason string) {
	ctx = context.WithoutCancel(ctx)
	letter := clone(ctx, m)
	letter.Metadata[MetaFailures] = strconv.Itoa(failures)
	letter.Metadata[MetaReason] = cutText(reason, maxReason)
	letter.Metadata[MetaTopic] = topic
	letter.Metadata[MetaDiedAt] = time.Now().UTC().Format(time.RFC3339Nano)
	letter.Metadata[MetaServer] = s.cfg.Host
	to := s.cfg.Interface.Name + suffixDead
	made, cancel := context.WithTimeout(ctx, settleTime)
	err := s.dig(made, to)
	cancel()
	if err == nil {
		err = s.replace(work, m, letter, to, ended)
		if errors.Is(err, fault.Invalid) {
			err = s.replace(work, m, cutLetter(ctx, letter), to, ended)
		}
	}
	log := s.cfg.Logger.With("topic", topic, "id", m.UUID, "reason", letter.Metadata[MetaReason])
	if err != nil {
		log.ErrorContext(ctx, "a message that is given up could not be made a dead letter, and comes again", "error", err)
		s.mu.Lock()
		s.dead = false
		s.mu.Unlock()
		s.pause(time.Second)
		_ = Settle(m, false) // else the bus gives it back by itself
		return
	}
	atomic.AddUint64(&s.stats.DeadLettered, 1)
	log.ErrorContext(ctx, "gave a message up: it is a dead letter now", "dead_letters", to)
}

// cutLetter returns a dead letter that every bus can carry: of a payload and metadata that are too
// large it has the beginning, and says so.
func cutLetter(ctx context.Context, m *message.Message) *message.Message {
	c := newMessage(ctx, cutText(m.UUID, names.Max), m.Payload[:min(len(m.Payload), maxReason)])
	for _, key := range []string{MetaRPC, MetaContext, MetaFailures, MetaRedeliveries, MetaRequeues, MetaReason, MetaTopic, MetaDiedAt, MetaServer} {
		if v := m.Metadata[key]; v != "" && len(v) <= maxReason {
			c.Metadata[key] = v
		}
	}
	c.Metadata[MetaTruncated] = strconv.Itoa(len(m.Payload))
	return c
}

// cutText returns s, or as much of its beginning as fits into size bytes, as valid UTF-8.
func cutText(s string, size int) string {
	if len(s) > size {
		const mark = "..."
		s = s[:size-len(mark)]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		s = s[:max(len(s)-1, 0)] + mark
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// dig makes sure that the topic of dead letters exists.
func (s *Server) dig(ctx context.Context, topic string) error {
	s.mu.Lock()
	dug := s.dead
	s.mu.Unlock()
	if dug {
		return nil
	}
	if err := create(ctx, s.bus, topic); err != nil {
		return err
	}
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	return nil
}

// create makes a Shared topic.
func create(ctx context.Context, bus Bus, topic string) error {
	if b, ok := bus.(message.SubscribeInitializer); ok {
		return b.SubscribeInitialize(topic)
	}
	ctx, cancel := context.WithCancel(ctx)
	ch, err := bus.Subscribe(ctx, Subscription{Topic: topic, Slots: 1})
	cancel()
	if err != nil {
		return err
	}
	for m := range ch {
		_ = Settle(m, false) // else the bus gives it back by itself
	}
	return nil
}

// malformed ends the delivery of a message that cannot be read, or is too large. A caller that waits
// for a reply gets one.
func (s *Server) malformed(work context.Context, m *message.Message, topic string, err error) {
	atomic.AddUint64(&s.stats.Malformed, 1)
	if to := m.Metadata[MetaReplyTo]; to != "" {
		s.reply(work, &request{id: m.UUID, replyTo: to}, nil, err)
	}
	s.bury(work, work, m, topic, count(m, MetaFailures), fmt.Sprintf("malformed: %v", err))
}

func (s *Server) acknowledge(ctx context.Context, m *message.Message, r *request) {
	if err := Settle(m, true); err != nil {
		s.cfg.Logger.DebugContext(ctx, "a handled message could not be acknowledged, and comes again", "method", r.info.String(), "id", r.id, "error", err)
	}
}

// pause waits, and reports whether the server goes on.
func (s *Server) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stopping:
		return false
	}
}

// clone returns a copy to publish.
func clone(ctx context.Context, m *message.Message) *message.Message {
	c := newMessage(ctx, m.UUID, m.Payload)
	maps.Copy(c.Metadata, m.Metadata)
	delete(c.Metadata, MetaRedelivered)
	return c
}

// count reads a counter in a message's metadata.
func count(m *message.Message, key string) int {
	n, err := strconv.Atoi(m.Metadata[key])
	if err != nil || n < 0 {
		return 0
	}
	return n
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
