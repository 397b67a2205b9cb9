package db

import (
	"cmp"
	"database/sql/driver"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/fault"
)

// The drivers' names in sqlx. The name tells sqlx which form parameters have.
const (
	driverMySQL  = "mysql"
	driverSQLite = "sqlite3"
)

// target is a parsed URL.
type target struct {
	connector driver.Connector
	driver    string
	shown     string // the URL without the password, for messages
	memory    bool
	plain     string // the host, if it is another machine and its connections have no TLS
}

// setObserver makes the connector's statements report to o.
func (t *target) setObserver(o *observer) {
	switch c := t.connector.(type) {
	case *mysqlDB:
		c.observer = o
	case *sqliteDB:
		c.observer = o
	}
}

// wantURL is the end of errors about a URL.
const wantURL = `want mysql://user:password@host:port/database or sqlite:///absolute/file.db or sqlite://relative/file.db`

// parseURL parses a database URL. An error does not contain the URL: in a wrong URL
// the password may be anywhere.
func parseURL(raw string) (target, error) {
	if raw == "" {
		return target{}, fault.New(fault.Invalid, "the database URL is empty: %s", wantURL)
	}
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok || strings.ContainsAny(scheme, ":@/") {
		return target{}, fault.New(fault.Invalid, "database URL has no scheme: %s", wantURL)
	}
	// mysql+pymysql:// is SQLAlchemy's form. The files of Python services have it.
	kind, _, dialect := strings.Cut(scheme, "+")
	if kind != "mysql" && kind != "sqlite" || dialect && kind != "mysql" {
		return target{}, fault.New(fault.Invalid, "database URL has scheme %q: %s", scheme, wantURL)
	}
	if kind == "sqlite" {
		return parseSQLite(strings.TrimPrefix(raw, "sqlite://"))
	}
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" {
		return target{}, fault.New(fault.Invalid, "%s database URL is malformed; "+
			"special characters in the password must be percent-encoded, such as %%2F for /", scheme)
	}
	return parseMySQL(u)
}

// parseMySQL returns the target of a mysql URL.
func parseMySQL(u *url.URL) (target, error) {
	name := strings.TrimPrefix(u.Path, "/")
	switch {
	// A / or ? in the password that is not encoded makes a part of the password look like a path.
	case u.User == nil || u.User.Username() == "":
		return target{}, fault.New(fault.Invalid, "mysql database URL has no user: %s", wantURL)
	case u.Hostname() == "":
		return target{}, fault.New(fault.Invalid, "mysql database URL has no host: %s", wantURL)
	case name == "":
		return target{}, fault.New(fault.Invalid, "mysql database URL has no database name after the host: %s", wantURL)
	case strings.ContainsAny(name, "/@:"):
		return target{}, fault.New(fault.Invalid, "mysql database URL has a database name with a /, @ or : in it: %s", wantURL)
	}
	port := cmp.Or(u.Port(), "3306")
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return target{}, fault.New(fault.Invalid, "mysql database URL has port %.60s, want a number from 1 to 65535", port)
	}
	query := u.Query()
	delete(query, "charset") // SQLAlchemy's option; the charset is always utf8mb4
	secure, err := takeTLSOptions(u.Hostname(), query)
	if err != nil {
		return target{}, err
	}
	for name, v := range query {
		if _, err := mysql.ParseDSN("/?" + url.Values{name: v}.Encode()); err != nil {
			return target{}, fault.New(fault.Invalid, "option %s of the mysql database URL: %w", name, err)
		}
	}
	cfg, err := mysql.ParseDSN("/?" + query.Encode())
	if err != nil {
		return target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
	for name := range cfg.Params {
		return target{}, fault.New(fault.Invalid, "unknown option %.60q of the mysql database URL: set variables of the server on the server", name)
	}
	cfg.TLS = secure
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort(u.Hostname(), port)
	cfg.DBName = name
	if cfg.Timeout == 0 {
		cfg.Timeout = pingTimeout
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
		return target{}, err
	}
	cfg.Params = map[string]string{"time_zone": "'+00:00'"}
	// TRADITIONAL makes wrong data an error. Without it MySQL changes the data. The
	// other modes give quotes and || the meaning that they have on SQLite.
	cfg.Params["sql_mode"] = "'TRADITIONAL,ANSI_QUOTES,PIPES_AS_CONCAT'"
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
	out := target{connector: &mysqlDB{Connector: c}, driver: driverMySQL, shown: u.Redacted()}
	if secure == nil && !isLoopback(u.Hostname()) {
		out.plain = u.Hostname()
	}
	return out, nil
}

// parseSQLite returns the target of the path after sqlite://. The path is absolute if it begins with a slash,
// or with two slashes as in SQLAlchemy. Otherwise it is relative to the process's directory. It may be
// percent-encoded. A # is a part of the path, and so is a % without two digits after it.
func parseSQLite(rest string) (target, error) {
	path := strings.ReplaceAll(rest, "#", "%23")
	if strings.Contains(path, "?") {
		return target{}, fault.New(fault.Invalid, "sqlite database URL has no options: write a ? in the path as %%3F")
	}
	if decoded, err := url.PathUnescape(path); err == nil {
		path = decoded
	} else {
		path = rest
	}
	if strings.HasPrefix(path, "//") { // sqlite:////absolute/path
		path = path[1:]
	}
	memory := path == "/:memory:"
	switch {
	case path == "" || strings.HasSuffix(path, "/"):
		return target{}, fault.New(fault.Invalid, "sqlite database URL has no file: %s", wantURL)
	case strings.ContainsRune(path, 0):
		return target{}, fault.New(fault.Invalid, "sqlite database URL has a NUL in the path: %s", wantURL)
	}
	file := "file::memory:"
	if !memory {
		abs, err := filepath.Abs(path)
		if err != nil {
			return target{}, fault.New(fault.Invalid, "sqlite database URL: %w", err)
		}
		file, path = (&url.URL{Scheme: "file", OmitHost: true, Path: abs}).String(), abs
	}
	return target{connector: newSQLite(file), driver: driverSQLite, shown: (&url.URL{Scheme: "sqlite", Path: path}).String(), memory: memory}, nil
}
