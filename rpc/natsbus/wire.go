package natsbus

import (
	"cmp"
	"iter"
	"net/url"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/rpc/bus"
)

const (
	// uuidHeader is the header with the UUID of a message in the format of watermill-nats.
	uuidHeader = "_watermill_message_uuid"
	// encodedHeader is one header for all metadata that NATS would change if each entry had its own header. It has one
	// value for each of these entries: the percent-encoded "key=value".
	encodedHeader = "Armature-Metadata"
)

// encodeMessage encodes a message in the format of watermill-nats: the id and the metadata are headers.
func encodeMessage(subject string, m *bus.Message) *nats.Msg {
	h := make(nats.Header, 5)
	values := make([]string, 0, 5) // one allocation for most messages
	put := func(k, v string) {
		if isCarriedUnchanged(k, v) {
			values = append(values, v)
			h[k] = slices.Clip(values[len(values)-1:])
		} else {
			h[encodedHeader] = append(h[encodedHeader], url.QueryEscape(k)+"="+url.QueryEscape(v))
		}
	}
	if m.ID != m.Correlation { // otherwise decodeMessage uses the correlation id
		put(uuidHeader, m.ID)
	}
	for k, v := range m.Metadata() {
		if k != uuidHeader {
			put(k, v)
		}
	}
	return &nats.Msg{Subject: subject, Header: h, Data: m.Payload}
}

// decodeMessage decodes a message. It ignores the headers that belong to NATS.
func decodeMessage(msg *nats.Msg) *bus.Message {
	id := ""
	m := bus.Decode("", func(yield func(string, string) bool) {
		for k, v := range decodedMetadata(msg.Header) {
			if k == uuidHeader {
				id = v
			} else if !yield(k, v) {
				return
			}
		}
	}, msg.Data)
	m.ID = cmp.Or(id, m.Correlation)
	return m
}

// decodedMetadata returns the decoded metadata in the headers of a message.
func decodedMetadata(h nats.Header) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for k, vs := range h {
			if k != encodedHeader && len(vs) > 0 && !reservedKey(k) && !yield(k, vs[0]) {
				return
			}
		}
		for _, v := range h[encodedHeader] {
			if key, val, ok := decodeMetadata(v); ok && !yield(key, val) {
				return
			}
		}
	}
}

// decodeMetadata decodes one value of encodedHeader. The result ok is false for an invalid value, which only another
// program sends.
func decodeMetadata(s string) (key, value string, ok bool) {
	key, value, _ = strings.Cut(s, "=")
	key, err1 := url.QueryUnescape(key)
	value, err2 := url.QueryUnescape(value)
	return key, value, err1 == nil && err2 == nil
}

// isCarriedUnchanged reports whether NATS carries a header unchanged and does not treat it as one of the headers of NATS.
func isCarriedUnchanged(k, v string) bool {
	if k == "" || k == encodedHeader || reservedKey(k) {
		return false
	}
	for i := range len(k) {
		if !keyChar[k[i]] {
			return false
		}
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] == 0x7f {
			return false
		}
	}
	return v == strings.TrimSpace(v)
}

// keyChar says which characters a key may have. NATS does not change a key that has only these characters.
var keyChar = func() (is [256]bool) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") {
		is[c] = true
	}
	return is
}()

// reservedKey reports whether a header belongs to NATS.
func reservedKey(k string) bool {
	return len(k) >= 5 && strings.EqualFold(k[:5], "nats-")
}
