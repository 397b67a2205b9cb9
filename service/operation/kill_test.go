package operation_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/operation"
)

// killedRequest is the request of the operation whose process is killed.
const killedRequest = "req-killed"

// killLease is the lease of the processes that are killed. It is much longer than the test, so that it never expires on a busy
// machine. The test itself ends the lease of a dead process.
const killLease = 10 * time.Minute

// killed returns a runner whose operations write their effects to the database. If the name of a kind ends in "fails", its
// operations fail in their last step. The function at is called before and after each Do and Undo, with the name of this place.
func killed(d *sqlx.DB, kind string, at func(place string)) (*operation.Runner, operation.Kind[input]) {
	k := operation.Kind[input]{Name: kind, Timeout: time.Hour}
	count := func(ctx context.Context, id, step string) error {
		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			res, err := tx.ExecContext(ctx, `UPDATE effects SET n = n + 1 WHERE operation_id = ? AND step = ?`, id, step)
			if err != nil {
				return db.Error(err)
			}
			if n, err := res.RowsAffected(); err != nil || n > 0 {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, ?, 1)`, id, step)
			return db.Error(err)
		})
	}
	do := func(step string) func(ctx context.Context, op *operation.Op, _ *input) error {
		return func(ctx context.Context, op *operation.Op, _ *input) error {
			at("before " + step)
			defer at("after " + step)
			return count(context.WithoutCancel(ctx), op.ID, step)
		}
	}
	once := func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *input) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, 'once', 1)`, op.ID)
		return db.Error(err)
	}
	unonce := func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *input) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, '-once', 1)`, op.ID)
		return db.Error(err)
	}
	last := operation.Step[input]{Name: "last", Do: do("last"), Undo: do("-last")}
	if strings.HasSuffix(kind, "fails") {
		last.Do = func(context.Context, *operation.Op, *input) error { return errors.New("no") }
	}
	r := operation.NewRunner(operation.RunnerConfig{
		Store: operation.NewStore(d), Host: "h" + strconv.Itoa(os.Getpid()), Lease: killLease, Poll: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	operation.Handle(r, k, operation.Step[input]{Name: "first", Do: do("first"), Undo: do("-first")}, operation.Step[input]{Name: "once", DoTx: once, UndoTx: unonce}, last)
	return r, k
}

// child is the main function of a process that begins an operation, runs it, and kills itself at one place.
func child() int {
	ctx := context.Background()
	last, err := strconv.ParseInt(os.Getenv("OPERATION_TEST_CHILD"), 10, 32)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	var n atomic.Int64
	at := func(place string) {
		if n.Add(1) == last {
			fmt.Println("at", place)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	// The places are before and after each statement of the runner, and each step.
	d, err := db.Open(ctx, db.Config{URL: os.Getenv("OPERATION_TEST_URL"), Observe: func(ctx context.Context, query string) func(error) {
		if reqctx.From(ctx).ID != killedRequest || strings.Contains(query, "effects") {
			return func(error) {}
		}
		at("before " + query)
		return func(error) { at("after " + query) }
	}})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	defer d.Close()
	r, k := killed(d, os.Getenv("OPERATION_TEST_KIND"), at)
	if err := r.Start(ctx); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	ops := operation.NewStore(d)
	var id string
	err = db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		if id, err = operation.Begin(ctx, ops, k, k.Name, &input{}); err == nil { // the statements of Begin are not such places
			_, err = tx.ExecContext(ctx, `UPDATE operations SET request_id = ? WHERE id = ?`, killedRequest, id)
		}
		fmt.Println("id", id) // printed before COMMIT, because after COMMIT the runner may find the operation, and the process may be killed
		return err
	})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	r.Notify(id)
	for {
		o, err := ops.Show(ctx, id)
		if err != nil {
			fmt.Println("error:", err)
			return 1
		}
		if o.State.Ended() {
			fmt.Println("over")
			return 0
		}
		waittest.Spend(5*time.Millisecond, "the time between two looks of a process that is killed")
	}
}

// waiting returns a runner whose operations wait for a peer that never answers.
func waiting(d *sqlx.DB) (*operation.Runner, operation.Kind[input]) {
	k := operation.Kind[input]{Name: "waits", Timeout: 3 * time.Second}
	r := operation.NewRunner(operation.RunnerConfig{Store: operation.NewStore(d), Host: "h" + strconv.Itoa(os.Getpid()), Lease: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	operation.Handle(r, k, operation.Step[input]{Name: "ask", Do: func(ctx context.Context, _ *operation.Op, _ *input) error {
		fmt.Println("asks")
		<-ctx.Done()
		return ctx.Err()
	}})
	return r, k
}

// blocked is the main function of a process that runs an operation that waits for a peer, until the process is killed.
func blocked() int {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: os.Getenv("OPERATION_TEST_URL")})
	if err == nil {
		r, k := waiting(d)
		if err = r.Start(ctx); err == nil {
			var id string
			if id, err = operation.Begin(ctx, operation.NewStore(d), k, "", &input{}); err == nil {
				fmt.Println("id", id)
				r.Notify(id)
				select {}
			}
		}
	}
	fmt.Println("error:", err)
	return 1
}

// TestDeadlineOfKilled: the process of a step that waits for a peer is killed. The operation ends soon after its deadline,
// although the lease of that process is an hour.
func TestDeadlineOfKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills processes: left out with -short")
	}
	d, id := killAsking(t, dbtest.MySQL(t), "deadline")
	r, _ := waiting(d)
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer r.Stop(context.WithoutCancel(t.Context()))
	err := waittest.Poll(time.Minute, func() error {
		o, err := operation.NewStore(d).Show(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if !o.State.Ended() {
			return fmt.Errorf("%v after its deadline the operation is %s, owner %s", time.Since(o.Created.Add(3*time.Second)), o.State, o.Owner)
		}
		if o.State != operation.TimedOut {
			t.Errorf("the operation ended as %s: %s", o.State, o.Error)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestKilled kills the process that runs an operation with SIGKILL, at every place before and after each step and each SQL
// statement. The lease of the dead process ends after at most its length, and then another process continues. The operation ends
// once and with the right result. The steps that must be done once are done once.
func TestKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills processes: left out with -short")
	}
	url := dbtest.MySQL(t)
	d, err := db.Open(t.Context(), db.Config{URL: url, MaxOpen: 40})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := db.Migrate(t.Context(), d, migrations...); err != nil {
		t.Fatal(err)
	}
	slots := make(chan struct{}, 4)
	for _, fails := range []string{"works", "fails"} {
		var last atomic.Int64 // the number of the first place that does not exist
		last.Store(100)
		var wg sync.WaitGroup
		defer wg.Wait()
		for at := int64(1); at < last.Load(); at++ {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if !killedAt(t, d, url, at, fmt.Sprintf("kill-%d-%s", at, fails)) {
					last.Store(min(at, last.Load()))
				}
			})
		}
		wg.Wait()
		if n := last.Load(); n < 20 || n > 60 {
			t.Errorf("%s: there are %d places", fails, n)
		}
	}
}

// killedAt starts a child that kills itself at the place with the number at, lets a runner of this process end the operation, and
// checks the result. It reports whether the child was killed before its operation had ended.
func killedAt(t *testing.T, d *sqlx.DB, url string, at int64, kind string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("OPERATION_TEST_CHILD=%d", at), "OPERATION_TEST_URL="+url, "OPERATION_TEST_KIND="+kind)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return false
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return false
	}
	id, place, over := "", "", false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "id "); ok {
			id = s
		}
		if s, ok := strings.CutPrefix(lines.Text(), "at "); ok {
			place = s
		}
		if strings.HasPrefix(lines.Text(), "error") {
			t.Error(lines.Text())
		}
		over = over || lines.Text() == "over"
	}
	_ = cmd.Wait() // the process was killed
	what := fmt.Sprintf("%s, killed at %d %q", kind, at, place)
	if id == "" {
		t.Errorf("%s: the operation did not begin", what)
		return false
	}
	ops := operation.NewStore(d)
	// A process that is killed in the beginning of the operation may have no lease.
	var left *int64
	if err := d.GetContext(t.Context(), &left, `SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), due_at) FROM operations WHERE id = ?`, id); err != nil || left != nil && *left > int64(killLease.Seconds()) {
		t.Errorf("%s: the lease ends in %v s, %v; want at most %v", what, left, err, killLease)
	}
	if _, err := d.ExecContext(t.Context(), `UPDATE operations SET due_at = UTC_TIMESTAMP(6) WHERE id = ? AND due_at IS NOT NULL`, id); err != nil {
		t.Error(err)
		return false
	}
	o, err := ops.Show(t.Context(), id)
	if err != nil {
		t.Error(err)
		return false
	}
	r, _ := killed(d, kind, func(string) {})
	if err := r.Start(t.Context()); err != nil {
		t.Error(err)
		return false
	}
	defer r.Stop(context.WithoutCancel(t.Context()))
	err = waittest.Poll(2*time.Minute, func() error {
		if o, err = ops.Show(t.Context(), id); err == nil && !o.State.Ended() {
			err = fmt.Errorf("the operation does not end: %+v", o)
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return true
	}
	want, wantError := operation.Succeeded, ""
	if strings.HasSuffix(kind, "fails") {
		want, wantError = operation.Failed, "no"
	}
	if o.State != want || o.Error != wantError {
		t.Errorf("%s: the operation ended as %s: %q; want %s: %q", what, o.State, o.Error, want, wantError)
	}
	var effects []struct {
		Step string
		N    int
	}
	if err := d.SelectContext(t.Context(), &effects, `SELECT step, n FROM effects WHERE operation_id = ?`, id); err != nil {
		t.Error(err)
	}
	got := map[string]int{}
	for _, e := range effects {
		got[e.Step] = e.N
	}
	steps := []string{"first", "once", "last"}
	if want == operation.Failed {
		steps = []string{"first", "once", "-last", "-once", "-first"}
	}
	for _, s := range steps {
		if n := got[s]; n < 1 || n > 2 || strings.HasSuffix(s, "once") && n != 1 {
			t.Errorf("%s: step %s was done %d times", what, s, n)
		}
	}
	seen := map[string]int{}
	for _, e := range o.Events {
		seen[e.StepName+":"+e.Result]++
	}
	for k, n := range seen {
		if n != 1 {
			t.Errorf("%s: event %s is there %d times", what, k, n)
		}
	}
	return !over
}

// TestDatabaseAway: if the database is down during a step, the operation is delayed, but nothing else changes.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Lease: 600 * time.Millisecond})
		rename := func(from, to string) error {
			_, err := d.ExecContext(t.Context(), `ALTER TABLE `+from+` RENAME TO `+to)
			return err
		}
		var back atomic.Bool
		operation.Handle(b.runner, create, b.step("a", func(*operation.Op) error {
			if back.Load() {
				return nil
			}
			return rename("operation_events", "away") // the step's event cannot be written
		}, nil))
		b.start()
		id := b.begin(create, "disk-1")
		waittest.Until(t, "the step", func() bool { return strings.Contains(b.j.String(), "a(7)") })
		waittest.Pass(t, 300*time.Millisecond, "the database cannot be reached")
		back.Store(true)
		waittest.Succeeds(t, "the table's return", func() error { return rename("away", "operation_events") })
		b.ends(id, operation.Succeeded)
	})
}

// killAsking migrates a database, and runs this test's program as a child process with OPERATION_TEST_CHILD=child. It kills the
// child process when that prints "asks", which means that a step runs. It returns the database and the id of the operation.
func killAsking(t *testing.T, url, child string) (d *sqlx.DB, id string) {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := db.Migrate(t.Context(), d, migrations...); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "OPERATION_TEST_CHILD="+child, "OPERATION_TEST_URL="+url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "id "); ok {
			id = s
		}
		if lines.Text() == "asks" {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait() // the error says only that the process was killed
	return d, id
}
