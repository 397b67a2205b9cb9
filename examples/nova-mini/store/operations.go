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

// maxOperationTime is how long an operation may take in all. The steps of an operation time out much earlier, see
// conductor.Config. Only a deletion waits as long as the host is down.
const maxOperationTime = 24 * time.Hour

// The operations on servers. The resource of each operation is the server's id.
var (
	Create = operation.Kind[CreateData]{Name: "server.create", Version: 1, Timeout: maxOperationTime}
	Delete = operation.Kind[struct{}]{Name: "server.delete", Timeout: 7 * maxOperationTime, Priority: 10, Preempts: true}
	// Kinds has the kind of operation for each action that has a task.
	Kinds = func() map[compute.Action]operation.Kind[ActData] {
		out := map[compute.Action]operation.Kind[ActData]{}
		for _, info := range compute.Actions {
			if info.Task == "" {
				continue
			}
			a := info.Action
			out[a] = operation.Kind[ActData]{Name: kindName(a), Timeout: maxOperationTime}
		}
		return out
	}()
)

// kindPrefix begins the name of each kind.
const kindPrefix = "server."

func kindName(a compute.Action) string { return kindPrefix + string(a) }

// The steps of Create.
const (
	StepSchedule = "schedule" // the scheduler chooses a host and claims its resources
	StepBuild    = "build"    // the compute service builds the server
)

// CreateData are the data of a server's creation.
type CreateData struct {
	// Need are the resources that the server needs of a host.
	Need compute.Resources `json:"need,omitzero"`
	// OnlyHost is the host that the client asks for, or empty for any host.
	OnlyHost string `json:"only_host,omitempty"`
	// GroupID is the server group, which may be deleted. Nil: none.
	GroupID *string `json:"group,omitempty"`
	// Host is the chosen host. It is empty again after a build has failed on the host.
	Host string `json:"host,omitempty"`
	// Tried are the hosts on which a build has failed. LastError is the error of the last failed build.
	Tried     []string `json:"tried,omitempty"`
	LastError string   `json:"last_error,omitempty"`
}

// creation returns the kind of the operation that creates the server. A process of the last release may run it only if the client has chosen neither
// a host nor a group, and wants neither networks nor data for the guest, because such a process would ignore them.
func (s *Server) creation() operation.Kind[CreateData] {
	k := Create
	if spec := s.Spec(); s.OnlyHost == "" && s.GroupID == nil && s.Networks.V == nil && !spec.NeedsGuestData() {
		k.Version = 0
	}
	return k
}

// ActData are the data of an action.
type ActData struct {
	// Resize is the new size of a resize; nil for other actions.
	Resize *Size `json:"resize,omitempty"`
	// ImageRef is the image of a rescue, where empty means the server's own, or the one that is made.
	ImageRef string `json:"image_ref,omitempty"`
	// Image is what is known of an image that is made.
	Image *Image `json:"image,omitempty"`
	// Rebuild changes the server as a rebuild says. It may be called several times. Pin says to which availability zone the server is pinned.
	// AutoDisk says who changes the partitions after a resize; nil: as before. They change the server when the action begins, and are not stored
	// with the operation.
	Rebuild  func(*Server) `json:"-"`
	Pin      *Pin          `json:"-"`
	AutoDisk *bool         `json:"-"`
	// Host is the host that was chosen for the action. OnlyHost is the host that the client wants.
	Host     string `json:"host,omitempty"`
	OnlyHost string `json:"only_host,omitempty"`
}

// Image describes an image of a server's disk.
type Image struct {
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Pin is the availability zone that a server is pinned to. Zone is nil: any zone.
type Pin struct{ Zone *string }

// tasks maps the kind of a server's operation to Nova's task_state. During a creation the task_state depends on the step,
// too, see serversWithTasks.
var tasks = func() map[string]string {
	out := map[string]string{Create.Name: Scheduling, Delete.Name: Deleting}
	for a := range Kinds {
		out[kindName(a)] = a.Info().Task
	}
	return out
}()

// serversWithTasks is SQL for a FROM clause: the table of servers with the computed columns. deletedServers is the table of deleted servers, and
// anyServers both.
var (
	serversWithTasks = asServers(liveServers)
	deletedServers   = asServers(goneServers)
	anyServers       = asServers(liveServers + " UNION ALL " + goneServers)
)

func asServers(query string) string { return "(" + query + ") servers" }

// goneServers is a query of the deleted servers.
var goneServers = selectServers("NULL", "s.deleted_at", "deleted_servers s")

// liveTask is SQL for the task_state of the server s with the current operation o. The CASE has the values of one column, because databases
// parse and compare it faster than one with conditions.
var liveTask = func() string {
	var cases strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(tasks)) {
		fmt.Fprintf(&cases, " WHEN '%s' THEN '%s'", kind, tasks[kind])
	}
	return fmt.Sprintf("CASE WHEN o.kind = '%s' AND o.step = '%s' THEN '%s' ELSE CASE o.kind%s END END", Create.Name, StepBuild, Spawning, &cases)
}()

// withOperation is SQL for the servers s with their current operation o.
const withOperation = "servers s LEFT JOIN operation_current o ON o.resource = s.id"

// liveServers is a query of the servers that are not deleted. oneServer is a query of one of them by its id, without the computed columns.
var (
	liveServers = selectServers(liveTask, "NULL", withOperation)
	oneServer   = `SELECT s.` + strings.Join(shownColumns(), ", s.") + `, ` + liveTask + ` AS task_state FROM ` + withOperation + ` WHERE s.id = ?`
)

// shownColumns returns the columns of the table of servers that lists have.
func shownColumns() []string {
	return slices.DeleteFunc(strings.Split(db.Columns[Server](), ", "), func(name string) bool { return hidden[name] != "" })
}

// selectServers returns a query of all columns of servers, and of the computed ones.
func selectServers(task, terminated, from string) string {
	var more strings.Builder
	for _, name := range slices.Sorted(maps.Keys(computed)) {
		fmt.Fprintf(&more, ", %s AS %s", computed[name], name)
	}
	for _, name := range slices.Sorted(maps.Keys(hidden)) {
		if derived[name] == "" {
			fmt.Fprintf(&more, ", %s AS %s", hidden[name], name)
		}
	}
	return `SELECT s.` + strings.Join(shownColumns(), ", s.") + more.String() + `, ` + terminated + ` AS terminated_at, ` + task + ` AS task_state FROM ` + from
}

// Operations returns the store of the operations on servers.
func (s *Store) Operations() *operation.Store { return s.ops }

// Tx runs f in a transaction. Methods of the store that get the context of f run in this transaction.
func (s *Store) Tx(ctx context.Context, f func(context.Context) error) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, _ *sqlx.Tx) error { return f(ctx) })
}
