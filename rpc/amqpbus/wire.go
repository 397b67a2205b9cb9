package amqpbus

import (
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/rpc"
)

// uuidHeader is the header in which watermill-amqp keeps a message's UUID.
const uuidHeader = "_watermill_message_uuid"

// marshal puts a message into watermill-amqp's format, and what AMQP has
// properties for into these. Only casts and fanouts, which programs with stock
// watermill-amqp read, have their UUID in a header as well.
func (b *Bus) marshal(m *message.Message) amqp.Publishing {
	p := amqp.Publishing{Body: m.Payload, MessageId: m.UUID, ContentType: "application/json"}
	p.Headers = make(amqp.Table, len(m.Metadata)+1)
	for k, v := range m.Metadata {
		switch k {
		case rpc.MetaReplyTo:
			p.ReplyTo = b.name(v)
		case rpc.MetaCorrelation:
			p.CorrelationId = v
		case rpc.MetaRedelivered:
		default:
			p.Headers[k] = v
		}
	}
	switch rpc.KindOf(m) {
	case rpc.KindCall, rpc.KindReply, rpc.KindBeat, rpc.KindCancel:
	default:
		p.Headers[uuidHeader] = m.UUID
	}
	if rpc.Durable(m) {
		p.DeliveryMode = amqp.Persistent
	}
	if t, ok := rpc.Deadline(m); ok {
		p.Expiration = strconv.FormatInt(max(time.Until(t).Milliseconds(), 1), 10)
	}
	return p
}

// unmarshal reads a delivery. Headers that are not text, such as x-death and
// x-delivery-count, are the broker's and left out.
func (b *Bus) unmarshal(d *amqp.Delivery) *message.Message {
	id := d.MessageId
	if s, ok := d.Headers[uuidHeader].(string); ok {
		id = s
	}
	m := message.NewMessage(id, d.Body)
	for k, v := range d.Headers {
		if s, ok := v.(string); ok && k != uuidHeader {
			m.Metadata[k] = s
		}
	}
	if d.ReplyTo != "" {
		m.Metadata[rpc.MetaReplyTo] = strings.TrimPrefix(d.ReplyTo, b.cfg.Exchange+".")
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
