// Package bodytime bounds how long a client may take to send the body of a request.
package bodytime

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// Limit gives the request's body a deadline from now on, whether or not a handler ever reads it:
// after it, reads fail with os.ErrDeadlineExceeded, and an HTTP/1.1 connection whose body is still
// missing is closed after the reply. The deadline is lifted when the body has been read to its
// end, so that it does not cancel a handler that goes on. A request without a body, and a d that
// is not positive, have no deadline. Of two calls for a request the earlier deadline counts.
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
		return // the recorder of a test has no connection
	}
	r.Body = &body{ReadCloser: r.Body, until: until, conn: conn}
}

type body struct {
	io.ReadCloser

	until time.Time
	conn  *http.ResponseController
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.conn.SetReadDeadline(time.Time{}) // it could be set, so it can be lifted
	}
	return n, err
}
