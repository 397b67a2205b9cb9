package db_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

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
	if err := (&db.Service{DB: d, Dir: things}).Start(t.Context()); fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "run db sync") {
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

// TestServiceWaits: New connects to nothing; Start says Unavailable while the database is away, and
// works when it is there; a login that is refused is another error, which no wait mends.
func TestServiceWaits(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a port on which nothing listens
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().String()
	_ = l.Close()
	u, err := url.Parse(dbtest.MySQL(t))
	if err != nil {
		t.Fatal(err)
	}
	start := func(raw string) error {
		t.Helper()
		d, err := db.New(db.Config{URL: raw})
		if err != nil {
			t.Fatal(err)
		}
		p := &db.Service{DB: d, Dir: things, Migrate: true}
		defer p.Stop(t.Context())
		return p.Start(t.Context())
	}
	begin := time.Now()
	if err := start("mysql://u:secret@" + port + "/x"); !errors.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "secret") || time.Since(begin) > 8*time.Second {
		t.Errorf("while it is away: %v after %v", err, time.Since(begin))
	}
	if err := start(u.String()); err != nil {
		t.Error(err)
	}
	u.User = url.UserPassword("nobody", "secret")
	if err := start(u.String()); !errors.Is(err, fault.Unauthenticated) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a login that is refused: %v", err)
	}
	for _, raw := range []string{"", "mysql://x", "postgres://u@h/x"} {
		if _, err := db.New(db.Config{URL: raw}); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}
