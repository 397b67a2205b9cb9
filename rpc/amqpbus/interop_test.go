package amqpbus_test

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
)

type snapshot struct{ Volume string }

// interop is an interface whose other side is a program with only watermill-amqp.
var (
	interop     = &rpc.Interface{Name: "interop", Version: rpc.Version{Major: 2, Minor: 1}}
	interopTake = rpc.Method[snapshot, rpc.None]{
		Interface: interop, Name: "take", Since: rpc.Version{Major: 2, Minor: 1}, Delivery: rpc.AtLeastOnce,
	}
	interopNote = rpc.Method[snapshot, rpc.None]{Interface: interop, Name: "note", Since: rpc.Version{Major: 2}}
)

// stockPublish publishes one message with watermill-amqp alone.
func stockPublish(t *testing.T, cfg stock.Config, topic string, m *message.Message) {
	t.Helper()
	cfg.Publish.ConfirmDelivery = true
	p, err := stock.NewPublisher(cfg, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(topic, m); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// stockSubscribe subscribes with watermill-amqp alone.
func stockSubscribe(t *testing.T, cfg stock.Config, topic string) <-chan *message.Message {
	t.Helper()
	s, err := stock.NewSubscriber(cfg, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	in, err := s.Subscribe(context.WithoutCancel(t.Context()), topic)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func interopWait[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

// TestInteropToServer: a program with only watermill-amqp sends casts to any server, to
// one server, and to all servers.
func TestInteropToServer(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, "ARMATURE_TEST_AMQP_URL"), "test."+strings.ToLower(rand.Text())
	type seen struct {
		Volume string
		Req    reqctx.Request
	}
	got := make(chan seen, 10)
	handle := func(ctx context.Context, s *snapshot) (*rpc.None, error) {
		got <- seen{s.Volume, reqctx.From(ctx)}
		return nil, nil
	}
	srv := rpc.NewServer(open(t, url, exchange), rpc.ServerConfig{Interface: interop, Host: "node-1"})
	rpc.Handle(srv, interopTake, handle)
	rpc.Handle(srv, interopNote, handle)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })

	for _, tt := range []struct {
		cfg         stock.Config
		topic, mark string
	}{
		{stock.NewDurableQueueConfig(url), exchange + ".interop", "cast interop.take 2.1 at-least-once"},
		{stock.NewDurableQueueConfig(url), exchange + ".interop.node-1", "cast interop.take 2.1 at-least-once"},
		{stock.NewDurableQueueConfig(url), exchange + ".interop.node-1", "cast interop.note 2.0"},
		{stock.NewDurablePubSubConfig(url, nil), exchange + ".interop.fanout", "fanout interop.note 2.0"},
	} {
		m := message.NewMessage(watermill.NewUUID(), message.Payload(`{"Volume":"v1"}`))
		m.Metadata.Set("rpc", tt.mark)
		m.Metadata.Set("context", `{"request_id":"req-1","user_id":"u","project_id":"p"}`)
		stockPublish(t, tt.cfg, tt.topic, m)
		want := seen{"v1", reqctx.Request{ID: "req-1", UserID: "u", ProjectID: "p"}}
		if diff := cmp.Diff(want, interopWait(t, got, tt.mark)); diff != "" {
			t.Errorf("%s to %s (-want +got):\n%s", tt.mark, tt.topic, diff)
		}
	}
	if st := srv.Stats(); st.Malformed != 0 || st.DeadLettered != 0 || st.Duplicate != 0 {
		t.Errorf("%+v, want no malformed, dead-lettered or duplicate message", st)
	}
}

// TestInteropFromClient: a program with only watermill-amqp receives the casts of a
// client.
func TestInteropFromClient(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, "ARMATURE_TEST_AMQP_URL"), "test."+strings.ToLower(rand.Text())
	some := stockSubscribe(t, stock.NewDurableQueueConfig(url), exchange+".interop")
	one := stockSubscribe(t, stock.NewDurableQueueConfig(url), exchange+".interop.node-1")

	c := rpc.NewClient(open(t, url, exchange), rpc.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() }) // never fails
	ctx := reqctx.With(t.Context(), reqctx.Request{ID: "req-1", Roles: []string{"member"}, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
	v := &snapshot{Volume: "vü"}
	for _, err := range []error{
		rpc.Cast(ctx, c, interopTake, rpc.Any, v),
		rpc.Cast(ctx, c, interopTake, "node-1", v),
		rpc.Cast(ctx, c, interopNote, "node-1", v),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ids := map[string]bool{}
	for _, tt := range []struct {
		in   <-chan *message.Message
		mark string
	}{
		{some, "cast interop.take 2.1 at-least-once"},
		{one, "cast interop.take 2.1 at-least-once"},
		{one, "cast interop.note 2.0"},
	} {
		m := interopWait(t, tt.in, tt.mark)
		m.Ack()
		want := message.Metadata{
			"rpc": tt.mark, "context": `{"request_id":"req-1","roles":["member"]}`,
			"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		}
		if diff := cmp.Diff(want, m.Metadata); diff != "" {
			t.Errorf("metadata (-want +got):\n%s", diff)
		}
		if got := string(m.Payload); got != `{"Volume":"vü"}` {
			t.Errorf("payload %s", got)
		}
		if m.UUID == "" || ids[m.UUID] {
			t.Errorf("UUID %q, want a unique one", m.UUID)
		}
		ids[m.UUID] = true
	}
}
