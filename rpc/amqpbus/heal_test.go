package amqpbus_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
)

// TestEndsWhileFull: a full server requeues the waiting calls, and its consumer stays open. The subscription ends during a
// requeue, and then the connection is lost. Even then Stop of the bus returns.
func TestEndsWhileFull(t *testing.T) {
	t.Parallel()
	raw := envtest.URL(t, testenv.AMQPVar)
	p, via := proxyTo(t, raw)
	exchange := "full." + strings.ToLower(rand.Text())
	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{via}, Exchange: exchange})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var consumes, requeues atomic.Int64
	asked, pass, gate := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.mu.Lock()
	p.look = func(b []byte) {
		if bytes.Contains(b, []byte{0, 60, 0, 20}) && bytes.Contains(b, []byte(".h.calls")) { // basic.consume
			consumes.Add(1)
		}
		if bytes.Contains(b, []byte{0, 60, 0, 120}) && requeues.Add(1) == 3 { // basic.nack
			close(asked)
			<-pass
		}
	}
	p.mu.Unlock()
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "h", MaxInFlight: 1})
	entered := make(chan struct{}, 8)
	rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) {
		entered <- struct{}{}
		<-gate
		return n, nil
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := rpc.NewClient(open(t, raw, exchange), rpc.ClientConfig{})
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 3 { // one call is handled, and the other calls wait at the full server
		wg.Go(func() { _, _ = rpc.Call(ctx, client, add, "h", new(int)) })
	}
	<-entered
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Fatal("a full server does not requeue the waiting calls")
	}
	if n := consumes.Load(); n != 1 {
		t.Errorf("the queue of calls was consumed %d times, want once", n)
	}
	ended := make(chan error, 1)
	go func() {
		short, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		_ = srv.Stop(short) // the handler does not end, so Stop fails
		ended <- bus.Stop(short)
	}()
	waittest.Pass(t, 200*time.Millisecond, "the subscriptions must end before the connection is cut")
	p.cut()
	close(pass)
	close(gate)
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the bus does not end")
	}
}

// TestStalled: while the network forwards nothing, every call and every cast ends at its deadline.
func TestStalled(t *testing.T) {
	t.Parallel()
	p, via := proxyTo(t, envtest.URL(t, testenv.AMQPVar))
	exchange := "stall." + strings.ToLower(rand.Text())
	bus := open(t, via, exchange)
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "h"})
	rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) { return n, nil })
	rpc.Handle(srv, keep, func(context.Context, *int) (*rpc.None, error) { return &rpc.None{}, nil })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	if _, err := rpc.Call(t.Context(), client, add, "h", new(int)); err != nil {
		t.Fatal(err)
	}
	p.stall()
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			start := time.Now()
			var err error
			if i%2 == 0 {
				_, err = rpc.Call(ctx, client, add, "h", &i)
			} else {
				err = rpc.Cast(ctx, client, keep, "h", &i)
			}
			if c := fault.CodeOf(err); c != fault.Timeout && c != fault.Unknown {
				t.Errorf("%v (%v), want Timeout or Unknown", err, c)
			}
			if late := time.Since(start) - 500*time.Millisecond; late > time.Second {
				t.Errorf("the call ended %v after its deadline", late)
			}
		})
	}
	wg.Wait()
	p.resume()
	within(t, "after the stall", func(ctx context.Context) error {
		_, err := rpc.Call(ctx, client, add, "h", new(int))
		return err
	})
}

// TestStalledDeclare: while the network forwards nothing, a declaration of a queue and a subscription end with their
// contexts.
func TestStalledDeclare(t *testing.T) {
	t.Parallel()
	p, via := proxyTo(t, envtest.URL(t, testenv.AMQPVar))
	b := open(t, via, "stall."+strings.ToLower(rand.Text()))
	if err := b.CreateTopic(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	p.stall()
	for what, do := range map[string]func(context.Context) error{
		"declare": func(ctx context.Context) error { return b.CreateTopic(ctx, "dead") },
		"subscribe": func(ctx context.Context) error {
			_, err := b.Subscribe(ctx, bus.Subscription{Topic: "dead"})
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		start := time.Now()
		err := do(ctx)
		cancel()
		if took := time.Since(start); fault.CodeOf(err) != fault.Unavailable || took > 3*time.Second {
			t.Errorf("%s: %v (%v) after %v, want Unavailable after 500ms", what, err, fault.CodeOf(err), took)
		}
	}
	p.resume()
	within(t, "after the stall", func(ctx context.Context) error { return b.CreateTopic(ctx, "dead") })
}

// TestTLS: the bus checks the host name and the authority of the broker's certificate, with and without Config.TLS.
func TestTLS(t *testing.T) {
	t.Parallel()
	raw := envtest.URL(t, testenv.AMQPVar)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	p := proxyOn(t, l, u.Host)
	_, port, err := net.SplitHostPort(p.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	trusting := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	tests := []struct {
		name, host string
		cfg        *tls.Config
		ok         bool
	}{
		{"right name", "localhost", trusting, true},
		{"wrong name", "127.0.0.1", trusting, false},
		{"unknown authority", "localhost", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := *u
			u.Scheme, u.Host = "amqps", net.JoinHostPort(tt.host, port)
			b, err := amqpbus.New(amqpbus.Config{URLs: []string{u.String()}, TLS: tt.cfg})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			start := time.Now()
			err = b.Start(t.Context())
			if tt.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			pw, _ := u.User.Password()
			if fault.CodeOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "x509") || !strings.Contains(fmt.Sprint(err), u.Host) || strings.Contains(fmt.Sprint(err), pw) {
				t.Errorf("%v (%v), want Denied with the host and the reason", err, fault.CodeOf(err))
			}
			if time.Since(start) > 5*time.Second {
				t.Errorf("Start took %v", time.Since(start))
			}
		})
	}
}

// TestOrders starts and stops servers, cuts connections, casts and calls, in random orders. In each order, no confirmed
// cast is lost, each call ends at its deadline or before, with its own reply or a typed error, and all servers stop.
func TestOrders(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a minute: left out with -short")
	}
	raw := envtest.URL(t, testenv.AMQPVar)
	const orders, workers = 200, 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	jobs := make(chan int, orders)
	for i := range orders {
		jobs <- i
	}
	close(jobs)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range jobs {
				if !t.Failed() {
					runOrder(t, raw, seed, i)
				}
			}
		})
	}
	wg.Wait()
}

func runOrder(t *testing.T, raw string, seed uint64, i int) {
	t.Helper()
	rng := mrand.New(mrand.NewPCG(seed, uint64(i)))
	var trace []string
	fail := func(format string, args ...any) {
		t.Errorf("seed %d, order %d (%s): %s", seed, i, strings.Join(trace, " "), fmt.Sprintf(format, args...))
	}
	p, via := proxyTo(t, raw)
	exchange := fmt.Sprintf("order.%d.%d", seed, i)
	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{via}, Exchange: exchange})
	if err == nil {
		err = bus.Start(t.Context())
	}
	if err != nil {
		fail("%v", err)
		return
	}
	defer bus.Close()
	var mu sync.Mutex
	handled := map[int]int{}
	start := func() *rpc.Server {
		s := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "h", MaxInFlight: 1 + rng.IntN(4)})
		rpc.Handle(s, add, func(_ context.Context, n *int) (*int, error) { m := *n + 1; return &m, nil })
		rpc.Handle(s, keep, func(_ context.Context, n *int) (*rpc.None, error) {
			mu.Lock()
			defer mu.Unlock()
			handled[*n]++
			return &rpc.None{}, nil
		})
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := s.Start(ctx)
			cancel()
			if err == nil {
				return s
			}
			if fault.CodeOf(err) != fault.Unavailable {
				fail("start: %v", err)
				return s
			}
		}
	}
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	srv := start() // a first server creates the queues
	running := true
	sent := 0
	var calls sync.WaitGroup
	for range 8 + rng.IntN(8) {
		switch op := rng.IntN(6); {
		case op == 0 && !running:
			trace = append(trace, "start")
			srv, running = start(), true
		case op <= 1 && running:
			trace = append(trace, "stop")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := srv.Stop(ctx); err != nil {
				fail("stop: %v", err)
			}
			cancel()
			running = false
		case op == 2:
			trace = append(trace, "cut")
			p.cut()
		case op == 3:
			trace = append(trace, "call")
			n := rng.IntN(1000)
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				began := time.Now()
				m, err := rpc.Call(ctx, client, add, "h", &n)
				switch c := fault.CodeOf(err); {
				case err == nil && *m != n+1:
					fail("call %d was answered with %d", n, *m)
				case err != nil && c != fault.Unavailable && c != fault.Unknown && c != fault.Timeout:
					fail("call: %v (%v)", err, c)
				case time.Since(began) > 3*time.Second:
					fail("a call with a deadline of 2 s took %v", time.Since(began))
				}
			})
		default:
			trace = append(trace, "cast")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := rpc.Cast(ctx, client, keep, "h", &sent); err != nil {
				fail("cast: %v", err)
			}
			cancel()
			sent++
		}
	}
	calls.Wait()
	if !running {
		srv = start()
	}
	if err := waittest.Poll(20*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(handled) != sent {
			return fmt.Errorf("%d of %d casts were handled", len(handled), sent)
		}
		return nil
	}); err != nil {
		fail("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := srv.Stop(ctx); err != nil {
		fail("the last stop: %v", err)
	}
}
