// Package bus is the contract between package rpc and a bus, which carries its messages between processes. Authors of
// a bus need this package alone, and rpctest.TestBus, which checks each rule of the contract:
//
//	type Bus struct{ ... }                                                        // implements [bus.Bus]
//	func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error // the error says the [Outcome]
//	func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error)
//	func (b *Bus) Capabilities() bus.Capabilities                                 // what this bus can do
//
// A [Message] is a typed envelope: a bus reads its fields and does not parse texts. On the wire the envelope is a list
// of names and texts, [Message.Metadata], and [Decode] reads it back: each message is encoded once and decoded once.
// docs/wire.md describes the wire format.
//
// Users of package rpc need nothing from here: a bus is a value that they pass to rpc.NewServer and rpc.NewClient.
package bus

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Bus carries messages between processes. All methods are safe for concurrent use.
//
// A published message and its payload are read-only from then on, for the publisher, the bus and each subscriber.
type Bus interface {
	// Publish sends one message to one subscriber of the topic; a message of kind [Fanout] goes to each topic whose
	// Subscription.Fanout is this topic. Publish returns when the bus is responsible for the message: the broker has
	// confirmed it. Publish blocks while the broker is away, until the end of ctx, or for a minute if ctx has no
	// deadline. The error says the outcome, see [OutcomeOf]. A message that cannot be carried is refused with
	// Invalid, [ErrTooLarge] above all, and no other message fails or waits for it.
	//
	// A persistent message, see [Message.Persistent], survives a restart of the broker, and Publish may send it
	// more than once to make sure that it arrives. A bus need not deliver a message whose Deadline has passed.
	Publish(ctx context.Context, topic string, m *Message) error

	// Send is Publish without waiting: it calls done once with the error that Publish would have returned, perhaps
	// before Send returns. done must not block. Send itself blocks only while too many messages are on their way.
	Send(ctx context.Context, topic string, m *Message, done func(error))

	// Subscribe delivers the topic's messages on the returned channel until ctx ends. Then the channel is closed,
	// and messages that were not received go back to the topic. The subscription survives a lost connection.
	// Subscribe blocks until the topic exists, so that a message published afterwards is not lost. Errors:
	// Unavailable if the broker does not answer in time, Denied and Precondition if the broker refuses the topic,
	// Invalid if the topic has an impossible name, ErrClosed, ErrNotStarted.
	//
	// The channel has no buffer: a message that the subscriber has not received goes to another subscriber if this
	// process dies. The subscriber ends each delivery with Ack or Nack, possibly long after it has received the
	// next one. A message is delivered again after Nack, and when the subscriber's process dies before Ack.
	Subscribe(ctx context.Context, s Subscription) (<-chan *Delivery, error)

	// CreateTopic makes a Shared topic that has no subscriber yet. Errors as Subscribe.
	CreateTopic(ctx context.Context, topic string) error

	// Capabilities returns what the bus can do. It does not block.
	Capabilities() Capabilities

	// Close ends all subscriptions and waits for the goroutines of the bus. Later calls fail with [ErrClosed].
	// Close is idempotent.
	Close() error
}

// Mode says which subscribers share the messages of a topic, and how long the topic lasts.
type Mode uint8

const (
	// Shared means that each message goes to one subscriber of the topic. The topic outlives its subscribers: messages that
	// are published in the meantime wait.
	Shared Mode = iota
	// Live means that each message goes to one subscriber of the topic. The topic ends soon after its last subscriber has
	// left; the bus documents how soon. Then Publish fails with ErrNoConsumer instead of waiting for a server.
	Live
	// Private means that the topic has one subscriber and ends with it. Messages need no Ack. Publish fails with
	// ErrNoConsumer while the subscriber's bus has lost its connection and not yet restored the topic.
	Private
)

// Subscription says what a subscriber gets.
type Subscription struct {
	// Topic is the name that is published to. Required.
	Topic string
	// Mode says which subscribers share the topic. Default Shared.
	Mode Mode
	// Fanout is the topic of [Fanout] messages of which this topic gets a copy. Only for a topic with one
	// subscriber, Live or Private. Empty: no copies.
	Fanout string
	// Slots is how many messages the subscriber handles at once: the broker sends at most that many that are not
	// acknowledged. Default 1.
	Slots int
	// Receive, if it is not nil, is called with each delivery instead of the channel, possibly several times at
	// once. It must not block. Only for a Private topic. The channel is still closed at the end.
	Receive func(*Delivery)
}

// Capabilities is what a bus declares. The zero value is a bus that promises least.
type Capabilities struct {
	// MaxMessage is the largest [Message.Size] that Publish takes, in bytes. Dead letters may be larger, because
	// the broker has carried them before. Zero: no limit.
	MaxMessage int
	// MaxTopic is how many bytes the name of a topic may have. Zero: 255.
	MaxTopic int
	// ConsumerTimeout is how long a subscriber may keep a delivery before the broker delivers it again. Zero: no limit.
	ConsumerTimeout time.Duration
	// NoConsumer: Publish to a topic without a subscriber fails with ErrNoConsumer at once, unless the topic is
	// Shared and exists. Without it, clients cannot detect that a server's process is gone.
	NoConsumer bool
	// LiveTopics: a Live topic ends soon after its last subscriber. Without it, a call to a server that has left
	// waits until its deadline.
	LiveTopics bool
	// Persistent: persistent messages survive a restart of the broker.
	Persistent bool
	// Stats returns the metrics of the connections. Nil: the bus has none.
	Stats func() Stats
}

// Stats are metrics of a bus.
type Stats struct {
	// Reconnects is how often a lost connection was replaced.
	Reconnects uint64
	// Blocked reports whether the broker takes no messages now.
	Blocked bool
}

// DefaultMaxMessage is the usual value of Capabilities.MaxMessage, in bytes.
const DefaultMaxMessage = 4 << 20

// Outcome is how sending a message ended. The error of Publish carries it.
type Outcome uint8

const (
	// Confirmed means that the broker has the message. The error is nil.
	Confirmed Outcome = iota
	// Refused means that the message was certainly not sent. The error has the code Unavailable (try again later), Timeout
	// or Canceled (ctx ended), or Invalid (it never will be), or is ErrClosed or ErrNotStarted.
	Refused
	// Unroutable means that the topic has no subscriber, or does not exist. The error is ErrNoConsumer.
	Unroutable
	// Unknown means that the message may have been sent: the connection was lost, or ctx ended, before the broker confirmed
	// it. The error has the code Unknown.
	Unknown
)

// OutcomeOf returns the outcome that an error of Publish or Send carries.
func OutcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Confirmed
	case errors.Is(err, ErrNoConsumer):
		return Unroutable
	case fault.CodeOf(err) == fault.Unknown:
		return Unknown
	default:
		return Refused
	}
}

// Errors of a bus. errors.Is matches them in the errors of package rpc, too.
var (
	// ErrNoConsumer: the topic has no subscriber, or does not exist. The message was not sent.
	ErrNoConsumer = fault.Sentinel(fault.Unavailable, "NoConsumer", "no server listens")
	// ErrTooLarge: the message is larger than the bus or the broker carries. It was not sent.
	ErrTooLarge = fault.Sentinel(fault.Invalid, "TooLarge", "the message is too large")
	// ErrClosed: the bus was closed. The message was not sent.
	ErrClosed = fault.Sentinel(fault.Unavailable, "Closed", "closed")
	// ErrNotStarted: the bus was not started, or its Start failed. The message was not sent.
	ErrNotStarted = fault.Sentinel(fault.Unavailable, "NotStarted", "the bus was not started")
)

// Delivery is a message in the hands of a subscriber, until Ack or Nack.
type Delivery struct {
	*Message
	// Redelivered: an earlier delivery of this message was not acknowledged, perhaps because its subscriber died. A
	// bus whose subscribers die with it need not set it.
	Redelivered bool

	settler Settler
	settled atomic.Bool
}

// Settler is the part of a bus that ends a delivery: it acknowledges the message, or gives it back to its topic. An error
// means that the message will be delivered again, whatever ack is.
type Settler interface{ Settle(ack bool) error }

// NewDelivery returns a delivery of m that s ends. s may be nil if there is nothing to end, as in a Private topic.
func NewDelivery(m *Message, redelivered bool, s Settler) *Delivery {
	return &Delivery{Message: m, Redelivered: redelivered, settler: s}
}

// Ack acknowledges the message: it is not delivered again. An error means that it will be, because the connection was
// lost. Only the first Ack or Nack of a delivery has an effect.
func (d *Delivery) Ack() error { return d.settle(true) }

// Nack gives the message back to its topic, which delivers it again. An error means that the bus
// does so later, by itself. Only the first Ack or Nack of a delivery has an effect.
func (d *Delivery) Nack() error { return d.settle(false) }

func (d *Delivery) settle(ack bool) error {
	if d.settler == nil || !d.settled.CompareAndSwap(false, true) {
		return nil
	}
	return d.settler.Settle(ack)
}

// Attempt returns which delivery attempt of the message this is, from 1: the attempts that failed and those that were
// lost with their server count.
func (d *Delivery) Attempt() int {
	n := 1 + d.Failures + d.Redeliveries
	if d.Redelivered {
		n++
	}
	return n
}

// maxMetadata is how many bytes of metadata each broker carries: AMQP needs them in one frame, of 128 KiB by default,
// and closes the connection of a longer one.
const maxMetadata = 64 << 10

// CheckMessage returns Invalid if a bus that carries limit bytes cannot carry the message: [ErrTooLarge] if its size is
// above the limit and it is not a dead letter, which a broker has carried before.
func CheckMessage(m *Message, limit int) error {
	size := m.metadataSize()
	if len(m.ID) > names.Max || len(m.Correlation) > names.Max || len(m.ReplyTo) > names.Max {
		return fault.New(fault.Invalid, "the message's id, correlation id or reply topic is longer than the %d bytes that a broker takes", names.Max)
	}
	for k := range m.Header {
		if len(k) > names.Max {
			return fault.New(fault.Invalid, "a metadata key of %d bytes is longer than the %d bytes that a broker takes: %.40q", len(k), names.Max, k)
		}
	}
	if size > maxMetadata {
		return fault.New(fault.Invalid, "metadata of %d bytes is larger than the %d bytes that a broker takes: %w", size, maxMetadata, ErrTooLarge)
	}
	if size += len(m.Payload); size > limit && m.Dead == nil {
		return TooLarge(size, limit)
	}
	return nil
}

// TooLarge returns the error for a message of size bytes on a bus that carries limit bytes.
func TooLarge(size, limit int) error {
	return fault.New(fault.Invalid, "%w: it has %d bytes, and the limit is %d bytes", ErrTooLarge, size, limit)
}

// CheckTopic returns Invalid if name, with all its prefixes and suffixes, cannot be the name of a topic on each broker:
// it has more than 255 bytes, is not UTF-8, or has control characters, spaces, *, > or an empty part between two dots.
func CheckTopic(name string) error {
	if wrong := names.Fault(name); wrong != "" {
		return fault.New(fault.Invalid, "topic name %.300q of %d bytes %s", name, len(name), wrong)
	}
	return nil
}
