package db

import (
	"context"
	"io/fs"

	"github.com/jmoiron/sqlx"
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

// Start returns when the schema is as it should be. Errors: those of [Migrate] or [Check].
func (s *Service) Start(ctx context.Context) error {
	if s.Migrate {
		return Migrate(ctx, s.DB, s.Dir)
	}
	return Check(ctx, s.DB, s.Dir)
}

// Check is [Health].
func (s *Service) Check(ctx context.Context) error { return Health(ctx, s.DB) }

// Stop closes the database. It waits for queries that run.
func (s *Service) Stop(context.Context) error { return s.DB.Close() }
