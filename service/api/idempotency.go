package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// idempotencyHeader has a key that a client chooses for one request and its repetitions, see draft-ietf-httpapi-idempotency-key-header.
const idempotencyHeader = "Idempotency-Key"

// maxIdempotencyKey is the maximum length of a key in bytes.
const maxIdempotencyKey = 255

// Replies stores replies by idempotency keys, see [Route].Idempotency. Package idempotency implements it.
type Replies interface {
	// Find returns the reply that was kept for a key, or nil.
	Find(ctx context.Context, key ReplyKey) (*KeptReply, error)
	// Keep stores a reply in the transaction that ctx carries. Conflict: the key already has a reply.
	Keep(ctx context.Context, key ReplyKey, reply KeptReply) error
}

// ReplyKey is an idempotency key of a client.
type ReplyKey struct {
	// Scope is the client's project and user. The same key in two scopes means two different keys.
	Scope string
	// Key is the value of the header.
	Key string
}

// KeptReply is a stored reply.
type KeptReply struct {
	// Fingerprint identifies the request: its method, path, query, version and body, and the fields of the reply that the client may see.
	Fingerprint string `json:"fingerprint"`
	Status      int    `json:"status"`
	// Header has the header fields that the handler has set.
	Header http.Header `json:"header,omitempty"`
	Body   []byte      `json:"body,omitempty"`
}

// keeper keeps the reply of one request with an idempotency key.
type keeper struct {
	mux         *Mux
	rec         *recorder
	hr          *http.Request
	route       *route
	key         ReplyKey
	fingerprint string
	before      []string   // the names of the reply's header before the handler was called
	kept        *KeptReply // the reply that the handler has kept
}

// newKeeper returns the keeper of a request, or nil if the request has no key. Invalid: the key is malformed, or would have no effect.
func (m *Mux) newKeeper(rec *recorder, hr *http.Request, r *route) (*keeper, error) {
	values := hr.Header.Values(idempotencyHeader)
	if len(values) == 0 || r.Idempotency == nil && hr.Method != http.MethodPost && hr.Method != http.MethodPatch {
		return nil, nil //nolint:nilnil // nil: no key; other methods are idempotent without it
	}
	if r.Idempotency == nil {
		return nil, fieldError(idempotencyHeader, "This request does not support the header Idempotency-Key. Send it without the header.")
	}
	key, ok := parseIdempotencyKey(values)
	if !ok {
		return nil, fieldError(idempotencyHeader, fmt.Sprintf("The header Idempotency-Key must be given once and have 1 to %d visible ASCII characters, such as a UUID.", maxIdempotencyKey))
	}
	who := reqctx.From(hr.Context())
	k := &keeper{mux: m, rec: rec, hr: hr, route: r, key: ReplyKey{"project:" + who.ProjectID + " user:" + who.UserID, key}} // a reply may have a password
	for name := range rec.Header() {
		k.before = append(k.before, name)
	}
	var err error
	k.fingerprint, err = k.identify()
	return k, err
}

// parseIdempotencyKey returns the key of a header. In the draft the key is in quotes, but many clients send the key without quotes.
func parseIdempotencyKey(values []string) (string, bool) {
	key := strings.TrimSpace(values[0])
	if n := len(key); n >= 2 && key[0] == '"' && key[n-1] == '"' {
		key = key[1 : n-1]
	}
	bad := strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' })
	return key, len(values) == 1 && !bad && key != "" && len(key) <= maxIdempotencyKey
}

// identify returns the fingerprint of the request. If two clients of a project may see different fields of the reply, their requests have
// different fingerprints, so that no client gets the fields of another client.
func (k *keeper) identify() (string, error) {
	var body any
	if len(k.rec.body) > 0 {
		dec := json.NewDecoder(bytes.NewReader(k.rec.body))
		dec.UseNumber()
		if err := dec.Decode(&body); err != nil { // checkedBody has checked it
			return "", fault.New(fault.Invalid, "Malformed request body")
		}
	}
	parts := []any{k.hr.Method, k.hr.URL.Path, k.hr.URL.RawQuery, k.rec.version.String(), body}
	if s := k.route.outShape; s != nil {
		allowed, err := s.allowedRules(func(rule string) error { return k.mux.enforceField(k.hr, rule) })
		if err != nil {
			return "", err
		}
		parts = append(parts, s.rulesOf(allowed))
	}
	raw, err := json.Marshal(parts) // the names in objects are sorted
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// replay sends the reply that was kept for the key, if any. It reports whether it has answered the request.
func (k *keeper) replay() (bool, error) {
	have, err := k.route.Idempotency.Find(k.hr.Context(), k.key)
	switch {
	case err != nil:
		return false, err
	case have == nil:
		return false, nil
	case have.Fingerprint != k.fingerprint:
		return false, WithStatus(http.StatusUnprocessableEntity, fieldError(idempotencyHeader,
			"The Idempotency-Key was used for another request. Use a new key for each request, and repeat a request without changes."))
	}
	k.send(have)
	return true, nil
}

// beginKept returns the keeper of a request, or nil if the request has no key. The result answered reports whether the request was answered:
// with a kept reply, or with an error.
func (m *Mux) beginKept(rec *recorder, hr *http.Request, r *route) (k *keeper, answered bool) {
	k, err := m.newKeeper(rec, hr, r)
	if err == nil && k != nil {
		answered, err = k.replay()
	}
	if err != nil {
		m.fail(rec, hr, err)
		return nil, true
	}
	return k, answered
}

// finish answers the request after the handler has returned.
func (k *keeper) finish(err error) {
	switch {
	case err != nil && k.answerFailed():
	case err != nil:
		k.mux.fail(k.rec, k.hr, err)
	case k.kept == nil:
		k.mux.fail(k.rec, k.hr, fault.New(fault.Internal, "the handler of %s did not call Keep of its request, so a repetition would be executed again", k.route.Pattern))
	default:
		k.send(k.kept)
	}
}

// answerFailed is called if the handler has failed. If another request with the key has been executed meanwhile, answerFailed answers with the
// reply of that request, or with status 422 if that request was different. It reports whether it has answered.
func (k *keeper) answerFailed() bool {
	ok, err := k.replay()
	if err != nil && statusOf(err) == http.StatusUnprocessableEntity {
		k.mux.fail(k.rec, k.hr, err)
		return true
	}
	return ok
}

// keep stores a reply in the transaction of ctx.
func (k *keeper) keep(ctx context.Context, status int, reply any) error {
	out := KeptReply{Fingerprint: k.fingerprint, Status: status, Header: http.Header{}}
	for name, values := range k.rec.Header() {
		if !slices.Contains(k.before, name) {
			out.Header[name] = slices.Clone(values)
		}
	}
	if t := reflect.TypeOf(reply); k.route.out.Kind() != reflect.Interface && t != k.route.out {
		return fault.New(fault.Internal, "Keep of a reply of %s has a %v, and the handler returns a %v: pass Keep the reply that the handler returns", k.route.Pattern, t, k.route.out)
	}
	if _, none := reply.(None); !none {
		seen, err := k.mux.visible(k.rec, k.hr, nil, &reply)
		if err == nil {
			out.Body, err = encodeJSON(seen)
		}
		if err != nil {
			return fmt.Errorf("encode reply: %w", err)
		}
	}
	if err := k.route.Idempotency.Keep(ctx, k.key, out); err != nil {
		return err
	}
	k.kept = &out
	return nil
}

// send answers with a kept reply.
func (k *keeper) send(reply *KeptReply) {
	for name := range k.rec.Header() { // the fields that the handler has set after Keep, or before it failed
		if !slices.Contains(k.before, name) {
			k.rec.Header().Del(name)
		}
	}
	maps.Copy(k.rec.Header(), reply.Header)
	if reply.Body == nil {
		k.rec.WriteHeader(reply.Status)
		return
	}
	k.mux.write(k.rec, reply.Status, reply.Body)
}

// Keep stores the reply for a request with the header Idempotency-Key, see [Route].Idempotency. Without the header it does nothing. The
// parameter ctx is the context of the transaction in which the handler writes. Call Keep last in the transaction, after Status and ReplyHeader
// are set. The client gets this reply, now and for each repetition of the request.
//
// Errors: Conflict if another request with the key was executed; return this error, so that the transaction is rolled back, and the client gets
// the reply of the other request. Internal if the route has no Idempotency, or if ctx carries no transaction.
func (r *Request[B]) Keep(ctx context.Context, reply any) error {
	switch {
	case r.keeper != nil:
		return r.keeper.keep(ctx, r.Status, reply)
	case r.keeps:
		return nil
	}
	return fault.New(fault.Internal, "Keep of a reply has no effect: the route has no Idempotency")
}
