package conductor

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/service/operation"
)

// nextStep is a step that only the next release has.
func nextStep[D any]() operation.Step[D] {
	return operation.Step[D]{Name: "next", DoTx: func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *D) error {
		_, err := tx.ExecContext(ctx, `UPDATE servers SET next_note = ? WHERE id = ?`, op.ID, op.Resource)
		return db.Error(err)
	}}
}
