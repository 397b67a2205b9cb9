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
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// certificate writes a self-signed certificate for 127.0.0.1, and returns its pool and file.
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

// TestHTTPS: with a certificate the API is HTTPS with HTTP/2, also in the links of its
// replies, and for the pages of a dashboard that an operator names.
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
		cmd := command(out) //nolint:contextcheck // cobra hands the context on
		cmd.SetArgs([]string{"--port", "0", "--state-path", t.TempDir(), "--config-file", conf})
		ended = cmd.ExecuteContext(ctx)
	})
	defer func() {
		cancel()
		wg.Wait()
		if ended != nil {
			t.Errorf("it ended with %v", ended)
		}
	}()
	select {
	case <-out.more:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not listen")
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
