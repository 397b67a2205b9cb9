package natsbus_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// openLogged does what open does. It also counts the lines of the bus's log, and sets the limit of unacknowledged bytes to
// inFlight.
func openLogged(t *testing.T, url, exchange string, inFlight int) (*natsbus.Bus, *logtest.Lines) {
	t.Helper()
	log, lines := logtest.New()
	b, err := natsbus.New(natsbus.Config{URLs: []string{url}, Exchange: exchange, MaxInFlight: inFlight, Logger: log})
	if err == nil {
		err = b.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Stop(context.Background()) }) // never fails
	return b, lines
}

// TestDropsLogged: a subscriber that does not receive its fanouts loses many of them. The log has only one WARN.
func TestDropsLogged(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	b, lines := openLogged(t, url, exchange, 1000)
	in, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t", Mode: bus.Live, Fanout: "f"})
	if err != nil {
		t.Fatal(err)
	}
	sender := open(t, url, exchange)
	payload := fmt.Sprintf("%600d", 1)
	drops := func() int {
		return lines.Count(slog.LevelWarn, "NATS client") + lines.Count(slog.LevelDebug, "NATS client")
	}
	const rounds = 4
	for n := range rounds {
		waittest.Until(t, "a dropped fanout in the log", func() bool {
			if err := sender.Publish(limited(t), "f", rpctest.Message("id", "fanout t.note 1.0", payload)); err != nil {
				t.Fatal(err)
			}
			return drops() > n
		})
		receive(t, in, "a fanout")
	}
	if warn := lines.Count(slog.LevelWarn, ""); warn != 1 {
		t.Errorf("%d WARN for %d drops, want one", warn, drops())
	}
}

// TestStreamOutageLogged: the stream is deleted, and another program creates a stream with the same name and another subject.
// Each attempt to consume the stream fails. The log has one WARN, and one INFO when the stream is consumed again.
func TestStreamOutageLogged(t *testing.T) {
	t.Parallel()
	url, exchange := envtest.URL(t, testenv.NATSVar), newExchange()
	b, lines := openLogged(t, url, exchange, 0)
	in, err := b.Subscribe(t.Context(), bus.Subscription{Topic: "t", Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	name := exchange[:4] + "~" + exchange[5:] + "~t"
	if err := js.DeleteStream(limited(t), name); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(limited(t), jetstream.StreamConfig{Name: name, Subjects: []string{exchange + ".other"}}); err != nil {
		t.Fatal(err)
	}
	failures := func() int {
		return lines.Count(slog.LevelWarn, "") + lines.Count(slog.LevelDebug, "consume stream failed")
	}
	waittest.Until(t, "four failed attempts", func() bool { return failures() >= 4 })
	if err := js.DeleteStream(limited(t), name); err != nil {
		t.Fatal(err)
	}
	waittest.Succeeds(t, "the stream to come back", func() error { return b.Publish(limited(t), "t", durable("1")) })
	if err := receive(t, in, "the message").Ack(); err != nil {
		t.Error(err)
	}
	waittest.Until(t, "the end of the outage in the log", func() bool { return lines.Count(slog.LevelInfo, "consume stream works again") > 0 })
	if warn, info := lines.Count(slog.LevelWarn, ""), lines.Count(slog.LevelInfo, ""); warn != 1 || info != 1 {
		t.Errorf("%d WARN and %d INFO for %d failures, want one of each", warn, info, failures())
	}
}
