package membus

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/rpc"
)

// queue is a list of messages and those who take them. A message goes at once to
// a subscriber that waits. Else one goroutine, run, offers the first of the list
// to all of them: whoever receives first gets it, so that no message lies with a
// subscriber that has no time for it.
type queue struct {
	wake chan struct{} // holds a token when the list or the subscribers changed

	mu   sync.Mutex
	list []*message.Message
	subs []subscriber
	next int // whose turn it is
}

type subscriber struct {
	ended <-chan struct{}
	out   chan *message.Message
	f     func(*message.Message) // in place of out, if it is not nil
	done  chan struct{}          // closed with out
}

func (s subscriber) close() {
	close(s.out)
	close(s.done)
}

func (q *queue) subscribe(ctx context.Context, f func(*message.Message)) subscriber {
	s := subscriber{ended: ctx.Done(), out: make(chan *message.Message), f: f, done: make(chan struct{})}
	q.mu.Lock()
	q.subs = append(q.subs, s)
	q.mu.Unlock()
	q.signal()
	context.AfterFunc(ctx, q.signal)
	return s
}

func (q *queue) subscribed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.subs) > 0
}

// add puts a copy of a message at the end.
func (q *queue) add(m *message.Message) { q.put(q.wrap(m), false) }

// delivery is a message that can be given back.
type delivery struct {
	message.Message
	q       *queue
	settled atomic.Bool
}

// Settle is [rpc.Settler].
func (d *delivery) Settle(ack bool) error {
	if d.settled.CompareAndSwap(false, true) && !ack {
		d.q.put(d.q.wrap(&d.Message), true)
	}
	return nil
}

// wrap returns a message of its own with the same content.
func (q *queue) wrap(m *message.Message) *message.Message {
	d := &delivery{q: q}
	d.UUID, d.Metadata, d.Payload = m.UUID, m.Metadata, m.Payload
	d.SetContext(rpc.WithSettler(context.Background(), d))
	return &d.Message
}

// put adds a message, at the front if it was there before.
func (q *queue) put(m *message.Message, front bool) {
	q.mu.Lock()
	if len(q.list) == 0 {
		if len(q.subs) == 1 && q.subs[0].f != nil {
			f := q.subs[0].f
			q.mu.Unlock()
			f(m)
			return
		}
		if q.hand(m) {
			q.mu.Unlock()
			return
		}
	}
	if front {
		q.list = slices.Insert(q.list, 0, m)
	} else {
		q.list = append(q.list, m)
	}
	q.mu.Unlock()
	q.signal()
}

// hand gives m to a subscriber that waits for one.
func (q *queue) hand(m *message.Message) bool {
	for range q.subs {
		q.next = (q.next + 1) % len(q.subs)
		s := q.subs[q.next]
		select {
		case <-s.ended:
			continue
		default:
		}
		select {
		case s.out <- m:
			return true
		default:
		}
	}
	return false
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run delivers until life ends, or until forget agrees that a queue that goes
// with its last subscriber goes.
func (q *queue) run(life context.Context, goes bool, forget func() bool) {
	defer q.drop()
	for {
		m, subs := q.first()
		if goes && len(subs) == 0 && forget() {
			return
		}
		took := false
		switch {
		case m == nil || len(subs) == 0:
			select {
			case <-q.wake:
			case <-life.Done():
				return
			}
		case subs[0].f != nil:
			subs[0].f(m)
			took = true
		case len(subs) == 1: // the usual case, without reflection
			select {
			case subs[0].out <- m:
				took = true
			case <-q.wake:
			case <-life.Done():
				return
			}
		default:
			cases := make([]reflect.SelectCase, 0, len(subs)+2)
			cases = append(cases,
				reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(life.Done())},
				reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(q.wake)})
			for _, s := range subs {
				cases = append(cases, reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(s.out), Send: reflect.ValueOf(m)})
			}
			i, _, _ := reflect.Select(cases)
			if i == 0 {
				return
			}
			took = i > 1
		}
		if took {
			q.remove(m)
		}
	}
}

// first returns the first message that has not expired and those who may have
// it. It ends the subscriptions whose context has ended.
func (q *queue) first() (*message.Message, []subscriber) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.subs = slices.DeleteFunc(slices.Clone(q.subs), func(s subscriber) bool {
		select {
		case <-s.ended:
			s.close()
			return true
		default:
			return false
		}
	})
	for len(q.list) > 0 {
		m := q.list[0]
		if t, ok := rpc.Deadline(m); !ok || time.Now().Before(t) {
			return m, q.subs
		}
		q.list[0] = nil
		q.list = q.list[1:]
	}
	return nil, q.subs
}

func (q *queue) remove(m *message.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.list, m); i == 0 {
		q.list[0] = nil
		q.list = q.list[1:]
	} else { // another one was put in front meanwhile
		q.list = slices.Delete(q.list, i, i+1)
	}
}

// drop ends all subscriptions.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.subs {
		s.close()
	}
	q.subs = nil
}
