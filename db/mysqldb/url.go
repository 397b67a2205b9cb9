package mysqldb

import (
	"cmp"
	"database/sql/driver"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
)

// parseURL returns the target of a URL.
func parseURL(raw string) (engine.Target, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" {
		scheme, _, _ := strings.Cut(raw, "://")
		return engine.Target{}, fault.New(fault.Invalid, "%s database URL is malformed: %s", scheme, urlcheck.Escapes)
	}
	return parseTarget(u)
}

// parseTarget returns the target of a parsed URL.
func parseTarget(u *url.URL) (engine.Target, error) {
	name := strings.TrimPrefix(u.Path, "/")
	switch {
	// A / or ? in the password that is not encoded makes a part of the password look like a path.
	case u.User == nil || u.User.Username() == "":
		return engine.Target{}, fault.New(fault.Invalid, "mysql database URL has no user: %s; %s", engine.WantURL, urlcheck.Escapes)
	case u.Hostname() == "":
		return engine.Target{}, fault.New(fault.Invalid, "mysql database URL has no host: %s", engine.WantURL)
	case name == "":
		return engine.Target{}, fault.New(fault.Invalid, "mysql database URL has no database name after the host: %s", engine.WantURL)
	case strings.ContainsAny(name, "/@:"):
		return engine.Target{}, fault.New(fault.Invalid, "mysql database URL has a database name with a /, @ or : in it: %s; %s", engine.WantURL, urlcheck.Escapes)
	}
	if err := urlcheck.CheckPort(u); err != nil {
		return engine.Target{}, fault.New(fault.Invalid, "mysql database URL: %w", err)
	}
	port := cmp.Or(u.Port(), "3306")
	query := u.Query()
	delete(query, "charset") // SQLAlchemy's option; the charset is always utf8mb4
	secure, err := takeTLSOptions(u.Hostname(), query)
	if err != nil {
		return engine.Target{}, err
	}
	for name, v := range query {
		if _, err := mysql.ParseDSN("/?" + url.Values{name: v}.Encode()); err != nil {
			return engine.Target{}, fault.New(fault.Invalid, "option %s of the mysql database URL: %w", name, err)
		}
	}
	cfg, err := mysql.ParseDSN("/?" + query.Encode())
	if err != nil {
		return engine.Target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
	for name := range cfg.Params {
		return engine.Target{}, fault.New(fault.Invalid, "unknown option %.60q of the mysql database URL: set variables of the server on the server", name)
	}
	cfg.TLS = secure
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort(u.Hostname(), port)
	cfg.DBName = name
	if cfg.Timeout == 0 {
		cfg.Timeout = engine.DialTimeout
	}
	cfg.Logger = new(mysql.NopLogger) // the driver returns each error that it logs

	// Settings that correctness needs. They override the options.
	cfg.ParseTime, cfg.Loc = true, time.UTC
	cfg.ClientFoundRows = true   // for compare-and-swap
	cfg.InterpolateParams = true // one round trip for each statement instead of three
	cfg.MultiStatements = false
	cfg.Collation = "utf8mb4_bin" // of texts in statements; Migrate sets the collation of tables
	cfg.AllowAllFiles = false
	if err := cfg.Apply(mysql.TimeTruncate(time.Microsecond)); err != nil {
		return engine.Target{}, err
	}
	cfg.Params = map[string]string{"time_zone": "'+00:00'"}
	// TRADITIONAL makes wrong data an error. Without it MySQL changes the data. The
	// other modes give quotes and || the meaning that they have on SQLite.
	cfg.Params["sql_mode"] = "'TRADITIONAL,ANSI_QUOTES,PIPES_AS_CONCAT'"
	m, err := newDB(cfg, cfg.Timeout)
	if err != nil {
		return engine.Target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
	out := engine.Target{Shown: u.Redacted(), Addr: cfg.Addr, Connector: func(o *engine.Observer) driver.Connector {
		m.observer = o
		return m
	}}
	if secure == nil && !isLoopback(u.Hostname()) {
		out.Plain = u.Hostname()
	}
	return out, nil
}
