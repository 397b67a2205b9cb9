package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
)

// waiter is a call that waits.
type waiter struct {
	ended chan outcome // has room for all three that may come
	sent  time.Time
	heard time.Time // of the server; zero if silence does not end the call. Guarded by Client.mu
	route *route    // nil if the call is not watched
	peer  *peer     // that runs it; nil if that is not known. Guarded by Client.mu
}

// outcome is a reply; or why the request was not sent, or may not have been; or
// that the server is silent or gone.
type outcome struct {
	reply *message.Message
	err   error
}

// settled is told how sending ended.
func (w *waiter) settled(err error) {
	if err != nil {
		w.ended <- outcome{err: err}
	}
}

// maxSkew is how many servers in a row may have a clock that disagrees.
const maxSkew = 3

func (c *Client) roundTrip(ctx context.Context, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	start := time.Now()
	if err := c.listen(ctx); err != nil {
		return nil, fmt.Errorf("call %s: subscribe to replies: %w", info, err)
	}
	deadline, _ := ctx.Deadline()
	b, err := c.attempt(ctx, info, req, start, deadline)
	for range maxSkew {
		ahead := skew(err)
		if ahead == 0 || ctx.Err() != nil {
			break
		}
		// The server's clock, or the own one, is wrong: it is not run for a deadline
		// that has not come yet. So the deadline goes out by the server's.
		c.cfg.Logger.WarnContext(ctx, "the clock of a server disagrees", "method", info.String(), "host", info.Host, "ahead", ahead)
		b, err = c.attempt(ctx, info, req, start, deadline.Add(ahead))
	}
	if err != nil {
		return nil, err
	}
	out, err := decode(b)
	if err != nil {
		return nil, fault.New(fault.Internal, "call %s: decode the response: %w", info, err)
	}
	return out, nil
}

// attempt sends a request and returns the reply's payload.
func (c *Client) attempt(ctx context.Context, info Info, req any, start, deadline time.Time) ([]byte, error) {
	w := &waiter{ended: make(chan outcome, 3), sent: time.Now()}
	t := timing{deadline: deadline}
	end, _ := ctx.Deadline()
	if c.cfg.Silence > 0 && end.Sub(start) > c.cfg.Silence {
		w.heard = start
		t.beat = c.cfg.Silence / 2
	}
	var learn *route
	var probe *peer
	if end.Sub(w.sent) > minRest {
		c.mu.Lock()
		t.first, learn, probe = c.joinLocked(w, info)
		c.mu.Unlock()
	}
	m, err := encodeRequest(ctx, info, req, t)
	if err != nil {
		return nil, err
	}
	m.Metadata[MetaReplyTo] = c.topic
	if learn != nil {
		c.ask(learn, false) //nolint:contextcheck // it is for later calls, too
	}
	if probe != nil {
		c.probe(probe) //nolint:contextcheck // as above
	}
	c.mu.Lock()
	w.sent = time.Now() // after the probe: an instance that this one found gone has not had the call
	c.pending[m.UUID] = w
	c.mu.Unlock()
	to := topic(info.Kind, info.Interface, info.Host)
	if c.sender != nil {
		c.sender.Send(to, m, w.settled)
	} else {
		w.settled(c.bus.Publish(to, m))
	}
	r, err := c.await(ctx, w)
	if err != nil {
		c.mu.Lock()
		delete(c.pending, m.UUID)
		c.mu.Unlock()
		if errors.Is(ctx.Err(), context.Canceled) || errors.Is(err, ErrSilent) || errors.Is(err, ErrServerLost) {
			c.cancel(ctx, info, m.UUID)
		}
		return nil, fmt.Errorf("call %s: %w after %v", info, err, time.Since(start).Round(time.Millisecond))
	}
	b, err := decodeReply(r)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", info, err)
	}
	return b, nil
}

// await waits for the reply, or for a reason to give up.
func (c *Client) await(ctx context.Context, w *waiter) (*message.Message, error) {
	var grace <-chan time.Time
	var unknown error
	for {
		select {
		case o := <-w.ended:
			switch {
			case o.reply != nil:
				return o.reply, nil
			case fault.CodeOf(o.err) != fault.Unknown, errors.Is(o.err, ErrSilent), errors.Is(o.err, ErrServerLost):
				return nil, o.err
			}
			unknown = o.err // the reply may come all the same
			t := time.NewTimer(graceTime)
			defer t.Stop()
			grace = t.C
		case <-grace:
			return nil, unknown
		case <-ctx.Done():
			return nil, fault.New(fault.CodeOf(ctx.Err()), "no reply: %w", ctx.Err())
		case <-c.life.Done():
			return nil, fmt.Errorf("%w while it waited for the reply", ErrClosed)
		}
	}
}

// cancel tells the server that nobody waits for a call any more. Which one of
// several has it is not known: then all are told.
func (c *Client) cancel(ctx context.Context, info Info, id string) {
	info.Kind, info.Delivery = KindCancel, AtMostOnce
	to := topic(KindCancel, info.Interface, info.Host)
	if info.Host == Any {
		info.Kind = KindFanout
		info.Method = methodCancel
		to = topic(KindFanout, info.Interface, Any)
	}
	ctx = context.WithoutCancel(ctx)
	c.spawn(func() {
		ctx, stop := context.WithTimeout(ctx, graceTime)
		defer stop()
		m := about(ctx, "", id)
		d, _ := ctx.Deadline()
		m.Metadata[MetaRPC] = info.mark(timing{deadline: d})
		if err := c.bus.Publish(to, m); err != nil {
			c.cfg.Logger.DebugContext(ctx, "a server could not be told that its caller has given up", "method", info.String(), "error", err)
			return
		}
		atomic.AddUint64(&c.stats.Canceled, 1)
	})
}
