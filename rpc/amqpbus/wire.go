package amqpbus

import (
	"cmp"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/rpc"
)

// uuidHeader is the header in which watermill-amqp keeps a message's UUID.
const uuidHeader = "_watermill_message_uuid"

// maxShort is the longest text that a property can hold.
const maxShort = 255

// marshal puts casts and dead letters into watermill-amqp's format, so that
// programs with that alone can read them: all metadata and the UUID are headers.
// Of the others, what AMQP has properties for goes into these, because each header
// costs the broker some time.
//
// There is no expiration: it costs time, too, and a request that has expired is
// not run by whoever takes it; a topic of calls that nobody takes goes with all
// that is in it.
func (b *Bus) marshal(m *message.Message) amqp.Publishing {
	p := amqp.Publishing{Body: m.Payload, MessageId: m.UUID}
	plain := false // for stock watermill-amqp
	switch rpc.KindOf(m) {
	case rpc.KindCall, rpc.KindFanout, rpc.KindReply, rpc.KindBeat, rpc.KindCancel, rpc.KindProbe:
	default:
		plain = true
	}
	for k, v := range m.Metadata {
		switch {
		case k == rpc.MetaReplyTo:
			p.ReplyTo = b.name(v)
		case k == rpc.MetaCorrelation:
			p.CorrelationId = v
		case k == rpc.MetaRPC && !plain && len(v) <= maxShort:
			p.Type = v
		case k == rpc.MetaInstance && !plain && len(v) <= maxShort:
			p.AppId = v
		case k != rpc.MetaRedelivered:
			if p.Headers == nil {
				p.Headers = make(amqp.Table, len(m.Metadata)+1)
			}
			p.Headers[k] = v
		}
	}
	if p.MessageId == p.CorrelationId {
		p.MessageId = "" // once is enough
	}
	if plain {
		p.ContentType = "application/json"
		if p.Headers == nil {
			p.Headers = make(amqp.Table, 1)
		}
		p.Headers[uuidHeader] = m.UUID
	}
	if rpc.Durable(m) {
		p.DeliveryMode = amqp.Persistent
	}
	return p
}

// unmarshal reads a delivery. Headers that are not text, such as x-death and
// x-delivery-count, are the broker's and left out.
func (b *Bus) unmarshal(d *amqp.Delivery) *message.Message {
	id := cmp.Or(d.MessageId, d.CorrelationId)
	if s, ok := d.Headers[uuidHeader].(string); ok {
		id = s
	}
	m := &message.Message{UUID: id, Metadata: make(message.Metadata, len(d.Headers)+4), Payload: d.Body}
	if d.Type != "" {
		m.Metadata[rpc.MetaRPC] = d.Type
	}
	for k, v := range d.Headers {
		if s, ok := v.(string); ok && k != uuidHeader {
			m.Metadata[k] = s
		}
	}
	if d.ReplyTo != "" {
		m.Metadata[rpc.MetaReplyTo] = strings.TrimPrefix(d.ReplyTo, b.cfg.Exchange+".")
	}
	if d.AppId != "" {
		m.Metadata[rpc.MetaInstance] = d.AppId
	}
	if d.CorrelationId != "" {
		m.Metadata[rpc.MetaCorrelation] = d.CorrelationId
	}
	if d.Redelivered {
		m.Metadata[rpc.MetaRedelivered] = "true"
	} else {
		delete(m.Metadata, rpc.MetaRedelivered)
	}
	return m
}
