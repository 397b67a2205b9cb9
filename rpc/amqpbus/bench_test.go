package amqpbus_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
)

// BenchmarkCall compares calls over the bus with what raw amqp091-go does with
// direct reply-to, in the same run, at several numbers of callers. The payload
// is 1 KiB.
func BenchmarkCall(b *testing.B) {
	url := envtest.URL(b, testenv.AMQPVar)
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("raw/callers=%d", callers), func(b *testing.B) { benchRaw(b, url, callers) })
		b.Run(fmt.Sprintf("rpc/callers=%d", callers), func(b *testing.B) { benchRPC(b, url, callers) })
	}
}

type blob struct{ Data []byte }

// share runs f n times, spread over the callers, and reports the rate.
func share(b *testing.B, callers int, f func()) {
	b.Helper()
	b.ReportAllocs()
	jobs := make(chan struct{}, b.N)
	for range b.N {
		jobs <- struct{}{}
	}
	close(jobs)
	b.ResetTimer()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range jobs {
				f()
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

func benchRPC(b *testing.B, url string, callers int) {
	b.Helper()
	exchange := "bench." + rand.Text()
	srvBus, cliBus := open(b, url, exchange), open(b, url, exchange)
	echo := rpc.Method[blob, blob]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	srv := rpc.NewServer(srvBus, rpc.ServerConfig{Interface: iface, MaxInFlight: 100})
	rpc.Handle(srv, echo, func(_ context.Context, r *blob) (*blob, error) { return r, nil })
	if err := srv.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer srv.Stop(context.Background())
	client := rpc.NewClient(cliBus, rpc.ClientConfig{})
	defer client.Close()
	req := &blob{make([]byte, 768)} // 1 KiB as base64 in JSON
	if _, err := rpc.Call(b.Context(), client, echo, rpc.Any, req); err != nil {
		b.Fatal(err)
	}
	share(b, callers, func() {
		if _, err := rpc.Call(b.Context(), client, echo, rpc.Any, req); err != nil {
			b.Error(err)
		}
	})
}

// benchRaw is the least that a call over RabbitMQ can be: one channel each way,
// direct reply-to, no acknowledgements, no JSON.
func benchRaw(b *testing.B, url string, callers int) {
	b.Helper()
	queue := "bench." + rand.Text()
	dial := func() *amqp.Channel {
		conn, err := amqp.Dial(url)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		ch, err := conn.Channel()
		if err != nil {
			b.Fatal(err)
		}
		return ch
	}
	server, out, client := dial(), dial(), dial()
	if _, err := server.QueueDeclare(queue, false, true, false, false, nil); err != nil {
		b.Fatal(err)
	}
	in, err := server.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		b.Fatal(err)
	}
	go func() { // ends with the connection
		for d := range in {
			_ = out.PublishWithContext(context.Background(), "", d.ReplyTo, false, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: d.Body})
		}
	}()
	const direct = "amq.rabbitmq.reply-to"
	replies, err := client.Consume(direct, "", true, false, false, false, nil)
	if err != nil {
		b.Fatal(err)
	}
	var mu sync.Mutex
	waiting := map[string]chan struct{}{}
	go func() { // ends with the connection
		for d := range replies {
			mu.Lock()
			ch := waiting[d.CorrelationId]
			delete(waiting, d.CorrelationId)
			mu.Unlock()
			if ch != nil {
				close(ch)
			}
		}
	}()
	body := make([]byte, 1024)
	share(b, callers, func() {
		id, done := rand.Text(), make(chan struct{})
		mu.Lock()
		waiting[id] = done
		mu.Unlock()
		if err := client.PublishWithContext(b.Context(), "", queue, false, false, amqp.Publishing{ReplyTo: direct, CorrelationId: id, Body: body}); err != nil {
			b.Error(err)
		}
		<-done
	})
}
