package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

const (
	// consumerName is that of the one consumer of a stream.
	consumerName = "work"
	// ackWait is after how long without a sign of life a message is delivered to
	// somebody else. Whoever has it gives a sign every beatEvery.
	ackWait   = 10 * time.Second
	beatEvery = ackWait / 4
	// Each stream is looked after every probeEvery on average, and doubtful times
	// every probeSoon when JetStream says that it is gone, or when it was just made
	// anew: one that is being deleted may be found, and its consumer answers on as
	// if nothing were.
	probeEvery = 15 * time.Second
	probeSoon  = time.Second
	doubtful   = 5
	// askTime is how long a request for messages stands. Meanwhile JetStream gives
	// a sign of life every signEvery, unless it has lost the request: that of a
	// consumer that is being deleted is.
	askTime   = 10 * time.Second
	signEvery = time.Second
	// dedupWindow is how long JetStream knows a message that is sent again. A message whose outcome is
	// still unknown then is not sent again. Streams that exist keep their own.
	dedupWindow = 2 * time.Minute
	// apiTime bounds one question to JetStream.
	apiTime = 5 * time.Second
	// leaveTime bounds each of the last questions of a subscription that ends.
	leaveTime = time.Second
	// quietTime is for how long nothing must come before it leaves.
	quietTime = 50 * time.Millisecond
)

// queue is a subscription of a Shared topic. It asks JetStream for as many
// messages as it has slots free, so that no message waits here for a handler
// while another server has one.
type queue struct {
	bus                    *Bus
	topic, subject, stream string
	slots                  int
	out                    chan *bus.Delivery

	in    chan *nats.Msg // what was asked for, and refusals
	inbox *nats.Subscription
	asked int             // messages asked for that have not come
	asks  map[string]int  // how many each request that stands asked for
	until time.Time       // when the last of them lapses
	heard time.Time       // when JetStream gave the last sign of life, or was asked after it had nothing to do
	ready []*bus.Delivery // messages that nobody has received yet

	mu   sync.Mutex
	held map[string]int // the acknowledgement subjects of what has come and is not settled, with the bytes of each
	size int            // the sum of these
	wake chan struct{}  // holds a token when something was settled
	err  error          // why nothing is consumed
}

func (b *Bus) stream(topic string) string {
	return strings.NewReplacer(".", "~", "/", "~", `\`, "~").Replace(b.cfg.Exchange + "." + topic)
}

// CreateTopic makes the stream of a Shared topic, see [bus.Bus]. It waits up to Config.ConnectTimeout for a server
// that is away.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	subject, err := b.subject(topic)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	return b.make(ctx, topic, subject)
}

// make makes sure that a Shared topic exists. It goes on trying until ctx ends,
// unless it is refused.
func (b *Bus) make(ctx context.Context, topic, subject string) error {
	for wait := minPause; ; wait = min(2*wait, maxPause) {
		_, _, err := b.connected(ctx)
		if err == nil {
			var try context.Context
			var cancel context.CancelFunc
			try, cancel = context.WithTimeout(ctx, apiTime)
			err = b.declare(try, b.stream(topic), subject)
			cancel()
		}
		if b.life.Err() != nil {
			err = bus.ErrClosed
		}
		if err == nil || errors.Is(err, fault.Precondition) || errors.Is(err, bus.ErrClosed) || errors.Is(err, bus.ErrNotStarted) {
			return err
		}
		backoff.Sleep(ctx, wait)
		if ctx.Err() != nil {
			return fault.New(fault.Unavailable, "make stream %s: %w", b.stream(topic), err)
		}
	}
}

// declare makes the stream and its consumer unless they are there. JetStream
// refuses with Precondition.
func (b *Bus) declare(ctx context.Context, name, subject string) error {
	refused := func(err error) error {
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.Code >= 400 && e.Code < 500 {
			return fault.New(fault.Precondition, "JetStream refuses stream %s: %w", name, err)
		}
		return err
	}
	s, err := b.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = b.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{subject}, Retention: jetstream.WorkQueuePolicy,
			Storage: jetstream.FileStorage, Replicas: b.cfg.Replicas, Duplicates: dedupWindow,
		})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody else was faster
			s, err = b.js.Stream(ctx, name)
		}
	}
	if err != nil {
		return refused(err)
	}
	if got := s.CachedInfo().Config.Subjects; len(got) != 1 || got[0] != subject {
		return fault.New(fault.Precondition, "stream %s is of subjects %q, want %q", name, got, subject)
	}
	if _, err = s.Consumer(ctx, consumerName); errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = s.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable: consumerName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
			MaxDeliver: -1, MaxAckPending: -1, MaxWaiting: 8192,
		})
	}
	return refused(err)
}

// newQueue starts to consume a Shared topic.
func (b *Bus) newQueue(ctx context.Context, s bus.Subscription, subject string) (*queue, error) {
	q := &queue{
		bus: b, topic: s.Topic, subject: subject, stream: b.stream(s.Topic), slots: max(s.Slots, 1),
		out: make(chan *bus.Delivery), held: make(map[string]int), wake: make(chan struct{}, 1),
		asks: make(map[string]int),
	}
	q.in = make(chan *nats.Msg, 2*q.slots+64)
	try, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	if err := b.make(try, s.Topic, subject); err != nil {
		return nil, err
	}
	return q, nil
}

// run consumes until ctx ends, and then waits until what was received is settled.
func (q *queue) run(ctx context.Context) {
	b := q.bus
	b.mu.Lock()
	b.queues[q] = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.queues, q)
		b.mu.Unlock()
	}()
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for ctx.Err() == nil {
		epoch, conn, err := b.connected(ctx)
		if err != nil {
			break
		}
		q.consume(ctx, epoch, conn, beat.C)
	}
	var wg sync.WaitGroup
	for _, m := range q.ready {
		wg.Go(func() { //nolint:contextcheck // it has a time of its own
			if !m.Redelivered && b.conn.IsConnected() && q.putBack(m.Message) {
				_ = m.Ack() // else its time runs out
			} else {
				_ = m.Nack() // as above
			}
		})
	}
	wg.Wait()
	q.ready = nil
	close(q.out)
	q.linger(beat.C)
}

// putBackTime bounds putBack.
const putBackTime = 5 * time.Second

// putBack publishes a message again that this process has not begun, and reports whether the delivery is to
// be acknowledged: given back it would come marked as redelivered, and count as lost with its server. One that is
// marked already is not put back, so that the mark stays.
func (q *queue) putBack(m *bus.Message) bool {
	ctx, cancel := context.WithTimeout(q.bus.life, putBackTime)
	defer cancel()
	err := q.bus.publish(ctx, q.topic, m)
	return err == nil || errors.Is(err, fault.Unknown) && !m.Persistent() // at most once: rather lost than doubled
}

// consume hands messages out until ctx or the connection ends, or the stream is
// gone, which it makes anew.
func (q *queue) consume(ctx, epoch context.Context, conn *nats.Conn, beat <-chan time.Time) {
	var err error
	if q.inbox, err = conn.ChanSubscribe(conn.NewInbox()+".*", q.in); err != nil {
		backoff.Sleep(ctx, minPause)
		return
	}
	defer q.leave(conn) //nolint:contextcheck // it has its own time
	q.asked = 0
	clear(q.asks)
	probe := time.NewTimer(0)
	defer probe.Stop()
	silent := time.NewTimer(2 * signEvery)
	defer silent.Stop()
	hold := time.NewTimer(0) // until it may be asked again, after a refusal
	defer hold.Stop()
	held := true
	doubts := 0 // how often it is still to be looked after soon
	for {
		if !held {
			q.ask(conn)
		}
		var out chan *bus.Delivery
		var m *bus.Delivery
		if len(q.ready) > 0 {
			out, m = q.out, q.ready[0]
		}
		select {
		case out <- m:
			q.ready[0] = nil
			q.ready = q.ready[1:]
		case msg := <-q.in:
			q.heard = time.Now()
			switch q.take(msg) {
			case "gone":
				// Not at once: NATS 2.9 may remove the files of a stream that is made
				// while one of that name is being deleted.
				probe.Reset(probeSoon)
				held, doubts = true, doubtful
			case "refused":
				hold.Reset(maxPause / 4)
				held = true
			}
		case <-hold.C:
			held = false
		case <-silent.C:
			left := 2*signEvery - time.Since(q.heard)
			if left <= 0 && q.asked > 0 {
				probe.Reset(0)
			}
			silent.Reset(max(left, signEvery))
		case <-probe.C:
			if q.sweep(ctx) {
				q.restore(ctx)
				doubts = doubtful
			}
			next := probeEvery/2 + rand.N(probeEvery)
			if doubts > 0 {
				doubts--
				next = probeSoon
			}
			probe.Reset(next)
			held = false
		case <-q.wake:
		case <-beat:
			q.beat(conn)
		case <-epoch.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// restore makes the stream anew, or the consumer.
func (q *queue) restore(ctx context.Context) {
	q.setState(errors.New("the stream or its consumer is gone"))
	try, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	err := q.bus.make(try, q.topic, q.subject)
	if ctx.Err() != nil {
		return
	}
	q.bus.cfg.Logger.Warn("a stream or its consumer was gone, and is made anew", "stream", q.stream, "error", err)
	q.setState(err)
	q.asked = 0
	clear(q.asks)
}

// ask asks for as many messages as there are slots free, and as may have the largest size without there being
// more bytes than Config.MaxInFlight.
func (q *queue) ask(conn *nats.Conn) {
	if time.Now().After(q.until) { // none stands: what has not come was lost
		q.asked = 0
		clear(q.asks)
	}
	most := q.bus.maxMessage()
	q.mu.Lock()
	n := min(q.slots-len(q.held), (q.bus.cfg.MaxInFlight-q.size)/most) - q.asked
	if len(q.held)+q.asked == 0 {
		n = max(n, 1)
	}
	q.mu.Unlock()
	if n <= 0 {
		return
	}
	token := strconv.FormatInt(time.Now().UnixNano(), 36)
	reply := strings.TrimSuffix(q.inbox.Subject, "*") + token
	body, _ := json.Marshal(map[string]any{"batch": n, "expires": askTime, "idle_heartbeat": signEvery}) // always encodes
	if conn.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+q.stream+"."+consumerName, reply, body) != nil {
		return // the connection is lost, which ends the epoch
	}
	if q.asked == 0 {
		q.heard = time.Now()
	}
	q.asked += n
	q.asks[token] += n
	q.until = time.Now().Add(askTime + beatEvery)
}

// take takes what has come: a message, or why none comes, which it returns.
func (q *queue) take(msg *nats.Msg) string {
	status := msg.Header.Get("Status")
	if status == "" {
		md, err := msg.Metadata()
		if err != nil {
			return "" // nobody but JetStream writes here
		}
		q.asked = max(q.asked-1, 0)
		q.mu.Lock()
		q.held[msg.Reply] = len(msg.Data)
		q.size += len(msg.Data)
		q.err = nil
		q.mu.Unlock()
		q.ready = append(q.ready, bus.NewDelivery(unmarshal(msg), md.NumDelivered > 1, &delivery{q, msg.Reply}))
		return ""
	}
	if status == "100" {
		return ""
	}
	token := msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
	left, err := strconv.Atoi(msg.Header.Get("Nats-Pending-Messages"))
	if err != nil {
		left = q.asks[token]
	}
	delete(q.asks, token)
	q.asked = max(q.asked-left, 0)
	text := msg.Header.Get("Description")
	switch {
	case status == "404", status == "408":
		q.setState(nil)
		return ""
	case status == "503", strings.Contains(text, "Deleted"):
		return "gone"
	default:
		q.setState(fmt.Errorf("JetStream answers %s %s", status, text))
		return "refused"
	}
}

// delivery is a message that was handed out.
type delivery struct {
	queue *queue
	reply string
}

// Settle is [bus.Settler].
func (d *delivery) Settle(ack bool) error { return d.queue.settle(d.reply, ack) }

// settle tells JetStream how a delivery ended. It can do so over another
// connection than that of the delivery.
func (q *queue) settle(reply string, ack bool) error {
	q.mu.Lock()
	size, held := q.held[reply]
	delete(q.held, reply)
	q.size -= size
	q.mu.Unlock()
	if !held {
		return fault.New(fault.Precondition, "the message was given back before, when the bus was closed")
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	verb := "+ACK"
	if !ack {
		verb = "-NAK"
	}
	if err := q.bus.conn.Publish(reply, []byte(verb)); err != nil {
		return fault.New(fault.Unavailable, "there is no connection to NATS, the message is delivered again: %w", err)
	}
	return nil
}

// beat tells JetStream that all that is held here is being worked on.
func (q *queue) beat(conn *nats.Conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for reply := range q.held {
		_ = conn.Publish(reply, []byte("+WPI")) // else there is no connection
	}
}

// leave ends the requests for messages, and gives back those that come late.
// First it lets come what is on its way: a server of version 2.9 that finds only
// requests of those who have left when it delivers a message again, such as one
// that it could not deliver to them, puts that message off for ackWait and
// delivers another one twice.
func (q *queue) leave(conn *nats.Conn) {
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	for calm := false; conn.IsConnected() && q.asked > 0 && !calm; {
		select {
		case msg := <-q.in:
			q.take(msg)
			quiet.Reset(quietTime)
		case <-quiet.C:
			calm = true
		}
	}
	_ = q.inbox.Drain() // it may be lost with the connection
	if conn.IsConnected() {
		_ = conn.FlushTimeout(leaveTime) // then all that JetStream sent has come
		ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
		defer cancel()
		q.sweep(ctx)
	}
	for {
		select {
		case msg := <-q.in:
			q.take(msg)
		default:
			return
		}
	}
}

// sweep reports whether the stream or its consumer is gone. The question makes
// JetStream forget the requests of those who have left.
func (q *queue) sweep(ctx context.Context) (gone bool) {
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	_, err := q.bus.js.Consumer(ctx, q.stream, consumerName)
	return errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound)
}

// linger keeps what was received alive until it is settled. When the bus is
// closed it is given back.
func (q *queue) linger(beat <-chan time.Time) {
	for {
		q.mu.Lock()
		n := len(q.held)
		q.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-q.wake:
		case <-beat:
			q.beat(q.bus.conn)
		case <-q.bus.life.Done():
			q.mu.Lock()
			for reply := range q.held {
				_ = q.bus.conn.Publish(reply, []byte("-NAK")) // else its time runs out
			}
			clear(q.held)
			q.size = 0
			q.mu.Unlock()
			if q.bus.conn.IsConnected() {
				_ = q.bus.conn.FlushTimeout(leaveTime) // else its time runs out
			}
			return
		}
	}
}

func (q *queue) state() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

func (q *queue) setState(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
}
