package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// balancer is a load balancer in front of several APIs. It checks ten times a second which APIs are ready, and sends
// requests to these. It never repeats a request.
type balancer struct {
	client *http.Client

	mu    sync.Mutex
	ready map[string]bool // whether an API is ready, by URL
	next  int             // the number of requests, which go to the ready APIs in turn
}

func (b *balancer) add(url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready[url] = false
}

func (b *balancer) remove(url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ready, url)
}

// knows returns nil if the balancer sends requests to a URL.
func (b *balancer) knows(url string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ready[url] {
		return errors.New("the API is not ready")
	}
	return nil
}

// probe checks which APIs are ready, until ctx ends. If an API answers that it is not ready, it gets no more requests. If it does not
// answer, it gets no more requests after three checks, because on a busy machine an answer may be late.
func (b *balancer) probe(ctx context.Context) {
	probes := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	check := func(url string) (ready bool) {
		for range 3 {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", http.NoBody)
			if err != nil {
				return false
			}
			if res, err := probes.Do(r); err == nil {
				res.Body.Close()
				return res.StatusCode == http.StatusOK
			}
		}
		return false
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	checking := map[string]bool{} // the APIs that are being checked; guarded by b.mu
	for ctx.Err() == nil {
		b.mu.Lock()
		for url := range b.ready {
			if checking[url] {
				continue
			}
			checking[url] = true
			wg.Go(func() {
				ok := check(url)
				b.mu.Lock()
				defer b.mu.Unlock()
				delete(checking, url)
				if _, known := b.ready[url]; known {
					b.ready[url] = ok
				}
			})
		}
		b.mu.Unlock()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (b *balancer) pick() (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var up []string
	for u, ok := range b.ready {
		if ok {
			up = append(up, u)
		}
	}
	if len(up) == 0 {
		return "", errors.New("no API is ready")
	}
	b.next++
	return up[b.next%len(up)], nil
}

func (b *balancer) do(ctx context.Context, method, path, body string, want int) error {
	url, err := b.pick()
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, url+path, io.NopCloser(strings.NewReader(body))) // NopCloser: the HTTP client cannot repeat the request
	if err != nil {
		return err
	}
	r.ContentLength = int64(len(body))
	if body == "" {
		r.Body = http.NoBody
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := b.client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != want {
		err = fmt.Errorf("%s: %.300s", res.Status, text)
	}
	return err
}

// TestRollingRestart: three APIs and two conductors are restarted one after another, while clients send 200 requests a
// second. No request fails, and every accepted server is built.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "drain_delay = 1\n[driver_fake]\nvcpus = 10000\nmemory_mib = 10000000\ndisk_gib = 100000\n")
	for _, p := range [][2]string{{"conductor", "c-1"}, {"conductor", "c-2"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		c.start(p[0], p[1])
	}
	b := &balancer{ready: map[string]bool{}, client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	ctx, cancel := context.WithCancel(t.Context())
	var probing sync.WaitGroup
	probing.Go(func() { b.probe(ctx) })
	defer probing.Wait()
	defer cancel()
	startAPI := func(name string) {
		t.Helper()
		cl := c.client(c.start("api", name))
		c.hostsUp(cl, 1)
		url := strings.TrimSuffix(cl.Endpoint, "/v2.1/")
		b.add(url)
		c.poll(name+" to be ready", 30*time.Second, func() error { return b.knows(url) })
	}
	apis := []string{"api-1", "api-2", "api-3"}
	for _, name := range apis {
		startAPI(name)
	}

	var sent, made, failed atomic.Int64
	var load sync.WaitGroup
	over := make(chan struct{})
	load.Go(func() {
		tick := time.NewTicker(time.Second / 200)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
			case <-over:
				return
			}
			load.Go(func() {
				sent.Add(1)
				var err error
				if n%40 == 0 {
					err = b.do(t.Context(), http.MethodPost, "/v2.1/servers", fmt.Sprintf(`{"server": {"name": "r%d", "flavorRef": "1", "imageRef": "cirros"}}`, n), http.StatusAccepted)
					made.Add(1)
				} else {
					err = b.do(t.Context(), http.MethodGet, "/v2.1/flavors", "", http.StatusOK)
				}
				if err != nil {
					failed.Add(1)
					t.Errorf("request %d: %v", n, err)
				}
			})
		}
	})
	restart := func(name string, start func()) {
		t.Helper()
		p := c.procs[name]
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Done():
			if p.ExitCode() != 0 {
				t.Errorf("%s ended with %v", name, p.Err())
			}
		case <-time.After(60 * time.Second):
			t.Fatalf("%s does not end", name)
		}
		start()
	}
	for _, name := range apis {
		restart(name, func() { startAPI(name) })
	}
	for _, name := range []string{"c-1", "c-2"} {
		restart(name, func() { c.start("conductor", name) })
	}
	close(over)
	load.Wait()
	t.Logf("%d requests, %d servers, %d failed", sent.Load(), made.Load(), failed.Load())
	if sent.Load() < 500 {
		t.Errorf("only %d requests were sent", sent.Load())
	}
	cl := c.newClient(func() string { u, _ := b.pick(); return u }())
	by := c.settled(cl, int(made.Load()), 90*time.Second)
	if n := len(by["ACTIVE"]); n != int(made.Load()) {
		t.Errorf("%d of %d servers are ACTIVE; faults: %v", n, made.Load(), faults(by["ERROR"]))
	}
}
