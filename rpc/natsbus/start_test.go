package natsbus_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/natsbus"
)

// TestStartFails: the error of Start says in one line what is wrong and names the server, without the password.
func TestStartFails(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	broker := envtest.URL(t, testenv.NATSVar)
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal("the URL of the server cannot be read")
	}
	dead := envtest.FreeAddr(t)
	tests := []struct {
		name, url string
		want      fault.Code
		text      string
	}{
		{"no server", "nats://u:" + secret + "@" + dead, fault.Unavailable, dead},
		{"wrong password", "nats://armature:" + secret + "@" + u.Host, fault.Unauthenticated, u.Host},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, err := natsbus.New(natsbus.Config{URLs: []string{tt.url}, ConnectTimeout: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			err = b.Start(t.Context())
			if fault.CodeOf(err) != tt.want || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\n") ||
				!strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "gave up") {
				t.Errorf("Start: %v, want one line with %v, %s, that it gave up, and no password", err, tt.want, tt.text)
			}
			if err := b.Publish(t.Context(), "t", durable("1")); !errors.Is(err, bus.ErrNotStarted) {
				t.Errorf("Publish after the failed Start: %v, want ErrNotStarted", err)
			}
		})
	}
}

// TestNew: New refuses wrong URLs and exchanges, without the password in the error.
func TestNew(t *testing.T) {
	t.Parallel()
	for _, cfg := range []natsbus.Config{
		{},
		{URLs: []string{"amqp://u:hunter2@h"}},
		{URLs: []string{"nats://h", "nats://u:hunter2%zz@h"}},
		{URLs: []string{"nats://u:hunter2@"}},
		{URLs: []string{"nats://h"}, Exchange: "a..b"},
		{URLs: []string{"nats://h"}, Exchange: "a b"},
	} {
		_, err := natsbus.New(cfg)
		if fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q): %v, want Invalid without the password", cfg.URLs, err)
		}
	}
}

// TestInvalid: the bus refuses messages that are too large and invalid topics at once.
func TestInvalid(t *testing.T) {
	t.Parallel()
	b := open(t, envtest.URL(t, testenv.NATSVar), newExchange())
	if _, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t"}); err != nil {
		t.Fatal(err)
	}
	long := durable("long")
	long.Payload = make([]byte, 2<<20)
	if err := b.Publish(t.Context(), "t", long); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("2 MiB: %v, want Invalid", err)
	}
	for _, topic := range []string{"", "a..b", "a b", "a.*", ">", "a\n"} {
		if err := b.Publish(t.Context(), topic, durable("1")); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("publish to %q: %v, want Invalid", topic, err)
		}
		if _, err := b.Subscribe(t.Context(), bus.Subscription{Topic: topic}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("subscribe to %q: %v, want Invalid", topic, err)
		}
	}
}
