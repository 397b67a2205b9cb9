// Package urlbus opens the bus that a URL names, in oslo.messaging's form of a
// transport_url, so that a line of configuration decides between RabbitMQ, NATS and one
// process alone:
//
//	bus, err := urlbus.Open("rabbit://user:password@h1:5672,user:password@h2:5672/vhost", urlbus.Config{Exchange: "volume"})
//	app.Add("bus", bus)
//
// It has the libraries of all brokers in it. Who needs one only takes its package.
package urlbus

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/rpc/natsbus"
)

// Config is what a URL does not say. The zero value is usable.
type Config struct {
	// Exchange is the first part of the names of all queues. Default "armature".
	// Processes that talk to each other have the same.
	Exchange string
	// Quorum keeps casts in quorum queues on RabbitMQ, see amqpbus.Config.
	Quorum bool
	// MaxMessage is the largest message that is sent or handled, in bytes, see rpc.Size. Default
	// rpc.DefaultMaxMessage, which is also that of memory://, always.
	MaxMessage int
	// Logger gets what happens to the connections. Default slog.Default().
	Logger *slog.Logger
}

// Bus is a bus that is a part of package service. It is safe for concurrent use.
type Bus interface {
	rpc.Bus

	// Start connects, with one attempt for each broker. It may be called again after an error, whose
	// code is Unavailable if no broker answers and Unauthenticated if it refuses the login; see the
	// buses' packages. Before, the bus fails with rpc.ErrNotStarted.
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	// Check fails with Unavailable while the broker is away. It does not block.
	Check(ctx context.Context) error
}

// Open returns a bus that is not started.
//
//	rabbit:// amqp:// amqps://   RabbitMQ: user:password@host:port, several with commas, and /vhost
//	nats:// tls://               NATS: the same without a virtual host
//	memory://                    this process alone; so does an empty URL
//
// Invalid: the URL has another form. The error does not repeat it, as it has a password.
func Open(url string, cfg Config) (Bus, error) {
	scheme, urls, err := split(url)
	if err != nil {
		return nil, err
	}
	switch scheme {
	case "memory":
		return inMemory{membus.New()}, nil
	case "nats", "tls":
		return opened(natsbus.New(natsbus.Config{URLs: urls, Exchange: cfg.Exchange, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger}))
	}
	return opened(amqpbus.New(amqpbus.Config{URLs: urls, Exchange: cfg.Exchange, Quorum: cfg.Quorum, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger}))
}

// opened returns a nil Bus with an error, instead of one that has a nil pointer.
func opened[B Bus](b B, err error) (Bus, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// inMemory is a bus that always works.
type inMemory struct{ *membus.Bus }

func (inMemory) Check(context.Context) error { return nil }

// schemes are those of URLs, and what the libraries call them.
var schemes = map[string]string{"rabbit": "amqp", "amqp": "amqp", "amqps": "amqps", "nats": "nats", "tls": "tls", "memory": "memory"}

// split returns the scheme of a URL, and the URLs of the brokers in it.
func split(url string) (scheme string, urls []string, err error) {
	if url == "" {
		return "memory", nil, nil
	}
	name, rest, ok := strings.Cut(url, "://")
	scheme = schemes[name]
	if !ok || scheme == "" {
		// What stands there may be a part of a password.
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has no scheme that is known: want %s", strings.Join(slices.Sorted(maps.Keys(schemes)), ", "))
	}
	hosts, vhost, slash := strings.Cut(rest, "/")
	switch {
	case scheme == "memory":
		if rest != "" {
			return "", nil, fault.New(fault.Invalid, "the URL of the bus is memory:// with something after it")
		}
		return scheme, nil, nil
	case scheme == "amqp" || scheme == "amqps":
		vhost = "/" + vhost
	case slash && vhost != "":
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has a path after the host, which %s:// has no use for", name)
	}
	for h := range strings.SplitSeq(hosts, ",") {
		urls = append(urls, scheme+"://"+h+vhost)
	}
	return scheme, urls, nil
}
