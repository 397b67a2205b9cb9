package natsbus

import (
	"net/url"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/armature-go/armature/rpc"
)

const (
	// uuidHeader is the header in which watermill-nats keeps a message's UUID.
	uuidHeader = "_watermill_message_uuid"
	// oddHeader has the metadata that NATS headers cannot carry as they are,
	// percent-encoded: "key=value", once for each.
	oddHeader = "Armature-Metadata"
	// offerHeader names the subscription that a message is offered by.
	offerHeader = "Armature-Offer"
)

// marshal puts a message into watermill-nats's format: its UUID and its metadata
// are headers.
func marshal(subject string, m *message.Message) *nats.Msg {
	h := make(nats.Header, len(m.Metadata)+2)
	put := func(k, v string) {
		if plain(k, v) {
			h[k] = []string{v}
		} else {
			h[oddHeader] = append(h[oddHeader], url.QueryEscape(k)+"="+url.QueryEscape(v))
		}
	}
	put(uuidHeader, m.UUID)
	for k, v := range m.Metadata {
		if k != rpc.MetaRedelivered && k != uuidHeader {
			put(k, v)
		}
	}
	return &nats.Msg{Subject: subject, Header: h, Data: m.Payload}
}

// unmarshal reads a message. Headers that are NATS's own are left out.
func unmarshal(msg *nats.Msg) *message.Message {
	m := message.NewMessage("", msg.Data)
	take := func(k, v string) {
		if k == uuidHeader {
			m.UUID = v
		} else if k != rpc.MetaRedelivered {
			m.Metadata[k] = v
		}
	}
	for k, vs := range msg.Header {
		switch {
		case k == oddHeader:
			for _, v := range vs {
				key, val, _ := strings.Cut(v, "=")
				key, err1 := url.QueryUnescape(key)
				val, err2 := url.QueryUnescape(val)
				if err1 == nil && err2 == nil { // else nobody here wrote it
					take(key, val)
				}
			}
		case len(vs) > 0 && !reserved(k):
			take(k, vs[0])
		}
	}
	return m
}

// plain reports whether NATS carries a header unchanged, and takes it for none
// of its own.
func plain(k, v string) bool {
	if k == "" || k == oddHeader || reserved(k) {
		return false
	}
	if strings.Trim(k, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		return false
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] == 0x7f {
			return false
		}
	}
	return v == strings.TrimSpace(v)
}

func reserved(k string) bool {
	return k == offerHeader || len(k) >= 5 && strings.EqualFold(k[:5], "nats-")
}
