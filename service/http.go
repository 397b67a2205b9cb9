package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The bounds that keep idle and slow clients from holding the server's memory.
// How long a body may take is the handler's affair; package api bounds it.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// HTTPPart is a listening HTTP/1.1 server. Make one with [HTTP].
type HTTPPart struct {
	addr    string
	handler http.Handler
	log     *slog.Logger

	mu       sync.Mutex
	listener net.Listener
	server   *http.Server
	cancel   context.CancelFunc
	serving  sync.WaitGroup
	failed   chan error
}

// HTTP returns a [Part] that serves h on addr, "host:port"; port 0 means one
// that the system chooses, see [HTTPPart.Addr]. Start listens before it
// returns, so that an address in use is its error. Stop closes the listener and
// waits for running requests; when its context ends first, it cancels theirs
// and closes their connections.
//
// A client has 10 s to send its headers, at most 64 KiB of them; an idle
// connection is closed after 2 minutes.
func HTTP(addr string, h http.Handler) *HTTPPart {
	return &HTTPPart{addr: addr, handler: h, log: slog.Default(), failed: make(chan error, 1)}
}

func (p *HTTPPart) bind(name string, logger *slog.Logger) { p.log = logger.With("part", name) }

// Start listens and serves.
func (p *HTTPPart) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", p.addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", p.addr, err)
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           p.handler,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	p.listener, p.server, p.cancel = l, srv, cancel
	p.log.InfoContext(ctx, "listening", "addr", l.Addr().String())
	p.serving.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
	})
	return nil
}

// Addr returns the address that the server listens on, with the port that was
// chosen, or the one given to [HTTP] while it does not listen. It is safe for
// concurrent use.
func (p *HTTPPart) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil {
		return p.addr
	}
	return p.listener.Addr().String()
}

// Failed receives the error that ended the serving, if Stop did not.
func (p *HTTPPart) Failed() <-chan error { return p.failed }

// Stop drains as [HTTP] says. More calls, and one without a Start, do nothing.
func (p *HTTPPart) Stop(ctx context.Context) error {
	p.mu.Lock()
	srv, cancel := p.server, p.cancel
	p.mu.Unlock()
	if srv == nil {
		return nil
	}
	err := srv.Shutdown(ctx)
	cancel()
	if err != nil {
		srv.Close() //nolint:errcheck,gosec // cutting off: the Shutdown's error is the one to tell
	}
	p.serving.Wait()
	return err
}
