package rpctest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

// lostVar is the environment variable that makes a test binary a server process of [TestLost]. Its value is the URL of the broker,
// the exchange and the host, separated by spaces.
const lostVar = "ARMATURE_TEST_LOST"

// Dialer opens and starts a bus over the broker at url. Buses with the same exchange can exchange messages.
type Dialer func(ctx context.Context, url, exchange string) (bus.Bus, error)

// ServeLost must be the first call in TestMain. If this process is a server process of [TestLost], ServeLost runs the server and
// does not return. Otherwise it returns at once.
func ServeLost(open Dialer) {
	what := strings.Fields(os.Getenv(lostVar))
	if len(what) != 3 {
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	b, err := open(context.Background(), what[0], what[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	srv := rpc.NewServer(b, rpc.ServerConfig{Interface: iface, Host: what[2]})
	rpc.Handle(srv, work, func(_ context.Context, j *job) (*job, error) {
		_, err := os.Stdout.WriteString("start " + strconv.Itoa(j.N) + "\n") // in one write, so that the lines of concurrent handlers do not mix
		waittest.Spend(j.Takes, "the work of the job")
		return j, err
	})
	if err = srv.Start(context.Background()); err == nil {
		_, err = os.Stdout.WriteString("ready\n")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent process has ended
	_ = srv.Stop(context.Background())   // the test is over
	_ = b.Close()                        // as above
	os.Exit(0)
}

type job struct {
	N     int
	Takes time.Duration
}

var work = rpc.Method[job, job]{Interface: iface, Name: "work", Since: rpc.Version{Major: 1}}

// Broker is the broker of [TestLost].
type Broker struct {
	// URL is for the client, and ServerURL is for the servers. ServerURL leads through a proxy.
	URL, ServerURL string
	// Outage closes the connections through ServerURL, and prevents new ones for the duration. It returns at the end of the
	// outage.
	Outage func(time.Duration)
	// Keeps means that a call waits for a server that is down for less than 10 s. If Keeps is false, such a call fails at once
	// with ErrNoConsumer.
	Keeps bool
}

const (
	lostWithin = 2 * time.Second // the maximum time from the kill of a server to ErrServerLost at its callers
	cutFor     = time.Second     // how long a connection is cut
)

// TestLost starts servers in separate processes. While handlers run, it kills the processes with SIGKILL, cuts their connections
// and pauses them, and checks the errors and results that the callers get. The test binary must call [ServeLost] in TestMain.
func TestLost(t *testing.T, open Dialer, broker func(t *testing.T) Broker) { //nolint:tparallel // the caller of TestLost decides
	t.Helper()
	if testing.Short() {
		t.Skip("kills and pauses processes: left out with -short")
	}
	for _, host := range []string{"h", rpc.Any} {
		name := map[string]string{"h": "named", rpc.Any: "any"}[host]
		for _, back := range []bool{false, true} {
			event := map[bool]string{false: "killed", true: "killed and back"}[back]
			t.Run(event+"/"+name, func(t *testing.T) {
				t.Parallel()
				l := &lost{T: t, open: open, broker: broker(t), host: host}
				for _, after := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 700 * time.Millisecond} {
					if !back || after != 50*time.Millisecond {
						l.testKill(after, back, false)
					}
				}
				l.testKill(5*time.Millisecond, back, true)
				l.testStorm(back)
			})
		}
		t.Run("cut/"+name, func(t *testing.T) {
			t.Parallel()
			l := &lost{T: t, open: open, broker: broker(t), host: host}
			for _, after := range []time.Duration{5 * time.Millisecond, 400 * time.Millisecond} {
				l.testCut(after)
			}
		})
		t.Run("away/"+name, func(t *testing.T) {
			t.Parallel()
			(&lost{T: t, open: open, broker: broker(t), host: host}).testAway()
		})
		for _, warm := range []bool{false, true} {
			t.Run(map[bool]string{false: "gone", true: "gone, warm"}[warm]+"/"+name, func(t *testing.T) {
				t.Parallel()
				(&lost{T: t, open: open, broker: broker(t), host: host}).testGone(warm)
			})
		}
		t.Run("paused/"+name, func(t *testing.T) {
			t.Parallel()
			(&lost{T: t, open: open, broker: broker(t), host: host}).testPaused()
		})
	}
}

// lost is a case of TestLost.
type lost struct {
	*testing.T

	open   Dialer
	broker Broker
	host   string

	exchange string
	client   *rpc.Client
	next     int
	mu       sync.Mutex
	starts   map[int][]time.Time // when handlers started, by the number of the job
	began    chan int            // gets the number of a job when the job's handler starts
}

// newClient makes a client on a new exchange.
func (l *lost) newClient(cfg rpc.ClientConfig) {
	l.Helper()
	l.exchange = fmt.Sprintf("lost.%x", rand.Uint64())
	b, err := l.open(l.Context(), l.broker.URL, l.exchange)
	if err != nil {
		l.Fatal(err)
	}
	l.client = rpc.NewClient(b, cfg)
	client := l.client
	l.Cleanup(func() {
		_ = client.Close() // never fails
		_ = b.Close()      // as above
	})
	l.starts, l.began = make(map[int][]time.Time), make(chan int, 1<<16)
}

// launch starts a server process, waits until its server has started, and returns the process.
func (l *lost) launch() *os.Process {
	l.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:noctx // the process runs until it is killed
	cmd.Env = append(os.Environ(), lostVar+"="+l.broker.ServerURL+" "+l.exchange+" h")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with the process
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			what, n, _ := strings.Cut(lines.Text(), " ")
			switch i, _ := strconv.Atoi(n); what {
			case "ready":
				close(ready)
			case "start":
				l.mu.Lock()
				l.starts[i] = append(l.starts[i], time.Now())
				l.mu.Unlock()
				l.began <- i
			}
		}
		_ = cmd.Wait() // the process was killed
	}()
	l.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill() // fails if the process has ended
		<-ended
	})
	select {
	case <-ready:
	case <-ended:
		l.Fatal("the server process has ended")
	case <-time.After(caseTimeout):
		l.Fatalf("the server process did not start within %v", caseTimeout)
	}
	return cmd.Process
}

type result struct {
	n    int
	err  error
	when time.Time
}

// call starts a call whose handler takes the given time.
func (l *lost) call(takes time.Duration) <-chan result {
	l.Helper()
	l.next++
	n, done, client := l.next, make(chan result, 1), l.client
	go func() { // ends with the call
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		got, err := rpc.Call(ctx, client, work, l.host, &job{n, takes})
		if err == nil && got.N != n {
			err = fmt.Errorf("job %d was answered with %d", n, got.N)
		}
		done <- result{n, err, time.Now()}
	}()
	return done
}

// callAndWait starts a call, and returns when the call's handler has run for the duration after.
func (l *lost) callAndWait(takes, after time.Duration) <-chan result {
	l.Helper()
	done := l.call(takes)
	select {
	case <-l.began:
	case r := <-done:
		l.Fatalf("the call did not start: %v", r.err)
	case <-time.After(caseTimeout):
		l.Fatal("the call did not start")
	}
	waittest.Pass(l, after, "the handler must run for this time")
	return done
}

// wait returns the result of a call.
func (l *lost) wait(done <-chan result) result {
	l.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(time.Minute):
		l.Fatal("the call did not end")
		panic("unreachable")
	}
}

func killProcess(t testing.TB, p *os.Process) time.Time {
	t.Helper()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// testKill kills the server when a handler has run for the duration after. If back is true, it starts the server again. If warm is
// true, the client has called the server before.
func (l *lost) testKill(after time.Duration, back, warm bool) {
	l.Helper()
	l.newClient(rpc.ClientConfig{})
	p := l.launch()
	if warm {
		if r := l.wait(l.call(0)); r.err != nil {
			l.Fatal(r.err)
		}
		<-l.began // the server process writes the line before the reply, but the test may read it after the reply
		waittest.Pass(l, 50*time.Millisecond, "the server ends the delivery of the first call")
	}
	done := l.callAndWait(time.Minute, after)
	killed := killProcess(l, p)
	if back {
		l.launch()
	}
	r := l.wait(done)
	took := r.when.Sub(killed)
	l.Logf("killed %v after the start, warm %v: %v after the kill: %v", after, warm, took.Round(time.Millisecond), r.err)
	if !errors.Is(r.err, rpc.ErrServerLost) || fault.CodeOf(r.err) != fault.Unknown || took > lostWithin {
		l.Errorf("the call ended after %v with %v, want ErrServerLost within %v", took, r.err, lostWithin)
	}
	l.checkOnce(killed)
}

// checkOnce checks that no call was handled twice. There is one exception: if a handler had just begun at the kill, its call may
// be handled twice, because the broker may not have read the acknowledgement.
func (l *lost) checkOnce(killed time.Time) {
	l.Helper()
	const just = 20 * time.Millisecond
	l.mu.Lock()
	defer l.mu.Unlock()
	twice := 0
	for n, at := range l.starts {
		if len(at) < 2 {
			continue
		}
		twice++
		if first := killed.Sub(at[0]); first > just {
			l.Errorf("job %d ran %d times, the first time beginning %v before the kill", n, len(at), first)
		}
	}
	if twice > 0 {
		l.Logf("%d of %d jobs ran twice: their acknowledgements were lost", twice, len(l.starts))
	}
}

// testStorm kills the server at a random moment while the server handles many short calls. It prints its seed.
func (l *lost) testStorm(back bool) {
	l.Helper()
	seed := rand.Uint64()
	dice := rand.New(rand.NewPCG(seed, 0))
	l.Logf("seed %d", seed)
	l.newClient(rpc.ClientConfig{})
	p := l.launch()
	const callers = 8
	results := make(chan result)
	for range callers {
		done := l.call(time.Duration(dice.IntN(20)) * time.Millisecond)
		go func() { results <- <-done }()
	}
	at := time.After(300*time.Millisecond + time.Duration(dice.IntN(300))*time.Millisecond)
	var killed time.Time
	failed, answered, worst := 0, 0, time.Duration(0)
	for left := callers; left > 0; {
		select {
		case <-at:
			killed = killProcess(l, p)
			if back {
				l.launch()
			}
		case r := <-results:
			if killed.IsZero() {
				if r.err != nil {
					l.Errorf("job %d failed before the kill: %v", r.n, r.err)
				}
				done := l.call(time.Duration(dice.IntN(20)) * time.Millisecond)
				go func() { results <- <-done }()
				continue
			}
			left--
			took := r.when.Sub(killed)
			worst = max(worst, took)
			if r.err == nil {
				answered++
			} else {
				failed++
			}
			if r.err != nil && !errors.Is(r.err, rpc.ErrServerLost) && !errors.Is(r.err, rpc.ErrNoConsumer) || took > lostWithin {
				l.Errorf("job %d ended %v after the kill with %v, want an answer, ErrServerLost or ErrNoConsumer within %v", r.n, took, r.err, lostWithin)
			}
		case <-time.After(time.Minute):
			l.Fatal("calls did not end")
		}
	}
	l.Logf("%d jobs; of %d at the kill %d were answered and %d failed, the last after %v", l.next, callers, answered, failed, worst.Round(time.Millisecond))
	l.checkOnce(killed)
}

// testCut cuts the server's connection for cutFor, and checks that the reply still comes.
func (l *lost) testCut(after time.Duration) {
	l.Helper()
	l.newClient(rpc.ClientConfig{})
	l.launch()
	done := l.callAndWait(2500*time.Millisecond, after)
	begin := time.Now()
	l.broker.Outage(cutFor)
	r := l.wait(done)
	l.Logf("cut %v after the start: answered %v after the cut, %v", after, r.when.Sub(begin).Round(time.Millisecond), r.err)
	if r.err != nil {
		l.Errorf("the call of a server that lost its connection for %v: %v, want its answer", cutFor, r.err)
	}
	l.checkOnce(begin)
}

// testAway calls a server that was killed 1 s before. The server is started again 2 s after the call.
func (l *lost) testAway() {
	l.Helper()
	l.newClient(rpc.ClientConfig{})
	p := l.launch()
	if r := l.wait(l.call(0)); r.err != nil {
		l.Fatal(r.err)
	}
	killed := killProcess(l, p)
	waittest.Pass(l, time.Second, "the server is down")
	begin := time.Now()
	done := l.call(0)
	if !l.broker.Keeps {
		if r := l.wait(done); !errors.Is(r.err, rpc.ErrNoConsumer) || r.when.Sub(begin) > time.Second {
			l.Errorf("a call to a server that is down: %v after %v, want ErrNoConsumer at once", r.err, r.when.Sub(begin))
		}
		return
	}
	waittest.Pass(l, 2*time.Second, "the server is down")
	l.launch()
	r := l.wait(done)
	l.Logf("called 1s after the kill: %v after it, %v", r.when.Sub(killed).Round(time.Millisecond), r.err)
	if r.err != nil {
		l.Errorf("a call to a server that was down: %v, want its answer", r.err)
	}
	l.checkOnce(killed)
}

// testGone calls a server that was killed just before and is not started again. If warm is true, the client has called the server
// before, and so can find out before the call that the instance has ended. A broker that keeps calls for a server that is down
// drops them after 10 s.
func (l *lost) testGone(warm bool) {
	l.Helper()
	const keeps, within = 10 * time.Second, 6 * time.Second
	l.newClient(rpc.ClientConfig{})
	p := l.launch()
	if warm {
		if r := l.wait(l.call(0)); r.err != nil {
			l.Fatal(r.err)
		}
		<-l.began // the server process writes the line before the reply, but the test may read it after the reply
	}
	killed, gap := killProcess(l, p), 300*time.Millisecond
	if warm {
		gap = time.Second
	}
	waittest.Pass(l, gap, "the server is down")
	r := l.wait(l.call(0))
	took := r.when.Sub(killed)
	l.Logf("called %v after the kill, warm %v: %v after it, %v", gap, warm, took.Round(time.Millisecond), r.err)
	if !errors.Is(r.err, rpc.ErrServerLost) && !errors.Is(r.err, rpc.ErrNoConsumer) || took > keeps+within {
		l.Errorf("a call to a server that is gone: %v after %v, want ErrServerLost or ErrNoConsumer within %v", r.err, took, keeps+within)
	}
}

// testPaused stops the server's process with SIGSTOP, and checks that the caller gets ErrHeartbeatLost.
func (l *lost) testPaused() {
	l.Helper()
	const timeout = 4 * time.Second
	l.newClient(rpc.ClientConfig{HeartbeatTimeout: timeout})
	p := l.launch()
	begin := time.Now()
	done := l.callAndWait(time.Minute, 300*time.Millisecond)
	if err := pauseProcess(p); err != nil {
		l.Fatal(err)
	}
	r := l.wait(done)
	took := r.when.Sub(begin)
	l.Logf("paused: %v after the call: %v", took.Round(time.Millisecond), r.err)
	if !errors.Is(r.err, rpc.ErrHeartbeatLost) || took < timeout {
		l.Errorf("the call of a paused server ended after %v with %v, want ErrHeartbeatLost after %v at least", took, r.err, timeout)
	}
}
