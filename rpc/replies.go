package rpc

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// subscribeOnce subscribes to the reply topic if no call has done so. Concurrent calls
// share one attempt, and each waits no longer than its own context.
func (c *Client) subscribeOnce(ctx context.Context) error {
	if c.listening.Load() {
		return nil
	}
	done := c.subscribing.DoChan("", func() (any, error) { //nolint:contextcheck // the subscription outlives the first call
		if c.listening.Load() {
			return nil, nil //nolint:nilnil // there is no value
		}
		return nil, c.subscribe()
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "%w", ctx.Err())
	}
}

// subscribe subscribes to the reply topic until the client is closed.
func (c *Client) subscribe() error {
	sub, cancel := context.WithCancel(c.life)
	ended, err := c.bus.Subscribe(sub, bus.Subscription{
		Topic: c.topic, Mode: bus.Private, Slots: replySlots, Receive: func(d *bus.Delivery) { c.handleReply(d.Message) },
	})
	if err == nil && !c.spawn(func() { defer cancel(); c.checkHeartbeatsUntil(ended) }) {
		err = ErrClosed
	}
	if err != nil {
		cancel()
		return err
	}
	c.listening.Store(true)
	return nil
}

// checkHeartbeatsUntil ends calls whose heartbeats are lost, until the subscription has ended.
func (c *Client) checkHeartbeatsUntil(ended <-chan *bus.Delivery) {
	var tick <-chan time.Time
	if c.cfg.HeartbeatTimeout > 0 {
		t := time.NewTicker(max(c.cfg.HeartbeatTimeout/8, time.Millisecond))
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ended:
			return
		case now := <-tick:
			c.checkHeartbeats(now)
		}
	}
}

// handleReply passes a reply or a heartbeat to its call. It does not block.
func (c *Client) handleReply(m *bus.Message) {
	id, heartbeat := m.Correlation, m.Kind == bus.Heartbeat
	c.mu.Lock()
	w := c.pending[id]
	var p *peer
	if w != nil && w.route != nil {
		p = c.heardLocked(w.route, m)
	}
	answered := false
	switch {
	case w == nil && heartbeat:
		if p := c.peers[m.Instance]; p != nil { // the answer to a probe
			p.hear(time.Now())
		}
	case w == nil:
		answered = c.receivePingLocked(m)
	case heartbeat:
		w.peer = p
		if !w.heard.IsZero() {
			w.heard = time.Now()
		}
	default:
		delete(c.pending, id)
	}
	c.mu.Unlock()
	switch {
	case heartbeat, answered:
	case w != nil:
		w.ended <- outcome{reply: m}
	default:
		atomic.AddUint64(&c.stats.Late, 1)
		c.cfg.Logger.Debug("late reply dropped", "correlation_id", id)
	}
}

// checkHeartbeats ends the calls that have had no heartbeat for HeartbeatTimeout.
func (c *Client) checkHeartbeats(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, w := range c.pending {
		if w.heard.IsZero() || now.Sub(w.heard) < c.cfg.HeartbeatTimeout {
			continue
		}
		delete(c.pending, id)
		atomic.AddUint64(&c.stats.HeartbeatLost, 1)
		w.ended <- outcome{err: fmt.Errorf("%w for %v", ErrHeartbeatLost, now.Sub(w.heard).Round(time.Millisecond))}
	}
}
