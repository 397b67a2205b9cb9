package db

import (
	"net/url"
	"time"

	"github.com/armature-go/armature/fault"
)

// Options are the operator's options for the database: the section [database] of the configuration file, in the form of package
// service/config. Their names are those of oslo.db.
type Options struct {
	Connection      string        `ini:"connection" secret:"true" deprecated:"sql_connection, sql.connection, DEFAULT.sql_connection" help:"mysql://user:password@host:port/name or sqlite:///path/file.db"`
	MaxPoolSize     int           `ini:"max_pool_size" default:"10" deprecated:"sql_max_pool_size, DEFAULT.sql_max_pool_size" min:"1" max:"10000" help:"connections to the database"`
	ResponseTimeout time.Duration `ini:"response_timeout" default:"20" min:"1s" help:"seconds without an answer after which statements fail, if the database does not answer a new connection either; long statements are not cut off"`
}

// Config returns the configuration for [New], without Logger and Observe.
func (o *Options) Config() Config {
	return Config{URL: o.Connection, MaxOpen: o.MaxPoolSize, ResponseTimeout: o.ResponseTimeout}
}

// Validate returns an error if the option connection is set and malformed. The error has the option's name in its Meta. Validate reads no file,
// because a command or a service that does not use the database may run on a machine without the files for TLS. So it does not check a URL that
// names such files; [New] does.
func (o *Options) Validate() error {
	if o.Connection == "" {
		return nil
	}
	if u, err := url.Parse(o.Connection); err == nil && (u.Query().Has("ssl_ca") || u.Query().Has("ssl_cert") || u.Query().Has("ssl_key")) {
		return nil
	}
	// New would log the warning about a connection without TLS, for each reading of the options and before the log has its format.
	_, _, err := parseURL(o.Connection)
	return fault.WithReason(err, "", map[string]string{"option": "connection"})
}
