package service_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
)

// startBodyServer starts a server with handlers that read a body and handlers that do not. Some are plain handlers, others belong to
// package api.
func startBodyServer(t *testing.T, cfg service.HTTPConfig) *service.HTTPPart {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	m := api.New(api.Config{
		Logger: log, BodyTimeout: -1, // so that the server's own timeout ends the wait
		Authenticate: func(*http.Request) (reqctx.Request, error) {
			return reqctx.Request{}, fault.New(fault.Unauthenticated, "who?")
		},
	})
	m.Health(func(context.Context) error { return nil })
	type thing struct {
		Name string `json:"name"`
	}
	api.Handle(m, "POST /secret", func(context.Context, *api.Request[thing]) (api.None, error) { return api.None{}, nil })
	api.HandleRoute(m, api.Route{Pattern: "POST /open", Public: true}, func(context.Context, *api.Request[thing]) (api.None, error) { return api.None{}, nil })
	mux := http.NewServeMux()
	mux.Handle("/", m)
	mux.HandleFunc("/plain/read", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); errors.Is(err, os.ErrDeadlineExceeded) {
			w.WriteHeader(http.StatusRequestTimeout)
		}
	})
	mux.HandleFunc("/plain/unread", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/plain/long", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		select {
		case <-r.Context().Done():
			w.WriteHeader(http.StatusInternalServerError)
		case <-time.After(3 * cfg.BodyTimeout):
		}
	})
	cfg.Addr, cfg.Handler = "127.0.0.1:0", mux
	p := service.NewHTTP(cfg)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(context.WithoutCancel(t.Context())) }) // a client's connection may be cut
	return p
}

// TestUnsentBodies: if a client announces a body and does not send it, the server closes the connection at the body
// timeout, even if the route never reads the body. Meanwhile the server answers other clients.
func TestUnsentBodies(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	addr := startBodyServer(t, service.HTTPConfig{BodyTimeout: timeout}).Addr()
	lengths := []string{"Content-Length: 10\r\n", "Content-Length: 10\r\nExpect: 100-continue\r\n", "Transfer-Encoding: chunked\r\n"}
	var clients sync.WaitGroup
	for _, path := range []string{"/secret", "/open", "/readyz", "/livez", "/missing", "/plain/read", "/plain/unread"} {
		for _, method := range []string{"POST", "GET", "DELETE"} {
			for _, length := range lengths {
				for range 10 {
					clients.Go(func() {
						c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						_, _ = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%s\r\n", method, path, addr, length)
						_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
						if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("%s %s, %q: the connection is still open", method, path, length)
						}
					})
				}
			}
		}
	}
	done := make(chan struct{})
	go func() { clients.Wait(); close(done) }()
	for served := false; ; { // requests of other clients
		select {
		case <-done:
			if !served {
				t.Error("no other client was served meanwhile")
			}
			return
		default:
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/open", strings.NewReader(`{"name": "a"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(r)
		if err != nil || res.StatusCode != http.StatusNoContent {
			t.Fatalf("another client: %v, %v", res, err)
		}
		_ = res.Body.Close()
		served = true
	}
}

// TestBodyDeadlineEnds: the deadline applies to the body alone. A handler that has read the body may work
// for longer, and the connection accepts the next request. The same holds over HTTP/2.
func TestBodyDeadlineEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAuthority(t, dir)
	a.sign(t, dir, "server", 2)
	const timeout = 200 * time.Millisecond
	plain := startBodyServer(t, service.HTTPConfig{BodyTimeout: timeout})
	secure := startBodyServer(t, service.HTTPConfig{BodyTimeout: timeout, CertFile: dir + "/server.pem", KeyFile: dir + "/server.key"})
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	for url, proto := range map[string]int{"http://" + plain.Addr(): 1, "https://" + secure.Addr(): 2} {
		send := func(path string, body io.Reader) int {
			t.Helper()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			res, err := (&http.Client{Transport: tr}).Do(r)
			if err != nil {
				t.Fatalf("%s%s: %v", url, path, err)
			}
			defer res.Body.Close()
			if res.ProtoMajor != proto {
				t.Errorf("%s: HTTP/%d", url, res.ProtoMajor)
			}
			return res.StatusCode
		}
		for range 2 {
			if got := send("/plain/long", strings.NewReader("hello")); got != http.StatusOK {
				t.Errorf("%s: a long handler: %d", url, got)
			}
		}
		never, w := io.Pipe()
		if got := send("/plain/read", never); got != http.StatusRequestTimeout {
			t.Errorf("%s: a body that never comes: %d", url, got)
		}
		_ = w.Close()
		never, w = io.Pipe()
		if got := send("/secret", never); got != http.StatusUnauthorized {
			t.Errorf("%s: a body that never comes, without a token: %d", url, got)
		}
		_ = w.Close()
	}
}
