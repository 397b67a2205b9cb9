package operation_test

import (
	"bytes"
	"context"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/service/operation"
)

// commitProxy stands between a process and MariaDB. When it is armed, it delivers the next COMMIT, and then cuts the connection
// instead of delivering the answer.
type commitProxy struct {
	net.Listener

	to    string
	armed atomic.Bool
	cuts  atomic.Int64
}

func newCommitProxy(t *testing.T, to string) *commitProxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p := &commitProxy{Listener: l, to: to}
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *commitProxy) serve(client net.Conn) {
	defer client.Close()
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	var cut atomic.Bool
	go func() { // ends with the connections
		defer client.Close()
		copyWhile(client, server, func([]byte) bool { return !cut.Load() })
	}()
	copyWhile(server, client, func(b []byte) bool {
		if bytes.Contains(b, []byte("\x03COMMIT")) && p.armed.CompareAndSwap(true, false) {
			cut.Store(true)
			p.cuts.Add(1)
		}
		return true
	})
}

// copyWhile copies until an error, or until deliver returns false for the data that was read.
func copyWhile(to, from net.Conn, deliver func([]byte) bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !deliver(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestLostCommit: the answer to the COMMIT of a step is lost. The runner finds out that the step was committed: the effects of the
// step exist once, and the next step gets the data of the step.
func TestLostCommit(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute: left out with -short")
	}
	direct := dbtest.MySQL(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	p := newCommitProxy(t, u.Host)
	u.Host = p.Addr().String()
	d, err := db.Open(t.Context(), db.Config{URL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := db.Migrate(t.Context(), d, migrations...); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, d, operation.RunnerConfig{Lease: 5 * time.Second}) // each lost answer may cost a lease
	effect := func(step string) operation.Step[input] {
		return operation.Step[input]{Name: step, DoTx: func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, ?, 1)`, op.ID, step)
			in.Size++
			p.armed.Store(step != "c")
			return db.Error(err)
		}}
	}
	var seen atomic.Int64
	look := operation.Step[input]{Name: "look", Do: func(_ context.Context, _ *operation.Op, in *input) error {
		seen.Store(int64(in.Size))
		return nil
	}}
	operation.Handle(b.runner, create, effect("a"), effect("b"), effect("c"), look)
	b.start()
	id := b.begin(create, "disk")
	o := b.ends(id, operation.Succeeded)
	if got := events(o); got != "a:done b:done c:done look:done" {
		t.Errorf("events %s", got)
	}
	var n int
	if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects WHERE operation_id = ?`, id); err != nil || n != 3 {
		t.Errorf("%d effects, %v; want 3", n, err)
	}
	if cuts := p.cuts.Load(); cuts != 2 || seen.Load() != 7+3 {
		t.Errorf("%d answers were cut, and the last step sees size %d; want 2 and 10", cuts, seen.Load())
	}
}
