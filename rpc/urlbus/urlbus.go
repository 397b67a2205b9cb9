// Package urlbus opens the bus that a URL names, in oslo.messaging's form of a
// transport_url, so that a line of configuration decides between RabbitMQ, NATS and one
// process alone:
//
//	bus, err := urlbus.Open("rabbit://user:password@h1:5672,user:password@h2:5672/vhost", urlbus.Config{Exchange: "volume"})
//	app.Add("bus", bus)
//
// The package links the libraries of all brokers. A program that needs one broker only imports the package of that bus
// instead.
package urlbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"net"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/rpc/natsbus"
	"github.com/armature-go/armature/tlsfile"
)

// Config has the settings that are not in a URL. The zero value is usable.
type Config struct {
	// Exchange is the first part of the names of all queues. Default "armature".
	// Processes that exchange messages need the same value.
	Exchange string
	// Quorum keeps casts in quorum queues on RabbitMQ, see amqpbus.Config.
	Quorum bool
	// MaxMessage is the largest message that is sent or handled, in bytes, see bus.Message.Size. Default
	// bus.DefaultMaxMessage, which is also that of memory://, always.
	MaxMessage int
	// TLS makes the connections TLS, as the schemes amqps:// and tls:// and the parameter ssl=1 do.
	TLS bool
	// TLSFiles are the files for TLS. It is an error to set them without TLS. Parameters of the URL override them.
	// memory:// does not use them.
	TLSFiles tlsfile.Client
	// Schemes has the openers of further schemes, by name. A name is a prefix, a hyphen and a scheme of [Open], whose form
	// and parameters its URLs have: a URL watermill-amqp://, for package rpc/watermillbus/amqp, has those of amqp://.
	Schemes map[string]Opener
	// Logger gets the events of the connections. Default slog.Default().
	Logger *slog.Logger
}

// Broker is what Open has read from a URL for an [Opener], besides the Config.
type Broker struct {
	// URLs are the URLs of the brokers. Each has the user, and neither the prefix of the scheme nor parameters.
	URLs []string
	// TLS is the configuration for TLS. If TLS is on, the scheme of the URLs is the one with TLS, such as amqps.
	TLS *tls.Config
}

// Opener returns a bus that is not started, as Open does. Invalid: the bus cannot do what cfg requires.
type Opener func(at Broker, cfg Config) (Bus, error)

// Bus is a [bus.Bus] and a service.Part. It is safe for concurrent use.
type Bus interface {
	bus.Bus

	// Start connects, with one attempt for each broker. It may be called again after an error, whose
	// code is Unavailable if no broker answers and Unauthenticated if it refuses the login; see the
	// buses' packages. Before, the bus fails with bus.ErrNotStarted.
	Start(ctx context.Context) error
	// Stop is Close, without regard to ctx.
	Stop(ctx context.Context) error
	// Check fails with Unavailable while the broker cannot be reached. It does not block.
	Check(ctx context.Context) error
}

// Open returns a bus that is not started. Without TLS to another machine there is one WARN in the log.
//
//	rabbit:// amqp:// amqps://   RabbitMQ: user:password@host:port, several with commas, and /vhost
//	nats:// tls://               NATS: the same without a virtual host
//	memory://                    this process alone, as an empty URL
//
// [Config].Schemes adds schemes.
//
// A host without a user has the user of the first host. The parameters, after a ?, are those of
// oslo.messaging, ssl (1 or 0), ssl_ca_file, ssl_cert_file and ssl_key_file, with their older names, and
// ssl_server_name, see [tlsfile.Client]. The default port of RabbitMQ is 5672, with TLS 5671.
//
// Errors: Invalid if the URL has another form, or another parameter, or a file is wrong; Denied if
// others can read the key. No error contains the URL, because a URL has a password.
func Open(url string, cfg Config) (Bus, error) {
	name, _, _ := strings.Cut(url, "://")
	open := cfg.Schemes[name]
	if _, known, ok := strings.Cut(name, "-"); ok && open != nil {
		url = known + strings.TrimPrefix(url, name)
	}
	scheme, urls, err := splitURL(url, &cfg)
	if err != nil {
		return nil, err
	}
	if scheme == "memory" && open == nil {
		return inMemory{membus.New()}, nil
	}
	files, err := cfg.TLSFiles.Config()
	switch {
	case err != nil:
		return nil, err
	case !cfg.TLS && cfg.TLSFiles != tlsfile.Client{}:
		return nil, fault.New(fault.Invalid, "files for TLS are set for the bus, but TLS is not: set ssl, or use the scheme amqps:// or tls://")
	}
	if !cfg.TLS {
		warnPlain(cfg.Logger, urls)
	}
	if open != nil {
		return busOrNil(open(Broker{urls, files}, cfg))
	}
	if scheme == "nats" || scheme == "tls" {
		return busOrNil(natsbus.New(natsbus.Config{URLs: urls, Exchange: cfg.Exchange, TLS: files, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger}))
	}
	return busOrNil(amqpbus.New(amqpbus.Config{URLs: urls, Exchange: cfg.Exchange, TLS: files, Quorum: cfg.Quorum, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger}))
}

// warnPlain logs that other machines are reached without TLS.
func warnPlain(log *slog.Logger, urls []string) {
	for _, raw := range urls {
		u, err := neturl.Parse(raw)
		if err != nil {
			continue // the bus refuses it
		}
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "" && u.Hostname() != "localhost" && !ip.IsLoopback() {
			cmp.Or(log, slog.Default()).Warn("the connections to the broker are not encrypted: add ?ssl=1, and ssl_ca_file with the file of its authority, to the URL", "host", u.Hostname())
			return
		}
	}
}

// busOrNil returns a nil Bus with an error, instead of one that has a nil pointer.
func busOrNil[B Bus](b B, err error) (Bus, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// inMemory is a bus that always works.
type inMemory struct{ *membus.Bus }

func (inMemory) Check(context.Context) error { return nil }

// schemes are those of URLs, and what the libraries call them, without TLS and with it.
var schemes = map[string][2]string{
	"rabbit": {"amqp", "amqps"}, "amqp": {"amqp", "amqps"}, "amqps": {"amqps", "amqps"},
	"nats": {"nats", "tls"}, "tls": {"tls", "tls"}, "memory": {"memory", "memory"},
}

// splitURL returns the scheme of a URL, and the URLs of the brokers in it. It notes the parameters in cfg.
func splitURL(url string, cfg *Config) (scheme string, urls []string, err error) {
	if url == "" {
		return "memory", nil, nil
	}
	name, rest, ok := strings.Cut(url, "://")
	kinds := schemes[name]
	if !ok || kinds[0] == "" {
		// What stands there may be a part of a password.
		names := slices.AppendSeq(slices.Collect(maps.Keys(schemes)), maps.Keys(cfg.Schemes))
		slices.Sort(names)
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has no scheme that is known: want %s", strings.Join(names, ", "))
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, vhost, slash := strings.Cut(rest, "/")
	cfg.TLS = cfg.TLS || kinds[0] == kinds[1]
	if err := readParameters(query, cfg, kinds[0] == kinds[1]); err != nil {
		return "", nil, err
	}
	scheme = kinds[0]
	if cfg.TLS {
		scheme = kinds[1]
	}
	switch {
	case scheme == "memory":
		if rest != "" || query != "" {
			return "", nil, fault.New(fault.Invalid, "the URL of the bus is memory:// with a host or parameters: remove them")
		}
		return scheme, nil, nil
	case scheme == "amqp" || scheme == "amqps":
		vhost = "/" + vhost
	case slash && vhost != "":
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has a path after the host, which %s:// has no use for", name)
	}
	user := ""
	for i, h := range strings.Split(hosts, ",") {
		own := strings.LastIndex(h, "@") + 1
		switch {
		case i == 0:
			user = h[:own]
		case own == 0:
			h = user + h
		case user == "": // perhaps a comma in the password
			return "", nil, fault.New(fault.Invalid, "the URL of the bus has a user for a later host and none for the first; a comma in a password is %%2C")
		}
		urls = append(urls, scheme+"://"+h+vhost)
	}
	return scheme, urls, nil
}

// older are the names that parameters had before, in oslo.messaging.
var older = map[string]string{
	"rabbit_use_ssl": "ssl", "kombu_ssl_ca_certs": "ssl_ca_file", "kombu_ssl_certfile": "ssl_cert_file", "kombu_ssl_keyfile": "ssl_key_file",
}

// readParameters reads those of a URL, whose scheme asks for TLS if secure.
func readParameters(query string, cfg *Config, secure bool) error {
	values, err := neturl.ParseQuery(query)
	if err != nil || strings.Contains(query, "@") { // perhaps a part of a password, which no error shows
		return fault.New(fault.Invalid, "the parameters of the bus's URL cannot be read; a ? in a password is %%3F, an @ in a value is %%40")
	}
	for old, name := range older {
		if values.Has(old) && values.Has(name) {
			return fault.New(fault.Invalid, "parameter %s of the bus's URL is given twice, also as %s", name, old)
		}
	}
	names := []string{"ssl", "ssl_ca_file", "ssl_cert_file", "ssl_key_file", "ssl_server_name"}
	into := []*string{nil, &cfg.TLSFiles.CAFile, &cfg.TLSFiles.CertFile, &cfg.TLSFiles.KeyFile, &cfg.TLSFiles.ServerName}
	for given, v := range values {
		name := cmp.Or(older[given], given)
		i := slices.Index(names, name)
		switch {
		case i < 0:
			return fault.New(fault.Invalid, "unknown parameter %.60q of the bus's URL: want one of %s", given, strings.Join(names, ", "))
		case len(v) > 1:
			return fault.New(fault.Invalid, "parameter %s of the bus's URL is given twice", given)
		case i > 0:
			*into[i] = v[0]
			continue
		}
		on, err := strconv.ParseBool(strings.ToLower(v[0]))
		switch {
		case err != nil:
			return fault.New(fault.Invalid, "parameter %s of the bus's URL is neither 1 nor 0", given)
		case !on && (secure || cfg.TLS):
			return fault.New(fault.Invalid, "parameter %s of the bus's URL is off, and the scheme or the configuration asks for TLS", given)
		}
		cfg.TLS = on
	}
	return nil
}
