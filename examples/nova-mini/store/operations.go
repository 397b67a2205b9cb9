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
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/service/operation"
)

// maxOperationTime limits the total time of an operation. The steps of an operation time out much earlier, see
// conductor.Config. A deletion, a soft deletion and the removal of an image have seven times as long, because they wait until
// the host or the image service is back.
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
			out[a] = operation.Kind[ActData]{Name: kindName(a), Version: kindVersion(a), Timeout: maxOperationTime}
			if info.Preempts {
				out[a] = operation.Kind[ActData]{Name: kindName(a), Timeout: Delete.Timeout, Priority: Delete.Priority, Preempts: true}
			}
		}
		return out
	}()
)

// kindVersion returns the version of the kind of an action. Processes of the previous release do not run operations of version 1: they would refuse a stop with
// ActData.Force.
func kindVersion(a compute.Action) int {
	if a == compute.Stop {
		return 1
	}
	return 0
}

// kind returns the kind of the operation that an action with these data begins. Without Force, processes of the previous release may run a stop.
func (d *ActData) kind(a compute.Action) operation.Kind[ActData] {
	k := Kinds[a]
	if !d.Force {
		k.Version -= kindVersion(a)
	}
	return k
}

// The name of each kind of operation on servers begins with kindPrefix.
const kindPrefix = "server."

func kindName(a compute.Action) string { return kindPrefix + string(a) }

// actionOf returns the action that operations of a kind do. For other kinds it returns an action that does not exist.
func actionOf(kind string) compute.Action {
	return compute.Action(strings.TrimPrefix(kind, kindPrefix))
}

// The steps of Create.
const (
	StepSchedule = "schedule" // the scheduler chooses a host and claims its resources
	StepBuild    = "build"    // the compute service builds the server
)

// CreateData are the data of a server's creation.
type CreateData struct {
	// Need are the resources that the server needs on a host.
	Need compute.Resources `json:"need,omitzero"`
	// OnlyHost is the host that the client asks for, or empty for any host.
	OnlyHost string `json:"only_host,omitempty"`
	// GroupID is the server group, which may have been deleted meanwhile. Nil: none.
	GroupID *string `json:"group,omitempty"`
	// Zone is the availability zone that the client asks for, or empty for any zone.
	Zone string `json:"zone,omitempty"`
	// Guest is what the image needs of the host.
	Guest compute.GuestNeeds `json:"guest,omitzero"`
	// Specs are the extra specs of the flavor.
	Specs map[string]string `json:"specs,omitempty"`
	// Driver are the capabilities that the driver of the host must have.
	Driver []driver.Capability `json:"driver,omitempty"`
	// Host is the chosen host. It is empty again after a build has failed on the host.
	Host string `json:"host,omitempty"`
	// Tried are the hosts on which a build has failed. LastError is the error of the last failed build.
	Tried     []string `json:"tried,omitempty"`
	LastError string   `json:"last_error,omitempty"`
}

// creation returns the kind of the operation that creates the server. The kind has version 0 if processes of the previous release may
// run the operation. Such a process would ignore a host, a zone or a group that the client has chosen, what the image and the flavor
// need of the host, the networks, the data for the guest, and the extra disks. So a server with any of these gets a kind of version 1, which only newer processes run.
func (s *Server) creation() operation.Kind[CreateData] {
	k := Create
	needs := compute.NeedsOf(s.Flavor().ExtraSpecs, s.Need())
	if spec := s.Spec(); needs.IsZero() && s.OnlyHost == "" && s.PinnedZone == nil && s.GuestNeeds().IsZero() && s.GroupID == nil && s.Networks.V == nil && !spec.NeedsGuestData() && !spec.HasExtraDisks() {
		k.Version = 0
	}
	return k
}

// ActData are the data of an action.
type ActData struct {
	// Resize is the new size of a resize; nil for other actions.
	Resize *Size `json:"resize,omitempty"`
	// ImageRef is the image that a rescue boots from (empty: the server's own image), or the image that the action makes. Upload means that the compute
	// service uploads the new image to the image service.
	ImageRef string `json:"image_ref,omitempty"`
	Upload   bool   `json:"upload,omitempty"`
	// Force means that a stop is also allowed on a server that is stopped or paused already, because its guest is not.
	Force bool `json:"force,omitempty"`
	// Image describes the image that the action makes.
	Image *Image `json:"image,omitempty"`
	// Backup makes the image a backup.
	Backup *Backup `json:"backup,omitempty"`
	// The next four fields change the server when the action begins, and are not stored with the operation. Rebuild makes the changes of a rebuild; it may
	// be called several times. Pin is the new availability zone of the server. AutoDisk is the new Server.AutoDisk of a resize; nil: it stays. AdminPass is a
	// new password, which the server's row keeps until the end of the action.
	Rebuild   func(*Server) `json:"-"`
	Pin       *Pin          `json:"-"`
	AutoDisk  *bool         `json:"-"`
	AdminPass *string       `json:"-"`
	// Host is the host that the scheduler has chosen for the action. OnlyHost is the host that the client asks for.
	Host     string `json:"host,omitempty"`
	OnlyHost string `json:"only_host,omitempty"`
}

// Image describes an image of a server's disk.
type Image struct {
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata,omitempty"`
	// BackupType is the type of a backup.
	BackupType string `json:"backup_type,omitempty"`
}

// Pin is the availability zone that a server is pinned to. If Zone is nil, the server is not pinned.
type Pin struct{ Zone *string }

// tasks maps the kind of a server's operation to Nova's task_state. During a creation the task_state also depends on the
// step, see liveTask.
var tasks = func() map[string]string {
	out := map[string]string{Create.Name: Scheduling, Delete.Name: Deleting}
	for a := range Kinds {
		out[kindName(a)] = a.Info().Task
	}
	return out
}()

// Each variable is SQL for a FROM clause: a table of servers with the computed columns. serversWithTasks has the servers that are not deleted,
// deletedServers has the deleted servers, and both have the soft-deleted servers. anyServers has all servers.
var (
	serversWithTasks = asServers(liveServers)
	deletedServers   = asServers(goneServers + " UNION ALL " + liveServers + " WHERE s.vm_state = '" + compute.VMSoftDeleted + "'")
	anyServers       = asServers(liveServers + " UNION ALL " + goneServers)
)

func asServers(query string) string { return "(" + query + ") servers" }

// goneServers is a query of the deleted servers.
var goneServers = selectServers("NULL", "s.deleted_at", "deleted_servers s", computed)

// liveTask is SQL for the task_state of the server s with the current operation o. It uses the form CASE column WHEN value, because databases
// parse and evaluate this form faster than CASE WHEN condition.
var liveTask = func() string {
	var cases strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(tasks)) {
		fmt.Fprintf(&cases, " WHEN '%s' THEN '%s'", kind, tasks[kind])
	}
	return fmt.Sprintf("CASE WHEN o.kind = '%s' AND o.step = '%s' THEN '%s' ELSE CASE o.kind%s END END", Create.Name, StepBuild, Spawning, &cases)
}()

// withOperation is SQL for a FROM clause: the servers s with their current operation o.
const withOperation = "servers s LEFT JOIN operation_current o ON o.resource = s.id"

// liveServers is a query of the servers that are not deleted. oneServer is a query of one such server by id, without the computed columns.
var (
	liveServers = selectServers(liveTask, "NULL", withOperation, computed)
	oneServer   = selectServers(liveTask, "NULL", withOperation, nil) + ` WHERE s.id = ?`
)

// selectServers returns a query of servers with the shown columns, the derived columns, and further columns. The parameters task,
// terminated and from are SQL for task_state, for terminated_at and for the FROM clause. The map in the parameter named more has
// the SQL of each further column, by the name of the column. It replaces a shown column of this name.
func selectServers(task, terminated, from string, more map[string]string) string {
	var also strings.Builder
	columns := slices.DeleteFunc(shownColumns(), func(quoted string) bool { return more[strings.Trim(quoted, `"`)] != "" })
	for _, name := range slices.Sorted(maps.Keys(more)) {
		fmt.Fprintf(&also, ", %s AS %s", more[name], name)
	}
	return `SELECT s.` + strings.Join(columns, ", s.") + deriveOf("s") + also.String() + `, ` + terminated + ` AS terminated_at, ` + task + ` AS task_state FROM ` + from
}

// Operations returns the store of the operations on servers.
func (s *Store) Operations() *operation.Store { return s.ops }

// Tx runs f in a transaction. Methods of the store that are called with the context of f run in this transaction.
func (s *Store) Tx(ctx context.Context, f func(context.Context) error) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, _ *sqlx.Tx) error { return f(ctx) })
}
