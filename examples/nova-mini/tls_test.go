package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/certtest"
)

// certificate writes a file with a self-signed certificate for 127.0.0.1 and its key. It returns a pool with the certificate, and the path of
// the file.
func certificate(t *testing.T) (pool *x509.CertPool, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	file = filepath.Join(t.TempDir(), "api.pem")
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(both)
	return pool, file
}

// TestHTTPS: with a certificate the API uses HTTPS with HTTP/2, and the links in its replies begin with https://. A web
// page whose origin is in allowed_origin may use the API.
func TestHTTPS(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	pool, file := certificate(t)
	conf := filepath.Join(t.TempDir(), "nova-mini.conf")
	if err := os.WriteFile(conf, []byte("[wsgi]\nssl_cert_file = "+file+"\nssl_key_file = "+file+"\n[cors]\nallowed_origin = https://dashboard.example.org\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := &output{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var ended error
	wg.Go(func() {
		ended = run(ctx, out, "--port", "0", "--state-path", t.TempDir(), "--config-file", conf)
	})
	defer func() {
		cancel()
		wg.Wait()
		if ended != nil {
			t.Errorf("nova-mini ended with %v", ended)
		}
	}()
	select {
	case <-out.more:
	case <-time.After(30 * time.Second):
		t.Fatal("nova-mini has printed nothing: it does not listen")
	}
	_, rest, _ := strings.Cut(out.String(), "listens on ")
	url, _, _ := strings.Cut(rest, "\n")
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v2.1/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://dashboard.example.org")
	res, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.ProtoMajor != 2 || res.Header.Get("Access-Control-Allow-Origin") != "https://dashboard.example.org" || !strings.Contains(body.String(), `"`+url+`/v2.1/"`) || !strings.HasPrefix(url, "https://") {
		t.Errorf("%s: %s, %v, %s", url, res.Proto, res.Header, &body)
	}
}

// TestServerNames: the addresses of Keystone and of the collector of traces need not be in their certificates if an option names the
// host in the certificate. Without this option, nova-mini does not connect.
func TestServerNames(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	ca := certtest.New(t)
	cert, key := ca.Issue(t, "there.example")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	traces := make(chan string, 10)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/traces" {
			traces <- r.URL.Path
			return
		}
		w.Header().Set("X-Subject-Token", "own")
		w.WriteHeader(http.StatusCreated)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer s.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "nova-mini.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, works := range map[string]bool{"": false, "other.example": false, "there.example": true} {
		write("[keystone_authtoken]\nauth_url = " + s.URL + "\nusername = u\npassword = p\ncafile = " + ca.File + "\nssl_server_name = " + name + "\n")
		var out bytes.Buffer
		err := run(t.Context(), &out, "config", "validate", "--online", "--service", "all-in-one", "--config-file", conf)
		if got := strings.Contains(out.String(), "works: [keystone_authtoken] auth_url"); got != works || !works && !strings.Contains(fmt.Sprint(err), "certificate") {
			t.Errorf("ssl_server_name = %q: works is %t, want %t: %v", name, got, works, err)
		}
	}
	write("[opentelemetry]\notlp_endpoint = " + s.URL + "\notlp_cafile = " + ca.File + "\notlp_server_name = there.example\n")
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := &output{more: make(chan struct{}, 1)}, make(chan error, 1)
	go func() {
		ended <- run(ctx, out, "--port", "0", "--state-path", dir, "--config-file", conf)
	}()
	<-out.more
	if got := status(t, out.String(), "/v2.1/flavors"); got != http.StatusOK {
		t.Errorf("status %d", got)
	}
	cancel() // the stop sends the last traces
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(traces) == 0 {
		t.Error("the collector has received no traces over TLS")
	}
}
