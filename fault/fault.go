// Package fault has the error type that crosses process boundaries: RPC,
// REST and driver plugins. An error that a caller or a peer may act on has a
// [Code] and, where the code alone is too coarse, a reason. Every other error
// stays plain and arrives as [Internal].
//
//	var ErrNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "no room on host")
//
//	return fmt.Errorf("claim on %s: %w", host, ErrNoRoom)
//
//	// In another process, after an RPC:
//	errors.Is(err, ErrNoRoom)       // true: identity is the reason
//	errors.Is(err, fault.Exhausted) // true: the class
//	fault.IsRemote(err)             // true: a peer said so
//
// The package does not log, and its errors have no stack traces. Messages cross
// the wire, so they must not contain secrets.
package fault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Code says what kind of failure an error is, and so what a caller may do
// about it. It implements error, so that errors.Is(err, fault.NotFound) works
// on local and on remote errors.
type Code uint8

const (
	// Internal is a failure that the caller can do nothing about: a bug, or a
	// plain error without a code. It is the zero Code.
	Internal Code = iota
	// Invalid means the request itself is wrong in every state of the
	// system. A retry also fails.
	Invalid
	// Unauthenticated means the caller's identity is not known.
	Unauthenticated
	// Denied means the caller may not do this.
	Denied
	// NotFound means the thing named in the request does not exist.
	NotFound
	// Conflict means the thing exists already, or another caller changed it
	// first: read it again, then decide.
	Conflict
	// Precondition means the system's state does not allow the request now, such as the deletion of an attached volume.
	Precondition
	// Exhausted means a quota, a capacity or a size limit was reached.
	Exhausted
	// Unimplemented means the peer does not have the method, the version or the capability.
	Unimplemented
	// Unavailable means the request was certainly not executed: sending it
	// again is safe.
	Unavailable
	// Timeout means the deadline passed. Whether the request was executed is
	// not known.
	Timeout
	// Unknown means the peer was lost after it received the request, which may
	// have been executed. Only an idempotent request may be sent again.
	Unknown
	// Canceled means the caller gave up the request.
	Canceled
)

var codeNames = [...]string{
	Internal:        "Internal",
	Invalid:         "Invalid",
	Unauthenticated: "Unauthenticated",
	Denied:          "Denied",
	NotFound:        "NotFound",
	Conflict:        "Conflict",
	Precondition:    "Precondition",
	Exhausted:       "Exhausted",
	Unimplemented:   "Unimplemented",
	Unavailable:     "Unavailable",
	Timeout:         "Timeout",
	Unknown:         "Unknown",
	Canceled:        "Canceled",
}

// String returns the code's name, such as "NotFound".
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("Code(%d)", uint8(c))
}

// Error returns the code's name. It makes a Code usable as the target of
// [errors.Is].
func (c Code) Error() string { return c.String() }

// MarshalText returns the code's name, the form in which it crosses the wire.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a code's name. An unknown name, such as one from a newer
// peer, becomes Internal. UnmarshalText never fails.
func (c *Code) UnmarshalText(text []byte) error {
	*c = Internal
	for i, name := range codeNames {
		if name == string(text) {
			*c = Code(i)
		}
	}
	return nil
}

// Error is an error with a code. The JSON form of an Error is its form on the wire. [New] and
// [Sentinel] make one. [WithReason], [WithUser] and [WithPrivate] return a new Error with
// an addition. Read one with [From], [CodeOf] and errors.Is. An Error never changes, so it is
// safe for concurrent use. The fields are exported for JSON, and for programs that read them.
type Error struct {
	// Code is the kind of failure.
	Code Code `json:"code"`
	// Reason is a stable identifier, such as "NoValidHost". errors.Is compares
	// errors by their reasons. Empty if the code says enough.
	Reason string `json:"reason,omitempty"`
	// Msg is for people. Programs must not parse it.
	Msg string `json:"msg"`
	// Meta holds values for programs, by name, such as the name of a field.
	Meta map[string]string `json:"meta,omitempty"`
	// User is the message for users of the component. It is set where Msg tells operators more
	// than users may know, such as the name of a table or a broker. If it is empty, Msg is for
	// both. See [UserMessage].
	User string `json:"user,omitempty"`
	// Private reports that the error is about the component's own parts, such as its database.
	// Code and Msg are then for callers within the component. Users get the text "internal error"
	// instead, unless an error that wraps this one has a text for them.
	Private bool `json:"private,omitempty"`

	cause  error
	remote bool
}

// Error returns the message.
func (e *Error) Error() string {
	if e.Msg == "" {
		return e.Code.String()
	}
	return e.Msg
}

// Unwrap returns the error given to [New] with %w, or nil.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is the error's Code, or an *Error with the same,
// non-empty Reason.
func (e *Error) Is(target error) bool {
	switch t := target.(type) {
	case Code:
		return e.Code == t
	case *Error:
		return t.Reason != "" && e.Reason == t.Reason
	}
	return false
}

// New returns an error with a code and a message made as by [fmt.Errorf]. The
// format may use %w. Then the new error also matches the wrapped error, and has the reason and the
// Meta of the wrapped error when it crosses the wire. If an error among args is private or has a
// message for users, the new error also has a message for users. In this message, the [UserMessage]
// of that error stands in place of its text.
func New(code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	out := &Error{Code: code, Msg: err.Error(), cause: wrappedBy(err)}
	var public []any
	for i, a := range args {
		e, ok := a.(error)
		if !ok {
			continue
		}
		if f, ok := errors.AsType[*Error](e); ok && (f.Private || f.User != "") {
			if public == nil {
				public = slices.Clone(args)
			}
			public[i] = errors.New(UserMessage(e))
		}
	}
	if public != nil {
		out.User = fmt.Errorf(format, public...).Error()
	}
	return out
}

// isServiceFailure reports whether an error with code c is a failure of the service, not of the request. The
// message of such an error is for operators, unless a message for users is set.
func isServiceFailure(c Code) bool {
	return c == Internal || c == Unavailable || c == Timeout || c == Unknown
}

// WithReason returns err with a reason for errors.Is, and with values for programs in Meta,
// such as the name of a field. The result wraps err and has the code, the text and the Meta of err. If
// meta and the Meta of err have a value of the same name, the result has the value in meta. If reason is empty, the result
// has the reason of err. WithReason copies meta. It returns nil for nil.
//
//	fault.WithReason(fault.New(fault.Invalid, "size %d is too large", n), "", map[string]string{"field": "size"})
func WithReason(err error, reason string, meta map[string]string) error {
	if err == nil {
		return nil
	}
	out := From(err)
	if reason != "" {
		out.Reason = reason
	}
	if out.Meta == nil && len(meta) > 0 {
		out.Meta = make(map[string]string, len(meta))
	}
	maps.Copy(out.Meta, meta)
	return out
}

// WithUser returns err with a message for users. Users read no other text of err. The result wraps err, has
// the code and the reason of err, and is not private. WithUser returns nil for nil.
func WithUser(err error, message string) error {
	if err == nil {
		return nil
	}
	out := From(err)
	out.User, out.Private = message, false
	return out
}

// WithPrivate returns err as an error about the component's own parts, see [Error]. Users do not read the
// text of err. The result wraps err and has the code and the reason of err. WithPrivate returns nil for nil.
func WithPrivate(err error) error {
	if err == nil {
		return nil
	}
	out := From(err)
	out.User, out.Private = "", true
	return out
}

// UserMessage returns the text of err that users of the component may read: User of the outermost
// [Error], or Msg if User is empty. For a private error, and for an error without a code, it returns
// "internal error". It returns "" for nil.
func UserMessage(err error) string {
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*Error](err)
	switch {
	case ok && e.User != "":
		return e.User
	case ok && !e.Private:
		return e.Error()
	}
	return "internal error"
}

// IsPrivate reports whether the outermost [Error] of err is private, and so not for users.
func IsPrivate(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Private
}

// wrappedBy returns the error that %w wrapped, without the text around it, which Msg already
// has. If the format has several %w, wrappedBy returns err itself, because only err joins the wrapped errors.
func wrappedBy(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	if _, ok := err.(interface{ Unwrap() []error }); ok {
		return err
	}
	return nil
}

// Errors about the version of a peer. The request was not executed. During a rolling upgrade the peer may soon have the version, so a retry
// may succeed. Package rpc has the same errors under the same names. They are declared here for packages that do not import rpc.
var (
	// ErrUnsupportedVersion: the peer does not serve the version that the request needs.
	ErrUnsupportedVersion = Sentinel(Unimplemented, "UnsupportedVersion", "unsupported version")
	// ErrVersionCap: a running process does not serve the version that the request needs, so the request was not sent.
	ErrVersionCap = Sentinel(Precondition, "VersionCap", "the version cap forbids the method")
)

// Sentinel returns an error for a package variable. errors.Is matches it by reason, even after an RPC. Reasons are
// CamelCase and unique in a component.
func Sentinel(code Code, reason, msg string) error {
	return &Error{Code: code, Reason: reason, Msg: msg}
}

// CodeOf returns the code of the first error in err's tree that has one. A
// context's error is [Timeout] or [Canceled]; every other error is [Internal].
// Do not call CodeOf with nil, which has no code: the result would be Internal.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	if c, ok := errors.AsType[Code](err); ok {
		return c
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Canceled
	}
	return Internal
}

// From returns the form in which err crosses a process boundary. It has the code of
// [CodeOf] and the whole text. The reason is that of the outermost [Error] that has one. Meta has
// all values of the outermost Error and of the Errors that it wraps; an outer value replaces an
// inner one of the same name. If an error wraps several errors, From reads only the first Error
// among them.
//
// User is the message for users of the outermost [Error]. If that Error has no message for users, and
// plain errors wrap it, User is the text of that Error: Msg has also the texts of the plain errors, which
// are not for users. In this case User stays empty for a private error and for the codes Internal,
// Unavailable, Timeout and Unknown.
//
// From returns nil for nil. The result shares no memory with err.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	out := &Error{Code: CodeOf(err), Msg: err.Error(), cause: err, remote: IsRemote(err)}
	if e, ok := errors.AsType[*Error](err); ok {
		out.Private, out.User = e.Private, e.User
		if out.User == "" && e.Msg != out.Msg && !e.Private && !isServiceFailure(out.Code) {
			out.User = e.Error() // without the texts of the plain errors around it, which name internal callers
		}
	}
	for e, ok := errors.AsType[*Error](err); ok; e, ok = errors.AsType[*Error](e.cause) {
		out.Reason = cmp.Or(out.Reason, e.Reason)
		out.addMeta(e.Meta)
	}
	return out
}

// addMeta adds the values whose names e.Meta does not have.
func (e *Error) addMeta(meta map[string]string) {
	if e.Meta == nil && len(meta) > 0 {
		e.Meta = make(map[string]string, len(meta))
	}
	for k, v := range meta {
		if _, set := e.Meta[k]; !set {
			e.Meta[k] = v
		}
	}
}

// Remote returns e marked as sent by a peer, so that [IsRemote] can distinguish the error from one
// that this process made. A transport calls it with each error that it decodes.
func Remote(e Error) error {
	e.remote = true
	e.cause = nil
	return &e
}

// IsRemote reports whether a peer sent err. A remote NotFound is the answer of
// the service that was asked. A local Timeout says nothing about what that
// service did.
func IsRemote(err error) bool {
	for e, ok := errors.AsType[*Error](err); ok; e, ok = errors.AsType[*Error](e.cause) {
		if e.remote {
			return true
		}
	}
	return false
}
