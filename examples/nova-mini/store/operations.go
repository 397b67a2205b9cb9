package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/service/operation"
)

// lastResort is how long an operation may take in all. The conductor gives up much
// earlier what a host does not do, see its BuildTimeout; only a deletion waits for a host
// that is away until it is back.
const lastResort = 24 * time.Hour

// The operations on servers. Each has the server's id for its resource.
var (
	Create = operation.Kind[struct{}]{Name: "server.create", Timeout: lastResort}
	Delete = operation.Kind[struct{}]{Name: "server.delete", Timeout: 7 * lastResort, Priority: 10, Wins: true}
	// Kinds are those of the actions.
	Kinds = func() map[compute.Action]operation.Kind[ActInput] {
		out := map[compute.Action]operation.Kind[ActInput]{}
		for a := range actions {
			out[a] = operation.Kind[ActInput]{Name: "server." + string(a), Timeout: lastResort}
		}
		return out
	}()
)

// ActInput is what an action needs to be begun again.
type ActInput struct {
	// Resize is the size that a resize leads to.
	Resize *Size `json:"resize,omitempty"`
}

// Operations are the operations in the store's database.
func (s *Store) Operations() *operation.Store { return s.ops }

// Tx runs f in a transaction, which the store's methods join when they get its context.
func (s *Store) Tx(ctx context.Context, f func(context.Context) error) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, _ *sqlx.Tx) error { return f(ctx) })
}
