package amqpbus_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
)

// Environment variables of the server process of TestStorm: the URL of the broker, and the file
// to which the process appends the handled casts.
const (
	stormVar = "ARMATURE_STORM_URL"
	listVar  = "ARMATURE_STORM_LIST"
)

// stormServer runs the server in its own process. Until SIGTERM, the server appends each cast to
// the file, and answers calls.
func stormServer(url string) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the parent process reads only the line that is printed at the end
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	list, err := os.OpenFile(os.Getenv(listVar), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{url}, Exchange: "storm", ConnectTimeout: time.Minute})
	if err == nil {
		err = bus.Start(ctx)
	}
	if err != nil {
		panic(err)
	}
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "h", MaxInFlight: 32})
	rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) { m := *n + 1; return &m, nil })
	rpc.Handle(srv, keep, func(_ context.Context, n *int) (*rpc.None, error) {
		_, err := list.WriteString(strconv.Itoa(*n) + "\n") // one write, so that a kill leaves no half line
		return &rpc.None{}, err
	})
	for err = srv.Start(ctx); err != nil && ctx.Err() == nil; err = srv.Start(ctx) {
		fmt.Fprintln(os.Stderr, err)
	}
	<-ctx.Done()
	_ = srv.Stop(context.Background()) // no handler runs any more
	_ = bus.Close()                    // never fails
	st := srv.Stats()
	fmt.Fprintf(os.Stderr, "the last server process: %d redelivered, %d duplicates suppressed, %d dead letters\n", st.Redelivered, st.Duplicate, st.DeadLettered)
}

// handled returns how often the file has each cast.
func handled(t *testing.T, path string) map[int]int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]int{}
	for in := bufio.NewScanner(bytes.NewReader(raw)); in.Scan(); {
		n, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Fatalf("the list of handled casts: %v", err)
		}
		got[n]++
	}
	return got
}

// TestStorm sends thousands of casts and calls. Meanwhile connections are cut ten times in
// different ways, the broker is killed once, and the server process is killed five times. No cast
// is lost. Each call ends at its deadline or before, with a result or a typed error.
func TestStorm(t *testing.T) {
	t.Parallel()
	broker := envtest.RabbitMQ(t)
	toServer, serverURL := proxyTo(t, broker.URL)
	toClient, clientURL := proxyTo(t, broker.URL)
	casts, calls := stormSize(t)
	s := &storm{T: t, casts: casts, calls: calls, broker: broker, toServer: toServer, toClient: toClient, serverURL: serverURL, list: filepath.Join(t.TempDir(), "handled")}
	if err := os.WriteFile(s.list, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.server = s.launch()
	defer func() { s.server.Kill() }()
	bus := open(t, clientURL, "storm")
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	first := -1
	if err := waittest.Poll(time.Minute, func() error { return rpc.Cast(t.Context(), client, keep, "h", &first) }); err != nil {
		t.Fatalf("the server does not start: %v: %s", err, s.childLog.String())
	}
	var wg sync.WaitGroup
	s.cast(&wg, client)
	s.call(&wg, client)
	s.disturb()
	wg.Wait()
	var got map[int]int
	_ = waittest.Poll(time.Minute, func() error { // the result is checked below
		if got = handled(t, s.list); len(got) != s.casts+1 {
			return errors.New("not all casts are handled")
		}
		return nil
	})
	s.server.Stop(t.Context(), 20*time.Second)
	s.judge(got)
	t.Logf("%d reconnects of the client; %s", bus.Capabilities().Stats().Reconnects, s.childLog.String())
}

const stormCallTime = 5 * time.Second

// castsVar is an environment variable. It sets how many casts TestStorm sends, such as 20000.
// TestStorm sends half as many calls.
const castsVar = "ARMATURE_TEST_STORM"

// stormSize returns how many casts and how many calls TestStorm sends.
func stormSize(t *testing.T) (casts, calls int) {
	t.Helper()
	casts = 8000
	if text := os.Getenv(castsVar); text != "" {
		var err error
		if casts, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", castsVar, err)
		}
	}
	return casts, casts / 2
}

// storm is a server process and a client, each behind a proxy to a separate broker.
type storm struct {
	*testing.T

	casts, calls       int
	broker             *testenv.Service
	toServer, toClient *proxy
	serverURL          string
	list               string // file of the casts that the server has handled
	server             *testenv.Process
	childLog           bytes.Buffer

	sent, called atomic.Int64

	mu     sync.Mutex
	failed []failedCall
}

// failedCall is a call that got no reply.
type failedCall struct {
	code fault.Code
	late time.Duration // how long after its deadline the call ended
}

// launch starts the server process.
func (s *storm) launch() *testenv.Process {
	s.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:noctx // the process runs until it is killed
	cmd.Env = append(os.Environ(), stormVar+"="+s.serverURL, listVar+"="+s.list)
	cmd.Stderr = &s.childLog
	p, err := testenv.Start(cmd)
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// cast sends all casts from 32 goroutines. It returns at once.
func (s *storm) cast(wg *sync.WaitGroup, client *rpc.Client) {
	for g := range 32 {
		wg.Go(func() {
			for n := g; n < s.casts; n += 32 {
				ctx, cancel := context.WithTimeout(s.Context(), 2*time.Minute) // longer than any outage
				if err := rpc.Cast(ctx, client, keep, "h", &n); err != nil {
					s.Errorf("cast %d: %v", n, err)
				}
				cancel()
				s.sent.Add(1)
			}
		})
	}
}

// call sends all calls from 16 goroutines, spread over the time of the casts. It returns at once.
func (s *storm) call(wg *sync.WaitGroup, client *rpc.Client) {
	for g := range 16 {
		wg.Go(func() {
			for n := g; n < s.calls; n += 16 {
				_ = waittest.Poll(time.Hour, func() error { // cannot fail: the test ends earlier
					if s.called.Load() > s.sent.Load()/2+200 && s.sent.Load() < int64(s.casts) {
						return errors.New("the calls are ahead of the casts")
					}
					return nil
				})
				ctx, cancel := context.WithTimeout(s.Context(), stormCallTime)
				start := time.Now()
				m, err := rpc.Call(ctx, client, add, []string{"h", rpc.Any}[n%2], &n)
				cancel()
				s.called.Add(1)
				switch {
				case err == nil && *m != n+1:
					s.Errorf("call %d was answered with %d", n, *m)
				case err == nil:
				default:
					s.mu.Lock()
					s.failed = append(s.failed, failedCall{fault.CodeOf(err), time.Since(start) - stormCallTime})
					s.mu.Unlock()
					if fault.CodeOf(err) == fault.Unavailable { // without a delay after this immediate failure, all calls would fail in one outage
						waittest.Spend(20*time.Millisecond, "the time between two calls of a client")
					}
				}
			}
		})
	}
}

// disturb cuts connections and kills the server and the broker, evenly spread over the casts.
func (s *storm) disturb() {
	s.Helper()
	ctl := func(args ...string) {
		if out, err := s.broker.Ctl(s.Context(), args...); err != nil {
			s.Errorf("%v %s", err, out)
		}
	}
	restart := func() {
		s.server.Kill()
		s.server = s.launch()
	}
	cutBoth := func() { s.toServer.cut(); s.toClient.cut() }
	events := []func(){
		func() { s.toClient.cut() },
		restart,
		func() { s.toServer.cut() },
		cutBoth,
		restart,
		func() { ctl("close_all_connections", "storm") },
		func() {
			s.toClient.stall()
			waittest.Spend(time.Second, "the stall")
			s.toClient.resume()
			s.toClient.cut()
		},
		restart,
		func() { s.broker.Kill(); check(s.T, s.broker.Restart(s.Context())) },
		cutBoth,
		restart,
		func() { ctl("stop_app"); ctl("start_app") },
		func() {
			s.toServer.delay(5 * time.Millisecond)
			waittest.Spend(time.Second, "the slow network")
			s.toServer.delay(0)
			s.toServer.cut()
		},
		func() { ctl("close_all_connections", "again") },
		restart,
		cutBoth,
	}
	for i, event := range events {
		// the events are spread over the casts
		_ = waittest.Poll(time.Hour, func() error { // cannot fail: the test ends earlier
			if s.sent.Load() < int64(s.casts*(i+1)/(len(events)+2)) {
				return errors.New("the casts of this part are not sent")
			}
			return nil
		})
		event()
	}
}

// judge logs how many casts were lost or handled again, and how many calls failed. It fails the
// test if the numbers are wrong.
func (s *storm) judge(got map[int]int) {
	s.Helper()
	twice := 0
	for _, n := range got {
		twice += n - 1
	}
	codes := map[fault.Code]int{}
	hung := 0
	for _, f := range s.failed {
		codes[f.code]++
		if f.late > time.Second {
			hung++
		}
		switch f.code {
		case fault.Unknown, fault.Unavailable, fault.Timeout:
		default:
			s.Errorf("a call failed with %v", f.code)
		}
	}
	s.Logf("%d casts: %d lost, %d handled again; %d calls: %d failed %v, %d hung",
		s.casts, s.casts+1-len(got), twice, s.called.Load(), len(s.failed), codes, hung)
	if lost := s.casts + 1 - len(got); lost > 0 {
		s.Errorf("%d casts were lost", lost)
	}
	if hung > 0 {
		s.Errorf("%d calls ended more than a second after their deadlines", hung)
	}
	if len(s.failed) > s.calls/2 {
		s.Errorf("%d of %d calls failed: this is too many for a meaningful test", len(s.failed), s.calls)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
