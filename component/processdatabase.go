package component

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// needsDatabase reports whether a process needs the database.
func needsDatabase[O any](c *Component[O], name string, services []Service[O]) bool {
	return c.Migrations != nil && (name == AllInOne || slices.ContainsFunc(services, func(s Service[O]) bool { return !s.NoDatabase }))
}

// embeddedDatabase returns the URL and the file of the SQLite database that a process with all services uses by default.
func embeddedDatabase(file, statePath string) (connection, path string, err error) {
	path, err = filepath.Abs(filepath.Join(statePath, file))
	return (&url.URL{Scheme: "sqlite", Path: path}).String(), path, err
}

func (p *Process[O]) openDatabase(url string) (err error) {
	cfg := p.base.Database.Config()
	embedded := ""
	if cfg.URL = url; url == "" {
		if p.Name != AllInOne {
			return errNoDatabase
		}
		if cfg.URL, embedded, err = embeddedDatabase(p.c.databaseFile(), p.base.StatePath); err != nil {
			return err
		}
	}
	cfg.Observe, cfg.Logger = p.tell.database.Observe, p.Log
	d, err := db.New(cfg)
	if err != nil {
		return err
	}
	p.close = append(p.close, d.Close) // the App closes the database as well, but only if the App starts
	p.DB = d
	p.Members = membership.New(membership.Config{DB: d, DownAfter: p.base.ServiceDownTime})
	p.Operations = operation.NewStore(d)
	p.tell.addDatabase(p.c.Name, d, p.Members, p.Operations)
	p.addPart(phaseDatabase, "database", p.read.label("database.connection"),
		&databasePart{Service: db.Service{DB: d, Migrations: p.c.migrations(), Migrate: p.Name == AllInOne, Logger: p.Log}, explain: p.read.nameSync})
	p.probes = append(p.probes, probe{"database.connection", func(ctx context.Context) error {
		if _, err := os.Stat(embedded); embedded != "" && (p.base.StatePath == "" || errors.Is(err, fs.ErrNotExist)) {
			return nil // the start makes the database
		}
		asked := cfg
		asked.Logger = quiet // the handle of the process has logged its warnings
		one, err := db.Open(ctx, asked)
		if err != nil {
			return err
		}
		_, err = db.Check(ctx, one, p.c.migrations()...)
		if p.Name == AllInOne && errors.Is(err, errSchemaOlder) {
			err = nil // the start migrates the schema
		}
		return errors.Join(p.read.nameSync(err), one.Close())
	}})
	return nil
}

// databasePart is a [db.Service] whose Start names the command that upgrades an older schema.
type databasePart struct {
	db.Service

	explain func(error) error
}

// Start implements service.Part.
func (d *databasePart) Start(ctx context.Context) error { return d.explain(d.Service.Start(ctx)) }

// errNoDatabase is the error of a process that needs a database.
var errNoDatabase = errors.New("is not set; use mysql://user:password@host:port/name")

// needDatabase panics in a process without a database.
func (p *Process[O]) needDatabase(method string) {
	if p.DB == nil {
		panic("component: " + method + ": the service " + p.Name + " has no database: remove NoDatabase, or set Migrations of the component")
	}
}
