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
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/waittest"
)

// TestService: without Migrate, Start fails if the schema is missing; with Migrate, Start makes the schema.
// Stop closes the database.
func TestService(t *testing.T) {
	t.Parallel()
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.SQLite(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&db.Service{DB: d, Migrations: only(things)}).Start(t.Context()); fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "older than version") {
		t.Errorf("Start without a schema: %v, want Unavailable", err)
	}
	for _, migrate := range []bool{true, true, false} {
		p := &db.Service{DB: d, Migrations: only(things), Migrate: migrate}
		if err := p.Start(t.Context()); err != nil {
			t.Errorf("migrate %v: %v", migrate, err)
		}
		if err := p.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	p := &db.Service{DB: d, Migrations: only(things)}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Check(t.Context()); err == nil {
		t.Error("closed database is healthy")
	}
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		p := &db.Service{DB: d, Migrations: only(things)}
		if err := errors.Join(p.Start(t.Context()), p.Check(t.Context())); err != nil {
			t.Error(err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Check(ended); !errors.Is(err, fault.Unavailable) {
			t.Errorf("Check with a context that has ended: %v, want Unavailable", err)
		}
	})
}

// TestServiceWaits: New does not connect. Start fails with Unavailable while the database is down, and
// succeeds when it is up. A wrong login has another code, because waiting does not help.
func TestServiceWaits(t *testing.T) {
	t.Parallel()
	port := envtest.FreeAddr(t)
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
		p := &db.Service{DB: d, Migrations: only(things), Migrate: true}
		defer p.Stop(t.Context())
		return p.Start(t.Context())
	}
	begin := time.Now()
	if err := start("mysql://u:secret@" + port + "/x"); !errors.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "secret") || time.Since(begin) > 8*time.Second {
		t.Errorf("Start while the database is down: %v after %v, want Unavailable", err, time.Since(begin))
	}
	if err := start(u.String()); err != nil {
		t.Error(err)
	}
	u.User = url.UserPassword("unknown", "secret")
	if err := start(u.String()); !errors.Is(err, fault.Unauthenticated) || strings.Contains(err.Error(), "secret") {
		t.Errorf("Start with a wrong login: %v, want Unauthenticated", err)
	}
	for _, raw := range []string{"", "mysql://x", "postgres://u@h/x"} {
		if _, err := db.New(db.Config{URL: raw}); !errors.Is(err, fault.Invalid) {
			t.Errorf("New(%q): %v, want Invalid", raw, err)
		}
	}
}

// TestServiceSlowServer: Start waits more than 1 s for the answer of a server. This server answers that it rejects the
// client's host.
func TestServiceSlowServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // listening on loopback does not block
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				waittest.Spend(1500*time.Millisecond, "the slow answer of the server")
				_, _ = c.Write([]byte("\x10\x00\x00\x00\xff\x6a\x04no such host.")) // the error 1130 of MySQL's protocol
				_ = c.Close()
			}()
		}
	}()
	d, err := db.New(db.Config{URL: "mysql://u:secret@" + l.Addr().String() + "/x"})
	if err != nil {
		t.Fatal(err)
	}
	p := &db.Service{DB: d, Migrations: only(things)}
	defer p.Stop(t.Context())
	if err := p.Start(t.Context()); !errors.Is(err, fault.Unauthenticated) {
		t.Errorf("Start: %v (%v), want Unauthenticated", err, fault.CodeOf(err))
	}
}
