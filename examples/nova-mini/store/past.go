package store

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// PastAction is an action on a server that a client has asked for: an operation as the client sees it.
type PastAction struct {
	// Name is Nova's name of the action.
	Name                                   string
	ServerID, RequestID, UserID, ProjectID string
	Start, Updated                         time.Time
	Failed                                 bool
	// Events are what was done, the oldest first. Only [Store.PastAction] reads them.
	Events []PastEvent
}

// PastEvent is what a service has done for an action.
type PastEvent struct {
	// Name is Nova's name.
	Name  string
	Start time.Time
	// Finish is nil while it is being done.
	Finish *time.Time
	// Host is the host whose compute service has done it, or "".
	Host string
	// Error is the error, or "". Details is what the server's project may know of the error.
	Error, Details string
}

// PastQuery selects actions on a server.
type PastQuery struct {
	// Marker is the request of the last action of the page before.
	Marker string
	// Limit is the highest number of actions. 0: none.
	Limit int
	// Since and Until bound the time of the last change, both inclusive. Zero: no bound.
	Since, Until time.Time
}

// PastActions returns the actions on a server, the newest first. What nova-mini has done by itself is left out. Errors: Invalid, if the marker
// does not exist.
func (s *Store) PastActions(ctx context.Context, id string, q PastQuery) ([]PastAction, error) {
	f := operation.Filter{Resource: id, Requested: true, Limit: q.Limit, UpdatedSince: q.Since, UpdatedUntil: q.Until}
	if q.Marker != "" {
		last, err := s.operationOf(ctx, id, q.Marker)
		if err != nil {
			return nil, err
		}
		if last == nil {
			return nil, fault.New(fault.Invalid, "Marker %s could not be found.", q.Marker)
		}
		f.Marker = last.ID
	}
	if q.Limit == 0 { // for the list of operations it would mean a default
		return nil, nil
	}
	list, err := s.ops.List(ctx, f)
	out := make([]PastAction, len(list))
	for i := range list {
		out[i] = pastAction(&list[i])
	}
	return out, err
}

// operationOf returns the operation of a request on a server, or nil.
func (s *Store) operationOf(ctx context.Context, id, request string) (*operation.Operation, error) {
	list, err := s.ops.List(ctx, operation.Filter{Resource: id, RequestID: request, Limit: 1})
	if err != nil || len(list) == 0 || request == "" {
		return nil, err
	}
	return &list[0], nil
}

// PastAction returns the action of a request on a server, with its events. Errors: NotFound.
func (s *Store) PastAction(ctx context.Context, id, request string) (*PastAction, error) {
	o, err := s.operationOf(ctx, id, request)
	if err == nil && o == nil {
		err = fault.New(fault.NotFound, "Action %s not found", request)
	}
	if err == nil {
		o, err = s.ops.Show(ctx, o.ID)
	}
	if err != nil {
		return nil, err
	}
	out := pastAction(o)
	out.Events = pastEvents(o)
	return &out, nil
}

// PastServer returns what is known of a server that is deleted: its ID, its project and its user. Errors: NotFound, also if its operations
// are purged.
func (s *Store) PastServer(ctx context.Context, id string) (*Server, error) {
	list, err := s.ops.List(ctx, operation.Filter{Resource: id, Kind: Create.Name, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, NoServer(id)
	}
	return &Server{ID: id, ProjectID: list[0].ProjectID, UserID: list[0].UserID}, nil
}

func pastAction(o *operation.Operation) PastAction {
	name, _ := namesOf(o.Kind)
	return PastAction{
		Name: name, ServerID: o.Resource, RequestID: o.RequestID, UserID: o.UserID, ProjectID: o.ProjectID, Start: o.Created, Updated: o.Updated,
		Failed: o.State.Ended() && o.State != operation.Succeeded,
	}
}

// namesOf returns Nova's names of what an operation of a kind does, and of what its compute service does.
func namesOf(kind string) (action, event string) {
	switch kind {
	case Create.Name:
		return "create", "compute__do_build_and_run_instance"
	case Delete.Name:
		return "delete", "compute_terminate_instance"
	}
	name := strings.TrimPrefix(kind, kindPrefix)
	info := compute.Action(name).Info()
	return cmp.Or(info.Name, name), info.Event
}

// pastEvents returns the events of an operation: each end of work that a compute service has reported, what it does now, and the error of an
// operation that has failed without such a report.
func pastEvents(o *operation.Operation) (out []PastEvent) {
	_, name := namesOf(o.Kind)
	if name == "" {
		return nil
	}
	if len(o.Steps) == 0 && o.Ended != nil { // it was recorded at its end
		return []PastEvent{{Name: name, Start: o.Created, Finish: o.Ended, Error: o.Error}}
	}
	details := ""
	if a := compute.Action(strings.TrimPrefix(o.Kind, kindPrefix)); a.Info().Name != "" {
		details = failedAction(a, o.Resource)
	}
	for _, e := range o.Events {
		if e.Reporter == "" || e.Result == "retry" {
			continue
		}
		one := PastEvent{Name: name, Start: e.Began, Finish: &e.Ended, Host: e.Reporter, Error: e.Error}
		if e.Error != "" {
			one.Details = details
		}
		out = append(out, one)
	}
	switch failed := o.State.Ended() && o.State != operation.Succeeded; {
	case o.Ended == nil && o.WaitsFor != "":
		out = append(out, PastEvent{Name: name, Start: o.Updated, Host: o.WaitsFor})
	case failed && (len(out) == 0 || out[len(out)-1].Error == ""):
		out = append(out, PastEvent{Name: name, Start: o.Created, Finish: o.Ended, Error: o.Error, Details: details})
	}
	return out
}
