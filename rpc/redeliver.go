package rpc

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
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
	// is a dead letter.
	settleTime = 10 * time.Second
)

// once runs the handler of an AtLeastOnce cast, unless it was run before, or runs
// now. It reports whether the message is still to be settled, by err.
func (s *Server) once(ctx context.Context, m *message.Message, r *request, e endpoint, known bool) (open bool, err error) {
	if m.Metadata[MetaRedelivered] != "" && s.redelivered(ctx, m, r) {
		return false, nil
	}
	seen, err := s.cfg.Dedup.Seen(ctx, r.id)
	if err != nil {
		return true, fmt.Errorf("look up whether the message was handled: %w", err)
	}
	if seen {
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.acknowledge(ctx, m, r)
		return false, nil
	}
	if !s.track(r) { // a copy of it runs: its end decides
		atomic.AddUint64(&s.stats.Duplicate, 1)
		s.pause(time.Second)
		_ = Settle(m, false) // else the bus gives it back by itself
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
	n := count(m, MetaFailures) + 1
	if final(err) || n >= s.cfg.MaxTries {
		s.bury(ctx, m, r.topic, n, fmt.Sprintf("%v: %v", fault.CodeOf(err), err))
		return
	}
	wait := min(minRedeliver<<min(n-1, 16), maxRedeliver)
	wait = wait/2 + rand.N(wait/2)
	s.cfg.Logger.WarnContext(ctx, "a cast failed and is delivered again", "method", r.info.String(), "failures", n, "after", wait, "error", err)
	if !s.pause(wait) {
		_ = Settle(m, false) // else the bus gives it back by itself
		return
	}
	s.again(ctx, m, r.topic, MetaFailures, n)
}

// redelivered counts that the message was lost with a server, and reports
// whether that was all there is to do. The count travels with the message,
// because a message that kills its servers leaves none that could remember.
func (s *Server) redelivered(ctx context.Context, m *message.Message, r *request) bool {
	if seen, err := s.cfg.Dedup.Seen(ctx, r.id); err == nil && seen {
		return false // it was the acknowledgement that was lost
	}
	n := count(m, MetaRedeliveries) + 1
	if n >= maxRedeliveries {
		s.bury(ctx, m, r.topic, count(m, MetaFailures), fmt.Sprintf("%d servers were lost that had it", n))
		return true
	}
	s.again(context.WithoutCancel(ctx), m, r.topic, MetaRedeliveries, n)
	return true
}

// again publishes the message anew with a higher count and acknowledges this
// one. If that fails, it is given back as it was.
func (s *Server) again(ctx context.Context, m *message.Message, topic, key string, n int) {
	atomic.AddUint64(&s.stats.Redelivered, 1)
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	next := clone(ctx, m)
	next.Metadata[key] = strconv.Itoa(n)
	if err := s.bus.Publish(topic, next); err != nil {
		s.cfg.Logger.WarnContext(ctx, "a message that is to be tried again goes back with its old count", "topic", topic, "id", m.UUID, "error", err)
		_ = Settle(m, false) // else the bus gives it back by itself
		return
	}
	_ = Settle(m, true) // else it comes twice, which Dedup sees to
}

// bury makes m a dead letter. If that fails, it is given back.
func (s *Server) bury(ctx context.Context, m *message.Message, topic string, failures int, reason string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	letter := clone(ctx, m)
	letter.Metadata[MetaFailures] = strconv.Itoa(failures)
	letter.Metadata[MetaReason] = reason
	letter.Metadata[MetaTopic] = topic
	letter.Metadata[MetaDiedAt] = time.Now().UTC().Format(time.RFC3339Nano)
	letter.Metadata[MetaServer] = s.cfg.Host
	to := s.cfg.Interface.Name + suffixDead
	err := s.dig(ctx, to)
	if err == nil {
		err = s.bus.Publish(to, letter)
	}
	log := s.cfg.Logger.With("topic", topic, "id", m.UUID, "reason", reason)
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
	_ = Settle(m, true) // else it becomes one twice
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

// malformed ends the delivery of a message that cannot be read. Whoever waits
// for a reply gets one.
func (s *Server) malformed(work context.Context, m *message.Message, topic string, err error) {
	atomic.AddUint64(&s.stats.Malformed, 1)
	s.bury(work, m, topic, count(m, MetaFailures), fmt.Sprintf("malformed: %v", err))
	if to := m.Metadata[MetaReplyTo]; to != "" {
		s.reply(work, &request{id: m.UUID, replyTo: to}, nil, err)
	}
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
