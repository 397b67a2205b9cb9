package rpc

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Mode says who gets the messages of a topic.
type Mode uint8

const (
	// Shared means that each message goes to one of the topic's subscribers. The topic
	// outlives its subscribers: what is published while they are away waits
	// for them.
	Shared Mode = iota
	// Each means that every subscriber gets a copy of what is published while it is
	// subscribed.
	Each
	// Private means that the topic has one subscriber and goes with it. What is published
	// while the bus has lost and not yet restored it fails with ErrNoConsumer.
	Private
)

// Bus carries messages between processes. It is watermill's Publisher and a
// Subscribe that says who shares, so any watermill pub/sub can be made into
// one. rpctest.TestBus judges an implementation. All methods are safe for
// concurrent use.
//
// Publish(topic, messages...) returns when the bus has taken responsibility for
// the messages: a broker has confirmed them. It blocks while the broker is
// away, until the deadline of the message's own context. A message of
// [KindFanout] goes to the topic's Each subscribers, all others to one
// Shared or Private subscriber. Errors: ErrNoConsumer when the topic does not
// exist (never for KindFanout); Unavailable when the message was certainly not
// sent; Unknown when it may have been sent; Timeout and Canceled, from the
// message's context, when it was certainly not sent.
//
// Messages have to be treated as follows, according to their metadata:
// one with [MetaDelivery] "at-least-once" survives a restart of the broker,
// and Publish may send it more than once to make sure that it arrives; one past
// its [MetaDeadline] need not be delivered.
//
// Close ends all subscriptions; every later call fails with ErrClosed. It is
// idempotent.
type Bus interface {
	message.Publisher

	// Subscribe delivers the topic's messages on the channel it returns until
	// ctx ends; then the channel is closed and what was not handed out goes
	// back to the topic. The subscription survives a lost connection. It
	// blocks until the topic exists, so that a message published after it
	// returned is not lost, or fails with Unavailable.
	//
	// The channel has no buffer: a message that nobody has received was not
	// taken, and goes to another subscriber if this one dies. The receiver
	// acknowledges each message with Ack, which may be long after it received
	// the next ones, or gives it back with Nack, upon which it is delivered
	// again. Slots is how many messages the subscriber handles at once: a
	// broker is told not to send it more than that unacknowledged.
	Subscribe(ctx context.Context, topic string, mode Mode, slots int) (<-chan *message.Message, error)
}

// Kinds of messages, the values of MetaKind.
const (
	KindCall   = "call"
	KindCast   = "cast"
	KindFanout = "fanout"
	KindReply  = "reply"
)

// Keys of a message's metadata. Together with the JSON payload they are the
// wire format.
const (
	MetaKind        = "kind"           // one of the kinds above
	MetaInterface   = "interface"      // Interface.Name
	MetaMethod      = "method"         // Method.Name
	MetaVersion     = "version"        // Method.Since, "1.0" if missing
	MetaDelivery    = "delivery"       // Delivery.String(), "at-most-once" if missing
	MetaDeadline    = "deadline"       // of a call: RFC 3339 in UTC, with fractions
	MetaReplyTo     = "reply_to"       // of a call: the topic for the reply
	MetaCorrelation = "correlation_id" // of a reply: the UUID of the call
	MetaError       = "error"          // of a reply that failed: fault.Error as JSON

	MetaRequestID   = "request_id"        // reqctx.Request.ID
	MetaGlobalID    = "global_request_id" // reqctx.Request.GlobalID
	MetaUserID      = "user_id"           // reqctx.Request.UserID
	MetaProjectID   = "project_id"        // reqctx.Request.ProjectID
	MetaRoles       = "roles"             // reqctx.Request.Roles, a JSON array
	MetaTraceparent = "traceparent"       // reqctx.Request.Traceparent, W3C
)

// Deadline returns the deadline in a message's metadata. A missing or
// unreadable one is no deadline.
func Deadline(m *message.Message) (time.Time, bool) {
	s := m.Metadata.Get(MetaDeadline)
	if s == "" {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	return t, err == nil
}

// topic is where messages for host, or for any server, of an interface go. The
// name is fixed: it is the name of a queue that may exist already.
func topic(iface, host string) string {
	if host == Any {
		return iface
	}
	return iface + "." + host
}

// fanout is the last part of the topic that reaches all servers, and so no
// server may be called that.
const fanout = "fanout"
