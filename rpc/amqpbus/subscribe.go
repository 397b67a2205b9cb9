package amqpbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

// liveExpiry is how long the queue of a Live topic stays after its last consumer has ended. A server that restores its connection or
// restarts within this time loses no message. After this time, a call to the server fails at once. The value never changes, because
// it is an argument of existing queues.
const liveExpiry = 10 * time.Second

// firstSlotWait is how long the first message of a Live topic waits for a free slot. A message that gets no slot is requeued, so that
// another server may get it. The next messages wait less, see slotWait: the other prefetched messages together wait about
// firstSlotWait. If all servers are full, the requeued messages come back, and each message waits twice as long. The wait is
// firstSlotWait again as soon as a message gets a slot. ADR 28 has the figures.
const firstSlotWait = 100 * time.Millisecond

// slotWait returns how long a message waits for a free slot. The parameter requeued is the number of messages that were requeued
// since a message last got a slot.
func (c *consumer) slotWait(requeued int) time.Duration {
	each := max(firstSlotWait/time.Duration(c.slots), time.Millisecond)
	switch {
	case requeued == 0:
		return firstSlotWait
	case requeued < c.slots:
		return each
	default:
		return 2 * each
	}
}

// Subscribe consumes the topic's queue until ctx ends, see [bus.Bus]. It blocks until the queue is consumed, at most for
// Config.ConnectTimeout. A lost consumer is opened again, with back-off. Errors: Invalid if the topic is not valid; Unavailable if
// the queue is not consumed before ConnectTimeout has passed or ctx has ended; Denied or Precondition if RabbitMQ refuses the queue;
// [bus.ErrClosed] after Stop.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	err := cmp.Or(b.life.Usable(), b.checkTopic(s.Topic))
	if err == nil && s.Fanout != "" {
		err = b.checkTopic(s.Fanout)
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to %.300q: %w", s.Topic, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &consumer{
		bus: b, name: b.queueName(s.Topic), mode: s.Mode, slots: max(s.Slots, 1), receive: s.Receive,
		out: make(chan *bus.Delivery), ready: make(chan error, 1),
		state: errors.New("consuming has not begun"),
	}
	if s.Fanout != "" {
		c.fanout = b.queueName(s.Fanout)
	}
	b.mu.Lock()
	b.consumers[c] = true
	b.mu.Unlock()
	if !b.life.Go(func() {
		defer cancel()
		defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
		c.consumeUntil(ctx)
	}) {
		cancel()
		b.removeConsumer(c)
		return nil, fmt.Errorf("subscribe to %s: %w", c.name, bus.ErrClosed)
	}
	waitCtx, stop := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer stop()
	select {
	case err := <-c.ready:
		if err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", c.name, err)
		}
		return c.out, nil
	case <-waitCtx.Done():
		cancel()
		err := waitCtx.Err()
		if reason := c.checkUp(); reason != nil { // nil: consuming began at this moment
			err = fmt.Errorf("%w: %w", err, reason)
		}
		return nil, fault.New(fault.Unavailable, "subscribe to %s: %w", c.name, err)
	}
}

// CreateTopic declares the queue of a Shared topic, see [bus.Bus]. It waits at most Config.ConnectTimeout for a broker
// that cannot be reached or does not answer. Its errors are those of Subscribe.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if err := cmp.Or(b.life.Usable(), b.checkTopic(topic)); err != nil {
		return fmt.Errorf("declare queue: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	c := &consumer{bus: b, name: b.queueName(topic)}
	for {
		conn, err := b.sub.get(ctx)
		if err != nil {
			return fault.New(fault.Unavailable, "declare queue %s: no connection to RabbitMQ: %w", c.name, err)
		}
		done := make(chan error, 1)
		if !b.life.Go(func() { done <- c.declareOn(conn) }) { // a call to a broker that does not answer ends only with its connection
			return fmt.Errorf("declare queue %s: %w", c.name, bus.ErrClosed)
		}
		select {
		case err = <-done:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "declare queue %s: RabbitMQ does not answer: %w", c.name, ctx.Err())
		}
		if err == nil {
			return nil
		}
		if !conn.IsClosed() {
			return fmt.Errorf("declare queue: %w", refusalError(err, "the queue "+c.name))
		}
	}
}

// declareOn declares the queue on a channel of its own.
func (c *consumer) declareOn(conn connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	_, err = c.declare(ch)
	_ = ch.Close() // it may be closed already
	return err
}

// consumer is one subscription. It uses one channel at a time, and a new one after each loss.
type consumer struct {
	bus     *Bus
	name    string // name of the queue
	fanout  string // name of the fanout exchange that the queue is bound to; may be empty
	mode    bus.Mode
	slots   int
	out     chan *bus.Delivery
	receive func(*bus.Delivery) // is called instead of a send to out, if it is not nil
	ready   chan error          // gets one value: nil at the first success, or the error that ends consumeUntil before
	helpers sync.WaitGroup      // the goroutines of the channels

	mu    sync.Mutex
	state error // the reason why the queue is not consumed now; nil if it is consumed
}

func (c *consumer) setState(err error) {
	c.mu.Lock()
	c.state = err
	c.mu.Unlock()
}

// checkUp returns Unavailable if the queue is not consumed.
func (c *consumer) checkUp() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == nil {
		return nil
	}
	return fault.New(fault.Unavailable, "queue %s is not consumed: %v", c.name, c.state)
}

// consumeUntil consumes until ctx ends. It retries failed attempts with back-off. Exception: if no attempt has succeeded yet, an
// error for which isFinal is true ends consumeUntil, and Subscribe returns the error.
func (c *consumer) consumeUntil(ctx context.Context) {
	defer c.bus.removeConsumer(c)
	defer c.helpers.Wait()
	defer close(c.out)
	neverConsumed := true
	delay := backoff.Backoff{Min: minRetry, Max: maxRetry}
	for ctx.Err() == nil {
		conn, err := c.bus.sub.get(ctx)
		if err != nil {
			return
		}
		in, err := c.startConsuming(conn)
		if err == nil {
			delay.Reset()
			if neverConsumed {
				c.ready <- nil
			}
			neverConsumed = false
			c.setState(nil)
			c.logAttempt(ctx, nil)
			c.setState(c.deliverUntilEnd(ctx, in))
			continue
		}
		c.setState(err)
		if neverConsumed && isFinal(err) {
			c.ready <- refusalError(err, "the queue "+c.name)
			return
		}
		c.logAttempt(ctx, err)
		delay.Wait(ctx)
	}
}

// logAttempt logs the result of an attempt to consume. All queues of the bus share one WARN, because an outage of the broker affects
// all of them.
func (c *consumer) logAttempt(ctx context.Context, err error) {
	c.bus.consuming.Note(ctx, c.bus.cfg.Logger, slog.LevelWarn, "consume queue", c, err, "queue", c.name)
}

// isFinal reports whether the broker would also refuse the queue at the next attempt. Other refusals are temporary. For example, the
// exclusive queue of a lost connection exists until the broker has detected the loss.
func isFinal(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && (e.Code == amqp.AccessRefused || e.Code == amqp.PreconditionFailed)
}

// startConsuming opens a channel, declares the queue, and starts to consume it.
func (c *consumer) startConsuming(conn connection) (*consumeChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	in := &consumeChannel{
		ch: ch, lost: make(chan struct{}), ended: make(chan struct{}), acks: newAcknowledger(ch), timer: time.NewTimer(firstSlotWait), widenAt: time.NewTimer(widenSoon),
		closed:   ch.NotifyClose(make(chan *amqp.Error, 1)),
		canceled: ch.NotifyCancel(make(chan string, 1)),
	}
	_, err = c.declare(ch)
	if err == nil {
		err = c.openConsumer(in, c.prefetchWindow(0, 0))
	}
	if err != nil {
		_ = ch.Close() // RabbitMQ closes the channel on most errors; a second Close has no effect
		return nil, err
	}
	return in, nil
}

// openConsumer starts to consume on a channel with a prefetch of the given size.
func (c *consumer) openConsumer(in *consumeChannel, prefetch int) (err error) {
	if err = in.ch.Qos(min(prefetch, 65_535), 0, false); err != nil {
		return err
	}
	d, err := in.ch.Consume(c.name, consumerTag, c.mode == bus.Private, false, false, false, nil)
	if err == nil { // after an error the field deliveries keeps the previous Go channel, which is closed, so deliverUntilEnd returns
		in.deliveries = d
		in.prefetch, in.base = prefetch, in.last
	}
	return err
}

// prefetchWindow returns the prefetch for a new consumer. The parameters are the number and the total size of the unacknowledged
// messages. All messages together stay within Config.MaxInFlight, even if each prefetched message has the maximum size. If unacked
// is 0, the result is at least 1. Otherwise the result may be 0 or negative, which means that no other message may be prefetched.
func (c *consumer) prefetchWindow(unacked, bytes int) int {
	cfg := &c.bus.cfg
	n := min(c.slots-unacked, (cfg.MaxInFlight-bytes)/cfg.MaxMessage)
	if unacked == 0 {
		n = max(n, 1)
	}
	return n
}

// The prefetch of a consumer is computed for messages of the maximum size. If the messages are smaller, slots stay free although the
// prefetch is used up. In that case the consumer is canceled and a new consumer is opened, whose prefetch is computed from the free
// bytes of Config.MaxInFlight. The bus checks for this case when a message has used up the prefetch: first after the time
// widenSoon, then at intervals of widenLater.
const (
	widenSoon  = 5 * time.Millisecond
	widenLater = 50 * time.Millisecond
)

// windowFull reports whether the prefetch is used up. If it is, RabbitMQ sends nothing before the next acknowledgement.
func (in *consumeChannel) windowFull() bool {
	_, later, _ := in.acks.unacked(in.base)
	return later >= in.prefetch
}

// cancelToWiden cancels the consumer if its prefetch is used up and a new consumer could receive more messages. Messages that
// RabbitMQ has already sent are delivered before reopenWider opens the new consumer. So no message is requeued and marked as
// redelivered.
func (c *consumer) cancelToWiden(in *consumeChannel) {
	all, _, bytes := in.acks.unacked(in.base)
	if !in.windowFull() || in.widening {
		return
	}
	if c.prefetchWindow(all, bytes) <= 0 {
		in.widenAt.Reset(widenLater)
		return
	}
	in.callMu.Lock()
	defer in.callMu.Unlock()
	in.widening = true
	_ = in.ch.Cancel(consumerTag, false) // after an error the channel is lost, and deliveries is also closed
}

// reopenWider opens a new consumer after cancelToWiden. It reports whether it has opened one. It opens none if the deliveries have
// ended for another reason.
func (c *consumer) reopenWider(in *consumeChannel) bool {
	in.callMu.Lock()
	defer in.callMu.Unlock()
	if !in.widening || in.ch.IsClosed() {
		return false
	}
	all, _, bytes := in.acks.unacked(in.base)
	err := c.openConsumer(in, max(c.prefetchWindow(all, bytes), 1))
	in.widening = false
	return err == nil
}

// declare creates the queue of the topic and its fanout exchange, unless they exist. It returns the number of the queue's consumers.
// The arguments of a queue never change, because RabbitMQ refuses to declare an existing queue with other arguments.
func (c *consumer) declare(ch *amqp.Channel) (consumers int, err error) {
	var q amqp.Queue
	switch c.mode {
	case bus.Shared:
		var args amqp.Table
		if c.bus.cfg.Quorum {
			args = amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}
		}
		q, err = ch.QueueDeclare(c.name, true, false, false, false, args)
	case bus.Live:
		q, err = ch.QueueDeclare(c.name, true, false, false, false, amqp.Table{amqp.QueueTTLArg: liveExpiry.Milliseconds()})
	case bus.Private:
		q, err = ch.QueueDeclare(c.name, false, true, true, false, nil)
	}
	if err != nil || c.fanout == "" {
		return q.Consumers, err
	}
	if err = ch.ExchangeDeclare(c.fanout, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return 0, err
	}
	return q.Consumers, ch.QueueBind(c.name, "", c.fanout, false, nil)
}

// consumerTag is the tag of the only consumer of a channel.
const consumerTag = "c"

// consumeChannel is one channel with one consumer.
type consumeChannel struct {
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	closed     <-chan *amqp.Error
	canceled   <-chan string
	lost       chan struct{} // closed when the channel is closed
	ended      chan struct{} // closed when awaitEnd has returned
	endReason  error         // the result of awaitEnd; set before ended is closed
	acks       *acknowledger
	callMu     sync.Mutex  // held during each call to the broker, because amqp091 would mix up the answers to concurrent calls
	requeued   int         // messages requeued since a message last got a slot; for a Live topic
	timer      *time.Timer // ends the wait of a message for a slot

	prefetch int         // the prefetch of the open consumer
	last     uint64      // the tag of the last delivery
	base     uint64      // the value of last when the open consumer was opened
	widening bool        // cancelToWiden has canceled the consumer; guarded by callMu
	widenAt  *time.Timer // the next check for cancelToWiden
}

// Reasons for the end of a consumeChannel, besides the errors of probeQueue.
var (
	errChannel  = errors.New("the channel was closed")
	errCanceled = errors.New("RabbitMQ canceled the consumer")
	errEnded    = errors.New("the subscription has ended")
)

// probeQueue runs until the channel is closed. It declares the queue again, on average every Config.ProbeEvery, because a queue can
// be lost while its connection works. If the declaration fails or the queue has no consumer, probeQueue sends an error to probeErr.
func (c *consumer) probeQueue(in *consumeChannel, probeErr chan<- error) {
	every := c.bus.cfg.ProbeEvery
	t := time.NewTimer(every/2 + mrand.N(every/2))
	defer t.Stop()
	for {
		select {
		case <-in.closed: //nolint:errcheck // the reason has no effect: unacknowledged messages are redelivered
			return
		case <-t.C:
		}
		in.callMu.Lock()
		n, err := c.declare(in.ch)
		widening := in.widening
		in.callMu.Unlock()
		if err == nil && n == 0 && !widening {
			err = errors.New("RabbitMQ reports no consumer of the queue")
		}
		if err != nil {
			select {
			case probeErr <- err:
			default:
			}
		}
		t.Reset(every/2 + mrand.N(every))
	}
}
