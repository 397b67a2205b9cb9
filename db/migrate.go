package db

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"github.com/armature-go/armature/fault"
)

// versionTable is the table with a row for each applied migration.
const versionTable = "schema_migrations"

// migrateTimeout is how long Migrate waits for another process that migrates.
const migrateTimeout = 5 * time.Minute

// Migrate applies the migrations that the database does not have yet. They are the
// files in the root of dir, usually an [embed.FS], with names such as
// NNNN_what.sql. A file begins with "-- +goose Up". Each file is applied once, in
// the order of the numbers, and never undone. An applied file must not change.
//
// Any number of processes may call Migrate at the same time: one migrates, the
// others wait, at most 5 minutes. On SQLite either all files are applied or none.
// MySQL commits after each statement that changes the schema, so a file should have
// only one such statement. The first migration makes utf8mb4_bin the default of a
// MySQL database, so that texts compare as on SQLite.
//
// Errors, with the file's name: Precondition if an applied file has changed or is
// missing, if a new file has a lower number than an applied one, or if the schema
// is newer than the files; Invalid if dir has no file, or a malformed one;
// Unavailable if another process migrates for longer than 5 minutes; those of [Error].
func Migrate(ctx context.Context, d *sqlx.DB, dir fs.FS) error {
	s, err := newSchema(d, dir)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectCustom, d.DB, dir,
		goose.WithStore(s), goose.WithSessionLocker(s), goose.WithLogger(goose.NopLogger()),
		goose.WithDisableGlobalRegistry(true),
		// SQLite's lock is one transaction around all files, so a file must not begin another.
		goose.WithIsolateDDL(s.sqlite))
	if err != nil {
		return fault.New(fault.Invalid, "migrations: %w", err)
	}
	// Up looks for new files before it calls SessionLock, and skips SessionLock if it
	// finds none. Then nothing would verify the applied files.
	if _, err := s.checkVersion(ctx, d); err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", Error(err))
	}
	return nil
}

// Check returns nil if the schema is the one that the files of dir make. Otherwise
// it fails with Precondition: the schema is older (reason SchemaOlder) or newer, with
// both versions in the error, or other files made it. A service calls Check at its
// start. Check changes nothing. Other errors are those of [Error].
func Check(ctx context.Context, d *sqlx.DB, dir fs.FS) error {
	s, err := newSchema(d, dir)
	if err != nil {
		return err
	}
	have, err := s.checkVersion(ctx, d)
	if err != nil {
		return err
	}
	if want := s.files[len(s.files)-1].version; have < want {
		return fault.WithReason(
			fault.New(fault.Precondition, "the database schema is at version %d, older than version %d of this program: run db sync", have, want),
			reasonOlder, nil)
	}
	return nil
}

// reasonOlder is the reason of the error for a schema that is older than the program's.
const reasonOlder = "SchemaOlder"

// errOlder matches that error.
var errOlder = fault.Sentinel(fault.Precondition, reasonOlder, "schema too old")

// schema implements the interfaces through which goose uses the database: a store of
// versions and a lock.
type schema struct {
	sqlite bool
	files  []migration // in the order of their versions
}

// migration is a file: its number, its name and the SHA-256 of its text.
type migration struct {
	version   int64
	name, sum string
}

// newSchema reads the files of dir. Line ends do not count in their checksums.
func newSchema(d *sqlx.DB, dir fs.FS) (*schema, error) {
	names, err := fs.Glob(dir, "*.sql")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, "migrations: the directory has no .sql file")
	}
	s := &schema{sqlite: isSQLite(d)}
	for _, name := range names {
		v, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fault.New(fault.Invalid, "migration %s: %w", name, err)
		}
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
		s.files = append(s.files, migration{v, name, hex.EncodeToString(sum[:])})
	}
	slices.SortFunc(s.files, func(a, b migration) int { return int(a.version - b.version) })
	return s, nil
}

// checkVersion returns the version of the schema, and fails if the files did not make the schema.
func (s *schema) checkVersion(ctx context.Context, d *sqlx.DB) (version int64, err error) {
	c, err := d.Conn(ctx)
	if err == nil {
		version, err = s.verifyApplied(ctx, c)
		_ = c.Close()
	}
	if err != nil {
		return 0, fmt.Errorf("check the database schema: %w", Error(err))
	}
	return version, nil
}

// verifyApplied compares the applied migrations with the files and returns the
// schema's version. The version of an empty database is 0.
func (s *schema) verifyApplied(ctx context.Context, c *sql.Conn) (version int64, err error) {
	exists, err := s.hasVersionTable(ctx, c)
	if err != nil || !exists {
		return 0, err
	}
	rows, err := c.QueryContext(ctx, "SELECT version, name, sha256 FROM "+versionTable+" ORDER BY version")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	last := s.files[len(s.files)-1].version
	applied := make(map[int64]bool)
	var bad error
	for rows.Next() {
		var m migration
		if err := rows.Scan(&m.version, &m.name, &m.sum); err != nil {
			return 0, err
		}
		version = m.version
		applied[version] = true
		i := slices.IndexFunc(s.files, func(f migration) bool { return f.version == m.version })
		switch {
		case bad != nil || m.version > last:
		case i < 0:
			bad = fault.New(fault.Precondition, "migration %s was applied, but this program does not have the file", m.name)
		case s.files[i].sum != m.sum:
			bad = fault.New(fault.Precondition, "migration %s has changed since it was applied: restore the file and write a new migration", s.files[i].name)
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if version > last {
		return 0, fault.New(fault.Precondition,
			"the database schema is at version %d, newer than version %d of this program: upgrade the program", version, last)
	}
	for _, f := range s.files {
		if bad == nil && f.version < version && !applied[f.version] {
			bad = fault.New(fault.Precondition, "migration %s is new, but the database schema is at version %d already: give the file a higher number", f.name, version)
		}
	}
	return version, bad
}

// SessionLock blocks other processes until SessionUnlock or until the connection
// ends. It verifies the applied migrations and creates the table of versions.
func (s *schema) SessionLock(ctx context.Context, c *sql.Conn) (err error) {
	if s.sqlite {
		if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
			return err
		}
	} else {
		var got sql.NullInt64
		err := c.QueryRowContext(ctx, "SELECT GET_LOCK("+lockName+", ?)", migrateTimeout.Seconds()).Scan(&got)
		if err != nil {
			return err
		}
		if got.Int64 != 1 {
			return fault.New(fault.Unavailable, "another process has been migrating for %v", migrateTimeout)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.releaseLock(context.WithoutCancel(ctx), c, false))
		}
	}()
	if _, err := s.verifyApplied(ctx, c); err != nil {
		return err
	}
	if exists, err := s.hasVersionTable(ctx, c); err != nil || exists {
		return err
	}
	return s.CreateVersionTable(ctx, c)
}

// lockName is the SQL for the name of MySQL's lock. The name differs between the
// databases of a server. It has at most 64 characters, which is MySQL's limit.
const lockName = "CONCAT('armature-', MD5(DATABASE()))"

// SessionUnlock ends the lock of SessionLock. On SQLite it commits if the last file
// is applied, and rolls back otherwise: goose does not say whether it succeeded.
func (s *schema) SessionUnlock(ctx context.Context, c *sql.Conn) error {
	complete := false
	if s.sqlite {
		v, err := s.GetLatestVersion(ctx, c)
		complete = err == nil && v == s.files[len(s.files)-1].version
	}
	return s.releaseLock(ctx, c, complete)
}

// releaseLock releases the lock. If that fails, it drops the connection, which
// releases the lock, too.
func (s *schema) releaseLock(ctx context.Context, c *sql.Conn, commit bool) error {
	query := "DO RELEASE_LOCK(" + lockName + ")"
	switch {
	case s.sqlite && commit:
		query = "COMMIT"
	case s.sqlite:
		query = "ROLLBACK"
	}
	_, err := c.ExecContext(ctx, query)
	if err == nil {
		return nil
	}
	_ = c.Raw(func(any) error { return driver.ErrBadConn })
	if commit {
		return err
	}
	return nil // goose has the error that broke the connection
}

// hasVersionTable reports whether the table of versions exists.
func (s *schema) hasVersionTable(ctx context.Context, q database.DBTxConn) (bool, error) {
	query := "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
	if s.sqlite {
		query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
	}
	var n int
	err := q.QueryRowContext(ctx, query, versionTable).Scan(&n)
	return n > 0, err
}

// The methods below implement goose's store. Goose uses the store, and would create
// the table, before it takes the lock. Therefore TableExists returns true, and
// ListMigrations adds version 0, which is never stored.

// Tablename returns the name of the table of versions.
func (s *schema) Tablename() string { return versionTable }

// TableExists returns true, see above.
func (s *schema) TableExists(context.Context, database.DBTxConn) (bool, error) { return true, nil }

// CreateVersionTable creates the table of versions, and sets the collation of a MySQL database.
func (s *schema) CreateVersionTable(ctx context.Context, q database.DBTxConn) error {
	if !s.sqlite {
		if _, err := q.ExecContext(ctx, "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"); err != nil {
			return err
		}
	}
	_, err := q.ExecContext(ctx, `CREATE TABLE `+versionTable+` (
		version BIGINT NOT NULL PRIMARY KEY, name VARCHAR(255) NOT NULL,
		sha256 CHAR(64) NOT NULL, applied_at DATETIME(6) NOT NULL)`)
	return err
}

// Insert stores an applied migration with its name and checksum.
func (s *schema) Insert(ctx context.Context, q database.DBTxConn, req database.InsertRequest) error {
	i := slices.IndexFunc(s.files, func(f migration) bool { return f.version == req.Version })
	if i < 0 {
		return database.ErrVersionNotFound
	}
	m := s.files[i]
	_, err := q.ExecContext(ctx, "INSERT INTO "+versionTable+" (version, name, sha256, applied_at) VALUES (?, ?, ?, UTC_TIMESTAMP(6))",
		m.version, m.name, m.sum)
	return err
}

// Delete returns an error: a migration cannot be undone.
func (s *schema) Delete(context.Context, database.DBTxConn, int64) error {
	return database.ErrNotImplemented
}

// GetMigration returns an applied migration.
func (s *schema) GetMigration(ctx context.Context, q database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	res := database.GetMigrationResult{IsApplied: true}
	err := q.QueryRowContext(ctx, "SELECT applied_at FROM "+versionTable+" WHERE version = ?", version).Scan(&res.Timestamp)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, database.ErrVersionNotFound
	}
	return &res, err
}

// GetLatestVersion returns the highest version, 0 for an empty database.
func (s *schema) GetLatestVersion(ctx context.Context, q database.DBTxConn) (int64, error) {
	list, err := s.ListMigrations(ctx, q)
	if err != nil {
		return 0, err
	}
	return list[0].Version, nil
}

// ListMigrations returns the applied migrations, the latest first, and version 0 at the end.
func (s *schema) ListMigrations(ctx context.Context, q database.DBTxConn) (list []*database.ListMigrationsResult, err error) {
	zero := &database.ListMigrationsResult{IsApplied: true}
	exists, err := s.hasVersionTable(ctx, q)
	if err != nil || !exists {
		return []*database.ListMigrationsResult{zero}, err
	}
	rows, err := q.QueryContext(ctx, "SELECT version FROM "+versionTable+" ORDER BY version DESC")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		m := database.ListMigrationsResult{IsApplied: true}
		if err := rows.Scan(&m.Version); err != nil {
			return nil, err
		}
		list = append(list, &m)
	}
	return append(list, zero), rows.Err()
}
