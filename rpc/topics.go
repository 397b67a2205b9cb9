package rpc

import (
	"cmp"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Topics of the interface "backup". Their names never change: queues of these names exist at brokers.
//
//	backup                  casts to any server       Shared
//	backup.node-1           casts to one server       Shared
//	backup.calls            calls to any server       Live
//	backup.node-1.calls     calls to one server, and fanouts  Live
//	backup.fanout           fanouts, copied to each server's topic
//	backup.dlq              dead letters              Shared
//	reply.<random>          replies to a client, probes of a server  Private
const (
	suffixCalls  = ".calls"
	suffixFanout = ".fanout"
	suffixDead   = ".dlq"
	prefixReply  = "reply."
)

// topicOf returns the topic that a message is published to.
func topicOf(kind bus.Kind, iface, host string) string {
	if kind == bus.Fanout {
		return iface + suffixFanout
	}
	if host != Any {
		iface += "." + host
	}
	if kind == bus.Call || kind == bus.Cancel {
		iface += suffixCalls
	}
	return iface
}

// CheckHost returns Invalid if a server cannot have the host name. The error says which rule the name breaks. The
// empty name, [Any], is valid. Any other name must meet these rules:
//
//   - It has at most 255 bytes of UTF-8.
//   - It has no control characters, spaces, * or >.
//   - It has no empty part before, between or after dots.
//   - Its last part is not the suffix of a topic: calls, fanout or dlq.
func CheckHost(host string) error {
	if host == Any {
		return nil
	}
	detail := names.Fault(host)
	switch last := host[strings.LastIndexByte(host, '.')+1:]; {
	case detail != "":
	case "."+last == suffixCalls, "."+last == suffixFanout, "."+last == suffixDead:
		detail = "ends in " + last + ", which is the suffix of a topic"
	default:
		return nil
	}
	return fault.New(fault.Invalid, "host name %.300q of %d bytes is not valid for a server: it %s", host, len(host), detail)
}

// checkInterface returns Invalid if an interface cannot have the name. A name with a dot is refused, because a server of interface
// a on host b.c would have the topics of a server of interface a.b on host c.
func checkInterface(name string) error {
	var wrong string
	switch {
	case name == "":
		wrong = "is empty"
	case strings.Contains(name, "."):
		wrong = "has a dot, so its topics could be those of a host of another interface"
	case name+"." == prefixReply:
		wrong = "is the prefix of topics for replies"
	case strings.ContainsAny(name, "/#"):
		wrong = "has a / or a #"
	default:
		wrong = names.Fault(name)
	}
	if wrong == "" {
		return nil
	}
	return fault.New(fault.Invalid, "interface name %.300q of %d bytes is not valid: it %s", name, len(name), wrong)
}

// checkTopics returns Invalid if the name of the interface or of the host is not valid, or if a topic of the interface would have more
// than maxTopic bytes. Zero: no such limit. The longest topic of a host is the topic of its calls.
func checkTopics(maxTopic int, iface, host string) error {
	if err := cmp.Or(checkInterface(iface), CheckHost(host)); err != nil {
		return err
	}
	topic := topicOf(bus.Call, iface, host)
	if err := bus.CheckTopic(topic); err != nil {
		return err
	}
	if maxTopic > 0 && len(topic) > maxTopic {
		return fault.New(fault.Invalid, "topic name %.300q of %d bytes is longer than the %d bytes that the bus allows: shorten the name of the interface or the host", topic, len(topic), maxTopic)
	}
	return nil
}
