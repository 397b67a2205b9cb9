package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Kinds of messages.
const (
	KindCall   = "call"
	KindCast   = "cast"
	KindFanout = "fanout"
	KindCancel = "cancel" // the caller of a call has given up
	KindReply  = "reply"
	KindBeat   = "beat" // the server still works on a call
)

// Keys of a message's metadata. Together with the JSON payload they are the
// wire format, which docs/wire.md describes.
const (
	// MetaRPC has the kind, the method, its version ("1.0" if missing) and
	// whether the message must survive: "cast backup.start 2.1 at-least-once".
	MetaRPC         = "rpc"
	MetaDeadline    = "deadline"       // of a call: RFC 3339 in UTC, with fractions
	MetaReplyTo     = "reply_to"       // of a call: the topic for the reply
	MetaBeat        = "beat"           // of a call: how often the caller wants to hear, such as "15s"
	MetaCorrelation = "correlation_id" // of a reply, a beat, a cancel: the UUID of the call
	MetaError       = "error"          // of a reply that failed: fault.Error as JSON
	MetaContext     = "context"        // reqctx.Request as JSON, without the trace
	MetaTraceparent = "traceparent"    // W3C trace context

	// MetaRedelivered is set by a bus on what it delivers, not sent: somebody
	// had the message in hand before, and has not settled it.
	MetaRedelivered = "redelivered"

	MetaFailures     = "failures"     // how often a handler failed
	MetaRedeliveries = "redeliveries" // how often a server was lost that had it
	MetaReason       = "reason"       // why it is a dead letter
	MetaTopic        = "topic"        // where it was published to
	MetaDiedAt       = "died_at"      // RFC 3339 in UTC
	MetaServer       = "server"       // which server gave it up
)

// KindOf returns what kind of message m is, "" if it says nothing.
func KindOf(m *message.Message) string {
	kind, _, _ := strings.Cut(m.Metadata[MetaRPC], " ")
	return kind
}

// Durable reports whether m must survive a restart of the broker.
func Durable(m *message.Message) bool {
	return strings.HasSuffix(m.Metadata[MetaRPC], durableMark) || m.Metadata[MetaReason] != ""
}

const durableMark = " at-least-once"

// Deadline returns the deadline in a message's metadata. A missing or
// unreadable one is no deadline.
func Deadline(m *message.Message) (time.Time, bool) {
	s := m.Metadata[MetaDeadline]
	if s == "" {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	return t, err == nil
}

// newID returns a message id that no other message has.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// mark is the value of MetaRPC.
func (i Info) mark() string {
	s := i.Kind + " " + i.Interface + "." + i.Method + " " + i.Version.String()
	if i.Delivery == AtLeastOnce {
		s += durableMark
	}
	return s
}

// parseMark reads what mark wrote. Words that it does not know are ignored, so
// that newer clients may send more.
func parseMark(s string) (i Info, err error) {
	kind, rest, _ := strings.Cut(s, " ")
	name, rest, _ := strings.Cut(rest, " ")
	version, rest, _ := strings.Cut(rest, " ")
	i.Kind = kind
	switch kind {
	case KindCall, KindCast, KindFanout, KindCancel:
	default:
		return i, fault.New(fault.Invalid, "the metadata's %q is %q, want a call, cast, fanout or cancel", MetaRPC, s)
	}
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || dot == len(name)-1 {
		return i, fault.New(fault.Invalid, "the metadata's %q is %q, which names no interface and method", MetaRPC, s)
	}
	i.Interface, i.Method = name[:dot], name[dot+1:]
	if i.Version, err = parseVersion(version); err != nil {
		return i, err
	}
	if rest == durableMark[1:] || strings.HasPrefix(rest, durableMark[1:]+" ") {
		i.Delivery = AtLeastOnce
	}
	return i, nil
}

// encodeRequest makes the message of a call, a cast or a fanout.
func encodeRequest(ctx context.Context, info Info, req any) (*message.Message, error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: encode the request: %w", info, err)
	}
	m := message.NewMessageWithContext(ctx, newID(), payload)
	m.Metadata[MetaRPC] = info.mark()
	putRequest(m.Metadata, reqctx.From(ctx))
	return m, nil
}

// wireRequest is reqctx.Request as it travels.
type wireRequest struct {
	ID        string   `json:"request_id,omitempty"`
	GlobalID  string   `json:"global_request_id,omitempty"`
	UserID    string   `json:"user_id,omitempty"`
	ProjectID string   `json:"project_id,omitempty"`
	Roles     []string `json:"roles,omitempty"`
}

func putRequest(md message.Metadata, r reqctx.Request) {
	if r.Traceparent != "" {
		md[MetaTraceparent] = r.Traceparent
	}
	if r.ID != "" || r.GlobalID != "" || r.UserID != "" || r.ProjectID != "" || len(r.Roles) > 0 {
		text, _ := json.Marshal(wireRequest{r.ID, r.GlobalID, r.UserID, r.ProjectID, r.Roles}) // strings always encode
		md[MetaContext] = string(text)
	}
}

// getRequest reads what putRequest wrote.
func getRequest(md message.Metadata) (reqctx.Request, error) {
	var w wireRequest
	if s := md[MetaContext]; s != "" {
		if err := json.Unmarshal([]byte(s), &w); err != nil {
			return reqctx.Request{}, fault.New(fault.Invalid, "the metadata's %q cannot be read: %w", MetaContext, err)
		}
	}
	return reqctx.Request{
		ID: w.ID, GlobalID: w.GlobalID, UserID: w.UserID, ProjectID: w.ProjectID, Roles: w.Roles,
		Traceparent: md[MetaTraceparent],
	}, nil
}

// encodeReply makes the reply to the call with the given id.
func encodeReply(ctx context.Context, id string, resp any, err error) *message.Message {
	var payload []byte
	if err == nil {
		if payload, err = json.Marshal(resp); err != nil {
			err = fault.New(fault.Internal, "encode the response: %w", err)
		}
	}
	m := about(ctx, KindReply, id)
	m.Payload = payload
	if err != nil {
		text, _ := json.Marshal(fault.From(err)) // strings always encode
		m.Metadata[MetaError] = string(text)
	}
	return m
}

// about makes a message of the given kind about the call with the given id.
func about(ctx context.Context, kind, id string) *message.Message {
	m := message.NewMessageWithContext(ctx, newID(), nil)
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
	id       string
	info     Info
	topic    string // from which it was taken
	replyTo  string
	about    string    // of a cancel: the call's id
	deadline time.Time // zero: none
	beat     time.Duration
	from     reqctx.Request
	payload  []byte

	since time.Time          // when the handler was started
	stop  context.CancelFunc // ends the handler's context
	gone  atomic.Bool        // the caller has given up
}

// decodeRequest reads a message. Metadata that are not known are ignored, so
// that newer clients may send more.
func decodeRequest(m *message.Message) (*request, error) {
	info, err := parseMark(m.Metadata[MetaRPC])
	if err != nil {
		return nil, err
	}
	r := &request{
		id: m.UUID, info: info, payload: m.Payload,
		replyTo: m.Metadata[MetaReplyTo], about: m.Metadata[MetaCorrelation],
	}
	if r.from, err = getRequest(m.Metadata); err != nil {
		return nil, err
	}
	if s := m.Metadata[MetaDeadline]; s != "" {
		if r.deadline, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return nil, fault.New(fault.Invalid, "the metadata's %q is %q, not an RFC 3339 time", MetaDeadline, s)
		}
	}
	if s := m.Metadata[MetaBeat]; s != "" {
		if r.beat, err = time.ParseDuration(s); err != nil || r.beat <= 0 {
			return nil, fault.New(fault.Invalid, "the metadata's %q is %q, not a duration such as 15s", MetaBeat, s)
		}
	}
	return r, nil
}
