package rpc

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
)

// listen makes sure that the reply topic exists. The first call subscribes;
// those that come meanwhile wait for it, each no longer than its own context.
func (c *Client) listen(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.listening {
			c.mu.Unlock()
			return nil
		}
		if c.dialing == nil {
			break // with the lock held
		}
		wait := c.dialing
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return fault.New(fault.CodeOf(ctx.Err()), "%w", ctx.Err())
		}
	}
	done := make(chan struct{})
	c.dialing = done
	c.mu.Unlock()

	err := c.subscribe(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.listening = err == nil
	c.dialing = nil
	close(done)
	return err
}

// subscribe subscribes to the reply topic for as long as the client lives. ctx
// bounds only how long it tries.
func (c *Client) subscribe(ctx context.Context) error {
	sub, cancel := context.WithCancel(c.life)
	keep := context.AfterFunc(ctx, cancel)
	replies, ended, err := c.replies(sub) //nolint:contextcheck // it outlives the call that needs it first
	if !keep() && err == nil {
		err = fault.New(fault.CodeOf(ctx.Err()), "%w", ctx.Err())
	}
	if err == nil && !c.spawn(func() { c.watch(replies, ended) }) {
		err = ErrClosed
	}
	if err != nil {
		cancel()
	}
	return err
}

// replies subscribes: messages come from the channel or, if it is nil, to take.
func (c *Client) replies(ctx context.Context) (<-chan *message.Message, <-chan struct{}, error) {
	s := Subscription{Topic: c.topic, Mode: Private, Slots: replySlots}
	if r, ok := c.bus.(Receiver); ok {
		ended, err := r.Receive(ctx, s, c.take)
		return nil, ended, err
	}
	in, err := c.bus.Subscribe(ctx, s)
	return in, nil, err
}

// watch takes replies until the subscription ends, and ends calls whose servers
// are silent.
func (c *Client) watch(replies <-chan *message.Message, ended <-chan struct{}) {
	var tick <-chan time.Time
	if c.cfg.Silence > 0 {
		t := time.NewTicker(max(c.cfg.Silence/8, time.Millisecond))
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case m, ok := <-replies:
			if !ok {
				return
			}
			_ = Settle(m, true) // nobody else could take it
			c.take(m)
		case <-ended:
			return
		case now := <-tick:
			c.listenFor(now)
		}
	}
}

// take hands one message to the call that it is about.
func (c *Client) take(m *message.Message) {
	id, beat := m.Metadata[MetaCorrelation], m.Metadata[MetaRPC] == KindBeat
	c.mu.Lock()
	w := c.pending[id]
	var p *peer
	if w != nil && w.route != nil {
		p = c.heardLocked(w.route, m)
	}
	answered := false
	switch {
	case w == nil && beat:
		if p := c.peers[m.Metadata[MetaInstance]]; p != nil { // it answers a probe
			p.hear(time.Now())
		}
	case w == nil:
		answered = c.answeredLocked(m)
	case beat:
		w.peer = p
		if !w.heard.IsZero() {
			w.heard = time.Now()
		}
	default:
		delete(c.pending, id)
	}
	c.mu.Unlock()
	switch {
	case beat, answered:
	case w != nil:
		w.ended <- outcome{reply: m}
	default:
		atomic.AddUint64(&c.stats.Late, 1)
		c.cfg.Logger.Debug("a reply came when nobody waited for it", "correlation_id", id)
	}
}

// listenFor ends the calls of which nothing was heard for too long.
func (c *Client) listenFor(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, w := range c.pending {
		if w.heard.IsZero() || now.Sub(w.heard) < c.cfg.Silence {
			continue
		}
		delete(c.pending, id)
		atomic.AddUint64(&c.stats.Silent, 1)
		w.ended <- outcome{err: fmt.Errorf("nothing was heard for %v: %w", now.Sub(w.heard).Round(time.Millisecond), ErrSilent)}
	}
}
