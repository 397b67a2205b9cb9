package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Metadata that this package keeps in the header of a message. docs/wire.md describes the wire format.
const (
	headerError       = "error"       // of a reply that failed: fault.Error as JSON
	headerContext     = "context"     // reqctx.Request as JSON, without the trace
	headerTraceparent = "traceparent" // W3C trace context
)

// maxText is the most bytes of a dead letter's reason, and of the error that is sent to a caller: brokers carry less
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

// encode returns the payload for a *Req or a *Resp. A json.RawMessage is a payload already.
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

// newRequest returns the message of a call, a cast or a fanout.
func newRequest(ctx context.Context, info Info, req any) (*bus.Message, error) {
	payload, err := encode(req)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: encode the request: %w", info, err)
	}
	m := info.message(newID())
	m.Payload = payload
	m.Header = encodeContext(reqctx.From(ctx))
	return m, nil
}

// message returns a message that info describes, without a payload.
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

// encodeContext returns the header of a request.
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
		text, _ := json.Marshal(r) // strings always encode
		header[headerContext] = string(text)
	}
	return header
}

// decodeContext is the inverse of encodeContext. ok reports whether the header has a request context or a trace.
func decodeContext(header map[string]string) (r reqctx.Request, ok bool, err error) {
	if s := header[headerContext]; s != "" {
		if err := json.Unmarshal([]byte(s), &r); err != nil {
			return r, false, fault.New(fault.Invalid, "the metadata's %q cannot be read: %w", headerContext, err)
		}
	}
	r.Traceparent = header[headerTraceparent]
	return r, !r.IsZero(), nil
}

// newReply returns the reply to the call with the given id.
func newReply(id string, resp any, err error) *bus.Message {
	var payload []byte
	if err == nil {
		if payload, err = encode(resp); err != nil {
			err = fault.New(fault.Internal, "encode the response: %w", err)
		}
	}
	m := &bus.Message{ID: id, Kind: bus.Reply, Correlation: id, Payload: payload}
	if err != nil {
		e := fault.From(err)
		text, _ := json.Marshal(e) // strings always encode
		if len(text) > maxText {
			text, _ = json.Marshal(fault.Error{Code: e.Code, Reason: cutText(e.Reason, names.Max), Msg: cutText(e.Msg, maxText)})
		}
		m.Header = map[string]string{headerError: string(text)}
	}
	return m
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

// Parts of a server's reply to a request that came after its deadline.
const (
	reasonExpired = "Expired"
	metaNow       = "now"
)

// newExpired returns the reply to a call that came after its deadline. It has the time of the server's clock.
func newExpired(id string) *bus.Message {
	return newReply(id, nil, &fault.Error{
		Code: fault.Timeout, Reason: reasonExpired, Msg: "the request came after its deadline, and was not run",
		Meta: map[string]string{metaNow: time.Now().UTC().Format(time.RFC3339Nano)},
	})
}

// cutText returns s, or as much of its beginning as fits into size bytes, as valid UTF-8.
func cutText(s string, size int) string {
	if len(s) > size {
		const mark = "..."
		s = s[:size-len(mark)]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		s = s[:max(len(s)-1, 0)] + mark
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
