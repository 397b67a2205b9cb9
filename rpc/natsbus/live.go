package natsbus

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	// liveGroup is the queue group of the subscribers of a Live topic.
	liveGroup = "live"
	// minWaiting is how many messages of a Live topic may wait for a slot at least, so that a burst need not be rejected.
	minWaiting = 64
	// maxQueued is how many fanouts, or messages of a Private topic, nats.go keeps before it drops and reports them.
	maxQueued = 1 << 14
	// A message that has waited minSlotWait for a slot is rejected, so that its sender sends it to another subscriber, or
	// to this one again. Then it waits twice as long, up to maxSlotWait.
	minSlotWait = 50 * time.Millisecond
	maxSlotWait = 400 * time.Millisecond
)

// live is a subscription of a Live or Private topic. NATS stores nothing: a message waits in this process for a slot, for
// a short time, or with its sender.
type live struct {
	bus   *Bus
	s     bus.Subscription
	out   chan *bus.Delivery
	conn  *conn
	epoch context.Context //nolint:containedctx // the life of conn
	subs  []*nats.Subscription
	ended chan struct{} // closed when the subscription ends

	mu      sync.Mutex
	stopped bool           // no more is delivered
	writers sync.WaitGroup // they may write to out
	waiting int            // messages that wait for a slot and can be rejected
	bytes   int            // of their payloads
}

// open subscribes on the present connection, see subscription.
func (l *live) open(ctx context.Context) (err error) {
	if l.conn, l.epoch, err = l.bus.link.Get(ctx); err == nil {
		if err = l.subscribe(); err == nil {
			err = l.conn.FlushWithContext(ctx) // then NATS knows of it
		}
	}
	if err != nil {
		l.drainSubscriptions()
		return fault.New(fault.Unavailable, "NATS did not answer in time: %w", err)
	}
	return nil
}

// subscribe makes the subscriptions on the connection.
func (l *live) subscribe() error {
	group, receive := liveGroup, l.receiveRejectable
	if l.s.Mode == bus.Private {
		group, receive = "", l.receiveUnrejectable
	}
	sub, err := l.conn.QueueSubscribe(l.bus.subject(l.s.Topic), group, receive)
	l.subs = []*nats.Subscription{sub}
	if err == nil && l.s.Fanout != "" {
		sub, err = l.conn.Subscribe(l.bus.subject(l.s.Fanout), l.receiveUnrejectable)
		l.subs = append(l.subs, sub)
	}
	if err == nil && (group == "" || l.s.Fanout != "") {
		err = sub.SetPendingLimits(maxQueued, l.bus.cfg.MaxInFlight)
	}
	return err
}

// drainSubscriptions ends the subscriptions; what NATS has sent until then still comes.
func (l *live) drainSubscriptions() {
	for _, s := range l.subs {
		_ = s.Drain() // on an error it is lost with the connection
	}
}

// consume renews the subscriptions on each new connection until ctx ends, see subscription.
func (l *live) consume(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-l.epoch.Done():
			if c, epoch, err := l.bus.link.Get(ctx); err == nil {
				l.conn, l.epoch = c, epoch
				_ = l.subscribe() // on an error the connection is lost again
			}
		}
	}
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	close(l.ended)
	l.writers.Wait()
	close(l.out)
	l.drainSubscriptions()
	if l.epoch.Err() == nil {
		_ = l.conn.FlushTimeout(flushTimeout) // then what NATS had sent has been rejected
	}
}

// addWriterLocked registers a writer to out, unless the subscription has ended.
func (l *live) addWriterLocked() bool {
	if !l.stopped {
		l.writers.Add(1)
	}
	return !l.stopped
}

// receiveRejectable delivers a message to a slot within a short time, or rejects it. nats.go calls it with one after another.
func (l *live) receiveRejectable(msg *nats.Msg) {
	d := &rejectable{live: l, msg: msg, m: unmarshal(msg)}
	sent := max(parseAnswerSubject(msg.Reply), 1)
	d.deliverWithin(min(minSlotWait<<min(sent-1, 8), maxSlotWait))
}

// receiveUnrejectable delivers a message that cannot be rejected: of a Private topic, or a fanout. Those behind it wait in nats.go.
func (l *live) receiveUnrejectable(msg *nats.Msg) {
	m := unmarshal(msg)
	if s := l.bus.link.State(); s.Epoch != nil {
		if m.Kind == bus.Reply || m.Kind == bus.Heartbeat {
			s.Conn.attempts.confirmCall(m.Correlation)
		}
	}
	if m.Kind != bus.Fanout && msg.Reply != "" && parseAnswerSubject(msg.Reply) == 0 {
		_ = l.bus.publishRaw(msg.Reply, answerAcked) // the release before waits for it; without a connection its sender sends again
	}
	d := bus.NewDelivery(m, false, nil)
	if l.s.Receive != nil {
		l.s.Receive(d)
		return
	}
	l.mu.Lock()
	ok := l.addWriterLocked()
	l.mu.Unlock()
	if ok {
		defer l.writers.Done()
		select {
		case l.out <- d:
		case <-l.ended:
		}
	}
}

// rejectable is a message of a Live topic until it is acknowledged or rejected.
type rejectable struct {
	live        *live
	msg         *nats.Msg
	m           *bus.Message
	redelivered bool
}

// deliverWithin delivers a message. It is rejected if it has no slot within wait, or if too many messages wait.
func (r *rejectable) deliverWithin(wait time.Duration) {
	l, size := r.live, len(r.msg.Data)
	l.mu.Lock()
	full := l.waiting >= max(l.s.Slots, minWaiting) || l.waiting > 0 && l.bytes+size > l.bus.cfg.MaxInFlight
	if full || !l.addWriterLocked() {
		l.mu.Unlock()
		r.answerSender(answerRejected)
		return
	}
	l.waiting++
	l.bytes += size
	l.mu.Unlock()
	d := bus.NewDelivery(r.m, r.redelivered, r)
	end := func() {
		l.mu.Lock()
		l.waiting--
		l.bytes -= size
		l.mu.Unlock()
		l.writers.Done()
	}
	select {
	case l.out <- d: // a slot is free
		end()
		return
	default:
	}
	go func() { // ends when the message is delivered or rejected
		defer end()
		select {
		case l.out <- d:
			return
		case <-time.After(wait):
		case <-l.ended:
		}
		r.answerSender(answerRejected)
	}()
}

// Settle is that of [bus.Settler]. A message is redelivered after Nack, or rejected if the subscription has ended.
func (r *rejectable) Settle(ack bool) error {
	switch {
	case !ack:
		r.redelivered = true
		r.deliverWithin(maxSlotWait)
	case parseAnswerSubject(r.msg.Reply) == 0:
		r.answerSender(answerAcked)
	}
	return nil
}

// answerSender tells the sender what became of a message.
func (r *rejectable) answerSender(text string) {
	if r.msg.Reply != "" {
		_ = r.live.bus.publishRaw(r.msg.Reply, text) // without a connection the sender sees that it is lost, or its deadline ends
	}
}
