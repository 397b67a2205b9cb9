package db

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// Exec runs a statement on a handle or in a transaction and returns the number of rows that it matches,
// whether they change or not. Errors are those of [Error].
func Exec(ctx context.Context, q sqlx.ExecerContext, query string, args ...any) (int64, error) {
	res, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, Error(err)
	}
	n, err := res.RowsAffected()
	return n, Error(err)
}

// ExecOne runs a statement about one row, as [Exec] does. If the statement matches no row, ExecOne returns the error in the
// parameter missing, which must not be nil. A transaction can continue after this error. If the statement matches several
// rows, the error is Internal, because the condition does not identify a row: roll back then.
func ExecOne(ctx context.Context, q sqlx.ExecerContext, missing error, query string, args ...any) error {
	n, err := Exec(ctx, q, query, args...)
	switch {
	case err != nil:
		return err
	case n == 0:
		return missing
	case n > 1:
		return fmt.Errorf("statement matches %d rows, want one: use a unique key: %s", n, query)
	}
	return nil
}
