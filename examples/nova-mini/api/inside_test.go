package api_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/membus"
	restapi "github.com/armature-go/armature/service/api"
)

// locked is a buffer for several goroutines.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// TestDatabaseStaysInside: an error of the database is a failure of the service. The client gets a general text and the
// request's id. The log has the cause with this id.
func TestDatabaseStaysInside(t *testing.T) {
	t.Parallel()
	server := dbtest.MySQL(t)
	admin, err := db.Open(t.Context(), db.Config{URL: server})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	if err := db.Migrate(t.Context(), admin, store.Migrations()...); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	name, user := strings.TrimPrefix(u.Path, "/"), "t"+strings.ToLower(rand.Text()[:12])
	run := func(format string, args ...any) {
		t.Helper()
		if _, err := admin.ExecContext(context.WithoutCancel(t.Context()), fmt.Sprintf(format, args...)); err != nil {
			t.Error(err)
		}
	}
	run("CREATE USER '%s'@'%%' IDENTIFIED BY 'old'", user)
	t.Cleanup(func() { run("DROP USER '%s'@'%%'", user) })
	run("GRANT ALL ON %s.* TO '%s'@'%%'", name, user)
	u.User = url.UserPassword(user, "old")

	create := `{"server": {"name": "a", "flavorRef": "1", "imageRef": "x"}}`
	for _, tt := range []struct {
		name, method, path, body string
		breakIt, mend            string // SQL statements that break and repair the database
		want                     int
	}{
		{"a right is lost", "POST", "/v2.1/servers", create, "REVOKE INSERT ON %[1]s.* FROM '%[2]s'@'%%'", "GRANT INSERT ON %[1]s.* TO '%[2]s'@'%%'", 503},
		{"a right is lost, reading", "GET", "/v2.1/servers", "", "REVOKE SELECT ON %[1]s.* FROM '%[2]s'@'%%'", "GRANT SELECT ON %[1]s.* TO '%[2]s'@'%%'", 503},
		{"the password was changed", "GET", "/v2.1/flavors", "", "ALTER USER '%[2]s'@'%%' IDENTIFIED BY 'new'", "ALTER USER '%[2]s'@'%%' IDENTIFIED BY 'old'", 503},
		{"a table is gone", "GET", "/v2.1/servers/detail", "", "RENAME TABLE %[1]s.servers TO %[1]s.gone", "RENAME TABLE %[1]s.gone TO %[1]s.servers", 500},
		{"a column is too short", "POST", "/v2.1/servers", create, "ALTER TABLE %[1]s.servers MODIFY project_id VARCHAR(1)", "ALTER TABLE %[1]s.servers MODIFY project_id VARCHAR(255)", 500},
	} {
		d, err := db.Open(t.Context(), db.Config{URL: u.String(), MaxOpen: 2})
		if err != nil {
			t.Fatal(err)
		}
		d.SetMaxIdleConns(0) // the request opens a new connection, which sees the change
		out := &locked{}
		fine := func(context.Context) error { return nil }
		bus := membus.New()
		defer bus.Close()
		client := rpc.NewClient(bus, rpc.ClientConfig{})
		defer client.Close()
		h := handler(t, api.Config{Store: store.New(d), Client: client, Bus: fine, Logger: slog.New(reqctx.LogHandler(slog.NewTextHandler(out, nil)))}, restapi.Config{})
		run(tt.breakIt, name, user)
		r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, strings.NewReader(tt.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		_ = d.Close()
		run(tt.mend, name, user)
		body, id := w.Body.String(), w.Header().Get("X-Compute-Request-Id")
		if w.Code != tt.want || !strings.Contains(body, id) || id == "" {
			t.Errorf("%s: %d %s, want %d", tt.name, w.Code, body, tt.want)
		}
		for _, word := range []string{user, "Error 1", "SQL", "servers'", "project_id", "127.0.0.1", "column"} {
			if strings.Contains(body, word) {
				t.Errorf("%s: the reply has %q: %s", tt.name, word, body)
			}
		}
		if !strings.Contains(out.String(), "request failed") || !strings.Contains(out.String(), id) {
			t.Errorf("%s: the log lacks the cause, or the id %s:\n%s", tt.name, id, out)
		}
	}
}

// TestTexts: on both databases, a request with a text that is too long for its column is refused, and long texts of faults are cut.
func TestTexts(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		s, bus := store.NewLimited(d, store.Limits{store.Metadata: 128}), membus.New()
		defer bus.Close()
		calls := rpc.NewClient(bus, rpc.ClientConfig{Logger: slog.New(slog.DiscardHandler)})
		defer calls.Close()
		fine := func(context.Context) error { return nil }
		h := checked(t, handler(t, api.Config{Store: s, Client: calls, Bus: fine, Logger: slog.New(slog.DiscardHandler)}, restapi.Config{}))
		items := func(n int, value string) string {
			var out []string
			for i := range n {
				out = append(out, fmt.Sprintf(`"k%d": "%s"`, i, value))
			}
			return `, "metadata": {` + strings.Join(out, ", ") + "}"
		}
		var id string
		for _, tt := range []struct {
			name, more string
			want       int
			says       string
		}{
			{"a", items(128, strings.Repeat("x", 255)), 202, ""},
			{"a", items(129, "x"), 403, "Maximum number of metadata items exceeds 128"},
			{"a", items(1, strings.Repeat("x", 256)), 400, "is too long"},
			{"a", items(100, strings.Repeat("😀", 255)), 400, "Invalid metadata"},
			{strings.Repeat("😀", 255), "", 202, ""},
			{strings.Repeat("x", 256), "", 400, "is too long"},
			{`a\ud800`, "", 400, "surrogate"},
			{"a", items(1, `\udfff`), 400, "surrogate"},
			{"a\xff", "", 400, "UTF-8"},
		} {
			body := `{"server": {"name": "` + tt.name + `", "flavorRef": "1", "imageRef": "x"` + tt.more + `}}`
			status, _, message := ask(t, h, "POST", "/v2.1/servers", body)
			if status != tt.want || !strings.Contains(message, tt.says) {
				t.Errorf("name %.20q, %.60s: %d %.200s, want %d with %s", tt.name, tt.more, status, message, tt.want, tt.says)
			}
		}
		if err := d.GetContext(t.Context(), &id, "SELECT id FROM servers WHERE name = 'a'"); err != nil {
			t.Fatal(err)
		}
		err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
			return s.FailCreate(ctx, tx, id, strings.Repeat("ü\xff", 50_000), strings.Repeat("ü\xff", 50_000))
		})
		if err != nil {
			t.Error(err)
		}
		srv, err := s.Server(t.Context(), id)
		if err != nil || len(srv.FaultDetails) > 8<<10 || !strings.HasPrefix(srv.FaultMessage, "ü\uFFFDü") {
			t.Errorf("%v, %.20q, %d bytes", err, srv.FaultMessage, len(srv.FaultDetails))
		}
	})
}

// TestRequired: Register panics if a required field of the config is not set. Otherwise the first request would panic.
func TestRequired(t *testing.T) {
	t.Parallel()
	bus := membus.New()
	defer bus.Close()
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	defer client.Close()
	fine := func(context.Context) error { return nil }
	whole := api.Config{Store: new(store.Store), Client: client, Bus: fine, Logger: slog.New(slog.DiscardHandler)}
	for field, remove := range map[string]func(*api.Config){
		"": func(*api.Config) {}, "Store": func(c *api.Config) { c.Store = nil }, "Client": func(c *api.Config) { c.Client = nil },
		"Bus": func(c *api.Config) { c.Bus = nil },
	} {
		cfg := whole
		remove(&cfg)
		func() {
			defer func() {
				if got, _ := recover().(string); (field == "") != (got == "") || !strings.Contains(got, field) {
					t.Errorf("without %q Register panics with %q", field, got)
				}
			}()
			handler(t, cfg, restapi.Config{})
		}()
	}
}
