package membus

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/armature-go/armature/rpc/bus"
)

// queue has the messages and the subscribers of a topic. If a subscriber is receiving, a message goes to it at once.
// Otherwise the goroutine offerLoop offers the first message of the list to all subscribers, and the first subscriber
// that receives gets the message. So no message waits at a busy subscriber while another one is idle.
type queue struct {
	changed chan struct{} // has a token when the list or the subscribers have changed

	mu   sync.Mutex
	list []*bus.Delivery
	subs []subscriber
	next int // index of the subscriber that got the last message
}

type subscriber struct {
	ended   <-chan struct{} // closed when the subscription has ended
	out     chan *bus.Delivery
	receive func(*bus.Delivery) // used instead of out if it is not nil
}

func (q *queue) subscribe(ctx context.Context, receive func(*bus.Delivery)) <-chan *bus.Delivery {
	s := subscriber{ended: ctx.Done(), out: make(chan *bus.Delivery), receive: receive}
	q.mu.Lock()
	q.subs = append(q.subs, s)
	q.mu.Unlock()
	q.notify()
	context.AfterFunc(ctx, q.notify)
	return s.out
}

func (q *queue) subscribed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.subs) > 0
}

// add delivers a new message, or puts it at the end of the list.
func (q *queue) add(m *bus.Message) { q.put(q.deliver(m), false) }

// requeuer is the bus.Acknowledger of a message: Nack requeues the message.
type requeuer struct {
	q *queue
	m *bus.Message
}

// EndDelivery implements [bus.Acknowledger].
func (r *requeuer) EndDelivery(ack bool) error {
	if !ack {
		r.q.put(r.q.deliver(r.m), true)
	}
	return nil
}

// deliver returns a delivery of the message. The delivery is never marked as redelivered, because a subscriber cannot die
// without the bus.
func (q *queue) deliver(m *bus.Message) *bus.Delivery {
	return bus.NewDelivery(m, false, &requeuer{q, m})
}

// put delivers d, or adds it to the list: at the front if its message was requeued, otherwise at the end.
func (q *queue) put(d *bus.Delivery, front bool) {
	q.mu.Lock()
	if len(q.list) == 0 {
		if len(q.subs) == 1 && q.subs[0].receive != nil {
			receive := q.subs[0].receive
			q.mu.Unlock()
			receive(d)
			return
		}
		if q.deliverLocked(d) {
			q.mu.Unlock()
			return
		}
	}
	if front {
		q.list = slices.Insert(q.list, 0, d)
	} else {
		q.list = append(q.list, d)
	}
	q.mu.Unlock()
	q.notify()
}

// deliverLocked passes d to a subscriber that is receiving; the subscribers are tried in turn. It returns false if all of
// them are busy.
func (q *queue) deliverLocked(d *bus.Delivery) bool {
	for range q.subs {
		q.next = (q.next + 1) % len(q.subs)
		s := q.subs[q.next]
		select {
		case <-s.ended:
			continue
		default:
		}
		select {
		case s.out <- d:
			return true
		default:
		}
	}
	return false
}

// notify tells offerLoop that the list or the subscribers have changed.
func (q *queue) notify() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// offerLoop delivers until life ends. If the parameter ends is true, the loop also ends when the queue has lost its last
// subscriber and the function remove has removed the queue.
func (q *queue) offerLoop(life context.Context, ends bool, remove func() bool) {
	defer q.endSubscriptions()
	for {
		d, subs := q.first()
		if ends && len(subs) == 0 && remove() {
			return
		}
		if d == nil {
			subs = nil
		}
		took, ok := q.offer(life, d, subs)
		if !ok {
			return
		}
		if took {
			q.remove(d)
		}
	}
}

// offer offers d to all subscribers until one of them takes it, or the list or the subscribers change. The result took
// reports whether a subscriber has taken d. The result ok is false if life has ended first.
func (q *queue) offer(life context.Context, d *bus.Delivery, subs []subscriber) (took, ok bool) {
	if len(subs) > 0 && subs[0].receive != nil {
		subs[0].receive(d)
		return true, true
	}
	if len(subs) > 1 {
		return q.offerEach(life, d, subs)
	}
	var out chan *bus.Delivery // nil without a subscriber
	if len(subs) == 1 {
		out = subs[0].out
	}
	select {
	case out <- d:
		return true, true
	case <-q.changed:
		return false, true
	case <-life.Done():
		return false, false
	}
}

// offerEach does what offer does, for several subscribers, by reflection.
func (q *queue) offerEach(life context.Context, d *bus.Delivery, subs []subscriber) (took, ok bool) {
	cases := make([]reflect.SelectCase, 0, len(subs)+2)
	cases = append(cases,
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(life.Done())},
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(q.changed)})
	for _, s := range subs {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(s.out), Send: reflect.ValueOf(d)})
	}
	i, _, _ := reflect.Select(cases)
	return i > 1, i > 0
}

// first returns the first delivery whose deadline has not passed, and the subscribers. It ends the subscriptions whose
// contexts have ended, and drops expired deliveries.
func (q *queue) first() (*bus.Delivery, []subscriber) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.subs = slices.DeleteFunc(slices.Clone(q.subs), func(s subscriber) bool {
		select {
		case <-s.ended:
			close(s.out)
			return true
		default:
			return false
		}
	})
	for len(q.list) > 0 {
		d := q.list[0]
		if d.Deadline.IsZero() || time.Now().Before(d.Deadline) {
			return d, q.subs
		}
		q.list[0] = nil
		q.list = q.list[1:]
	}
	return nil, q.subs
}

func (q *queue) remove(d *bus.Delivery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.list, d); i == 0 {
		q.list[0] = nil
		q.list = q.list[1:]
	} else { // meanwhile a requeued message was put in front of d
		q.list = slices.Delete(q.list, i, i+1)
	}
}

func (q *queue) endSubscriptions() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.subs {
		close(s.out)
	}
	q.subs = nil
}
