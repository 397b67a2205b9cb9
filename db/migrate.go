package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// migrateTimeout is how long Migrate waits for another process that migrates, or, on SQLite, that writes.
const migrateTimeout = 5 * time.Minute

// Migrations is a sequence of migrations of a library or of a component. Each sequence has a table of its own for the versions that
// were applied.
//
// Each migration is a file with a name such as 0007_what.sql, where the number is the version. A file has SQL statements; each ends with a
// semicolon at the end of a line. An applied file must not change. Lines that begin with "-- +db " are declarations:
//
//	-- +db breaks 5
//	        Programs whose last version is 5 or lower do not work with the schema any more. Without this line they still work, because
//	        the migration only adds something. See [Check].
//	-- +db applied-if SELECT step_name FROM operations LIMIT 0
//	        If the query succeeds, the database has this migration already. This line is for a component that had copied the SQL
//	        into its own migrations. It has an effect only while the database has no table of versions for the sequence.
//	-- +db replaces 00012_old.sql 3f0c...
//	        This file replaces all files up to its own version, such as copies of a library's SQL. It must be the first file of the
//	        sequence, and has the version of the last file that it replaces. It creates the component's own tables that the replaced
//	        files created. Tables of a library whose SQL was copied are created by the library's own sequence. If the named
//	        file, with the SHA-256 that sha256sum prints for it, was applied to a database, this file counts as applied, too.
//	        A database with an older version is refused.
//
// A statement that has a semicolon at the end of a line inside it must stand between the lines "-- +goose StatementBegin" and
// "-- +goose StatementEnd". Everything after a line "-- +goose Down" is ignored, and so are other lines of goose. Statements that change
// the session or the transaction, such as SET or COMMIT, are refused. Indexes and constraints need names, because after a crash a
// statement that adds one without a name may be executed twice.
type Migrations struct {
	// Name is the first part of the name of the table of versions, NAME_migrations. Default "schema", for a component.
	Name string
	// Files is a file system with the files in its root directory. [Embedded] makes Files from the folder "migrations" of
	// an [embed.FS].
	Files fs.FS
}

// Embedded returns the migrations of a library or a component that are in the directory "migrations" of an [embed.FS]:
//
//	//go:embed migrations/*.sql
//	var files embed.FS
//
//	var Migrations = db.Embedded("volumes", files)
func Embedded(name string, files embed.FS) Migrations {
	dir, _ := fs.Sub(files, "migrations") // cannot fail: the name is valid
	return Migrations{Name: name, Files: dir}
}

func (m Migrations) table() string {
	if m.Name == "" {
		return "schema_migrations"
	}
	return m.Name + "_migrations"
}

// Migrate applies the migrations that the database does not have yet: those of the first sequence, then those of the next one. A
// component names the sequences of its libraries first, and its own last. Each file is applied once, in the order of the versions, and never
// undone.
//
// Any number of processes may call Migrate at the same time: one migrates, and the others wait, at most 5 minutes. If a process dies in
// the middle, the next call continues where that process stopped. On SQLite either all files are applied or none. MySQL commits after
// each statement that changes the schema, so Migrate records each statement. The first call makes utf8mb4_bin the default of a MySQL
// database, so that texts compare as on SQLite.
//
// A schema that is newer than the files, and works with this program, stays as it is, see [Check].
//
// Errors, with the file's name:
//
//   - Precondition: an applied file has changed or is missing; or a new file has a lower version than an applied one; or the database
//     is older than a file that replaces others; or the schema is newer and does not work with this program.
//   - Invalid: no sequence is given, a sequence has no file or a malformed one, or two sequences have the same name.
//   - Unavailable: another process has been migrating for 5 minutes.
//   - Those of [Error].
func Migrate(ctx context.Context, d *sqlx.DB, list ...Migrations) error {
	scripts, err := readScripts(list)
	if err != nil {
		return err
	}
	c, err := d.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", Error(err))
	}
	defer func() { _ = c.Close() }() // it only goes back to the pool
	m := &migrator{conn: c, sqlite: isSQLite(d)}
	if err := m.lock(ctx); err != nil {
		return fmt.Errorf("migrate: %w", Error(err))
	}
	m.empty, err = m.isEmpty(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("migrate: %w", Error(err)), Error(m.unlock(context.WithoutCancel(ctx), false)))
	}
	for _, s := range scripts {
		if err = m.applySequence(ctx, s); err != nil {
			err = fmt.Errorf("migrate: %w", Error(err))
			break
		}
	}
	return errors.Join(err, Error(m.unlock(context.WithoutCancel(ctx), err == nil)))
}

// Check returns nil if this program works with the schema: all migrations of the files have been applied, and further migrations of a
// newer program break nothing for this one. If further migrations have been applied, warning is a text for the log that names both versions.
//
// Otherwise Check fails with Precondition:
//
//   - The schema is older, reason SchemaOlder. The error has both versions.
//   - The schema is newer and does not work with this program. The error has the program's version and the migration that breaks it.
//   - The applied files are not those of this program: one has changed, is missing, or is new below the schema's version.
//
// Other errors are those of [Migrate].
//
// A service calls Check at its start. Check changes nothing.
func Check(ctx context.Context, d *sqlx.DB, list ...Migrations) (warning string, err error) {
	scripts, err := readScripts(list)
	if err != nil {
		return "", err
	}
	c, err := d.Conn(ctx)
	if err != nil {
		return "", fmt.Errorf("check the database schema: %w", Error(err))
	}
	defer func() { _ = c.Close() }() // it only goes back to the pool
	m := &migrator{conn: c, sqlite: isSQLite(d)}
	var warnings []string
	for _, s := range scripts {
		st, err := m.readState(ctx, s)
		if err != nil {
			return "", fmt.Errorf("check the database schema: %w", Error(err))
		}
		switch want := s.lastVersion(); {
		case len(st.todo) > 0:
			return "", fault.WithReason(fault.New(fault.Precondition,
				"the database schema (%s) is at version %d, older than version %d of this program", s.table, st.version, want), reasonOlder, nil)
		case st.version > want:
			warnings = append(warnings, fmt.Sprintf("the database schema (%s) is at version %d, newer than version %d of this program, and works with it", s.table, st.version, want))
		}
	}
	return strings.Join(warnings, "; "), nil
}

// reasonOlder is the reason of the error for a schema that is older than the program's.
const reasonOlder = "SchemaOlder"

// errOlder matches the error with the reason reasonOlder.
var errOlder = fault.Sentinel(fault.Precondition, reasonOlder, "schema too old")

// migrator reads and changes the schema over one connection.
type migrator struct {
	conn   *sql.Conn
	sqlite bool
	empty  bool           // the database had no table when Migrate began
	tx     engine.WriteTx // on SQLite: the transaction that is the lock
}

// applySequence applies the files of a sequence that the database does not have.
func (m *migrator) applySequence(ctx context.Context, s *sequence) error {
	st, err := m.readState(ctx, s)
	if err == nil && !st.table {
		err = m.createTable(ctx, s, st.version)
	} else if err == nil && len(st.todo) > 0 {
		err = m.completeTable(ctx, s)
	}
	if err != nil {
		return err
	}
	for i, f := range st.todo {
		if i > 0 {
			st.begun, st.done, st.maybe = false, 0, false
		}
		if err := m.applyFile(ctx, s.table, f, &st); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// createTable creates the table of versions, with a row for each file that the database has already. The table gets its name after
// these rows were inserted, so that no process sees the table without them.
func (m *migrator) createTable(ctx context.Context, s *sequence, adopted int64) error {
	next := s.table + "_new"
	statements := []string{
		"ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
		"DROP TABLE IF EXISTS " + next, // the rest of a call that died here
		"CREATE TABLE " + next + ` (version BIGINT NOT NULL PRIMARY KEY, name VARCHAR(255) NOT NULL, sha256 CHAR(64) NOT NULL,
			applied_at DATETIME(6) NOT NULL, breaks BIGINT NOT NULL DEFAULT 0, done INTEGER)`,
	}
	if m.sqlite {
		statements = statements[1:]
	}
	for _, q := range statements {
		if _, err := m.conn.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	for _, f := range s.files {
		if f.version <= adopted {
			if err := m.insertRow(ctx, next, f, f.sum, sql.NullInt64{}); err != nil {
				return err
			}
		}
	}
	_, err := m.conn.ExecContext(ctx, "ALTER TABLE "+next+" RENAME TO "+s.table)
	return err
}

// completeTable adds the columns that a table of versions of an older release lacks.
func (m *migrator) completeTable(ctx context.Context, s *sequence) error {
	for _, column := range []string{"breaks BIGINT NOT NULL DEFAULT 0", "done INTEGER"} {
		name, _, _ := strings.Cut(column, " ")
		missing, err := m.failsForMissing(ctx, "SELECT "+name+" FROM "+s.table+" LIMIT 0")
		if err == nil && missing {
			_, err = m.conn.ExecContext(ctx, "ALTER TABLE "+s.table+" ADD COLUMN "+column)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// insertRow records a file. The parameter done is the number of its statements that are done, or NULL if all are done. The parameter sum
// is the checksum of these statements, or of the file.
func (m *migrator) insertRow(ctx context.Context, table string, f script, sum string, done sql.NullInt64) error {
	_, err := m.conn.ExecContext(ctx, "INSERT INTO "+table+" (version, name, sha256, applied_at, breaks, done) VALUES (?, ?, ?, UTC_TIMESTAMP(6), ?, ?)", //nolint:gosec // the table's name is the program's
		f.version, f.name, sum, f.breaks, done)
	return err
}

// applyFile applies the statements of a file that are not done, and records each.
func (m *migrator) applyFile(ctx context.Context, table string, f script, st *state) error {
	if !st.begun {
		if err := m.insertRow(ctx, table, f, f.sumOf(0), sql.NullInt64{Valid: true}); err != nil {
			return err
		}
	}
	for i := st.done; i < len(f.statements); i++ {
		note := func() error {
			return m.updateRow(ctx, table, f, f.sumOf(i+1), sql.NullInt64{Valid: true, Int64: int64(i + 1)})
		}
		err := m.execute(ctx, f.statements[i], st.maybe && i == st.done, note)
		if err == nil {
			continue
		}
		err = fmt.Errorf("statement %d of %d: %w", i+1, len(f.statements), err)
		if !m.sqlite && !isConnectionLost(err) && ctx.Err() == nil { // the statement had no effect, and the row says so: otherwise the next call would take an error such as "table exists" as proof that this call has executed it
			err = errors.Join(err, m.updateRow(ctx, table, f, f.sumOf(i), sql.NullInt64{Valid: true, Int64: int64(-1 - i)}))
		}
		return err
	}
	return m.updateRow(ctx, table, f, f.sum, sql.NullInt64{})
}

// execute executes a statement and calls the function note, which records that the statement is done. If the parameter repeated is true, an earlier
// process may have died after the statement and before note. In this case an error for which isDone returns true is a success.
func (m *migrator) execute(ctx context.Context, query string, repeated bool, note func() error) error {
	if !m.sqlite && !changesSchema(query) {
		return m.inTx(ctx, query, note)
	}
	_, err := m.conn.ExecContext(ctx, query)
	if err != nil && (!repeated || !isDone(err)) {
		return err
	}
	return note()
}

// updateRow changes the row that insertRow has inserted.
func (m *migrator) updateRow(ctx context.Context, table string, f script, sum string, done sql.NullInt64) error {
	_, err := m.conn.ExecContext(ctx, "UPDATE "+table+" SET name = ?, sha256 = ?, applied_at = UTC_TIMESTAMP(6), breaks = ?, done = ? WHERE version = ?", //nolint:gosec // the table's name is the program's
		f.name, sum, f.breaks, done, f.version)
	return err
}

// inTx executes a statement and calls the function note, in one transaction of MySQL.
func (m *migrator) inTx(ctx context.Context, query string, note func() error) error {
	if _, err := m.conn.ExecContext(ctx, "START TRANSACTION"); err != nil {
		return err
	}
	_, err := m.conn.ExecContext(ctx, query)
	if err == nil {
		err = note()
	}
	if err != nil {
		_, rollback := m.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		return errors.Join(err, rollback)
	}
	_, err = m.conn.ExecContext(ctx, "COMMIT")
	return err
}

// failsForMissing reports whether a query fails because a table, a view or a column is missing.
func (m *migrator) failsForMissing(ctx context.Context, query string) (bool, error) {
	var found bool
	err := m.conn.QueryRowContext(ctx, "SELECT EXISTS ("+query+")").Scan(&found)
	if isMissing(err) {
		return true, nil
	}
	return false, err
}

// lock blocks other processes until unlock, or until the connection ends.
func (m *migrator) lock(ctx context.Context) error {
	if m.sqlite {
		return m.lockSQLite(ctx)
	}
	var got sql.NullInt64
	if err := m.conn.QueryRowContext(ctx, "SELECT GET_LOCK("+lockName+", ?)", migrateTimeout.Seconds()).Scan(&got); err != nil {
		return err
	}
	if got.Int64 != 1 {
		return fault.New(fault.Unavailable, "another process has been migrating for %v", migrateTimeout)
	}
	return nil
}

// lockSQLite begins a transaction, which is the lock. It calls the driver's LockWrite and not BeginTx, because
// after BeginTx all statements would need the sql.Tx. So the other methods use m.conn with both databases.
// Each attempt waits up to engine.BusyTimeout for another writer.
func (m *migrator) lockSQLite(ctx context.Context) error {
	for begin := time.Now(); ; {
		err := m.conn.Raw(func(c any) (err error) {
			m.tx, err = c.(engine.WriteLocker).LockWrite(ctx) //nolint:forcetypeassert // Connect returns no other type
			return err
		})
		if err == nil || fault.CodeOf(Error(err)) != fault.Unavailable || ctx.Err() != nil {
			return err
		}
		if time.Since(begin)+engine.BusyTimeout > migrateTimeout {
			return fault.New(fault.Unavailable, "another process has been migrating or writing for %v: %w", migrateTimeout, err)
		}
	}
}

// lockName is the SQL for the name of MySQL's lock. The name differs between the
// databases of a server. It has at most 64 characters, which is MySQL's limit.
const lockName = "CONCAT('armature-', MD5(DATABASE()))"

// unlock releases the lock. On SQLite it commits if commit is set, and rolls back otherwise. If the statement fails,
// unlock drops the connection, which also releases the lock. It returns an error only if a COMMIT has failed.
func (m *migrator) unlock(ctx context.Context, commit bool) error {
	var err error
	switch {
	case !m.sqlite:
		_, err = m.conn.ExecContext(ctx, "DO RELEASE_LOCK("+lockName+")")
	case commit:
		err = m.conn.Raw(func(any) error { return m.tx.Commit() })
	default:
		err = m.conn.Raw(func(any) error { return m.tx.Rollback() })
	}
	if m.sqlite {
		m.tx.Unlock() // has an effect only if the connection was lost, so that Raw did not call its function
	}
	if err == nil {
		return nil
	}
	_ = m.conn.Raw(func(any) error { return driver.ErrBadConn })
	if m.sqlite && commit {
		return err
	}
	return nil
}

// isEmpty reports whether the database has no table.
func (m *migrator) isEmpty(ctx context.Context) (bool, error) {
	query := "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()"
	if m.sqlite {
		query = "SELECT COUNT(*) FROM sqlite_master"
	}
	var n int
	err := m.conn.QueryRowContext(ctx, query).Scan(&n)
	return n == 0, err
}

func (m *migrator) hasTable(ctx context.Context, name string) (bool, error) {
	query := "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
	if m.sqlite {
		query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
	}
	var n int
	err := m.conn.QueryRowContext(ctx, query, name).Scan(&n)
	return n > 0, err
}

// isMissing reports whether err says that a table, a view or a column does not exist.
func isMissing(err error) bool { return engine.Explain(err).Missing }

// isDone reports whether err says that a statement has already changed the schema.
func isDone(err error) bool { return engine.Explain(err).Done }
