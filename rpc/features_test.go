package rpc_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// lossy is a bus that marks each delivery from the topic backup as redelivered.
type lossy struct{ *membus.Bus }

func (l lossy) Subscribe(ctx context.Context, s rpcbus.Subscription) (<-chan *rpcbus.Delivery, error) {
	in, err := l.Bus.Subscribe(ctx, s)
	out := make(chan *rpcbus.Delivery)
	go func() { // ends when in is closed
		defer close(out)
		for d := range in {
			d.Redelivered = s.Topic == "backup"
			select {
			case out <- d:
			case <-ctx.Done():
				_ = d.Nack() // returns the message to its topic
			}
		}
	}()
	return out, err
}

// TestLostServers: a redelivered cast counts as the loss of a server, and its handler does not run.
// After 20 lost servers the cast is dead-lettered. This holds for AtLeastOnce and AtMostOnce.
func TestLostServers(t *testing.T) {
	t.Parallel()
	for _, d := range []rpc.Delivery{rpc.AtLeastOnce, rpc.AtMostOnce} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			m := keep
			m.Delivery = d
			bus := lossy{rpctest.NewBus(t)}
			srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
			rpc.Handle(srv, m, func(context.Context, *string) (*rpc.None, error) {
				t.Error("the handler ran")
				return &rpc.None{}, nil
			})
			if err := srv.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer srv.Stop(context.Background())
			c := rpc.NewClient(bus, rpc.ClientConfig{})
			defer c.Close()
			if err := rpc.Cast(t.Context(), c, m, rpc.Any, new(string)); err != nil {
				t.Fatal(err)
			}
			var reasons []string
			for end := time.Now().Add(10 * time.Second); len(reasons) == 0 && time.Now().Before(end); {
				err := rpc.DeadLetters(t.Context(), bus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
					reasons = append(reasons, l.Reason)
					return rpc.Drop
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if len(reasons) != 1 || !strings.Contains(reasons[0], "20 servers were lost") {
				t.Errorf("dead letters: %q, want one, after 20 lost servers", reasons)
			}
		})
	}
}

// bounded is a bus that redelivers a message if the message is not acknowledged within an hour.
type bounded struct{ *membus.Bus }

func (b bounded) Capabilities() rpcbus.Capabilities {
	c := b.Bus.Capabilities()
	c.ConsumerTimeout = time.Hour
	return c
}

// TestConsumerTimeout: the context of an AtLeastOnce handler ends before the bus redelivers the
// handler's message. A server with an AtLeastOnce method whose timeout is longer than that of the
// bus does not start.
func TestConsumerTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := bounded{rpctest.NewBus(t)}
		long, question := keep, start
		long.Timeout, question.Timeout = 61*time.Minute, 61*time.Minute
		none := func(context.Context, *string) (*rpc.None, error) { return &rpc.None{}, nil }
		srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface})
		rpc.Handle(srv, long, none)
		if err := srv.Start(t.Context()); fault.CodeOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), "backup.keep may run for 1h1m0s, but the bus delivers an unacknowledged message again after 1h0m0s") {
			t.Errorf("Start: %v, want Invalid with the method and both times", err)
		}

		took := make(chan time.Duration, 1)
		srv = rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, MaxDeliveries: 1})
		rpc.Handle(srv, question, upper) // question is AtMostOnce, so its message is acknowledged before the handler runs
		rpc.Handle(srv, keep, func(ctx context.Context, _ *string) (*rpc.None, error) {
			began := time.Now()
			<-ctx.Done()
			took <- time.Since(began)
			return nil, ctx.Err()
		})
		if err := srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClient(bus, rpc.ClientConfig{})
		defer c.Close()
		if err := rpc.Cast(t.Context(), c, keep, rpc.Any, new(string)); err != nil {
			t.Fatal(err)
		}
		if d := <-took; d >= time.Hour || d < 50*time.Minute {
			t.Errorf("the handler's context ended after %v, want a little less than an hour", d)
		}
		if err := srv.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
