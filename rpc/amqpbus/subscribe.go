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
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

// liveExpiry is how long the queue of a Live topic outlives its last consumer:
// long enough for a server to restore its connection, or to restart, without
// loss; afterwards a call fails at once. It is an argument of queues that may
// exist, so it never changes.
const liveExpiry = 10 * time.Second

// A message of a Live topic that finds no slot within firstSlotWait is requeued, so that another server may get it. From then
// on RabbitMQ's prefetch is requeued within firstSlotWait, and later within twice that time, until a message finds a slot:
// a full server gets requeued messages again if all are full. ADR 28 has the figures.
const firstSlotWait = 100 * time.Millisecond

// slotWait returns how long a message waits for a slot after so many in a row were requeued.
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

// Subscribe consumes the topic's queue until ctx ends, see [bus.Bus]. It waits
// up to Config.ConnectTimeout for a broker that is away.
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
		bus: b, name: b.name(s.Topic), mode: s.Mode, slots: max(s.Slots, 1), deliver: s.Receive,
		out: make(chan *bus.Delivery), ready: make(chan error, 1),
		state: errors.New("it has not been consumed yet"),
	}
	if s.Fanout != "" {
		c.fanout = b.name(s.Fanout)
	}
	b.mu.Lock()
	b.consumers[c] = true
	b.mu.Unlock()
	if !b.life.Go(func() {
		defer cancel()
		defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
		c.run(ctx)
	}) {
		cancel()
		b.drop(c)
		return nil, fmt.Errorf("subscribe to %s: %w", c.name, bus.ErrClosed)
	}
	wait, stop := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer stop()
	select {
	case err := <-c.ready:
		if err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", c.name, err)
		}
		return c.out, nil
	case <-wait.Done():
		cancel()
		return nil, fault.New(fault.Unavailable, "subscribe to %s: RabbitMQ did not do it in time: %w: %w", c.name, wait.Err(), c.check())
	}
}

// CreateTopic makes the queue of a Shared topic, see [bus.Bus]. It waits up to Config.ConnectTimeout for a broker
// that is away.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if err := cmp.Or(b.life.Usable(), b.checkTopic(topic)); err != nil {
		return fmt.Errorf("make queue: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	c := &consumer{bus: b, name: b.name(topic)}
	for {
		conn, err := b.sub.get(ctx)
		if err != nil {
			return fault.New(fault.Unavailable, "make queue %s: RabbitMQ did not answer in time: %w", c.name, err)
		}
		ch, err := conn.Channel()
		if err == nil {
			_, err = c.declare(ch)
			_ = ch.Close() // it may be closed already
		}
		if err == nil {
			return nil
		}
		if !conn.IsClosed() {
			return fmt.Errorf("make queue: %w", refused(err, "queue "+c.name))
		}
	}
}

// consumer is one subscription, over all the channels of its life.
type consumer struct {
	bus     *Bus
	name    string // of the queue
	fanout  string // of the exchange of which the queue gets a copy; may be empty
	mode    bus.Mode
	slots   int
	out     chan *bus.Delivery
	deliver func(*bus.Delivery) // in place of out, if it is not nil
	ready   chan error          // gets the outcome of the first attempt
	helped  sync.WaitGroup      // goroutines of the channels

	mu    sync.Mutex
	state error // why the queue is not consumed now; nil if it is
}

func (c *consumer) set(err error) {
	c.mu.Lock()
	c.state = err
	c.mu.Unlock()
}

// check returns Unavailable if the queue is not consumed.
func (c *consumer) check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == nil {
		return nil
	}
	return fault.New(fault.Unavailable, "queue %s is not consumed: %v", c.name, c.state)
}

// run consumes until ctx ends. The first attempt decides whether Subscribe
// fails; later ones are repeated.
func (c *consumer) run(ctx context.Context) {
	defer c.bus.drop(c)
	defer c.helped.Wait()
	defer close(c.out)
	first := true
	wait := backoff.Backoff{Min: minRetry, Max: maxRetry}
	for ctx.Err() == nil {
		conn, err := c.bus.sub.get(ctx)
		if err != nil {
			return
		}
		in, err := c.consume(conn)
		if err == nil {
			wait.Reset()
			if first {
				c.ready <- nil
			}
			first = false
			c.set(nil)
			c.logAttempt(ctx, nil)
			c.set(c.pump(ctx, in))
			continue
		}
		c.set(err)
		if first && final(err) {
			c.ready <- refused(err, "queue "+c.name)
			return
		}
		c.logAttempt(ctx, err)
		wait.Wait(ctx)
	}
}

// logAttempt logs the result of an attempt to consume. An outage of the broker fails all queues, so one line is for all of them.
func (c *consumer) logAttempt(ctx context.Context, err error) {
	c.bus.consuming.Note(ctx, c.bus.cfg.Logger, slog.LevelWarn, "consume queue", c, err, "queue", c.name)
}

// final reports whether the broker would refuse the queue again. Other refusals
// pass: while it has not noticed that a connection is lost, or is just noticing,
// it holds the exclusive queue of that connection, or takes the new one away.
func final(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && (e.Code == amqp.AccessRefused || e.Code == amqp.PreconditionFailed)
}

// consume declares what the topic needs and starts to consume it.
func (c *consumer) consume(conn *amqp.Connection) (*inChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	in := &inChannel{
		ch: ch, lost: make(chan struct{}), end: make(chan struct{}), tags: newTags(ch), timer: time.NewTimer(firstSlotWait), widenAt: time.NewTimer(widenSoon),
		closed:   ch.NotifyClose(make(chan *amqp.Error, 1)),
		canceled: ch.NotifyCancel(make(chan string, 1)),
	}
	_, err = c.declare(ch)
	if err == nil {
		err = c.open(in, c.window(0, 0))
	}
	if err != nil {
		_ = ch.Close() // it is unusable either way
		return nil, err
	}
	return in, nil
}

// open starts to consume, with so many messages sent ahead.
func (c *consumer) open(in *inChannel, prefetch int) (err error) {
	if err = in.ch.Qos(min(prefetch, 65_535), 0, false); err != nil {
		return err
	}
	d, err := in.ch.Consume(c.name, consumerTag, c.mode == bus.Private, false, false, false, nil)
	if err == nil { // on failure the old delivery channel is closed, so that the consumer learns that it has ended
		in.deliveries = d
		in.prefetch, in.base = prefetch, in.last
	}
	return err
}

// window returns how many messages RabbitMQ may send ahead, beside so many unsettled ones with so many
// bytes. Each may be as large as a message can be, and all together not above Config.MaxInFlight. It is at
// least one if nothing is unsettled.
func (c *consumer) window(unsettled, bytes int) int {
	cfg := &c.bus.cfg
	n := min(c.slots-unsettled, (cfg.MaxInFlight-bytes)/cfg.MaxMessage)
	if unsettled == 0 {
		n = max(n, 1)
	}
	return n
}

// A consumer whose window is full although slots are free, because it was opened for messages that could have
// been larger, is replaced by one with what is left of Config.MaxInFlight. It is looked at widenSoon after a
// message filled the window, then every widenLater.
const (
	widenSoon  = 5 * time.Millisecond
	widenLater = 50 * time.Millisecond
)

// full reports whether RabbitMQ sends no more until something is settled.
func (in *inChannel) full() bool {
	_, later, _ := in.tags.unsettled(in.base)
	return later >= in.prefetch
}

// widen cancels the consumer if another one would get more. What RabbitMQ has sent is handed out before
// that one is opened, so that nothing goes back and counts as redelivered.
func (c *consumer) widen(in *inChannel) {
	all, _, bytes := in.tags.unsettled(in.base)
	if !in.full() || in.widening {
		return
	}
	if c.window(all, bytes) <= 0 {
		in.widenAt.Reset(widenLater)
		return
	}
	in.rpc.Lock()
	defer in.rpc.Unlock()
	in.widening = true
	_ = in.ch.Cancel(consumerTag, false) // else the channel is lost, which the deliveries' end tells
}

// widened opens the consumer that widen has made place for, and reports whether it did.
func (c *consumer) widened(in *inChannel) bool {
	in.rpc.Lock()
	defer in.rpc.Unlock()
	if !in.widening || in.ch.IsClosed() {
		return false
	}
	all, _, bytes := in.tags.unsettled(in.base)
	err := c.open(in, max(c.window(all, bytes), 1))
	in.widening = false
	return err == nil
}

// declare makes sure that the topic exists, and returns how many consume it. The
// arguments are fixed: queues that exist would be refused with others.
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

// consumerTag names the one consumer of a channel.
const consumerTag = "c"

// inChannel is the life of one channel that consumes.
type inChannel struct {
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	closed     <-chan *amqp.Error
	canceled   <-chan string
	lost       chan struct{} // closed when the channel is gone
	end        chan struct{} // closed when it is not to be consumed any more
	why        error         // set before
	tags       *tags
	rpc        sync.Mutex // held for each question: amqp091 mixes up the answers else
	requeued   int        // messages of a Live topic in a row that found no slot
	timer      *time.Timer

	prefetch   int         // how many messages the broker sends ahead to the consumer that is open
	last, base uint64      // the last delivery, and that of the consumer before
	widening   bool        // that consumer is canceled, to be opened with more; guarded by rpc
	widenAt    *time.Timer // when widen looks again
}

// Why a channel is not consumed any more, besides what a probe finds.
var (
	errChannel  = errors.New("the channel was closed")
	errCanceled = errors.New("RabbitMQ canceled the consumer")
	errEnded    = errors.New("the subscription has ended")
)

// pump hands deliveries out until the channel is lost or ctx ends, and returns
// why.
func (c *consumer) pump(ctx context.Context, in *inChannel) error {
	sick := make(chan error, 1)
	c.helped.Go(func() {
		c.probe(in, sick)
		close(in.lost)
	})
	c.helped.Go(func() {
		in.why = in.watch(ctx, sick)
		close(in.end)
	})
	for {
		select {
		case d, ok := <-in.deliveries:
			switch {
			case ok:
				c.handDelivery(in, &d) //nolint:contextcheck // what it puts back has a time of its own
			case !c.widened(in):
				c.retire(in, false)
				return errChannel
			}
		case <-in.widenAt.C:
			if c.mayWiden(in) {
				c.widen(in)
			}
		case <-in.end:
			switch {
			case errors.Is(in.why, errEnded):
				c.finish(in) //nolint:contextcheck // as above
			case !errors.Is(in.why, errChannel):
				c.bus.cfg.Logger.Warn("queue not as it should be, declaring it again", "queue", c.name, "error", in.why)
				c.retire(in, false)
			}
			return in.why
		}
	}
}

// handDelivery hands one delivery out.
func (c *consumer) handDelivery(in *inChannel, d *amqp.Delivery) {
	in.last = d.DeliveryTag
	var settler bus.Settler // a Private queue needs no acknowledgements
	if c.mode != bus.Private {
		settler = in.tags.hold(d.DeliveryTag, len(d.Body))
	}
	m := bus.NewDelivery(c.bus.unmarshal(d), d.Redelivered, settler)
	if c.deliver != nil {
		c.deliver(m)
	} else {
		c.offer(in, m)
	}
	if c.mayWiden(in) && in.full() {
		in.widenAt.Reset(widenSoon)
	}
}

// mayWiden reports whether the consumer may get a larger window.
func (c *consumer) mayWiden(in *inChannel) bool { return c.mode == bus.Shared && in.prefetch < c.slots }

// watch waits until the channel is not to be consumed any more, and returns why.
func (in *inChannel) watch(ctx context.Context, sick <-chan error) error {
	canceled := in.canceled
	for {
		select {
		case tag, ok := <-canceled:
			if ok && tag != "" {
				return errCanceled
			}
			canceled = nil
		case err := <-sick:
			return err
		case <-in.lost:
			return errChannel
		case <-ctx.Done():
			return errEnded
		}
	}
}

// offer delivers a message, or requeues it: one of a Live topic that finds no slot in time, and each one at the end.
func (c *consumer) offer(in *inChannel, m *bus.Delivery) {
	select {
	case c.out <- m: // nearly always
		in.requeued = 0
		return
	default:
	}
	var late <-chan time.Time
	if c.mode == bus.Live {
		in.timer.Reset(c.slotWait(in.requeued))
		late = in.timer.C
	}
	select {
	case c.out <- m:
		in.requeued = 0
		return
	case <-late:
		in.requeued++
	case <-in.end:
		if c.mode == bus.Shared && errors.Is(in.why, errEnded) && !m.Redelivered && c.putBack(m.Message) {
			_ = m.Ack() // on an error it is delivered again
			return
		}
	}
	_ = m.Nack() // on an error the loss of the channel requeues it
}

// probe watches the channel until it is closed. From time to time it declares
// again what the topic needs: a connection may be well and its queue dead.
func (c *consumer) probe(in *inChannel, sick chan<- error) {
	every := c.bus.cfg.ProbeEvery
	t := time.NewTimer(every/2 + mrand.N(every/2))
	defer t.Stop()
	for {
		select {
		case <-in.closed: //nolint:errcheck // why does not matter: what is not settled comes again
			return
		case <-t.C:
		}
		in.rpc.Lock()
		n, err := c.declare(in.ch)
		widening := in.widening
		in.rpc.Unlock()
		if err == nil && n == 0 && !widening {
			err = errors.New("RabbitMQ knows of no consumer of it")
		}
		if err != nil {
			select {
			case sick <- err:
			default:
			}
		}
		t.Reset(every/2 + mrand.N(every))
	}
}

// finish stops the consumer, gives back what the receiver has not received and leaves the
// channel open until what was received is settled.
func (c *consumer) finish(in *inChannel) {
	var rest []*amqp.Delivery
	ended := make(chan struct{})
	c.helped.Go(func() {
		defer close(ended)
		for d := range in.deliveries { // closed by Cancel, or with the channel
			rest = append(rest, &d)
		}
	})
	in.rpc.Lock()
	_ = in.ch.Cancel(consumerTag, false) // else the channel is lost already
	in.rpc.Unlock()
	<-ended
	var wg sync.WaitGroup
	for _, d := range rest {
		switch {
		case c.mode == bus.Private:
		case c.mode == bus.Shared && !d.Redelivered && !in.ch.IsClosed():
			wg.Go(func() {
				if c.putBack(c.bus.unmarshal(d)) {
					_ = d.Ack(false) // else it comes again besides
				} else {
					_ = d.Nack(false, true) // else the loss of the channel does it
				}
			})
		default:
			_ = d.Nack(false, true) // as above
		}
	}
	wg.Wait()
	c.retire(in, true)
}

// putBackTime bounds putBack.
const putBackTime = 5 * time.Second

// putBack publishes a message again that this process has not begun, and reports whether the delivery is to
// be acknowledged: given back it would come marked as redelivered, and count as lost with its server. One that is
// marked already is not put back, so that the mark stays.
func (c *consumer) putBack(m *bus.Message) bool {
	ctx, cancel := context.WithTimeout(c.bus.life, putBackTime)
	defer cancel()
	err := c.bus.persist(ctx, &outgoing{m: m, key: c.name}, nil)
	return err == nil || bus.OutcomeOf(err) == bus.Unknown && !m.Persistent() // at most once: rather lost than doubled
}

// retire closes the channel when all its deliveries are settled. After the end
// of the subscription a Live queue is deleted, unless another consumer uses it or
// messages wait in it.
func (c *consumer) retire(in *inChannel, ended bool) {
	in.tags.retire()
	c.helped.Go(func() {
		select {
		case <-in.tags.idle:
			if c.mode == bus.Live && ended {
				in.rpc.Lock()
				_, _ = in.ch.QueueDelete(c.name, true, true, false) // else it expires
				in.rpc.Unlock()
			}
		case <-in.lost:
		case <-c.bus.life.Done():
		}
		_ = in.ch.Close() // it may be closed already
	})
}
