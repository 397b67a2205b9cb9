package amqpbus_test

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"
)

// The same work with watermill-amqp, for comparison. The configurations are those of watermill-amqp,
// unless a comment names a difference.

// asItComes returns the first configuration for queues in watermill's documentation.
func asItComes(url string) wamqp.Config { return wamqp.NewDurableQueueConfig(url) }

// tuned returns a configuration for speed: channels that stay open, and the same prefetch as the other
// programs here. If durable is false, messages are transient.
func tuned(url string, durable bool) wamqp.Config {
	c := wamqp.NewNonDurableQueueConfig(url)
	if durable {
		c = wamqp.NewDurableQueueConfig(url)
		c.Publish.ConfirmDelivery = true
	}
	c.Publish.ChannelPoolSize = 16
	c.Consume.Qos.PrefetchCount = 100
	c.Marshaler = wamqp.DefaultMarshaler{NotPersistentDeliveryMode: !durable}
	return c
}

// tunedLanes is the number of subscriptions of a tuned consumer. Each subscription waits for the
// acknowledgement of a message before it receives the next message.
const tunedLanes = 16

func watermillEnds(b *testing.B, cfg wamqp.Config) (*wamqp.Publisher, *wamqp.Subscriber) {
	b.Helper()
	pub, err := wamqp.NewPublisher(cfg, watermill.NopLogger{})
	if err != nil {
		b.Fatal(err)
	}
	sub, err := wamqp.NewSubscriber(cfg, watermill.NopLogger{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _, _ = pub.Close(), sub.Close() }) // no message is in flight any more
	return pub, sub
}

// consumeAll calls f with each message of a topic. The queue is deleted at the end of the benchmark.
func consumeAll(b *testing.B, url string, sub *wamqp.Subscriber, topic string, lanes int, f func(*message.Message)) {
	b.Helper()
	for range lanes {
		in, err := sub.Subscribe(b.Context(), topic)
		if err != nil {
			b.Fatal(err)
		}
		go func() { // ends with the subscriber
			for m := range in {
				f(m)
				m.Ack()
			}
		}()
	}
	b.Cleanup(func() { _, _ = rawChannel(b, url).QueueDelete(topic, false, false, false) })
}

// watermillCall returns a function that makes one call, as rawCall does. The benchmark itself manages the
// reply queue and the correlation ids.
func watermillCall(b *testing.B, url string, cfg wamqp.Config, lanes int) func() {
	b.Helper()
	serverPub, serverSub := watermillEnds(b, cfg)
	clientPub, clientSub := watermillEnds(b, cfg)
	queue, replyTo := "watermill."+rand.Text(), "watermill."+rand.Text()
	consumeAll(b, url, serverSub, queue, lanes, func(m *message.Message) {
		r := message.NewMessage(m.UUID, m.Payload)
		if err := serverPub.Publish(m.Metadata["reply_to"], r); err != nil {
			b.Error(err)
		}
	})
	var mu sync.Mutex
	pending := map[string]chan []byte{}
	consumeAll(b, url, clientSub, replyTo, lanes, func(m *message.Message) {
		mu.Lock()
		ch := pending[m.UUID]
		delete(pending, m.UUID)
		mu.Unlock()
		if ch != nil {
			ch <- m.Payload
		}
	})
	body := make([]byte, 1024)
	return func() {
		id, done := rand.Text(), make(chan []byte, 1)
		mu.Lock()
		pending[id] = done
		mu.Unlock()
		m := message.NewMessage(id, body)
		m.Metadata["reply_to"] = replyTo
		if err := clientPub.Publish(queue, m); err != nil {
			b.Error(err)
		}
		<-done
	}
}

// requestReply returns a function that makes one call with watermill's component requestreply, in the
// configuration of asItComes. Each call has its own reply queue, which expires. If all calls shared one
// queue, concurrent calls would consume each other's replies.
func requestReply(b *testing.B, url string) func() {
	b.Helper()
	cfg := asItComes(url)
	pub, sub := watermillEnds(b, cfg)
	cfg.Queue.Durable, cfg.Queue.Arguments = false, map[string]any{"x-expires": int32(10_000)}
	_, replySub := watermillEnds(b, cfg)
	queue := "watermill." + rand.Text()
	reply := func(id requestreply.OperationID) string { return queue + ".reply." + string(id) }
	backend, err := requestreply.NewPubSubBackend(requestreply.PubSubBackendConfig{
		Publisher: pub,
		SubscriberConstructor: func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) {
			return replySub, nil
		},
		GeneratePublishTopic:   func(p requestreply.PubSubBackendPublishParams) (string, error) { return reply(p.OperationID), nil },
		GenerateSubscribeTopic: func(p requestreply.PubSubBackendSubscribeParams) (string, error) { return reply(p.OperationID), nil },
	}, requestreply.BackendPubsubJSONMarshaler[blob]{})
	if err != nil {
		b.Fatal(err)
	}
	client, err := cqrs.NewCommandBusWithConfig(pub, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return queue, nil },
		Marshaler:            cqrs.JSONMarshaler{},
	})
	if err != nil {
		b.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		b.Fatal(err)
	}
	server, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return queue, nil },
		SubscriberConstructor:  func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) { return sub, nil },
		Marshaler:              cqrs.JSONMarshaler{},
	})
	if err == nil {
		err = server.AddHandlers(requestreply.NewCommandHandlerWithResult("echo", backend,
			func(_ context.Context, req *blob) (blob, error) { return *req, nil }))
	}
	if err != nil {
		b.Fatal(err)
	}
	go router.Run(context.Background()) //nolint:errcheck // ends when the router is closed
	<-router.Running()
	b.Cleanup(func() {
		_ = router.Close() // no message is in flight any more
		_, _ = rawChannel(b, url).QueueDelete(queue, false, false, false)
	})
	req := payload()
	return func() {
		if _, err := requestreply.SendWithReply(b.Context(), client, backend, req); err != nil {
			b.Error(err)
		}
	}
}

// watermillCast does what rawCast does, with watermill-amqp.
func watermillCast(b *testing.B, url string, cfg wamqp.Config, lanes int) (cast, drain func()) {
	b.Helper()
	pub, sub := watermillEnds(b, cfg)
	queue := "watermill." + rand.Text()
	var c counter
	consumeAll(b, url, sub, queue, lanes, func(*message.Message) { c.got() })
	body := make([]byte, 1024)
	return func() {
		c.sent(1)
		if err := pub.Publish(queue, message.NewMessage(rand.Text(), body)); err != nil {
			b.Error(err)
		}
	}, c.drain
}
