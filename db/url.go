package db

import (
	"strings"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// engineNames maps the scheme of a URL to the package below db that opens the database.
var engineNames = map[string]string{"mysql": "mysqldb", "sqlite": "sqlitedb"}

// parseURL parses a database URL. An error does not contain the URL: in a wrong URL
// the password may be anywhere.
func parseURL(raw string) (*engine.Engine, engine.Target, error) {
	if raw == "" {
		return nil, engine.Target{}, fault.New(fault.Invalid, "the database URL is empty: %s", engine.WantURL)
	}
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok || strings.ContainsAny(scheme, ":@/") {
		return nil, engine.Target{}, fault.New(fault.Invalid, "database URL has no scheme: %s", engine.WantURL)
	}
	// mysql+pymysql:// is SQLAlchemy's form. The configuration files of Python services use it.
	kind, _, dialect := strings.Cut(scheme, "+")
	name := engineNames[kind]
	if name == "" || dialect && kind != "mysql" {
		return nil, engine.Target{}, fault.New(fault.Invalid, "database URL has scheme %q: %s", scheme, engine.WantURL)
	}
	e := engine.Find(kind)
	if e == nil {
		return nil, engine.Target{}, fault.New(fault.Invalid,
			`database URL has scheme %q, but this program does not link that database: add import _ "github.com/armature-go/armature/db/%s" to the program`, scheme, name)
	}
	t, err := e.Parse(raw)
	return e, t, err
}
