package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
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
	// ackWait is after how long without a heartbeat JetStream delivers a message to another subscriber. The
	// subscriber that has the message sends a heartbeat every progressEvery.
	ackWait       = 10 * time.Second
	progressEvery = ackWait / 4
	// checkEvery is how often a stream and its consumer are checked. If they are gone they are made again.
	checkEvery = 15 * time.Second
	// requestTime is how long a request for messages stands. Meanwhile JetStream sends a heartbeat every
	// heartbeatEvery, unless it has lost the request.
	requestTime    = 10 * time.Second
	heartbeatEvery = time.Second
	// dedupWindow is how long JetStream knows a message that is sent again. A message whose outcome is
	// still unknown then is not sent again. Streams that exist keep their own.
	dedupWindow = 2 * time.Minute
	// apiTime bounds one question to JetStream.
	apiTime = 5 * time.Second
	// putBackTime bounds the publishing of a message that goes back.
	putBackTime = 5 * time.Second
	// leaveTime bounds the last question of a subscription that ends.
	leaveTime = time.Second
)

// shared is a subscription of a Shared topic. It requests as many messages from JetStream as it has slots free, so that no
// message waits here for a handler while another server has a slot.
type shared struct {
	bus           *Bus
	topic, stream string
	slots         int
	backlog       *backlog
	settled       chan struct{} // holds a token when something was settled

	mu        sync.Mutex
	conn      *conn          // nil while nothing is requested
	inbox     string         // for messages and the ends of requests, with a dot at the end
	requested int            // messages requested that have not come
	requests  map[string]int // how many each request asked for
	until     time.Time      // when the last of them ends
	heard     time.Time      // when JetStream was last heard of
	held      map[string]int // what has come and is not settled: by the subject for its acknowledgement, its bytes
	bytes     int            // the sum of these
	over      bool           // nothing is handed out any more
	err       error          // why nothing is consumed
}

func (b *Bus) stream(topic string) string {
	return strings.NewReplacer(".", "~", "/", "~", `\`, "~").Replace(b.cfg.Exchange + "." + topic)
}

// CreateTopic makes the stream of a Shared topic, see [bus.Bus]. It waits up to Config.ConnectTimeout for a server
// that is away.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if err := b.life.Usable(); err != nil {
		return fmt.Errorf("make topic: %w", err)
	}
	if _, err := b.subject(topic); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	return b.makeStream(ctx, topic)
}

// makeStream makes sure that a Shared topic exists. It goes on trying until ctx ends,
// unless JetStream refuses.
func (b *Bus) makeStream(ctx context.Context, topic string) error {
	wait := backoff.Backoff{Min: minResend, Max: time.Second}
	for {
		c, _, err := b.link.Get(ctx)
		if err == nil {
			var try context.Context
			var cancel context.CancelFunc
			try, cancel = context.WithTimeout(ctx, apiTime)
			err = b.declare(try, c.js, topic)
			cancel()
		}
		if err == nil || errors.Is(err, fault.Precondition) {
			return err
		}
		wait.Wait(ctx)
		switch {
		case b.life.Err() != nil:
			return bus.ErrClosed
		case ctx.Err() != nil:
			return fault.New(fault.Unavailable, "make stream %s: %w", b.stream(topic), err)
		}
	}
}

// declare makes the stream and its consumer unless they are there. JetStream
// refuses with Precondition.
func (b *Bus) declare(ctx context.Context, js jetstream.JetStream, topic string) error {
	name, subject := b.stream(topic), b.cfg.Exchange+"."+topic
	refused := func(err error) error {
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.Code >= 400 && e.Code < 500 {
			return fault.New(fault.Precondition, "JetStream refuses stream %s: %w", name, err)
		}
		return err
	}
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{subject}, Retention: jetstream.WorkQueuePolicy,
			Storage: jetstream.FileStorage, Replicas: b.cfg.Replicas, Duplicates: dedupWindow,
		})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
			s, err = js.Stream(ctx, name)
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

// subscribeShared consumes a Shared topic.
func (b *Bus) subscribeShared(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	ctx, end := context.WithCancel(ctx)
	q := &shared{
		bus: b, topic: s.Topic, stream: b.stream(s.Topic), slots: max(s.Slots, 1), backlog: newBacklog(make(chan *bus.Delivery), ctx.Done()),
		settled: make(chan struct{}, 1), held: make(map[string]int), requests: make(map[string]int),
	}
	stop := context.AfterFunc(b.life, end) //nolint:contextcheck // the bus's own life
	try, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	err := b.makeStream(try, s.Topic)
	if err == nil && !b.life.Go(func() {
		defer end()
		defer stop()
		q.run(ctx)
	}) {
		err = bus.ErrClosed
	}
	if err != nil {
		end()
		return nil, err
	}
	return q.backlog.out, nil
}

// run consumes until ctx ends, and then waits until what was received is settled.
func (q *shared) run(ctx context.Context) {
	q.bus.watch(q, true)
	defer q.bus.watch(q, false)
	var handing sync.WaitGroup
	handing.Go(q.backlog.run)
	for ctx.Err() == nil {
		if c, epoch, err := q.bus.link.Get(ctx); err == nil {
			q.consume(ctx, epoch, c)
		}
	}
	handing.Wait()
	q.mu.Lock()
	q.over = true
	q.mu.Unlock()
	for _, d := range q.backlog.rest() {
		handing.Go(func() { q.putBack(d) }) //nolint:contextcheck // it has a time of its own
	}
	handing.Wait()
	close(q.backlog.out)
	q.linger()
}

// consume requests messages until ctx or the connection ends.
func (q *shared) consume(ctx, epoch context.Context, c *conn) {
	inbox := c.NewInbox() + "."
	sub, err := c.Subscribe(inbox+"*", q.take)
	if err != nil {
		backoff.Sleep(ctx, minResend)
		return
	}
	q.mu.Lock()
	q.conn, q.inbox = c, inbox
	q.forgetLocked()
	q.requestLocked()
	q.mu.Unlock()
	progress, check := time.NewTicker(progressEvery), time.NewTimer(backoff.Jitter(2*checkEvery))
	defer progress.Stop()
	defer check.Stop()
	for epoch.Err() == nil && ctx.Err() == nil {
		select {
		case <-progress.C:
			if q.reportProgress(c) {
				check.Reset(0)
			}
		case <-check.C:
			q.restore(ctx, c)
			check.Reset(backoff.Jitter(2 * checkEvery))
		case <-epoch.Done():
		case <-ctx.Done():
		}
	}
	q.mu.Lock()
	q.conn = nil
	q.mu.Unlock()
	drain([]*nats.Subscription{sub})
	_ = c.FlushTimeout(leaveTime) // then all that JetStream had sent has come, and goes back
	for pending, _, err := sub.Pending(); err == nil && pending > 0; pending, _, err = sub.Pending() {
		backoff.Sleep(epoch, time.Millisecond)
	}
}

// restore makes the stream or its consumer again if they are gone, and requests messages again.
func (q *shared) restore(ctx context.Context, c *conn) {
	try, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	_, err := c.js.Consumer(try, q.stream, consumerName)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		q.setState(errors.New("the stream or its consumer is gone"))
		err = q.bus.makeStream(try, q.topic)
		if ctx.Err() != nil {
			return
		}
		q.bus.cfg.Logger.Warn("stream or consumer was gone, made again", "stream", q.stream, "error", err)
		q.setState(err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.requestLocked()
}

// forgetLocked drops the requests that stand.
func (q *shared) forgetLocked() {
	q.requested, q.until, q.heard = 0, time.Time{}, time.Now()
	clear(q.requests)
}

// requestLocked asks for as many messages as there are slots free, and as may have the largest size without there being
// more bytes than Config.MaxInFlight. Several slots that become free share a request.
func (q *shared) requestLocked() {
	if q.conn == nil {
		return
	}
	if time.Now().After(q.until) { // no request stands: what has not come was lost
		q.forgetLocked()
	}
	n := min(q.slots-len(q.held), (q.bus.cfg.MaxInFlight-q.bytes)/q.bus.maxMessage()) - q.requested
	if len(q.held)+q.requested == 0 {
		n = max(n, 1)
	}
	if n <= 0 || q.requested > 0 && n < q.slots/4 {
		return
	}
	token := strconv.FormatInt(time.Now().UnixNano(), 36)
	body, _ := json.Marshal(map[string]any{"batch": n, "expires": requestTime, "idle_heartbeat": heartbeatEvery}) // always encodes
	if q.conn.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+q.stream+"."+consumerName, q.inbox+token, body) != nil {
		return // the connection is lost, which ends the epoch
	}
	q.requested += n
	q.requests[token] += n
	q.until = time.Now().Add(requestTime + progressEvery)
}

// take takes what has come: a message, a heartbeat, or the end of a request. nats.go calls it with one after another.
func (q *shared) take(msg *nats.Msg) {
	status := msg.Header.Get("Status")
	q.mu.Lock()
	defer q.mu.Unlock()
	q.heard = time.Now()
	switch status {
	case "100": // a heartbeat
	case "":
		if md, err := msg.Metadata(); err == nil { // else another program has sent it
			q.requested = max(q.requested-1, 0)
			q.err = nil
			q.held[msg.Reply] = len(msg.Data)
			q.bytes += len(msg.Data)
			q.requestLocked()
			d := bus.NewDelivery(unmarshal(msg), md.NumDelivered > 1, &stored{q, msg.Reply})
			if q.over {
				go q.putBack(d) // linger waits for it
			} else {
				q.backlog.add(d, math.MaxInt, math.MaxInt)
			}
		}
	case "404", "408": // its time is over
		q.endRequestLocked(msg)
		q.err = nil
		q.requestLocked()
	default:
		q.endRequestLocked(msg)
		q.err = fmt.Errorf("JetStream answers %s %s", status, msg.Header.Get("Description")) // run looks after it
	}
}

// endRequestLocked notes that the rest of a request will not come.
func (q *shared) endRequestLocked(msg *nats.Msg) {
	token := strings.TrimPrefix(msg.Subject, q.inbox)
	left, err := strconv.Atoi(msg.Header.Get("Nats-Pending-Messages"))
	if err != nil {
		left = q.requests[token]
	}
	delete(q.requests, token)
	q.requested = max(q.requested-left, 0)
}

// putBack publishes a message again that was not received when the subscription ended: given back it would come marked
// as redelivered, and count as lost with its server. One that is marked already keeps the mark.
func (q *shared) putBack(d *bus.Delivery) {
	if !d.Redelivered && q.bus.link.State().Epoch != nil {
		ctx, cancel := context.WithTimeout(q.bus.life, putBackTime)
		defer cancel()
		err := q.bus.Publish(ctx, q.topic, d.Message)
		if err == nil || bus.OutcomeOf(err) == bus.Unknown && !d.Persistent() { // at most once: rather lost than doubled
			_ = d.Ack() // else its time runs out
			return
		}
	}
	_ = d.Nack() // as above
}

// stored is a message of a stream that was delivered.
type stored struct {
	queue *shared
	reply string
}

// Settle is that of [bus.Settler]. It can use another connection than that of the delivery.
func (s *stored) Settle(ack bool) error {
	verb := "+ACK"
	if !ack {
		verb = "-NAK"
	}
	err := errNoConnection
	if st := s.queue.bus.link.State(); st.Epoch != nil {
		err = st.Conn.Publish(s.reply, []byte(verb))
	}
	if !s.queue.release(s.reply) {
		return fault.New(fault.Precondition, "the message was given back before, when the bus was closed")
	}
	if err != nil {
		return fault.New(fault.Unavailable, "there is no connection to NATS, the message is delivered again: %w", err)
	}
	return nil
}

// release notes that a message is settled, and requests another one. It reports whether the message was held.
func (q *shared) release(reply string) bool {
	q.mu.Lock()
	size, held := q.held[reply]
	delete(q.held, reply)
	q.bytes -= size
	q.requestLocked()
	q.mu.Unlock()
	select {
	case q.settled <- struct{}{}:
	default:
	}
	return held
}

// reportProgress tells JetStream that all that is held here is being worked on. It reports whether the subscription is
// to be checked: JetStream has refused a request, or has lost it, because it sends no heartbeats.
func (q *shared) reportProgress(c *conn) (doubt bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for reply := range q.held {
		_ = c.Publish(reply, []byte("+WPI")) // else there is no connection
	}
	if q.requested > 0 && time.Since(q.heard) > progressEvery {
		q.forgetLocked()
		return true
	}
	return q.err != nil
}

// linger keeps what was received alive until it is settled. When the bus is
// closed it is given back.
func (q *shared) linger() {
	progress := time.NewTicker(progressEvery)
	defer progress.Stop()
	for {
		q.mu.Lock()
		n := len(q.held)
		q.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-q.settled:
		case <-progress.C:
			if s := q.bus.link.State(); s.Epoch != nil {
				q.reportProgress(s.Conn)
			}
		case <-q.bus.life.Done():
			q.mu.Lock()
			defer q.mu.Unlock()
			if s := q.bus.link.State(); s.Epoch != nil {
				for reply := range q.held {
					_ = s.Conn.Publish(reply, []byte("-NAK")) // else its time runs out
				}
				_ = s.Conn.FlushTimeout(leaveTime) // as above
			}
			clear(q.held)
			q.bytes = 0
			return
		}
	}
}

func (q *shared) state() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

func (q *shared) setState(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
}
