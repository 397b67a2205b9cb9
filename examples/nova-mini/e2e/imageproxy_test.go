package e2e_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// ending is a reader for the end of a body. Read sends a value to the channel began, blocks until the context ends, and fails.
type ending struct {
	ctx   context.Context //nolint:containedctx // the context of the request with this body
	began chan<- bool
}

func (e *ending) Read([]byte) (int, error) {
	e.began <- true
	<-e.ctx.Done()
	return 0, io.ErrUnexpectedEOF
}

// imageProxy is a proxy in front of Glance. It forwards requests, except those that the test itself answers.
type imageProxy struct {
	*httptest.Server

	forward func(http.ResponseWriter, *http.Request)

	mu     sync.Mutex
	match  func(*http.Request) bool
	answer http.HandlerFunc
}

func newImageProxy(t *testing.T, to string) *imageProxy {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	reverse := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	g := &imageProxy{forward: reverse.ServeHTTP}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		match, answer := g.match, g.answer
		g.mu.Unlock()
		if match != nil && match(r) {
			answer(w, r)
			return
		}
		g.forward(w, r)
	}))
	t.Cleanup(func() {
		g.CloseClientConnections()
		g.Close()
	})
	return g
}

// set makes the proxy call the function answer for each request for which match returns true. If match is nil, the proxy forwards all requests.
func (g *imageProxy) set(match func(*http.Request) bool, answer http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.match, g.answer = match, answer
}
