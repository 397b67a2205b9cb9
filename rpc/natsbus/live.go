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
	// liveRoom is how many messages of a Live topic may wait in this process at least, so
	// that a burst need not be refused; otherRoom is how many fanouts, or messages of a Private topic.
	liveRoom  = 64
	otherRoom = 1 << 14
	// A message that has waited minHold for a slot is refused, so that its sender sends it to another subscriber, or to
	// this one again. Then it waits twice as long, up to maxHold.
	minHold = 50 * time.Millisecond
	maxHold = 400 * time.Millisecond
)

// live is a subscription of a Live or Private topic. NATS keeps nothing: a message waits in this process for a slot, for a
// short time, or with its sender.
type live struct {
	bus     *Bus
	s       bus.Subscription
	out     chan *bus.Delivery
	end     <-chan struct{} // closed when the subscription ends
	kept    *backlog        // messages that are not refused: those of a Private topic, and fanouts
	handing sync.WaitGroup  // goroutines that may write to out

	mu    sync.Mutex
	waits int  // messages that wait for a slot, besides those kept
	bytes int  // of their payloads
	taken int  // received and not settled, of these
	ended bool // no more is taken
}

// subscribeLive consumes a Live or Private topic.
func (b *Bus) subscribeLive(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	s.Slots = max(s.Slots, 1)
	ctx, end := context.WithCancel(ctx)
	out := make(chan *bus.Delivery)
	l := &live{bus: b, s: s, out: out, end: ctx.Done(), kept: newBacklog(out, ctx.Done())}
	try, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	c, epoch, err := b.link.Get(try)
	var subs []*nats.Subscription
	if err == nil {
		if subs, err = l.subscribe(c); err == nil {
			err = c.FlushWithContext(try) // then NATS knows of it
		}
	}
	stop := context.AfterFunc(b.life, end) //nolint:contextcheck // the bus's own life
	if err == nil && !b.life.Go(func() {
		defer end()
		defer stop()
		l.run(ctx, epoch, c, subs)
	}) {
		err = bus.ErrClosed
	}
	if err != nil {
		end()
		drain(subs)
		return nil, fault.New(fault.Unavailable, "NATS did not answer in time: %w", err)
	}
	return l.out, nil
}

// subscribe makes the subscriptions on one connection.
func (l *live) subscribe(c *conn) (subs []*nats.Subscription, err error) {
	group := ""
	if l.s.Mode == bus.Live {
		group = liveGroup
	}
	sub, err := c.QueueSubscribe(l.bus.cfg.Exchange+"."+l.s.Topic, group, l.take)
	if err != nil {
		return nil, err
	}
	subs = append(subs, sub)
	if l.s.Fanout != "" {
		if sub, err = c.Subscribe(l.bus.cfg.Exchange+"."+l.s.Fanout, l.takeOther); err == nil {
			subs = append(subs, sub)
		}
	}
	return subs, err
}

// drain ends subscriptions; what NATS has sent until then still comes.
func drain(subs []*nats.Subscription) {
	for _, s := range subs {
		_ = s.Drain() // it may be lost with the connection
	}
}

// run renews the subscriptions on each new connection until ctx ends.
func (l *live) run(ctx, epoch context.Context, c *conn, subs []*nats.Subscription) {
	l.handing.Go(l.kept.run)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-epoch.Done():
			next, again, err := l.bus.link.Get(ctx)
			if err != nil {
				break
			}
			c, epoch = next, again
			subs, _ = l.subscribe(c) // it fails only if the connection is lost again
		}
	}
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.handing.Wait()
	close(l.out)
	drain(subs)
	if epoch.Err() == nil {
		_ = c.FlushTimeout(leaveTime) // then what NATS had sent has been refused
	}
}

// take takes a message: it hands it out, keeps it for a short time, or refuses it. nats.go calls it with one after
// another.
func (l *live) take(msg *nats.Msg) {
	if l.s.Mode == bus.Private {
		l.takeOther(msg)
		return
	}
	w := &waiting{live: l, msg: msg, m: unmarshal(msg)}
	offered := msg.Header.Get(offerHeader) != "" // by the release before, which takes the message for handled after a second
	hold := min(minHold<<min(max(parseAnswerSubject(msg.Reply)-1, 0), 8), maxHold)
	switch {
	case l.handOut(w, hold, offered):
		if offered {
			w.answer(answerTaken)
		}
	default:
		w.answer(answerBusy)
	}
}

// takeOther takes a message that cannot be refused: of a Private topic, or one that is fanned out. It is dropped if too
// many wait.
func (l *live) takeOther(msg *nats.Msg) {
	w := &waiting{live: l, msg: msg, m: unmarshal(msg)}
	if w.m.Kind == bus.Reply || w.m.Kind == bus.Heartbeat {
		if s := l.bus.link.State(); s.Epoch != nil {
			s.Conn.sends.heard(w.m.Correlation)
		}
	}
	if w.m.Kind != bus.Fanout && parseAnswerSubject(msg.Reply) == 0 {
		w.answer(answerTaken) // the release before waits for it
	}
	d := bus.NewDelivery(w.m, false, nil)
	switch {
	case l.s.Receive != nil:
		l.s.Receive(d)
	case !l.kept.add(d, otherRoom, l.bus.cfg.MaxInFlight):
		l.bus.cfg.Logger.Warn("message dropped, too many wait for a handler", "subject", msg.Subject)
	}
}

// waiting is a message that waits for a slot, or is not settled.
type waiting struct {
	live        *live
	msg         *nats.Msg
	m           *bus.Message
	redelivered bool
}

// handOut hands a message out within hold, and reports whether it tries: then it refuses the message later if no slot
// becomes free. now asks for a slot that is free.
func (l *live) handOut(w *waiting, hold time.Duration, now bool) bool {
	size := len(w.msg.Data)
	l.mu.Lock()
	full := l.waits >= max(l.s.Slots, liveRoom) || l.waits > 0 && l.bytes+size > l.bus.cfg.MaxInFlight
	if l.ended || full || now && (l.waits > 0 || l.taken >= l.s.Slots) {
		l.mu.Unlock()
		return false
	}
	l.waits++
	l.bytes += size
	l.handing.Add(1)
	l.mu.Unlock()
	d := bus.NewDelivery(w.m, w.redelivered, w)
	handed := func(ok bool) {
		l.mu.Lock()
		l.waits--
		l.bytes -= size
		if ok {
			l.taken++
		}
		l.mu.Unlock()
		if !ok {
			w.answer(answerBusy)
		}
		l.handing.Done()
	}
	select {
	case l.out <- d: // a subscriber waits for it
		handed(true)
		return true
	default:
	}
	go func() { // ends when it is handed out or refused
		t := time.NewTimer(hold)
		defer t.Stop()
		select {
		case l.out <- d:
			handed(true)
		case <-t.C:
			handed(false)
		case <-l.end:
			handed(false)
		}
	}()
	return true
}

// Settle is that of [bus.Settler]. A message that is given back is handed out again, or refused if the subscription has
// ended.
func (w *waiting) Settle(ack bool) error {
	w.live.mu.Lock()
	w.live.taken--
	w.live.mu.Unlock()
	switch {
	case ack:
		if parseAnswerSubject(w.msg.Reply) == 0 {
			w.answer(answerTaken)
		}
	default:
		w.redelivered = true
		if !w.live.handOut(w, maxHold, false) {
			w.answer(answerBusy)
		}
	}
	return nil
}

// answer tells the sender what became of a message.
func (w *waiting) answer(text []byte) {
	if w.msg.Reply == "" {
		return
	}
	if s := w.live.bus.link.State(); s.Epoch != nil {
		_ = s.Conn.Publish(w.msg.Reply, text) // else the connection is lost, which the sender sees, or its deadline ends
	}
}
