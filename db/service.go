package db

import (
	"context"
	"errors"
	"io/fs"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// Service is a database as a part of package service: it is there before what uses it, and is
// closed after. DB and Dir are required.
type Service struct {
	// DB is closed by Stop.
	DB *sqlx.DB
	// Dir has the migrations.
	Dir fs.FS
	// Migrate makes Start do as [Migrate]; otherwise it only asks [Check] whether the
	// schema is the one that Dir makes.
	Migrate bool
}

// Start makes one attempt to connect, and returns when the schema is as it should be. It may be
// called again after an error. Errors: Unavailable if the database is away, or its schema is
// missing or older than Dir's, as "db sync" may be running; those of [Open], and those of
// [Migrate] or [Check].
func (s *Service) Start(ctx context.Context) error {
	shown := "the database"
	if w, ok := s.DB.Driver().(*watchedDriver); ok {
		shown = w.watch.shown
	}
	if err := connect(ctx, s.DB, shown, -1); err != nil {
		return err
	}
	if s.Migrate {
		return Migrate(ctx, s.DB, s.Dir)
	}
	err := Check(ctx, s.DB, s.Dir)
	if errors.Is(err, errOlder) {
		return fault.New(fault.Unavailable, "%w", err)
	}
	return err
}

// Check is [Health].
func (s *Service) Check(ctx context.Context) error { return Health(ctx, s.DB) }

// Stop closes the database. It waits for queries that run.
func (s *Service) Stop(context.Context) error { return s.DB.Close() }
