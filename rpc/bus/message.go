package bus

import (
	"cmp"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// Kind is what a message is. On the wire it is a word.
type Kind string

// The kinds of messages.
const (
	Call      Kind = "call"   // a request whose reply is waited for
	Cast      Kind = "cast"   // a request without a reply, to one server
	Fanout    Kind = "fanout" // a request without a reply, to all servers
	Cancel    Kind = "cancel" // the caller of a call has given up
	Reply     Kind = "reply"  // the result of a call
	Heartbeat Kind = "beat"   // the server still works on a call, or answers a probe
	Probe     Kind = "probe"  // asks a server, on its private topic, whether it is there
)

// Message is a typed envelope and a payload. The fields without a comment are package rpc's own: a bus carries them and
// does not use them.
type Message struct {
	// ID is the same for all deliveries of a message, and no other message has it.
	ID string
	// Kind is what the message is. Empty if the message could not be read, see Malformed.
	Kind      Kind
	Interface string
	Method    string
	Version   struct{ Major, Minor int }
	// Durable: the message must survive a restart of the broker, see [Message.Persistent].
	Durable bool
	// Deadline is when the request becomes useless. Zero: never.
	Deadline time.Time
	// Heartbeat is how often the caller wants a heartbeat while the handler runs, and FirstHeartbeat how soon after
	// the handler has begun. Zero: never.
	Heartbeat, FirstHeartbeat time.Duration
	// Options are words of a newer release, which travel on unchanged.
	Options string

	// ReplyTo is the topic for the reply and the heartbeats of a call, and for the answer to a probe.
	ReplyTo string
	// Correlation is the ID of the call or probe that a reply, heartbeat or cancel is about.
	Correlation string
	// Instance is which start of which server sends a reply or a heartbeat.
	Instance string

	// Failures is how many delivery attempts failed other than with Unavailable, and Waited the sum of the delays
	// after those that failed with Unavailable.
	Failures int
	Waited   time.Duration
	// Redeliveries is how many servers were lost that had the message, and Requeues how often its dead letter was
	// sent again, which counts the others anew.
	Redeliveries, Requeues int
	// Dead says why the message is a dead letter. Nil: it is not one.
	Dead *Dead

	// Header is metadata beside the fields above, by name. Nil is empty.
	Header map[string]string
	// Payload is the request or the response. A bus does not look into it.
	Payload []byte

	// Malformed is why [Decode] could not read the envelope, with code Invalid. Such a message can only be sent on.
	Malformed error

	unread string // the text of keyRPC of a malformed message
}

// Dead is why a message is a dead letter.
type Dead struct {
	Reason    string    // a fault code and the last error, or that the message was malformed
	Topic     string    // where the message was published to
	Server    string    // the host that gave it up; empty if it has no name
	At        time.Time // when
	Truncated int       // the bytes of the whole payload, if the bus could not carry it; else 0
}

// at returns when the message became a dead letter, as text; empty if that is not known.
func (d *Dead) at() string {
	if d.At.IsZero() {
		return ""
	}
	return d.At.UTC().Format(time.RFC3339Nano)
}

// Names of metadata that a broker may have a place of its own for.
const (
	// KeyEnvelope is what the message is: the kind, the method, its version and options, such as
	// "call backup.list 2.0 deadline=2026-11-23T07:38:13.5Z beat=15s first=100ms".
	KeyEnvelope    = "rpc"
	KeyReplyTo     = "reply_to"
	KeyCorrelation = "correlation_id"
	KeyInstance    = "instance"
)

// Names of the other metadata of the envelope.
const (
	keyFailures     = "failures"
	keyWaited       = "waited" // in milliseconds
	keyRedeliveries = "redeliveries"
	keyRequeues     = "requeues"
	keyReason       = "reason"
	keyTopic        = "topic"
	keyDiedAt       = "died_at" // RFC 3339 in UTC
	keyServer       = "server"
	keyTruncated    = "truncated"
	// keyRedelivered was set by buses of older releases on what they delivered. It is not sent.
	keyRedelivered = "redelivered"
)

// Options of KeyEnvelope.
const (
	optionDurable  = "at-least-once"
	optionDeadline = "deadline="
	optionBeat     = "beat="
	optionFirst    = "first="
)

// Persistent reports whether the message must survive a restart of the broker: it is durable or a dead letter.
func (m *Message) Persistent() bool { return m.Durable || m.Dead != nil }

// Size returns how many bytes of a message count against the limit of a bus: its id, its metadata and its payload.
func (m *Message) Size() int { return m.metadataSize() + len(m.Payload) }

// envelopeSize is about what the envelope has besides texts of unbounded length.
const envelopeSize = 64

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

// Metadata returns the envelope as names and texts, those of Header last. The ID and the payload are not among them.
func (m *Message) Metadata() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		put := func(key, value string) bool { return value == "" || yield(key, value) }
		count := func(key string, n int) bool { return n == 0 || yield(key, strconv.Itoa(n)) }
		ok := put(KeyEnvelope, m.Envelope()) && put(KeyReplyTo, m.ReplyTo) && put(KeyCorrelation, m.Correlation) && put(KeyInstance, m.Instance) &&
			count(keyFailures, m.Failures) && count(keyWaited, int(m.Waited.Milliseconds())) &&
			count(keyRedeliveries, m.Redeliveries) && count(keyRequeues, m.Requeues)
		if d := m.Dead; d != nil {
			ok = ok && put(keyReason, d.Reason) && put(keyTopic, d.Topic) && put(keyDiedAt, d.at()) &&
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

// Envelope returns the text of KeyEnvelope.
func (m *Message) Envelope() string {
	if m.Malformed != nil {
		return m.unread
	}
	if m.Method == "" {
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
		b = append(b, " "+optionBeat...)
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

// Decode returns the message that has the metadata: the inverse of [Message.Metadata]. It never fails: a message whose
// envelope cannot be read has Malformed set, and keeps its metadata.
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
			dead.Reason, isDead = v, v != ""
		case keyTopic:
			dead.Topic = v
		case keyServer:
			dead.Server = v
		case keyDiedAt:
			dead.At, _ = time.Parse(time.RFC3339Nano, v) // else it is not known
		case keyTruncated:
			dead.Truncated = decodeCount(v)
		case keyRedelivered:
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

// decodeCount returns a number of at least 0; what cannot be read is 0.
func decodeCount(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// decodeEnvelope reads the text of KeyEnvelope. Options that it does not know are kept, so that newer clients may send
// more.
func (m *Message) decodeEnvelope(s string) error {
	kind, rest, _ := strings.Cut(s, " ")
	switch k := Kind(kind); k {
	case Reply, Heartbeat, Probe:
		m.Kind = k
		return nil
	case Call, Cast, Fanout, Cancel:
		m.Kind = k // kept if the rest cannot be read: the bus still has to route it
	default:
		return fault.New(fault.Invalid, "the metadata's %q is %q, want a call, cast, fanout or cancel", KeyEnvelope, s)
	}
	name, rest, _ := strings.Cut(rest, " ")
	version, rest, _ := strings.Cut(rest, " ")
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || dot == len(name)-1 {
		return fault.New(fault.Invalid, "the metadata's %q is %q, which names no interface and method", KeyEnvelope, s)
	}
	m.Interface, m.Method = name[:dot], name[dot+1:]
	var err error
	if m.Version.Major, m.Version.Minor, err = ParseVersion(version); err != nil {
		return err
	}
	var unknown []string
	for rest != "" {
		var word string
		word, rest, _ = strings.Cut(rest, " ")
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

// decodeOption reads one option, and reports whether it knows it.
func (m *Message) decodeOption(word string) (known bool, err error) {
	name, value, ok := strings.Cut(word, "=")
	switch {
	case word == optionDurable:
		m.Durable = true
	case ok && name+"=" == optionDeadline:
		if m.Deadline, err = time.Parse(time.RFC3339Nano, value); err != nil {
			return true, fault.New(fault.Invalid, "the deadline %q is not an RFC 3339 time", value)
		}
	case ok && name+"=" == optionBeat:
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

// ParseVersion reads a version such as "2.1". A missing version is 1.0, not the latest, so that a client from before
// versions were sent counts as old. The error has code Invalid.
func ParseVersion(s string) (major, minor int, err error) {
	if s == "" {
		return 1, 0, nil
	}
	a, b, _ := strings.Cut(s, ".")
	major, err = strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	if cmp.Or(err, err2) != nil || major < 0 || minor < 0 {
		return 0, 0, fault.New(fault.Invalid, "version %q is not major.minor", s)
	}
	return major, minor, nil
}
