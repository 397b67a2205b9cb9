package natsbus //nolint:testpackage // the encoding is not exported

import (
	"maps"
	"net/textproto"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/rpc/bus"
)

// FuzzWire: decodeMessage returns the metadata that encodeMessage was given, except the header of the UUID. No header
// that encodeMessage writes is changed by NATS, or treated as a header of NATS.
func FuzzWire(f *testing.F) {
	for _, s := range [][3]string{
		{"id", "rpc", "cast backup.start 2.1 at-least-once"},
		{"", "error", `{"msg":"no \"room\": ü€"}`},
		{"i d", " spaces ", "\tat the ends "},
		{"1", "two\r\nlines", "a: b\r\n\r\nc"},
		{"1", "Nats-Rollup", "all"},
		{"1", "Armature-Metadata", "a=b"},
		{"1", "", "\xff\x00"},
		{"1", "k%3D=v", "%zz"},
		{"1", "_watermill_message_uuid", "another"},
		{"1", "redelivered", "true"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, id, key, value string) {
		if probe := bus.Decode("", maps.All(map[string]string{key: "x"}), nil); len(probe.Header) == 0 {
			return // the key belongs to the envelope
		}
		m := &bus.Message{ID: id, Header: map[string]string{key: value}}
		want := map[string]string{key: value}
		delete(want, uuidHeader) // the UUID is not sent as metadata
		msg := encodeMessage("s", m)
		for k, vs := range msg.Header {
			for _, v := range vs {
				if k == "" || k != textproto.TrimString(k) || reservedKey(k) || v != textproto.TrimString(v) {
					t.Errorf("header %q: %q would be changed, or treated as one of NATS's own", k, v)
				}
				for _, c := range []byte(k + v) {
					if c < ' ' || c == 0x7f {
						t.Errorf("header %q: %q has a control character", k, v)
					}
				}
			}
		}
		got := decodeMessage(msg)
		if diff := cmp.Diff(want, got.Header, cmpopts.EquateEmpty()); diff != "" || got.ID != id {
			t.Errorf("id %q, metadata (-want +got):\n%s", got.ID, diff)
		}
		_ = decodeMessage(&nats.Msg{Header: nats.Header{key: {value}, encodedHeader: {value}}}) // a message of another program must not cause a panic
	})
}
