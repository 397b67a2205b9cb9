package componenttest

import (
	"context"
	"fmt"
	"sync"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
)

// endpoint is the connection of one process to the bus in memory. Close cuts the connection, as the end of a process does:
// subscriptions end at once, and the bus returns unacknowledged messages to their topics.
type endpoint struct {
	*membus.Bus

	life          context.Context //nolint:containedctx // the life of the connection, ended by Close
	cutConnection context.CancelFunc
	wg            sync.WaitGroup

	mu   sync.Mutex
	held map[*held]struct{} // deliveries that are not acknowledged
}

func newEndpoint(hub *membus.Bus) *endpoint {
	life, end := context.WithCancel(context.Background())
	return &endpoint{Bus: hub, life: life, cutConnection: end, held: map[*held]struct{}{}}
}

// errCut is the error of an endpoint after Close.
func (e *endpoint) errCut() error {
	if e.life.Err() != nil {
		return fmt.Errorf("the process is killed: %w", bus.ErrClosed)
	}
	return nil
}

func (e *endpoint) Publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := e.errCut(); err != nil {
		return err
	}
	return e.Bus.Publish(ctx, topic, m)
}

func (e *endpoint) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	done(e.Publish(ctx, topic, m))
}

func (e *endpoint) CreateTopic(ctx context.Context, topic string) error {
	if err := e.errCut(); err != nil {
		return err
	}
	return e.Bus.CreateTopic(ctx, topic)
}

func (e *endpoint) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	if err := e.errCut(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(e.life, cancel) //nolint:contextcheck // the end of the connection also ends the subscription
	in, err := e.Bus.Subscribe(ctx, s)
	if err != nil || s.Receive != nil { // messages of a Private topic are not acknowledged
		context.AfterFunc(ctx, func() { stop() })
		return in, err
	}
	out := make(chan *bus.Delivery)
	e.wg.Go(func() {
		defer close(out)
		defer stop()
		defer cancel()
		for d := range in {
			own := e.holdDelivery(d)
			select {
			case out <- bus.NewDelivery(d.Message, d.Redelivered, own):
			case <-ctx.Done():
				_ = own.EndDelivery(false) // the message returns to the topic
			}
		}
	})
	return out, nil
}

// Close cuts the connection.
func (e *endpoint) Close() error {
	e.mu.Lock()
	e.cutConnection()
	held := e.held
	e.held = nil
	e.mu.Unlock()
	for h := range held {
		_ = h.delivery.Nack()
	}
	e.wg.Wait()
	return nil
}

func (e *endpoint) Start(context.Context) error { return e.errCut() }
func (e *endpoint) Stop(context.Context) error  { return e.Close() }
func (e *endpoint) Check(context.Context) error { return e.errCut() }

// held is a delivery that is not acknowledged.
type held struct {
	of       *endpoint
	delivery *bus.Delivery
}

func (e *endpoint) holdDelivery(d *bus.Delivery) *held {
	h := &held{e, d}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held != nil {
		e.held[h] = struct{}{}
		return h
	}
	_ = d.Nack()
	return h
}

// EndDelivery implements bus.Acknowledger.
func (h *held) EndDelivery(ack bool) error {
	h.of.mu.Lock()
	_, mine := h.of.held[h]
	delete(h.of.held, h)
	h.of.mu.Unlock()
	switch {
	case !mine:
		return fault.New(fault.Unavailable, "the process is killed: the message is delivered again")
	case ack:
		return h.delivery.Ack()
	}
	return h.delivery.Nack()
}
