package natsbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// subscriber that has the message sends a heartbeat every progressInterval.
	ackWait          = 10 * time.Second
	progressInterval = ackWait / 4
	// requestTimeout is how long a request for messages stands.
	requestTimeout = 10 * time.Second
	// dedupWindow is how long JetStream knows a message that is sent again. A message whose outcome is
	// still unknown then is not sent again. Streams that exist keep their own.
	dedupWindow = 2 * time.Minute
	// restoreDelay is the time between a refused request and the next one.
	restoreDelay = 250 * time.Millisecond
	// apiTimeout bounds one attempt to make a stream.
	apiTimeout = 5 * time.Second
	// republishTimeout bounds the publishing of a message that was not delivered.
	republishTimeout = 5 * time.Second
)

// What a subscriber tells JetStream about a message.
const (
	verbAck      = "+ACK"
	verbNack     = "-NAK"
	verbProgress = "+WPI"
)

// streamName returns the name of the stream of a subject.
func streamName(subject string) string {
	return strings.NewReplacer(".", "~", "/", "~", `\`, "~").Replace(subject)
}

// CreateTopic makes the stream of a Shared topic, see [bus.Bus]. It waits up to Config.ConnectTimeout for a server
// that is away.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if err := b.life.Usable(); err != nil {
		return fmt.Errorf("make topic: %w", err)
	}
	if err := bus.CheckTopic(b.subject(topic)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	return b.createStream(ctx, b.subject(topic))
}

// createStream makes sure that a stream and its consumer exist. It retries until ctx ends, unless JetStream refuses.
func (b *Bus) createStream(ctx context.Context, subject string) error {
	wait := backoff.Backoff{Min: minResend, Max: time.Second}
	for {
		c, _, err := b.link.Get(ctx)
		if err == nil {
			try, cancel := context.WithTimeout(ctx, apiTimeout)
			err = b.declare(try, c.js, subject)
			cancel()
		}
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.Code >= 400 && e.Code < 500 {
			return fault.New(fault.Precondition, "JetStream refuses stream %s: %w", streamName(subject), err)
		}
		if err == nil || errors.Is(err, fault.Precondition) {
			return err
		}
		wait.Wait(ctx)
		switch {
		case b.life.Err() != nil:
			return bus.ErrClosed
		case ctx.Err() != nil:
			return fault.New(fault.Unavailable, "make stream %s: %w", streamName(subject), err)
		}
	}
}

// declare makes the stream and its consumer unless they exist.
func (b *Bus) declare(ctx context.Context, js jetstream.JetStream, subject string) error {
	name := streamName(subject)
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
		return err
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
	return err
}

// stream is a subscription of a Shared topic. It requests as many messages from JetStream as it has slots free, so that no
// message waits here for a handler while another server has a slot. One request stands at a time.
type stream struct {
	bus     *Bus
	subject string
	slots   int
	out     chan *bus.Delivery // has room for all that is held
	changed chan struct{}      // holds a token when consume has to look at err or held

	mu        sync.Mutex
	conn      *conn          // nil while nothing is requested
	inbox     string         // for messages and the end of a request, with a dot at the end
	requests  int            // the number of the last request
	requested int            // messages of it that have not come
	until     time.Time      // when it has ended, if NATS has lost it
	unacked   map[string]int // messages that are not acknowledged: their bytes, by the subject for the acknowledgement
	bytes     int            // the sum of these
	stopped   bool           // no more is delivered
	err       error          // why nothing is consumed
	refused   bool           // JetStream refused a request, and has not accepted one since
}

// open makes the stream, see subscription.
func (q *stream) open(ctx context.Context) error { return q.bus.createStream(ctx, q.subject) }

// consume consumes until ctx ends, and then waits until what was received is acknowledged, see subscription.
func (q *stream) consume(ctx context.Context) {
	q.bus.streams.Store(q, true) // for Check
	defer q.bus.streams.Delete(q)
	defer q.bus.consuming.Forget(q)
	for ctx.Err() == nil {
		if c, epoch, err := q.bus.link.Get(ctx); err == nil {
			q.consumeOver(ctx, epoch, c)
		}
	}
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	var returning sync.WaitGroup
	for len(q.out) > 0 {
		select {
		case d := <-q.out:
			returning.Go(func() { q.republish(d) }) //nolint:contextcheck // it has a time of its own
		default: // the subscriber has received it
		}
	}
	returning.Wait()
	close(q.out)
	q.awaitAcks()
}

// consumeOver requests messages over a connection until ctx or the connection ends.
func (q *stream) consumeOver(ctx, epoch context.Context, c *conn) {
	inbox := c.NewInbox() + "."
	sub, err := c.Subscribe(inbox+"*", q.receive)
	if err != nil {
		backoff.Sleep(ctx, minResend)
		return
	}
	q.mu.Lock()
	q.conn, q.inbox, q.requested = c, inbox, 0
	q.requestLocked()
	q.mu.Unlock()
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	for epoch.Err() == nil && ctx.Err() == nil {
		select {
		case <-progress.C:
			q.publishForUnacked(verbProgress)
			q.mu.Lock()
			q.requestLocked() // if NATS has lost a request
			q.mu.Unlock()
		case <-q.changed:
			q.restoreStream(ctx)
		case <-epoch.Done():
		case <-ctx.Done():
		}
	}
	q.mu.Lock()
	q.conn = nil
	q.mu.Unlock()
	q.awaitRequest(epoch, c)
	_ = sub.Drain()                  // on an error the connection is lost
	_ = c.FlushTimeout(flushTimeout) // then all that JetStream had sent has come
	for pending, _, err := sub.Pending(); err == nil && pending > 0; pending, _, err = sub.Pending() {
		backoff.Sleep(epoch, time.Millisecond)
	}
}

// awaitRequest waits until the last request is filled, if there are messages to fill it: JetStream drops a message that it
// delivers while the subscriber leaves, and delivers it later as a redelivered one.
func (q *stream) awaitRequest(epoch context.Context, c *conn) {
	ctx, cancel := context.WithTimeout(epoch, flushTimeout)
	defer cancel()
	for ctx.Err() == nil {
		q.mu.Lock()
		left := q.requested
		q.mu.Unlock()
		if left == 0 {
			return
		}
		info, err := c.js.Consumer(ctx, streamName(q.subject), consumerName)
		if err != nil || info.CachedInfo().NumPending == 0 {
			return
		}
		backoff.Sleep(ctx, time.Millisecond)
	}
}

// requestLocked requests a message for each free slot, but not more than may have the largest size without there being
// more bytes than Config.MaxInFlight.
func (q *stream) requestLocked() {
	if q.conn == nil || q.requested > 0 && time.Now().Before(q.until) {
		return
	}
	n := min(q.slots-len(q.unacked), (q.bus.cfg.MaxInFlight-q.bytes)/q.bus.maxMessage())
	if len(q.unacked) == 0 {
		n = max(n, 1)
	}
	if n <= 0 {
		return
	}
	q.requests++
	q.requested, q.until = n, time.Now().Add(requestTimeout+progressInterval)
	body := fmt.Appendf(nil, `{"batch":%d,"expires":%d}`, n, requestTimeout)
	_ = q.conn.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+streamName(q.subject)+"."+consumerName, q.inbox+strconv.Itoa(q.requests), body) // on an error the connection is lost
}

// receive receives a message, or the end of a request. nats.go calls it with one after another.
func (q *stream) receive(msg *nats.Msg) {
	q.mu.Lock()
	defer q.mu.Unlock()
	md, err := msg.Metadata()
	switch status := msg.Header.Get("Status"); {
	case status == "" && err == nil:
		q.deliverLocked(msg, md.NumDelivered > 1)
	case msg.Subject != q.inbox+strconv.Itoa(q.requests): // of an earlier request, or of another program
	case status == "404", status == "408": // its time is over
		q.requested = 0
		q.acceptedLocked()
		q.requestLocked()
	default:
		q.requested, q.refused, q.err = 0, true, fmt.Errorf("JetStream answers %s %s", status, msg.Header.Get("Description"))
		q.notifyConsume()
	}
}

func (q *stream) deliverLocked(msg *nats.Msg, redelivered bool) {
	q.requested = max(q.requested-1, 0)
	q.acceptedLocked()
	q.unacked[msg.Reply] = len(msg.Data)
	q.bytes += len(msg.Data)
	q.requestLocked()
	d := bus.NewDelivery(unmarshal(msg), redelivered, &stored{q, msg.Reply})
	if q.stopped {
		go q.republish(d) // awaitAcks waits for it
		return
	}
	select {
	case q.out <- d:
	default: // more than was requested, because an earlier request was not lost
		go func() { _ = d.Nack() }() // on an error its time runs out
	}
}

// acceptedLocked notes that JetStream accepted a request.
func (q *stream) acceptedLocked() {
	q.err = nil
	if q.refused {
		q.refused = false
		q.notifyConsume() // consumeOver logs it
	}
}

// notifyConsume has consume look at err and held.
func (q *stream) notifyConsume() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// restoreStream recreates the stream or its consumer if JetStream has refused a request, and sends another request.
func (q *stream) restoreStream(ctx context.Context) {
	q.mu.Lock()
	why, refused := q.err, q.refused
	q.mu.Unlock()
	if !refused {
		q.logAttempt(ctx, nil)
	}
	if why == nil {
		return
	}
	try, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	backoff.Sleep(try, backoff.Jitter(restoreDelay))
	err := q.bus.createStream(try, q.subject)
	if err != nil {
		why = fmt.Errorf("%w; %w", why, err)
	}
	q.logAttempt(ctx, why)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	q.requestLocked()
}

// logAttempt logs whether JetStream accepts the requests. An outage of JetStream fails all streams, so one line is for all of them.
func (q *stream) logAttempt(ctx context.Context, err error) {
	q.bus.consuming.Note(ctx, q.bus.cfg.Logger, slog.LevelWarn, "consume stream", q, err, "stream", streamName(q.subject))
}

// republish publishes a message again that was not delivered when the subscription ended: after a Nack it would be marked
// as redelivered, and count as lost with its server. One that is marked already keeps the mark.
func (q *stream) republish(d *bus.Delivery) {
	if !d.Redelivered && q.bus.link.State().Epoch != nil {
		ctx, cancel := context.WithTimeout(q.bus.life, republishTimeout)
		defer cancel()
		err := q.bus.Publish(ctx, strings.TrimPrefix(q.subject, q.bus.subject("")), d.Message)
		if err == nil || bus.OutcomeOf(err) == bus.Unknown && !d.Persistent() { // at most once: rather lost than doubled
			_ = d.Ack() // on an error its time runs out
			return
		}
	}
	_ = d.Nack() // as above
}

// stored is a message of a stream that was delivered.
type stored struct {
	queue *stream
	reply string
}

// Settle is that of [bus.Settler]. It can use another connection than that of the delivery.
func (s *stored) Settle(ack bool) error {
	verb := verbAck
	if !ack {
		verb = verbNack
	}
	err := s.queue.bus.publishRaw(s.reply, verb)
	if !s.queue.removeUnacked(s.reply) {
		return fault.New(fault.Precondition, "the message was requeued before, when the bus was closed")
	}
	if err != nil {
		return fault.New(fault.Unavailable, "there is no connection to NATS, the message will be redelivered: %w", err)
	}
	return nil
}

// removeUnacked notes the end of a delivery, and requests another message. It reports whether the message was held.
func (q *stream) removeUnacked(reply string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	size, held := q.unacked[reply]
	delete(q.unacked, reply)
	q.bytes -= size
	q.requestLocked()
	if q.stopped {
		q.notifyConsume()
	}
	return held
}

// publishForUnacked sends a verb to JetStream for all messages that are held, and returns how many these are.
func (q *stream) publishForUnacked(verb string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for reply := range q.unacked {
		_ = q.bus.publishRaw(reply, verb) // without a connection the time of the message runs out
	}
	return len(q.unacked)
}

// awaitAcks sends heartbeats for the messages that were received until they are acknowledged. When the bus is closed they
// are requeued.
func (q *stream) awaitAcks() {
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	for q.publishForUnacked(verbProgress) > 0 {
		select {
		case <-q.changed:
		case <-progress.C:
		case <-q.bus.life.Done():
			q.publishForUnacked(verbNack)
			q.mu.Lock()
			clear(q.unacked)
			q.mu.Unlock()
		}
	}
}

// consumeError returns why nothing is consumed, or nil.
func (q *stream) consumeError() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
