package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// retryAfter is how long a client should wait after a reply with 503; the reply has this time in its header Retry-After.
// An outage of the broker or the database usually ends within seconds.
const retryAfter = time.Second

// statusClientGone is nginx's status for a client that did not wait for the reply. No client reads this status; it is for
// the log.
const statusClientGone = 499

// names are the keys of OpenStack's error bodies, by status. For any other status the key is [Config].FaultName.
var names = map[int]string{
	http.StatusBadRequest:            "badRequest",
	http.StatusUnauthorized:          "unauthorized",
	http.StatusForbidden:             "forbidden",
	http.StatusNotFound:              "itemNotFound",
	http.StatusMethodNotAllowed:      "badMethod",
	http.StatusConflict:              "conflictingRequest",
	http.StatusRequestEntityTooLarge: "overLimit",
	http.StatusUnsupportedMediaType:  "badMediaType",
	http.StatusTooManyRequests:       "tooManyRequests",
	http.StatusNotImplemented:        "notImplemented",
}

// WithStatus returns err with an HTTP status. Use it where the status of err's code is too general, for example for 410.
// The reply has err's text for users, with two exceptions: With status 503 or 504 the reply has a general text, unless
// fault.WithUser has set a text. With status 500 the reply always has a general text.
func WithStatus(status int, err error) error { return &statusError{status, err} }

// statusError is an error with an HTTP status, see WithStatus.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// fieldError returns the error for a wrong field of a request. The Meta of the error has the field's name.
func fieldError(field, text string) error {
	return fault.WithReason(fault.New(fault.Invalid, "%s", text), "", map[string]string{"field": field})
}

// statusOf returns the HTTP status of the reply for err, see the package comment.
func statusOf(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	code := fault.CodeOf(err)
	if fault.IsPrivate(err) {
		switch code {
		case fault.Unauthenticated, fault.Denied, fault.Exhausted: // the fault is in the service's own login or disk, and not in the client
			code = fault.Unavailable
		case fault.Unavailable, fault.Timeout, fault.Unknown, fault.Canceled:
		default:
			code = fault.Internal
		}
	}
	switch code {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Unauthenticated:
		return http.StatusUnauthorized
	case fault.Denied, fault.Exhausted: // OpenStack answers an exceeded quota with 403
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict, fault.Precondition:
		return http.StatusConflict
	case fault.Unimplemented:
		return http.StatusNotImplemented
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	case fault.Timeout, fault.Unknown:
		return http.StatusGatewayTimeout
	case fault.Canceled:
		return statusClientGone
	default:
		return http.StatusInternalServerError
	}
}

// general has the texts for failures of the service itself, by status. The causes are only in the log.
var general = map[int]string{
	http.StatusInternalServerError: "Unexpected API Error.",
	http.StatusServiceUnavailable:  "The service is not available for the moment.",
	http.StatusGatewayTimeout:      "The service did not get an answer in time; the request may have been executed.",
}

// clientMessage returns the text of err for the client: the outermost fault's text for users, or a general text, see
// WithStatus. The texts of plain errors around that fault are only in the log.
func clientMessage(err error, status int, id string) string {
	e, ok := errors.AsType[*fault.Error](err)
	if text := general[status]; text != "" && (!ok || e.User == "" || status == http.StatusInternalServerError) {
		return text + " The service's log has the cause under request id " + id + "."
	}
	if ok {
		return fault.UserMessage(e)
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.Error()
	}
	return fault.CodeOf(err).String()
}

// fail answers with the status of err and an error body. If the reply has already begun, fail closes the connection.
func (m *Mux) fail(rec *recorder, r *http.Request, err error) {
	status := statusOf(err)
	if isRead := r.Method == http.MethodGet || r.Method == http.MethodHead; isRead && status == http.StatusGatewayTimeout && fault.CodeOf(err) == fault.Unknown {
		status = http.StatusServiceUnavailable // nothing was changed, so the client may repeat the request
	}
	if status >= http.StatusInternalServerError {
		level := slog.LevelError
		if status == http.StatusNotImplemented { // the client has requested an unsupported feature
			level = slog.LevelDebug
		}
		m.cfg.Logger.Log(r.Context(), level, "request failed", "status", status, "error", err)
	}
	rec.routed = true // the reply is from the Mux
	if rec.status != 0 {
		panic(http.ErrAbortHandler) // too late for a status: the connection is closed, so that half a reply does not look complete
	}
	if status == http.StatusUnauthorized && m.cfg.Challenge != "" {
		rec.Header().Set("WWW-Authenticate", m.cfg.Challenge)
	}
	if status == http.StatusServiceUnavailable && rec.Header().Get("Retry-After") == "" {
		rec.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
	}
	body := encodeOwn(m.errorBody(rec, status, err))
	m.write(rec, status, body)
}

// faultBody is an error in Nova's form of error bodies.
type faultBody struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// errorItem is an error in the API-SIG's form, see its guidelines/errors.rst.
type errorItem struct {
	Status     int    `json:"status"`
	Code       string `json:"code"`
	Title      string `json:"title"`
	Detail     string `json:"detail"`
	RequestID  string `json:"request_id"`
	MinVersion string `json:"min_version,omitempty"`
	MaxVersion string `json:"max_version,omitempty"`
}

// errorBody returns the error body for err, in the form that the Config selects.
func (m *Mux) errorBody(rec *recorder, status int, err error) any {
	msg := clientMessage(err, status, rec.req.ID)
	if m.cfg.ErrorList == "" {
		name, ok := names[status]
		if !ok {
			name = m.cfg.FaultName
		}
		return map[string]faultBody{name: {status, msg}}
	}
	item := errorItem{Status: status, Code: m.cfg.ErrorList + "." + errorCode(err, status), Title: http.StatusText(status), Detail: msg, RequestID: rec.req.ID}
	if status == http.StatusNotAcceptable && m.versions != nil {
		item.MinVersion, item.MaxVersion = m.versions.Min, m.versions.Max
	}
	return map[string][]errorItem{"errors": {item}}
}

// errorCode returns the last part of an error's code in the API-SIG's form, in snake case: the fault's reason, or the
// fault's code if it has no reason.
func errorCode(err error, status int) string {
	word := fault.CodeOf(err).String()
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Reason != "" && status != http.StatusInternalServerError {
		word = e.Reason
	}
	var out strings.Builder
	for i, r := range word {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				out.WriteByte('_')
			}
			r += 'a' - 'A'
		}
		out.WriteRune(r)
	}
	return out.String()
}

// reply answers with v as JSON, or with 304 if the client has the same entity tag. If JSON cannot express v, which is an
// error of the handler, the status is 500.
func (m *Mux) reply(rec *recorder, r *http.Request, status int, v any) {
	body, err := encodeJSON(v)
	if err != nil {
		m.fail(rec, r, fmt.Errorf("encode reply: %w", err))
		return
	}
	if isUnchanged(r, rec.Header(), status) {
		rec.WriteHeader(http.StatusNotModified)
		return
	}
	m.write(rec, status, body)
}

// encodeOwn encodes a value of this package. JSON can always express such a value.
func encodeOwn(v any) []byte {
	body, err := encodeJSON(v)
	if err != nil {
		panic(err)
	}
	return body
}

// write sends a reply with a body. The client must read it within WriteTimeout.
func (m *Mux) write(rec *recorder, status int, body []byte) {
	h := rec.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_ = http.NewResponseController(rec).SetWriteDeadline(time.Now().Add(m.cfg.WriteTimeout)) // a test's recorder does not support it
	rec.WriteHeader(status)
	_, _ = rec.Write(body) // an error means that the client has closed the connection
}

// encodeJSON returns v as JSON, without a line break at the end.
func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), err
}
