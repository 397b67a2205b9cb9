package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/listing"
)

// Projects selects rows by project. The zero value selects no rows.
type Projects struct {
	id  string
	all bool
}

// OfProject selects the rows of one project. If id is empty, it selects no rows.
func OfProject(id string) Projects { return Projects{id: id} }

// AllProjects selects the rows of every project. It is for queries of administrators.
func AllProjects() Projects { return Projects{all: true} }

// where returns the SQL condition on the column project_id. An empty text means no condition.
func (p Projects) where() (text string, args []any) {
	switch {
	case p.all:
		return "", nil
	case p.id == "":
		return "1 = 0", nil
	}
	return "project_id = ?", []any{p.id}
}

// ServerQuery selects and sorts the servers of a list. A server is in the list if it matches all conditions.
type ServerQuery struct {
	// Query has the conditions on columns, the order and the page. Servers with equal sort keys are sorted by id, in the
	// direction of the last key.
	listing.Query

	// In selects the projects whose servers are listed. The marker must be a server of these projects.
	In Projects
	// Statuses lists the allowed statuses, in upper or lower case. Nil: any status.
	Statuses []string
	// By default a list has neither deleted nor soft-deleted servers. Deleted selects only deleted and soft-deleted servers. Ever selects all servers.
	// SoftDeleted adds the soft-deleted servers to the default.
	Deleted, Ever, SoftDeleted bool
	// Nothing makes the list empty.
	Nothing bool
	// Keep has conditions that SQL cannot express. A server is in the list only if every function returns true.
	// The functions are called for servers that match all other conditions, until the page is full.
	Keep []func(*Server) bool
}

// Servers returns a page of servers. It leaves RequestID, Resize, SoftDeletedAt and the fields of a shelved server empty; [Store.Server] reads them. Errors: Invalid, reason MarkerNotFound, if the marker is not a server of the
// query's projects.
func (s *Store) Servers(ctx context.Context, q ServerQuery) ([]Server, error) {
	from := serversWithTasks
	switch {
	case q.Deleted:
		from = deletedServers
	case q.Ever:
		from = anyServers
	}
	p := db.Page{Columns: listColumns, From: from, MarkerFrom: anyServers, Key: "id"}.Select(q.Query) // as in Nova, the marker may be a server that was deleted meanwhile
	p.Within, p.WithinArgs = q.In.where()
	switch {
	case q.Nothing:
		p.Where = "1 = 0"
	case q.Statuses != nil:
		var err error
		if p.Where, p.Args, err = whereStatus(q.Statuses); err != nil {
			return nil, err
		}
	}
	if !q.Nothing && !q.Deleted && !q.Ever && !q.SoftDeleted {
		const present = "vm_state <> ?"
		p.Args = append(p.Args, compute.VMSoftDeleted)
		if p.Where == "" {
			p.Where = present
		} else {
			p.Where = "(" + p.Where + ") AND " + present
		}
	}
	if len(q.Keep) == 0 {
		out, _, err := db.List[Server](ctx, s.db, p)
		return out, err
	}
	out, _, err := db.ListFunc(ctx, s.db, p, func(srv *Server) bool {
		return !slices.ContainsFunc(q.Keep, func(keep func(*Server) bool) bool { return !keep(srv) })
	})
	return out, err
}

// statuses maps vm_state and task_state to Nova's status. The rows with a task come first; they are from compute.Actions. A row
// without a task applies to servers without a task, and to tasks that have no row for this vm_state.
var statuses = func() (out []statusRow) {
	for _, info := range compute.Actions {
		for vm, status := range info.Shown {
			out = append(out, statusRow{vm, info.Task, status})
		}
	}
	return append(
		out, statusRow{Building, "", "BUILD"}, statusRow{Active, "", "ACTIVE"}, statusRow{Stopped, "", "SHUTOFF"},
		statusRow{Resized, "", "VERIFY_RESIZE"}, statusRow{Error, "", StatusError}, statusRow{compute.VMPaused, "", "PAUSED"},
		statusRow{compute.VMSuspended, "", "SUSPENDED"}, statusRow{compute.VMRescued, "", "RESCUE"}, statusRow{compute.VMShelved, "", "SHELVED"},
		statusRow{compute.VMOffloaded, "", "SHELVED_OFFLOADED"}, statusRow{compute.VMSoftDeleted, "", "SOFT_DELETED"},
	)
}()

type statusRow struct{ vm, task, status string }

// The API shows the fault of a server only in the statuses StatusError and StatusDeleted.
const (
	StatusError   = "ERROR"
	StatusDeleted = "DELETED"
)

// Statuses returns all statuses of servers that are not deleted.
func Statuses() []string {
	var out []string
	for _, e := range statuses {
		if !slices.Contains(out, e.status) {
			out = append(out, e.status)
		}
	}
	return out
}

// RootDevice is the device name of the disk from which guests boot.
const RootDevice = "/dev/vda"

// computed has the sort keys and filters that are not columns of the table, or whose column may be NULL: for each name, the SQL that computes the value.
var computed = map[string]string{
	"power_state": fmt.Sprintf(`COALESCE(s.power_state, CASE WHEN s.vm_state IN ('%s', '%s') OR s.vm_state = '%s' AND s.resize LIKE '%%"running":true%%' THEN %d
		WHEN s.vm_state IN ('%s', '%s', '%s', '%s', '%s') THEN %d WHEN s.vm_state = '%s' THEN %d WHEN s.vm_state = '%s' THEN %d ELSE %d END)`,
		Active, compute.VMRescued, Resized, compute.Running, Stopped, Resized, compute.VMShelved, compute.VMOffloaded, compute.VMSoftDeleted, compute.Shutdown,
		compute.VMPaused, compute.Paused, compute.VMSuspended, compute.Suspended, compute.NoState),
	"root_device_name": "CASE WHEN s.launched_at IS NULL THEN NULL ELSE '" + RootDevice + "' END",
	"locked":           "CASE WHEN s.locked_by = '' THEN 0 ELSE 1 END",
	"kernel_id":        "''", "ramdisk_id": "''", "progress": "0",
}

// Status returns the status that clients see, which depends on the server's vm_state and task.
func (s *Server) Status() string {
	if s.VMState == Deleted {
		return StatusDeleted
	}
	for _, e := range statuses {
		if e.vm == s.VMState && (e.task == "" || e.task == s.Task()) {
			return e.status
		}
	}
	return "UNKNOWN"
}

// whereStatus returns the SQL condition of the servers that a filter by statuses selects. The condition comes from those rows of the
// variable statuses that have one of the given statuses. As in Nova, the vm_state of a server must be in one of these rows, and the task
// must be in one of them, too, perhaps in another one. If one of these rows has no task, the condition does not depend on the task.
func whereStatus(list []string) (text string, args []any, err error) {
	var states, tasks []string
	anyTask := false
	for _, e := range statuses {
		if slices.ContainsFunc(list, func(name string) bool { return strings.EqualFold(name, e.status) }) {
			states, tasks, anyTask = append(states, e.vm), append(tasks, e.task), anyTask || e.task == ""
		}
	}
	switch {
	case len(states) == 0:
		return "1 = 0", nil, nil
	case anyTask:
		return sqlx.In("vm_state IN (?)", states)
	}
	return sqlx.In("vm_state IN (?) AND task_state IN (?)", states, tasks)
}
