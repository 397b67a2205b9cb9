package amqpbus_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The functions below do the work of the benchmark with amqp091-go alone, for comparison. They do the minimum: no JSON
// unless coded is true, no deadlines, and no recovery of a lost connection.

func rawChannel(b *testing.B, url string) *amqp.Channel {
	b.Helper()
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

func rawQueue(b *testing.B, ch *amqp.Channel, durable bool) string {
	b.Helper()
	q, err := ch.QueueDeclare("raw."+rand.Text(), durable, !durable, !durable, false, nil)
	if err != nil {
		b.Fatal(err)
	}
	return q.Name
}

func rawConsume(b *testing.B, ch *amqp.Channel, queue string, autoAck bool) <-chan amqp.Delivery {
	b.Helper()
	if err := ch.Qos(100, 0, false); err != nil {
		b.Fatal(err)
	}
	in, err := ch.Consume(queue, "", autoAck, false, false, false, nil)
	if err != nil {
		b.Fatal(err)
	}
	return in
}

// rawCall returns a function that makes one call. All calls share one reply queue. The server has a prefetch of 100 and
// acknowledges each request. If safe is true, requests are mandatory and confirmed, but the caller does not wait for
// the confirmation. If both is true, the replies are also mandatory and confirmed, as the replies of rpc are. If coded
// is true, both sides encode and decode the same value as in the benchmark of rpc.
func rawCall(b *testing.B, url string, safe, both, coded bool) func() {
	b.Helper()
	server, out, client, in := rawChannel(b, url), rawChannel(b, url), rawChannel(b, url), rawChannel(b, url)
	queue, replyTo := rawQueue(b, server, false), rawQueue(b, in, false)
	requests, replies := rawConsume(b, server, queue, false), rawConsume(b, in, replyTo, true)
	for ch, confirm := range map[*amqp.Channel]bool{client: safe, out: both} {
		if confirm {
			if err := ch.Confirm(false); err != nil {
				b.Fatal(err)
			}
		}
	}
	go func() { // ends with the connection
		for d := range requests {
			_ = d.Ack(false)
			body := d.Body
			if coded {
				body = encode(b, decode(b, body))
			}
			_ = out.PublishWithContext(context.Background(), "", d.ReplyTo, both, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: body})
		}
	}()
	var mu sync.Mutex
	pending := map[string]chan []byte{}
	go func() { // ends with the connection
		for d := range replies {
			mu.Lock()
			ch := pending[d.CorrelationId]
			delete(pending, d.CorrelationId)
			mu.Unlock()
			if ch != nil {
				ch <- d.Body
			}
		}
	}()
	body, req := make([]byte, 1024), payload()
	return func() {
		id, done := rand.Text(), make(chan []byte, 1)
		body := body
		if coded {
			body = encode(b, req)
		}
		mu.Lock()
		pending[id] = done
		mu.Unlock()
		if err := client.PublishWithContext(b.Context(), "", queue, safe, false, amqp.Publishing{ReplyTo: replyTo, CorrelationId: id, Body: body}); err != nil {
			b.Error(err)
		}
		if reply := <-done; coded {
			decode(b, reply)
		}
	}
}

func encode(b *testing.B, v *blob) []byte {
	b.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		b.Error(err)
	}
	return raw
}

func decode(b *testing.B, raw []byte) *blob {
	b.Helper()
	v := new(blob)
	if err := json.Unmarshal(raw, v); err != nil {
		b.Error(err)
	}
	return v
}

// rawCast returns two functions, cast and drain. The function cast publishes one transient message. If safe is true,
// the message is persistent, and cast waits for its confirmation. The function drain waits until all messages are
// consumed.
func rawCast(b *testing.B, url string, safe bool) (cast, drain func()) {
	b.Helper()
	server, client := rawChannel(b, url), rawChannel(b, url)
	queue := rawQueue(b, server, true)
	b.Cleanup(func() { _, _ = rawChannel(b, url).QueueDelete(queue, false, false, false) })
	in := rawConsume(b, server, queue, false)
	p := amqp.Publishing{Body: make([]byte, 1024)}
	if safe {
		p.DeliveryMode = amqp.Persistent
		if err := client.Confirm(false); err != nil {
			b.Fatal(err)
		}
	}
	var c counter
	go func() { // ends with the connection
		for d := range in {
			_ = d.Ack(false)
			c.got()
		}
	}()
	return func() {
		c.sent(1)
		confirm, err := client.PublishWithDeferredConfirmWithContext(b.Context(), "", queue, false, false, p)
		if err != nil {
			b.Error(err)
		}
		if safe {
			confirm.Wait()
		}
	}, c.drain
}

// rawFanout does what rawCast does, for an exchange with ten queues. If coded is true, cast encodes a value, and each
// consumer decodes it.
func rawFanout(b *testing.B, url string, coded bool) (cast, drain func()) {
	b.Helper()
	client := rawChannel(b, url)
	name := "raw." + rand.Text()
	if err := client.ExchangeDeclare(name, amqp.ExchangeFanout, false, true, false, false, nil); err != nil {
		b.Fatal(err)
	}
	if err := client.Confirm(false); err != nil {
		b.Fatal(err)
	}
	var c counter
	for range fanoutServers {
		ch := rawChannel(b, url)
		queue := rawQueue(b, ch, false)
		if err := ch.QueueBind(queue, "", name, false, nil); err != nil {
			b.Fatal(err)
		}
		in := rawConsume(b, ch, queue, false)
		go func() { // ends with the connection
			for d := range in {
				if coded {
					if err := json.Unmarshal(d.Body, new(blob)); err != nil {
						b.Error(err)
					}
				}
				_ = d.Ack(false)
				c.got()
			}
		}()
	}
	return func() {
		c.sent(fanoutServers)
		body := make([]byte, 1024)
		if coded {
			body, _ = json.Marshal(payload()) // cannot fail
		}
		confirm, err := client.PublishWithDeferredConfirmWithContext(b.Context(), name, "", false, false, amqp.Publishing{Body: body})
		if err != nil {
			b.Error(err)
		}
		confirm.Wait()
	}, c.drain
}

const fanoutServers = 10

// counter counts the messages that were sent and not yet received.
type counter struct {
	mu    sync.Mutex
	open  int
	empty chan struct{}
}

func (c *counter) sent(n int) { c.add(n) }
func (c *counter) got()       { c.add(-1) }

func (c *counter) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += n
	if c.open == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

func (c *counter) drain() {
	c.mu.Lock()
	if c.open == 0 {
		c.mu.Unlock()
		return
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	wait := c.empty
	c.mu.Unlock()
	<-wait
}
