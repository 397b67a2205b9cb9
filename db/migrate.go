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

// versionTable has a row for each migration that was applied.
const versionTable = "schema_migrations"

// migrateWait is how long Migrate waits for another process that migrates.
const migrateWait = 5 * time.Minute

// Migrate brings the schema up to date with the files of dir's root, usually an
// [embed.FS]. They are named NNNN_what.sql, begin with "-- +goose Up", and are
// applied once each, in order, never backwards. Any number of processes may
// migrate at once: one does, the others wait, up to 5 minutes. On SQLite all is
// done or nothing; MySQL commits at each statement that changes the schema, so
// that a file should have only one. A file that was applied must not change any
// more. The first migration makes utf8mb4_bin the default of a MySQL database,
// so that texts compare as on SQLite.
//
// Errors: Precondition if a file that was applied has changed or is missing,
// with its name, if one comes before what was applied, or if the schema is
// newer than the files; Invalid if there is
// no file; those of [Error].
func Migrate(ctx context.Context, d *sqlx.DB, dir fs.FS) error {
	s, err := newSchema(d, dir)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectCustom, d.DB, dir,
		goose.WithStore(s), goose.WithSessionLocker(s), goose.WithLogger(goose.NopLogger()),
		goose.WithDisableGlobalRegistry(true),
		// SQLite's lock is a transaction around all, so that there are none inside.
		goose.WithIsolateDDL(s.sqlite))
	if err != nil {
		return fault.New(fault.Invalid, "migrations: %w", err)
	}
	// Up looks for what is to be done before it takes the lock, and is content
	// if that is nothing.
	if _, err := s.check(ctx, d); err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", Error(err))
	}
	return nil
}

// Check fails with Precondition, naming both versions, when the schema is not
// the one that the files of dir make: older, newer, or made by other files. A
// service calls it at its start. It changes nothing. Other errors are those of
// [Error].
func Check(ctx context.Context, d *sqlx.DB, dir fs.FS) error {
	s, err := newSchema(d, dir)
	if err != nil {
		return err
	}
	have, err := s.check(ctx, d)
	if err != nil {
		return err
	}
	if want := s.files[len(s.files)-1].version; have < want {
		return &fault.Error{
			Code: fault.Precondition, Reason: errOlder.Reason,
			Msg: fmt.Sprintf("the database schema is at version %d, older than version %d of this program: run db sync", have, want),
		}
	}
	return nil
}

// errOlder marks the error of a schema that is older than that of the program.
var errOlder = &fault.Error{Code: fault.Precondition, Reason: "SchemaOlder", Msg: "schema too old"}

// schema is what goose needs to know about the database: a store of versions
// and a lock.
type schema struct {
	sqlite bool
	files  []migration // by version
}

type migration struct {
	version   int64
	name, sum string
}

func newSchema(d *sqlx.DB, dir fs.FS) (*schema, error) {
	names, err := fs.Glob(dir, "*.sql")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, "migrations: no .sql file")
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

func (s *schema) check(ctx context.Context, d *sqlx.DB) (version int64, err error) {
	c, err := d.Conn(ctx)
	if err == nil {
		version, err = s.verify(ctx, c)
		_ = c.Close()
	}
	if err != nil {
		return 0, fmt.Errorf("check the schema: %w", Error(err))
	}
	return version, nil
}

// verify compares what was applied with the files and returns the schema's
// version, 0 for an empty database.
func (s *schema) verify(ctx context.Context, c *sql.Conn) (version int64, err error) {
	exists, err := s.exists(ctx, c)
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
			bad = fault.New(fault.Precondition, "migration %s was applied, and this program does not have it", m.name)
		case s.files[i].sum != m.sum:
			bad = fault.New(fault.Precondition, "migration %s has changed since it was applied", s.files[i].name)
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
			bad = fault.New(fault.Precondition, "migration %s is new, but the database schema is at version %d already", f.name, version)
		}
	}
	return version, bad
}

// SessionLock keeps other processes out until the connection ends, verifies
// what was applied, and sees to it that the table of versions exists.
func (s *schema) SessionLock(ctx context.Context, c *sql.Conn) (err error) {
	if s.sqlite {
		if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
			return err
		}
	} else {
		var got sql.NullInt64
		err := c.QueryRowContext(ctx, "SELECT GET_LOCK("+lockName+", ?)", migrateWait.Seconds()).Scan(&got)
		if err != nil {
			return err
		}
		if got.Int64 != 1 {
			return fault.New(fault.Unavailable, "another process has been migrating for %v", migrateWait)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release(context.WithoutCancel(ctx), c, false))
		}
	}()
	if _, err := s.verify(ctx, c); err != nil {
		return err
	}
	if exists, err := s.exists(ctx, c); err != nil || exists {
		return err
	}
	return s.CreateVersionTable(ctx, c)
}

// lockName is the same for all that use this database, and within the 64
// characters that a lock's name may have.
const lockName = "CONCAT('armature-', MD5(DATABASE()))"

// SessionUnlock ends what SessionLock began. On SQLite it commits when the last
// file is applied, and rolls back otherwise: goose does not tell it which.
func (s *schema) SessionUnlock(ctx context.Context, c *sql.Conn) error {
	done := false
	if s.sqlite {
		v, err := s.GetLatestVersion(ctx, c)
		done = err == nil && v == s.files[len(s.files)-1].version
	}
	return s.release(ctx, c, done)
}

// release drops the lock. If it cannot, it drops the connection, and the lock
// with it.
func (s *schema) release(ctx context.Context, c *sql.Conn, commit bool) error {
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
	return nil // whatever broke the connection has been reported
}

func (s *schema) exists(ctx context.Context, q database.DBTxConn) (bool, error) {
	query := "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
	if s.sqlite {
		query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
	}
	var n int
	err := q.QueryRowContext(ctx, query, versionTable).Scan(&n)
	return n > 0, err
}

// The rest is goose's store. Goose looks at it, and would create the table,
// before it takes the lock: so it is told that the table is there, and finds
// version 0, which is never stored.

func (s *schema) Tablename() string { return versionTable }

func (s *schema) TableExists(context.Context, database.DBTxConn) (bool, error) { return true, nil }

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

// Delete is refused: there is no way back.
func (s *schema) Delete(context.Context, database.DBTxConn, int64) error {
	return database.ErrNotImplemented
}

func (s *schema) GetMigration(ctx context.Context, q database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	res := database.GetMigrationResult{IsApplied: true}
	err := q.QueryRowContext(ctx, "SELECT applied_at FROM "+versionTable+" WHERE version = ?", version).Scan(&res.Timestamp)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, database.ErrVersionNotFound
	}
	return &res, err
}

func (s *schema) GetLatestVersion(ctx context.Context, q database.DBTxConn) (int64, error) {
	list, err := s.ListMigrations(ctx, q)
	if err != nil {
		return 0, err
	}
	return list[0].Version, nil
}

func (s *schema) ListMigrations(ctx context.Context, q database.DBTxConn) (list []*database.ListMigrationsResult, err error) {
	zero := &database.ListMigrationsResult{IsApplied: true}
	exists, err := s.exists(ctx, q)
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
