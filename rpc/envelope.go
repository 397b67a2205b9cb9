package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// newID returns a message id that no other message has.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// encodeRequest makes the message of a call, a cast or a fanout.
func encodeRequest(ctx context.Context, info Info, req any) (*message.Message, error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: encode the request: %w", info, err)
	}
	m := message.NewMessageWithContext(ctx, newID(), payload)
	m.Metadata[MetaKind] = info.Kind
	m.Metadata[MetaInterface] = info.Interface
	m.Metadata[MetaMethod] = info.Method
	m.Metadata[MetaVersion] = info.Version.String()
	m.Metadata[MetaDelivery] = info.Delivery.String()
	putRequest(m.Metadata, reqctx.From(ctx))
	return m, nil
}

func putRequest(md message.Metadata, r reqctx.Request) {
	for _, kv := range [...][2]string{
		{MetaRequestID, r.ID},
		{MetaGlobalID, r.GlobalID},
		{MetaUserID, r.UserID},
		{MetaProjectID, r.ProjectID},
		{MetaTraceparent, r.Traceparent},
	} {
		if kv[1] != "" {
			md[kv[0]] = kv[1]
		}
	}
	if len(r.Roles) > 0 {
		roles, _ := json.Marshal(r.Roles) // strings always encode
		md[MetaRoles] = string(roles)
	}
}

// getRequest reads what putRequest wrote. Unreadable roles are no roles: less
// is allowed, never more.
func getRequest(md message.Metadata) reqctx.Request {
	r := reqctx.Request{
		ID:          md[MetaRequestID],
		GlobalID:    md[MetaGlobalID],
		UserID:      md[MetaUserID],
		ProjectID:   md[MetaProjectID],
		Traceparent: md[MetaTraceparent],
	}
	if s := md[MetaRoles]; s != "" && json.Unmarshal([]byte(s), &r.Roles) != nil {
		r.Roles = nil
	}
	return r
}

// encodeReply makes the reply to the call with the given id.
func encodeReply(ctx context.Context, id string, resp any, err error) *message.Message {
	var payload []byte
	if err == nil {
		if payload, err = json.Marshal(resp); err != nil {
			err = fault.New(fault.Internal, "encode the response: %w", err)
		}
	}
	m := message.NewMessageWithContext(ctx, newID(), payload)
	m.Metadata[MetaKind] = KindReply
	m.Metadata[MetaCorrelation] = id
	if err != nil {
		text, _ := json.Marshal(fault.From(err)) // strings always encode
		m.Metadata[MetaError] = string(text)
	}
	return m
}

// decodeReply returns the response's JSON, or the error that the peer sent.
func decodeReply(m *message.Message) ([]byte, error) {
	text := m.Metadata.Get(MetaError)
	if text == "" {
		return m.Payload, nil
	}
	var e fault.Error
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		e = fault.Error{Code: fault.Internal, Msg: "the peer failed, and its error cannot be read: " + err.Error()}
	}
	return nil, fault.Remote(e)
}

// request is a decoded call, cast or fanout.
type request struct {
	id       string
	info     Info
	replyTo  string
	deadline time.Time // zero: none
	from     reqctx.Request
	payload  []byte
}

// decodeRequest reads a message's metadata. What is not known is ignored, so
// that newer clients may send more.
func decodeRequest(m *message.Message) (*request, error) {
	r := &request{
		id: m.UUID,
		info: Info{
			Kind:      m.Metadata.Get(MetaKind),
			Interface: m.Metadata.Get(MetaInterface),
			Method:    m.Metadata.Get(MetaMethod),
		},
		replyTo: m.Metadata.Get(MetaReplyTo),
		from:    getRequest(m.Metadata),
		payload: m.Payload,
	}
	if m.Metadata.Get(MetaDelivery) == AtLeastOnce.String() {
		r.info.Delivery = AtLeastOnce
	}
	if s := m.Metadata.Get(MetaDeadline); s != "" {
		t, ok := Deadline(m)
		if !ok {
			return nil, fault.New(fault.Invalid, "deadline %q is not an RFC 3339 time", s)
		}
		r.deadline = t
	}
	var err error
	if r.info.Version, err = parseVersion(m.Metadata.Get(MetaVersion)); err != nil {
		return nil, err
	}
	if r.info.Interface == "" || r.info.Method == "" {
		return nil, fault.New(fault.Invalid, "the metadata names no interface or no method")
	}
	switch r.info.Kind {
	case KindCall, KindCast, KindFanout:
	default:
		return nil, fault.New(fault.Invalid, "kind %q is not one a server takes", r.info.Kind)
	}
	return r, nil
}
