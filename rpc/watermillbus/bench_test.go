package watermillbus_test

import (
	"maps"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/rpc/bus"
)

// BenchmarkMessage measures the cost of a bus.Message, of a watermill message, and of the conversion to the other type and
// back. A bus of stock watermill parts needs this conversion for each message (ADR 23).
func BenchmarkMessage(b *testing.B) {
	envelope := &bus.Message{
		ID: "0123456789abcdef", Kind: bus.Call, Interface: "backup", Method: "list", Version: struct{ Major, Minor int }{2, 1},
		ReplyTo: "reply.0123456789abcdef", Payload: make([]byte, 1024),
	}
	b.Run("envelope", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := *envelope
			_ = bus.NewDelivery(&m, false, nil).Ack()
		}
	})
	b.Run("watermill", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := message.NewMessage(envelope.ID, envelope.Payload)
			m.Metadata.Set("rpc", "call backup.list 2.1")
			m.Metadata.Set("reply_to", envelope.ReplyTo)
			m.Ack()
		}
	})
	b.Run("there and back", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := message.NewMessage(envelope.ID, envelope.Payload)
			m.Metadata = maps.Collect(envelope.Metadata())
			_ = bus.Decode(m.UUID, maps.All(m.Metadata), m.Payload)
		}
	})
}
