package db_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// silenceTimeout is the ResponseTimeout of the tests.
const silenceTimeout = 2 * time.Second

// silenceLimit is the time within which everything on a silent database must end: ResponseTimeout, one attempt to connect (5 s), and time for a slow machine.
const silenceLimit = 20 * time.Second

// TestHungServer: a server that hangs does not block the users of a handle, although their contexts have no deadline. The errors say whether a
// statement may have been executed. The handle recovers, and statements that take long are not cut off while the server answers.
func TestHungServer(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	s := newSilence(t, dbtest.On(t, server.URL), server.Pause, server.Resume)
	s.longStatement()
	s.lockWait()
	s.silent()
	s.manyUsers()
	s.hungCommit(server)
}

// TestProxyWithoutServer: the same for a proxy that accepts bytes and drops them, on new connections, too.
func TestProxyWithoutServer(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes half a minute: left out with -short")
	}
	p, proxied := startProxy(t, dbtest.MySQL(t), nil)
	s := newSilence(t, proxied, p.drop, p.forward)
	s.longStatement()
	s.silent()
	s.manyUsers()
}

// TestCloseOnSilentServer: the handle of a silent server still obeys the deadline of the context, and ends at once when the handle is closed.
func TestCloseOnSilentServer(t *testing.T) {
	t.Parallel()
	p, proxied := startProxy(t, dbtest.MySQL(t), nil)
	d, err := db.Open(t.Context(), db.Config{URL: proxied, ResponseTimeout: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.drop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := d.GetContext(ctx, new(int), "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the error of the context", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestCloseDuringCheck: a handle is closed while a statement waits and the handle asks whether the database answers. The error does not say that the database was
// silent for the response timeout.
func TestCloseDuringCheck(t *testing.T) {
	t.Parallel()
	p, proxied := startProxy(t, dbtest.MySQL(t), nil)
	d, err := db.Open(t.Context(), db.Config{URL: proxied, ResponseTimeout: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	opened := p.accepted.Load()
	if err := p.drop(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- db.Error(d.GetContext(t.Context(), new(int), "SELECT 1")) }()
	waittest.Until(t, "the handle to ask with a new connection", func() bool { return p.accepted.Load() > opened })
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, fault.Unknown) || strings.Contains(err.Error(), "not answered") {
		t.Errorf("%v (%v)", err, fault.CodeOf(err))
	}
}

// TestLateAnswer: a statement whose answer comes while the handle waits for a new connection succeeds, also if the new connection gets no answer.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	p, proxied := startProxy(t, dbtest.MySQL(t), nil)
	d, err := db.Open(t.Context(), db.Config{URL: proxied, ResponseTimeout: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p.refusing.Store(true)
	if n := get[int](t, d, "SELECT SLEEP(3)"); n != 0 {
		t.Errorf("SLEEP was interrupted: %d", n)
	}
}

// TestSilentDatabaseNamed: a database that accepts connections and does not answer is named as such by each error, also if the caller's deadline ends the wait.
// The error has the address and not the password.
func TestSilentDatabaseNamed(t *testing.T) {
	t.Parallel()
	deaf, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // the address is local
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deaf.Close() }) // after the parallel subtests
	addr := deaf.Addr().String()
	want := "the database at " + addr + " accepts connections but does not answer (it hangs, or a proxy has no server)"
	for what, c := range map[string]struct {
		code     fault.Code
		deadline time.Duration // 0: none
		timeout  string        // of an attempt to connect
		run      func(ctx context.Context, cfg db.Config) error
	}{
		"Open": {fault.Unavailable, 0, "300ms", openAndClose},
		"Open, several attempts": {fault.Unavailable, 0, "300ms", func(ctx context.Context, cfg db.Config) error {
			cfg.ConnectTimeout = time.Second
			return openAndClose(ctx, cfg)
		}},
		"Open with a deadline": {fault.Timeout, 300 * time.Millisecond, "5s", openAndClose},
		"a statement": {fault.Unavailable, 0, "300ms", onHandle(func(ctx context.Context, d *sqlx.DB) error {
			return db.Error(d.GetContext(ctx, new(int), "SELECT 1"))
		})},
		"a statement with a deadline": {fault.Timeout, 300 * time.Millisecond, "5s", onHandle(func(ctx context.Context, d *sqlx.DB) error {
			return db.Error(d.GetContext(ctx, new(int), "SELECT 1"))
		})},
		"Service.Start": {fault.Unavailable, 0, "300ms", onHandle(func(ctx context.Context, d *sqlx.DB) error {
			return (&db.Service{DB: d, Migrations: only(things)}).Start(ctx)
		})},
		"Health":                 {fault.Unavailable, 0, "300ms", onHandle(db.Health)},
		"Health, its own limit":  {fault.Unavailable, 0, "1m", onHandle(db.Health)},
		"Health with a deadline": {fault.Unavailable, 300 * time.Millisecond, "5s", onHandle(db.Health)},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			if c.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.deadline)
				defer cancel()
			}
			err := c.run(ctx, db.Config{URL: "mysql://u:s3cret@" + addr + "/d?timeout=" + c.timeout, ConnectTimeout: -1})
			if fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%v (%v), want %v: %s", err, fault.CodeOf(err), c.code, want)
			}
			if c.deadline > 0 && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want the error of the context", err)
			}
		})
	}
}

// openAndClose opens a database and closes it.
func openAndClose(ctx context.Context, cfg db.Config) error {
	d, err := db.Open(ctx, cfg)
	if err == nil {
		err = d.Close()
	}
	return err
}

// onHandle returns a function that calls use with a handle that has no connection yet.
func onHandle(use func(context.Context, *sqlx.DB) error) func(context.Context, db.Config) error {
	return func(ctx context.Context, cfg db.Config) error {
		d, err := db.New(cfg)
		if err != nil {
			return err
		}
		return errors.Join(use(ctx, d), d.Close())
	}
}

// TestNotAccepting: a database that refuses connections, and a proxy that closes them, are not said to be silent, and have an error with the address.
func TestNotAccepting(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // the address is local
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	})
	defer accepting.Wait()
	defer func() { _ = l.Close() }()
	for addr, want := range map[string]string{
		envtest.DeadAddr(t): "connection refused",
		l.Addr().String():   "the database at " + l.Addr().String() + " accepts connections and closes them without an answer (a proxy has no server, or the server stops)",
	} {
		for what, run := range map[string]func(context.Context, db.Config) error{"Open": openAndClose, "Health": onHandle(db.Health)} {
			err := run(t.Context(), db.Config{URL: "mysql://u:s3cret@" + addr + "/d", ConnectTimeout: -1})
			if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "does not answer (it") || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: %v (%v), want %s", what, err, fault.CodeOf(err), want)
			}
		}
	}
}

// TestHealthOnSilentConnection: Health names a database that stops answering on connections that are open. A pool without a free connection is another error.
func TestHealthOnSilentConnection(t *testing.T) {
	t.Parallel()
	p, proxied := startProxy(t, dbtest.MySQL(t), nil)
	d, err := db.Open(t.Context(), db.Config{URL: proxied, MaxOpen: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	health := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := db.Health(ctx, d)
		if !errors.Is(err, fault.Unavailable) {
			t.Errorf("%v (%v), want Unavailable", err, fault.CodeOf(err))
		}
		return fmt.Sprint(err)
	}
	used, err := d.Connx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := health(); strings.Contains(got, "accepts connections") || !strings.Contains(got, "no connection of the pool is free") {
		t.Errorf("without a free connection: %s", got)
	}
	if err := used.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Health(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := p.drop(); err != nil {
		t.Fatal(err)
	}
	if got := health(); !strings.Contains(got, " accepts connections but does not answer (it hangs, or a proxy has no server)") {
		t.Errorf("on a silent connection: %s", got)
	}
}

// silence is a database that can be made silent.
type silence struct {
	*testing.T

	d            *sqlx.DB
	mute, unmute func() error
	url          string
}

func newSilence(t *testing.T, rawURL string, mute, unmute func() error) *silence {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: rawURL, MaxOpen: 5, ResponseTimeout: silenceTimeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
		t.Fatal(err)
	}
	exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
	s := &silence{T: t, d: d, mute: mute, unmute: unmute, url: rawURL}
	if err := s.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// read runs the long query.
func (s *silence) read(ctx context.Context) error {
	var name string
	return db.Error(s.d.GetContext(ctx, &name, longQuery, "1"))
}

// longStatement: a statement that takes longer than ResponseTimeout succeeds, because the server answers meanwhile.
func (s *silence) longStatement() {
	s.Helper()
	if n := get[int](s.T, s.d, "SELECT SLEEP(5)"); n != 0 {
		s.Errorf("SLEEP was interrupted: %d", n)
	}
}

// lockWait: a transaction waits longer than ResponseTimeout for the lock of another one.
func (s *silence) lockWait() {
	s.Helper()
	locked, release := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		if err := db.Tx(s.Context(), s.d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE things SET n = 0")
			close(locked)
			<-release
			return err
		}); err != nil {
			s.Error(err)
		}
	})
	<-locked
	time.AfterFunc(3*silenceTimeout, func() { close(release) })
	if _, err := db.Exec(s.Context(), s.d, "UPDATE things SET n = n + 1"); err != nil {
		s.Errorf("after a long wait for a lock: %v", err)
	}
	holder.Wait()
}

// silent: each kind of statement ends, with the code that says whether it had an effect, and works again when the database does.
func (s *silence) silent() {
	s.Helper()
	for what, one := range map[string]struct {
		want fault.Code
		run  func(ctx context.Context) error
	}{
		"a query": {fault.Unavailable, func(ctx context.Context) error {
			return db.Error(s.d.GetContext(ctx, new(int), "SELECT n FROM things"))
		}},
		"a query of several lines": {fault.Unavailable, func(ctx context.Context) error {
			return db.Error(s.d.GetContext(ctx, new(int), "SELECT\n\tn FROM things"))
		}},
		"a long query": {fault.Unavailable, s.read},
		"a statement": {fault.Unknown, func(ctx context.Context) error {
			_, err := db.Exec(ctx, s.d, "UPDATE things SET n = n + 1")
			return err
		}},
		"a statement larger than the buffers of the network": {fault.Unavailable, func(ctx context.Context) error {
			return db.Error(s.d.GetContext(ctx, new(int), "SELECT LENGTH(?)", strings.Repeat("x", 12<<20)))
		}},
		"a transaction": {fault.Unavailable, func(ctx context.Context) error {
			return db.Tx(ctx, s.d, func(ctx context.Context, tx *sqlx.Tx) error {
				_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
				return err
			})
		}},
		"a new handle": {fault.Unavailable, func(ctx context.Context) error {
			d, err := db.New(db.Config{URL: s.url})
			if err == nil {
				err = errors.Join(db.Error(d.GetContext(ctx, new(int), "SELECT n FROM things")), d.Close())
			}
			return err
		}},
	} {
		s.bounded(what, one.want, func() error { return one.run(s.Context()) })
	}
}

// bounded runs f while the database is silent, and expects an error with the code want within silenceLimit. Then the database answers again.
func (s *silence) bounded(what string, want fault.Code, f func() error) {
	s.Helper()
	if err := s.mute(); err != nil {
		s.Fatal(err)
	}
	begin := time.Now()
	err := f()
	if took := time.Since(begin); took > silenceLimit {
		s.Errorf("%s on a silent database took %v", what, took)
	}
	if fault.CodeOf(err) != want {
		s.Errorf("%s on a silent database: %v (%v), want %v", what, err, fault.CodeOf(err), want)
	}
	if err := s.unmute(); err != nil {
		s.Fatal(err)
	}
	waittest.Until(s.T, "a query after the silence", func() bool { return s.read(s.Context()) == nil })
}

// manyUsers: many more users than connections do not wait one after the other.
func (s *silence) manyUsers() {
	s.Helper()
	s.bounded("100 users", fault.Unavailable, func() error {
		var users sync.WaitGroup
		var last atomic.Pointer[error]
		for range 100 {
			users.Go(func() {
				err := s.read(s.Context())
				if !errors.Is(err, fault.Unavailable) {
					s.Errorf("%v (%v), want Unavailable", err, fault.CodeOf(err))
				}
				last.Store(&err)
			})
		}
		users.Wait()
		return *last.Load()
	})
}

// hungCommit: the transaction of a COMMIT without an answer may be committed.
func (s *silence) hungCommit(server *testenv.Service) {
	s.Helper()
	s.bounded("COMMIT", fault.Unknown, func() error {
		if err := s.unmute(); err != nil {
			return err
		}
		return db.Tx(s.Context(), s.d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
			return errors.Join(err, server.Pause())
		})
	})
}

// proxy forwards connections to a server, or drops all bytes, or closes new connections.
type proxy struct {
	dropping, refusing atomic.Bool
	accepted           atomic.Int32 // connections
	change             func(packet []byte)
}

func (p *proxy) drop() error    { p.dropping.Store(true); return nil }
func (p *proxy) forward() error { p.dropping.Store(false); return nil }

// startProxy starts a proxy in front of the server of a URL, and returns the URL with the address of the proxy. The function change may be nil. Otherwise it
// changes what a client sends; several goroutines may call it.
func startProxy(t *testing.T, rawURL string, change func(packet []byte)) (p *proxy, proxied string) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	target := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // the address is local
	if err != nil {
		t.Fatal(err)
	}
	p, u.Host = &proxy{change: change}, l.Addr().String()
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.accepted.Add(1)
			if p.refusing.Load() {
				_ = c.Close()
				continue
			}
			open.Go(func() { p.serve(t, c, target) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		open.Wait()
	})
	return p, u.String()
}

// serve copies bytes in both directions until one side ends or the test does.
func (p *proxy) serve(t *testing.T, client net.Conn, target string) {
	server, err := new(net.Dialer).DialContext(t.Context(), "tcp", target)
	if err != nil {
		_ = client.Close()
		return
	}
	end := context.AfterFunc(t.Context(), func() { _, _ = client.Close(), server.Close() })
	defer end()
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, client, p.change) })
	both.Go(func() { p.copy(client, server, nil) })
	both.Wait()
}

// copy copies bytes until an error, and then closes both sides.
func (p *proxy) copy(to io.WriteCloser, from io.ReadCloser, change func([]byte)) {
	defer func() { _, _ = to.Close(), from.Close() }()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !p.dropping.Load() {
			if change != nil {
				change(b[:n])
			}
			_, err = to.Write(b[:n])
		}
		if err != nil {
			return
		}
	}
}
