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

// The limits that keep idle and slow clients from using up the server's memory. The times are defaults of [HTTPConfig];
// maxHeaderBytes is fixed.
const (
	readHeaderTimeout = 10 * time.Second
	bodyTimeout       = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// HTTPConfig configures an [HTTPPart]. Addr and Handler are required.
type HTTPConfig struct {
	// Addr is "host:port" or "unix:/path/of.sock". With port 0 the system chooses the port, see
	// [HTTPPart.Addr]. Only the user of the process can connect to a Unix socket. If the directory of the
	// socket does not exist, Start makes it, with mode 0750. Start replaces a socket that refuses connections, because
	// the socket's process was killed. It never removes another file or socket.
	Addr string
	// Handler serves the requests.
	Handler http.Handler
	// CertFile and KeyFile are the server's certificate chain and its key, in PEM form. With them the part
	// serves HTTPS, with HTTP/1.1 and HTTP/2, TLS 1.2 or later. The files are read again on SIGHUP. They are also read
	// when a client connects after they have changed; this is checked at most once in each CertInterval. If the new
	// files cannot be used, the old certificate stays in use and the log has the error. Default: HTTP without TLS.
	CertFile, KeyFile string
	// ClientCAFile has the certificates, in PEM form, of the authorities that sign the certificates of
	// clients. If it is set, a client without such a certificate cannot connect. ClientCAFile needs CertFile and
	// KeyFile, and is read again with them. Default: clients need no certificate.
	ClientCAFile string
	// CertInterval is the minimum time between two checks whether the files have changed. Default 10 s.
	CertInterval time.Duration
	// ReadHeaderTimeout is how long a client may take to send its headers, which have at most 64 KiB.
	// Default 10 s.
	ReadHeaderTimeout time.Duration
	// BodyTimeout is how long a client may take to send the whole body, from the end of its headers
	// on. It applies to every request, even if the Handler never reads the body. The connection of a
	// client that is too slow is closed. Default 30 s; negative: no limit.
	BodyTimeout time.Duration
	// IdleTimeout is how long a connection without a request stays open. Default 2 minutes.
	IdleTimeout time.Duration
}

// Validate returns Invalid if Addr is malformed, or if CertFile, KeyFile or ClientCAFile cannot be used, and Denied if
// other users can read or change KeyFile. It reads the files and opens no socket. It does not check Handler, so that a
// command can check a configuration. [HTTPPart.Start] makes the same checks, and also checks Handler.
func (c HTTPConfig) Validate() error {
	if err := c.checkAddr(); err != nil {
		return err
	}
	if c.CertFile == "" && c.KeyFile == "" && c.ClientCAFile == "" {
		return nil
	}
	_, err := (&certificates{cfg: c}).read()
	return err
}

func (c HTTPConfig) checkAddr() error {
	if strings.HasPrefix(c.Addr, "unix:") {
		return nil
	}
	if _, err := splitAddr(c.Addr); err != nil {
		return fault.New(fault.Invalid, "address %q: %w", c.Addr, err)
	}
	return nil
}

// splitAddr returns the host of an address to listen on. It returns an error if the address has no port, or a port that does not exist.
// The port may be the name of a service, such as "https".
func splitAddr(addr string) (host string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if _, err := net.DefaultResolver.LookupPort(context.Background(), "tcp", port); err != nil { // reads only files
		return "", fmt.Errorf("port %q is neither a number from 0 to 65535 nor the name of a service", port)
	}
	return host, nil
}

// HTTPPart is a listening server of HTTP/1.1 and, with TLS, HTTP/2. Make one with
// [HTTP] or [NewHTTP].
type HTTPPart struct {
	cfg         HTTPConfig
	log         *slog.Logger
	drainCalled atomic.Bool

	validate    func() error // checks the configuration in Start; may be nil
	appDraining func() bool
	certs       *certificates

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

// NewHTTP returns a [Part] that serves HTTP. As soon as the App drains, replies ask clients to close their
// connections. Drain closes the listener and waits for running requests. If its context ends first, Drain cancels the
// contexts of these requests and closes their connections. Stop does the same.
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
	return &HTTPPart{cfg: cfg, log: slog.Default(), appDraining: func() bool { return false }, failed: make(chan error, 1)}
}

// bind gives the part the logger and the phase of its App. App.Add calls it.
func (p *HTTPPart) bind(a *App, name string) {
	p.log = a.cfg.Logger.With("part", name)
	p.appDraining = func() bool { return a.phase.Load() >= draining }
}

// Start listens, and serves in a goroutine until Drain or Stop. It does not block. The contexts of the requests have the
// values of ctx, but do not end with ctx. Errors:
//
//   - Invalid: Handler is nil, Addr is malformed, or a file for TLS cannot be used.
//   - Denied: other users can read or change KeyFile.
//   - Conflict: another process listens on the address.
//   - Canceled or Timeout: ctx has ended.
//   - Internal: every other error of the system, such as a path that exists and is not a socket.
func (p *HTTPPart) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Handler == nil {
		return fault.New(fault.Invalid, "serve HTTP on %s: HTTPConfig.Handler is nil", p.cfg.Addr)
	}
	if p.validate != nil {
		if err := p.validate(); err != nil {
			return err
		}
	}
	if err := p.cfg.checkAddr(); err != nil { //nolint:contextcheck // it does not block
		return err
	}
	var tlsConfig *tls.Config
	if p.cfg.CertFile != "" || p.cfg.KeyFile != "" || p.cfg.ClientCAFile != "" {
		p.certs = &certificates{cfg: p.cfg, log: p.log}
		if err := p.certs.load(ctx); err != nil {
			return err
		}
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetConfigForClient: p.certs.config}
	}
	l, err := openListener(ctx, p.cfg.Addr)
	if err != nil {
		return err
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           p.wrapHandler(p.cfg.Handler),
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

// TryListen returns the error that Start would return because of the address, such as Conflict if another process listens there. It listens and
// closes the listener at once. A program calls it before the start of other parts, which may take long. It does not block.
func (p *HTTPPart) TryListen(ctx context.Context) error {
	if err := p.cfg.checkAddr(); err != nil { //nolint:contextcheck // it does not block
		return err
	}
	l, err := openListener(ctx, p.cfg.Addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// wrapHandler adds to h a deadline for bodies. While the App drains, it adds the header "Connection: close" to replies.
// Otherwise a client could send the next request at the moment when the server closes the connection, and would get no
// reply.
func (p *HTTPPart) wrapHandler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.drainCalled.Load() || p.appDraining() {
			w.Header().Set("Connection", "close")
		}
		bodytime.Limit(w, r, p.cfg.BodyTimeout)
		h.ServeHTTP(w, r)
	})
}

// openListener listens on "host:port" or "unix:/path".
func openListener(ctx context.Context, addr string) (net.Listener, error) {
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
	if err := removeStaleSocket(ctx, path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("listen on %s: make the socket's directory: %w; make it, or set RuntimeDirectory= in the unit of systemd", addr, err)
	}
	lc.Control = restrictSocket
	l, err := lc.Listen(ctx, "unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o600); err != nil {
			_ = l.Close() // Chmod's error is the one to return
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// errInUse means that another process listens on the address.
var errInUse = fault.New(fault.Conflict, "address already in use: another process listens there; stop it, or give each service an address of its own")

// removeStaleSocket removes the socket of a process that was killed: a socket that refuses connections. It removes nothing
// if it cannot learn whether a process listens, such as when ctx has ended. It returns errInUse if a process
// listens on the socket.
func removeStaleSocket(ctx context.Context, path string) error {
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
	switch {
	case err == nil:
		_ = c.Close() // the connection was only to find out whether a process listens
		return errInUse
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, syscall.EAGAIN): // the listener's queue of new connections is full
		return errInUse
	default:
		return fmt.Errorf("check whether a process listens on the socket: %w", err)
	}
}

// Addr returns the address on which the server listens, with the port that the system has
// chosen. Before Start it returns the configured address. It is safe for concurrent use.
func (p *HTTPPart) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil {
		return p.cfg.Addr
	}
	return p.listener.Addr().String()
}

// Failed implements [Failer]: the channel gets the error after which the server no longer accepts connections.
func (p *HTTPPart) Failed() <-chan error { return p.failed }

// Reload reads the certificate files again. It does nothing without TLS or before Start. Errors: Invalid if the files cannot
// be used, and Denied if other users can read or change KeyFile. After an error the old certificate stays in use.
func (p *HTTPPart) Reload(ctx context.Context) error {
	p.mu.Lock()
	certs := p.certs
	p.mu.Unlock()
	if certs == nil {
		return nil
	}
	return certs.load(ctx)
}

// Drain implements [Drainer], see [NewHTTP].
func (p *HTTPPart) Drain(ctx context.Context) error {
	p.mu.Lock()
	srv, cancel := p.server, p.cancel
	p.mu.Unlock()
	if srv == nil {
		return nil
	}
	p.drainCalled.Store(true)
	err := srv.Shutdown(ctx)
	if err != nil { // connections are closed before contexts are canceled, so that a reply that is cut off does not look complete
		srv.Close() //nolint:errcheck,gosec // Shutdown's error is the one to return
	}
	cancel()
	p.serving.Wait()
	return err
}

// Stop does what Drain does, unless Drain was called before. A repeated call, or a call without a Start, does nothing.
func (p *HTTPPart) Stop(ctx context.Context) error { return p.Drain(ctx) }
