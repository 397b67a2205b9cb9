package db

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/armature-go/armature/fault"
)

// state says which files of a sequence a database has.
type state struct {
	table   bool     // the table of versions exists
	version int64    // the highest version that is completely applied; 0: none
	todo    []script // the files that are not applied, or not completely
	begun   bool     // the first file of todo has a row in the table of versions
	done    int      // how many statements of the first file are done
	maybe   bool     // the next statement may also be done: a process may have died before it recorded this statement
}

// appliedRow is a row of a table of versions.
type appliedRow struct {
	version   int64
	name, sum string
	breaks    int64
	done      sql.NullInt64 // statements that are done; NULL: all; -1-n: n are done, and the next one has failed
}

// readState compares the database with a sequence.
func (m *migrator) readState(ctx context.Context, s *sequence) (st state, err error) {
	if st.table, err = m.hasTable(ctx, s.table); err != nil {
		return st, err
	}
	if !st.table {
		return m.adoptedState(ctx, s)
	}
	rows, err := m.appliedRows(ctx, s.table)
	if err != nil {
		return st, err
	}
	if rows, err = s.dropReplaced(rows); err != nil {
		return st, err
	}
	for _, r := range rows {
		if r.version > s.lastVersion() && r.breaks >= s.lastVersion() {
			return st, fault.New(fault.Precondition, "the database schema (%s) is at version %d, and its migration %s does not work with version %d of this program: upgrade the program",
				s.table, rows[len(rows)-1].version, r.name, s.lastVersion())
		}
		if err := st.addRow(s, r); err != nil {
			return st, err
		}
	}
	for _, f := range s.files {
		if slices.ContainsFunc(rows, func(r appliedRow) bool { return r.version == f.version }) {
			continue
		}
		if f.version < st.version {
			return st, fault.New(fault.Precondition, "migration %s is new, but the database schema (%s) is at version %d already: give the file a higher number", f.name, s.table, st.version)
		}
		st.todo = append(st.todo, f)
	}
	return st, nil
}

// dropReplaced drops the rows of the files that the first file of the sequence replaces. Only the row of the last of these files stays:
// it becomes the row of the first file.
func (s *sequence) dropReplaced(rows []appliedRow) ([]appliedRow, error) {
	first := s.files[0]
	if len(rows) == 0 || first.replaces.sum == "" {
		return rows, nil
	}
	i := slices.IndexFunc(rows, func(r appliedRow) bool { return r.version == first.version })
	if last := rows[len(rows)-1].version; i < 0 && last < first.version {
		return nil, fault.New(fault.Precondition, "the database schema (%s) is at version %d, and this program upgrades from version %d or later: first run db sync of an older release; or this is the database of another component: correct the name at the end of the URL",
			s.table, last, first.version)
	}
	if i < 0 || rows[i].name != first.replaces.name || rows[i].sum != first.replaces.sum {
		return rows, nil
	}
	rows[i].name, rows[i].sum = first.name, first.sum
	return rows[i:], nil
}

// addRow adds a row to the state. It fails if the row and the files contradict each other.
func (st *state) addRow(s *sequence, r appliedRow) error {
	if !r.done.Valid || r.version > s.lastVersion() {
		st.version = r.version
	}
	if r.version > s.lastVersion() {
		return nil
	}
	i := slices.IndexFunc(s.files, func(f script) bool { return f.version == r.version })
	switch {
	case i < 0:
		return fault.New(fault.Precondition, "migration %s was applied, but this program does not have the file", r.name)
	case r.done.Valid:
		st.begun, st.done, st.maybe = true, int(r.done.Int64), true
		if st.done < 0 {
			st.done, st.maybe = -1-st.done, false
		}
		if s.files[i].sumOf(st.done) != r.sum { // a later statement may have been corrected
			return fault.New(fault.Precondition, "migration %s was begun with another text, and its first %d statements are done: restore the text of these statements", r.name, st.done)
		}
		st.todo = append(st.todo, s.files[i])
	case s.files[i].sum != r.sum:
		return fault.New(fault.Precondition, "migration %s has changed since it was applied: restore the file and write a new migration", s.files[i].name)
	}
	return nil
}

// adoptedState returns the state of a database without a table of versions. The first files may be applied already, because a component
// had copied their SQL into its own migrations. Then their applied-if queries succeed.
func (m *migrator) adoptedState(ctx context.Context, s *sequence) (st state, err error) {
	for i, f := range s.files {
		missing, err := m.empty || f.appliedIf == "", error(nil)
		if !missing {
			missing, err = m.failsForMissing(ctx, f.appliedIf)
		}
		if err != nil {
			return st, err
		}
		if missing {
			st.todo = s.files[i:]
			return st, nil
		}
		st.version = f.version
	}
	return st, nil
}

// appliedRows returns the rows of a table of versions, in the order of the versions. A table of an older release lacks the last two columns.
func (m *migrator) appliedRows(ctx context.Context, table string) (list []appliedRow, err error) {
	query := func(last string) string {
		return "SELECT version, name, sha256, " + last + " FROM " + table + " ORDER BY version"
	}
	rows, err := m.conn.QueryContext(ctx, query("breaks, done"))
	if isMissing(err) {
		rows, err = m.conn.QueryContext(ctx, query("0, NULL"))
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var r appliedRow
		if err := rows.Scan(&r.version, &r.name, &r.sum, &r.breaks, &r.done); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, rows.Err()
}
