package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/internal/bodytime"
)

// The bounds that keep idle and slow clients from holding the server's memory.
const (
	readHeaderTimeout = 10 * time.Second
	bodyTimeout       = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// HTTPConfig configures an [HTTPPart]. Addr and Handler are required.
type HTTPConfig struct {
	// Addr is "host:port", where port 0 means one that the system chooses (see
	// [HTTPPart.Addr]), or "unix:/path/of.sock", which only the user of the process
	// can reach. Start makes the directory of the path, with mode 0750, if it does not exist.
	Addr    string
	Handler http.Handler
	// CertFile and KeyFile, in PEM form, make it HTTPS, with HTTP/2. They are read
	// again on SIGHUP, and when they have changed: no later than CertInterval after.
	// Files that do not work leave the old certificate in use.
	CertFile, KeyFile string
	// ClientCAFile has the authorities whose certificates clients must show.
	// Default: none is asked for.
	ClientCAFile string
	// CertInterval is how often changed files are looked for, when somebody connects.
	// Default 10 s.
	CertInterval time.Duration
	// ReadHeaderTimeout is how long a client has to send its headers, at most 64 KiB
	// of them. Default 10 s.
	ReadHeaderTimeout time.Duration
	// BodyTimeout is how long a client has to send the whole body, from the end of its headers
	// on. It holds for every request, also for one whose body the Handler never reads: the
	// connection of a client that is late is closed. Default 30 s; negative: no bound.
	BodyTimeout time.Duration
	// IdleTimeout is how long a connection may be idle. Default 2 minutes.
	IdleTimeout time.Duration
}

// Validate reports Invalid if the certificate, its key or the authorities of clients cannot be used, or
// Addr is not an address. It opens no socket. [HTTPPart].Start does the same.
func (c HTTPConfig) Validate() error {
	if !strings.HasPrefix(c.Addr, "unix:") {
		if _, _, err := net.SplitHostPort(c.Addr); err != nil {
			return fault.New(fault.Invalid, "address %q: %w", c.Addr, err)
		}
	}
	if c.CertFile == "" && c.KeyFile == "" && c.ClientCAFile == "" {
		return nil
	}
	_, err := (&certificates{cfg: c}).read()
	return err
}

// HTTPPart is a listening server of HTTP/1.1 and, with TLS, HTTP/2. Make one with
// [HTTP] or [NewHTTP].
type HTTPPart struct {
	cfg     HTTPConfig
	log     *slog.Logger
	closing atomic.Bool // replies ask clients to go elsewhere

	validate func() error // of the configuration, before it listens; nil: none
	ending   func() bool  // the App drains
	certs    *certificates

	mu       sync.Mutex
	listener net.Listener
	server   *http.Server
	cancel   context.CancelFunc
	serving  sync.WaitGroup
	failed   chan error
}

// HTTP returns a [Part] that serves h on addr, as [NewHTTP] does.
func HTTP(addr string, h http.Handler) *HTTPPart {
	return NewHTTP(HTTPConfig{Addr: addr, Handler: h})
}

// NewHTTP returns a [Part] that serves HTTP. Start listens before it returns, so that
// an address in use is its error, and so is a certificate that cannot be used. As soon
// as the App drains, replies ask clients to close their connections; Drain closes the
// listener and waits for running requests; when its context ends first, it cancels
// theirs and closes their connections. Stop does the same.
func NewHTTP(cfg HTTPConfig) *HTTPPart {
	if cfg.CertInterval <= 0 {
		cfg.CertInterval = 10 * time.Second
	}
	if cfg.ReadHeaderTimeout <= 0 {
		cfg.ReadHeaderTimeout = readHeaderTimeout
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = bodyTimeout
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = idleTimeout
	}
	return &HTTPPart{cfg: cfg, log: slog.Default(), ending: func() bool { return false }, failed: make(chan error, 1)}
}

func (p *HTTPPart) bind(a *App, name string) {
	p.log = a.cfg.Logger.With("part", name)
	p.ending = func() bool { return a.phase.Load() >= draining }
}

// Start listens and serves.
func (p *HTTPPart) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.validate != nil {
		if err := p.validate(); err != nil {
			return err
		}
	}
	var tlsConfig *tls.Config
	if p.cfg.CertFile != "" || p.cfg.KeyFile != "" || p.cfg.ClientCAFile != "" {
		p.certs = &certificates{cfg: p.cfg, log: p.log}
		if err := p.certs.load(ctx); err != nil {
			return err
		}
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetConfigForClient: p.certs.config}
	}
	l, err := listen(ctx, p.cfg.Addr)
	if err != nil {
		return err
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           p.answers(p.cfg.Handler),
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: p.cfg.ReadHeaderTimeout,
		IdleTimeout:       p.cfg.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	p.listener, p.server, p.cancel = l, srv, cancel
	p.log.InfoContext(ctx, "listening", "addr", l.Addr().String(), "tls", tlsConfig != nil)
	p.serving.Go(func() {
		serve := srv.Serve
		if tlsConfig != nil {
			serve = func(l net.Listener) error { return srv.ServeTLS(l, "", "") }
		}
		if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
	})
	return nil
}

// answers gives bodies their deadline, and asks clients to close their connections as soon as
// the server is to end: a request on a connection that is closed at that moment would get no
// answer.
func (p *HTTPPart) answers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.closing.Load() || p.ending() {
			w.Header().Set("Connection", "close")
		}
		bodytime.Limit(w, r, p.cfg.BodyTimeout)
		h.ServeHTTP(w, r)
	})
}

// listen listens on "host:port" or "unix:/path".
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	path, unix := strings.CutPrefix(addr, "unix:")
	if !unix {
		l, err := lc.Listen(ctx, "tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = errInUse
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return l, nil
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("listen on %s: make the socket's directory: %w; make it, or set RuntimeDirectory= in the unit of systemd", addr, err)
	}
	l, err := lc.Listen(ctx, "unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o600); err != nil {
			_ = l.Close() // the error is the one to tell
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// errInUse is the error of an address on which another process listens.
var errInUse = fault.New(fault.Conflict, "address already in use: another process listens there; stop it, or give each service an address of its own")

// removeStale removes the socket of a process that was killed.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("the path exists and is not a socket; remove it, or choose another path")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close() // only a question
		return errInUse
	}
	return os.Remove(path)
}

// Addr returns the address that the server listens on, with the port that was
// chosen, or the configured one while it does not listen. It is safe for
// concurrent use.
func (p *HTTPPart) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil {
		return p.cfg.Addr
	}
	return p.listener.Addr().String()
}

// Failed receives the error that ended the serving, if Stop did not.
func (p *HTTPPart) Failed() <-chan error { return p.failed }

// Reload reads the certificates again. Invalid: they cannot be used; those that were
// in use stay so.
func (p *HTTPPart) Reload(ctx context.Context) error {
	p.mu.Lock()
	certs := p.certs
	p.mu.Unlock()
	if certs == nil {
		return nil
	}
	return certs.load(ctx)
}

// Drain implements [Drainer] as [NewHTTP] says.
func (p *HTTPPart) Drain(ctx context.Context) error {
	p.mu.Lock()
	srv, cancel := p.server, p.cancel
	p.mu.Unlock()
	if srv == nil {
		return nil
	}
	p.closing.Store(true)
	err := srv.Shutdown(ctx)
	if err != nil { // the connections first: what is cut off must not look whole
		srv.Close() //nolint:errcheck,gosec // the Shutdown's error is the one to tell
	}
	cancel()
	p.serving.Wait()
	return err
}

// Stop drains, if Drain did not. More calls, and one without a Start, do nothing.
func (p *HTTPPart) Stop(ctx context.Context) error { return p.Drain(ctx) }
