// Package reqctx carries the caller's identity, the request ids and the trace in
// a [context.Context]. The API service makes a [Request], rpc carries it to every
// other process, and [LogHandler] puts its ids on each log line.
//
//	ctx = reqctx.With(ctx, reqctx.Request{ID: reqctx.NewID(), ProjectID: "p1"})
//	reqctx.From(ctx).ProjectID // "p1", here and in the worker
//
// A Request holds identities and ids only, never a token: it crosses the wire
// and may be logged.
package reqctx

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
)

// Request says on whose behalf work is done. The zero value stands for work that
// a service started itself, without a caller. The JSON form of a Request is its form on every wire.
type Request struct {
	// ID identifies the request in the component that accepted it. The API
	// service makes it: "req-" and a UUID.
	ID string `json:"request_id,omitempty"`
	// GlobalID is the client's id of the request, if the client sent a
	// well-formed one. It is the same in every component that works for the request.
	GlobalID string `json:"global_request_id,omitempty"`
	// UserID and ProjectID are the identity service's ids.
	UserID    string `json:"user_id,omitempty"`
	ProjectID string `json:"project_id,omitempty"`
	// DomainID is the domain that the user acts in, instead of a project.
	DomainID string `json:"domain_id,omitempty"`
	// SystemScope is "all" for a user who acts on the whole installation, instead of
	// a project or a domain.
	SystemScope string `json:"system_scope,omitempty"`
	// Roles are the names of the user's roles in that project, domain or system.
	Roles []string `json:"roles,omitempty"`
	// Traceparent is the W3C trace context of the current span.
	Traceparent string `json:"traceparent,omitempty"`
}

// IsZero reports whether r is empty: it has no identity, no id and no trace.
func (r Request) IsZero() bool {
	return r.ID == "" && r.GlobalID == "" && r.UserID == "" && r.ProjectID == "" && r.DomainID == "" &&
		r.SystemScope == "" && len(r.Roles) == 0 && r.Traceparent == ""
}

// UnmarshalJSON implements [json.Unmarshaler]. It also reads the keys id and global_id, which older programs
// write instead of request_id and global_request_id. After an error r is unchanged.
func (r *Request) UnmarshalJSON(text []byte) error {
	type fields Request // without this method
	var in struct {
		fields
		OldID       string `json:"id"`
		OldGlobalID string `json:"global_id"`
	}
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	in.ID, in.GlobalID = cmp.Or(in.ID, in.OldID), cmp.Or(in.GlobalID, in.OldGlobalID)
	*r = Request(in.fields)
	return nil
}

type key struct{}

// With returns a context that carries r. The caller must not change r.Roles
// afterwards.
func With(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, key{}, r)
}

// From returns the request that ctx carries, or the zero Request.
func From(ctx context.Context) Request {
	r, _ := ctx.Value(key{}).(Request)
	return r
}

// NewID returns a new request id, "req-" and a random UUID, the form that
// OpenStack services use and accept from each other.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return "req-" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ValidID reports whether id has the form that [NewID] makes; the digits of the UUID may also be
// in upper case. A service must not accept an id of another form from a client, because such an id
// could carry any text into logs and headers. The rule is oslo.middleware's.
func ValidID(id string) bool {
	const form = "req-00000000-0000-0000-0000-000000000000"
	if len(id) != len(form) || id[:4] != "req-" {
		return false
	}
	for i := 4; i < len(form); i++ {
		c := id[i]
		switch {
		case form[i] == '-':
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		default:
			return false
		}
	}
	return true
}

// LogHandler returns a handler that adds the ids of the context's request to
// each record: request_id, global_request_id, user_id and project_id. An empty
// id is left out. The handler is safe for concurrent use if the handler next is.
func LogHandler(next slog.Handler) slog.Handler { return &logHandler{next} }

type logHandler struct{ next slog.Handler }

func (h *logHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h *logHandler) Handle(ctx context.Context, rec slog.Record) error {
	r := From(ctx)
	for _, a := range [...][2]string{
		{"request_id", r.ID},
		{"global_request_id", r.GlobalID},
		{"user_id", r.UserID},
		{"project_id", r.ProjectID},
	} {
		if a[1] != "" {
			rec.AddAttrs(slog.String(a[0], a[1]))
		}
	}
	return h.next.Handle(ctx, rec)
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.next.WithAttrs(attrs)}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.next.WithGroup(name)}
}
