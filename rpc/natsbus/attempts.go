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

// Answers of the bus of a subscriber of a Live topic: it has acknowledged a message; or it has not, and another
// subscriber may.
const (
	answerAcked    = "+ok"
	answerRejected = "-busy"
)

// confirmation is what confirms that a message was sent. NATS says at once if the subject has no subscriber.
type confirmation uint8

const (
	// byAnswer: JetStream or the subscriber's bus answers.
	byAnswer confirmation = iota
	// byReply: a reply or a heartbeat of the call comes, which saves the answer.
	byReply
	// byBarrier: NATS has processed the message. That is known when a later message of this connection to itself, the
	// barrier, is back. One serves many messages. byBarrierNow does not wait for others.
	byBarrier
	byBarrierNow
)

const (
	// barrierDelay is how long messages wait for a common barrier.
	barrierDelay = 5 * time.Millisecond
	// expireInterval is how often attempts of Send are ended whose contexts have ended.
	expireInterval = time.Second
	// barrierToken is the last part of the subject of a barrier.
	barrierToken = "barrier"
)

// attempts are the messages on their way over one connection. Each has a subject of its own for the answer.
type attempts struct {
	conn  *nats.Conn
	inbox string // with a dot at the end

	mu       sync.Mutex
	last     uint64
	pending  map[uint64]*attempt // by token; nil when the connection is lost
	calls    map[string]*attempt // those confirmed by reply, by the id of the message
	written  []*attempt          // those that wait for the next barrier
	barriers [][]*attempt        // those that each barrier on its way confirms, the oldest first
	timer    *time.Timer         // sends the next barrier; nil if none waits
}

// attempt is one sending of a message.
type attempt struct {
	ctx   context.Context //nolint:containedctx // it bounds the attempt
	token uint64
	call  string      // the id of the message, if it is confirmed by reply
	done  func(error) // called once
}

func newAttempts(c *nats.Conn) (*attempts, error) {
	s := &attempts{conn: c, inbox: c.NewInbox() + ".", pending: make(map[uint64]*attempt), calls: make(map[string]*attempt)}
	_, err := c.Subscribe(s.inbox+"*", s.receiveAnswer)
	return s, err
}

// start publishes a message. done is called once with the outcome: errRetry, ErrNoConsumer, TooLarge, Invalid, or
// Unknown, also when ctx ends.
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
	if o.sent > 1 { // the attempt before may have ended while nats.go still reads its message
		msg = &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data}
	}
	if o.m.Kind != bus.Fanout { // which needs no subscriber
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

// answerSubject returns where an answer goes: "<inbox>.<token>", or "<inbox>.<token>-<sent>" if the sender waits for a
// rejection alone. sent is how often the message was sent.
func (s *attempts) answerSubject(token uint64, o *outgoing) string {
	b := strconv.AppendUint(append(make([]byte, 0, 64), s.inbox...), token, 36)
	if o.by != byAnswer {
		b = strconv.AppendInt(append(b, '-'), int64(o.sent), 10)
	}
	return string(b)
}

// parseAnswerSubject returns the count of a subject of answerSubject. Zero: the sender waits for an answer.
func parseAnswerSubject(subject string) (sent int) {
	_, count, _ := strings.Cut(subject[strings.LastIndexByte(subject, '.')+1:], "-")
	sent, _ = strconv.Atoi(count) // another program's is 0
	return sent
}

// endAttempt ends an attempt, if it has not ended.
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

// confirmCall ends the attempt of a call whose server was heard of.
func (s *attempts) confirmCall(id string) {
	s.mu.Lock()
	a := s.calls[id]
	s.mu.Unlock()
	s.endAttempt(a, nil)
}

// endExpired ends the attempts whose contexts have ended.
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

// failAll ends all attempts when the connection is lost.
func (s *attempts) failAll() {
	s.mu.Lock()
	left := s.pending
	s.pending = nil
	s.mu.Unlock()
	for _, a := range left {
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
	_ = s.conn.Publish(s.inbox+barrierToken, nil) // on an error the connection is lost, which ends all attempts
}

// receiveAnswer ends the attempts that a message to the inbox is about. nats.go calls it with one after another, in the order in
// which NATS has sent them.
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

// errRetry is in the error of an attempt that certainly had no effect, and may have one later.
var (
	errRetry        = errors.New("not accepted")
	errNoConnection = fmt.Errorf("%w: there is no connection to NATS", errRetry)
)

// publishError says what an error of nats.go means for a message.
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

// readAnswer reads the answer of NATS, JetStream or a subscriber's bus.
func readAnswer(msg *nats.Msg) error {
	if msg.Header.Get("Status") == "503" {
		return bus.ErrNoConsumer
	}
	switch string(msg.Data) {
	case answerAcked:
		return nil
	case answerRejected:
		return fmt.Errorf("%w: its servers are busy", errRetry)
	}
	var ack struct {
		Error *struct{ Description string }
	}
	if err := json.Unmarshal(msg.Data, &ack); err != nil {
		return fault.New(fault.Unknown, "another program took the message and answered %.40q", msg.Data)
	}
	if ack.Error != nil { // the stream is full, or has no leader now
		return fmt.Errorf("%w: JetStream refuses it: %s", errRetry, ack.Error.Description)
	}
	return nil
}
