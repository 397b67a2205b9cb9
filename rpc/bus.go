package rpc

import (
	"context"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Mode says who gets the messages of a topic, and how long it lasts.
type Mode uint8

const (
	// Shared means that each message goes to one of the topic's subscribers. The
	// topic outlives its subscribers: what is published while they are away waits
	// for them.
	Shared Mode = iota
	// Live means that each message goes to one of the topic's subscribers, and that
	// the topic goes soon after the last of them: what is published then fails
	// with ErrNoConsumer, instead of waiting for a server that is not there. The
	// bus says how soon; a subscriber that comes back sooner gets what waited.
	Live
	// Private means that the topic has one subscriber and goes with it. Messages
	// need not be acknowledged. What is published while the bus has lost and not
	// yet restored it fails with ErrNoConsumer.
	Private
)

// Subscription says what a subscriber gets.
type Subscription struct {
	// Topic is what is published to. Required.
	Topic string
	// Mode says who shares the topic. Default Shared.
	Mode Mode
	// Fanout is the topic of [KindFanout] messages of which this topic gets a
	// copy. Only for a topic with one subscriber, Live or Private. Empty: none.
	Fanout string
	// Slots is how many messages the subscriber handles at once: a broker is
	// told not to send it more than that unacknowledged. Default 1.
	Slots int
}

// Bus carries messages between processes. It is watermill's Publisher and a
// Subscribe that says who shares, so any watermill pub/sub can be made into
// one. rpctest.TestBus judges an implementation. All methods are safe for
// concurrent use.
//
// Publish(topic, messages...) returns when the bus has taken responsibility for
// the messages: a broker has confirmed them. It blocks while the broker is
// away, until the deadline of the message's own context. A message of
// [KindFanout] goes to all topics that were subscribed to with that
// Subscription.Fanout, every other one to one subscriber of the topic. Errors:
// ErrNoConsumer when the topic does not exist (never for KindFanout);
// Unavailable when the message was certainly not sent; Unknown when it may have
// been sent; Timeout and Canceled, from the message's context, when it was
// certainly not sent; Invalid when the bus cannot carry the message or its topic, [ErrTooLarge] above all.
// It was not sent then, and no other message fails or waits for it.
//
// Messages have to be treated as follows, according to their metadata: one that
// is [Durable] survives a restart of the broker, and Publish may send it more
// than once to make sure that it arrives; one past its [Deadline] need not be
// delivered. Payload and metadata are not changed any more by whoever has
// published a message, nor by whoever received it: a bus may hand on what it was
// given.
//
// Close ends all subscriptions; every later call fails with ErrClosed. It is
// idempotent.
//
// A bus may also be a [Sender], a [Receiver], a [Bounded] and a watermill message.SubscribeInitializer,
// whose SubscribeInitialize(topic) makes a Shared topic without a subscriber.
type Bus interface {
	message.Publisher

	// Subscribe delivers messages on the channel it returns until ctx ends; then
	// the channel is closed and what was not handed out goes back to the topic.
	// The subscription survives a lost connection. It blocks until the topic
	// exists, so that a message published after it returned is not lost, or
	// fails with Unavailable.
	//
	// The channel has no buffer: a message that nobody has received was not
	// taken, and goes to another subscriber if this one dies. The receiver
	// settles each message with [Settle], which may be long after it received the
	// next ones. One that is given back is delivered again.
	Subscribe(ctx context.Context, s Subscription) (<-chan *message.Message, error)
}

// Sender is a bus whose messages need not be waited for one by one.
type Sender interface {
	// Send is Publish of one message, but returns when the bus has it in hand,
	// and calls settled once with what Publish would have returned, possibly
	// before Send returns. settled must not block. Send blocks while the bus has
	// no room, until the end of the message's context.
	Send(topic string, m *message.Message, settled func(error))
}

// Receiver is a bus that needs no channel to deliver the messages of a Private
// topic.
type Receiver interface {
	// Receive is Subscribe, but calls f with each message, perhaps with several at
	// once. f must not block, and need not settle the message. The channel is
	// closed when the subscription has ended.
	Receive(ctx context.Context, s Subscription, f func(*message.Message)) (ended <-chan struct{}, err error)
}

// Bounded is a bus that knows what it can carry.
type Bounded interface {
	// MaxMessage returns the largest [Size] of a message, in bytes, that Publish takes. Dead letters may
	// be larger: a broker has carried them before.
	MaxMessage() int
	// CheckTopic returns Invalid if the topic's name, with what the bus puts before it, is longer than
	// 255 bytes, is not UTF-8, or has control characters, spaces, *, > or an empty part between two dots.
	CheckTopic(topic string) error
}

// DefaultMaxMessage is the largest [Size] of a message, in bytes, unless a bus is told another.
const DefaultMaxMessage = 4 << 20

// Size returns how many bytes of a message count against the limit of a bus: its id, its metadata and its
// payload.
func Size(m *message.Message) int {
	n := len(m.UUID) + len(m.Payload)
	for k, v := range m.Metadata {
		n += len(k) + len(v)
	}
	return n
}

// Settler ends the delivery of a message.
type Settler interface{ Settle(ack bool) error }

type settlerKey struct{}

// WithSettler returns a context for a message that a bus delivers. [Settle] calls
// s, so that the bus needs no goroutine to wait for a message's end and the
// receiver knows that the acknowledgement went out. A message without is settled
// by its own Ack and Nack, which is enough for a bus that waits for them.
func WithSettler(ctx context.Context, s Settler) context.Context {
	return context.WithValue(ctx, settlerKey{}, s)
}

// Settle acknowledges a message that was received from a [Bus], or gives it
// back. An error means that the message will be delivered again whatever ack
// was. It must be called once.
func Settle(m *message.Message, ack bool) error {
	if s, ok := m.Context().Value(settlerKey{}).(Settler); ok {
		return s.Settle(ack)
	}
	if ack {
		m.Ack()
	} else {
		m.Nack()
	}
	return nil
}

// Topics of an interface. Their names are fixed: they are the names of queues
// that may exist already.
//
//	backup                  casts to any server       Shared
//	backup.node-1           casts to one server       Shared
//	backup.calls            calls to any server       Live
//	backup.node-1.calls     calls to one server, and what is fanned out  Live
//	backup.fanout           what is fanned out
//	backup.dlq              what no server could do   Shared
const (
	suffixCalls  = ".calls"
	suffixFanout = ".fanout"
	suffixDead   = ".dlq"
)

// topic is where a message goes.
func topic(kind, iface, host string) string {
	if kind == KindFanout {
		return iface + suffixFanout
	}
	if host != Any {
		iface += "." + host
	}
	if kind == KindCall || kind == KindCancel {
		iface += suffixCalls
	}
	return iface
}

// CheckHost returns Invalid if no server can have the name: it is longer than 255 bytes, is not UTF-8, has
// control characters, spaces, * or >, has an empty part between two dots, or ends in a part that is the name of
// a topic: calls, fanout or dlq. The empty name is [Any].
func CheckHost(host string) error {
	if host == Any {
		return nil
	}
	wrong := names.Fault(host)
	switch last := host[strings.LastIndexByte(host, '.')+1:]; {
	case wrong != "":
	case "."+last == suffixCalls, "."+last == suffixFanout, "."+last == suffixDead:
		wrong = "ends in " + last + ", which is the name of a topic"
	default:
		return nil
	}
	return fault.New(fault.Invalid, "host name %.300q of %d bytes cannot be that of a server: it %s", host, len(host), wrong)
}

// checkTo returns Invalid if the host cannot be one, or if the bus cannot carry its topic of the
// interface, the longest, which is that of calls.
func checkTo(bus Bus, iface, host string) error {
	if err := CheckHost(host); err != nil {
		return err
	}
	if b, ok := bus.(Bounded); ok {
		return b.CheckTopic(topic(KindCall, iface, host))
	}
	return nil
}
