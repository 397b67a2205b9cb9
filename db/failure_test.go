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

// TestPrivate: users do not see a database's error, nor names of tables and columns.
func TestPrivate(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'secret name')")
		_, cause := d.ExecContext(t.Context(), "INSERT INTO things (id, name) VALUES ('2', 'secret name')")
		err := db.Error(cause)
		if !fault.IsPrivate(err) || !errors.Is(err, fault.Conflict) || fault.UserMessage(err) != "internal error" {
			t.Errorf("%v: private %t, message for users %q", err, fault.IsPrivate(err), fault.UserMessage(err))
		}
		update := db.Update{Table: "things", Key: db.Values{"id": "1"}, If: db.Values{"n": 77}, Set: db.Values{"n": 78}}
		for want, key := range map[fault.Code]string{fault.Conflict: "1", fault.NotFound: "none"} {
			update.Key["id"] = key
			err := db.UpdateIf(t.Context(), d, update)
			for _, word := range []string{"things", "id", "n is"} {
				if !errors.Is(err, want) || strings.Contains(fault.UserMessage(err), word+"=") || strings.Contains(fault.UserMessage(err), "things") {
					t.Errorf("%v, message for users %q; want code %v and no names", err, fault.UserMessage(err), want)
				}
			}
		}
	})
}

// TestFullIsUnhealthy: a full database answers queries and rejects writes. It is unhealthy until it accepts a
// write.
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
			t.Fatalf("write to a full database: %v, %v; want Exhausted and private", fault.CodeOf(err), err)
		}
		for range 2 {
			if err := db.Health(t.Context(), d); !errors.Is(err, fault.Unavailable) {
				t.Errorf("Health of a full database: %v, want Unavailable", err)
			}
		}
		exec(t, d, less)
		exec(t, d, "INSERT INTO boxes VALUES (-1, '')")
		if err := db.Health(t.Context(), d); err != nil {
			t.Errorf("Health after a write: %v", err)
		}
	})
}

// TestRotatedPassword: a rejected login makes the handle unhealthy, although open connections still answer.
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
	}) // an error does not matter: the server ends as well
	exec(t, admin, fmt.Sprintf("GRANT ALL ON %s.* TO '%s'@'%%'", strings.TrimPrefix(u.Path, "/"), user))
	u.User = url.UserPassword(user, "old")
	d := mustOpen(t, u.String())
	if err := db.Health(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	exec(t, admin, fmt.Sprintf("ALTER USER '%s'@'%%' IDENTIFIED BY 'new'", user))
	first, err := d.Connx(t.Context()) // the open connection
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.ExecContext(t.Context(), "SELECT 1") // needs a new connection
	if err := db.Error(err); !errors.Is(err, fault.Unauthenticated) || !fault.IsPrivate(err) {
		t.Errorf("a login with the old password: %v, %v; want Unauthenticated and private", fault.CodeOf(err), err)
	}
	_ = first.Close()
	if err := db.Health(t.Context(), d); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Health after a rejected login: %v, want Unavailable", err)
	}
}
