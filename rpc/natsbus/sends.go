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

// What the bus of a Live topic answers: it has acknowledged a message; or it has not, and another subscriber may.
var (
	answerTaken = []byte("+ok")
	answerBusy  = []byte("-busy")
)

// confirmation is what confirms that a message was sent. In any case NATS says at once if the subject has no subscriber.
type confirmation uint8

const (
	// byAnswer: JetStream or the subscriber's bus answers.
	byAnswer confirmation = iota
	// byReply: a reply or a heartbeat about the call comes, which saves the answer.
	byReply
	// byBarrier: NATS has processed the message. That is known when a later message of this connection to itself is
	// back; one serves many messages. byBarrierNow does not wait for others.
	byBarrier
	byBarrierNow
)

const (
	// lazyBarrier is how long messages wait for a common barrier.
	lazyBarrier = 5 * time.Millisecond
	// sweepEvery is how often attempts are dropped whose time is over.
	sweepEvery = time.Second
)

// sends are the messages on their way over one connection. Each has a subject of its own for answers.
type sends struct {
	conn  *nats.Conn
	inbox string // with a dot at the end

	mu      sync.Mutex
	last    uint64
	pending map[uint64]*attempt
	calls   map[string]uint64 // those confirmed by reply, by the message's id
	passed  []uint64          // published, and no barrier was sent since
	passing []uint64          // published before the barrier that is under way
	timer   *time.Timer       // sends the next barrier; nil if none waits
	lost    bool              // the connection is gone
}

// attempt is one sending of a message. done is called once.
type attempt struct {
	ctx  context.Context //nolint:containedctx // it bounds the attempt
	call string          // the message's id, if it is confirmed by reply
	done func(error)
}

func newSends(c *nats.Conn) (*sends, error) {
	s := &sends{conn: c, inbox: c.NewInbox() + ".", pending: make(map[uint64]*attempt), calls: make(map[string]uint64)}
	_, err := c.Subscribe(s.inbox+"*", s.answered)
	return s, err
}

// start publishes a message. done is called once with the outcome: errAgain, Unknown, ErrNoConsumer, Invalid. The token
// drops the attempt.
func (s *sends) start(ctx context.Context, o *outgoing, done func(error)) (token uint64) {
	call := ""
	if o.by == byReply {
		call = o.m.ID
	}
	s.mu.Lock()
	if s.lost {
		s.mu.Unlock()
		done(errNoConnection)
		return 0
	}
	s.last++
	token = s.last
	s.pending[token] = &attempt{ctx, call, done}
	if call != "" {
		s.calls[call] = token
	}
	s.mu.Unlock()
	if o.m.Kind != bus.Fanout { // which needs no subscriber
		o.msg.Reply = s.answerSubject(token, o)
	}
	if err := s.conn.PublishMsg(o.msg); err != nil {
		s.finish(token, sendError(err))
		return token
	}
	if o.by == byBarrier || o.by == byBarrierNow {
		s.awaitBarrier(token, o.by == byBarrierNow)
	}
	return token
}

// answerSubject returns where an answer goes: "<inbox>.<token>", or "<inbox>.<token>-<sent>" if the sender needs no
// answer from a bus that takes the message. sent is how often the message was sent.
func (s *sends) answerSubject(token uint64, o *outgoing) string {
	b := make([]byte, 0, 64)
	b = append(b, s.inbox...)
	b = strconv.AppendUint(b, token, 36)
	if o.by != byAnswer {
		b = append(b, '-')
		b = strconv.AppendInt(b, int64(o.sent), 10)
	}
	return string(b)
}

// parseAnswerSubject returns the count of a subject that answerSubject has made. Zero: the sender waits for an answer.
func parseAnswerSubject(subject string) (sent int) {
	last := subject[strings.LastIndexByte(subject, '.')+1:]
	_, count, _ := strings.Cut(last, "-")
	sent, _ = strconv.Atoi(count) // another program's is 0
	return sent
}

// finish ends an attempt, if it is still under way.
func (s *sends) finish(token uint64, err error) {
	if a := s.drop(token); a != nil {
		a.done(err)
	}
}

// drop forgets an attempt. Its done is not called then. It returns nil if the attempt has ended.
func (s *sends) drop(token uint64) *attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.pending[token]
	if a == nil {
		return nil
	}
	delete(s.pending, token)
	if a.call != "" && s.calls[a.call] == token {
		delete(s.calls, a.call)
	}
	return a
}

// heard confirms the call that a message is about.
func (s *sends) heard(call string) {
	s.mu.Lock()
	token, ok := s.calls[call]
	s.mu.Unlock()
	if ok {
		s.finish(token, nil)
	}
}

// awaitBarrier has a published message confirmed by the next barrier.
func (s *sends) awaitBarrier(token uint64, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passed = append(s.passed, token)
	switch {
	case s.passing != nil: // the next barrier is sent when this one is back
	case now:
		s.sendBarrierLocked()
	case s.timer == nil:
		s.timer = time.AfterFunc(lazyBarrier, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.timer != nil && s.passing == nil {
				s.sendBarrierLocked()
			}
		})
	}
}

// barrierToken is the last part of the subject of a barrier.
const barrierToken = "barrier"

func (s *sends) sendBarrierLocked() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.passing, s.passed = s.passed, nil
	_ = s.conn.Publish(s.inbox+barrierToken, nil) // else the connection is lost, which ends all attempts
}

// answered takes an answer. nats.go calls it with one after another, in the order in which NATS has sent them.
func (s *sends) answered(msg *nats.Msg) {
	last := strings.TrimPrefix(msg.Subject, s.inbox)
	if last == barrierToken {
		s.mu.Lock()
		confirmed := s.passing
		s.passing = nil
		if len(s.passed) > 0 {
			s.sendBarrierLocked()
		}
		s.mu.Unlock()
		for _, token := range confirmed {
			s.finish(token, nil)
		}
		return
	}
	last, _, _ = strings.Cut(last, "-")
	if token, err := strconv.ParseUint(last, 36, 64); err == nil {
		s.finish(token, readAnswer(msg))
	}
}

// sweep ends the attempts whose time is over.
func (s *sends) sweep() {
	var over []uint64
	s.mu.Lock()
	for token, a := range s.pending {
		if a.ctx.Err() != nil {
			over = append(over, token)
		}
	}
	s.mu.Unlock()
	for _, token := range over {
		s.finish(token, unanswered(context.DeadlineExceeded))
	}
}

// lose ends all attempts when the connection is gone.
func (s *sends) lose() {
	s.mu.Lock()
	left := s.pending
	s.lost, s.pending = true, nil
	clear(s.calls)
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	for _, a := range left {
		a.done(fault.New(fault.Unknown, "the connection to NATS was lost before the message was confirmed"))
	}
}

// errAgain is in the error of an attempt that certainly had no effect, and may have one later.
var (
	errAgain        = errors.New("not taken")
	errNoConnection = fmt.Errorf("%w: there is no connection to NATS", errAgain)
)

func unanswered(err error) error {
	return fault.New(fault.Unknown, "NATS did not answer, the message may have been sent: %w", err)
}

// sendError gives an error of nats.go its meaning.
func sendError(err error) error {
	switch {
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrReconnectBufExceeded):
		return errNoConnection
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadHeaderMsg), errors.Is(err, nats.ErrBadSubject):
		return fault.New(fault.Invalid, "NATS cannot carry the message: %w", err)
	default:
		return unanswered(err)
	}
}

// readAnswer reads what NATS, JetStream or a subscriber's bus answered.
func readAnswer(msg *nats.Msg) error {
	if msg.Header.Get("Status") == "503" {
		return bus.ErrNoConsumer
	}
	switch string(msg.Data) {
	case string(answerTaken):
		return nil
	case string(answerBusy):
		return fmt.Errorf("%w: its servers are busy", errAgain)
	}
	var ack struct {
		Stream string
		Error  *struct{ Description string }
	}
	if err := json.Unmarshal(msg.Data, &ack); err != nil {
		return fault.New(fault.Unknown, "another program took the message and answered %.40q", msg.Data)
	}
	if ack.Error != nil { // the stream is full, or has no leader now
		return fmt.Errorf("%w: JetStream refuses it: %s", errAgain, ack.Error.Description)
	}
	return nil
}
