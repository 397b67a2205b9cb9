package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Kinds of messages.
const (
	KindCall   = "call"
	KindCast   = "cast"
	KindFanout = "fanout"
	KindCancel = "cancel" // the caller of a call has given up
	KindReply  = "reply"
	KindBeat   = "beat" // the server still works on a call, or answers a probe
	// KindProbe asks the instance of a server, on a topic of its own, whether it is there.
	KindProbe = "probe"
)

// Keys of a message's metadata. Together with the JSON payload they are the
// wire format, which docs/wire.md describes.
const (
	// MetaRPC says what the message is: the kind, the method, its version ("1.0"
	// if missing) and options: "at-least-once"; "deadline=" and an RFC 3339 time in
	// UTC; of a call "beat=" and how often the caller wants a heartbeat, and "first=" and how soon after the
	// start of the handler it wants the first one, with the server's instance. For example
	// "cast backup.start 2.1 at-least-once" and
	// "call backup.list 2.0 deadline=2026-11-23T07:38:13.5Z beat=15s first=100ms".
	MetaRPC         = "rpc"
	MetaReplyTo     = "reply_to"       // of a call: the topic for the reply
	MetaCorrelation = "correlation_id" // of a reply, a beat, a cancel: the UUID of the call
	MetaError       = "error"          // of a reply that failed: fault.Error as JSON
	MetaInstance    = "instance"       // of a reply and a beat: the instance of the server that sends it
	MetaContext     = "context"        // reqctx.Request as JSON, without the trace
	MetaTraceparent = "traceparent"    // W3C trace context

	// MetaRedelivered is set by a bus on what it delivers, not sent: somebody
	// had the message in hand before, and has not settled it.
	MetaRedelivered = "redelivered"

	MetaFailures     = "failures"     // how often a handler failed, other than with Unavailable
	MetaWaited       = "waited"       // milliseconds of the pauses after handlers that failed with Unavailable
	MetaRedeliveries = "redeliveries" // how often a server was lost that had it
	MetaReason       = "reason"       // why it is a dead letter
	MetaTopic        = "topic"        // where it was published to
	MetaDiedAt       = "died_at"      // RFC 3339 in UTC
	MetaServer       = "server"       // which server gave it up
	MetaTruncated    = "truncated"    // of a dead letter that the bus could not carry whole: bytes of the whole payload
	MetaRequeues     = "requeues"     // how often its dead letter was sent again
)

// KindOf returns what kind of message m is, "" if it says nothing.
func KindOf(m *message.Message) string {
	kind, _, _ := strings.Cut(m.Metadata[MetaRPC], " ")
	return kind
}

// Durable reports whether m must survive a restart of the broker.
func Durable(m *message.Message) bool {
	return strings.Contains(m.Metadata[MetaRPC], markDurable) || m.Metadata[MetaReason] != ""
}

// Options of MetaRPC.
const (
	markDurable  = " at-least-once"
	markDeadline = " deadline="
	markBeat     = " beat="
	markFirst    = " first="
)

// timing is what the options of MetaRPC say of time. Zero means none.
type timing struct {
	deadline time.Time
	beat     time.Duration // how often the caller wants a heartbeat
	first    time.Duration // how soon after the start of the handler it wants the first one
}

// Deadline returns the deadline in a message's metadata. A missing or
// unreadable one is no deadline.
func Deadline(m *message.Message) (time.Time, bool) {
	_, s, ok := strings.Cut(m.Metadata[MetaRPC], markDeadline)
	if !ok {
		return time.Time{}, false
	}
	s, _, _ = strings.Cut(s, " ")
	t, err := time.Parse(time.RFC3339Nano, s)
	return t, err == nil
}

// newID returns a message id that no other message has.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	var text [2 * len(b)]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

// mark is the value of MetaRPC.
func (i Info) mark(t timing) string {
	b := make([]byte, 0, 128)
	b = append(b, i.Kind...)
	b = append(b, ' ')
	b = append(b, i.Interface...)
	b = append(b, '.')
	b = append(b, i.Method...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(i.Version.Major), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(i.Version.Minor), 10)
	if i.Delivery == AtLeastOnce {
		b = append(b, markDurable...)
	}
	if !t.deadline.IsZero() {
		b = append(b, markDeadline...)
		b = t.deadline.UTC().AppendFormat(b, time.RFC3339Nano)
	}
	if t.beat > 0 {
		b = append(b, markBeat...)
		b = append(b, t.beat.String()...)
	}
	if t.first > 0 {
		b = append(b, markFirst...)
		b = append(b, t.first.String()...)
	}
	return string(b)
}

// parseMark reads what mark wrote. Options that it does not know are ignored, so
// that newer clients may send more.
func parseMark(s string) (i Info, t timing, err error) {
	kind, rest, _ := strings.Cut(s, " ")
	name, rest, _ := strings.Cut(rest, " ")
	version, rest, _ := strings.Cut(rest, " ")
	i.Kind = kind
	switch kind {
	case KindCall, KindCast, KindFanout, KindCancel:
	default:
		return i, t, fault.New(fault.Invalid, "the metadata's %q is %q, want a call, cast, fanout or cancel", MetaRPC, s)
	}
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || dot == len(name)-1 {
		return i, t, fault.New(fault.Invalid, "the metadata's %q is %q, which names no interface and method", MetaRPC, s)
	}
	i.Interface, i.Method = name[:dot], name[dot+1:]
	if i.Version, err = parseVersion(version); err != nil {
		return i, t, err
	}
	for rest != "" {
		var word string
		word, rest, _ = strings.Cut(rest, " ")
		if word == markDurable[1:] {
			i.Delivery = AtLeastOnce
		} else if v, ok := strings.CutPrefix(word, markDeadline[1:]); ok {
			if t.deadline, err = time.Parse(time.RFC3339Nano, v); err != nil {
				return i, t, fault.New(fault.Invalid, "the deadline %q is not an RFC 3339 time", v)
			}
		} else if v, ok := strings.CutPrefix(word, markBeat[1:]); ok {
			if t.beat, err = time.ParseDuration(v); err != nil || t.beat <= 0 {
				return i, t, fault.New(fault.Invalid, "the beat %q is not a duration such as 15s", v)
			}
		} else if v, ok := strings.CutPrefix(word, markFirst[1:]); ok {
			if t.first, err = time.ParseDuration(v); err != nil || t.first <= 0 {
				return i, t, fault.New(fault.Invalid, "the first beat %q is not a duration such as 100ms", v)
			}
		}
	}
	return i, t, nil
}

// encode makes a payload of a *Req or a *Resp. A json.RawMessage is one.
func encode(v any) ([]byte, error) {
	if raw, ok := v.(*json.RawMessage); ok && raw != nil && len(*raw) > 0 {
		return *raw, nil
	}
	return json.Marshal(v)
}

// decode reads a payload into a *Req or a *Resp.
func decode(b []byte, v any) error {
	if raw, ok := v.(*json.RawMessage); ok {
		*raw = b
		return nil
	}
	return json.Unmarshal(b, v)
}

// encodeRequest makes the message of a call, a cast or a fanout.
func encodeRequest(ctx context.Context, info Info, req any, t timing) (*message.Message, error) {
	payload, err := encode(req)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: encode the request: %w", info, err)
	}
	m := newMessage(ctx, newID(), payload)
	m.Metadata[MetaRPC] = info.mark(t)
	putRequest(m.Metadata, reqctx.From(ctx))
	return m, nil
}

// newMessage is message.NewMessageWithContext without the channels for those who
// wait for an acknowledgement, which nobody does here.
func newMessage(ctx context.Context, id string, payload []byte) *message.Message {
	m := &message.Message{UUID: id, Metadata: make(message.Metadata, 4), Payload: payload}
	m.SetContext(ctx)
	return m
}

// wireRequest is reqctx.Request as it travels.
type wireRequest struct {
	ID        string   `json:"request_id,omitempty"`
	GlobalID  string   `json:"global_request_id,omitempty"`
	UserID    string   `json:"user_id,omitempty"`
	ProjectID string   `json:"project_id,omitempty"`
	DomainID  string   `json:"domain_id,omitempty"`
	System    string   `json:"system_scope,omitempty"`
	Roles     []string `json:"roles,omitempty"`
}

func putRequest(md message.Metadata, r reqctx.Request) {
	if r.Traceparent != "" {
		md[MetaTraceparent] = r.Traceparent
	}
	if r.ID != "" || r.GlobalID != "" || r.UserID != "" || r.ProjectID != "" || r.DomainID != "" || r.SystemScope != "" || len(r.Roles) > 0 {
		text, _ := json.Marshal(wireRequest{r.ID, r.GlobalID, r.UserID, r.ProjectID, r.DomainID, r.SystemScope, r.Roles}) // strings always encode
		md[MetaContext] = string(text)
	}
}

// getRequest reads what putRequest wrote, and reports whether that was anything.
func getRequest(md message.Metadata) (r reqctx.Request, ok bool, err error) {
	r.Traceparent = md[MetaTraceparent]
	s := md[MetaContext]
	if s == "" {
		return r, r.Traceparent != "", nil
	}
	var w wireRequest
	if err := json.Unmarshal([]byte(s), &w); err != nil {
		return r, false, fault.New(fault.Invalid, "the metadata's %q cannot be read: %w", MetaContext, err)
	}
	r.ID, r.GlobalID, r.UserID, r.ProjectID = w.ID, w.GlobalID, w.UserID, w.ProjectID
	r.DomainID, r.SystemScope, r.Roles = w.DomainID, w.System, w.Roles
	return r, true, nil
}

// encodeReply makes the reply to the call with the given id.
func encodeReply(ctx context.Context, id string, resp any, err error) *message.Message {
	var payload []byte
	if err == nil {
		if payload, err = encode(resp); err != nil {
			err = fault.New(fault.Internal, "encode the response: %w", err)
		}
	}
	m := about(ctx, KindReply, id)
	m.Payload = payload
	if err != nil {
		e := fault.From(err)
		text, _ := json.Marshal(e) // strings always encode
		if len(text) > maxReason { // a broker carries less metadata than payload
			text, _ = json.Marshal(fault.Error{Code: e.Code, Reason: cutText(e.Reason, names.Max), Msg: cutText(e.Msg, maxReason)})
		}
		m.Metadata[MetaError] = string(text)
	}
	return m
}

// about makes a message of the given kind about the call with the given id.
func about(ctx context.Context, kind, id string) *message.Message {
	m := newMessage(ctx, id, nil)
	m.Metadata[MetaRPC] = kind
	m.Metadata[MetaCorrelation] = id
	return m
}

// decodeReply returns the response's JSON, or the error that the peer sent.
func decodeReply(m *message.Message) ([]byte, error) {
	text := m.Metadata[MetaError]
	if text == "" {
		return m.Payload, nil
	}
	var e fault.Error
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		e = fault.Error{Code: fault.Internal, Msg: "the peer failed, and its error cannot be read: " + err.Error()}
	}
	return nil, fault.Remote(e)
}

// request is a decoded call, cast, fanout or cancel.
type request struct {
	id      string
	info    Info
	topic   string // from which it was taken
	replyTo string
	about   string // of a cancel: the call's id
	from    reqctx.Request
	named   bool // from says anything
	payload []byte
	timing

	since time.Time          // when the handler was started
	stop  context.CancelFunc // ends the handler's context
	gone  atomic.Bool        // the caller has given up
	due   time.Time          // of the next beat; guarded by Server.mu
}

// decodeRequest reads a message. Metadata that are not known are ignored, so
// that newer clients may send more.
func decodeRequest(m *message.Message) (*request, error) {
	r := &request{
		id: m.UUID, payload: m.Payload,
		replyTo: m.Metadata[MetaReplyTo], about: m.Metadata[MetaCorrelation],
	}
	if r.id == "" { // of another program: it is no copy of another one without an id
		r.id = newID()
	}
	var err error
	if r.info, r.timing, err = parseMark(m.Metadata[MetaRPC]); err != nil {
		return nil, err
	}
	if !r.deadline.IsZero() { // from here on by the monotonic clock, which nobody moves
		now := time.Now()
		r.deadline = now.Add(r.deadline.Sub(now))
	}
	if r.from, r.named, err = getRequest(m.Metadata); err != nil {
		return nil, err
	}
	return r, nil
}
