package service_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	pool *x509.CertPool
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(dir, "ca.pem"), pool: x509.NewCertPool()}
	a.cert, a.key = a.sign(t, dir, "ca", 1)
	a.pool.AddCert(a.cert)
	return a
}

// sign writes name.pem and name.key.
func (a *authority) sign(t *testing.T, dir, name string, serial int64) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: a.cert == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(dir, name+".key"), "EC PRIVATE KEY", raw)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// lockedBuffer collects log lines. It is safe for concurrent use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestTLS: a server with TLS uses HTTP/2, serves a changed certificate to new connections, rejects files that cannot be
// used, and requires a certificate of its clients.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	ca.sign(t, dir, "front", 10)
	file := func(name string) string { return filepath.Join(dir, name) }
	var out lockedBuffer
	cfg := service.HTTPConfig{
		Addr: "127.0.0.1:0", CertFile: file("front.pem"), KeyFile: file("front.key"), CertInterval: time.Millisecond,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }),
	}
	app := service.New(service.Config{NoSignals: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	p := service.NewHTTP(cfg)
	app.Add("http", p)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-app.Started()
	// serial sends a request over a new connection, and returns the serial number of the server's certificate.
	serial := func(certs ...tls.Certificate) (int64, string, error) {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, Certificates: certs}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Addr(), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return res.TLS.PeerCertificates[0].SerialNumber.Int64(), string(body), err
	}
	if n, proto, err := serial(); n != 10 || proto != "HTTP/2.0" || err != nil {
		t.Errorf("serial %d over %s, %v; want 10 over HTTP/2.0", n, proto, err)
	}
	ca.sign(t, dir, "front", 11)
	if n, _, err := serial(); n != 11 || err != nil {
		t.Errorf("after the files changed: serial %d, %v; want 11", n, err)
	}
	if err := os.WriteFile(file("front.pem"), []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, _, err := serial(); n != 11 || err != nil {
		t.Errorf("with a broken file: serial %d, %v; want the old one", n, err)
	}
	if err := app.Reload(ctx); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("Reload with a broken file: %v", err)
	}
	if !bytes.Contains([]byte(out.String()), []byte("changed certificate rejected")) {
		t.Errorf("the log does not tell of the broken file:\n%s", &out.b)
	}
	if err := service.NewHTTP(cfg).Start(ctx); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("Start with a broken file: %v", err)
	}
	ca.sign(t, dir, "front", 12)
	if err := app.Reload(ctx); err != nil {
		t.Error(err)
	}

	cfg.ClientCAFile = ca.file
	strict := service.NewHTTP(cfg)
	if err := strict.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer strict.Stop(ctx)
	p = strict
	if _, _, err := serial(); err == nil {
		t.Error("a client without a certificate is served")
	}
	ca.sign(t, dir, "me", 20)
	mine, err := tls.LoadX509KeyPair(file("me.pem"), file("me.key"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _, err := serial(mine); n != 12 || err != nil {
		t.Errorf("a client with a certificate: serial %d, %v", n, err)
	}
	// A key that other users can read is refused.
	if err := os.Chmod(file("front.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := service.NewHTTP(cfg).Start(ctx); fault.CodeOf(err) != fault.Denied || !strings.Contains(err.Error(), "front.key") {
		t.Errorf("Start with a key that others can read: %v", err)
	}
	if err := os.Chmod(file("front.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.ClientCAFile = file("me.key")
	if err := service.NewHTTP(cfg).Start(ctx); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("Start with a file without certificates as ClientCAFile: %v", err)
	}
}
