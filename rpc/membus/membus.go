// Package membus is the in-memory bus: whole services in one process, and
// tests.
//
//	bus := membus.New()
//	defer bus.Close()
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface})
//
// It keeps the contract of rpc.Bus as a broker does: a topic that was once
// subscribed to as Shared keeps its messages while nobody is there, nobody is
// sent more than it takes, and what is not acknowledged is delivered again. What
// it cannot do is outlive its process. It works inside testing/synctest.
package membus

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/rpc"
)

// Bus is an in-memory [rpc.Bus]. It is safe for concurrent use.
type Bus struct {
	mu     sync.Mutex
	queues map[string]*queue   // Shared and Private topics
	each   map[string][]*queue // Each topics: a queue for every subscriber
	life   context.Context     //nolint:containedctx // the bus's own life, ended by Close
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// New returns an empty bus.
func New() *Bus {
	life, end := context.WithCancel(context.Background())
	return &Bus{queues: make(map[string]*queue), each: make(map[string][]*queue), life: life, end: end}
}

// Publish gives copies of the messages to the topic, see [rpc.Bus]. It never
// blocks.
func (b *Bus) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := m.Context().Err(); err != nil {
			return fmt.Errorf("publish to %s: %w", topic, err)
		}
		queues, err := b.targets(topic, m.Metadata.Get(rpc.MetaKind) == rpc.KindFanout)
		if err != nil {
			return fmt.Errorf("publish to %s: %w", topic, err)
		}
		for _, q := range queues {
			q.put(m.Copy(), false)
		}
	}
	return nil
}

func (b *Bus) targets(topic string, each bool) ([]*queue, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return nil, rpc.ErrClosed
	}
	if each {
		return slices.Clone(b.each[topic]), nil
	}
	q := b.queues[topic]
	if q == nil {
		return nil, rpc.ErrNoConsumer
	}
	return []*queue{q}, nil
}

// Subscribe delivers the topic's messages until ctx ends, see [rpc.Bus]. It
// never blocks. Slots is not needed: a subscriber is given only what it receives.
func (b *Bus) Subscribe(ctx context.Context, topic string, mode rpc.Mode, _ int) (<-chan *message.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, rpc.ErrClosed)
	}
	q := b.queues[topic]
	fresh := mode == rpc.Each || q == nil
	if fresh {
		q = &queue{wake: make(chan struct{}, 1)}
	}
	if mode == rpc.Each {
		b.each[topic] = append(b.each[topic], q)
	} else {
		b.queues[topic] = q
	}
	out := q.subscribe(ctx)
	if fresh {
		b.wg.Go(func() {
			q.run(b.life, &b.wg, mode != rpc.Shared)
			b.forget(topic, mode, q)
		})
	}
	return out, nil
}

func (b *Bus) forget(topic string, mode rpc.Mode, q *queue) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if mode != rpc.Each {
		delete(b.queues, topic)
		return
	}
	b.each[topic] = slices.DeleteFunc(b.each[topic], func(x *queue) bool { return x == q })
	if len(b.each[topic]) == 0 {
		delete(b.each, topic)
	}
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
