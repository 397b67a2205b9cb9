// Package bus is the contract between package rpc and a bus. A bus carries the messages of package rpc between processes.
// Authors of a bus need only this package, and rpctest.TestBus, which checks each rule of the contract:
//
//	type Bus struct{ ... }                                                        // implements [bus.Bus]
//	func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error // the error says the [Outcome]
//	func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error)
//	func (b *Bus) Capabilities() bus.Capabilities                                 // what this bus can do
//
// A [Message] is a typed envelope: a bus reads its fields and does not parse texts. On the wire the envelope is a list of names
// and texts, see [Message.Metadata], and [Decode] reads the list back. So each message is encoded once and decoded once.
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
// After a message is published, the publisher, the bus and the subscribers must not change the message or its payload.
type Bus interface {
	// Publish sends one message to one subscriber of the topic; a message of kind [Fanout] goes to each topic whose
	// Subscription.Fanout is this topic. Publish returns when the bus is responsible for the message: the broker has
	// confirmed it. Publish blocks while the broker cannot be reached, until the end of ctx, or for a minute if ctx has no
	// deadline. The error says the outcome, see [OutcomeOf]. A message that the bus cannot carry is refused with Invalid, such
	// as [ErrTooLarge]; no other message fails or waits because of it.
	//
	// A persistent message, see [Message.Persistent], survives a restart of the broker, and Publish may send it
	// more than once to make sure that it arrives. A bus may drop a message whose Deadline has passed.
	Publish(ctx context.Context, topic string, m *Message) error

	// Send is Publish without waiting for the outcome. It calls done once with the error that Publish would have returned,
	// perhaps before Send returns. The function done must not block. Send itself blocks while too many messages are
	// unconfirmed. It may block while the broker cannot be reached or accepts no messages, until the end of ctx, but at most
	// for a minute.
	Send(ctx context.Context, topic string, m *Message, done func(error))

	// Subscribe delivers the topic's messages on the returned channel until ctx ends. Then the channel is closed,
	// and messages that were not received go back to the topic. The subscription survives a lost connection.
	// Subscribe blocks until the topic exists, so that a message published after its return is not lost. Errors:
	// Unavailable if the broker does not answer in time, Denied and Precondition if the broker refuses the topic,
	// Invalid if the topic has an impossible name, ErrClosed, ErrNotStarted.
	//
	// If this process dies, a message that the subscriber has not received from the channel goes to another subscriber.
	// The subscriber ends each delivery with Ack or Nack, in any order, and may receive other messages before that. A
	// message is delivered again after Nack, and when the subscriber's process dies before Ack.
	Subscribe(ctx context.Context, s Subscription) (<-chan *Delivery, error)

	// CreateTopic makes a Shared topic, so that messages for it are kept before it has a subscriber. It returns nil if the
	// topic exists. Errors: those of Subscribe.
	CreateTopic(ctx context.Context, topic string) error

	// Capabilities returns what the bus can do. It does not block.
	Capabilities() Capabilities

	// Close ends all subscriptions and waits for the goroutines of the bus. Calls after Close fail with [ErrClosed]. Close is
	// idempotent. The error of Close is only for the log: the bus is closed even after an error.
	Close() error
}

// Mode says which subscribers share the messages of a topic, and how long the topic lasts.
type Mode uint8

const (
	// Shared means that each message goes to one subscriber of the topic. The topic outlives its subscribers, and keeps
	// its messages while it has none.
	Shared Mode = iota
	// Live means that each message goes to one subscriber of the topic. The topic ends soon after its last subscriber has left;
	// each bus documents how soon. After its end, Publish fails with ErrNoConsumer, and no message waits for a server.
	Live
	// Private means that the topic has one subscriber and ends with it. Messages need no Ack. Publish fails with
	// ErrNoConsumer while the subscriber's bus has lost its connection and not yet restored the topic.
	Private
)

// Subscription says which messages a subscriber gets, and how.
type Subscription struct {
	// Topic is the name of the topic that messages are published to. Required.
	Topic string
	// Mode says which subscribers share the topic. Default Shared.
	Mode Mode
	// Fanout is the name of a topic. The subscriber also gets a copy of each [Fanout] message that is published to that topic.
	// Only for a topic with one subscriber, Live or Private. Empty: no copies.
	Fanout string
	// Slots is how many messages the subscriber handles at once. It is the prefetch, which is the maximum number of
	// unacknowledged messages of the subscriber. Default 1.
	Slots int
	// Receive, if it is not nil, is called with each delivery, and the channel gets none. It may be called from several
	// goroutines at once. It must not block. Only for a Private topic. The channel is still closed at the end of the
	// subscription.
	Receive func(*Delivery)
}

// Capabilities is what a bus declares. The zero value promises the least.
type Capabilities struct {
	// MaxMessage is the largest [Message.Size] that Publish accepts, in bytes. Dead letters may be larger, because
	// the broker has carried their messages before. Zero: no limit.
	MaxMessage int
	// MaxTopic is the longest name of a topic, in bytes. Zero: 255.
	MaxTopic int
	// ConsumerTimeout is how long a subscriber may keep a delivery before the broker delivers it again. Zero: no limit.
	ConsumerTimeout time.Duration
	// NoConsumer: Publish to a topic without a subscriber fails with ErrNoConsumer at once, unless the topic is Shared and
	// exists. If the bus cannot do this, clients cannot detect that a server's process has ended.
	NoConsumer bool
	// LiveTopics: a Live topic ends soon after its last subscriber has left. If the bus cannot do this, a call to a server that
	// has left waits until its deadline.
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
	// Blocked reports whether the broker accepts no messages now, for example because its disk is full.
	Blocked bool
}

// DefaultMaxMessage is the usual value of Capabilities.MaxMessage, in bytes.
const DefaultMaxMessage = 4 << 20

// Outcome is how the sending of a message ended. The error of Publish carries the outcome.
type Outcome uint8

const (
	// Confirmed means that the broker has the message. The error is nil.
	Confirmed Outcome = iota
	// Refused means that the message was certainly not sent. The error has the code Unavailable (a later attempt may succeed),
	// Timeout or Canceled (ctx ended), Invalid (each attempt would fail), or the code of a refusal by the broker, such as
	// Denied. ErrClosed and ErrNotStarted are such errors.
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

// Errors of a bus. errors.Is also matches them in the errors of package rpc.
var (
	// ErrNoConsumer: the topic has no subscriber, or does not exist. The message was not sent.
	ErrNoConsumer = fault.Sentinel(fault.Unavailable, "NoConsumer", "no server listens")
	// ErrTooLarge: the message is larger than the bus or the broker carries. It was not sent.
	ErrTooLarge = fault.Sentinel(fault.Invalid, "TooLarge", "the message is too large")
	// ErrClosed: the bus was closed. The message was not sent. Package rpc also uses this error for a closed client.
	ErrClosed = fault.Sentinel(fault.Unavailable, "Closed", "the bus or the client was closed")
	// ErrNotStarted: the bus was not started, or its Start failed. The message was not sent.
	ErrNotStarted = fault.Sentinel(fault.Unavailable, "NotStarted", "the bus was not started")
)

// Delivery is a message that a subscriber has received, until Ack or Nack. Ack and Nack are safe for concurrent use.
type Delivery struct {
	*Message
	// Redelivered: an earlier delivery of this message was not acknowledged, perhaps because its subscriber died. An in-memory
	// bus need not set this field.
	Redelivered bool

	acks  Acknowledger
	ended atomic.Bool // Ack or Nack was called
}

// Acknowledger is the part of a bus that ends a delivery. EndDelivery acknowledges the message if ack is true. Otherwise it
// requeues the message: the topic delivers the message again. After an error the message is delivered again, whether ack is
// true or false. EndDelivery is called at most once for each delivery.
type Acknowledger interface{ EndDelivery(ack bool) error }

// NewDelivery returns a delivery of m. Ack and Nack of the delivery call acks. The parameter acks may be nil if the bus needs
// no acknowledgements, as for a Private topic.
func NewDelivery(m *Message, redelivered bool, acks Acknowledger) *Delivery {
	return &Delivery{Message: m, Redelivered: redelivered, acks: acks}
}

// Ack acknowledges the message. The message is then not delivered again. An error means that the connection was lost,
// and the message is delivered again. Only the first Ack or Nack of a delivery has an effect; a later one returns nil.
func (d *Delivery) Ack() error { return d.endOnce(true) }

// Nack returns the message to its topic, which delivers it again. After an error the broker redelivers the message later, by
// itself. Only the first Ack or Nack of a delivery has an effect; a later one returns nil.
func (d *Delivery) Nack() error { return d.endOnce(false) }

func (d *Delivery) endOnce(ack bool) error {
	if d.acks == nil || !d.ended.CompareAndSwap(false, true) {
		return nil
	}
	return d.acks.EndDelivery(ack)
}

// Attempt returns the number of this delivery attempt, from 1. It counts earlier attempts that failed, and attempts whose
// server was lost. It does not count attempts that failed with Unavailable.
func (d *Delivery) Attempt() int {
	n := 1 + d.Failures + d.Redeliveries
	if d.Redelivered {
		n++
	}
	return n
}

// maxMetadata is how many bytes of metadata every broker carries. In AMQP all metadata of a message must fit into one frame, of
// 128 KiB by default, and the broker closes a connection that sends a longer frame.
const maxMetadata = 64 << 10

// CheckMessage returns Invalid if a bus with the given limit, in bytes, cannot carry the message. The error is [ErrTooLarge] if
// the message's size is above the limit, or its metadata above 64 KiB. A dead letter may be above the limit, because the broker
// has carried its message before.
func CheckMessage(m *Message, limit int) error {
	size := m.metadataSize()
	if len(m.ID) > names.Max || len(m.Correlation) > names.Max || len(m.ReplyTo) > names.Max {
		return fault.New(fault.Invalid, "the message's id, correlation id or reply topic is longer than the %d bytes that a broker allows", names.Max)
	}
	for k := range m.Header {
		if len(k) > names.Max {
			return fault.New(fault.Invalid, "a metadata key of %d bytes is longer than the %d bytes that a broker allows: %.40q", len(k), names.Max, k)
		}
	}
	if size > maxMetadata {
		return fault.New(fault.Invalid, "metadata of %d bytes is larger than the %d bytes that a broker allows: %w", size, maxMetadata, ErrTooLarge)
	}
	if size += len(m.Payload); size > limit && m.Dead == nil {
		return TooLarge(size, limit)
	}
	return nil
}

// TooLarge returns [ErrTooLarge] for a message of size bytes on a bus that carries limit bytes, with both numbers.
func TooLarge(size, limit int) error {
	return fault.New(fault.Invalid, "%w: it has %d bytes, and the limit is %d bytes", ErrTooLarge, size, limit)
}

// CheckTopic returns Invalid if name cannot be the name of a topic on every broker. The parameter name includes all prefixes
// and suffixes. It must be UTF-8 of at most 255 bytes, without control characters, spaces, * and >, and without an empty part
// before, between or after dots.
func CheckTopic(name string) error {
	if detail := names.Fault(name); detail != "" {
		return fault.New(fault.Invalid, "topic name %.300q of %d bytes %s", name, len(name), detail)
	}
	return nil
}
