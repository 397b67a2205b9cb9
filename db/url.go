package db

import (
	"database/sql/driver"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/fault"
)

// The drivers' names in sqlx, which knows them and the kind of their parameters.
const (
	driverMySQL  = "mysql"
	driverSQLite = "sqlite3"
)

// target is what a URL says.
type target struct {
	connector driver.Connector
	driver    string
	shown     string // for messages: the URL without the password
	memory    bool
	plain     string // another machine, to which the connections have no TLS
}

// watch has every statement seen.
func (t *target) watch(w *watch) {
	switch c := t.connector.(type) {
	case *mysqlDB:
		c.watch = w
	case *sqliteDB:
		c.watch = w
	}
}

const wantURL = `want mysql://user:password@host:port/database or sqlite:///absolute/file.db or sqlite://relative/file.db`

// parse never repeats the URL in an error: in one that is wrong, the password
// may stand anywhere.
func parse(raw string) (target, error) {
	if raw == "" {
		return target{}, fault.New(fault.Invalid, "no database URL: %s", wantURL)
	}
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok || strings.ContainsAny(scheme, ":@/") {
		return target{}, fault.New(fault.Invalid, "database URL has no scheme: %s", wantURL)
	}
	// SQLAlchemy's form, in which the files of Python's services have it.
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

func parseMySQL(u *url.URL) (target, error) {
	name := strings.TrimPrefix(u.Path, "/")
	switch {
	// With an unencoded / or ? in the password, a part of it looks like a path.
	case u.User == nil || u.User.Username() == "":
		return target{}, fault.New(fault.Invalid, "mysql database URL has no user: %s", wantURL)
	case u.Hostname() == "":
		return target{}, fault.New(fault.Invalid, "mysql database URL has no host: %s", wantURL)
	case name == "":
		return target{}, fault.New(fault.Invalid, "mysql database URL has no database name after the host: %s", wantURL)
	case strings.ContainsAny(name, "/@:"):
		return target{}, fault.New(fault.Invalid, "mysql database URL has a database name with a /, @ or : in it: %s", wantURL)
	}
	port := u.Port()
	if port == "" {
		port = "3306"
	}
	query := u.Query()
	delete(query, "charset") // it is utf8mb4, whatever that says
	secure, err := mysqlTLS(u.Hostname(), query)
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
		return target{}, fault.New(fault.Invalid, "unknown option %.60q of the mysql database URL; variables of the server are set on the server", name)
	}
	cfg.TLS = secure
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort(u.Hostname(), port)
	cfg.DBName = name
	if cfg.Timeout == 0 {
		cfg.Timeout = pingTimeout
	}
	cfg.Logger = new(mysql.NopLogger) // what it logs, it returns, too

	// What correctness needs, whatever the options say.
	cfg.ParseTime, cfg.Loc = true, time.UTC
	cfg.ClientFoundRows = true   // for compare-and-swap
	cfg.InterpolateParams = true // one round trip a statement instead of three
	cfg.MultiStatements = false
	cfg.Collation = "utf8mb4_bin" // of texts in statements; Migrate sees to the tables
	cfg.AllowAllFiles = false
	if err := cfg.Apply(mysql.TimeTruncate(time.Microsecond)); err != nil {
		return target{}, err
	}
	cfg.Params = map[string]string{"time_zone": "'+00:00'"}
	// TRADITIONAL: wrong data is an error instead of being bent. The others
	// read quotes and || as SQLite does.
	cfg.Params["sql_mode"] = "'TRADITIONAL,ANSI_QUOTES,PIPES_AS_CONCAT'"
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
	out := target{connector: &mysqlDB{Connector: c}, driver: driverMySQL, shown: u.Redacted()}
	if secure == nil && !loopback(u.Hostname()) {
		out.plain = u.Hostname()
	}
	return out, nil
}

// parseSQLite reads what follows sqlite://: a path, absolute if it begins with a slash, or with two
// as in SQLAlchemy, else relative to the directory of the process. It may be percent-encoded, and
// need not be: a # is a part of it, and so is a % without two digits after it.
func parseSQLite(rest string) (target, error) {
	path := strings.ReplaceAll(rest, "#", "%23")
	if strings.Contains(path, "?") {
		return target{}, fault.New(fault.Invalid, "sqlite database URL takes no options; a ? in the path is %%3F")
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
		return target{}, fault.New(fault.Invalid, "sqlite database URL names no file: %s", wantURL)
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
