package natsbus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	// liveGroup is the queue group of the subscribers of a Live topic.
	liveGroup = "live"
	// minWaiting is the minimum number of messages of a Live topic that may wait for a slot, so that a short burst is not rejected.
	minWaiting = 64
	// maxQueued is how many fanouts, or messages of a Private topic, may wait in nats.go. nats.go drops further messages, and reports
	// the loss to logAsyncError.
	maxQueued = 1 << 14
	// minSlotWait is how long a message waits for a slot at the first attempt. A message that gets no slot is rejected. Its sender
	// sends the message again, to another subscriber or to this one. At each further attempt the message waits twice as long, up to
	// maxSlotWait.
	minSlotWait = 50 * time.Millisecond
	maxSlotWait = 400 * time.Millisecond
)

// live is a subscription of a Live or Private topic. NATS stores no message: a message waits for a slot in this process for a short
// time, and after that in the process of its sender.
type live struct {
	bus   *Bus
	s     bus.Subscription
	out   chan *bus.Delivery
	conn  *conn
	epoch context.Context //nolint:containedctx // the life of conn
	subs  []*nats.Subscription
	ended chan struct{} // closed when the subscription ends

	mu         sync.Mutex
	stopped    bool           // no further message is delivered to out
	writers    sync.WaitGroup // the goroutines that may write to out
	waiting    []*rejectable  // the messages that wait for a slot, in the order of their arrival
	bytes      int            // the sum of the payloads of the waiting messages, in bytes
	delivering bool           // deliverWaiting runs
	due        time.Time      // when the first waiting message expires, or earlier
	timer      *time.Timer    // fires at due
}

// open subscribes on the current connection, see subscription.
func (l *live) open(ctx context.Context) (err error) {
	if l.conn, l.epoch, err = l.bus.link.Get(ctx); err == nil {
		if err = l.subscribe(); err == nil {
			err = l.conn.FlushWithContext(ctx) // then NATS has the subscriptions
		}
	}
	if err != nil {
		l.drainSubscriptions()
		return fault.New(fault.Unavailable, "NATS did not answer in time: %w", err)
	}
	return nil
}

// subscribe makes the subscriptions of nats.go: one for the topic, and one for its fanouts.
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

// drainSubscriptions ends the subscriptions. Messages that NATS has already sent are still received.
func (l *live) drainSubscriptions() {
	for _, s := range l.subs {
		_ = s.Drain() // after an error the connection is lost, and the subscription with it
	}
}

// consume makes the subscriptions again on each new connection, until ctx ends, see subscription.
func (l *live) consume(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-l.epoch.Done():
			if c, epoch, err := l.bus.link.Get(ctx); err == nil {
				l.conn, l.epoch = c, epoch
				_ = l.subscribe() // after an error the connection is lost again
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
		_ = l.conn.FlushTimeout(flushTimeout) // then all messages that NATS had sent are rejected
	}
}

// addWriterLocked adds a writer to out and returns true. If the subscription has ended, it adds none and returns false.
func (l *live) addWriterLocked() bool {
	if !l.stopped {
		l.writers.Add(1)
	}
	return !l.stopped
}

// receiveRejectable delivers a message of a Live topic, or rejects it if no slot becomes free. nats.go never calls it concurrently.
func (l *live) receiveRejectable(msg *nats.Msg) {
	d := &rejectable{live: l, msg: msg, m: decodeMessage(msg)}
	sent := max(parseAnswerSubject(msg.Reply), 1)
	d.deliverWithin(backoff.Exponential(sent, minSlotWait, maxSlotWait))
}

// receiveUnrejectable delivers a message of a Private topic, or a fanout. It cannot reject the message. nats.go never calls it
// concurrently, so later messages wait in nats.go.
func (l *live) receiveUnrejectable(msg *nats.Msg) {
	m := decodeMessage(msg)
	if s := l.bus.link.State(); s.Epoch != nil {
		if m.Kind == bus.Reply || m.Kind == bus.Heartbeat {
			s.Conn.attempts.confirmCall(m.Correlation)
		}
	}
	if m.Kind != bus.Fanout && msg.Reply != "" && parseAnswerSubject(msg.Reply) == 0 {
		_ = l.bus.publishRaw(msg.Reply, answerAcked) // a sender of the previous release waits for this answer; if the answer is not sent, the sender sends the message again
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

// rejectable is a message of a Live topic that is neither acknowledged nor rejected.
type rejectable struct {
	live        *live
	msg         *nats.Msg
	m           *bus.Message
	redelivered bool
	delivery    *bus.Delivery // the message as it is delivered to out; set by deliverWithin
	expiry      time.Time     // when the message is rejected; set while it waits for a slot
}

// deliverWithin delivers a message. It rejects the message if no slot becomes free within the duration wait, or if too many messages
// wait already. It blocks only if it rejects the message at once while the connection is full, because the answer must wait for the
// connection.
func (r *rejectable) deliverWithin(wait time.Duration) {
	l, size := r.live, len(r.msg.Data)
	l.mu.Lock()
	if l.stopped || len(l.waiting) >= max(l.s.Slots, minWaiting) || len(l.waiting) > 0 && l.bytes+size > l.bus.cfg.MaxInFlight {
		l.mu.Unlock() // answerSender may wait for a full connection
		r.answerSender(answerRejected)
		return
	}
	defer l.mu.Unlock()
	r.delivery = bus.NewDelivery(r.m, r.redelivered, r)
	if !l.delivering {
		select {
		case l.out <- r.delivery: // a slot is free
			return
		default:
		}
		l.delivering = true
		l.writers.Go(l.deliverWaiting)
	}
	r.expiry = time.Now().Add(wait)
	if len(l.waiting) == 0 || r.expiry.Before(l.due) {
		l.due = r.expiry
		l.timer.Reset(wait)
	}
	l.waiting = append(l.waiting, r)
	l.bytes += size
}

// deliverWaiting delivers the waiting messages, the oldest first. It rejects each message that expires, and all waiting messages when
// the subscription ends. It returns when no message waits.
func (l *live) deliverWaiting() {
	for {
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.delivering = false
			l.mu.Unlock()
			return
		}
		oldest := l.waiting[0]
		l.mu.Unlock()
		select {
		case l.out <- oldest.delivery:
			l.mu.Lock()
			l.waiting = slices.Delete(l.waiting, 0, 1) // no other goroutine removes messages
			l.bytes -= len(oldest.msg.Data)
			l.mu.Unlock()
		case now := <-l.timer.C:
			l.rejectExpired(now)
		case <-l.ended:
			l.rejectExpired(time.Now().Add(maxSlotWait))
		}
	}
}

// rejectExpired rejects the waiting messages that have expired at the time in the parameter until.
func (l *live) rejectExpired(until time.Time) {
	var rejected []*rejectable
	l.mu.Lock()
	l.due = until.Add(maxSlotWait) // the latest expiry of the messages that remain
	l.waiting = slices.DeleteFunc(l.waiting, func(r *rejectable) bool {
		expired := !r.expiry.After(until)
		if expired {
			l.bytes -= len(r.msg.Data)
			rejected = append(rejected, r)
		} else if r.expiry.Before(l.due) {
			l.due = r.expiry
		}
		return expired
	})
	l.timer.Reset(time.Until(l.due))
	l.mu.Unlock()
	for _, r := range rejected { // without the lock: answerSender may wait for a full connection
		r.answerSender(answerRejected)
	}
}

// EndDelivery implements [bus.Acknowledger]. After Nack, the message is delivered again, or rejected if the subscription has ended.
func (r *rejectable) EndDelivery(ack bool) error {
	switch {
	case !ack:
		r.redelivered = true
		r.deliverWithin(maxSlotWait)
	case parseAnswerSubject(r.msg.Reply) == 0:
		r.answerSender(answerAcked)
	}
	return nil
}

// answerSender sends an answer to the sender of the message.
func (r *rejectable) answerSender(text string) {
	if r.msg.Reply != "" {
		_ = r.live.bus.publishRaw(r.msg.Reply, text) // without a connection the sender detects the loss itself, or stops waiting at its deadline
	}
}
