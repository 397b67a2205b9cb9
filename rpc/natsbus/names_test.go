package natsbus_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/bus"
)

// TestStreamNames: the streams of ordinary topics keep their names, and two topics never share a stream. If an older
// release has created a stream under another name, the bus uses that stream, with its messages.
func TestStreamNames(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	prefix := strings.ReplaceAll(exchange, ".", "~") + "~"
	const earlier = "compute.earlier/b"
	if _, err := js.CreateStream(limited(t), jetstream.StreamConfig{
		Name: prefix + "compute~earlier~b", Subjects: []string{exchange + "." + earlier}, Retention: jetstream.WorkQueuePolicy,
	}); err != nil {
		t.Fatal(err)
	}
	b := open(t, url, exchange)
	if err := b.Publish(limited(t), earlier, durable("1")); err != nil {
		t.Fatal(err)
	}
	in, err := b.Subscribe(t.Context(), bus.Subscription{Topic: earlier, Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := receive(t, in, "the message in the earlier stream").Ack(); err != nil {
		t.Error(err)
	}
	for _, topic := range []string{"compute.a.b", "compute.a~b", "compute.a/b", `compute.a\b`, "compute.a_b-c:d%20"} {
		if err := b.CreateTopic(t.Context(), topic); err != nil {
			t.Errorf("%s: %v", topic, err)
		}
	}
	var got []string
	names := js.StreamNames(limited(t), jetstream.WithStreamListSubject(exchange+".>"))
	for name := range names.Name() {
		got = append(got, strings.TrimPrefix(name, prefix))
	}
	slices.Sort(got)
	want := []string{"compute~a_b-c:d%20", "compute~a~b", "compute~a~~bb", "compute~a~~sb", "compute~a~~tb", "compute~earlier~b"}
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("streams %q, want %q", got, want)
	}
}
