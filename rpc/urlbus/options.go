package urlbus

import (
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// Options are an operator's options for the bus, in the form of package service/config: embed Options in the struct of options. The
// names are those of oslo.messaging. A component sets the default of control_exchange.
type Options struct {
	TransportURL    string        `ini:"transport_url" secret:"true" help:"message bus: rabbit://user:password@host:port[,user:password@host:port]/vhost, nats://user:password@host:port[,...], or watermill-amqp://user:password@host:port/vhost; with TLS amqps:// or tls://, or ?ssl=1"`
	ControlExchange string        `ini:"control_exchange" regex:"^[A-Za-z0-9_.-]{1,100}$" help:"first part of the names of all queues"`
	MaxMessage      int           `ini:"max_message_size" default:"4194304" min:"65536" help:"size of the largest message on the bus, in bytes; it must be the same for all services, and not above the broker's own max_message_size"`
	Rabbit          RabbitOptions `section:"oslo_messaging_rabbit"`
}

// RabbitOptions are the options of the broker's connections.
type RabbitOptions struct {
	QuorumQueue bool   `ini:"rabbit_quorum_queue" default:"false" help:"store casts in quorum queues; existing queues keep their type"`
	SSL         bool   `ini:"ssl" default:"false" protects:"true" deprecated:"rabbit_use_ssl" help:"connect to the bus with TLS, as with amqps://, tls:// and ?ssl=1; it also applies to NATS; the default port of RabbitMQ is then 5671"`
	SSLCAFile   string `ini:"ssl_ca_file" protects:"true" deprecated:"kombu_ssl_ca_certs" help:"authorities that are trusted for the certificates of the bus (default: the system's)"`
	SSLCertFile string `ini:"ssl_cert_file" protects:"true" deprecated:"kombu_ssl_certfile" help:"client certificate for the bus"`
	SSLKeyFile  string `ini:"ssl_key_file" protects:"true" deprecated:"kombu_ssl_keyfile" help:"private key of ssl_cert_file, with mode 0600, or 0640 if the file belongs to root"`
	SSLVersion  string `ini:"ssl_version" protects:"true" deprecated:"kombu_ssl_version" unsupported:"TLS is 1.2 or later: leave it out" help:"version of TLS for the bus"`
	SSLFIPS     bool   `ini:"ssl_enforce_fips_mode" default:"false" protects:"true" unsupported:"use a build for FIPS 140 with GODEBUG=fips140=only" help:"FIPS 140"`
}

// Config returns the configuration for [Open], without Schemes and Logger.
func (o *Options) Config() Config {
	r := o.Rabbit
	return Config{
		Exchange: o.ControlExchange, Quorum: r.QuorumQueue, MaxMessage: o.MaxMessage, TLS: r.SSL,
		TLSFiles: tlsfile.Client{CAFile: r.SSLCAFile, CertFile: r.SSLCertFile, KeyFile: r.SSLKeyFile},
	}
}

// Validate returns an error, with the option's name in its Meta, if transport_url is malformed. It reads no file: a command or a service
// that does not use the bus may run on a machine without the files for TLS. [Open] reads the files.
func (o *Options) Validate() error {
	url, cfg := o.TransportURL, o.Config()
	if name, _, _ := strings.Cut(url, "://"); strings.Contains(name, "-") { // a scheme of Config.Schemes
		_, url, _ = strings.Cut(url, "-")
	}
	cfg.Schemes = map[string]Opener{"watermill-amqp": nil} // for the error: the help of the option has this scheme, too
	_, _, err := splitURL(url, &cfg)
	if err == nil && !cfg.TLS && (cfg.TLSFiles != tlsfile.Client{}) && url != "" {
		err = errFilesWithoutTLS
	}
	return fault.WithReason(err, "", map[string]string{"option": "transport_url"})
}
