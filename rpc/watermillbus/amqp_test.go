package watermillbus_test

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/rpc/watermillbus"
)

// stockAMQP returns a bus of stock watermill-amqp publishers and subscribers, with the configuration
// that users of watermill-amqp would choose.
func stockAMQP(t *testing.T, url, prefix string) *watermillbus.Bus {
	t.Helper()
	log := watermill.NopLogger{}
	name := func(topic string) string { return prefix + "." + topic }
	queues := func() amqp.Config {
		c := amqp.NewDurableQueueConfig(url)
		c.Queue.GenerateName = name
		c.Publish.GenerateRoutingKey = name
		c.Publish.ConfirmDelivery = true
		c.Publish.ChannelPoolSize = 4
		return c
	}
	fanouts := func() amqp.Config {
		c := amqp.NewDurablePubSubConfig(url, nil)
		c.Exchange.GenerateName = name
		c.Publish.ConfirmDelivery = true
		return c
	}
	pub, err := amqp.NewPublisher(queues(), log)
	if err != nil {
		t.Fatal(err)
	}
	fan, err := amqp.NewPublisher(fanouts(), log)
	if err != nil {
		t.Fatal(err)
	}
	b, err := watermillbus.New(watermillbus.Config{
		Publisher: pub,
		Fanout:    fan,
		Subscriber: func(s bus.Subscription) (message.Subscriber, error) {
			c := queues()
			switch s.Mode {
			case bus.Shared:
			case bus.Live:
				c.Queue.Arguments = map[string]any{"x-expires": int32(10_000)}
			case bus.Private:
				c.Queue.Durable, c.Queue.Exclusive = false, true
			}
			return amqp.NewSubscriber(c, log)
		},
		FanoutSubscriber: func(bus.Subscription) (message.Subscriber, error) {
			c := fanouts()
			own := prefix + "." + rand.Text()
			c.Queue.GenerateName = func(string) string { return own }
			c.Queue.Durable, c.Queue.Exclusive = false, true
			return amqp.NewSubscriber(c, log)
		},
		Redelivered: amqp.MetadataRedeliveredKey,
		// Each lane opens a channel and sends some requests to the broker. With more lanes in all
		// parallel tests, the broker's heartbeats would come too late.
		Lanes: 16,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func TestBusAMQP(t *testing.T) {
	t.Parallel()
	url := envtest.URL(t, testenv.AMQPVar)
	rpctest.TestBus(t, func(t *testing.T) (server, client bus.Bus) {
		t.Helper()
		prefix := "test." + strings.ToLower(rand.Text())
		return stockAMQP(t, url, prefix), stockAMQP(t, url, prefix)
	}, "busy", "restarts")
}
