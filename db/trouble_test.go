package db_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestPrivate: what a database says is not for users, until it is translated.
func TestPrivate(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, things, func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'secret name')")
		_, cause := d.ExecContext(t.Context(), "INSERT INTO things (id, name) VALUES ('2', 'secret name')")
		err := db.Error(cause)
		if !fault.IsPrivate(err) || !errors.Is(err, fault.Conflict) || fault.UserMessage(err) != "internal error" {
			t.Errorf("%v: private %t, for users %q", err, fault.IsPrivate(err), fault.UserMessage(err))
		}
		update := db.Update{Table: "things", Key: db.Values{"id": "1"}, If: db.Values{"n": 77}, Set: db.Values{"n": 78}}
		for want, key := range map[fault.Code]string{fault.Conflict: "1", fault.NotFound: "none"} {
			update.Key["id"] = key
			err := db.UpdateIf(t.Context(), d, update)
			for _, word := range []string{"things", "id", "n is"} {
				if !errors.Is(err, want) || strings.Contains(fault.UserMessage(err), word+"=") || strings.Contains(fault.UserMessage(err), "things") {
					t.Errorf("%v, for users %q", err, fault.UserMessage(err))
				}
			}
		}
	})
}

// TestFullIsUnhealthy: a database that is full answers questions and takes nothing: it is not healthy until
// it takes something again.
func TestFullIsUnhealthy(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), db.Config{URL: url, MaxOpen: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		table, more, less := "CREATE TABLE boxes (id INTEGER, x VARCHAR(8000)) ENGINE=MEMORY", "", "DELETE FROM boxes"
		if d.DriverName() == "mysql" {
			exec(t, d, "SET SESSION max_heap_table_size = 262144")
		} else {
			table, more, less = "CREATE TABLE boxes (id INTEGER, x VARCHAR(8000))", "PRAGMA max_page_count = 50", "PRAGMA max_page_count = 5000"
		}
		exec(t, d, table)
		if more != "" {
			exec(t, d, more)
		}
		for i := 0; err == nil && i < 1000; i++ {
			_, err = d.ExecContext(t.Context(), "INSERT INTO boxes VALUES (?, ?)", i, strings.Repeat("x", 8000))
		}
		if err := db.Error(err); !errors.Is(err, fault.Exhausted) || !fault.IsPrivate(err) {
			t.Fatalf("full: %v, %v", fault.CodeOf(err), err)
		}
		for range 2 {
			if err := db.Health(t.Context(), d); !errors.Is(err, fault.Unavailable) {
				t.Errorf("full, and healthy: %v", err)
			}
		}
		exec(t, d, less)
		exec(t, d, "INSERT INTO boxes VALUES (-1, '')")
		if err := db.Health(t.Context(), d); err != nil {
			t.Errorf("it takes writes again: %v", err)
		}
	})
}

// TestRotatedPassword: a login that is refused makes the handle unhealthy, though connections
// that are open still answer.
func TestRotatedPassword(t *testing.T) {
	t.Parallel()
	server := dbtest.MySQL(t)
	admin := mustOpen(t, server)
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	user := "t" + strings.ToLower(rand.Text()[:12])
	exec(t, admin, fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY 'old'", user))
	t.Cleanup(func() {
		_, _ = admin.ExecContext(context.WithoutCancel(t.Context()), fmt.Sprintf("DROP USER '%s'@'%%'", user))
	}) // the server goes, too
	exec(t, admin, fmt.Sprintf("GRANT ALL ON %s.* TO '%s'@'%%'", strings.TrimPrefix(u.Path, "/"), user))
	u.User = url.UserPassword(user, "old")
	d := mustOpen(t, u.String())
	if err := db.Health(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	exec(t, admin, fmt.Sprintf("ALTER USER '%s'@'%%' IDENTIFIED BY 'new'", user))
	first, err := d.Connx(t.Context()) // the one that is open
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.ExecContext(t.Context(), "SELECT 1") // needs another one
	if err := db.Error(err); !errors.Is(err, fault.Unauthenticated) || !fault.IsPrivate(err) {
		t.Errorf("%v, %v", fault.CodeOf(err), err)
	}
	_ = first.Close()
	if err := db.Health(t.Context(), d); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the login is refused, and it is healthy: %v", err)
	}
}
