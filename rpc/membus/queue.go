package membus

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/rpc"
)

// queue is a list of messages and those who take them. One goroutine, run,
// offers the first message to all of them at once: whoever receives first gets
// it, so that no message lies with a subscriber that has no time for it.
type queue struct {
	wake chan struct{} // holds a token when the list or the subscribers changed

	mu   sync.Mutex
	list []*message.Message
	subs []subscriber
}

type subscriber struct {
	ended <-chan struct{}
	out   chan *message.Message
}

func (q *queue) subscribe(ctx context.Context) <-chan *message.Message {
	s := subscriber{ended: ctx.Done(), out: make(chan *message.Message)}
	q.mu.Lock()
	q.subs = append(q.subs, s)
	q.mu.Unlock()
	q.signal()
	context.AfterFunc(ctx, q.signal)
	return s.out
}

// put adds a message, at the front if it was there before.
func (q *queue) put(m *message.Message, front bool) {
	q.mu.Lock()
	if front {
		q.list = slices.Insert(q.list, 0, m)
	} else {
		q.list = append(q.list, m)
	}
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run delivers until life ends, or the last subscriber of a queue that is to
// go with it.
func (q *queue) run(life context.Context, wg *sync.WaitGroup, goes bool) {
	defer q.drop()
	for {
		m, subs := q.next()
		if goes && len(subs) == 0 {
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
			wg.Go(func() { q.settle(life, m) })
		}
	}
}

// next returns the first message that has not expired and those who may have
// it. It ends the subscriptions whose context has ended.
func (q *queue) next() (*message.Message, []subscriber) {
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
		m := q.list[0]
		if t, ok := rpc.Deadline(m); !ok || time.Now().Before(t) {
			return m, q.subs
		}
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

// settle puts a message that is given back in front again.
func (q *queue) settle(life context.Context, m *message.Message) {
	select {
	case <-m.Acked():
	case <-m.Nacked():
		q.put(m.Copy(), true)
	case <-life.Done():
	}
}

// drop ends all subscriptions.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.subs {
		close(s.out)
	}
	q.subs = nil
}
