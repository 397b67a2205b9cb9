package natsbus

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

const (
	// liveGroup is the queue group of the subscribers of a Live topic.
	liveGroup = "live"
	// minRoom is how many messages of a Live topic may wait here at least, so
	// that a burst need not be refused; privateRoom the same for a Private
	// one and fanoutRoom for what is fanned out.
	minRoom     = 64
	privateRoom = 1 << 16
	fanoutRoom  = 1 << 12
	// A message that has waited for a handler for minHold is offered to the
	// topic's other subscribers, and again after twice the time up to maxHold.
	minHold = 50 * time.Millisecond
	maxHold = 250 * time.Millisecond
	// offerTime bounds an offer, and handOverTime how long those who have no room are
	// asked again when the one who has a message leaves.
	offerTime    = time.Second
	handOverTime = 5 * time.Second
)

// direct is a subscription of a Live or Private topic, whose messages go from
// process to process and wait in this one's memory.
type direct struct {
	bus     *Bus
	subject string
	live    bool
	id      string
	slots   int
	out     chan *bus.Delivery
	subs    []*nats.Subscription

	mu      sync.Mutex
	list    []*item
	bytes   int  // of the list's payloads
	fanouts int  // how many of the list were fanned out
	inHand  int  // received and not settled; Live only
	ended   bool // no more is taken
	wake    chan struct{}
}

// item is a message that waits here, or is in hand.
type item struct {
	d      *direct
	m      *bus.Delivery
	msg    *nats.Msg
	fanout bool
	since  time.Time
	hold   time.Duration
}

// Settle is [bus.Settler].
func (it *item) Settle(ack bool) error {
	it.d.settle(it, ack)
	return nil
}

// newDirect starts to take messages of a Live or Private topic.
func (b *Bus) newDirect(ctx context.Context, s bus.Subscription, subject, fanout string) (*direct, error) {
	d := &direct{
		bus: b, subject: subject, live: s.Mode == bus.Live, slots: max(s.Slots, 1), id: nats.NewInbox(),
		out: make(chan *bus.Delivery), wake: make(chan struct{}, 1),
	}
	try, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	_, conn, err := b.connected(try)
	if err != nil {
		return nil, away(err)
	}
	var sub *nats.Subscription
	if d.live {
		sub, err = conn.QueueSubscribe(subject, liveGroup, d.take)
	} else {
		sub, err = conn.Subscribe(subject, d.take)
	}
	if err == nil {
		d.subs = append(d.subs, sub)
		if fanout != "" {
			if sub, err = conn.Subscribe(fanout, d.copy); err == nil {
				d.subs = append(d.subs, sub)
			}
		}
	}
	if err == nil {
		err = conn.FlushWithContext(try) // then NATS knows of it
	}
	if err != nil {
		d.leave(conn)
		return nil, away(err)
	}
	return d, nil
}

func away(err error) error {
	if errors.Is(err, bus.ErrClosed) || errors.Is(err, bus.ErrNotStarted) {
		return err
	}
	return fault.New(fault.Unavailable, "NATS did not answer in time: %w", err)
}

// take takes a message if there is room, and answers whether it did.
func (d *direct) take(msg *nats.Msg) {
	answer := answerBusy
	offered := msg.Header.Get(offerHeader)
	d.mu.Lock()
	waiting := len(d.list) - d.fanouts
	switch {
	case d.ended, !d.fitsLocked(msg):
	case offered != "": // by one that has no time, to one that has
		if offered != d.id && waiting == 0 && d.inHand < d.slots {
			answer = answerTaken
		}
	case d.live && waiting < max(d.slots, minRoom), !d.live && waiting < privateRoom:
		answer = answerTaken
	}
	if len(answer) == len(answerTaken) {
		delete(msg.Header, offerHeader)
		d.insertLocked(len(d.list), d.newItem(msg, false, minHold))
	}
	d.mu.Unlock()
	d.signal()
	_ = msg.Respond(answer) // else the publisher sees that the connection was lost
}

// fitsLocked reports whether there is room for the bytes of a message.
func (d *direct) fitsLocked(msg *nats.Msg) bool {
	return len(d.list) == 0 || d.bytes+len(msg.Data) <= d.bus.cfg.MaxInFlight
}

// newItem returns what is delivered of a message.
func (d *direct) newItem(msg *nats.Msg, fanout bool, hold time.Duration) *item {
	it := &item{d: d, msg: msg, fanout: fanout, since: time.Now(), hold: hold}
	it.deliver(unmarshal(msg), false)
	return it
}

// deliver makes a delivery of the item. A Private topic needs no acknowledgements.
func (it *item) deliver(m *bus.Message, redelivered bool) {
	var s bus.Settler
	if it.d.live {
		s = it
	}
	it.m = bus.NewDelivery(m, redelivered, s)
}

// insertLocked puts an item into the list.
func (d *direct) insertLocked(i int, it *item) {
	d.list = slices.Insert(d.list, i, it)
	d.bytes += len(it.msg.Data)
}

// copy takes a message that is fanned out.
func (d *direct) copy(msg *nats.Msg) {
	d.mu.Lock()
	room := !d.ended && d.fanouts < fanoutRoom && d.fitsLocked(msg)
	if room {
		d.insertLocked(len(d.list), d.newItem(msg, true, 0))
		d.fanouts++
	}
	ended := d.ended
	d.mu.Unlock()
	d.signal()
	if !room && !ended {
		d.bus.cfg.Logger.Warn("dropped a fanout, too many wait for a handler", "subject", msg.Subject)
	}
}

func (d *direct) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run hands out messages until ctx ends; what waits then goes to others.
func (d *direct) run(ctx context.Context) {
	timer := time.NewTimer(maxHold)
	defer timer.Stop()
	for ctx.Err() == nil {
		first, wait := d.first()
		var out chan *bus.Delivery
		var m *bus.Delivery
		if first != nil {
			out, m = d.out, first.m
		}
		timer.Reset(wait)
		select {
		case out <- m:
			d.remove(first)
		case <-d.wake:
		case <-timer.C:
			d.offer() //nolint:contextcheck // as above
		case <-ctx.Done():
		}
	}
	close(d.out)
	d.mu.Lock()
	d.ended = true
	rest := d.list
	d.list, d.bytes, d.fanouts = nil, 0, 0
	d.mu.Unlock()
	_, conn, err := d.bus.connected(ctx)
	if err != nil {
		conn = d.bus.conn
	}
	d.leave(conn)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, it := range rest {
		if d.live && !it.fanout {
			wg.Go(func() { d.handOver(it) }) //nolint:contextcheck // as above
		}
	}
}

// first returns the first message, if it may be handed out, and for how long
// nothing else is to be done.
func (d *direct) first() (*item, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wait := maxHold
	if d.live {
		for _, it := range d.list {
			if !it.fanout {
				wait = max(min(wait, time.Until(it.since.Add(it.hold))), time.Millisecond)
				break
			}
		}
	}
	if len(d.list) == 0 || d.live && d.inHand >= d.slots {
		return nil, wait
	}
	return d.list[0], wait
}

// remove takes a message that was received from the list.
func (d *direct) remove(it *item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.list, it); i >= 0 {
		d.list = slices.Delete(d.list, i, i+1)
		d.bytes -= len(it.msg.Data)
	}
	if it.fanout {
		d.fanouts--
	}
	if d.live {
		d.inHand++
	}
}

// settle ends a delivery. A message that is given back is the first again, or
// goes to others if this subscription has ended.
func (d *direct) settle(it *item, ack bool) {
	d.mu.Lock()
	d.inHand--
	ended := d.ended
	if !ack && !ended {
		it.deliver(it.m.Message, true)
		it.since = time.Now()
		d.insertLocked(0, it)
		if it.fanout {
			d.fanouts++
		}
	}
	d.mu.Unlock()
	d.signal()
	if !ack && ended && !it.fanout {
		_ = d.bus.run(func() { d.handOver(it) }) // it fails on a closed bus only
	}
}

// offer offers what has waited for too long to the topic's other subscribers.
func (d *direct) offer() {
	now := time.Now()
	d.mu.Lock()
	var late []*item
	d.list = slices.DeleteFunc(d.list, func(it *item) bool {
		if !d.live || it.fanout || now.Before(it.since.Add(it.hold)) {
			return false
		}
		late = append(late, it)
		d.bytes -= len(it.msg.Data)
		return true
	})
	d.mu.Unlock()
	for _, it := range late {
		back := func() {
			d.mu.Lock()
			it.since, it.hold = time.Now(), min(2*it.hold, maxHold)
			ended := d.ended
			if !ended {
				d.insertLocked(0, it)
			}
			d.mu.Unlock()
			d.signal()
			if ended {
				d.handOver(it)
			}
		}
		if d.bus.run(func() {
			if err := d.pass(it, true); errors.Is(err, errAgain) || errors.Is(err, bus.ErrNoConsumer) {
				back()
			}
		}) != nil {
			return // the bus is closed: nobody takes it
		}
	}
}

// handOver gives a message to another subscriber when this one has ended. NATS may
// still choose this one, or one that has no room: they are asked again.
func (d *direct) handOver(it *item) {
	ctx, cancel := context.WithTimeout(context.Background(), handOverTime)
	defer cancel()
	for wait := minPause; ctx.Err() == nil; wait = min(2*wait, maxHold) {
		if !errors.Is(d.pass(it, false), errAgain) {
			return // it was taken, or there is nobody
		}
		backoff.Sleep(ctx, wait)
	}
	d.bus.cfg.Logger.Warn("dropped a message, its other servers have no room", "subject", it.msg.Subject)
}

// pass sends a message to another subscriber, to one that has time if it is an
// offer. With errAgain and ErrNoConsumer it is certain that nobody took it.
func (d *direct) pass(it *item, offer bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), offerTime)
	defer cancel()
	msg := &nats.Msg{Subject: it.msg.Subject, Header: it.msg.Header, Data: it.msg.Data}
	if offer {
		msg.Header = maps.Clone(it.msg.Header)
		msg.Header[offerHeader] = []string{d.id}
	}
	answer, err := d.bus.conn.RequestMsgWithContext(ctx, msg)
	if err != nil {
		return sendError(err)
	}
	return readAnswer(answer.Data)
}

// leave ends the subscriptions, and waits until what NATS has sent is refused.
func (d *direct) leave(conn *nats.Conn) {
	for _, s := range d.subs {
		_ = s.Drain() // it may be lost with the connection
	}
	if conn.IsConnected() {
		_ = conn.FlushTimeout(leaveTime)
	}
}
