// Package urlbus opens the bus that a URL names. The URL has the form of oslo.messaging's transport_url. So one line of
// configuration decides between RabbitMQ, NATS and the in-memory bus of one process:
//
//	bus, err := urlbus.Open("rabbit://user:password@h1:5672,user:password@h2:5672/vhost", urlbus.Config{Exchange: "volume"})
//	app.Add("bus", bus)
//
// The package links the libraries of all brokers. A program that needs only one broker can import the package of that bus
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
	"github.com/armature-go/armature/internal/urlcheck"
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
	// MaxMessage is the size of the largest message that is sent or handled, in bytes, see bus.Message.Size. Default
	// bus.DefaultMaxMessage. A memory:// bus always has the default.
	MaxMessage int
	// TLS makes the bus use TLS, as the schemes amqps:// and tls:// and the parameter ssl=1 do.
	TLS bool
	// TLSFiles are the files for TLS. Setting them without TLS is an error. Parameters of the URL override them. A
	// memory:// bus does not use them.
	TLSFiles tlsfile.Client
	// Schemes has the openers of further schemes, by the name of the scheme. The name consists of a prefix, a hyphen and a
	// scheme of [Open]. The URLs have the form and the parameters of the scheme after the hyphen. For example, a
	// watermill-amqp:// URL, for package rpc/watermillbus/amqp, has the form and the parameters of an amqp:// URL.
	Schemes map[string]Opener
	// Logger gets the events of the connections. Default slog.Default().
	Logger *slog.Logger
}

// Broker is what Open has read from a URL. An [Opener] gets it together with the Config.
type Broker struct {
	// URLs are the URLs of the brokers. Each URL has its user, but neither the prefix of the scheme nor parameters.
	URLs []string
	// TLS is the configuration for TLS; nil without TLS. With TLS, the URLs have the scheme with TLS, such as amqps.
	TLS *tls.Config
}

// Opener returns a bus that is not started, as Open does. Errors: Invalid if the bus cannot do what cfg requires.
type Opener func(at Broker, cfg Config) (Bus, error)

// Bus is a [bus.Bus] and a service.Part. It is safe for concurrent use.
type Bus interface {
	bus.Bus

	// Start connects to a broker. It tries each broker once. After an error it may be called again. Errors: Unavailable if
	// no broker answers, Unauthenticated if the broker refuses user and password; the packages of the buses list further
	// errors. Until Start succeeds, the methods of the bus fail with bus.ErrNotStarted. A memory:// bus needs no Start.
	Start(ctx context.Context) error
	// Stop calls Close, and ignores ctx.
	Stop(ctx context.Context) error
	// Check fails with Unavailable while the broker cannot be reached. It does not block.
	Check(ctx context.Context) error
}

// Open returns a bus that is not started. If the URL names another machine and TLS is off, Open logs one WARN.
//
//	rabbit:// amqp:// amqps://   RabbitMQ: user:password@host:port, several with commas, and /vhost
//	nats:// tls://               NATS: the same without a virtual host
//	memory://                    a new in-memory bus, only for this process; an empty URL means the same
//
// [Config].Schemes adds schemes.
//
// A host without a user has the user of the first host. The parameters come after a "?". The parameters of oslo.messaging
// are ssl (1 or 0), ssl_ca_file, ssl_cert_file and ssl_key_file; their older names also work. In addition there is
// ssl_server_name, see [tlsfile.Client]. The default port of RabbitMQ is 5672, or 5671 with TLS.
//
// Errors: Invalid if the URL has another form or another parameter, or a file is wrong; Denied if other users of the
// machine can read the key file. No error contains the URL, because a URL contains a password.
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
		return nil, errFilesWithoutTLS
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

var errFilesWithoutTLS = fault.New(fault.Invalid, "files for TLS are set for the bus, but TLS is off: set ssl, or use the scheme amqps:// or tls://")

// warnPlain logs one WARN if a URL names another machine. The caller has checked that TLS is off.
func warnPlain(log *slog.Logger, urls []string) {
	for _, raw := range urls {
		u, err := neturl.Parse(raw)
		if err != nil {
			continue // the bus refuses it
		}
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "" && u.Hostname() != "localhost" && !ip.IsLoopback() {
			cmp.Or(log, slog.Default()).Warn("the connections to the broker are not encrypted: add the parameters ssl=1 and ssl_ca_file (the file of the broker's authority) to the URL", "host", u.Hostname())
			return
		}
	}
}

// busOrNil returns b, or a nil interface if err is not nil. A Bus that holds a nil pointer would not be nil.
func busOrNil[B Bus](b B, err error) (Bus, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// inMemory is a bus that always works.
type inMemory struct{ *membus.Bus }

func (inMemory) Check(context.Context) error { return nil }

// schemes maps the scheme of a URL to the broker library's two schemes: without TLS, and with TLS.
var schemes = map[string][2]string{
	"rabbit": {"amqp", "amqps"}, "amqp": {"amqp", "amqps"}, "amqps": {"amqps", "amqps"},
	"nats": {"nats", "tls"}, "tls": {"tls", "tls"}, "memory": {"memory", "memory"},
}

// splitURL returns the library's scheme for a URL, and the URLs of its brokers. It writes the URL's parameters to cfg.
func splitURL(url string, cfg *Config) (scheme string, urls []string, err error) {
	if url == "" {
		return "memory", nil, nil
	}
	name, rest, ok := strings.Cut(url, "://")
	kinds := schemes[name]
	if !ok || kinds[0] == "" {
		// The error does not show the name, which may be a part of a password.
		names := slices.AppendSeq(slices.Collect(maps.Keys(schemes)), maps.Keys(cfg.Schemes))
		slices.Sort(names)
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has no known scheme: want one of %s", strings.Join(names, ", "))
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
	case strings.Contains(vhost, "@"): // perhaps a part of a password, and what is before it is not the host
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has an @ after the first /: %s, also in a virtual host", urlcheck.Escapes)
	case scheme == "amqp" || scheme == "amqps":
		vhost = "/" + vhost
	case slash && vhost != "":
		return "", nil, fault.New(fault.Invalid, "the URL of the bus has a path after the host, which a %s:// URL cannot have: remove it", name)
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
			return "", nil, fault.New(fault.Invalid, "the URL of the bus has a user for a later host, but none for the first: add it; write a comma in a password as %%2C")
		}
		urls = append(urls, scheme+"://"+h+vhost)
	}
	return scheme, urls, nil
}

// older maps the older parameter names of oslo.messaging to the current names.
var older = map[string]string{
	"rabbit_use_ssl": "ssl", "kombu_ssl_ca_certs": "ssl_ca_file", "kombu_ssl_certfile": "ssl_cert_file", "kombu_ssl_keyfile": "ssl_key_file",
}

// readParameters writes the parameters of a URL to cfg. The parameter secure reports whether the scheme of the URL requires
// TLS.
func readParameters(query string, cfg *Config, secure bool) error {
	values, err := neturl.ParseQuery(query)
	if err != nil || strings.Contains(query, "@") { // perhaps a part of a password, which no error shows
		return fault.New(fault.Invalid, "the parameters of the bus's URL cannot be read: %s, also in the value of a parameter", urlcheck.Escapes)
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
			return fault.New(fault.Invalid, "parameter %s of the bus's URL is neither true nor false: use 1 or 0", given)
		case !on && (secure || cfg.TLS):
			return fault.New(fault.Invalid, "parameter %s of the bus's URL turns TLS off, but the scheme or the configuration turns it on: remove one of them", given)
		}
		cfg.TLS = on
	}
	return nil
}
