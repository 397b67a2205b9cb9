package amqpbus_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
)

// BenchmarkCompare compares the bus with amqp091-go alone and with watermill-amqp, in
// interleaved rounds of one run. During a row, only the compared programs are
// connected. The benchmark ignores -benchtime. Set the duration with -args -rounds and -slice.
func BenchmarkCompare(b *testing.B) {
	url := envtest.URL(b, testenv.AMQPVar)
	w := compare.New()
	b.Run("call", func(b *testing.B) {
		list := []compare.Contender{
			{Name: "amqp091-go", Op: rawCall(b, url, false, false, false)},
			{Name: "amqp091-go, mandatory, confirmed", Op: rawCall(b, url, true, false, false)},
			{Name: "rpc on amqpbus, bytes as above", Op: ourCall(b, url, bytesEcho, rawPayload())},
		}
		for _, callers := range []int{1, 16, 64, 256} {
			w.Row("call", callers, list...)
		}
	})
	b.Run("json", func(b *testing.B) {
		list := []compare.Contender{
			{Name: "amqp091-go, mandatory, confirmed", Op: rawCall(b, url, true, false, true)},
			{Name: "amqp091-go, replies mandatory and confirmed, too", Op: rawCall(b, url, true, true, true)},
			{Name: "rpc on amqpbus", Op: ourCall(b, url, echo, payload())},
		}
		for _, callers := range []int{1, 16, 64, 256} {
			w.Row("call with JSON", callers, list...)
		}
	})
	b.Run("stock", func(b *testing.B) {
		list := []compare.Contender{
			{Name: "amqp091-go", Op: rawCall(b, url, false, false, false)},
			{Name: "watermill-amqp", Op: watermillCall(b, url, asItComes(url), 1)},
			{Name: "watermill-amqp, tuned", Op: watermillCall(b, url, tuned(url, false), tunedLanes)},
			{Name: "watermill requestreply, and JSON", Op: requestReply(b, url)},
		}
		for _, callers := range []int{1, 16, 64} { // requestreply does not work with 256 callers
			w.Row("call", callers, list...)
		}
	})
	for _, d := range []rpc.Delivery{rpc.AtLeastOnce, rpc.AtMostOnce} {
		b.Run(d.String(), func(b *testing.B) { compareCasts(b, w, url, d) })
	}
	b.Run("fanout", func(b *testing.B) {
		cast, drain := rawFanout(b, url, false)
		bare, drainBare := ourFanout(b, url, rawPayload())
		w.Row("fanout to 10", 16, compare.Contender{Name: "amqp091-go", Op: cast, Drain: drain},
			compare.Contender{Name: "rpc on amqpbus, bytes as above", Op: bare, Drain: drainBare})
	})
	b.Run("fanoutjson", func(b *testing.B) {
		cast, drain := rawFanout(b, url, true)
		coded, drainCoded := ourFanout(b, url, payload())
		w.Row("fanout to 10 with JSON", 16, compare.Contender{Name: "amqp091-go", Op: cast, Drain: drain},
			compare.Contender{Name: "rpc on amqpbus", Op: coded, Drain: drainCoded})
	})
}

func compareCasts(b *testing.B, w *compare.Table, url string, d rpc.Delivery) {
	b.Helper()
	var list []compare.Contender
	add := func(name string, op, drain func()) {
		list = append(list, compare.Contender{Name: name, Op: op, Drain: drain})
	}
	safe, what := d == rpc.AtLeastOnce, "cast, transient"
	if safe {
		what = "cast, persistent, confirmed"
	}
	op, drain := rawCast(b, url, safe)
	add("amqp091-go", op, drain)
	op, drain = ourCast(b, url, d, rawPayload())
	add("rpc on amqpbus, bytes as above", op, drain)
	op, drain = ourCast(b, url, d, payload())
	add("rpc on amqpbus, and JSON", op, drain)
	op, drain = watermillCast(b, url, asItComes(url), 1)
	add("watermill-amqp, persistent, not confirmed", op, drain)
	op, drain = watermillCast(b, url, tuned(url, safe), tunedLanes)
	add("watermill-amqp, tuned", op, drain)
	w.Row(what, 64, list...)
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

	echo = rpc.Method[blob, blob]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
)

// benchServer starts a server with a slot for each caller of the largest row: the servers of the other programs handle any number of messages at once.
func benchServer(b *testing.B, url, exchange, host string, register func(*rpc.Server)) {
	b.Helper()
	srv := rpc.NewServer(open(b, url, exchange), rpc.ServerConfig{Interface: iface, Host: host, MaxInFlight: 256})
	register(srv)
	if err := srv.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Stop(context.Background()) }) // no handler runs at this time
}

func benchClient(b *testing.B, url, exchange string) *rpc.Client {
	b.Helper()
	c := rpc.NewClient(open(b, url, exchange), rpc.ClientConfig{})
	b.Cleanup(func() { _ = c.Close() }) // never fails
	return c
}

func ourCall[T any](b *testing.B, url string, m rpc.Method[T, T], req *T) func() {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	benchServer(b, url, exchange, "h", func(s *rpc.Server) {
		rpc.Handle(s, m, func(_ context.Context, r *T) (*T, error) { return r, nil })
	})
	client := benchClient(b, url, exchange)
	return func() {
		if _, err := rpc.Call(b.Context(), client, m, rpc.Any, req); err != nil {
			b.Error(err)
		}
	}
}

// note returns a method without a result.
func note[T any](d rpc.Delivery) rpc.Method[T, rpc.None] {
	return rpc.Method[T, rpc.None]{Interface: iface, Name: "note", Since: rpc.Version{Major: 1}, Delivery: d}
}

func ourCast[T any](b *testing.B, url string, d rpc.Delivery, req *T) (cast, drain func()) {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	var c counter
	m := note[T](d)
	benchServer(b, url, exchange, "h", func(s *rpc.Server) {
		rpc.Handle(s, m, func(context.Context, *T) (*rpc.None, error) { c.got(); return &rpc.None{}, nil })
	})
	client := benchClient(b, url, exchange)
	return func() {
		c.sent(1)
		if err := rpc.Cast(b.Context(), client, m, "h", req); err != nil {
			b.Error(err)
		}
	}, c.drain
}

func ourFanout[T any](b *testing.B, url string, req *T) (cast, drain func()) {
	b.Helper()
	exchange := "bench." + strings.ToLower(rand.Text())
	var c counter
	m := note[T](rpc.AtMostOnce)
	for i := range fanoutServers {
		benchServer(b, url, exchange, fmt.Sprint("h", i), func(s *rpc.Server) {
			rpc.Handle(s, m, func(context.Context, *T) (*rpc.None, error) { c.got(); return &rpc.None{}, nil })
		})
	}
	client := benchClient(b, url, exchange)
	return func() {
		c.sent(fanoutServers)
		if err := rpc.Fanout(b.Context(), client, m, req); err != nil {
			b.Error(err)
		}
	}, c.drain
}
