package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Projects says whose rows a query sees. The zero value is the empty project, which has
// no rows.
type Projects struct {
	id  string
	all bool
}

// OfProject returns the project with an id. An empty id has no rows.
func OfProject(id string) Projects { return Projects{id: id} }

// AllProjects returns every project, for queries of administrators.
func AllProjects() Projects { return Projects{all: true} }

// where returns the condition that rows with a project_id fulfil; empty: none.
func (p Projects) where() (text string, args []any) {
	switch {
	case p.all:
		return "", nil
	case p.id == "":
		return "1 = 0", nil
	}
	return "project_id = ?", []any{p.id}
}

// ServerQuery says which servers a list has, and in which order. A server is in the list
// if it fulfils all conditions.
type ServerQuery struct {
	// In are the projects whose servers are listed. The marker must be a server of them.
	In Projects
	// Is are columns with the value that each has.
	Is []Is
	// Statuses are the ones of which the server has one, in any case of letters. Nil: any.
	Statuses []string
	// NameHas are texts that the name contains.
	NameHas []string
	// ChangedSince is the earliest time of the last change; zero: any.
	ChangedSince time.Time
	// Nothing makes the list empty.
	Nothing bool
	// Keep are conditions that the database cannot judge. Each is asked about every server
	// that fulfils the others, until the page is full.
	Keep []func(*Server) bool
	// Sort is the order. The id ends it, in the direction of the last key.
	Sort []db.SortKey
	// Marker is the id of the last server of the page before; empty: the first page.
	Marker string
	// Limit is how many servers are returned at most.
	Limit int
}

// Is is a column of the table of servers, and the value that it has.
type Is struct{ Column, Value string }

// equalColumns are those that Is may name.
var equalColumns = []string{"id", "project_id", "user_id", "image_ref", "flavor_id", "vm_state", "task_state", "host"}

// Servers returns a page of servers. Invalid, reason MarkerNotFound: the marker is not a
// server of the query's projects.
func (s *Store) Servers(ctx context.Context, q ServerQuery) ([]Server, error) {
	var terms []string
	var args []any
	add := func(term string, values ...any) { terms, args = append(terms, term), append(args, values...) }
	if q.Nothing {
		add("1 = 0")
	}
	for _, is := range q.Is {
		if !slices.Contains(equalColumns, is.Column) {
			return nil, fault.New(fault.Internal, "servers are not listed by %s", is.Column)
		}
		// MySQL does not compare spaces at the end.
		add(is.Column+" = ? AND LENGTH("+is.Column+") = LENGTH(?)", is.Value, is.Value)
	}
	for _, text := range q.NameHas {
		add("INSTR(name, ?) > 0", text)
	}
	if !q.ChangedSince.IsZero() {
		add("updated_at >= ?", q.ChangedSince)
	}
	if q.Statuses != nil {
		term, values, err := whereStatus(q.Statuses)
		if err != nil {
			return nil, err
		}
		add(term, values...)
	}
	p := db.Page{From: serversWithTasks, Where: strings.Join(terms, " AND "), Args: args, Sort: q.Sort, Key: "id", Marker: q.Marker, Limit: q.Limit}
	p.Within, p.WithinArgs = q.In.where()
	if len(q.Keep) == 0 {
		out, _, err := db.List[Server](ctx, s.db, p)
		return out, err
	}
	out, _, err := db.ListFunc(ctx, s.db, p, func(srv *Server) bool {
		for _, keep := range q.Keep {
			if !keep(srv) {
				return false
			}
		}
		return true
	})
	return out, err
}

// statuses are Nova's, for a vm_state with a task_state that changes it, and with any
// other one.
var statuses = []struct{ vm, task, status string }{
	{Building, "", "BUILD"},
	{Active, Rebooting, "REBOOT"},
	{Active, RebootingHard, "HARD_REBOOT"},
	{Active, ResizePrep, "RESIZE"},
	{Active, "", "ACTIVE"},
	{Stopped, ResizePrep, "RESIZE"},
	{Stopped, "", "SHUTOFF"},
	{Resized, ResizeReverting, "REVERT_RESIZE"},
	{Resized, "", "VERIFY_RESIZE"},
	{Error, "", StatusError},
}

// StatusError is the status of a server that has a fault to show.
const StatusError = "ERROR"

// Status returns what clients see of the server's state.
func (s *Server) Status() string {
	for _, e := range statuses {
		if e.vm == s.VMState && (e.task == "" || e.task == s.Task()) {
			return e.status
		}
	}
	return "UNKNOWN"
}

// whereStatus returns the condition of having one of the statuses.
func whereStatus(list []string) (text string, args []any, err error) {
	terms := []string{"1 = 0"}
	changing := map[string][]string{} // the tasks, of each vm_state, that change the status
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
