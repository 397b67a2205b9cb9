package db

import "github.com/armature-go/armature/fault"

// Options are the database's options of an operator, the section [database], in the form of package service/config. Names are those of
// oslo.db.
type Options struct {
	Connection  string `ini:"connection" secret:"true" deprecated:"sql_connection, sql.connection, DEFAULT.sql_connection" help:"mysql://user:password@host:port/name or sqlite:///path/file.db"`
	MaxPoolSize int    `ini:"max_pool_size" default:"10" deprecated:"sql_max_pool_size, DEFAULT.sql_max_pool_size" min:"1" max:"10000" help:"connections to the database"`
}

// Config returns the configuration for [New], without Logger and Observe.
func (o *Options) Config() Config { return Config{URL: o.Connection, MaxOpen: o.MaxPoolSize} }

// Validate returns the error of [New] for a connection that is set, with the option's name in its Meta. It does not connect.
func (o *Options) Validate() error {
	if o.Connection == "" {
		return nil
	}
	d, err := New(o.Config())
	if err != nil {
		return fault.WithReason(err, "", map[string]string{"option": "connection"})
	}
	return d.Close()
}
