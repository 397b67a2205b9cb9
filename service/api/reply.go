package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// retryAfter is what a reply of 503 asks a client to wait. What it stands for,
// a broker or a database that is away, is mostly back within seconds.
const retryAfter = time.Second

// statusClientGone is nginx's status for a client that did not wait. Nobody
// reads the reply; it tells the log what happened.
const statusClientGone = 499

// names are the keys of OpenStack's error bodies. Every other status has the
// configured one.
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

// WithStatus returns err with a status of its own, where the one that its code
// would get is too coarse, such as 410. Its message for users is sent; of 500, 503 and 504
// only one that was given to it by fault.WithUser.
func WithStatus(status int, err error) error { return &statusError{status, err} }

type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// Missing returns the error for a property that a body must have: what a
// [Validator] returns.
func Missing(field string) error {
	return fieldError(field, fmt.Sprintf("'%s' is a required property", field))
}

// fieldError returns the error for a wrong field of a request. Its details have the field's name.
func fieldError(field, text string) error {
	return fault.WithReason(fault.New(fault.Invalid, "%s", text), "", map[string]string{"field": field})
}

// Status returns the status with which err is answered. Timeout and Unknown are
// 504 and not 503, because OpenStack's clients send a request again after 503:
// it must mean that nothing was executed. A private error, such as one of the database, is a
// failure of the service: 503 if certainly nothing was executed, else 504 or 500.
func Status(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	code := fault.CodeOf(err)
	if fault.IsPrivate(err) {
		switch code {
		case fault.Unauthenticated, fault.Denied, fault.Exhausted: // of the service's own user and disk
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
	case fault.Denied, fault.Exhausted: // a quota is answered so
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

// general are the texts of failures of the service itself, whose causes are for its log.
var general = map[int]string{
	http.StatusInternalServerError: "Unexpected API Error.",
	http.StatusServiceUnavailable:  "The service is not available for the moment.",
	http.StatusGatewayTimeout:      "The service has not got an answer in time; the request may have been executed.",
}

// message is what the client may read of err: the outermost fault's text for users. What plain
// errors wrapped around it says where it passed: that is for the log.
func message(err error, status int, id string) string {
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

// fail answers with err's status and OpenStack's error body.
func (m *Mux) fail(rec *recorder, r *http.Request, err error) {
	status := Status(err)
	if status >= http.StatusInternalServerError {
		m.cfg.Logger.ErrorContext(r.Context(), "request failed", "status", status, "error", err)
	}
	rec.routed = true // from here on it is our own reply
	if rec.status != 0 {
		panic(http.ErrAbortHandler) // too late for a status: cut the connection, lest half a reply look whole
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

type faultBody struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// errorItem is an error as the API-SIG wants it: guidelines/errors.rst.
type errorItem struct {
	Status     int    `json:"status"`
	Code       string `json:"code"`
	Title      string `json:"title"`
	Detail     string `json:"detail"`
	RequestID  string `json:"request_id"`
	MinVersion string `json:"min_version,omitempty"`
	MaxVersion string `json:"max_version,omitempty"`
}

func (m *Mux) errorBody(rec *recorder, status int, err error) any {
	msg := message(err, status, rec.req.ID)
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

// errorCode is what a client's code can go by: the fault's reason, or its code.
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

// reply sends v as JSON. A value that JSON cannot express is a bug of the handler
// and answered with status 500.
func (m *Mux) reply(rec *recorder, r *http.Request, status int, v any) {
	body, err := encode(v)
	if err != nil {
		m.fail(rec, r, fmt.Errorf("encode reply: %w", err))
		return
	}
	if unchanged(r, rec.Header(), status) {
		rec.WriteHeader(http.StatusNotModified)
		return
	}
	m.write(rec, status, body)
}

// encodeOwn encodes what the package itself has made.
func encodeOwn(v any) []byte {
	body, err := encode(v)
	if err != nil {
		panic(err)
	}
	return body
}

func (m *Mux) write(rec *recorder, status int, body []byte) {
	h := rec.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_ = http.NewResponseController(rec).SetWriteDeadline(time.Now().Add(m.cfg.WriteTimeout)) // not supported by a test's recorder
	rec.WriteHeader(status)
	_, _ = rec.Write(body) // the client has gone: nobody is left to tell
}

func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), err
}
