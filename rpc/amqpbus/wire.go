package amqpbus

import (
	"cmp"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/rpc/bus"
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
// Messages have no expiration: it costs time, too, and a server does not run a request
// that has expired; a topic of calls without a server ends with all
// its messages.
func (b *Bus) marshal(m *bus.Message) amqp.Publishing {
	p := amqp.Publishing{Body: m.Payload, MessageId: m.ID, CorrelationId: m.Correlation}
	plain := m.Kind == bus.Cast || m.Kind == "" || m.Dead != nil // for stock watermill-amqp
	header := func(k, v string) {
		if p.Headers == nil {
			p.Headers = make(amqp.Table, 4)
		}
		p.Headers[k] = v
	}
	for k, v := range m.Metadata() {
		switch {
		case k == bus.KeyReplyTo:
			p.ReplyTo = b.name(v)
		case k == bus.KeyCorrelation:
		case k == bus.KeyEnvelope && !plain && len(v) <= maxShort:
			p.Type = v
		case k == bus.KeyInstance && !plain && len(v) <= maxShort:
			p.AppId = v
		default:
			header(k, v)
		}
	}
	if p.MessageId == p.CorrelationId {
		p.MessageId = "" // once is enough
	}
	if plain {
		p.ContentType = "application/json"
		header(uuidHeader, m.ID)
	}
	if m.Persistent() {
		p.DeliveryMode = amqp.Persistent
	}
	return p
}

// unmarshal reads a delivery. Headers that are not text, such as x-death and
// x-delivery-count, are the broker's and left out.
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
