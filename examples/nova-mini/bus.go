package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/service"
)

// messageBus is a bus that has connections.
type messageBus interface {
	rpc.Bus
	service.Part
	Check(ctx context.Context) error
}

// openBus returns the bus that transport_url names. It is not started.
func (o *options) openBus(log *slog.Logger) (messageBus, error) {
	scheme, urls, err := brokers(o.TransportURL)
	if err != nil {
		return nil, err
	}
	var bus messageBus
	switch scheme {
	case "nats", "tls":
		bus, err = natsbus.New(natsbus.Config{URLs: urls, Exchange: o.ControlExchange, Logger: log})
	default:
		bus, err = amqpbus.New(amqpbus.Config{URLs: urls, Exchange: o.ControlExchange, Quorum: o.Rabbit.QuorumQueue, Logger: log})
	}
	if err != nil {
		return nil, fmt.Errorf("option transport_url: %w", err)
	}
	return bus, nil
}

// schemes are those of transport_url, and what the libraries call them.
var schemes = map[string]string{"rabbit": "amqp", "amqp": "amqp", "amqps": "amqps", "nats": "nats", "tls": "tls"}

// brokers returns the scheme of a transport_url and the URLs of the brokers in
// it. It has oslo.messaging's form: several hosts, separated by commas, each with
// its user and password. NATS has no virtual hosts.
func brokers(transport string) (scheme string, urls []string, err error) {
	if transport == "" {
		return "", nil, fault.New(fault.Invalid, "option transport_url is not set; it is rabbit://user:password@host:port/vhost or nats://user:password@host:port")
	}
	name, rest, ok := strings.Cut(transport, "://")
	scheme = schemes[name]
	if !ok || scheme == "" {
		// What stands there may be a part of a password.
		return "", nil, fault.New(fault.Invalid, "option transport_url has no scheme that is known: want %s",
			strings.Join(slices.Sorted(maps.Keys(schemes)), ", "))
	}
	hosts, vhost, _ := strings.Cut(rest, "/")
	switch {
	case scheme == "amqp" || scheme == "amqps":
		vhost = "/" + vhost
	case vhost != "":
		return "", nil, fault.New(fault.Invalid, "option transport_url has a path after the host, which %s:// has no use for", name)
	}
	for h := range strings.SplitSeq(hosts, ",") {
		urls = append(urls, scheme+"://"+h+vhost)
	}
	return scheme, urls, nil
}
