package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/service/operation"
)

// lastResort is how long an operation may take in all. Its steps give up much earlier, see conductor.Config: only a
// deletion waits for a host that is away until it is back.
const lastResort = 24 * time.Hour

// The operations on servers. Each has the server's id for its resource.
var (
	Create = operation.Kind[CreateData]{Name: "server.create", Timeout: lastResort}
	Delete = operation.Kind[struct{}]{Name: "server.delete", Timeout: 7 * lastResort, Priority: 10, Preempts: true}
	// Kinds are those of the actions.
	Kinds = func() map[compute.Action]operation.Kind[ActData] {
		out := map[compute.Action]operation.Kind[ActData]{}
		for a := range actions {
			out[a] = operation.Kind[ActData]{Name: kindName(a), Timeout: lastResort}
		}
		return out
	}()
)

func kindName(a compute.Action) string { return "server." + string(a) }

// The steps of Create.
const (
	StepSchedule = "schedule" // choose a host and claim it
	StepBuild    = "build"    // the host builds
)

// CreateData are the data of a server's creation.
type CreateData struct {
	// Need is what the server takes of a host.
	Need compute.Resources `json:"need,omitzero"`
	// Host is the one that was chosen, until a build has failed there.
	Host string `json:"host,omitempty"`
	// Tried are the hosts on which a build has failed, and LastError is the error of the last one.
	Tried     []string `json:"tried,omitempty"`
	LastError string   `json:"last_error,omitempty"`
}

// ActData are the data of an action.
type ActData struct {
	// Resize is the size that a resize leads to.
	Resize *Size `json:"resize,omitempty"`
}

// tasks gives the task_state that a server has, Nova's, by the kind of its operation. That of a creation depends on its
// step.
var tasks = func() map[string]string {
	out := map[string]string{Create.Name: Scheduling, Delete.Name: Deleting}
	for a, d := range actions {
		out[kindName(a)] = d.task
	}
	return out
}()

// serversWithTasks is the table of servers with the column task_state, as SQL for a FROM.
var serversWithTasks = func() string {
	var cases strings.Builder
	fmt.Fprintf(&cases, "WHEN o.kind = '%s' AND o.step = '%s' THEN '%s' ", Create.Name, StepBuild, Spawning)
	for _, kind := range slices.Sorted(maps.Keys(tasks)) {
		fmt.Fprintf(&cases, "WHEN o.kind = '%s' THEN '%s' ", kind, tasks[kind])
	}
	return `(SELECT s.*, CASE ` + cases.String() + `END AS task_state FROM servers s LEFT JOIN operation_current o ON o.resource = s.id) servers`
}()

// Operations are the operations in the store's database.
func (s *Store) Operations() *operation.Store { return s.ops }

// Tx runs f in a transaction, which the store's methods join when they get its context.
func (s *Store) Tx(ctx context.Context, f func(context.Context) error) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, _ *sqlx.Tx) error { return f(ctx) })
}
