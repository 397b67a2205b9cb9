package store

import (
	"cmp"
	"context"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// PastAction is an operation on a server in the form in which the API shows actions.
type PastAction struct {
	// Name is Nova's name of the action.
	Name                                   string
	ServerID, RequestID, UserID, ProjectID string
	Start, Updated                         time.Time
	Failed                                 bool
	// Events are the events of the action, the oldest first. Only [Store.PastAction] reads them.
	Events []PastEvent
}

// PastEvent is an event of an action. In most cases it is a part of the action that a compute service has done.
type PastEvent struct {
	// Name is Nova's name of the event.
	Name  string
	Start time.Time
	// Finish is nil while the compute service still works.
	Finish *time.Time
	// Host is the host of the compute service, or "" if no compute service has reported.
	Host string
	// Error is the error for administrators, or "". Details is the text of the error for the server's project.
	Error, Details string
}

// PastQuery selects actions on a server.
type PastQuery struct {
	// Marker is the request ID of the last action of the previous page.
	Marker string
	// Limit is the maximum number of actions. 0: no actions.
	Limit int
	// Since and Until limit the time of the last change, both inclusive. Zero: no limit.
	Since, Until time.Time
}

// PastActions returns the actions on a server, the newest first. It leaves out operations that nova-mini has begun by itself. Errors: Invalid if the marker
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
	if q.Limit == 0 { // in operation.Filter, 0 means the default limit
		return nil, nil
	}
	list, err := s.ops.List(ctx, f)
	out := make([]PastAction, len(list))
	for i := range list {
		out[i] = pastAction(&list[i])
	}
	return out, err
}

// operationOf returns the operation on a server that a request has begun, or nil. The parameter request is the request ID.
func (s *Store) operationOf(ctx context.Context, id, request string) (*operation.Operation, error) {
	list, err := s.ops.List(ctx, operation.Filter{Resource: id, RequestID: request, Limit: 1})
	if err != nil || len(list) == 0 || request == "" {
		return nil, err
	}
	return &list[0], nil
}

// PastAction returns the action that a request has begun on a server, with its events. Errors: NotFound.
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

// PastServer returns the ID, the project and the user of a deleted server. It reads them from the operation that created the server.
// Errors: NotFound, also if the server's operations have been purged.
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

// namesOf returns Nova's name of the action that operations of a kind do, and Nova's name of the event for the compute service's part.
func namesOf(kind string) (action, event string) {
	switch kind {
	case Create.Name:
		return "create", "compute__do_build_and_run_instance"
	case Delete.Name:
		return "delete", "compute_terminate_instance"
	}
	a := actionOf(kind)
	return cmp.Or(a.Info().Name, string(a)), a.Info().Event
}

// failureDetails returns the text about the failure of an operation for the server's project. It returns "" for operations that do no
// action of compute.Actions.
func failureDetails(o *operation.Operation) string {
	a := actionOf(o.Kind)
	switch {
	case a.Info().Name == "":
		return ""
	case o.State == operation.Canceled:
		return failedAction(a, o.Resource) + " Another action or an operator has ended it."
	}
	return failedAction(a, o.Resource)
}

// pastEvents returns the events of an operation: one for each report of a compute service, one for the work that a compute service does now,
// and one for the error of an operation that has failed without such a report. An action that the API service has done at once has one event.
func pastEvents(o *operation.Operation) (out []PastEvent) {
	_, name := namesOf(o.Kind)
	if name == "" {
		return nil
	}
	if len(o.Steps) == 0 && o.State == operation.Succeeded { // an action without steps, which Store.record has recorded
		return []PastEvent{{Name: name, Start: o.Created, Finish: o.Ended}}
	}
	details := failureDetails(o)
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
	case o.State == operation.Succeeded && changesInterfaces(o.Kind): // the conductor calls the compute service, which does not report
		out = append(out, PastEvent{Name: name, Start: o.Created, Finish: o.Ended})
	case o.Ended == nil && o.WaitsFor != "":
		out = append(out, PastEvent{Name: name, Start: o.Updated, Host: o.WaitsFor})
	case failed && (len(out) == 0 || out[len(out)-1].Error == ""):
		out = append(out, PastEvent{Name: name, Start: o.Created, Finish: o.Ended, Error: o.Error, Details: details})
	}
	return out
}
