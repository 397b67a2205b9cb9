package natsbus_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
)

// older returns a connection on which a test sends the messages that a process of the previous release sends.
func older(t *testing.T, url string) *nats.Conn {
	t.Helper()
	c, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestOlderClient: a client of the previous release waits until the server's bus confirms the call. The client itself
// confirms the reply.
func TestOlderClient(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	serve(t, open(t, url, exchange), "a", func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, v *string) (*string, error) { return v, nil })
	})
	c := older(t, url)
	replies, err := c.SubscribeSync(exchange + ".reply.old")
	if err != nil {
		t.Fatal(err)
	}
	for _, offer := range []string{"", "a sibling of the previous release"} {
		call := nats.NewMsg(exchange + ".backup.a.calls")
		call.Header = nats.Header{"_watermill_message_uuid": {"id-1"}, "rpc": {"call backup.echo 1.0"}, "reply_to": {"reply.old"}}
		if offer != "" {
			call.Header["Armature-Offer"] = []string{offer}
		}
		call.Data = []byte(`"x"`)
		answer, err := c.RequestMsgWithContext(limited(t), call)
		if err != nil || string(answer.Data) != "+ok" {
			t.Fatalf("the call is answered %v, %v; want +ok", answer, err)
		}
		reply, err := replies.NextMsgWithContext(limited(t))
		if err != nil {
			t.Fatal(err)
		}
		if reply.Header["rpc"][0] != "reply" || reply.Header["correlation_id"][0] != "id-1" || string(reply.Data) != `"x"` || reply.Reply == "" {
			t.Errorf("reply %v %s", reply.Header, reply.Data)
		}
		if err := reply.Respond([]byte("+ok")); err != nil {
			t.Error(err)
		}
	}
}

// TestOlderServer: a server of the previous release rejects a call while it is busy, confirms a call that it has received,
// and waits for the confirmation of its reply.
func TestOlderServer(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	c := older(t, url)
	calls := make(chan *nats.Msg, 10)
	if _, err := c.ChanQueueSubscribe(exchange+".backup.a.calls", "live", calls); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	p, err := rpc.Go(limited(t), client(t, open(t, url, exchange)), echo, "a", new(string))
	if err != nil {
		t.Fatal(err)
	}
	var id string
	for i, answer := range []string{"-busy", "-busy", "+ok"} {
		call := receive(t, calls, "the call")
		if again := call.Header.Get("_watermill_message_uuid"); i > 0 && again != id {
			t.Errorf("sent again as %s, want %s", again, id)
		} else {
			id = again
		}
		if err := call.Respond([]byte(answer)); err != nil {
			t.Fatal(err)
		}
		if answer != "+ok" {
			continue
		}
		reply := nats.NewMsg(exchange + "." + call.Header["reply_to"][0])
		reply.Header = nats.Header{"_watermill_message_uuid": {id}, "rpc": {"reply"}, "correlation_id": {id}}
		reply.Data, _ = json.Marshal("done")
		if answer, err := c.RequestMsgWithContext(limited(t), reply); err != nil || string(answer.Data) != "+ok" {
			t.Fatalf("the reply is answered %v, %v; want +ok", answer, err)
		}
	}
	if got, err := p.Wait(limited(t)); err != nil || *got != "done" {
		t.Errorf("the call: %v, want done", err)
	}
}

// TestBusyRejects: a busy server rejects a waiting call repeatedly, and handles the call once when a slot is free.
func TestBusyRejects(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	gate, began := make(chan struct{}), make(chan struct{}, 10)
	srv := rpc.NewServer(open(t, url, exchange), rpc.ServerConfig{Interface: iface, Host: "a", MaxInFlight: 1})
	rpc.Handle(srv, echo, func(_ context.Context, v *string) (*string, error) { began <- struct{}{}; <-gate; return v, nil })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	c := client(t, open(t, url, exchange))
	first, err := rpc.Go(limited(t), c, echo, "a", new(string))
	if err != nil {
		t.Fatal(err)
	}
	receive(t, began, "the first call")
	raw := older(t, url)
	rejections := make(chan *nats.Msg, 100)
	if _, err := raw.ChanSubscribe("_INBOX.>", rejections); err != nil {
		t.Fatal(err)
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	second, err := rpc.Go(limited(t), c, echo, "a", new(string))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 3; {
		if m := receive(t, rejections, "a rejection"); string(m.Data) == "-busy" {
			n++
		}
	}
	close(gate)
	for _, p := range []*rpc.Pending[string]{first, second} {
		if _, err := p.Wait(limited(t)); err != nil {
			t.Error(err)
		}
	}
	if n := len(began); n != 1 {
		t.Errorf("the handler ran %d times after the first, want once", n)
	}
}
