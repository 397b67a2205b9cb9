// Package bodytime bounds how long a client may take to send the body of a request.
package bodytime

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// Limit gives the request's body a deadline, d from now, even if no handler reads the body. After the
// deadline reads fail with os.ErrDeadlineExceeded, and an HTTP/1.1 connection whose body is still
// incomplete is closed after the reply. The deadline is removed when the body has been read to its
// end, so that the deadline does not cancel a handler that still works. Limit does nothing for a request without a
// body, or if d is 0 or less. If Limit is called twice for one request, the earlier deadline counts.
func Limit(w http.ResponseWriter, r *http.Request, d time.Duration) {
	if r.Body == nil || r.Body == http.NoBody || d <= 0 {
		return
	}
	until := time.Now().Add(d)
	if b, ok := r.Body.(*body); ok && b.until.Before(until) {
		return
	}
	conn := http.NewResponseController(w)
	if conn.SetReadDeadline(until) != nil {
		return // a test's recorder, which has no connection
	}
	r.Body = &body{ReadCloser: r.Body, until: until, conn: conn}
}

// body is a request body with a deadline.
type body struct {
	io.ReadCloser

	until time.Time
	conn  *http.ResponseController
}

// Read implements io.Reader. At the end of the body it removes the deadline.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.conn.SetReadDeadline(time.Time{}) // setting it has succeeded, so removing it succeeds
	}
	return n, err
}
