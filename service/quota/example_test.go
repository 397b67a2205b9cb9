package quota_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/quota"
)

// A claim and the component's own row are written in one transaction. The error of a claim above the limit is for the client.
func Example() {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	if err := db.Migrate(ctx, d, quota.Migrations); err != nil {
		fmt.Println(err)
		return
	}
	q := quota.New(quota.Config{DB: d, Limits: map[string]int64{"volumes": 2, "gigabytes": 100}})
	create := func(id string, size int64) error {
		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			// the row of the volume is inserted here
			return q.Reserve(ctx, tx, quota.Claim{Consumer: id, Project: "demo", Amounts: map[string]int64{"volumes": 1, "gigabytes": size}})
		})
	}
	fmt.Println(create("v1", 70))
	err = create("v2", 40)
	fmt.Println(fault.UserMessage(err), errors.Is(err, quota.ErrExceeded))

	list, err := q.Usage(ctx, "demo")
	fmt.Println(list, err)
	// Output:
	// <nil>
	// Quota exceeded for gigabytes: Requested 40, but already used 70 of 100 gigabytes true
	// [{gigabytes 70 100} {volumes 1 2}] <nil>
}
