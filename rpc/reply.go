package rpc

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
)

// minBeat is how often a caller gets a heartbeat at most. A first one that is wanted sooner is sent at
// once.
const minBeat = 10 * time.Millisecond

// scheduleBeatLocked has heartbeats sent to the caller of r, if it wants any. One timer serves all
// calls: most end long before it.
func (s *Server) scheduleBeatLocked(r *request) {
	if r.replyTo == "" || r.beat == 0 && r.first == 0 {
		return
	}
	if r.beat > 0 {
		r.beat = max(r.beat, minBeat)
	}
	wait := r.beat
	if r.first > 0 && (wait == 0 || r.first < wait) {
		wait = r.first
	}
	if wait < minBeat { // only the first
		s.wg.Go(func() { s.beat(r) }) // the counter is not zero while r runs
		if wait = r.beat; wait == 0 {
			return
		}
	}
	r.due = r.since.Add(wait)
	if s.due.IsZero() || r.due.Before(s.due) {
		s.due = r.due
		if s.heart == nil {
			s.heart = time.AfterFunc(wait, s.beats)
		} else {
			s.heart.Reset(wait)
		}
	}
}

// beats sends the heartbeats that are due.
func (s *Server) beats() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return
	}
	now := time.Now()
	s.due = time.Time{}
	for _, r := range s.running {
		if r.due.IsZero() {
			continue
		}
		if !r.due.After(now) {
			s.wg.Go(func() { s.beat(r) }) // the counter is not zero while r runs
			if r.beat == 0 {
				r.due = time.Time{}
				continue
			}
			r.due = now.Add(r.beat)
		}
		if s.due.IsZero() || r.due.Before(s.due) {
			s.due = r.due
		}
	}
	if !s.due.IsZero() {
		s.heart.Reset(s.due.Sub(now))
	}
}

// beat sends one heartbeat. It may come after the reply, which does not matter.
func (s *Server) beat(r *request) {
	wait := r.beat
	if wait == 0 {
		wait = replyTime
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := s.bus.Publish(r.replyTo, s.sign(about(ctx, KindBeat, r.id))); err != nil {
		s.cfg.Logger.DebugContext(ctx, "a caller could not be told that its call is worked on", "method", r.info.String(), "error", err)
	}
}

// reply sends the result. It outlives the handler's context: a call answered in
// its last moment, or while the server stops, is answered.
func (s *Server) reply(work context.Context, r *request, resp any, err error) {
	m := s.sign(encodeReply(context.Background(), r.id, resp, err)) //nolint:contextcheck // work has ended when the server is aborted
	if s.sender == nil {
		s.replyUntil(work, r, m, nil)
		return
	}
	s.wg.Add(1)
	s.sender.Send(r.replyTo, m, func(perr error) {
		if perr == nil {
			s.wg.Done()
			return
		}
		go func() { // the counter is still held
			defer s.wg.Done()
			s.replyUntil(work, r, m, perr)
		}()
	})
}

// expired tells a caller who may still wait, because its clock is another, what time it
// is here. It is tried once: most callers have given up.
func (s *Server) expired(r *request) {
	if r.replyTo == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), graceTime)
	m := s.sign(encodeReply(ctx, r.id, nil, &fault.Error{
		Code: fault.Timeout, Reason: reasonExpired, Msg: "the request came after its deadline, and was not run",
		Meta: map[string]string{metaNow: time.Now().UTC().Format(time.RFC3339Nano)},
	}))
	if s.sender != nil {
		s.sender.Send(r.replyTo, m, func(error) { cancel() })
		return
	}
	_ = s.bus.Publish(r.replyTo, m) // see above
	cancel()
}

// What a server says of a request that came too late.
const (
	reasonExpired = "Expired"
	metaNow       = "now"
)

// skew returns by how much the clock of the server that sent err, as one that has
// expired, is ahead of the own one. It is 0 if they agree within a second.
func skew(err error) time.Duration {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Reason != reasonExpired {
		return 0
	}
	there, perr := time.Parse(time.RFC3339Nano, f.Meta[metaNow])
	if d := time.Until(there); perr == nil && d.Abs() > time.Second {
		return d
	}
	return 0
}

// replyUntil sends a reply until it is taken, or nobody waits any more. perr is
// how the first attempt failed, if one was made. After the server was aborted it
// is tried once, and not for long.
func (s *Server) replyUntil(work context.Context, r *request, m *message.Message, perr error) {
	end := time.Now().Add(replyTime)
	if !r.deadline.IsZero() && r.deadline.Before(end) {
		end = r.deadline // nobody waits longer
	}
	if work.Err() != nil {
		end = time.Now().Add(stopGrace / 2)
	}
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	stopping := s.stopping
	small := false // the reply was replaced by one that says that it is too large
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if perr == nil {
			again := clone(ctx, m) //nolint:contextcheck // as above
			if perr = s.bus.Publish(r.replyTo, again); perr == nil {
				return
			}
		}
		if fault.CodeOf(perr) == fault.Invalid && !small {
			small = true
			m = s.sign(encodeReply(context.Background(), r.id, nil, fault.New(fault.Internal, "%s: %w: %v", r.info, ErrReplyTooLarge, perr))) //nolint:contextcheck // as above
			perr = nil
			continue
		}
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-t.C:
			// The caller may be restoring its topic, the bus its connection.
			if c := fault.CodeOf(perr); (c == fault.Unavailable || c == fault.Unknown) && !errors.Is(perr, ErrClosed) {
				perr = nil
				continue
			}
		case <-stopping: // the process is to end: nobody gets all of the time
			t.Stop()
			stopping = nil
			time.AfterFunc(stopGrace, cancel)
			continue
		case <-ctx.Done():
			t.Stop()
		case <-work.Done():
			t.Stop()
		}
		atomic.AddUint64(&s.stats.LostReplies, 1)
		s.cfg.Logger.Warn("the reply was lost", "method", r.info.String(), "request_id", r.from.ID, "error", perr)
		return
	}
}
