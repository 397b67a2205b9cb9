package db

import (
	"database/sql/driver"
	"net"
	"net/url"
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

const wantURL = `want mysql://user:password@host:port/database or sqlite:///path/file.db`

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
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" {
		return target{}, fault.New(fault.Invalid, "%s database URL is malformed; "+
			"special characters in the password must be percent-encoded, such as %%2F for /", scheme)
	}
	if scheme == "sqlite" {
		return parseSQLite(u)
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
	for name, v := range query {
		if _, err := mysql.ParseDSN("/?" + url.Values{name: v}.Encode()); err != nil {
			return target{}, fault.New(fault.Invalid, "option %s of the mysql database URL: %w", name, err)
		}
	}
	cfg, err := mysql.ParseDSN("/?" + query.Encode())
	if err != nil {
		return target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
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
	if cfg.Params == nil {
		cfg.Params = make(map[string]string, 2)
	}
	cfg.Params["time_zone"] = "'+00:00'"
	// TRADITIONAL: wrong data is an error instead of being bent. The others
	// read quotes and || as SQLite does.
	cfg.Params["sql_mode"] = "'TRADITIONAL,ANSI_QUOTES,PIPES_AS_CONCAT'"
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return target{}, fault.New(fault.Invalid, "options of the mysql database URL: %w", err)
	}
	return target{connector: &mysqlDB{Connector: c}, driver: driverMySQL, shown: u.Redacted()}, nil
}

func parseSQLite(u *url.URL) (target, error) {
	switch {
	case u.Host != "" || u.User != nil:
		return target{}, fault.New(fault.Invalid, "sqlite database URL must have an absolute path after three slashes: %s", wantURL)
	case u.Path == "" || strings.HasSuffix(u.Path, "/"):
		return target{}, fault.New(fault.Invalid, "sqlite database URL names no file: %s", wantURL)
	case u.RawQuery != "":
		return target{}, fault.New(fault.Invalid, "sqlite database URL takes no options")
	}
	t := target{driver: driverSQLite, shown: u.String(), memory: u.Path == "/:memory:"}
	file := (&url.URL{Scheme: "file", OmitHost: true, Path: u.Path}).String()
	if t.memory {
		file = "file::memory:"
	}
	t.connector = newSQLite(file)
	return t, nil
}
