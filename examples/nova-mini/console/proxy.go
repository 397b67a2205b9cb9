// Package console is nova-mini's console proxy. The proxy connects WebSocket clients, such as noVNC, to the consoles of servers. A client needs a token,
// which the API service makes. The proxy's connections to the consoles are plain TCP.
package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/armature-go/armature/fault"
)

// Target is the console that a token opens.
type Target struct {
	// Addr is HOST:PORT.
	Addr string
	// URL is the URL that the client got from the API, without the token. A browser whose origin has another scheme is refused.
	URL string
	// ServerID is the id of the server, and Host is the server's host. Both are for the log and for [Config.Present].
	ServerID, Host string
	// Local reports whether Host is the machine that the proxy runs on. If not, Addr must not be a loopback address.
	Local bool
	// ExpiresAt is the time at which the token expires.
	ExpiresAt time.Time
}

// Config configures a Proxy. Find and Present are required.
type Config struct {
	// Find returns the console that a token opens. If Find fails, the client is refused with status 401 (NotFound), 403 (Denied) or 503 (other codes).
	Find func(ctx context.Context, token string) (*Target, error)
	// Present reports whether the server of a session is still on its host. If not, or if Present has failed for the time Grace, the session ends.
	Present func(ctx context.Context, t *Target) (bool, error)
	// AllowedOrigins are host names that the header Origin of a browser may have, besides the host of the request.
	AllowedOrigins []string
	// MaxSessions is the maximum number of sessions at a time. Default 1000.
	MaxSessions int
	// MaxServerSessions is the maximum number of sessions of one server at a time, so that one token cannot use all of MaxSessions. Default 10.
	MaxServerSessions int
	// Idle is the time without data in either direction after which a session ends. Default 1 h.
	Idle time.Duration
	// EndWithToken ends a session when its token expires.
	EndWithToken bool
	// Every is the time between two checks of a session: each calls Present and pings the client. Default 10 s. Grace is the time for which the checks may fail. Default 1 min.
	Every, Grace time.Duration
	Logger       *slog.Logger
}

// dialTimeout limits the time to find a console and to connect to it, and the time of one check of a session.
const dialTimeout = 10 * time.Second

// Proxy is the http.Handler of the console proxy. It is safe for concurrent use. Close ends all sessions.
type Proxy struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // the end of ctx ends all sessions
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	sessions int
	servers  map[string]int // number of sessions, by server id
	wg       sync.WaitGroup
}

// New returns a proxy. It panics if a required field of cfg is not set.
func New(cfg Config) *Proxy {
	if cfg.Find == nil || cfg.Present == nil {
		panic("nova-mini/console: Config.Find or Config.Present is not set")
	}
	cfg.MaxSessions, cfg.Idle = cmp.Or(cfg.MaxSessions, 1000), cmp.Or(cfg.Idle, time.Hour)
	cfg.MaxServerSessions = cmp.Or(cfg.MaxServerSessions, 10)
	cfg.Every, cfg.Grace = cmp.Or(cfg.Every, 10*time.Second), cmp.Or(cfg.Grace, time.Minute)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	p := &Proxy{cfg: cfg, servers: map[string]int{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close refuses new clients, ends all sessions, and waits until the sessions have ended or ctx ends.
func (p *Proxy) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	done := make(chan struct{})
	go func() { // ends with the last session; all sessions have been canceled
		p.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beginSession counts a new session, and returns true. The caller must then call endSession at the end of the session. If there are too many sessions, or the proxy is closed,
// beginSession returns false and counts nothing.
func (p *Proxy) beginSession() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.sessions >= p.cfg.MaxSessions {
		return false
	}
	p.sessions++
	p.wg.Add(1)
	return true
}

func (p *Proxy) endSession() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions--
	p.wg.Done()
}

// beginServerSession counts a new session of one server, and returns true. The caller must then call endServerSession at the end of the session. If the server has too many
// sessions, beginServerSession returns false and counts nothing.
func (p *Proxy) beginServerSession(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.servers[id] >= p.cfg.MaxServerSessions {
		return false
	}
	p.servers[id]++
	return true
}

func (p *Proxy) endServerSession(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.servers[id]--; p.servers[id] == 0 {
		delete(p.servers, id)
	}
}

// ServeHTTP implements http.Handler. It serves every path in the same way. It blocks until the session ends.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Referrer-Policy", "no-referrer") // the URL has the token
	w.Header().Set("Cache-Control", "no-store")
	if !isWebSocket(r) {
		w.Header().Set("Upgrade", "websocket")
		http.Error(w, "This is the proxy for consoles of servers: use a WebSocket client, such as noVNC.", http.StatusUpgradeRequired)
		return
	}
	if !p.beginSession() {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "There are too many sessions.", http.StatusServiceUnavailable)
		return
	}
	defer p.endSession()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)() //nolint:contextcheck // the sessions end with the proxy
	t, console, err := p.open(ctx, r)
	if err != nil {
		status := statusOf(err)
		level := slog.LevelWarn
		if isClients(err) || r.Context().Err() != nil { // the client has closed the connection
			level = slog.LevelDebug
		}
		p.cfg.Logger.Log(ctx, level, "console refused", "client", r.RemoteAddr, "status", status, "error", err)
		http.Error(w, http.StatusText(status), status) // only the log has the reason, for operators
		return
	}
	defer p.endServerSession(t.ServerID)
	defer func() { _ = console.Close() }() // run may have closed it already
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       []string{"binary"},
		InsecureSkipVerify: true, // open has checked the origin, as Nova does
	})
	if err != nil { // a header of the request is wrong, or the client has closed the connection
		p.cfg.Logger.DebugContext(ctx, "WebSocket refused", "client", r.RemoteAddr, "error", err)
		return
	}
	log := p.cfg.Logger.With("server", t.ServerID, "host", t.Host, "client", r.RemoteAddr)
	log.InfoContext(ctx, "console session began")
	why := p.relaySession(ctx, t, ws, console)
	log.InfoContext(ctx, "console session ended", "reason", why)
}

// errOrigin means that the request comes from a page of another site.
var errOrigin = fault.Sentinel(fault.Denied, "ConsoleOrigin", "the origin of the request is not allowed")

// errFull means that the server has the maximum number of sessions.
var errFull = errors.New("the maximum for one server")

// isClients reports whether an error of open is the client's fault: its token or its origin is wrong, or the server has too many sessions.
func isClients(err error) bool {
	return errors.Is(err, fault.NotFound) || errors.Is(err, errOrigin) || errors.Is(err, errFull)
}

// open checks a request and connects to its console. After success the caller must call endServerSession.
func (p *Proxy) open(ctx context.Context, r *http.Request) (*Target, net.Conn, error) {
	token := tokenOf(r)
	if token == "" {
		return nil, nil, fault.New(fault.NotFound, "the request has no token")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	t, err := p.cfg.Find(ctx, token)
	if err != nil {
		return nil, nil, fmt.Errorf("find the console of the token: %w", err)
	}
	if err := p.checkOrigin(r, t); err != nil {
		return nil, nil, err
	}
	if !p.beginServerSession(t.ServerID) {
		return nil, nil, fault.New(fault.Unavailable, "server %s has %d console sessions, %w", t.ServerID, p.cfg.MaxServerSessions, errFull)
	}
	c, err := dialerOf(t).DialContext(ctx, "tcp", t.Addr)
	if err != nil {
		p.endServerSession(t.ServerID)
		return nil, nil, fault.New(fault.Unavailable, "connect to the console of server %s: %w", t.ServerID, err)
	}
	return t, c, nil
}

// dialerOf returns a dialer for a console. If the console is on another machine, the dialer refuses loopback addresses: on this machine the console of
// another server may have such an address.
func dialerOf(t *Target) *net.Dialer {
	d := new(net.Dialer)
	if t.Local {
		return d
	}
	d.Control = func(_, address string, _ syscall.RawConn) error { // address is numeric: a name has been resolved
		at, err := netip.ParseAddrPort(address)
		if ip := at.Addr().Unmap(); err != nil || ip.IsLoopback() || ip.IsUnspecified() { // an unspecified address also connects to this machine
			return fmt.Errorf("%s is a loopback address, and host %s is not the machine of the console proxy: consoles of this host must have an address that the proxy reaches", address, t.Host)
		}
		return nil
	}
	return d
}

// statusOf returns the HTTP status for an error of open.
func statusOf(err error) int {
	switch {
	case errors.Is(err, fault.NotFound):
		return http.StatusUnauthorized
	case errors.Is(err, fault.Denied):
		return http.StatusForbidden
	}
	return http.StatusServiceUnavailable
}

// relaySession copies between a client and a console until the session ends, and returns the reason.
func (p *Proxy) relaySession(ctx context.Context, t *Target, ws *websocket.Conn, console net.Conn) string {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	open, end := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx, so that the client can be told the reason
	defer end()
	s := &session{cfg: &p.cfg, target: t, ws: ws, client: websocket.NetConn(open, ws, websocket.MessageBinary)}
	s.touch()
	var wg sync.WaitGroup
	wg.Go(func() { cancel(s.copy(s.client, console, "the console has closed the connection")) })
	wg.Go(func() { cancel(s.copy(console, s.client, "the client has closed the connection")) })
	wg.Go(func() { cancel(s.watch(ctx)) })
	<-ctx.Done()
	why := context.Cause(ctx)
	_ = console.Close()                                                               // ends the copies
	_ = ws.Close(websocket.StatusGoingAway, why.Error()[:min(len(why.Error()), 120)]) // the client may be gone
	_ = ws.CloseNow()
	wg.Wait()
	return why.Error()
}

// session is the connection between a client and a console.
type session struct {
	cfg    *Config
	target *Target
	ws     *websocket.Conn
	client net.Conn

	mu   sync.Mutex
	last time.Time // when data were last copied
}

func (s *session) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
}

func (s *session) idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last)
}

// copy copies data from one connection to the other until one of them ends, and returns the reason. The parameter ended is the reason if the connection that
// copy reads has ended.
func (s *session) copy(to, from net.Conn, ended string) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			s.touch()
			if _, err := to.Write(buf[:n]); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		if errors.Is(err, io.EOF) {
			return errors.New(ended)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", ended, err)
		}
	}
}

// watch blocks until the session must end, and returns the reason: the server is no longer on its host, no data were copied for Config.Idle, the checks failed for Config.Grace, or, with
// Config.EndWithToken, the token has expired.
func (s *session) watch(ctx context.Context) error {
	end := make(<-chan time.Time)
	if s.cfg.EndWithToken {
		t := time.NewTimer(time.Until(s.target.ExpiresAt))
		defer t.Stop()
		end = t.C
	}
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	for seen := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end:
			return errors.New("the token has expired")
		case <-tick.C:
		}
		if s.idle() > s.cfg.Idle {
			return fmt.Errorf("no data within %v", s.cfg.Idle)
		}
		switch ok, err := s.check(ctx); {
		case ok:
			seen = time.Now()
		case err == nil:
			return errors.New("the server is deleted, or is on another host")
		case time.Since(seen) > s.cfg.Grace:
			return fmt.Errorf("the checks failed for %v: %w", s.cfg.Grace, err)
		}
	}
}

// check reports whether the server is present and the client answers. It returns false without an error if the server is not present.
func (s *session) check(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	ok, err := s.cfg.Present(ctx, s.target)
	if ok && err == nil {
		err = s.ws.Ping(ctx)
	}
	return ok && err == nil, err
}

// Addr returns the address of a console, HOST:PORT.
func Addr(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
