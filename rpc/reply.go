package rpc

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

// minHeartbeat is the shortest interval between two heartbeats. If the caller wants the first one sooner, it is sent
// at once.
const minHeartbeat = 10 * time.Millisecond

// interval returns the time between two heartbeats to the caller. Zero: the caller wants no heartbeats.
func (d *delivery) interval() time.Duration {
	if d.Heartbeat <= 0 {
		return 0
	}
	return max(d.Heartbeat, minHeartbeat)
}

// scheduleHeartbeatLocked sets the timer for the heartbeats to the caller of r, if the caller wants any. One timer serves
// all calls, because most calls end long before their first heartbeat.
func (s *Server) scheduleHeartbeatLocked(r *delivery) {
	every, first := r.interval(), r.FirstHeartbeat
	if r.ReplyTo == "" || every == 0 && first <= 0 {
		return
	}
	wait := every
	if first > 0 && (wait == 0 || first < wait) {
		wait = first
	}
	if wait < minHeartbeat { // only the first heartbeat can be due so soon
		s.wg.Go(func() { s.sendHeartbeat(r) }) // wg is not zero while r runs
		if wait = every; wait == 0 {
			return
		}
	}
	r.due = r.since.Add(wait)
	if s.due.IsZero() || r.due.Before(s.due) {
		s.due = r.due
		if s.heartbeats == nil {
			s.heartbeats = time.AfterFunc(wait, s.sendDueHeartbeats)
		} else {
			s.heartbeats.Reset(wait)
		}
	}
}

// sendDueHeartbeats sends the heartbeats that are due, and sets the timer for the next ones.
func (s *Server) sendDueHeartbeats() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		return
	}
	now := time.Now()
	s.due = time.Time{}
	for _, r := range s.running {
		if r.due.IsZero() {
			continue
		}
		if !r.due.After(now) {
			s.wg.Go(func() { s.sendHeartbeat(r) }) // wg is not zero while r runs
			if r.interval() == 0 {
				r.due = time.Time{}
				continue
			}
			r.due = now.Add(r.interval())
		}
		if s.due.IsZero() || r.due.Before(s.due) {
			s.due = r.due
		}
	}
	if !s.due.IsZero() {
		s.heartbeats.Reset(s.due.Sub(now))
	}
}

// sendHeartbeat sends one heartbeat. A heartbeat that is sent after the reply does no harm.
func (s *Server) sendHeartbeat(r *delivery) {
	wait := r.interval()
	if wait == 0 {
		wait = replyTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := s.bus.Publish(ctx, r.ReplyTo, s.signInstance(newHeartbeat(r.id))); err != nil {
		s.cfg.Logger.DebugContext(ctx, "heartbeat not sent", "method", r.info.String(), "error", err)
	}
}

// reply starts to send the result, and returns at once. The sending outlives the handler's context, so that a call whose handler
// returns at its deadline, or while the server stops, still gets its reply.
func (s *Server) reply(work context.Context, r *delivery, resp any, err error) {
	m := s.signInstance(newReply(r.id, resp, err))
	s.wg.Add(1)
	s.bus.Send(context.Background(), r.ReplyTo, m, func(perr error) { //nolint:contextcheck // work ends when the server is aborted, and even then the reply is sent
		if perr == nil {
			s.wg.Done()
			return
		}
		go func() { // wg still counts the reply
			defer s.wg.Done()
			s.replyUntil(work, r, m, perr)
		}()
	})
}

// clockSkew returns how far the clock of a server is ahead of this process's clock, if err is that server's
// report of an expired request. The result is 0 if the clocks agree within a second, and for other errors.
func clockSkew(err error) time.Duration {
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

// replyUntil sends a reply again, with back-off, until the broker has confirmed it, or until the caller's deadline or replyTimeout
// has passed. The parameter perr is the error of the first attempt. After the server was aborted, only one more attempt follows,
// for at most stopGrace/2.
func (s *Server) replyUntil(work context.Context, r *delivery, m *bus.Message, perr error) {
	ctx, cancel := context.WithDeadline(context.Background(), replyDeadline(r, work.Err() != nil))
	defer cancel()
	stopping := s.stopping
	small := false // the reply was replaced by ErrReplyTooLarge
	delay := backoff.Backoff{Min: 10 * time.Millisecond, Max: time.Second}
	for {
		if perr == nil {
			if perr = s.bus.Publish(ctx, r.ReplyTo, m); perr == nil { //nolint:contextcheck // the reply outlives the handlers' context
				return
			}
		}
		if fault.CodeOf(perr) == fault.Invalid && !small {
			small = true
			m = s.signInstance(newReply(r.id, nil, fault.New(fault.Internal, "%s: %w: %v", r.info, ErrReplyTooLarge, perr)))
			perr = nil
			continue
		}
		t := time.NewTimer(delay.Next())
		select {
		case <-t.C:
			if mayPass(perr) {
				perr = nil
				continue
			}
		case <-stopping: // the process ends soon: bound the remaining attempts
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
		s.cfg.Logger.Warn("reply lost", "method", r.info.String(), "request_id", r.from.ID, "error", perr)
		return
	}
}

// replyDeadline returns the time after which a reply is not sent again.
func replyDeadline(r *delivery, aborted bool) time.Time {
	end := time.Now().Add(replyTimeout)
	switch {
	case aborted:
		return time.Now().Add(stopGrace / 2)
	case !r.deadline.IsZero() && r.deadline.Before(end):
		return r.deadline // the caller does not wait longer
	default:
		return end
	}
}

// mayPass reports whether a later attempt to send a reply may succeed: the caller may be restoring its topic, or the bus its
// connection.
func mayPass(err error) bool {
	c := fault.CodeOf(err)
	return (c == fault.Unavailable || c == fault.Unknown) && !errors.Is(err, ErrClosed)
}
