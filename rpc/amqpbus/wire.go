package amqpbus

import (
	"cmp"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/rpc/bus"
)

// uuidHeader is the header with the UUID of a message in the format of watermill-amqp.
const uuidHeader = "_watermill_message_uuid"

// maxShort is the maximum length of an AMQP property, in bytes.
const maxShort = 255

// marshal encodes a message. Casts and dead letters have the format of watermill-amqp: the UUID and all metadata are headers.
// So a program that uses only watermill-amqp can read them. In other messages, metadata are AMQP properties if AMQP has a
// suitable property, because each header costs the broker time.
//
// Messages have no expiration, because an expiration also costs the broker time. It is not needed: a server does not handle an
// expired request, and the queue of a Live topic without a server is deleted with all its messages.
func (b *Bus) marshal(m *bus.Message) amqp.Publishing {
	p := amqp.Publishing{Body: m.Payload, MessageId: m.ID, CorrelationId: m.Correlation}
	stock := m.Kind == bus.Cast || m.Kind == "" || m.Dead != nil // the message is written in the format of watermill-amqp
	header := func(k, v string) {
		if p.Headers == nil {
			p.Headers = make(amqp.Table, 4)
		}
		p.Headers[k] = v
	}
	for k, v := range m.Metadata() {
		switch {
		case k == bus.KeyReplyTo:
			p.ReplyTo = b.queueName(v)
		case k == bus.KeyCorrelation:
		case k == bus.KeyEnvelope && !stock && len(v) <= maxShort:
			p.Type = v
		case k == bus.KeyInstance && !stock && len(v) <= maxShort:
			p.AppId = v
		default:
			header(k, v)
		}
	}
	if p.MessageId == p.CorrelationId {
		p.MessageId = "" // unmarshal uses the correlation id
	}
	if stock {
		p.ContentType = "application/json"
		header(uuidHeader, m.ID)
	}
	if m.Persistent() {
		p.DeliveryMode = amqp.Persistent
	}
	return p
}

// unmarshal decodes a delivery. It ignores headers that are not text, such as x-death and x-delivery-count: these headers come
// from the broker.
func (b *Bus) unmarshal(d *amqp.Delivery) *bus.Message {
	id := cmp.Or(d.MessageId, d.CorrelationId)
	if s, ok := d.Headers[uuidHeader].(string); ok {
		id = s
	}
	return bus.Decode(id, func(yield func(string, string) bool) {
		properties := [...][2]string{
			{bus.KeyEnvelope, d.Type},
			{bus.KeyReplyTo, strings.TrimPrefix(d.ReplyTo, b.cfg.Exchange+".")},
			{bus.KeyInstance, d.AppId},
			{bus.KeyCorrelation, d.CorrelationId},
		}
		for k, v := range d.Headers {
			if s, ok := v.(string); ok && k != uuidHeader && !yield(k, s) {
				return
			}
		}
		for _, p := range properties {
			if p[1] != "" && !yield(p[0], p[1]) {
				return
			}
		}
	}, d.Body)
}
