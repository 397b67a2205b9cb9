package natsbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	// consumerName is the name of the only consumer of a stream.
	consumerName = "work"
	// ackWait is how long JetStream waits for an acknowledgement by the subscriber that has a message. After that, JetStream
	// delivers the message again, to any subscriber. The subscriber sends an in-progress acknowledgement every progressInterval.
	ackWait          = 10 * time.Second
	progressInterval = ackWait / 4
	// requestTimeout is how long JetStream keeps a request for messages open.
	requestTimeout = 10 * time.Second
	// dedupWindow is how long JetStream recognizes duplicates of a message. If the outcome of a message is still unknown after this
	// time, the message is not sent again. Existing streams keep their own dedup window.
	dedupWindow = 2 * time.Minute
	// restoreDelay is the maximum delay between a refused request and the next request; the minimum is half of it.
	restoreDelay = 250 * time.Millisecond
	// apiTimeout bounds one attempt to create a stream.
	apiTimeout = 5 * time.Second
	// republishTimeout is the timeout of republish.
	republishTimeout = 5 * time.Second
)

// Answers of a subscriber to JetStream: acknowledge a message, requeue it, or report that its handler still runs
// (in-progress acknowledgement).
const (
	verbAck      = "+ACK"
	verbNack     = "-NAK"
	verbProgress = "+WPI"
)

// A stream's name cannot have the characters . / and \ of a subject. One tilde replaces a dot. Two tildes and a letter replace each
// other forbidden character, and also a tilde. Dots never become two tildes, because a subject has no two dots in a row.
var (
	escapeStream      = strings.NewReplacer(".", "~", "~", "~~t", "/", "~~s", `\`, "~~b")
	escapeOlderStream = strings.NewReplacer(".", "~", "/", "~", `\`, "~")
)

// streamName returns the name of the stream for a subject. Different subjects have different streams.
func (b *Bus) streamName(subject string) string {
	if name, ok := b.olderStreams.Load(subject); ok {
		return name.(string) //nolint:forcetypeassert // only findOlder stores values
	}
	return escapeStream.Replace(subject)
}

// findOlder looks for a stream that an older release has created for the subject. Older releases named the stream differently if the
// subject has one of the characters ~ / \. If a stream with that name exists and has only this subject, the bus uses it.
func (b *Bus) findOlder(ctx context.Context, js jetstream.JetStream, subject string) error {
	older := escapeOlderStream.Replace(subject)
	if older == escapeStream.Replace(subject) {
		return nil
	}
	s, err := js.Stream(ctx, older)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		b.olderStreams.Delete(subject)
		return nil
	case err != nil:
		return err
	}
	if slices.Equal(s.CachedInfo().Config.Subjects, []string{subject}) {
		b.olderStreams.Store(subject, older)
	}
	return nil
}

// CreateTopic creates the stream of a Shared topic, see [bus.Bus]. It waits at most Config.ConnectTimeout for a server
// that is down.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if err := cmp.Or(b.life.Usable(), bus.CheckTopic(b.subject(topic))); err != nil {
		return fmt.Errorf("create topic: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	return b.createStream(ctx, b.subject(topic))
}

// createStream creates a stream and its consumer, unless they exist. It retries until ctx ends. Errors: Precondition if JetStream
// refuses; Unavailable if ctx has ended; bus.ErrClosed.
func (b *Bus) createStream(ctx context.Context, subject string) error {
	delay := backoff.Backoff{Min: minResend, Max: time.Second}
	for {
		c, _, err := b.link.Get(ctx)
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, apiTimeout)
			err = b.declare(attempt, c.js, subject)
			cancel()
		}
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.Code >= 400 && e.Code < 500 {
			return fault.New(fault.Precondition, "JetStream refuses stream %s: %w", b.streamName(subject), err)
		}
		if err == nil || errors.Is(err, fault.Precondition) {
			return err
		}
		delay.Wait(ctx)
		switch {
		case b.life.Err() != nil:
			return bus.ErrClosed
		case ctx.Err() != nil:
			return fault.New(fault.Unavailable, "create stream %s: %w", b.streamName(subject), err)
		}
	}
}

// declare makes one attempt to create the stream and its consumer, unless they exist.
func (b *Bus) declare(ctx context.Context, js jetstream.JetStream, subject string) error {
	if err := b.findOlder(ctx, js, subject); err != nil {
		return err
	}
	name := b.streamName(subject)
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{subject}, Retention: jetstream.WorkQueuePolicy,
			Storage: jetstream.FileStorage, Replicas: b.cfg.Replicas, Duplicates: dedupWindow,
		})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process has created it
			s, err = js.Stream(ctx, name)
		}
	}
	if err != nil {
		return err
	}
	if got := s.CachedInfo().Config.Subjects; len(got) != 1 || got[0] != subject {
		return fault.New(fault.Precondition, "stream %s has the subjects %q, want %q: delete it or use another exchange", name, got, subject)
	}
	if _, err = s.Consumer(ctx, consumerName); errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = s.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable: consumerName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
			MaxDeliver: -1, MaxAckPending: -1, MaxWaiting: 8192,
		})
	}
	return err
}

// stream is a subscription of a Shared topic. It requests one message from JetStream for each free slot, so that no message waits in
// this process for a handler while another server has a free slot. At most one request is open at a time.
type stream struct {
	bus     *Bus
	subject string
	slots   int
	out     chan *bus.Delivery // has room for all unacknowledged messages
	changed chan struct{}      // has a token when err, refused or unacked may have changed

	mu        sync.Mutex
	conn      *conn          // nil while nothing is requested
	inbox     string         // prefix of the subjects for requested messages, with a dot at the end
	requests  int            // the number of the last request
	requested int            // how many messages of the last request have not come yet
	until     time.Time      // at this time the last request counts as ended, because NATS may have lost it
	unacked   map[string]int // the bytes of each unacknowledged message, by its subject for the acknowledgement
	bytes     int            // the sum of unacked
	stopped   bool           // no further message is delivered to out
	err       error          // the reason why the stream is not consumed; nil if it is consumed
	refused   bool           // JetStream has refused a request, and has accepted none since
}

// open creates the stream, see subscription.
func (q *stream) open(ctx context.Context) error { return q.bus.createStream(ctx, q.subject) }

// consume consumes until ctx ends, see subscription. Then it republishes the messages that the subscriber has not received, and
// waits until the received messages are acknowledged.
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
			returning.Go(func() { q.republish(d) }) //nolint:contextcheck // it has a timeout of its own
		default: // the subscriber has received the message
		}
	}
	returning.Wait()
	close(q.out)
	q.awaitAcks()
}

// consumeOver requests messages over one connection until ctx or the connection ends.
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
			q.requestLocked() // in case NATS has lost the last request
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
	_ = sub.Drain()                  // after an error the connection is lost
	_ = c.FlushTimeout(flushTimeout) // after the flush, this process has all messages that JetStream has sent
	for pending, _, err := sub.Pending(); err == nil && pending > 0; pending, _, err = sub.Pending() {
		backoff.Sleep(epoch, time.Millisecond)
	}
}

// awaitRequest waits until all messages of the last request have come, or the stream has no more messages, for at most flushTimeout.
// Without this wait, the bus would lose a message that JetStream sends while the subscription ends. JetStream would deliver the
// message later, marked as redelivered.
func (q *stream) awaitRequest(epoch context.Context, c *conn) {
	ctx, cancel := context.WithTimeout(epoch, flushTimeout)
	defer cancel()
	for ctx.Err() == nil {
		q.mu.Lock()
		missing := q.requested
		q.mu.Unlock()
		if missing == 0 {
			return
		}
		info, err := c.js.Consumer(ctx, q.bus.streamName(q.subject), consumerName)
		if err != nil || info.CachedInfo().NumPending == 0 {
			return
		}
		backoff.Sleep(ctx, time.Millisecond)
	}
}

// requestLocked requests a message for each free slot, unless a request is open. All messages together stay within
// Config.MaxInFlight, even if each requested message has the maximum size.
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
	_ = q.conn.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+q.bus.streamName(q.subject)+"."+consumerName, q.inbox+strconv.Itoa(q.requests), body) // after an error the connection is lost
}

// receive receives a message, or the end of a request. nats.go never calls it concurrently.
func (q *stream) receive(msg *nats.Msg) {
	q.mu.Lock()
	defer q.mu.Unlock()
	md, err := msg.Metadata()
	switch status := msg.Header.Get("Status"); {
	case status == "" && err == nil:
		q.deliverLocked(msg, md.NumDelivered > 1)
	case msg.Subject != q.inbox+strconv.Itoa(q.requests): // the end of an earlier request, or a message of another program
	case status == "404", status == "408": // requestTimeout is over
		q.requested = 0
		q.acceptedLocked()
		q.requestLocked()
	default:
		q.requested, q.refused, q.err = 0, true, fmt.Errorf("JetStream answers %s %s", status, msg.Header.Get("Description"))
		q.notifyConsume()
	}
}

// deliverLocked delivers a message. It never blocks.
func (q *stream) deliverLocked(msg *nats.Msg, redelivered bool) {
	q.requested = max(q.requested-1, 0)
	q.acceptedLocked()
	q.unacked[msg.Reply] = len(msg.Data)
	q.bytes += len(msg.Data)
	q.requestLocked()
	d := bus.NewDelivery(decodeMessage(msg), redelivered, &stored{q, msg.Reply})
	if q.stopped {
		go q.republish(d) // awaitAcks waits until republish has acknowledged or requeued the message
		return
	}
	select {
	case q.out <- d:
	default: // more messages than slots have come, because NATS answered an earlier request that counted as lost
		go func() { _ = d.Nack() }() // after an error JetStream redelivers the message after ackWait
	}
}

// acceptedLocked records that JetStream has accepted a request.
func (q *stream) acceptedLocked() {
	q.err = nil
	if q.refused {
		q.refused = false
		q.notifyConsume() // restoreStream logs the end of the outage
	}
}

// notifyConsume tells consumeOver or awaitAcks that err, refused or unacked may have changed.
func (q *stream) notifyConsume() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// restoreStream creates the stream and its consumer again if JetStream has refused a request, and sends another request. It logs the
// result. The end of an outage is logged later, when JetStream has accepted a request: at the first message, or after
// requestTimeout.
func (q *stream) restoreStream(ctx context.Context) {
	q.mu.Lock()
	cause, refused := q.err, q.refused
	q.mu.Unlock()
	if !refused {
		q.logAttempt(ctx, nil)
	}
	if cause == nil {
		return
	}
	attempt, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	backoff.Sleep(attempt, backoff.Jitter(restoreDelay))
	err := q.bus.createStream(attempt, q.subject)
	if err != nil {
		cause = fmt.Errorf("%w; %w", cause, err)
	}
	q.logAttempt(ctx, cause)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	q.requestLocked()
}

// logAttempt logs whether JetStream accepts requests. All streams of the bus share one WARN, because an outage of JetStream affects
// all of them.
func (q *stream) logAttempt(ctx context.Context, err error) {
	q.bus.consuming.Note(ctx, q.bus.cfg.Logger, slog.LevelWarn, "consume stream", q, err, "stream", q.bus.streamName(q.subject))
}

// republish publishes a message once more if no subscriber had received it when the subscription ended. JetStream would mark a
// requeued message as redelivered, and the next server would conclude from the mark that this server was lost. If the message already has
// the mark, republish requeues it, so that the mark stays. It also requeues a message that it cannot publish.
func (q *stream) republish(d *bus.Delivery) {
	if !d.Redelivered && q.bus.link.State().Epoch != nil {
		ctx, cancel := context.WithTimeout(q.bus.life, republishTimeout)
		defer cancel()
		err := q.bus.Publish(ctx, strings.TrimPrefix(q.subject, q.bus.subject("")), d.Message)
		if err == nil || bus.OutcomeOf(err) == bus.Unknown && !d.Persistent() { // an at-most-once message may be lost, but must not be handled twice
			_ = d.Ack() // after an error JetStream redelivers the message after ackWait
			return
		}
	}
	_ = d.Nack() // as above
}

// stored is the [bus.Acknowledger] of a delivered message of a stream. The field reply is the subject for the acknowledgement.
type stored struct {
	queue *stream
	reply string
}

// EndDelivery acknowledges or requeues the message, see [bus.Acknowledger]. It uses the current connection, which may be newer than
// the connection of the delivery.
func (s *stored) EndDelivery(ack bool) error {
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

// removeUnacked removes a message from unacked, and requests another message. It reports whether the message was in unacked.
func (q *stream) removeUnacked(reply string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	size, found := q.unacked[reply]
	delete(q.unacked, reply)
	q.bytes -= size
	q.requestLocked()
	if q.stopped {
		q.notifyConsume()
	}
	return found
}

// publishForUnacked sends a verb to JetStream for each unacknowledged message, and returns the number of these messages.
func (q *stream) publishForUnacked(verb string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for reply := range q.unacked {
		_ = q.bus.publishRaw(reply, verb) // without a connection JetStream redelivers the message after ackWait
	}
	return len(q.unacked)
}

// awaitAcks waits until all received messages are acknowledged, and sends in-progress acknowledgements meanwhile. When the bus is
// closed, it requeues the messages and returns.
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

// consumeError returns the reason why the stream is not consumed, or nil.
func (q *stream) consumeError() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
