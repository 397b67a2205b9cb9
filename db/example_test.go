package db_test

import (
	"context"
	"errors"
	"fmt"
	"testing/fstest"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

var errNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "no room")

func Example() {
	ctx := context.Background()
	migrations := fstest.MapFS{ // a program embeds its files
		"0001_hosts.sql": {Data: []byte(`-- +goose Up
			CREATE TABLE hosts (name VARCHAR(255) NOT NULL PRIMARY KEY, free BIGINT NOT NULL);`)},
		"0002_first.sql": {Data: []byte(`-- +goose Up
			INSERT INTO hosts (name, free) VALUES ('node-1', 3);`)},
	}
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	if err := db.Migrate(ctx, d, migrations); err != nil {
		fmt.Println(err)
		return
	}
	var name string
	err = db.Error(d.GetContext(ctx, &name, "SELECT name FROM hosts WHERE name = ?", "node-2"))
	fmt.Println(errors.Is(err, fault.NotFound))
	// Output: true
}

// A claim: the check and the change are one transaction, which is run again
// when another one came first.
func ExampleTx() {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	d.MustExecContext(ctx, "CREATE TABLE hosts (name VARCHAR(255) NOT NULL PRIMARY KEY, free BIGINT NOT NULL)")
	d.MustExecContext(ctx, "INSERT INTO hosts (name, free) VALUES ('node-1', 3)")

	claim := func(host string, n int) error {
		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			var free int
			if err := tx.GetContext(ctx, &free, "SELECT free FROM hosts WHERE name = ? FOR UPDATE", host); err != nil {
				return err
			}
			if free < n {
				return fmt.Errorf("claim %d on %s: %w", n, host, errNoRoom)
			}
			_, err := tx.ExecContext(ctx, "UPDATE hosts SET free = ? WHERE name = ?", free-n, host)
			return err
		})
	}
	fmt.Println(claim("node-1", 2))
	fmt.Println(claim("node-1", 2))
	fmt.Println(errors.Is(claim("node-2", 1), fault.NotFound))
	// Output:
	// <nil>
	// claim 2 on node-1: no room
	// true
}
