package amqpbus_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
)

// TestConsumeFailureLogged: another connection holds two exclusive queues, so each attempt to consume them fails. The log has one
// WARN for both queues, and one INFO when both are consumed.
func TestConsumeFailureLogged(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.AMQPVar), "test."+strings.ToLower(rand.Text())
	holder, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	ch, err := holder.Channel()
	if err != nil {
		t.Fatal(err)
	}
	topics := []string{"a", "b"}
	for _, topic := range topics {
		if _, err := ch.QueueDeclare(exchange+"."+topic, false, true, true, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	log, lines := logtest.New()
	b := openWith(t, amqpbus.Config{URLs: []string{url}, Exchange: exchange, ConnectTimeout: waittest.Timeout, Logger: log})
	var wg sync.WaitGroup
	for _, topic := range topics {
		wg.Go(func() {
			if _, err := b.Subscribe(t.Context(), bus.Subscription{Topic: topic, Mode: bus.Private}); err != nil {
				t.Error(err)
			}
		})
	}
	const failed = "consume queue failed"
	failures := func() int { return lines.Count(slog.LevelWarn, failed) + lines.Count(slog.LevelDebug, failed) }
	waittest.Until(t, "eight failed attempts", func() bool { return failures() >= 8 })
	if n := lines.Count(slog.LevelInfo, ""); n != 0 {
		t.Errorf("%d lines at INFO during the outage, want none", n)
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	waittest.Until(t, "the end of the outage in the log", func() bool { return lines.Count(slog.LevelInfo, "consume queue works again") > 0 })
	if warn, info := lines.Count(slog.LevelWarn, ""), lines.Count(slog.LevelInfo, ""); warn != 1 || info != 1 {
		t.Errorf("%d WARN and %d INFO for %d failed attempts, want one of each", warn, info, failures())
	}
}

// TestSubscribeEndsEarly: the context of Subscribe may end at any moment of the start, even when consuming begins. The error is
// Unavailable, contains the context's error, and is well-formed.
func TestSubscribeEndsEarly(t *testing.T) {
	t.Parallel()
	b := openWith(t, amqpbus.Config{URLs: []string{envtest.URL(t, testenv.AMQPVar)}, Exchange: "early", Logger: slog.New(slog.DiscardHandler)})
	timeout := time.Millisecond // adapted below to the time that an attempt takes
	failed := 0
	for i := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		topic := fmt.Sprint("early-", i)
		_, err := b.Subscribe(ctx, bus.Subscription{Topic: topic, Mode: bus.Private})
		cancel()
		if err == nil {
			timeout = timeout * 95 / 100
			continue
		}
		timeout = timeout * 105 / 100
		failed++
		if fault.CodeOf(err) != fault.Unavailable || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), topic) || strings.Contains(err.Error(), "%!") {
			t.Fatalf("attempt %d: %v (%v), want Unavailable with %v and the queue", i, err, fault.CodeOf(err), context.DeadlineExceeded)
		}
	}
	t.Logf("%d of 200 attempts failed", failed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Subscribe(ctx, bus.Subscription{Topic: "early", Mode: bus.Private}); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "timeout") {
		t.Errorf("canceled: %v, want an error that says so and names no timeout", err)
	}
}
