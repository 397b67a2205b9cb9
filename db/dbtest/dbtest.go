// Package dbtest gives a test a new, migrated database, once on SQLite and once on
// MySQL or MariaDB, so that store code is tested on both.
//
//	func TestStore(t *testing.T) {
//		t.Parallel()
//		dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
//			...
//		})
//	}
//
// The URL of the MySQL server is in the environment variable ARMATURE_TEST_MYSQL_URL. In this project `make test` sets it. In another
// project, testenv.Main in TestMain starts a server and sets the variable:
//
//	func TestMain(m *testing.M) { testenv.Main(m, testenv.MariaDB) }
//
// Without the variable, tests that need the server are skipped. If CI is set, they fail instead.
package dbtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	_ "github.com/armature-go/armature/db/mysqldb"  // both databases
	_ "github.com/armature-go/armature/db/sqlitedb" // both databases
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// Each runs f in two parallel subtests, "sqlite" and "mysql". Each subtest has its own
// database, with the migrations applied. Without migrations the database is empty. The database is closed and removed
// when the subtest ends.
func Each(t *testing.T, migrations []db.Migrations, f func(t *testing.T, d *sqlx.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		runMigrated(t, migratedSQLite(t, migrations), migrations, f)
	})
	t.Run("mysql", func(t *testing.T) {
		t.Parallel()
		runMigrated(t, migratedMySQL(t, migrations), migrations, f)
	})
}

// EachInBubble works like [Each], for tests with timers. The subtest "sqlite" runs in a bubble of testing/synctest, so that its waits take no
// time. SQLite uses the clock of the process, and so the fake clock of the bubble. The subtest "mysql" runs in real time, because the
// clock of a server cannot be faked, and a wait for its socket does not block a bubble durably. In a bubble f must
// not call t.Run or t.Parallel, and all goroutines that f starts must end with the test. During a loop without a wait the fake clock
// stands still.
func EachInBubble(t *testing.T, migrations []db.Migrations, f func(t *testing.T, d *sqlx.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		rawURL := migratedSQLite(t, migrations)
		synctest.Test(t, func(t *testing.T) { runMigrated(t, rawURL, migrations, f) })
	})
	t.Run("mysql", func(t *testing.T) {
		t.Parallel()
		runMigrated(t, migratedMySQL(t, migrations), migrations, f)
	})
}

// runMigrated opens the database of a subtest and runs f.
func runMigrated(t *testing.T, rawURL string, migrations []db.Migrations, f func(t *testing.T, d *sqlx.DB)) {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: rawURL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close the database: %v", err)
		}
	})
	if len(migrations) > 0 {
		if err := db.Migrate(t.Context(), d, migrations...); err != nil {
			t.Fatal(err)
		}
	}
	f(t, d)
}

// EachURL works like [Each], for tests that open the database themselves, for example in
// another process. f gets the URL of an empty database.
func EachURL(t *testing.T, f func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		f(t, SQLite(t))
	})
	t.Run("mysql", func(t *testing.T) {
		t.Parallel()
		f(t, MySQL(t))
	})
}

// SQLite returns the URL of a file that does not exist yet, in a directory that
// is removed when the test ends.
func SQLite(t testing.TB) string {
	t.Helper()
	return (&url.URL{Scheme: "sqlite", Path: filepath.ToSlash(filepath.Join(t.TempDir(), "test.db"))}).String()
}

// migrated has the content of a migrated SQLite file for each list of migrations that a test has used. The key comes from
// keyOf. With the race detector, many migrations take almost a second. So each list is applied once, and later tests get
// a copy of the file.
var migrated = struct {
	sync.Mutex
	files map[string][]byte
}{files: map[string][]byte{}}

// migratedSQLite returns the URL of a new file to which the migrations were applied.
func migratedSQLite(t *testing.T, migrations []db.Migrations) string {
	t.Helper()
	rawURL := SQLite(t)
	if len(migrations) == 0 {
		return rawURL
	}
	migrated.Lock()
	defer migrated.Unlock()
	key := keyOf(t, migrations)
	content, ok := migrated.files[key]
	if !ok {
		content = migrateFile(t, SQLite(t), migrations)
		migrated.files[key] = content
	}
	if err := os.WriteFile(pathOf(t, rawURL), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return rawURL
}

// copied has the tables and rows of a migrated MySQL database for each list of migrations that a test has used, as migrated has files. A server
// needs three times as long for the migrations as for their result.
var copied = struct {
	sync.Mutex
	scripts map[string][]statement
}{scripts: map[string][]statement{}}

// statement is a statement with its arguments.
type statement struct {
	query string
	args  []any
}

// migratedMySQL returns the URL of a new database to which the migrations were applied.
func migratedMySQL(t *testing.T, migrations []db.Migrations) string {
	t.Helper()
	rawURL := MySQL(t)
	if len(migrations) == 0 {
		return rawURL
	}
	key := keyOf(t, migrations)
	copied.Lock()
	script, ok := copied.scripts[key]
	if !ok {
		defer copied.Unlock() // other tests wait for the script
		copied.scripts[key] = migrateMySQL(t, rawURL, migrations)
		return rawURL
	}
	copied.Unlock()
	d := openMySQL(t, rawURL)
	defer func() { _ = d.Close() }()
	for _, s := range script {
		if _, err := d.ExecContext(t.Context(), s.query, s.args...); err != nil {
			t.Fatalf("%s: %v", s.query, err)
		}
	}
	return rawURL
}

// openMySQL returns a handle with one connection, without checks of foreign keys.
func openMySQL(t *testing.T, rawURL string) *sql.DB {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	cfg := mysqlConfig(u)
	cfg.DBName = strings.TrimPrefix(u.Path, "/")
	cfg.Params = map[string]string{"foreign_key_checks": "0", "sql_mode": "''"}
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := sql.OpenDB(c)
	d.SetMaxOpenConns(1)
	return d
}

// migrateMySQL applies migrations to an empty MySQL database, and returns the statements that make a copy of this database.
func migrateMySQL(t *testing.T, rawURL string, migrations []db.Migrations) (out []statement) {
	t.Helper()
	m, err := db.Open(t.Context(), db.Config{URL: rawURL})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Migrate(t.Context(), m, migrations...), m.Close()); err != nil {
		t.Fatal(err)
	}
	d := sqlx.NewDb(openMySQL(t, rawURL), "mysql")
	defer func() { _ = d.Close() }()
	var tables []struct{ Name, Kind string }
	if err := d.SelectContext(t.Context(), &tables, `SELECT table_name AS "name", table_type AS "kind" FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_type, table_name`); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables { // the tables come before the views
		made := readRows(t, d, "SHOW CREATE TABLE `"+table.Name+"`")[0]
		text := string(made[1].([]byte))
		if table.Kind == "VIEW" {
			var name string
			if err := d.GetContext(t.Context(), &name, "SELECT DATABASE()"); err != nil {
				t.Fatal(err)
			}
			text = strings.ReplaceAll(text, "`"+name+"`.", "")
		}
		out = append(out, statement{query: text})
		if table.Kind == "VIEW" {
			continue
		}
		for _, row := range readRows(t, d, "SELECT * FROM `"+table.Name+"`") {
			out = append(out, statement{"INSERT INTO `" + table.Name + "` VALUES (?" + strings.Repeat(", ?", len(row)-1) + ")", row})
		}
	}
	return out
}

// readRows returns the rows of a query.
func readRows(t *testing.T, d *sqlx.DB, text string) (out [][]any) {
	t.Helper()
	rows, err := d.QueryxContext(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		row, err := rows.SliceScan()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// keyOf returns a checksum of the names and the content of migrations.
func keyOf(t *testing.T, migrations []db.Migrations) string {
	t.Helper()
	sum := sha256.New()
	for _, m := range migrations {
		_, _ = fmt.Fprintf(sum, "%q\n", m.Name)
		err := fs.WalkDir(m.Files, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			raw, err := fs.ReadFile(m.Files, path)
			_, _ = fmt.Fprintf(sum, "%q %q\n", path, raw)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return string(sum.Sum(nil))
}

// migrateFile applies migrations to a new SQLite file, and returns its content.
func migrateFile(t *testing.T, rawURL string, migrations []db.Migrations) []byte {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: rawURL})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Migrate(t.Context(), d, migrations...), d.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(pathOf(t, rawURL))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// pathOf returns the path of the file of an SQLite URL.
func pathOf(t *testing.T, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.FromSlash(u.Path)
}

// MySQL returns the URL of an empty database on the test server. The database is
// dropped when the test ends.
func MySQL(t testing.TB) string {
	t.Helper()
	return On(t, envtest.URL(t, testenv.MySQLVar))
}

// On works like [MySQL], for the server with the given URL. The user in this URL must be
// allowed to create databases.
func On(t testing.TB, server string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("%s is not a URL", testenv.MySQLVar) // the error of url.Parse has the password
	}
	name := "test_" + strings.ToLower(rand.Text()[:16])
	execAdmin(t.Context(), t, u, "CREATE DATABASE "+name)
	t.Cleanup(func() { execAdmin(context.WithoutCancel(t.Context()), t, u, "DROP DATABASE "+name) })
	u.Path = "/" + name
	return u.String()
}

// execAdmin runs a statement on the server, without a database.
func execAdmin(ctx context.Context, t testing.TB, u *url.URL, query string) {
	t.Helper()
	c, err := mysql.NewConnector(mysqlConfig(u))
	if err != nil {
		t.Fatal(err)
	}
	d := sql.OpenDB(c)
	_, err = d.ExecContext(ctx, query)
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		t.Errorf("%s: %v", query, err)
	}
}

// mysqlConfig returns the driver's configuration for a server, without a database.
func mysqlConfig(u *url.URL) *mysql.Config {
	cfg := mysql.NewConfig()
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", u.Host
	cfg.Logger = new(mysql.NopLogger)
	return cfg
}
