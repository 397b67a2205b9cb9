package db_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
)

// TestSecureDelete: SQLite's file keeps nothing of a value that was deleted or overwritten, such as a password.
func TestSecureDelete(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.db")
	d, err := db.Open(t.Context(), db.Config{URL: "sqlite://" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	long := strings.Repeat("x", 20000) // a password that follows this text is not on the same page as the row's beginning
	for _, q := range []string{
		"CREATE TABLE t (id INTEGER PRIMARY KEY, data TEXT, password TEXT)",
		"INSERT INTO t VALUES (1, '', 'secret-1'), (2, '" + long + "', 'secret-2'), (3, '', 'secret-3'), (4, '" + long + "', 'secret-4'), (5, '', 'kept')",
		"UPDATE t SET password = NULL WHERE id <= 2",
		"DELETE FROM t WHERE id IN (3, 4)",
		"PRAGMA wal_checkpoint(TRUNCATE)", // without this checkpoint, the deleted values may stay in the write-ahead log for a time
	} {
		if _, err := d.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(raw); strings.Contains(text, "secret") || !strings.Contains(text, "kept") {
		i := strings.Index(text, "secret")
		t.Errorf("the file has %q", text[max(i, 0):min(max(i, 0)+10, len(text))])
	}
}
