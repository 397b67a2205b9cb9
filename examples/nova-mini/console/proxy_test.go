package console_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/examples/nova-mini/console"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/waittest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a proxy with one console, which sends a greeting and then echoes its input. The token "good" opens this console for the server s1, and "other" opens it for the server s2. The token
// "away" is for a console of s1 that does not listen.
type bench struct {
	*testing.T
	*httptest.Server

	proxy   *console.Proxy
	present atomic.Value // a func() (bool, error), which reports whether the server exists
	dialed  atomic.Int64 // the number of connections to the console
	running atomic.Int64 // the number of requests that the proxy serves, the open sessions included
}

func newBench(t *testing.T, cfg console.Config) *bench {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away.Close()
	b := &bench{T: t}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.dialed.Add(1)
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "RFB 003.008\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	b.present.Store(func() (bool, error) { return true, nil })
	cfg.Find = func(_ context.Context, token string) (*console.Target, error) {
		addr, ok := map[string]string{"good": l.Addr().String(), "away": away.Addr().String(), "other": l.Addr().String()}[token]
		server := "s1"
		if token == "other" {
			server = "s2"
		}
		switch {
		case token == "broken":
			return nil, fault.New(fault.Unavailable, "no database")
		case !ok:
			return nil, fault.New(fault.NotFound, "Token not found")
		}
		return &console.Target{Addr: addr, URL: b.URL + "/vnc_lite.html", ServerID: server, Host: "h1", ExpiresAt: time.Now().Add(100 * time.Millisecond), Local: true}, nil
	}
	cfg.Present = func(context.Context, *console.Target) (bool, error) {
		return b.present.Load().(func() (bool, error))() //nolint:forcetypeassert // all stored values have this type
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	b.proxy = console.New(cfg)
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.running.Add(1)
		defer b.running.Add(-1)
		b.proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		if err := b.proxy.Close(context.Background()); err != nil {
			t.Error(err)
		}
		b.Close()
		l.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return b
}

// dial opens a console, and returns the connection and the status of the reply.
func (b *bench) dial(path string, header http.Header) (ws *websocket.Conn, status int) {
	b.Helper()
	ws, resp, err := websocket.Dial(b.Context(), //nolint:bodyclose // the library says that it need not be closed
		b.URL+path, &websocket.DialOptions{HTTPHeader: header, Subprotocols: []string{"binary"}})
	if resp == nil {
		b.Fatal(err)
	}
	return ws, resp.StatusCode
}

// handshake sends the request of a WebSocket client, with further headers, and returns the status of the reply.
func (b *bench) handshake(path string, header http.Header) int {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, b.URL+path, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	maps.Copy(req.Header, header)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestTokens: a client gets the console of its token. The token is in the query, in the parameter path, or in a cookie. Without a valid token the proxy makes no connection.
func TestTokens(t *testing.T) {
	t.Parallel()
	b := newBench(t, console.Config{})
	origin := func(text ...string) http.Header { return http.Header{"Origin": text} }
	host := strings.TrimPrefix(b.URL, "http://")
	for _, tt := range []struct {
		path   string
		header http.Header
		status int
	}{
		{"/?token=good", nil, 101},
		{"/any/path?token=good", nil, 101},
		{"/vnc_lite.html?path=%3Ftoken%3Dgood", nil, 101},
		{"/vnc_lite.html?path=websockify%3Ftoken%3Dgood", nil, 101},
		{"/", http.Header{"Cookie": {"other=x; token=good"}}, 101},
		{"/?token=good", http.Header{"Cookie": {"token=bad"}}, 101},
		{"/?token=good", origin("http://" + host), 101},
		{"/?token=good", origin("http://127.0.0.1"), 101},
		{"/", nil, 401},
		{"/?token=", nil, 401},
		{"/?token=bad", http.Header{"Cookie": {"token=good"}}, 401},
		{"/?token=good&token=bad", nil, 101}, // the first token counts
		{"/?path=%3Ftoken%3Dbad", nil, 401},
		{"/?token=broken", nil, 503},
		{"/?token=away", nil, 503},
		{"/?token=good", origin("http://evil.example"), 403},
		{"/?token=good", origin("https://" + host), 403},
		{"/?token=good", origin("null"), 403},
		{"/?token=good", origin(""), 403},
		{"/?token=good", origin("http://"+host, "http://evil.example"), 403},
	} {
		before := b.dialed.Load()
		ws, status := b.dial(tt.path, tt.header)
		if status != tt.status {
			t.Errorf("%s with %v: %d, want %d", tt.path, tt.header, status, tt.status)
		}
		if ws == nil {
			if n := b.dialed.Load(); n != before {
				t.Errorf("%s with %v: the proxy has connected to the console", tt.path, tt.header)
			}
			continue
		}
		if ws.Subprotocol() != "binary" {
			t.Errorf("the subprotocol is %q", ws.Subprotocol())
		}
		c := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
		want := "RFB 003.008\n" + strings.Repeat("hello", 20_000)
		go func() { _, _ = io.WriteString(c, want[len("RFB 003.008\n"):]) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Errorf("%s: read %.40q, %v", tt.path, got, err)
		}
		_ = c.Close()
	}
	waittest.Until(t, "the ends of all sessions", func() bool { return b.running.Load() == 0 })
}

// TestRefusedLevel: what a client did wrong is logged at DEBUG, and a failure of the service at WARN.
func TestRefusedLevel(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		path   string
		header http.Header
		level  slog.Level
		text   string
	}{
		"no token":            {"/", nil, slog.LevelDebug, "console refused"},
		"a wrong token":       {"/?token=bad", nil, slog.LevelDebug, "console refused"},
		"a foreign origin":    {"/?token=good", http.Header{"Origin": {"http://evil.example"}}, slog.LevelDebug, "console refused"},
		"too many sessions":   {"/?token=other", nil, slog.LevelDebug, "console refused"},
		"no database":         {"/?token=broken", nil, slog.LevelWarn, "console refused"},
		"no console":          {"/?token=away", nil, slog.LevelWarn, "console refused"},
		"an unknown protocol": {"/?token=good", http.Header{"Sec-Websocket-Version": {"12"}}, slog.LevelDebug, "WebSocket refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log, lines := logtest.New()
			b := newBench(t, console.Config{Logger: log, MaxServerSessions: 1})
			open, status := b.dial("/?token=other", nil)
			if open == nil {
				t.Fatal(status)
			}
			if status := b.handshake(tt.path, tt.header); status < 400 {
				t.Errorf("the status is %d", status)
			}
			_ = open.CloseNow()
			waittest.Until(t, "the line in the log", func() bool { return lines.Count(slog.LevelDebug, tt.text)+lines.Count(slog.LevelWarn, tt.text) > 0 })
			if n, warnings := lines.Count(tt.level, tt.text), lines.Count(slog.LevelWarn, ""); n != 1 || (warnings != 0) != (tt.level == slog.LevelWarn) {
				t.Errorf("the log has %d lines with %q at %v, and %d at WARN", n, tt.text, tt.level, warnings)
			}
		})
	}
}

// TestPlainHTTP: a request that does not open a WebSocket gets a text, and no console.
func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	b := newBench(t, console.Config{})
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		req, err := http.NewRequestWithContext(t.Context(), method, b.URL+"/?token=good", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Referrer-Policy") != "no-referrer" || b.dialed.Load() != 0 {
			t.Errorf("%s: %d %v", method, resp.StatusCode, resp.Header)
		}
	}
}

// TestOtherOrigin: a host of AllowedOrigins may show the console.
func TestOtherOrigin(t *testing.T) {
	t.Parallel()
	b := newBench(t, console.Config{AllowedOrigins: []string{"dashboard.example"}})
	for origin, want := range map[string]int{"http://Dashboard.example:8080": 101, "http://other.example": 403} {
		if ws, status := b.dial("/?token=good", http.Header{"Origin": {origin}}); status != want {
			t.Errorf("%s: %d, want %d", origin, status, want)
		} else if ws != nil {
			_ = ws.CloseNow()
		}
	}
}

// TestEnds: a session ends when its server is gone, when no data are sent for the idle timeout, when its token expires, when the server cannot be checked, and
// when the proxy stops. The client gets the reason.
func TestEnds(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		cfg     console.Config
		present func() (bool, error)
		says    string
	}{
		"deleted": {console.Config{}, func() (bool, error) { return false, nil }, "the server is deleted"},
		"idle":    {console.Config{Idle: 50 * time.Millisecond}, func() (bool, error) { return true, nil }, "no data within 50ms"},
		"token":   {console.Config{EndWithToken: true, Every: time.Hour}, func() (bool, error) { return true, nil }, "the token has expired"},
		"checks":  {console.Config{Grace: 50 * time.Millisecond}, func() (bool, error) { return false, errors.New("no database") }, "the checks failed for 50ms: no database"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.cfg.Every == 0 {
				tt.cfg.Every = 20 * time.Millisecond
			}
			b := newBench(t, tt.cfg)
			b.present.Store(tt.present)
			ws, status := b.dial("/?token=good", nil)
			if ws == nil {
				t.Fatal(status)
			}
			defer ws.CloseNow()
			if why := ended(t, ws); why.Code != websocket.StatusGoingAway || !strings.Contains(why.Reason, tt.says) {
				t.Errorf("%+v, want %q", why, tt.says)
			}
			waittest.Until(t, "the end of the session", func() bool { return b.running.Load() == 0 })
		})
	}
}

// ended reads from a connection until it is closed, and returns the reason.
func ended(t *testing.T, ws *websocket.Conn) (why websocket.CloseError) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, _, err := ws.Read(ctx); err != nil {
			if !errors.As(err, &why) {
				t.Errorf("the session ended with %v", err)
			}
			return why
		}
	}
}

// TestServerLimit: one server can have only a part of the sessions, so that the holder of a token cannot use all sessions of the proxy. A session that has ended, or whose console
// does not answer, no longer counts.
func TestServerLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t, console.Config{MaxServerSessions: 2})
	for range 5 { // the token "away" is for the same server
		if ws, status := b.dial("/?token=away", nil); ws != nil || status != 503 {
			t.Fatalf("a console that does not listen: %d", status)
		}
	}
	var open []*websocket.Conn
	for range 2 {
		ws, status := b.dial("/?token=good", nil)
		if ws == nil {
			t.Fatal(status)
		}
		open = append(open, ws)
	}
	// A client can get its answer before the console has counted the connection.
	waittest.Until(t, "two connections to the console", func() bool { return b.dialed.Load() == 2 })
	if ws, status := b.dial("/?token=good", nil); ws != nil || status != 503 || b.dialed.Load() != 2 {
		t.Errorf("a third session of the server: status %d, %d connections to the console", status, b.dialed.Load())
	}
	other, status := b.dial("/?token=other", nil)
	if other == nil {
		t.Fatalf("a session of another server: %d", status)
	}
	_ = other.CloseNow()
	_ = open[0].CloseNow()
	waittest.Until(t, "the ends of two sessions", func() bool { return b.running.Load() == 1 })
	again, status := b.dial("/?token=good", nil)
	if again == nil {
		t.Fatalf("after the end of a session: %d", status)
	}
	_ = again.CloseNow()
	_ = open[1].CloseNow()
}

// TestLoopback: if the host of the server is another machine, a console at a loopback address, in any form, is refused, because on the proxy's machine a console of another server
// may have this address. The log says what to do.
func TestLoopback(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for host, local := range map[string]bool{
		"127.0.0.1": false, "127.1.2.3": false, "localhost": false, "0.0.0.0": false, "::": false, "::1": false, "::ffff:127.0.0.1": false, "": false, "127.0.0.2": true,
	} {
		var log strings.Builder
		p := console.New(console.Config{
			Find: func(context.Context, string) (*console.Target, error) {
				return &console.Target{Addr: net.JoinHostPort(host, port), URL: "http://x/", ServerID: "s1", Host: "h1", Local: local}, nil
			},
			Present: func(context.Context, *console.Target) (bool, error) { return true, nil },
			Logger:  slog.New(slog.NewTextHandler(&log, nil)),
		})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/?token=good", http.NoBody)
		r.Header.Set("Upgrade", "websocket")
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		refused := w.Code == 503 && strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "is a loopback address") && strings.Contains(log.String(), "host h1")
		if refused == local {
			t.Errorf("%q, local %t: %d, log %s", host, local, w.Code, &log)
		}
	}
}

// TestLimit: sessions above the limit are refused. When the proxy stops, its sessions end, and new sessions are refused. A session also ends when its client disconnects.
func TestLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t, console.Config{MaxSessions: 1})
	first, _ := b.dial("/?token=good", nil)
	if ws, status := b.dial("/?token=good", nil); ws != nil || status != 503 {
		t.Errorf("a second session: %d", status)
	}
	_ = first.Close(websocket.StatusNormalClosure, "")
	waittest.Until(t, "the end of the session", func() bool { return b.running.Load() == 0 })
	second, status := b.dial("/?token=good", nil)
	if second == nil {
		t.Fatal(status)
	}
	go func() { _ = b.proxy.Close(context.Background()) }()
	_ = ended(t, second)
	waittest.Until(t, "the end of the session", func() bool { return b.running.Load() == 0 })
	if ws, status := b.dial("/?token=good", nil); ws != nil || status != 503 {
		t.Errorf("after the stop: %d", status)
	}
	if u, err := url.Parse(b.URL); err != nil || console.Addr(u.Hostname(), 1) != "127.0.0.1:1" || console.Addr("::1", 2) != "[::1]:2" {
		t.Errorf("%v", err)
	}
}
