//go:build !race

package amqp_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
)

// TestConnectionLost: watermill-amqp does not survive the loss of a connection. After the loss, every call fails at
// once with ErrConnectionLost, and Failed reports the loss.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	broker := envtest.RabbitMQ(t)
	b := open(t, broker.URL, newExchange())
	in, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	cast := rpctest.Message("1", "cast t.keep 1.0 at-least-once", "{}")
	if err := b.Publish(t.Context(), "t", cast); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("Check before: %v", err)
	}
	_ = (<-in).Ack() // never fails
	broker.Kill()
	select {
	case err := <-b.Failed():
		if !errors.Is(err, amqp.ErrConnectionLost) {
			t.Errorf("Failed: %v, want ErrConnectionLost", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the failure was not reported")
	}
	if err := broker.Restart(t.Context()); err != nil { // the bus does not connect again
		t.Fatal(err)
	}
	begin := time.Now()
	_, subErr := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"})
	for what, err := range map[string]error{
		"Publish": b.Publish(t.Context(), "t", cast), "Subscribe": subErr, "CreateTopic": b.CreateTopic(t.Context(), "t"), "Check": b.Check(t.Context()),
	} {
		if !errors.Is(err, amqp.ErrConnectionLost) || fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: %v, want ErrConnectionLost", what, err)
		}
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("the errors took %v", d)
	}
}

// TestConnectionLostAtStart: a connection that is lost just after it is open either fails Start, or ends the bus like a later loss.
func TestConnectionLostAtStart(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(envtest.URL(t, testenv.AMQPVar))
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	for range 20 {
		u.Host = cutAtOpen(t, server)
		b, err := amqp.New(amqp.Config{URLs: []string{u.String()}, Exchange: newExchange(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(t.Context()); err != nil {
			if !errors.Is(err, fault.Unavailable) {
				t.Errorf("Start: %v, want Unavailable", err)
			}
		} else {
			waittest.Until(t, "the report of the loss", func() bool { return errors.Is(b.Check(t.Context()), amqp.ErrConnectionLost) })
			if err := <-b.Failed(); !errors.Is(err, amqp.ErrConnectionLost) {
				t.Errorf("Failed: %v, want ErrConnectionLost", err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// cutAtOpen returns the address of a proxy that closes the first connection as soon as the server has opened it, and forwards the later ones.
func cutAtOpen(t *testing.T, server string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(client net.Conn, first bool) {
		defer client.Close()
		to, err := new(net.Dialer).DialContext(t.Context(), "tcp", server)
		if err != nil {
			return
		}
		defer to.Close()
		go func() { _, _ = io.Copy(to, client); to.Close() }()
		buf := make([]byte, 64<<10)
		for {
			n, err := to.Read(buf)
			_, _ = client.Write(buf[:n])
			if openOK := []byte{1, 0, 0, 0, 0, 0, 5, 0, 10, 0, 41}; err != nil || first && bytes.Contains(buf[:n], openOK) { // a method frame of channel 0: connection.open-ok
				return
			}
		}
	}
	go func() {
		for first := true; ; first = false {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go serve(client, first)
		}
	}()
	return l.Addr().String()
}
