package watermillbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

// Subscribe opens one subscriber, or two if s.Fanout is set, see [bus.Bus]. A watermill subscription delivers one message at a
// time, so Subscribe makes s.Slots subscriptions, but at most Config.Lanes. It blocks as long as the subscribers block, but not
// beyond the end of ctx.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	err := bus.CheckTopic(s.Topic)
	if err == nil && s.Fanout != "" {
		err = bus.CheckTopic(s.Fanout)
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s.Slots = max(s.Slots, 1)
	g := &subscription{bus: b, private: s.Mode == bus.Private, receive: s.Receive, out: make(chan *bus.Delivery)}
	g.ctx, g.cancel = context.WithCancel(ctx)
	opened := make(chan error, 1)
	ok := b.spawn(func() { //nolint:contextcheck // the goroutine uses the subscription's context
		defer g.cancel()
		defer context.AfterFunc(b.life, g.cancel)()
		err := g.open(s)
		opened <- err
		if err == nil {
			g.delivering.Wait()
			close(g.out)
		}
		g.closeSubscribers()
	})
	if !ok {
		g.cancel()
		return nil, fmt.Errorf("subscribe to %s: %w", s.Topic, bus.ErrClosed)
	}
	select {
	case err := <-opened:
		if err != nil && b.life.Err() != nil {
			err = bus.ErrClosed
		}
		if err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", s.Topic, err)
		}
		return g.out, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "subscribe to %s: %w", s.Topic, ctx.Err())
	}
}

// subscription is one subscription of the bus. Its consumer is the caller of Subscribe. The subscription has one or two watermill
// subscribers, and each of them has several lanes. A lane is one watermill subscription, which delivers one message at a time.
type subscription struct {
	bus         *Bus
	private     bool            // the consumer does not have to acknowledge messages
	ctx         context.Context //nolint:containedctx // the subscription's own life
	cancel      context.CancelFunc
	receive     func(*bus.Delivery) // used instead of out if it is not nil
	out         chan *bus.Delivery
	subscribers []message.Subscriber
	delivering  sync.WaitGroup // lanes that may still send to out
	lanes       sync.WaitGroup
	failing     atomic.Bool // the last attempt to renew a lane failed
}

// open opens the subscribers and their lanes. After an error, the lanes that were already opened end.
func (g *subscription) open(s bus.Subscription) error {
	err := g.addSubscriber(g.bus.cfg.Subscriber, s, s.Topic)
	if err == nil && s.Fanout != "" {
		err = g.addSubscriber(g.bus.cfg.FanoutSubscriber, s, s.Fanout)
	}
	if err != nil {
		g.cancel()
		return fault.New(fault.Unavailable, "%w", err)
	}
	return nil
}

// addSubscriber opens a subscriber and its lanes for the topic.
func (g *subscription) addSubscriber(open func(bus.Subscription) (message.Subscriber, error), s bus.Subscription, topic string) error {
	sub, err := open(s)
	if err != nil {
		return err
	}
	g.subscribers = append(g.subscribers, sub)
	for range min(s.Slots, g.bus.cfg.Lanes) {
		// The lane's context must not end with the subscription: when the context ends, some subscribers requeue a message
		// although its handler still runs.
		ctx, cancel := context.WithCancel(context.WithoutCancel(g.ctx))
		in, err := sub.Subscribe(ctx, topic)
		if err != nil {
			cancel()
			return err
		}
		g.delivering.Add(1)
		g.lanes.Go(func() { g.laneLoop(ctx, cancel, sub, topic, in) })
	}
	return nil
}

// laneLoop delivers one message after the other until the subscription ends, and then waits until the last message is acknowledged
// or rejected. If the subscriber closes its channel while the subscription lasts, laneLoop subscribes again.
func (g *subscription) laneLoop(ctx context.Context, cancel context.CancelFunc, sub message.Subscriber, topic string, in <-chan *message.Message) {
	defer func() {
		cancel()
		for m := range in { // messages that the subscriber has prefetched
			m.Nack()
		}
	}()
	stopDelivering := sync.OnceFunc(g.delivering.Done)
	defer stopDelivering()
	delay := backoff.Backoff{Min: minBackoff, Max: maxBackoff}
	for {
		for m := g.next(in); m != nil; m = g.next(in) {
			delay.Reset()
			if !g.deliver(m) || !g.awaitEnd(m, stopDelivering) {
				return
			}
		}
		if g.ctx.Err() == nil {
			delay.Wait(g.ctx) //nolint:contextcheck // the context of the subscription, not of the lane
		}
		if g.ctx.Err() != nil {
			return
		}
		next, err := sub.Subscribe(ctx, topic)
		g.logRenewal(topic, err)
		if err == nil {
			in = next
		}
	}
}

// logRenewal logs a failed renewal. The first failure of any lane after a successful renewal is logged as WARN. Further failures
// are logged as DEBUG, because each lane repeats its attempts every second.
func (g *subscription) logRenewal(topic string, err error) {
	if err == nil {
		g.failing.Store(false)
		return
	}
	level := slog.LevelDebug
	if g.failing.CompareAndSwap(false, true) {
		level = slog.LevelWarn
	}
	g.bus.cfg.Logger.Log(g.ctx, level, "subscription ended, renewal failed", "topic", topic, "error", err)
}

// awaitEnd waits until a message is acknowledged or rejected, and returns true. If the subscription ends first, awaitEnd calls
// stopDelivering, continues to wait, and returns false.
func (g *subscription) awaitEnd(m *message.Message, stopDelivering func()) bool {
	select {
	case <-m.Acked():
		return true
	case <-m.Nacked():
		return true
	case <-g.ctx.Done():
		stopDelivering()
		g.awaitAck(m)
		return false
	}
}

// next waits for the next message. It returns nil when the channel is closed or the subscription has ended.
func (g *subscription) next(in <-chan *message.Message) *message.Message {
	for {
		select {
		case m, ok := <-in:
			if !ok {
				return nil
			}
			if !isPhantom(m) {
				return m
			}
			m.Nack()
		case <-g.ctx.Done():
			return nil
		}
	}
}

// awaitAck waits until a message that was delivered before the end of the subscription is acknowledged or rejected, and then for
// ackNoticeDelay. If the lane's context ended before watermill's subscriber has seen the acknowledgement, the subscriber might
// requeue the message.
func (g *subscription) awaitAck(m *message.Message) {
	select {
	case <-m.Acked():
	case <-m.Nacked():
	case <-g.bus.life.Done():
		m.Nack()
	}
	t := time.NewTimer(ackNoticeDelay)
	defer t.Stop()
	<-t.C
}

// deliver passes m to the consumer. If the subscription ends first, deliver rejects m and returns false.
func (g *subscription) deliver(m *message.Message) bool {
	key := g.bus.cfg.Redelivered
	redelivered := key != "" && m.Metadata[key] != ""
	delete(m.Metadata, key) // the key must not be sent when the message is published again
	d := bus.NewDelivery(bus.Decode(m.UUID, maps.All(m.Metadata), m.Payload), redelivered, messageAck{m})
	select {
	case <-g.ctx.Done():
		m.Nack()
		return false
	default:
	}
	if g.receive != nil {
		g.receive(d)
		m.Ack()
		return true
	}
	select {
	case g.out <- d:
		if g.private { // the consumer may never acknowledge the message
			m.Ack()
		}
		return true
	case <-g.ctx.Done():
		m.Nack()
		return false
	}
}

// messageAck acknowledges or rejects a message at its watermill subscriber. The subscriber does not report whether the
// acknowledgement was sent.
type messageAck struct{ m *message.Message }

// EndDelivery implements [bus.Acknowledger]. It never fails.
func (s messageAck) EndDelivery(ack bool) error {
	if ack {
		s.m.Ack()
	} else {
		s.m.Nack()
	}
	return nil
}

// isPhantom reports whether m is the empty message that watermill-amqp delivers when its
// queue is deleted.
func isPhantom(m *message.Message) bool {
	return m.UUID == "" && len(m.Metadata) == 0 && len(m.Payload) == 0
}

// closeSubscribers waits for the lanes and closes the subscribers.
func (g *subscription) closeSubscribers() {
	g.lanes.Wait()
	var err error
	for _, p := range g.subscribers {
		err = errors.Join(err, p.Close())
	}
	if err != nil {
		g.bus.cfg.Logger.Warn("closing a subscriber failed", "error", err)
	}
}
