package amqpbus_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestLimitWithoutDeadline: while the broker cannot be reached, a publication waits until its context ends. If the context has no
// deadline, the publication ends after the bus's own limit, and the error names this limit.
func TestLimitWithoutDeadline(t *testing.T) {
	t.Parallel()
	p, url := proxyTo(t, envtest.URL(t, testenv.AMQPVar))
	synctest.Test(t, func(t *testing.T) {
		b := openWith(t, amqpbus.Config{URLs: []string{url}, Exchange: "limit", Channels: 1, Logger: slog.New(slog.DiscardHandler)})
		_ = p.l.Close()
		p.cut() // after this the bubble has no connection, so its clock can advance
		publish := func(ctx context.Context, kind string, payload string) error {
			return b.Publish(ctx, "topic", rpctest.Message("m", kind+" a.b 1.0 at-most-once", payload))
		}
		send := func(ctx context.Context, kind string, payload string) error {
			done := make(chan error, 1)
			b.Send(ctx, "topic", rpctest.Message("m", kind+" a.b 1.0 at-most-once", payload), func(err error) { done <- err })
			return <-done
		}
		const limit = "limit of 1m0s"
		for _, tt := range []struct {
			name     string
			call     func(ctx context.Context, kind string, payload string) error
			size     int
			deadline time.Duration // 0: none
			want     time.Duration
			says     string
		}{
			{"Publish", publish, 10, 10 * time.Minute, 10 * time.Minute, context.DeadlineExceeded.Error()},
			{"Publish", publish, 10, 0, time.Minute, limit},
			{"large Publish", publish, 1 << 17, 10 * time.Minute, 10 * time.Minute, context.DeadlineExceeded.Error()},
			{"large Publish", publish, 1 << 17, 0, time.Minute, limit},
			{"Send", send, 10, 5 * time.Second, 5 * time.Second, context.DeadlineExceeded.Error()},
			{"Send", send, 10, 0, 2 * time.Minute, limit},
			{"large Send", send, 1 << 17, 5 * time.Second, 5 * time.Second, context.DeadlineExceeded.Error()},
			{"large Send", send, 1 << 17, 0, time.Minute, limit},
		} {
			for _, kind := range []string{"cast", "fanout"} {
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				if tt.deadline > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), tt.deadline)
				}
				begin := time.Now()
				err := tt.call(ctx, kind, strings.Repeat("x", tt.size))
				cancel()
				if took := time.Since(begin); fault.CodeOf(err) != fault.Timeout || took != tt.want || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%s of a %s with a deadline of %v: after %v: %v (%v)\nwant Timeout after %v with %q", tt.name, kind, tt.deadline, took, err, fault.CodeOf(err), tt.want, tt.says)
				}
			}
		}
	})
}

// TestNoFreeChannel: the exchange of a fanout cannot be declared, because RabbitMQ allows no further channel on the connection. The
// fanout fails at once with the reason. A new connection would not help.
func TestNoFreeChannel(t *testing.T) { //nolint:paralleltest // the 2,047 channels would delay tests that measure time
	const allowed = 2047 // RabbitMQ's default
	b := openWith(t, amqpbus.Config{URLs: []string{envtest.URL(t, testenv.AMQPVar)}, Exchange: "channels." + strings.ToLower(rand.Text()), Channels: allowed})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var err error
	for n := 0; err == nil; n++ { // meanwhile the bus opens its own channels
		err = b.Publish(ctx, fmt.Sprint("topic", n), rpctest.Message("m", "fanout a.b 1.0 at-most-once", "1"))
	}
	if fault.CodeOf(err) != fault.Exhausted || !strings.Contains(err.Error(), "channel") || ctx.Err() != nil {
		t.Errorf("%v (%v), want Exhausted at once", err, fault.CodeOf(err))
	}
}
