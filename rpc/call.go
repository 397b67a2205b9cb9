package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/rpc/bus"
)

// waiter is a call that waits for its reply.
type waiter struct {
	ended chan outcome // the buffer holds all three outcomes that may come
	sent  time.Time    // when the request was last sent, see bus.Message.Resent. Guarded by Client.mu
	heard time.Time    // when the last heartbeat came; zero if the call has no heartbeat timeout. Guarded by Client.mu
	route *route       // nil if the call is not watched for the loss of its server
	peer  *peer        // the server instance that runs the call; nil until a heartbeat names it. Guarded by Client.mu
}

// outcome is a reply or an error. The error says that the request was not sent, that it may not have been sent, or
// that the heartbeats or the process of the server are lost.
type outcome struct {
	reply *bus.Message
	err   error
}

// sendEnded is the callback of sending. It passes an error to await.
func (w *waiter) sendEnded(err error) {
	if err != nil {
		w.ended <- outcome{err: err}
	}
}

// maxSkew is how often a call is at most sent again because the clock of its server differs from the caller's.
const maxSkew = 3

func (c *Client) roundTrip(ctx context.Context, info Info, req any, decode func([]byte) (any, error)) (any, error) {
	start := time.Now()
	if err := c.subscribeOnce(ctx); err != nil {
		return nil, fmt.Errorf("call %s: subscribe to replies: %w", info, err)
	}
	deadline, _ := ctx.Deadline()
	b, err := c.attempt(ctx, info, req, start, deadline)
	for range maxSkew {
		ahead := clockSkew(err)
		if ahead == 0 || ctx.Err() != nil {
			break
		}
		// The server reported the request as expired although the caller's deadline has not passed: one
		// clock is wrong. Retry with the deadline in the server's clock.
		c.cfg.Logger.Log(ctx, c.skewLines.Level(slog.LevelWarn), "server clock disagrees, sending the request again", "method", info.String(), "host", info.Host, "ahead", ahead)
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
	m, err := newRequest(ctx, info, req)
	if err != nil {
		return nil, err
	}
	m.ReplyTo, m.Deadline = c.topic, deadline
	end, _ := ctx.Deadline()
	if c.cfg.HeartbeatTimeout > 0 && end.Sub(start) > c.cfg.HeartbeatTimeout {
		w.heard = start
		m.Heartbeat = c.cfg.HeartbeatTimeout / 2
	}
	if c.limits.NoConsumer && end.Sub(w.sent) > minRest { // with less time, the deadline passes before a lost server is detected
		m.FirstHeartbeat = c.watchCall(w, info) //nolint:contextcheck // its probes and pings are also for later calls
	}
	m.Resent = func() { // the call was not received by an instance that had ended before this time
		c.mu.Lock()
		defer c.mu.Unlock()
		w.sent = time.Now()
	}
	c.mu.Lock()
	w.sent = time.Now() // set after the probe was sent: an instance that this probe does not find has not received the call
	c.pending[m.ID] = w
	c.mu.Unlock()
	c.bus.Send(ctx, topicOf(m.Kind, info.Interface, info.Host), m, w.sendEnded)
	r, err := c.await(ctx, w)
	if err != nil {
		c.mu.Lock()
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if errors.Is(ctx.Err(), context.Canceled) || errors.Is(err, ErrHeartbeatLost) || errors.Is(err, ErrServerLost) {
			c.cancel(ctx, info, m.ID)
		}
		return nil, fmt.Errorf("call %s: %w%s", info, err, text.After(time.Since(start)))
	}
	b, err := decodeReply(r)
	if err != nil {
		c.noteRefusal(err)
		return nil, fmt.Errorf("call %s: %w", info, err)
	}
	return b, nil
}

// await waits for the reply, or for a reason to give up.
func (c *Client) await(ctx context.Context, w *waiter) (*bus.Message, error) {
	var grace <-chan time.Time
	var unknown error
	for {
		select {
		case o := <-w.ended:
			switch {
			case o.reply != nil:
				return o.reply, nil
			case bus.OutcomeOf(o.err) != bus.Unknown, errors.Is(o.err, ErrHeartbeatLost), errors.Is(o.err, ErrServerLost):
				return nil, o.err
			}
			unknown = o.err // the reply may still come
			t := time.NewTimer(graceTime)
			defer t.Stop()
			grace = t.C
		case <-grace:
			return nil, unknown
		case <-ctx.Done():
			return nil, fault.New(fault.CodeOf(ctx.Err()), "no reply: %w", ctx.Err())
		case <-c.life.Done():
			return nil, fmt.Errorf("%w while the call waited for its reply", ErrClosed)
		}
	}
}

// cancel tells the server that the caller has given up. A call to Any may be at any server, so cancel tells all
// servers. The function cancel does not block.
func (c *Client) cancel(ctx context.Context, info Info, id string) {
	m := info.message(id)
	m.Kind, m.Durable, m.Correlation = bus.Cancel, false, id
	if info.Host == Any {
		m.Kind, m.Method = bus.Fanout, methodCancel
	}
	ctx = context.WithoutCancel(ctx)
	c.spawn(func() {
		ctx, stop := context.WithTimeout(ctx, graceTime)
		defer stop()
		m.Deadline, _ = ctx.Deadline()
		if err := c.bus.Publish(ctx, topicOf(m.Kind, info.Interface, info.Host), m); err != nil {
			c.cfg.Logger.DebugContext(ctx, "cancel not sent", "method", info.String(), "error", err)
			return
		}
		atomic.AddUint64(&c.stats.Canceled, 1)
	})
}
