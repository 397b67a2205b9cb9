package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// Answers to the sender of a message of a Live topic. The bus of the subscriber sends answerAcked when the subscriber has acknowledged the
// message. It sends answerRejected when the message got no slot; another subscriber may then handle the message.
const (
	answerAcked    = "+ok"
	answerRejected = "-busy"
)

// confirmation is the event that confirms a message. In addition, NATS always reports at once if the subject has no subscriber.
type confirmation uint8

const (
	// byAnswer: JetStream or the subscriber's bus answers.
	byAnswer confirmation = iota
	// byReply: a reply or a heartbeat of the call comes. The server's bus sends no answerAcked, which saves a message; it may still send
	// answerRejected.
	byReply
	// byBarrier: NATS has processed the message. After the message, the bus sends a second message to itself, the barrier. When
	// the barrier comes back, NATS has processed all earlier messages of the connection. One barrier confirms many messages.
	// byBarrierNow sends the barrier at once.
	byBarrier
	byBarrierNow
)

const (
	// barrierDelay is how long a message waits for other messages that share its barrier.
	barrierDelay = 5 * time.Millisecond
	// expireInterval is how often the bus ends the attempts that took attemptTimeout, and the attempts of Send whose context has
	// ended. When the context of Publish ends, the attempt of that Publish ends at once, see boundedContext.
	expireInterval = time.Second
	// barrierToken is the last token of the subject of a barrier.
	barrierToken = "barrier"
)

// attempts are the attempts of one connection that have no outcome yet. Each attempt has its own subject for the answer.
type attempts struct {
	conn  *nats.Conn
	inbox string // the prefix of the subjects for replies, with a dot at the end

	mu       sync.Mutex
	last     uint64
	pending  map[uint64]*attempt // the key is the token; nil after the connection was lost
	calls    map[string]*attempt // the attempts with byReply, by the id of the message
	written  []*attempt          // the attempts that wait for the next barrier
	barriers [][]*attempt        // the barriers that are not back yet, the oldest first: for each, the attempts that it confirms
	timer    *time.Timer         // sends the next barrier; nil if no attempt waits for it
}

// attempt is one attempt to send a message.
type attempt struct {
	ctx   context.Context //nolint:containedctx // it bounds the attempt
	token uint64
	call  string      // the id of the message with byReply; otherwise empty
	done  func(error) // called once with the outcome
}

func newAttempts(c *nats.Conn) (*attempts, error) {
	s := &attempts{conn: c, inbox: c.NewInbox() + ".", pending: make(map[uint64]*attempt), calls: make(map[string]*attempt)}
	_, err := c.Subscribe(s.inbox+"*", s.receiveAnswer)
	return s, err
}

// start publishes a message. It calls done once with the outcome: nil, errRetry, ErrNoConsumer, ErrTooLarge, Invalid, or Unknown. If ctx
// ends first, the outcome is Unknown.
func (s *attempts) start(ctx context.Context, o *outgoing, done func(error)) {
	a := &attempt{ctx: ctx, done: done}
	s.mu.Lock()
	if s.pending == nil {
		s.mu.Unlock()
		done(errNoConnection)
		return
	}
	s.last++
	a.token = s.last
	s.pending[a.token] = a
	if o.by == byReply {
		a.call = o.m.ID
		s.calls[a.call] = a
	}
	msg := o.msg
	if o.sent > 1 { // nats.go may still read the message of the previous attempt
		msg = &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data}
	}
	if o.m.Kind != bus.Fanout { // a fanout needs no subscriber
		msg.Reply = s.answerSubject(a.token, o)
	}
	s.mu.Unlock()
	if err := s.conn.PublishMsg(msg); err != nil {
		s.endAttempt(a, publishError(msg, s.conn.MaxPayload(), err))
		return
	}
	if o.by != byBarrier && o.by != byBarrierNow {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written = append(s.written, a)
	if o.by == byBarrierNow {
		s.sendBarrierLocked()
	} else if s.timer == nil {
		s.timer = time.AfterFunc(barrierDelay, s.sendBarrier)
	}
}

// answerSubject returns the subject for the answer: "<inbox>.<token>". If the sender does not wait for answerAcked, the subject is
// "<inbox>.<token>-<sent>", where sent is the number of attempts so far; the subscriber's bus then sends only answerRejected.
func (s *attempts) answerSubject(token uint64, o *outgoing) string {
	b := strconv.AppendUint(append(make([]byte, 0, 64), s.inbox...), token, 36)
	if o.by != byAnswer {
		b = strconv.AppendInt(append(b, '-'), int64(o.sent), 10)
	}
	return string(b)
}

// parseAnswerSubject returns the number of attempts that answerSubject wrote into the subject. It returns 0 if the subject has no number,
// which means that the sender waits for answerAcked.
func parseAnswerSubject(subject string) (sent int) {
	_, count, _ := strings.Cut(subject[strings.LastIndexByte(subject, '.')+1:], "-")
	sent, _ = strconv.Atoi(count) // 0 for a subject of another program
	return sent
}

// endAttempt ends an attempt with an outcome, unless it has ended already.
func (s *attempts) endAttempt(a *attempt, err error) {
	s.mu.Lock()
	pending := a != nil && s.pending[a.token] == a
	if pending {
		delete(s.pending, a.token)
		if s.calls[a.call] == a {
			delete(s.calls, a.call)
		}
	}
	s.mu.Unlock()
	if pending {
		a.done(err)
	}
}

// confirmCall ends the attempt of a call whose reply or heartbeat has come.
func (s *attempts) confirmCall(id string) {
	s.mu.Lock()
	a := s.calls[id]
	s.mu.Unlock()
	s.endAttempt(a, nil)
}

// endExpired ends the attempts whose contexts have ended. Their outcome is Unknown.
func (s *attempts) endExpired() {
	var expired []*attempt
	s.mu.Lock()
	for _, a := range s.pending {
		if a.ctx.Err() != nil {
			expired = append(expired, a)
		}
	}
	s.mu.Unlock()
	for _, a := range expired {
		s.endAttempt(a, fault.New(fault.Unknown, "NATS did not answer, the message may have been sent: %w", a.ctx.Err()))
	}
}

// failAll ends all attempts when the connection is lost. Their outcome is Unknown.
func (s *attempts) failAll() {
	s.mu.Lock()
	remaining := s.pending
	s.pending = nil
	s.mu.Unlock()
	for _, a := range remaining {
		a.done(fault.New(fault.Unknown, "the connection to NATS was lost before the message was confirmed"))
	}
}

func (s *attempts) sendBarrier() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = nil
	s.sendBarrierLocked()
}

func (s *attempts) sendBarrierLocked() {
	if len(s.written) == 0 {
		return
	}
	s.barriers = append(s.barriers, s.written)
	s.written = nil
	_ = s.conn.Publish(s.inbox+barrierToken, nil) // after an error the connection is lost, and failAll ends all attempts
}

// receiveAnswer receives an answer or a barrier, and ends the attempts that the answer or barrier confirms. nats.go never calls it
// concurrently, and calls it in the order in which NATS has sent the messages.
func (s *attempts) receiveAnswer(msg *nats.Msg) {
	token, _, _ := strings.Cut(strings.TrimPrefix(msg.Subject, s.inbox), "-")
	if token != barrierToken {
		n, _ := strconv.ParseUint(token, 36, 64) // no attempt has the token 0
		s.mu.Lock()
		a := s.pending[n]
		s.mu.Unlock()
		s.endAttempt(a, readAnswer(msg))
		return
	}
	s.mu.Lock()
	confirmed := s.barriers[0]
	s.barriers = s.barriers[1:]
	s.mu.Unlock()
	for _, a := range confirmed {
		s.endAttempt(a, nil)
	}
}

// errRetry is the error of an attempt that certainly had no effect. Another attempt may succeed.
var (
	errRetry        = errors.New("not accepted")
	errNoConnection = fmt.Errorf("%w: there is no connection to NATS", errRetry)
)

// publishError returns the outcome of a message after an error of nats.go. The parameter limit is the NATS server's size limit, in bytes.
func publishError(msg *nats.Msg, limit int64, err error) error {
	switch {
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrReconnectBufExceeded):
		return errNoConnection
	case errors.Is(err, nats.ErrMaxPayload):
		return bus.TooLarge(msg.Size(), int(limit))
	case errors.Is(err, nats.ErrBadHeaderMsg), errors.Is(err, nats.ErrBadSubject):
		return fault.New(fault.Invalid, "NATS cannot carry the message: %w", err)
	default:
		return fault.New(fault.Unknown, "the message may have been sent: %w", err)
	}
}

// readAnswer returns the outcome that an answer of NATS, JetStream, or the subscriber's bus reports.
func readAnswer(msg *nats.Msg) error {
	if msg.Header.Get("Status") == "503" {
		return bus.ErrNoConsumer
	}
	switch string(msg.Data) {
	case answerAcked:
		return nil
	case answerRejected:
		return fmt.Errorf("%w: the servers have no free slot", errRetry)
	}
	var ack struct {
		Error *struct{ Description string }
	}
	if err := json.Unmarshal(msg.Data, &ack); err != nil {
		return fault.New(fault.Unknown, "another program received the message and answered %.40q", msg.Data)
	}
	if ack.Error != nil { // for example, a stream is full or has no leader at the moment
		return fmt.Errorf("%w: JetStream refuses the message: %s", errRetry, ack.Error.Description)
	}
	return nil
}
