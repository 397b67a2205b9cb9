package natsbus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
)

// BenchmarkCompare compares the bus with nats.go alone, in interleaved rounds of one run. The benchmark ignores -benchtime. Set the
// duration with -args -rounds and -slice.
func BenchmarkCompare(b *testing.B) {
	url := envtest.URL(b, testenv.NATSVar)
	w := compare.New()
	b.Run("call", func(b *testing.B) {
		list := []compare.Contender{
			{Name: "nats.go request", Op: rawCall(b, url, false)},
			{Name: "rpc on natsbus, bytes as above", Op: ourCall(b, url, bytesEcho, rawPayload())},
		}
		for _, callers := range []int{1, 16, 64} {
			w.Row("call", callers, list...)
		}
	})
	b.Run("json", func(b *testing.B) {
		list := []compare.Contender{
			{Name: "nats.go request, and JSON", Op: rawCall(b, url, true)},
			{Name: "rpc on natsbus", Op: ourCall(b, url, blobEcho, payload())},
		}
		for _, callers := range []int{1, 16, 64} {
			w.Row("call with JSON", callers, list...)
		}
	})
	b.Run("cast", func(b *testing.B) {
		w.Row("cast, at least once", 64,
			compare.Contender{Name: "JetStream publish", Op: rawCast(b, url)},
			compare.Contender{Name: "rpc on natsbus, bytes as above", Op: ourCast(b, url)},
		)
	})
}

type blob struct{ Data []byte }

// payload returns a message whose data are 1 KiB in JSON: 768 bytes in base64.
func payload() *blob { return &blob{make([]byte, 768)} }

// rawPayload returns a message of 1 KiB that neither side decodes.
func rawPayload() *json.RawMessage {
	raw := json.RawMessage(bytes.Repeat([]byte(" "), 1024))
	return &raw
}

var (
	bytesEcho = rpc.Method[json.RawMessage, json.RawMessage]{Interface: iface, Name: "bytes", Since: rpc.Version{Major: 1}}
	blobEcho  = rpc.Method[blob, blob]{Interface: iface, Name: "blob", Since: rpc.Version{Major: 1}}
	bytesKeep = rpc.Method[json.RawMessage, rpc.None]{Interface: iface, Name: "keep", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce}
)

func connect(b *testing.B, url string) *nats.Conn {
	b.Helper()
	c, err := nats.Connect(url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// rawCall starts a responder with nats.go, and returns a function that sends the responder one request. If coded is true, both sides
// decode and encode JSON.
func rawCall(b *testing.B, url string, coded bool) func() {
	b.Helper()
	subject := newExchange()
	through := func(data []byte) []byte { return data }
	if coded {
		through = func(data []byte) []byte {
			var v blob
			err := json.Unmarshal(data, &v)
			if err == nil {
				data, err = json.Marshal(&v)
			}
			if err != nil {
				b.Error(err)
			}
			return data
		}
	}
	if _, err := connect(b, url).Subscribe(subject, func(m *nats.Msg) { _ = m.Respond(through(m.Data)) }); err != nil {
		b.Fatal(err)
	}
	c := connect(b, url)
	return func() {
		data := []byte(*rawPayload())
		if coded {
			data, _ = json.Marshal(payload())
		}
		m, err := c.RequestWithContext(b.Context(), subject, data)
		if err != nil {
			b.Error(err)
		} else if coded {
			var v blob
			if err := json.Unmarshal(m.Data, &v); err != nil {
				b.Error(err)
			}
		}
	}
}

func ourCall[T any](b *testing.B, url string, m rpc.Method[T, T], req *T) func() {
	b.Helper()
	exchange := newExchange()
	srv := rpc.NewServer(open(b, url, exchange), rpc.ServerConfig{Interface: iface, Host: "h", MaxInFlight: 100})
	rpc.Handle(srv, m, func(_ context.Context, r *T) (*T, error) { return r, nil })
	if err := srv.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Stop(context.Background()) }) // no handler runs at this time
	c := client(b, open(b, url, exchange))
	return func() {
		if _, err := rpc.Call(b.Context(), c, m, rpc.Any, req); err != nil {
			b.Error(err)
		}
	}
}

// topic creates a Shared topic for casts, and returns its exchange.
func topic(b *testing.B, url string) string {
	b.Helper()
	exchange := newExchange()
	if err := open(b, url, exchange).CreateTopic(b.Context(), iface.Name); err != nil {
		b.Fatal(err)
	}
	return exchange
}

func rawCast(b *testing.B, url string) func() {
	b.Helper()
	subject := fmt.Sprint(topic(b, url), ".", iface.Name)
	js, err := jetstream.New(connect(b, url))
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if _, err := js.Publish(b.Context(), subject, *rawPayload()); err != nil {
			b.Error(err)
		}
	}
}

func ourCast(b *testing.B, url string) func() {
	b.Helper()
	c := client(b, open(b, url, topic(b, url)))
	return func() {
		if err := rpc.Cast(b.Context(), c, bytesKeep, rpc.Any, rawPayload()); err != nil {
			b.Error(err)
		}
	}
}
