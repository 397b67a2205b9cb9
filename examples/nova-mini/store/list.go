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

// Projects selects the projects whose rows a query sees. The zero value is the project with an empty id, which has
// no rows.
type Projects struct {
	id  string
	all bool
}

// OfProject selects the project with this id. With an empty id a query sees no rows.
func OfProject(id string) Projects { return Projects{id: id} }

// AllProjects selects every project. It is for queries of administrators.
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
	// Query has the conditions on columns, the order and the page. Servers that are equal by the order are sorted by id, in the
	// direction of the last key.
	listing.Query

	// In selects the projects whose servers are listed. The marker must be a server of these projects.
	In Projects
	// Statuses lists the allowed statuses, in upper or lower case. Nil: any status.
	Statuses []string
	// Deleted selects deleted servers instead of the others. Ever selects both. A list of deleted servers must not have Statuses.
	Deleted, Ever bool
	// Nothing makes the list empty.
	Nothing bool
	// Keep lists conditions that SQL cannot express. They are called for each server that matches all other
	// conditions, until the page is full.
	Keep []func(*Server) bool
}

// Servers returns a page of servers. Errors: Invalid, reason MarkerNotFound, if the marker is not a server of the
// query's projects.
func (s *Store) Servers(ctx context.Context, q ServerQuery) ([]Server, error) {
	from := serversWithTasks
	switch {
	case q.Deleted:
		from = deletedServers
	case q.Ever:
		from = anyServers
	}
	p := db.Page{From: from, MarkerFrom: anyServers, Key: "id"}.Select(q.Query) // as in Nova, the last server of a page may be deleted meanwhile
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
	if len(q.Keep) == 0 {
		out, _, err := db.List[Server](ctx, s.db, p)
		return out, err
	}
	out, _, err := db.ListFunc(ctx, s.db, p, func(srv *Server) bool {
		return !slices.ContainsFunc(q.Keep, func(keep func(*Server) bool) bool { return !keep(srv) })
	})
	return out, err
}

// statuses maps vm_state and task_state to Nova's status. A row without a task applies to servers without a task, and to every
// task of its vm_state that has no row of its own. These rows come after those with a task, which are of the actions.
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

// StatusError and StatusDeleted are the statuses of servers whose fault is shown to clients.
const (
	StatusError   = "ERROR"
	StatusDeleted = "DELETED"
)

// Statuses returns all statuses of servers.
func Statuses() []string {
	var out []string
	for _, e := range statuses {
		if !slices.Contains(out, e.status) {
			out = append(out, e.status)
		}
	}
	return out
}

// RootDevice is the name of the disk from which guests boot.
const RootDevice = "/dev/vda"

// computed are columns for the order of lists, and for filters, which are no columns of the table: their names and their SQL.
var computed = map[string]string{
	"power_state": fmt.Sprintf(`CASE WHEN s.vm_state IN ('%s', '%s') OR s.vm_state = '%s' AND s.resize LIKE '%%"running":true%%' THEN %d
		WHEN s.vm_state IN ('%s', '%s', '%s', '%s', '%s') THEN %d WHEN s.vm_state = '%s' THEN %d WHEN s.vm_state = '%s' THEN %d ELSE %d END`,
		Active, compute.VMRescued, Resized, compute.Running, Stopped, Resized, compute.VMShelved, compute.VMOffloaded, compute.VMSoftDeleted, compute.Shutdown,
		compute.VMPaused, compute.Paused, compute.VMSuspended, compute.Suspended, compute.NoState),
	"availability_zone": "CASE WHEN s.host IS NULL THEN '' ELSE 'nova' END",
	"root_device_name":  "CASE WHEN s.launched_at IS NULL THEN NULL ELSE '" + RootDevice + "' END",
	"locked":            "CASE WHEN s.locked_by = '' THEN 0 ELSE 1 END",
	"kernel_id":         "''", "ramdisk_id": "''", "progress": "0",
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

// whereStatus returns the SQL condition of the servers that have one of the statuses.
func whereStatus(list []string) (text string, args []any, err error) {
	terms := []string{"1 = 0"}
	changing := map[string][]string{} // for each vm_state, the tasks with a status of their own
	for _, e := range statuses {
		if e.task != "" {
			changing[e.vm] = append(changing[e.vm], e.task)
		}
	}
	for _, e := range statuses {
		if !slices.ContainsFunc(list, func(name string) bool { return strings.EqualFold(name, e.status) }) {
			continue
		}
		term, values := "vm_state = ?", []any{e.vm}
		switch tasks := changing[e.vm]; {
		case e.task != "":
			term, values = term+" AND task_state = ?", append(values, e.task)
		case len(tasks) > 0:
			term, values = term+" AND (task_state IS NULL OR task_state NOT IN (?))", append(values, tasks)
		}
		terms, args = append(terms, term), append(args, values...)
	}
	if len(args) == 0 {
		return terms[0], nil, nil
	}
	return sqlx.In(strings.Join(terms, " OR "), args...)
}
