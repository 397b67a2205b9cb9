package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/fault"
)

// tokenTime is the least time for which a token must be valid when a transfer begins.
const tokenTime = 5 * time.Minute

// transfer sends a request for the content of an image, as nova-mini's own user. For an upload the function open opens the content; for a download open is nil. If the token is refused, the
// request is sent once more with a new token. The parameter ok is the status of the returned reply. The caller closes the body of the reply. Errors: those of translate; Unavailable also if no byte is transferred for
// GlanceConfig.TransferTimeout, or if an upload is not answered within GlanceConfig.FinishTimeout after its last byte. Reading the body of the reply has the same errors.
func (g *Glance) transfer(ctx context.Context, method, id string, open func() (io.ReadCloser, error), ok int) (*http.Response, error) {
	for renewed := false; ; renewed = true {
		c, err := g.client(ctx, "")
		if err != nil {
			return nil, err
		}
		g.RenewToken(ctx, c, tokenTime)
		token := c.Token()
		resp, err := g.send(ctx, method, c.ResourceBase+"images/"+id+"/file", token, open)
		if err != nil {
			return nil, g.translate(ctx, id, err)
		}
		if resp.StatusCode == ok {
			return resp, nil
		}
		_ = resp.Body.Close() // the body was not read, so an error does not matter
		if resp.StatusCode != http.StatusUnauthorized || renewed {
			return nil, g.translate(ctx, id, gophercloud.ErrUnexpectedResponseCode{Method: method, URL: resp.Request.URL.String(), Actual: resp.StatusCode})
		}
		if err := c.Reauthenticate(ctx, token); err != nil {
			return nil, g.translate(ctx, "", err)
		}
	}
}

// send sends one request of a transfer.
func (g *Glance) send(ctx context.Context, method, url, token string, open func() (io.ReadCloser, error)) (*http.Response, error) {
	ctx, w := newWatch(ctx, g.cfg.TransferTimeout)
	var body io.Reader
	if open != nil {
		content, err := open()
		if err != nil {
			w.stopWatch()
			return nil, err
		}
		body = &watched{content, w, g.cfg.FinishTimeout} // the HTTP transport closes the content
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		w.stopWatch()
		return nil, err
	}
	req.Header.Set("X-Auth-Token", token)
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := g.Transfers().Do(req)
	if err != nil {
		err = w.explain(err)
		w.stopWatch()
		return nil, err
	}
	w.extend(g.cfg.TransferTimeout)
	resp.Body = &watchedReply{watched{resp.Body, w, g.cfg.TransferTimeout}}
	return resp, nil
}

// watch cancels a transfer if no byte is transferred for some time.
type watch struct {
	ctx    context.Context //nolint:containedctx // the context of the request
	cancel context.CancelCauseFunc
	timer  *time.Timer
	time   time.Duration // limit between two bytes

	mu   sync.Mutex
	left time.Duration // present limit until the next byte
}

// newWatch returns a watch, and the context that the transfer must use. The argument d limits the time until the first byte.
func newWatch(ctx context.Context, d time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{ctx: ctx, cancel: cancel, time: d, left: d}
	w.timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		cancel(fault.New(fault.Unavailable, "no byte was transferred for %v", w.left))
	})
	return ctx, w
}

// extend records progress of the transfer. The argument d limits the time until the next byte.
func (w *watch) extend(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = d
	w.timer.Reset(d)
}

// stopWatch stops the watch, and cancels the rest of the transfer.
func (w *watch) stopWatch() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain returns the watch's own error if the watch has canceled the transfer. Otherwise it returns err.
func (w *watch) explain(err error) error {
	if cause := context.Cause(w.ctx); err != nil && errors.Is(cause, fault.Unavailable) {
		return cause
	}
	return err
}

// watched is a body that reports each read to the watch as progress.
type watched struct {
	io.ReadCloser

	w      *watch
	finish time.Duration // limit after the last byte
}

func (b *watched) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.w.extend(b.w.time)
	}
	if errors.Is(err, io.EOF) {
		b.w.extend(b.finish)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.w.explain(err)
	}
	return n, err
}

// watchedReply is the body of a reply. Closing the body ends the transfer.
type watchedReply struct{ watched }

func (b *watchedReply) Close() error {
	err := b.ReadCloser.Close()
	b.w.stopWatch()
	return err
}
