package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Names in bus.Message.Header that this package uses. docs/wire.md describes the wire format.
const (
	headerError       = "error"       // in the reply to a failed call: fault.Error as JSON
	headerContext     = "context"     // reqctx.Request as JSON, without the trace
	headerTraceparent = "traceparent" // W3C trace context
)

// maxText is the maximum size of a dead letter's reason, and of the error in a reply as JSON, in bytes. Brokers accept less
// metadata than payload.
const maxText = 8 << 10

// newID returns a unique message id: 128 random bits.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	var text [2 * len(b)]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

// encodePayload returns the payload for a *Req or a *Resp. A json.RawMessage is a payload already.
func encodePayload(v any) ([]byte, error) {
	if raw, ok := v.(*json.RawMessage); ok && raw != nil && len(*raw) > 0 {
		return *raw, nil
	}
	return json.Marshal(v)
}

// decodePayload reads a payload into a *Req or a *Resp.
func decodePayload(b []byte, v any) error {
	if raw, ok := v.(*json.RawMessage); ok {
		*raw = b
		return nil
	}
	return json.Unmarshal(b, v)
}

// newRequest returns the message of a call, a cast or a fanout.
func newRequest(ctx context.Context, info Info, req any) (*bus.Message, error) {
	payload, err := encodePayload(req)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: encode the request: %w", info, err)
	}
	m := info.message(newID())
	m.Payload = payload
	m.Header = encodeContext(reqctx.From(ctx))
	return m, nil
}

// message returns a message with the envelope that i describes and the given id. It has no payload.
func (i Info) message(id string) *bus.Message {
	return &bus.Message{
		ID: id, Kind: bus.Kind(i.Kind), Interface: i.Interface, Method: i.Method, Version: i.Version, Durable: i.Delivery == AtLeastOnce,
	}
}

// infoOf is the inverse of Info.message.
func infoOf(m *bus.Message) Info {
	i := Info{Kind: string(m.Kind), Interface: m.Interface, Method: m.Method, Version: m.Version}
	if m.Durable {
		i.Delivery = AtLeastOnce
	}
	return i
}

// encodeContext returns the header of a request with the request context r.
func encodeContext(r reqctx.Request) map[string]string {
	if r.IsZero() {
		return nil
	}
	header := make(map[string]string, 2)
	if r.Traceparent != "" {
		header[headerTraceparent] = r.Traceparent
		r.Traceparent = ""
	}
	if !r.IsZero() {
		text, _ := json.Marshal(r) // cannot fail: the value has only strings
		header[headerContext] = string(text)
	}
	return header
}

// decodeContext is the inverse of encodeContext. The result ok reports whether the header has a request context or a trace.
func decodeContext(header map[string]string) (r reqctx.Request, ok bool, err error) {
	if s := header[headerContext]; s != "" {
		if err := json.Unmarshal([]byte(s), &r); err != nil {
			return r, false, fault.New(fault.Invalid, "header %q: decode: %w", headerContext, err)
		}
	}
	r.Traceparent = header[headerTraceparent]
	return r, !r.IsZero(), nil
}

// newReply returns the reply to the call with the given id.
func newReply(id string, resp any, err error) *bus.Message {
	var payload []byte
	if err == nil {
		payload, err = encodeResponse(resp)
	}
	m := &bus.Message{ID: id, Kind: bus.Reply, Correlation: id, Payload: payload}
	if err != nil {
		m.Header = map[string]string{headerError: encodeError(fault.From(err))}
	}
	return m
}

// encodeResponse encodes the response of a handler. A panic, such as in a MarshalJSON, becomes an Internal error.
func encodeResponse(resp any) (payload []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "encode the response: panic: %v", p)
		}
	}()
	if payload, err = encodePayload(resp); err != nil {
		err = fault.New(fault.Internal, "encode the response: %w", err)
	}
	return payload, err
}

// encodeError returns an error as JSON of at most maxText bytes. A longer error loses its Meta and the ends of its texts.
func encodeError(e *fault.Error) string {
	encoded, _ := json.Marshal(e) // cannot fail: the value has only strings and booleans
	for size := maxText / 2; len(encoded) > maxText; size /= 2 {
		short := *e // the fields that protect, such as Private, stay
		short.Reason, short.Meta = text.Cut(e.Reason, names.Max), nil
		short.Msg, short.User = text.Cut(e.Msg, size), text.Cut(e.User, size)
		encoded, _ = json.Marshal(short)
	}
	return string(encoded)
}

// newHeartbeat returns a heartbeat about the call or the probe with the given id.
func newHeartbeat(id string) *bus.Message {
	return &bus.Message{ID: id, Kind: bus.Heartbeat, Correlation: id}
}

// decodeReply returns the response's JSON, or the error that the server sent.
func decodeReply(m *bus.Message) ([]byte, error) {
	text := m.Header[headerError]
	if text == "" {
		return m.Payload, nil
	}
	var e fault.Error
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		e = fault.Error{Code: fault.Internal, Msg: "the peer failed, and its error cannot be read: " + err.Error()}
	}
	return nil, fault.Remote(e)
}

// Parts of a server's reply to a request that arrived after the caller's deadline.
const (
	reasonExpired = "Expired"
	metaNow       = "now"
)

// newExpired returns the reply to a call that arrived after the caller's deadline. The reply has the time of the server's
// clock.
func newExpired(id string) *bus.Message {
	return newReply(id, nil, &fault.Error{
		Code: fault.Timeout, Reason: reasonExpired, Msg: "the request arrived after the caller's deadline and was not executed",
		Meta: map[string]string{metaNow: time.Now().UTC().Format(time.RFC3339Nano)},
	})
}
