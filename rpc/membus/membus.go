// Package membus is the in-memory bus: whole services in one process, and
// tests.
//
//	bus := membus.New()
//	defer bus.Close()
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface})
//
// It keeps the contract of rpc.Bus as a broker does: a topic that was once
// subscribed to as Shared keeps its messages while nobody is there, nobody is
// sent more than it takes, and what is not acknowledged is delivered again. A
// Live topic goes with its last subscriber, at once. What it cannot do is outlive
// its process. It works inside testing/synctest.
package membus

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/internal/broker"
)

// Bus is an in-memory [rpc.Bus], [rpc.Sender] and [rpc.Receiver]. It is safe for concurrent use.
type Bus struct {
	mu     sync.RWMutex
	queues map[string]*queue
	fanout map[string][]*queue
	life   context.Context //nolint:containedctx // the bus's own life, ended by Close
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// New returns an empty bus.
func New() *Bus {
	life, end := context.WithCancel(context.Background())
	return &Bus{queues: make(map[string]*queue), fanout: make(map[string][]*queue), life: life, end: end}
}

// MaxMessage returns [rpc.DefaultMaxMessage].
func (b *Bus) MaxMessage() int { return rpc.DefaultMaxMessage }

// CheckTopic is [rpc.Bounded].
func (b *Bus) CheckTopic(topic string) error { return broker.CheckName(topic) }

// Publish gives copies of the messages to the topic, see [rpc.Bus]. It never
// blocks.
func (b *Bus) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := b.publish(topic, m); err != nil {
			return fmt.Errorf("publish to %s: %w", topic, err)
		}
	}
	return nil
}

// Send is Publish, see [rpc.Sender].
func (b *Bus) Send(topic string, m *message.Message, settled func(error)) {
	settled(b.Publish(topic, m))
}

func (b *Bus) publish(topic string, m *message.Message) error {
	if err := m.Context().Err(); err != nil {
		return err
	}
	if err := cmp.Or(b.CheckTopic(topic), broker.CheckMessage(m, rpc.DefaultMaxMessage)); err != nil {
		return err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.life.Err() != nil {
		return rpc.ErrClosed
	}
	if rpc.KindOf(m) == rpc.KindFanout {
		for _, q := range b.fanout[topic] {
			q.add(m)
		}
		return nil
	}
	q := b.queues[topic]
	if q == nil {
		return rpc.ErrNoConsumer
	}
	q.add(m)
	return nil
}

// SubscribeInitialize makes a Shared topic, as watermill's interface of that
// name asks.
func (b *Bus) SubscribeInitialize(topic string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return fmt.Errorf("make topic %s: %w", topic, rpc.ErrClosed)
	}
	s := rpc.Subscription{Topic: topic}
	if err := check(s); err != nil {
		return fmt.Errorf("make topic: %w", err)
	}
	b.open(s)
	return nil
}

// check returns Invalid if a topic of the subscription has a name that no broker could take.
func check(s rpc.Subscription) error {
	if s.Fanout == "" {
		return broker.CheckName(s.Topic)
	}
	return cmp.Or(broker.CheckName(s.Topic), broker.CheckName(s.Fanout))
}

// Subscribe delivers the topic's messages until ctx ends, see [rpc.Bus]. It
// never blocks. Slots is not needed: a subscriber is given only what it receives.
func (b *Bus) Subscribe(ctx context.Context, s rpc.Subscription) (<-chan *message.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", s.Topic, rpc.ErrClosed)
	}
	if err := check(s); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return b.open(s).subscribe(ctx, nil).out, nil
}

// Receive is Subscribe with a function, see [rpc.Receiver]. Whoever publishes
// calls it.
func (b *Bus) Receive(ctx context.Context, s rpc.Subscription, f func(*message.Message)) (<-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", s.Topic, rpc.ErrClosed)
	}
	if err := check(s); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return b.open(s).subscribe(ctx, f).done, nil
}

// open returns the topic's queue. It is called with the lock held.
func (b *Bus) open(s rpc.Subscription) *queue {
	q := b.queues[s.Topic]
	if q == nil {
		q = &queue{wake: make(chan struct{}, 1)}
		b.queues[s.Topic] = q
		b.wg.Go(func() { q.run(b.life, s.Mode != rpc.Shared, func() bool { return b.forget(s, q) }) })
	}
	if s.Fanout != "" && !slices.Contains(b.fanout[s.Fanout], q) {
		// Publish reads the old list meanwhile.
		b.fanout[s.Fanout] = append(slices.Clip(b.fanout[s.Fanout]), q)
	}
	return q
}

// forget removes a queue that has no subscriber, and reports whether it did.
func (b *Bus) forget(s rpc.Subscription, q *queue) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.subscribed() {
		return false
	}
	delete(b.queues, s.Topic)
	maps.DeleteFunc(b.fanout, func(topic string, list []*queue) bool {
		b.fanout[topic] = slices.DeleteFunc(slices.Clone(list), func(x *queue) bool { return x == q })
		return len(b.fanout[topic]) == 0
	})
	return true
}

// Close ends the subscriptions, drops all messages and waits for the bus's
// goroutines, see [rpc.Bus].
func (b *Bus) Close() error {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	b.wg.Wait()
	return nil
}

// Start does nothing: with Stop it makes the bus a part of a service.
func (b *Bus) Start(context.Context) error { return nil }

// Stop is Close.
func (b *Bus) Stop(context.Context) error { return b.Close() }
