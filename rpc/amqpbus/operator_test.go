package amqpbus_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
)

// within runs f until it succeeds, and fails the test if that takes more than 5 s.
func within(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	const limit = 5 * time.Second
	start := time.Now()
	err := waittest.Poll(limit, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return f(ctx)
	})
	if err != nil {
		t.Errorf("%s: not within %v: %v", what, limit, err)
		return
	}
	t.Logf("%s: %v", what, time.Since(start).Round(time.Millisecond))
}

// TestHeals: an operator deletes queues, closes connections, stops the broker, and takes away its memory. Calls,
// casts and fanouts work again within 5 s, without a restart of the processes.
func TestHeals(t *testing.T) {
	t.Parallel()
	h := &healing{T: t, broker: envtest.RabbitMQ(t), got: make(chan int, 100), hold: add, gate: make(chan struct{})}
	h.srvBus, h.cliBus = open(t, h.broker.URL, "heal"), open(t, h.broker.URL, "heal")
	srv := rpc.NewServer(h.srvBus, rpc.ServerConfig{Interface: iface, Host: "h"})
	rpc.Handle(srv, add, func(_ context.Context, n *int) (*int, error) { m := *n + 1; return &m, nil })
	rpc.Handle(srv, keep, func(_ context.Context, n *int) (*rpc.None, error) { h.got <- *n; return &rpc.None{}, nil })
	h.hold.Name = "hold"
	rpc.Handle(srv, h.hold, func(_ context.Context, n *int) (*int, error) { <-h.gate; return n, nil })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	h.client = rpc.NewClient(h.cliBus, rpc.ClientConfig{})
	defer h.client.Close()
	within(t, "at the start", h.works)
	h.deleteQueues()
	h.stopBroker()
	h.blockBroker()
	h.denyUser()
}

// healing is a server and a client on a separate broker.
type healing struct {
	*testing.T

	broker         *testenv.Service
	srvBus, cliBus *amqpbus.Bus
	client         *rpc.Client
	got            chan int             // the values of handled casts and fanouts
	hold           rpc.Method[int, int] // a method whose handler returns when gate is closed
	gate           chan struct{}
}

// ctl runs rabbitmqctl on the broker.
func (h *healing) ctl(args ...string) string {
	out, err := h.broker.Ctl(h.Context(), args...)
	if err != nil {
		h.Fatalf("%v", err)
	}
	return out
}

// works returns nil if calls, casts and fanouts work, and both buses are healthy.
func (h *healing) works(ctx context.Context) error {
	for _, host := range []string{"h", rpc.Any} {
		if _, err := rpc.Call(ctx, h.client, add, host, new(int)); err != nil {
			return err
		}
		if err := rpc.Cast(ctx, h.client, keep, host, new(int)); err != nil {
			return err
		}
		select {
		case <-h.got:
		case <-ctx.Done():
			return errors.New("the cast did not arrive")
		}
	}
	if err := rpc.Fanout(ctx, h.client, keep, new(int)); err != nil {
		return err
	}
	select {
	case <-h.got:
	case <-ctx.Done():
		return errors.New("the fanout did not arrive")
	}
	return errors.Join(h.srvBus.Check(ctx), h.cliBus.Check(ctx))
}

// deleteQueues deletes one queue after another. The bus must declare each of them again.
func (h *healing) deleteQueues() {
	h.Helper()
	queues := strings.Fields(h.ctl("list_queues", "name"))
	deleted := 0
	for _, name := range queues {
		if strings.HasPrefix(name, "heal.") {
			h.ctl("delete_queue", name)
			deleted++
			kind := name
			if strings.HasPrefix(name, "heal.reply.") {
				kind = "a private queue"
			}
			within(h.T, "after the deletion of "+kind, h.works)
		}
	}
	if deleted != 6 {
		h.Errorf("%d queues existed, want 5 queues of the server and 1 for replies: %v", deleted, queues)
	}
}

// stopBroker closes all connections, then stops and starts the broker. Calls whose handlers run meanwhile get
// their replies.
func (h *healing) stopBroker() {
	h.Helper()
	var calls []*rpc.Pending[int]
	for _, host := range []string{"h", rpc.Any} {
		p, err := rpc.Go(h.Context(), h.client, h.hold, host, new(int))
		if err != nil {
			h.Fatal(err)
		}
		calls = append(calls, p)
	}
	h.ctl("close_all_connections", "test")
	within(h.T, "after all connections were closed", h.works)
	h.ctl("stop_app")
	if err := h.srvBus.Check(h.Context()); !errors.Is(err, fault.Unavailable) {
		h.Errorf("Check of a stopped broker: %v, want Unavailable", err)
	}
	h.ctl("start_app")
	within(h.T, "after the broker was stopped and started", h.works)
	waittest.Pass(h, 2*time.Second, "by this time the calls of a killed server have failed")
	close(h.gate)
	for _, p := range calls {
		if _, err := p.Wait(h.Context()); err != nil {
			h.Errorf("a call that was handled while the broker was stopped: %v, want its reply", err)
		}
	}
}

// blockBroker takes away the broker's memory, so that it accepts no messages. A cast ends at its deadline, and
// Check gives the reason.
func (h *healing) blockBroker() {
	h.Helper()
	h.ctl("set_vm_memory_high_watermark", "0.00001")
	within(h.T, "Check and Stats report the blocked broker", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := rpc.Cast(ctx, h.client, keep, "h", new(int))
		if spent := time.Since(start); spent > time.Second {
			h.Errorf("a cast with a deadline of 200 ms took %v: %v", spent, err)
		}
		if err := h.cliBus.Check(ctx); err == nil || !h.cliBus.Capabilities().Stats().Blocked || !strings.Contains(err.Error(), "accepts no messages") {
			return fmt.Errorf("Check: %w, Blocked: %v", err, h.cliBus.Capabilities().Stats().Blocked)
		}
		if fault.CodeOf(err) != fault.Timeout {
			return fmt.Errorf("cast: %w, want Timeout", err)
		}
		return nil
	})
	h.ctl("set_vm_memory_high_watermark", "0.7")
	within(h.T, "after the broker had memory again", func(ctx context.Context) error {
		for len(h.got) > 0 { // these messages were sent before the broker was blocked
			<-h.got
		}
		return h.works(ctx)
	})
}

// denyUser starts a server whose user has no permission for the queues. Start returns Denied.
func (h *healing) denyUser() {
	h.Helper()
	h.ctl("add_user", "outsider", "s3cr3t-pw")
	h.ctl("set_permissions", "outsider", "^other", "^other", "^other")
	u, err := url.Parse(h.broker.URL)
	if err != nil {
		h.Fatal(err)
	}
	u.User = url.UserPassword("outsider", "s3cr3t-pw")
	bus := open(h.T, u.String(), "heal")
	outsider := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
	if err := outsider.Start(h.Context()); fault.CodeOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "heal.fault") || strings.Contains(fmt.Sprint(err), "s3cr3t") {
		h.Errorf("a server without permission: %v (%v), want Denied that names the queue", err, fault.CodeOf(err))
	}
}

// TestHeartbeatSeconds: New refuses a heartbeat that AMQP cannot carry.
func TestHeartbeatSeconds(t *testing.T) {
	t.Parallel()
	for heartbeat, ok := range map[time.Duration]bool{
		0: true, time.Second: true, time.Minute: true, time.Millisecond: false, 500 * time.Millisecond: false, 1500 * time.Millisecond: false,
	} {
		_, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://127.0.0.1:1/"}, Heartbeat: heartbeat})
		if ok != (err == nil) || !ok && (fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "heartbeat "+heartbeat.String())) {
			t.Errorf("heartbeat %v: %v (%v)", heartbeat, err, fault.CodeOf(err))
		}
	}
}
