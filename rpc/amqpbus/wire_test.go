package amqpbus_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"maps"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/goldentest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
)

// frame has the parts of an AMQP message that docs/wire.md specifies.
type frame struct {
	Exchange   string            `json:"exchange"`
	RoutingKey string            `json:"routing_key"`
	Persistent bool              `json:"persistent"`
	Properties map[string]string `json:"properties"`
	Headers    map[string]any    `json:"headers"`
	Payload    string            `json:"payload"`
}

// Patterns of ids and times, which differ in each run.
var (
	idForm   = regexp.MustCompile(`\b[0-9a-f]{32}\b`)
	timeForm = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
)

// plain replaces the exchange, ids and times in s by constants.
func plain(exchange, s string) string {
	s = strings.ReplaceAll(s, exchange, "EXCHANGE")
	return timeForm.ReplaceAllString(idForm.ReplaceAllString(s, "ID"), "TIME")
}

// checkFrame compares a delivery with its golden file, see goldentest.File.
func checkFrame(t *testing.T, name, exchange string, d amqp.Delivery) {
	t.Helper()
	f := frame{
		Exchange: d.Exchange, RoutingKey: d.RoutingKey, Persistent: d.DeliveryMode == amqp.Persistent,
		Properties: map[string]string{}, Headers: map[string]any{}, Payload: string(d.Body),
	}
	for k, v := range map[string]string{
		"content_type": d.ContentType, "message_id": d.MessageId, "correlation_id": d.CorrelationId,
		"reply_to": d.ReplyTo, "type": d.Type, "expiration": d.Expiration, "app_id": d.AppId,
	} {
		if v != "" {
			f.Properties[k] = v
		}
	}
	maps.Copy(f.Headers, d.Headers)
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	goldentest.File(t, name+" on the wire", filepath.Join("testdata", "wire", name+".json"), plain(exchange, string(text))+"\n")
}

// TestWire: the messages on the wire are those of the golden files, byte by byte, except for
// ids and times. Other releases and programs in other languages rely on this form of the messages.
func TestWire(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	exchange := "wire." + strings.ToLower(rand.Text())
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	consume := func(queue string, durable bool, fanout string) <-chan amqp.Delivery {
		if _, err := ch.QueueDeclare(queue, durable, !durable, !durable, false, nil); err != nil {
			t.Fatal(err)
		}
		if fanout != "" {
			if err := ch.ExchangeDeclare(fanout, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
				t.Fatal(err)
			}
			if err := ch.QueueBind(queue, "", fanout, false, nil); err != nil {
				t.Fatal(err)
			}
		}
		in, err := ch.Consume(queue, "", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = rawDelete(url, queue) })
		return in
	}
	iface := &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 2, Minor: 1}}
	list := rpc.Method[string, string]{Interface: iface, Name: "list", Since: rpc.Version{Major: 2}}
	start := rpc.Method[string, rpc.None]{Interface: iface, Name: "start", Since: rpc.Version{Major: 2, Minor: 1}, Delivery: rpc.AtLeastOnce}
	hint := rpc.Method[string, rpc.None]{Interface: iface, Name: "hint", Since: rpc.Version{Major: 2}}
	casts := consume(exchange+".backup", true, "")
	calls := consume(exchange+".backup.node-1.calls", true, "")
	events := consume(exchange+".events", false, exchange+".backup.fanout")

	bus := open(t, url, exchange)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	ctx := reqctx.With(t.Context(), reqctx.Request{
		ID: "req-1", GlobalID: "req-2", UserID: "u", ProjectID: "p", Roles: []string{"admin", "a b"},
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	})
	text := "naïve"
	if err := rpc.Cast(ctx, client, start, rpc.Any, &text); err != nil {
		t.Fatal(err)
	}
	checkFrame(t, "cast", exchange, <-casts)
	if err := rpc.Cast(t.Context(), client, hint, rpc.Any, &text); err != nil {
		t.Fatal(err)
	}
	checkFrame(t, "cast-at-most-once", exchange, <-casts)
	if err := rpc.Fanout(ctx, client, hint, &text); err != nil {
		t.Fatal(err)
	}
	checkFrame(t, "fanout", exchange, <-events)

	callCtx, cancel := context.WithCancel(ctx)
	p, err := rpc.Go(callCtx, client, list, "node-1", &text)
	if err != nil {
		t.Fatal(err)
	}
	checkFrame(t, "call", exchange, <-calls)
	cancel()
	if _, err := p.Wait(t.Context()); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("canceled call: %v", err)
	}
	checkFrame(t, "cancel", exchange, <-calls)

	// From here on a server answers, and its replies are compared.
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "node-2", MaxDeliveries: 1})
	long := make(chan struct{})
	rpc.Handle(srv, list, func(_ context.Context, s *string) (*string, error) {
		switch *s {
		case "no":
			return nil, fault.Sentinel(fault.Exhausted, "NoRoom", "no room")
		case "long":
			<-long
		}
		return s, nil
	})
	rpc.Handle(srv, start, func(context.Context, *string) (*rpc.None, error) { return nil, fault.New(fault.Exhausted, "not now") })
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer srv.Stop(context.Background())
	answers := consume(exchange+".reply.x", false, "")
	ask := func(payload, options string) amqp.Delivery {
		err := ch.PublishWithContext(t.Context(), "", exchange+".backup.node-2.calls", false, false, amqp.Publishing{
			MessageId: "0123456789abcdef0123456789abcdef", Type: "call backup.list 2.0" + options, ReplyTo: exchange + ".reply.x", Body: []byte(payload),
		})
		if err != nil {
			t.Fatal(err)
		}
		return <-answers
	}
	checkFrame(t, "reply", exchange, ask(`"naïve"`, ""))
	checkFrame(t, "reply-error", exchange, ask(`"no"`, ""))
	checkFrame(t, "beat", exchange, ask(`"long"`, " beat=20ms"))
	close(long)
	letters := consume(exchange+".backup.dlq", true, "")
	if err := rpc.Cast(ctx, client, start, "node-2", &text); err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-letters:
		checkFrame(t, "dead-letter", exchange, d)
	case <-time.After(20 * time.Second):
		t.Error("no dead letter")
	}
}

// rawDelete deletes a queue over a separate connection.
func rawDelete(url, queue string) (int, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return 0, err
	}
	return ch.QueueDelete(queue, false, false, false)
}
