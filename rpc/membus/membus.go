// Package membus is the in-memory bus, for services that run in one process, and for
// tests.
//
//	bus := membus.New()
//	defer bus.Close()
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface})
//
// The bus follows the contract of package bus, as a bus over a broker does. A Shared topic keeps its messages while it
// has no subscriber. A message goes to a subscriber only when the subscriber receives it, and is delivered again after
// Nack. A Live topic ends at once with its last subscriber. Messages do not outlive the process. The bus works inside
// testing/synctest.
package membus

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/armature-go/armature/rpc/bus"
)

// Bus is an in-memory [bus.Bus]. It can be a part of a service.App: it has Start and Stop. It is safe for concurrent
// use.
type Bus struct {
	mu     sync.RWMutex
	queues map[string]*queue
	fanout map[string][]*queue
	life   context.Context //nolint:containedctx // the bus's own life, ended by Close
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// New returns a bus without topics, ready for use. The caller must close it.
func New() *Bus {
	life, end := context.WithCancel(context.Background())
	return &Bus{queues: make(map[string]*queue), fanout: make(map[string][]*queue), life: life, end: end}
}

// Capabilities implements [bus.Bus]. A message has at most [bus.DefaultMaxMessage] bytes.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{MaxMessage: bus.DefaultMaxMessage, NoConsumer: true, LiveTopics: true}
}

// Publish adds the message to the topic, see [bus.Bus]. It blocks only while the Subscription.Receive of a Private topic
// runs.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := b.publish(ctx, topic, m); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

// Send calls Publish, and calls done before it returns, see [bus.Bus].
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	done(b.Publish(ctx, topic, m))
}

func (b *Bus) publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := cmp.Or(bus.CheckTopic(topic), bus.CheckMessage(m, bus.DefaultMaxMessage)); err != nil {
		return err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.life.Err() != nil {
		return bus.ErrClosed
	}
	if m.Kind == bus.Fanout {
		for _, q := range b.fanout[topic] {
			q.add(m)
		}
		return nil
	}
	q := b.queues[topic]
	if q == nil {
		return bus.ErrNoConsumer
	}
	q.add(m)
	return nil
}

// CreateTopic makes a Shared topic, see [bus.Bus]. It never blocks.
func (b *Bus) CreateTopic(_ context.Context, topic string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return fmt.Errorf("create topic %s: %w", topic, bus.ErrClosed)
	}
	s := bus.Subscription{Topic: topic}
	if err := checkTopics(s); err != nil {
		return fmt.Errorf("create topic: %w", err)
	}
	b.openLocked(s)
	return nil
}

// checkTopics returns Invalid if a topic name of the subscription is not valid on every broker.
func checkTopics(s bus.Subscription) error {
	if s.Fanout == "" {
		return bus.CheckTopic(s.Topic)
	}
	return cmp.Or(bus.CheckTopic(s.Topic), bus.CheckTopic(s.Fanout))
}

// Subscribe delivers the topic's messages until ctx ends, see [bus.Bus]. It never blocks. The field s.Slots has no
// effect, because a message is delivered only when the subscriber receives it. The function s.Receive runs in the
// publisher's goroutine, or in a goroutine of the bus.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", s.Topic, bus.ErrClosed)
	}
	if err := checkTopics(s); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return b.openLocked(s).subscribe(ctx, s.Receive), nil
}

// openLocked returns the topic's queue, and creates it if it does not exist.
func (b *Bus) openLocked(s bus.Subscription) *queue {
	q := b.queues[s.Topic]
	if q == nil {
		q = &queue{changed: make(chan struct{}, 1)}
		b.queues[s.Topic] = q
		b.wg.Go(func() { q.offerLoop(b.life, s.Mode != bus.Shared, func() bool { return b.removeQueue(s, q) }) })
	}
	if s.Fanout != "" && !slices.Contains(b.fanout[s.Fanout], q) {
		// The list is replaced and not changed, because Publish may be reading the old list.
		b.fanout[s.Fanout] = append(slices.Clip(b.fanout[s.Fanout]), q)
	}
	return q
}

// removeQueue removes a queue. It returns false if the queue has a subscriber.
func (b *Bus) removeQueue(s bus.Subscription, q *queue) bool {
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
// goroutines, see [bus.Bus]. It never fails.
func (b *Bus) Close() error {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	b.wg.Wait()
	return nil
}

// Start does nothing and returns nil. It exists so that the bus can be a part of a service.App.
func (b *Bus) Start(context.Context) error { return nil }

// Stop calls Close, and ignores the context.
func (b *Bus) Stop(context.Context) error { return b.Close() }
