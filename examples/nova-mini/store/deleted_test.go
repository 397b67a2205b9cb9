package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestDeletedColumns: a deleted server keeps all columns of a server, so the tables have the same ones.
func TestDeletedColumns(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		all := columns(t, d)
		for _, column := range all {
			if name, ok := strings.CutPrefix(column, "servers."); ok {
				if strings.HasSuffix(name, " MUL") { // the tables have different indexes
					name = strings.TrimSuffix(name, "MUL")
				}
				if !slices.ContainsFunc(all, func(c string) bool { return strings.HasPrefix(c, "deleted_servers."+name) }) {
					t.Errorf("servers has the column %s, and deleted_servers does not", name)
				}
			}
		}
	})
}
