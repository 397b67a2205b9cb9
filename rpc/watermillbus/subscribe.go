package watermillbus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

// Subscribe opens a subscriber, two with s.Fanout, and takes messages from as
// many subscriptions as there are slots, at most Config.Lanes: a subscriber
// hands out one message at a time to each, see [bus.Bus]. It blocks as long as
// the subscribers do, but not beyond the end of ctx.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	err := bus.CheckTopic(s.Topic)
	if err == nil && s.Fanout != "" {
		err = bus.CheckTopic(s.Fanout)
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s.Slots = max(s.Slots, 1)
	g := &group{bus: b, private: s.Mode == bus.Private, receive: s.Receive, out: make(chan *bus.Delivery)}
	g.ctx, g.cancel = context.WithCancel(ctx)
	opened := make(chan error, 1)
	ok := b.run(func() { //nolint:contextcheck // it has the context of the subscription
		defer g.cancel()
		defer context.AfterFunc(b.life, g.cancel)()
		err := g.open(s)
		opened <- err
		if err == nil {
			g.handing.Wait()
			close(g.out)
		}
		g.shut()
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

// group is one subscription of the bus: lanes from one subscriber or two.
type group struct {
	bus     *Bus
	private bool            // messages need not be settled
	ctx     context.Context //nolint:containedctx // the subscription's own life
	cancel  context.CancelFunc
	receive func(*bus.Delivery) // in place of out, if it is not nil
	out     chan *bus.Delivery
	parts   []message.Subscriber
	handing sync.WaitGroup // lanes that may write to out
	lanes   sync.WaitGroup
}

// open opens the subscribers and all lanes, or none.
func (g *group) open(s bus.Subscription) error {
	err := g.add(g.bus.cfg.Subscriber, s, s.Topic)
	if err == nil && s.Fanout != "" {
		err = g.add(g.bus.cfg.FanoutSubscriber, s, s.Fanout)
	}
	if err != nil {
		g.cancel()
		return fault.New(fault.Unavailable, "%w", err)
	}
	return nil
}

func (g *group) add(open func(bus.Subscription) (message.Subscriber, error), s bus.Subscription, topic string) error {
	sub, err := open(s)
	if err != nil {
		return err
	}
	g.parts = append(g.parts, sub)
	for range min(s.Slots, g.bus.cfg.Lanes) {
		// Its end is not that of the subscription: a subscriber may take back
		// what its context's end finds unsettled, although it is handled.
		ctx, cancel := context.WithCancel(context.WithoutCancel(g.ctx))
		in, err := sub.Subscribe(ctx, topic)
		if err != nil {
			cancel()
			return err
		}
		g.handing.Add(1)
		g.lanes.Go(func() { g.lane(ctx, cancel, sub, topic, in) })
	}
	return nil
}

// lane hands out one message after another until the subscription ends, and
// then lives until the last one is settled. When its channel ends too early it
// subscribes anew.
func (g *group) lane(ctx context.Context, cancel context.CancelFunc, sub message.Subscriber, topic string, in <-chan *message.Message) {
	defer func() {
		cancel()
		for m := range in { // what it had taken goes back
			m.Nack()
		}
	}()
	handing := sync.OnceFunc(g.handing.Done)
	defer handing()
	wait := backoff.Backoff{Min: minPause, Max: maxPause}
	for {
		for m := g.next(in); m != nil; m = g.next(in) {
			wait.Reset()
			if !g.hand(m) || !g.settled(m, handing) {
				return
			}
		}
		if g.ctx.Err() == nil {
			wait.Wait(g.ctx) //nolint:contextcheck // of the subscription, not of the lane
		}
		if g.ctx.Err() != nil {
			return
		}
		next, err := sub.Subscribe(ctx, topic)
		if err != nil {
			g.bus.cfg.Logger.Warn("a subscription ended and cannot be renewed yet", "topic", topic, "error", err)
			continue
		}
		in = next
	}
}

// settled waits until a message is settled, and reports whether that was before the end of the subscription, at which it
// calls ended.
func (g *group) settled(m *message.Message, ended func()) bool {
	select {
	case <-m.Acked():
		return true
	case <-m.Nacked():
		return true
	case <-g.ctx.Done():
		ended()
		g.last(m)
		return false
	}
}

// next returns the next message, or nil when there is none to come.
func (g *group) next(in <-chan *message.Message) *message.Message {
	for {
		select {
		case m, ok := <-in:
			if !ok {
				return nil
			}
			if !phantom(m) {
				return m
			}
			m.Nack()
		case <-g.ctx.Done():
			return nil
		}
	}
}

// last waits until a message that is in hand at the end of the subscription is
// settled, and the subscriber has had time to see it: it may look at its
// context's end at the same moment, and take the message back.
func (g *group) last(m *message.Message) {
	select {
	case <-m.Acked():
	case <-m.Nacked():
	case <-g.bus.life.Done():
		m.Nack()
	}
	t := time.NewTimer(settleTime)
	defer t.Stop()
	<-t.C
}

// hand hands m out, or gives it back at the end of the subscription, and
// reports which.
func (g *group) hand(m *message.Message) bool {
	key := g.bus.cfg.Redelivered
	redelivered := key != "" && m.Metadata[key] != ""
	delete(m.Metadata, key) // it must not travel on when the message is sent again
	d := bus.NewDelivery(bus.Decode(m.UUID, maps.All(m.Metadata), m.Payload), redelivered, settler{m})
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
		if g.private { // it may never be settled
			m.Ack()
		}
		return true
	case <-g.ctx.Done():
		m.Nack()
		return false
	}
}

// settler acknowledges a message to its subscriber, which does not say whether that went out.
type settler struct{ m *message.Message }

// Settle is that of [bus.Settler].
func (s settler) Settle(ack bool) error {
	if ack {
		s.m.Ack()
	} else {
		s.m.Nack()
	}
	return nil
}

// phantom reports whether m is nothing: watermill-amqp delivers it when its
// queue was deleted.
func phantom(m *message.Message) bool {
	return m.UUID == "" && len(m.Metadata) == 0 && len(m.Payload) == 0
}

// shut closes the subscribers when their lanes have nothing in hand.
func (g *group) shut() {
	g.lanes.Wait()
	var err error
	for _, p := range g.parts {
		err = errors.Join(err, p.Close())
	}
	if err != nil {
		g.bus.cfg.Logger.Warn("a subscriber could not be closed", "error", err)
	}
}
