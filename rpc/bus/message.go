package bus

import (
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/version"
)

// This file has the envelope of a message: its fields, their names on the wire, and the way from one to the other. docs/wire.md
// describes the same format for programs in other languages. A change of the format must be readable by the previous release:
// a reader ignores options that it does not know, and keeps metadata that it does not know in Header.

// Kind says what a message is for. On the wire it is a word, the first one of the envelope. The values never change.
type Kind string

// The kinds of messages.
const (
	Call      Kind = "call"   // a request whose caller waits for a reply
	Cast      Kind = "cast"   // a request without a reply, to one server
	Fanout    Kind = "fanout" // a request without a reply, to all servers
	Cancel    Kind = "cancel" // the caller of a call has given up
	Reply     Kind = "reply"  // the result of a call
	Heartbeat Kind = "beat"   // the server still handles a call, or answers a probe
	Probe     Kind = "probe"  // asks a server, on its private topic, for a heartbeat
)

// Message is a typed envelope and a payload. A bus carries all fields except Resent and Malformed. It may read ID, Kind, Durable,
// Deadline, ReplyTo, Correlation and Dead, and calls Resent. The other fields are for package rpc alone.
//
// The methods of a Message do not change it, and are safe for concurrent use. After a message is published, no goroutine may change its
// fields, see [Bus]: a message that is sent again is a copy.
type Message struct {
	// ID is the same for all deliveries of a message, and no other message has it. At most 255 bytes.
	ID string
	// Kind is what the message is for. Empty if the kind could not be read, see Malformed.
	Kind Kind
	// Interface, Method and Version name the method of a request. Version is the oldest version of the interface that has
	// the method. A reply, a heartbeat and a probe have no method.
	Interface string
	Method    string
	Version   struct{ Major, Minor int }
	// Durable: the message must survive a restart of the broker, see [Message.Persistent].
	Durable bool
	// Deadline is when the request becomes useless. The server compares it with the clock of its host. Zero: no deadline.
	Deadline time.Time
	// Heartbeat is the interval of the heartbeats that the caller wants while the handler runs. FirstHeartbeat is how soon after the
	// start of the handler the caller wants the first heartbeat. Zero: no heartbeats.
	Heartbeat, FirstHeartbeat time.Duration
	// Options are the words of the envelope that this release does not know. They are sent on unchanged.
	Options string

	// ReplyTo is the topic for the reply and the heartbeats of a call, and for the answer to a probe. It is [Private]. Empty: no answer.
	ReplyTo string
	// Correlation is the ID of the call or probe that a reply, heartbeat or cancel is about.
	Correlation string
	// Instance identifies the server that sends a reply or a heartbeat. A server has a new instance id after each start.
	Instance string

	// Failures counts the delivery attempts that failed with a code other than Unavailable. Waited is the sum of the
	// delays after attempts that failed with Unavailable; on the wire it is in whole milliseconds.
	Failures int
	Waited   time.Duration
	// Redeliveries counts the servers that were lost while they had the message. Requeues counts how often the message's dead letter
	// was requeued; each time, the other counters start from zero.
	Redeliveries, Requeues int
	// Dead says why the message is a dead letter. Nil: the message is not a dead letter.
	Dead *Dead

	// Header is metadata beside the fields above, by name, such as the user of the request and the trace context. Its names must not be
	// those of the envelope. Nil is empty.
	Header map[string]string
	// Payload is the request or the response, as JSON. A bus does not read it. Empty: a value without fields.
	Payload []byte

	// Resent is called by the bus before it sends the message again, if all earlier attempts certainly had no effect, for example
	// because a subscriber rejected the message. Resent must not block. It may be nil. It is not on the wire.
	Resent func()

	// Malformed is why [Decode] could not read the envelope, with code Invalid. Such a message can be published again unchanged, but
	// it cannot be handled.
	Malformed error

	unread string // the text of KeyEnvelope of a malformed message, so that the message can be published again unchanged
}

// Dead says why and when a message became a dead letter. The envelope and the payload of a dead letter are those of the message, so that
// an operator can send the message again unless its payload is truncated.
type Dead struct {
	Reason    string    // a text for people: a fault code and the last error, or "malformed: ..."
	Topic     string    // the topic that the message was published to
	Server    string    // the host that dead-lettered the message; empty if that server has no host name
	At        time.Time // when the message was dead-lettered
	Truncated int       // size of the complete payload in bytes, if the bus could not carry it; otherwise 0
}

// at returns the time when the message became a dead letter, as text. It returns "" if the time is not known.
func (d *Dead) at() string {
	if d.At.IsZero() {
		return ""
	}
	return d.At.UTC().Format(time.RFC3339Nano)
}

// Names of metadata for which a broker may have a field of its own. A bus that uses such a field gives Decode the name nevertheless.
const (
	// KeyEnvelope is the envelope's main text: the kind, the method, its version and options, such as
	// "call backup.list 2.0 deadline=2026-11-23T07:38:13.5Z beat=15s first=100ms".
	KeyEnvelope    = "rpc"
	KeyReplyTo     = "reply_to"
	KeyCorrelation = "correlation_id"
	KeyInstance    = "instance"
)

// Names of the other metadata of the envelope. A value is missing on the wire if it is zero. Names never get another meaning.
const (
	keyFailures     = "failures"
	keyWaited       = "waited" // the value is in milliseconds
	keyRedeliveries = "redeliveries"
	keyRequeues     = "requeues"
	keyReason       = "reason"
	keyTopic        = "topic"
	keyDiedAt       = "died_at" // RFC 3339 in UTC
	keyServer       = "server"
	keyTruncated    = "truncated"
	// keyRedelivered was set by buses of older releases on messages that they delivered. It is ignored, and never sent.
	keyRedelivered = "redelivered"
)

// Options of KeyEnvelope, each a word without spaces. Those that end with = have a value: optionDeadline a time of RFC 3339 in UTC,
// optionHeartbeat and optionFirst a positive duration in the form of Go's time.Duration.
const (
	optionDurable   = "at-least-once"
	optionDeadline  = "deadline="
	optionHeartbeat = "beat="
	optionFirst     = "first="
)

// Persistent reports whether the message must survive a restart of the broker: it is durable or a dead letter.
func (m *Message) Persistent() bool { return m.Durable || m.Dead != nil }

// Size returns the size of a message in bytes, for the limit of a bus: its id, its metadata and its payload.
func (m *Message) Size() int { return m.metadataSize() + len(m.Payload) }

// envelopeSize approximates the size, in bytes, of the fields of the envelope whose length is bounded, such as the deadline and the
// counters. An exact size would cost an encoding of each message.
const envelopeSize = 64

// metadataSize returns the size in bytes of all but the payload. [CheckMessage] compares it with what brokers allow.
func (m *Message) metadataSize() int {
	n := envelopeSize + len(m.ID) + len(m.Interface) + len(m.Method) + len(m.Options) + len(m.ReplyTo) + len(m.Correlation) + len(m.Instance) + len(m.unread)
	if m.Dead != nil {
		n += len(m.Dead.Reason) + len(m.Dead.Topic) + len(m.Dead.Server)
	}
	for k, v := range m.Header {
		n += len(k) + len(v)
	}
	return n
}

// Metadata returns the envelope as names and texts, the entries of Header last and in no fixed order. It does not include the ID and the
// payload, for which each broker has a place. A bus writes each entry as it is.
func (m *Message) Metadata() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		put := func(key, value string) bool { return value == "" || yield(key, value) }
		count := func(key string, n int) bool { return n == 0 || yield(key, strconv.Itoa(n)) }
		ok := put(KeyEnvelope, m.Envelope()) && put(KeyReplyTo, m.ReplyTo) && put(KeyCorrelation, m.Correlation) && put(KeyInstance, m.Instance) &&
			count(keyFailures, m.Failures) && count(keyWaited, int(m.Waited.Milliseconds())) &&
			count(keyRedeliveries, m.Redeliveries) && count(keyRequeues, m.Requeues)
		if d := m.Dead; d != nil { // Reason is written even if it is empty, because it marks a dead letter
			ok = ok && yield(keyReason, d.Reason) && put(keyTopic, d.Topic) && put(keyDiedAt, d.at()) &&
				put(keyServer, d.Server) && count(keyTruncated, d.Truncated)
		}
		if !ok {
			return
		}
		for k, v := range m.Header {
			if !yield(k, v) {
				return
			}
		}
	}
}

// Envelope returns the text of [KeyEnvelope]. For a malformed message it is the text that Decode has read.
func (m *Message) Envelope() string {
	if m.Malformed != nil {
		return m.unread
	}
	if m.Method == "" { // a reply, a heartbeat or a probe
		return string(m.Kind)
	}
	b := make([]byte, 0, 128)
	b = append(b, m.Kind...)
	b = append(b, ' ')
	b = append(b, m.Interface...)
	b = append(b, '.')
	b = append(b, m.Method...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(m.Version.Major), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(m.Version.Minor), 10)
	if m.Durable {
		b = append(b, " "+optionDurable...)
	}
	if !m.Deadline.IsZero() {
		b = append(b, " "+optionDeadline...)
		b = m.Deadline.UTC().AppendFormat(b, time.RFC3339Nano)
	}
	if m.Heartbeat > 0 {
		b = append(b, " "+optionHeartbeat...)
		b = append(b, m.Heartbeat.String()...)
	}
	if m.FirstHeartbeat > 0 {
		b = append(b, " "+optionFirst...)
		b = append(b, m.FirstHeartbeat.String()...)
	}
	if m.Options != "" {
		b = append(b, ' ')
		b = append(b, m.Options...)
	}
	return string(b)
}

// Decode is the inverse of [Message.Metadata]. It never fails: if the envelope cannot be read, Decode sets Malformed and keeps the
// metadata. The names may come in any order. A counter that is not a number counts as 0,
// because such a message is still better handled than lost. The message owns payload: the caller must not change it afterwards.
func Decode(id string, metadata iter.Seq2[string, string], payload []byte) *Message {
	m := &Message{ID: id, Payload: payload}
	var dead Dead
	isDead := false
	for k, v := range metadata {
		switch k {
		case KeyEnvelope:
			if err := m.decodeEnvelope(v); err != nil {
				m.Malformed, m.unread = err, v
			}
		case KeyReplyTo:
			m.ReplyTo = v
		case KeyCorrelation:
			m.Correlation = v
		case KeyInstance:
			m.Instance = v
		case keyFailures:
			m.Failures = decodeCount(v)
		case keyWaited:
			m.Waited = time.Duration(decodeCount(v)) * time.Millisecond
		case keyRedeliveries:
			m.Redeliveries = decodeCount(v)
		case keyRequeues:
			m.Requeues = decodeCount(v)
		case keyReason:
			dead.Reason, isDead = v, true
		case keyTopic:
			dead.Topic = v
		case keyServer:
			dead.Server = v
		case keyDiedAt:
			dead.At, _ = time.Parse(time.RFC3339Nano, v) // zero if the text is not a time
		case keyTruncated:
			dead.Truncated = decodeCount(v)
		case keyRedelivered: // ignored: the bus says whether a delivery is a redelivery
		default:
			if m.Header == nil {
				m.Header = make(map[string]string)
			}
			m.Header[k] = v
		}
	}
	if isDead {
		m.Dead = &dead
	}
	if m.Kind == "" && m.Malformed == nil {
		m.Malformed = m.decodeEnvelope("")
	}
	return m
}

// decodeCount returns the number in s, or 0 if s is not a number or is negative.
func decodeCount(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// decodeEnvelope reads the text of KeyEnvelope. It keeps unknown options in Options, because newer clients may send more options. An option
// that is known and has a wrong value is an error: a request without its deadline could run too late. Errors have code Invalid.
func (m *Message) decodeEnvelope(s string) error {
	kind, rest, _ := strings.Cut(s, " ")
	switch k := Kind(kind); k {
	case Reply, Heartbeat, Probe:
		m.Kind = k
		return nil
	case Call, Cast, Fanout, Cancel:
		m.Kind = k // set even if the rest cannot be read: the bus still has to route the message
	default:
		return fault.New(fault.Invalid, "the metadata's %q is %q, want a kind of message, such as call or cast", KeyEnvelope, s)
	}
	name, rest, _ := strings.Cut(rest, " ")
	needs, rest, _ := strings.Cut(rest, " ")
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || dot == len(name)-1 {
		return fault.New(fault.Invalid, "the metadata's %q is %q, want an interface and a method, such as backup.list, after the kind", KeyEnvelope, s)
	}
	m.Interface, m.Method = name[:dot], name[dot+1:]
	if m.Version.Major = 1; needs != "" { // a missing version is 1.0 and not the latest one: only old clients send none
		var err error
		if m.Version.Major, m.Version.Minor, err = ParseVersion(needs); err != nil {
			return err
		}
	}
	var unknown []string
	for rest != "" {
		var word string
		if word, rest, _ = strings.Cut(rest, " "); word == "" { // two spaces in a row
			continue
		}
		known, err := m.decodeOption(word)
		if err != nil {
			return err
		}
		if !known {
			unknown = append(unknown, word)
		}
	}
	m.Options = strings.Join(unknown, " ")
	return nil
}

// decodeOption reads one option into the field of the message. The result known is false if this release does not know the option.
// The error has code Invalid.
func (m *Message) decodeOption(word string) (known bool, err error) {
	name, value, ok := strings.Cut(word, "=")
	switch {
	case word == optionDurable:
		m.Durable = true
	case ok && name+"=" == optionDeadline:
		if m.Deadline, err = time.Parse(time.RFC3339Nano, value); err != nil {
			return true, fault.New(fault.Invalid, "the deadline %q is not an RFC 3339 time", value)
		}
	case ok && name+"=" == optionHeartbeat:
		m.Heartbeat, err = time.ParseDuration(value)
		if err != nil || m.Heartbeat <= 0 {
			return true, fault.New(fault.Invalid, "the heartbeat interval %q is not a duration such as 15s", value)
		}
	case ok && name+"=" == optionFirst:
		m.FirstHeartbeat, err = time.ParseDuration(value)
		if err != nil || m.FirstHeartbeat <= 0 {
			return true, fault.New(fault.Invalid, "the delay of the first heartbeat %q is not a duration such as 100ms", value)
		}
	default:
		return false, nil
	}
	return true, nil
}

// ParseVersion reads a version such as "2.1": two decimal numbers without signs and without leading zeros. The error has code Invalid.
func ParseVersion(s string) (major, minor int, err error) {
	major, minor, ok := version.Parse(s)
	if !ok {
		return 0, 0, fault.New(fault.Invalid, "version %q is not of the form major.minor", s)
	}
	return major, minor, nil
}
