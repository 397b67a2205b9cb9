package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
)

// client returns a client with a transport of its own, whose connections are closed at the end of the test.
func client(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(ctx context.Context, c *http.Client, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

func TestHTTPListensBeforeStartReturns(t *testing.T) {
	t.Parallel()
	p := service.HTTP("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "hi") }))
	if got := p.Addr(); got != "127.0.0.1:0" {
		t.Errorf("Addr before Start = %s", got)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("Stop before Start = %v", err)
	}
	startCtx, cancel := context.WithCancel(t.Context())
	if err := p.Start(startCtx); err != nil {
		t.Fatal(err)
	}
	cancel() // the start's context: the server must live on
	if code, body, err := get(t.Context(), client(t), "http://"+p.Addr()); code != 200 || body != "hi" || err != nil {
		t.Errorf("GET = %d %q %v", code, body, err)
	}
	err := service.HTTP(p.Addr(), http.NotFoundHandler()).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), p.Addr()) {
		t.Errorf("second listener: error %v, want one naming the address", err)
	}
	for range 2 {
		if err := p.Stop(t.Context()); err != nil {
			t.Errorf("Stop = %v", err)
		}
	}
	var d net.Dialer
	if c, err := d.DialContext(t.Context(), "tcp", p.Addr()); err == nil {
		c.Close()
		t.Error("the part still listens after Stop")
	}
}

// TestHTTPMalformedAddress: Start and Validate make the same check of the address.
func TestHTTPMalformedAddress(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:80x"} {
		cfg := service.HTTPConfig{Addr: addr, Handler: http.NotFoundHandler()}
		for what, err := range map[string]error{"Start": service.NewHTTP(cfg).Start(t.Context()), "Validate": cfg.Validate()} {
			if err == nil || fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), addr) {
				t.Errorf("%s = %v (%v), want Invalid with the address", what, err, fault.CodeOf(err))
			}
		}
	}
}

// TestHTTPWithoutHandler: a part without a handler does not start; otherwise each request would panic.
func TestHTTPWithoutHandler(t *testing.T) {
	t.Parallel()
	p := service.HTTP("127.0.0.1:0", nil)
	if err := p.Start(t.Context()); err == nil || fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "Handler is nil") {
		t.Errorf("Start = %v, want Invalid that names Handler", err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHTTPStopWaitsForRunningRequests(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	p := service.HTTP("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = fmt.Fprint(w, "whole")
	}))
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := client(t)
	answer := make(chan string)
	go func() {
		_, body, err := get(t.Context(), c, "http://"+p.Addr())
		answer <- fmt.Sprint(body, " ", err)
	}()
	<-entered
	stopped := make(chan error)
	go func() { stopped <- p.Stop(t.Context()) }()
	select {
	case err := <-stopped:
		t.Errorf("Stop = %v while a request was running", err)
	default:
	}
	close(release)
	if got := <-answer; got != "whole <nil>" {
		t.Errorf("the running request got %q", got)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Stop = %v", err)
	}
}

func TestHTTPCutOffCancelsRequests(t *testing.T) {
	t.Parallel()
	entered, canceled := make(chan struct{}), make(chan struct{})
	p := service.HTTP("127.0.0.1:0", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(canceled)
	}))
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := client(t)
	failed := make(chan error)
	go func() {
		_, _, err := get(t.Context(), c, "http://"+p.Addr())
		failed <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Stop = %v, want its context's error", err)
	}
	<-canceled
	if err := <-failed; err == nil {
		t.Error("the cut off request succeeded")
	}
}

func TestHTTPBoundsHeaders(t *testing.T) {
	t.Parallel()
	p := service.HTTP("127.0.0.1:0", http.NotFoundHandler())
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer p.Stop(t.Context())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.Addr(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Large", strings.Repeat("x", 100<<10))
	res, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want 431", res.StatusCode)
	}
}

// TestLoopInterval counts calls on the fake clock: the first starts within one interval, then one starts in each
// interval. The calls that were due during a slow call are not made later.
func TestLoopInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		ids := map[string]bool{}
		begin := time.Now()
		p := service.Loop(time.Minute, func(ctx context.Context) error {
			at = append(at, time.Since(begin))
			ids[reqctx.From(ctx).ID] = true
			if len(at) == 2 {
				<-time.After(150 * time.Second) // the next two intervals begin meanwhile
			}
			return nil
		})
		startCtx, cancel := context.WithCancel(t.Context())
		if err := p.Start(startCtx); err != nil {
			t.Fatal(err)
		}
		cancel() // the start's context: the loop must go on
		<-time.After(10 * time.Minute)
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := len(at)
		<-time.After(10 * time.Minute)
		if len(at) != n {
			t.Error("called after Stop")
		}
		if at[0] >= time.Minute {
			t.Errorf("first call after %v, want less than one interval", at[0])
		}
		if n != 8 || len(ids) != n {
			t.Errorf("%d calls under %d ids, want 8: one in each of ten intervals, except two during the slow call", n, len(ids))
		}
		for i := 1; i < n; i++ {
			want := time.Minute
			if i == 2 {
				want = 3 * time.Minute
			}
			if got := at[i] - at[i-1]; got != want {
				t.Errorf("call %d after %v, want %v", i, got, want)
			}
		}
	})
}

func TestLoopsOfAFleetSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var early, late atomic.Int32
		for range 64 {
			p := service.Loop(time.Minute, func(context.Context) error {
				if time.Since(begin) < 30*time.Second {
					early.Add(1)
				} else {
					late.Add(1)
				}
				return nil
			})
			if err := p.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer p.Stop(t.Context())
		}
		<-time.After(time.Minute - time.Nanosecond)
		if early.Load() == 0 || late.Load() == 0 || early.Load()+late.Load() != 64 {
			t.Errorf("first calls: %d in the first half minute, %d in the second; want 64, spread", early.Load(), late.Load())
		}
	})
}

// brokenError is an error type. A nil *brokenError in an error is not a nil error, and its Error panics.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

// TestLoopBrokenError: an error whose methods panic is an error of the call. It ends neither the loop nor the process.
func TestLoopBrokenError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		n := 0
		loop := service.Loop(time.Second, func(context.Context) error {
			if n++; n == 1 {
				return fmt.Errorf("report: %w", error((*brokenError)(nil)))
			}
			return (*brokenError)(nil)
		})
		app := service.New(service.Config{NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		app.Add("report", loop)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := app.Run(ctx); err != nil {
			t.Error(err)
		}
		if s := loop.Stats(); n < 9 || s.Failed != uint64(n) || !strings.Contains(s.Err, "panic") {
			t.Errorf("%d calls in 10 s, %d failed, last error %q", n, s.Failed, s.Err)
		}
		if !strings.Contains(out.String(), "periodic call failed") || !strings.Contains(out.String(), "panic") {
			t.Errorf("log:\n%s", &out)
		}
	})
}

func TestLoopGoesOnAfterErrorsAndPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		app := service.New(service.Config{NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		n := 0
		app.Add("report", service.Loop(time.Second, func(context.Context) error {
			n++
			switch n {
			case 1:
				return errBoom
			case 2:
				panic("argh")
			}
			return nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := app.Run(ctx); err != nil {
			t.Error(err)
		}
		if n < 9 {
			t.Errorf("%d calls in 10 s", n)
		}
		for _, want := range []string{"part=report error=boom", "panic: argh", "parts_test.go"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("log lacks %s:\n%s", want, &out)
			}
		}
	})
}

// TestLoopLogsFailuresOnce: the log has one line when an outage begins, one a minute, and one when it ends.
func TestLoopLogsFailuresOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		app := service.New(service.Config{NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		begin := time.Now()
		app.Add("report", service.Loop(time.Second, func(context.Context) error {
			if time.Since(begin) < 150*time.Second {
				return errBoom
			}
			return nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Second)
		defer cancel()
		if err := app.Run(ctx); err != nil {
			t.Error(err)
		}
		if n, ends := strings.Count(out.String(), "level=ERROR"), strings.Count(out.String(), "works again"); n != 3 || ends != 1 {
			t.Errorf("150 failures: %d errors and %d ends in the log, want 3 and 1:\n%s", n, ends, &out)
		}
	})
}

func TestLoopStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		entered := make(chan struct{})
		var canceled atomic.Bool
		p := service.Loop(time.Second, func(ctx context.Context) error {
			close(entered)
			<-ctx.Done()
			canceled.Store(true)
			<-release
			return ctx.Err()
		})
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-entered
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) || !canceled.Load() {
			t.Errorf("Stop = %v, call canceled: %v; want the deadline, true", err, canceled.Load())
		}
		close(release)
		if err := p.Stop(t.Context()); err != nil {
			t.Errorf("second Stop = %v", err)
		}
	})
}

func TestLoopDisabled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := service.Loop(-1, func(context.Context) error { t.Error("called"); return nil })
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour)
		if err := p.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
