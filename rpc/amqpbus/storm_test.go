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

// The environment variables of the server process of TestStorm: the broker's
// URL, and the file that lists what was handled.
const (
	stormVar = "ARMATURE_STORM_URL"
	listVar  = "ARMATURE_STORM_LIST"
)

// stormServer is a server process: it notes each cast in the file, and answers
// calls, until SIGTERM.
func stormServer(url string) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the parent wants what is printed below
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
		_, err := list.WriteString(strconv.Itoa(*n) + "\n") // at once, and appended
		return &rpc.None{}, err
	})
	for err = srv.Start(ctx); err != nil && ctx.Err() == nil; err = srv.Start(ctx) {
		fmt.Fprintln(os.Stderr, err)
	}
	<-ctx.Done()
	_ = srv.Stop(context.Background()) // nothing runs any more
	_ = bus.Close()                    // never fails
	st := srv.Stats()
	fmt.Fprintf(os.Stderr, "the last server process: %d redelivered, %d duplicates suppressed, %d dead letters\n", st.Redelivered, st.Duplicate, st.DeadLettered)
}

// handled counts how often each cast is in the file.
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
			t.Fatalf("the list of what was handled: %v", err)
		}
		got[n]++
	}
	return got
}

// TestStorm: 20,000 casts and 10,000 calls while connections are cut ten times
// in every way, the broker is killed once and the server process five times. No
// cast is lost; every call ends in time with a result or a typed error.
func TestStorm(t *testing.T) {
	t.Parallel()
	const casts, calls = 20_000, 10_000
	const callTime = 5 * time.Second
	broker := envtest.RabbitMQ(t)
	toServer, serverURL := proxyTo(t, broker.URL)
	toClient, clientURL := proxyTo(t, broker.URL)
	list := filepath.Join(t.TempDir(), "handled")
	if err := os.WriteFile(list, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var childLog bytes.Buffer
	launch := func() *testenv.Process {
		cmd := exec.Command(os.Args[0]) //nolint:noctx // it lives until it is killed
		cmd.Env = append(os.Environ(), stormVar+"="+serverURL, listVar+"="+list)
		cmd.Stderr = &childLog
		p, err := testenv.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	server := launch()
	defer func() { server.Kill() }()
	bus := open(t, clientURL, "storm")
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	first := -1
	if err := waittest.Poll(time.Minute, func() error { return rpc.Cast(t.Context(), client, keep, "h", &first) }); err != nil {
		t.Fatalf("the server does not start: %v: %s", err, childLog.String())
	}

	var sent, called atomic.Int64
	type outcome struct {
		code fault.Code
		late time.Duration
	}
	var mu sync.Mutex
	var failed []outcome
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for n := g; n < casts; n += 32 {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // longer than any outage
				if err := rpc.Cast(ctx, client, keep, "h", &n); err != nil {
					t.Errorf("cast %d: %v", n, err)
				}
				cancel()
				sent.Add(1)
			}
		})
	}
	for g := range 16 {
		wg.Go(func() {
			for n := g; n < calls; n += 16 {
				for called.Load() > sent.Load()*calls/casts+200 && sent.Load() < casts { // through all of it
					waittest.Spend(time.Millisecond)
				}
				ctx, cancel := context.WithTimeout(t.Context(), callTime)
				start := time.Now()
				m, err := rpc.Call(ctx, client, add, []string{"h", rpc.Any}[n%2], &n)
				cancel()
				called.Add(1)
				switch {
				case err == nil && *m != n+1:
					t.Errorf("call %d was answered with %d", n, *m)
				case err == nil:
				default:
					mu.Lock()
					failed = append(failed, outcome{fault.CodeOf(err), time.Since(start) - callTime})
					mu.Unlock()
					if fault.CodeOf(err) == fault.Unavailable { // at once: else all calls would be gone in one outage
						waittest.Spend(20 * time.Millisecond)
					}
				}
			}
		})
	}

	ctl := func(args ...string) {
		if out, err := broker.Ctl(t.Context(), args...); err != nil {
			t.Errorf("%v %s", err, out)
		}
	}
	restart := func() {
		server.Kill()
		server = launch()
	}
	cutBoth := func() { toServer.cut(); toClient.cut() }
	events := []func(){
		func() { toClient.cut() },
		restart,
		func() { toServer.cut() },
		cutBoth,
		restart,
		func() { ctl("close_all_connections", "storm") },
		func() { toClient.stall(); waittest.Spend(time.Second); toClient.resume(); toClient.cut() },
		restart,
		func() { broker.Kill(); check(t, broker.Restart(t.Context())) },
		cutBoth,
		restart,
		func() { ctl("stop_app"); ctl("start_app") },
		func() {
			toServer.delay(5 * time.Millisecond)
			waittest.Spend(time.Second)
			toServer.delay(0)
			toServer.cut()
		},
		func() { ctl("close_all_connections", "again") },
		restart,
		cutBoth,
	}
	for i, event := range events {
		// Spread over the work.
		for sent.Load() < int64(casts*(i+1)/(len(events)+2)) {
			waittest.Spend(5 * time.Millisecond)
		}
		event()
	}
	wg.Wait()
	var got map[int]int
	_ = waittest.Poll(time.Minute, func() error { // the result is judged below
		if got = handled(t, list); len(got) != casts+1 {
			return errors.New("not all are handled")
		}
		return nil
	})
	twice := 0
	for _, n := range got {
		twice += n - 1
	}
	codes := map[fault.Code]int{}
	hung := 0
	for _, f := range failed {
		codes[f.code]++
		if f.late > time.Second {
			hung++
		}
		switch f.code {
		case fault.Unknown, fault.Unavailable, fault.Timeout:
		default:
			t.Errorf("a call failed with %v", f.code)
		}
	}
	server.Stop(t.Context(), 20*time.Second)
	t.Logf("%d casts: %d lost, %d handled again; %d calls: %d failed %v, %d hung; %d reconnects of the client; %s",
		casts, casts+1-len(got), twice, called.Load(), len(failed), codes, hung, bus.Capabilities().Stats().Reconnects, childLog.String())
	if lost := casts + 1 - len(got); lost > 0 {
		t.Errorf("%d casts were lost", lost)
	}
	if hung > 0 {
		t.Errorf("%d calls ended more than a second after their deadlines", hung)
	}
	if len(failed) > calls/2 {
		t.Errorf("%d of %d calls failed: too many to prove anything", len(failed), calls)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
