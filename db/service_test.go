package db_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestService: a part that may not migrate refuses a schema that is not there, and one that
// may makes it; when it is stopped the database is closed.
func TestService(t *testing.T) {
	t.Parallel()
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.SQLite(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&db.Service{DB: d, Dir: things}).Start(t.Context()); fault.CodeOf(err) != fault.Precondition {
		t.Errorf("without a schema: %v", err)
	}
	for _, migrate := range []bool{true, true, false} {
		p := &db.Service{DB: d, Dir: things, Migrate: migrate}
		if err := p.Start(t.Context()); err != nil {
			t.Errorf("migrate %v: %v", migrate, err)
		}
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	p := &db.Service{DB: d, Dir: things}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Check(t.Context()); err == nil {
		t.Error("it is closed, and healthy")
	}
	dbtest.Each(t, things, func(t *testing.T, d *sqlx.DB) {
		p := &db.Service{DB: d, Dir: things}
		if err := errors.Join(p.Start(t.Context()), p.Check(t.Context())); err != nil {
			t.Error(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Check(gone); !errors.Is(err, fault.Unavailable) {
			t.Errorf("who cannot wait for it: %v, want Unavailable", err)
		}
	})
}
