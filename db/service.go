package db

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// Service makes a database a service.Part: the database is ready before the parts that use it
// start, and is closed after they have stopped. DB and Migrations are required.
type Service struct {
	// DB is a handle of [New]. Stop closes it.
	DB *sqlx.DB
	// Migrations has the sequences of the libraries, and last the component's, see [Migrate] and [Check].
	Migrations []Migrations
	// Migrate makes Start call [Migrate]. Default: Start calls [Check], which changes nothing.
	Migrate bool
	// Logger gets a WARN if the schema is newer than the program, and works with it. Default slog.Default().
	Logger *slog.Logger
}

// Start makes one attempt to connect, of at most 5 s, and then migrates or checks the schema. It may be called again after
// an error: package service does so on Unavailable. Errors: Unavailable if the database is down, or if its
// schema is missing or older than the program's, because "db sync" may be running; those of [Open]; those of
// [Migrate] or [Check].
func (s *Service) Start(ctx context.Context) error {
	shown := "the database"
	if o := engine.ObserverOf(s.DB.Driver()); o != nil {
		shown = o.Shown
	}
	if err := connectDatabase(ctx, s.DB, shown, -1); err != nil {
		return err
	}
	if s.Migrate {
		if err := Migrate(ctx, s.DB, s.Migrations...); err != nil {
			return err
		}
	}
	warning, err := Check(ctx, s.DB, s.Migrations...)
	if errors.Is(err, errOlder) {
		return fault.New(fault.Unavailable, "%w", err)
	}
	if warning != "" {
		cmp.Or(s.Logger, slog.Default()).WarnContext(ctx, warning)
	}
	return err
}

// Check returns the result of [Health] for the handle.
func (s *Service) Check(ctx context.Context) error { return Health(ctx, s.DB) }

// Stop closes the handle. It blocks until running queries have ended, without regard to the context. The error is that of
// [sql.DB.Close].
func (s *Service) Stop(context.Context) error { return s.DB.Close() }
