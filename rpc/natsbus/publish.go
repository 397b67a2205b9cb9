package natsbus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

// What the bus of a Live or Private topic answers.
var (
	answerTaken = []byte("+ok")
	answerBusy  = []byte("-busy")
)

// attemptTime bounds how long a durable message waits for JetStream's answer
// before it is sent again. JetStream sees that it is the same.
const attemptTime = 5 * time.Second

// Publish sends the messages one after another and waits for each one's answer,
// see [bus.Bus]. A message whose context has no deadline is tried for 60 s. One
// that is larger than Config.MaxMessage or than the server takes (1 MiB with its metadata, unless it is
// configured otherwise) or whose topic cannot be a subject is Invalid.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := b.publish(ctx, topic, m); err != nil {
		return fmt.Errorf("publish to %s.%s: %w", b.cfg.Exchange, topic, err)
	}
	return nil
}

// Send is Publish of one message, see [bus.Bus]. At most 1024 are on their
// way.
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, settled func(error)) {
	select {
	case b.sends <- struct{}{}:
	case <-b.life.Done():
		settled(bus.ErrClosed)
		return
	case <-ctx.Done():
		settled(fault.New(fault.CodeOf(ctx.Err()), "not sent, too many are on their way: %w", ctx.Err()))
		return
	}
	if err := b.run(func() {
		err := b.Publish(ctx, topic, m)
		<-b.sends
		settled(err)
	}); err != nil {
		<-b.sends
		settled(err)
	}
}

func (b *Bus) publish(ctx context.Context, topic string, m *bus.Message) error {
	b.mu.Lock()
	err := b.usableLocked()
	b.mu.Unlock()
	if err != nil {
		return err
	}
	subject, err := b.subject(topic)
	if err != nil {
		return err
	}
	msg := marshal(subject, m)
	if err := b.checkSize(m, msg); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancel = context.WithTimeout(ctx, publishTime)
		defer cancel()
	}
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life

	send := b.request
	durable := m.Persistent()
	switch {
	case m.Kind == bus.Fanout:
		send = b.spread
	case durable:
		// Its own for each Publish: a message that is published again on purpose
		// is no duplicate.
		msg.Header["Nats-Msg-Id"] = []string{m.ID + "/" + rand.Text()}
		send = func(ctx context.Context, msg *nats.Msg) error { return b.store(ctx, topic, msg) }
	}
	var unknown error   // of an attempt that may have arrived
	var since time.Time // when that began
	for wait := minPause; ; wait = min(2*wait, maxPause) {
		begin := time.Now()
		err := send(ctx, msg)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fault.Unknown):
			if unknown == nil {
				since = begin
			}
			if unknown = err; !durable || time.Since(since) > dedupWindow-attemptTime {
				return err // sent again it could be a second message
			}
		case errors.Is(err, errAgain):
		case errors.Is(err, bus.ErrNoConsumer) && b.late():
		case unknown != nil:
			return unknown
		default:
			return err
		}
		backoff.Sleep(ctx, wait/2+mrand.N(wait/2))
		switch {
		case ctx.Err() == nil:
		case unknown != nil:
			return unknown
		case b.life.Err() != nil:
			return bus.ErrClosed
		default:
			return fault.New(fault.CodeOf(ctx.Err()), "not sent: %v: %w", err, ctx.Err())
		}
	}
}

// checkSize returns Invalid if the message is larger than it may be, or than the server takes with its
// headers.
func (b *Bus) checkSize(m *bus.Message, msg *nats.Msg) error {
	limit := b.maxMessage()
	if err := bus.CheckMessage(m, limit); err != nil {
		return err
	}
	size := len("NATS/1.0\r\n\r\n") + len(msg.Data) + idHeader
	for k, vs := range msg.Header {
		for _, v := range vs {
			size += len(k) + len(v) + len(": \r\n")
		}
	}
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	if conn != nil && conn.MaxPayload() > 0 && int64(size) > conn.MaxPayload() {
		return bus.TooLarge(size, int(conn.MaxPayload()))
	}
	return nil
}

// idHeader is how many bytes are left for the header by which JetStream knows a message that is sent
// again, and for that of an offer.
const idHeader = 512

// late reports whether the connection was restored just now, so that others may
// still be about to restore theirs.
func (b *Bus) late() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Since(b.back) < grace
}

// errAgain is in the error of an attempt that certainly had no effect, and may
// have one later.
var errAgain = errors.New("not taken")

// request sends msg and waits for the answer. Errors: errAgain, Unknown,
// ErrNoConsumer, Invalid, ErrClosed.
func (b *Bus) request(ctx context.Context, msg *nats.Msg) error {
	ctx, conn, cancel, err := b.attempt(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	answer, err := conn.RequestMsgWithContext(ctx, msg)
	if err != nil {
		return sendError(err)
	}
	return readAnswer(answer.Data)
}

// store is request for a durable message, which may be sent again soon. That
// nobody answers may mean that a cluster is electing a leader of the stream: so
// it asks whether there is one.
func (b *Bus) store(ctx context.Context, topic string, msg *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	err := b.request(ctx, msg)
	if !errors.Is(err, bus.ErrNoConsumer) {
		return err
	}
	if _, serr := b.js.Stream(ctx, b.stream(topic)); !errors.Is(serr, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w: its stream does not answer", errAgain)
	}
	return err
}

// spread sends msg to whoever is there, and waits until NATS has it.
func (b *Bus) spread(ctx context.Context, msg *nats.Msg) error {
	ctx, conn, cancel, err := b.attempt(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if err := conn.PublishMsg(msg); err != nil {
		return sendError(err)
	}
	if err := conn.FlushWithContext(ctx); err != nil {
		return fault.New(fault.Unknown, "the connection to NATS was lost while the message was sent: %w", err)
	}
	return nil
}

// attempt returns the connection, for which it waits, and a context that ends
// with ctx or with the connection.
func (b *Bus) attempt(ctx context.Context) (context.Context, *nats.Conn, context.CancelFunc, error) {
	epoch, conn, err := b.connected(ctx)
	if errors.Is(err, bus.ErrClosed) || errors.Is(err, bus.ErrNotStarted) {
		return nil, nil, nil, err
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: there is no connection to NATS", errAgain)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(epoch, cancel)
	return ctx, conn, func() { stop(); cancel() }, nil
}

// sendError gives an error of nats.go its meaning.
func sendError(err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return bus.ErrNoConsumer
	case errors.Is(err, nats.ErrReconnectBufExceeded):
		return fmt.Errorf("%w: the connection to NATS is lost", errAgain)
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadHeaderMsg), errors.Is(err, nats.ErrBadSubject):
		return fault.New(fault.Invalid, "NATS cannot carry the message: %w", err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return bus.ErrClosed
	default:
		return fault.New(fault.Unknown, "NATS did not answer, the message may have been sent: %w", err)
	}
}

// readAnswer reads what a subscriber's bus answered, or JetStream.
func readAnswer(data []byte) error {
	switch string(data) {
	case string(answerTaken):
		return nil
	case string(answerBusy):
		return fmt.Errorf("%w: its servers have no room for it", errAgain)
	}
	var ack struct {
		Stream string
		Error  *struct{ Description string }
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return fault.New(fault.Unknown, "somebody else took the message and answered %.40q", data)
	}
	if ack.Error != nil { // it is full, or has no leader now
		return fmt.Errorf("%w: JetStream refuses it: %s", errAgain, ack.Error.Description)
	}
	return nil
}
