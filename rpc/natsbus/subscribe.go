package natsbus

import (
	"context"
	"fmt"

	"github.com/armature-go/armature/rpc/bus"
)

// Subscribe consumes the topic until ctx ends, see [bus.Bus]. It waits up to
// Config.ConnectTimeout for a server that is away. Errors besides: Invalid if a
// topic cannot be a subject, Precondition if JetStream refuses the stream of a
// Shared one.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	out, err := b.subscribe(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s.%s: %w", b.cfg.Exchange, s.Topic, err)
	}
	if s.Receive == nil {
		return out, nil
	}
	ended := make(chan *bus.Delivery)
	go func() { // ends with the subscription
		defer close(ended)
		for d := range out {
			s.Receive(d)
		}
	}()
	return ended, nil
}

func (b *Bus) subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	subject, err := b.subject(s.Topic)
	if err != nil {
		return nil, err
	}
	fanout := ""
	if s.Fanout != "" {
		if fanout, err = b.subject(s.Fanout); err != nil {
			return nil, err
		}
	}
	var out chan *bus.Delivery
	var run func(context.Context)
	if s.Mode == bus.Shared {
		q, err := b.newQueue(ctx, s, subject)
		if err != nil {
			return nil, err
		}
		out, run = q.out, q.run
	} else {
		d, err := b.newDirect(ctx, s, subject, fanout)
		if err != nil {
			return nil, err
		}
		out, run = d.out, d.run
	}
	if err := b.run(func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
		run(ctx)
	}); err != nil {
		return nil, err
	}
	return out, nil
}
