package api

import (
	"context"
	"net/http"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleActionList    = "os_compute_api:os-instance-actions:list"
	ruleActionShow    = "os_compute_api:os-instance-actions:show"
	ruleActionEvents  = "os_compute_api:os-instance-actions:events"
	ruleActionDetails = "os_compute_api:os-instance-actions:events:details"
)

var instanceActionRules = []rule{
	{ruleActionList, "rule:project_reader_or_admin", "List the actions on a server", "GET", "/servers/{server_id}/os-instance-actions"},
	{ruleActionShow, "rule:project_reader_or_admin", "Show an action on a server", "GET", "/servers/{server_id}/os-instance-actions/{request_id}"},
	{ruleActionEvents, "rule:context_is_admin", "Show the hosts and the errors of an action's events", "GET", "/servers/{server_id}/os-instance-actions/{request_id}"},
	{ruleActionDetails, "rule:context_is_admin", "Show details of an action's events", "GET", "/servers/{server_id}/os-instance-actions/{request_id}"},
}

// instanceActionLists has the parameters of the list since 2.58. Before 2.58 the list has no parameters.
var instanceActionLists = listing.Spec{
	MaxLimit: MaxLimit, Default: listing.SortKey{Column: "created_at", Desc: true},
	Filters: []listing.Filter{
		{Name: "changes-since", Kind: listing.Time, Operator: listing.AtLeast},
		{Name: "changes-before", Kind: listing.Time, Operator: listing.AtMost, Since: "2.66"},
	},
}

func (s *server) instanceActionRoutes(all, _ *api.Group) {
	g := api.NewGroup(all, api.Route{Pattern: "/servers/{id}/os-instance-actions", Errors: []int{notFound}})
	list := api.Route{Pattern: "GET", Rule: ruleActionList, Summary: "List the actions on a server, the newest first"}
	show := api.Route{Pattern: "GET /{request_id}", Rule: ruleActionShow, Summary: "Show an action on a server"}
	between := func(def api.Route, low, high string) api.Route {
		def.Min, def.Max = low, high
		return def
	}
	paged := between(list, "2.58", "")
	paged.List = &instanceActionLists
	// Since 2.21 the actions on a deleted server are shown.
	api.HandleTarget(g, between(list, "", "2.20"), s.target(), s.listActions)
	api.HandleTarget(g, between(list, "2.21", "2.57"), s.pastTarget(), s.listActions)
	api.HandleTarget(g, paged, s.pastTarget(), s.pageActions)
	api.HandleTarget(g, between(show, "", "2.20"), s.target(), s.showAction)
	show.Query = noQuery
	api.HandleTarget(g, between(show, "2.21", ""), s.pastTarget(), s.showAction)
}

// pastTarget returns the target of a route whose path names a server that may be deleted. A deleted server has only its ID, its project and its user.
func (s *server) pastTarget() api.Target[*store.Server] {
	t := s.target()
	load := t.Load
	t.Load = func(ctx context.Context, r *http.Request) (*store.Server, error) {
		srv, err := load(ctx, r)
		if fault.CodeOf(err) == fault.NotFound && err != nil {
			return s.cfg.Store.PastServer(ctx, r.PathValue("id"))
		}
		return srv, err
	}
	return t
}

type instanceActions struct {
	Actions []instanceAction `json:"instanceActions"`
	Links   []api.Link       `json:"links,omitempty" since:"2.58"`
}

// instanceAction is an action on a server. Message is "Error" for a failed action, and null for any other action.
type instanceAction struct {
	Action    string  `json:"action"`
	ServerID  string  `json:"instance_uuid"`
	RequestID string  `json:"request_id"`
	UserID    *string `json:"user_id"`
	ProjectID *string `json:"project_id"`
	Start     micros  `json:"start_time"`
	Message   *string `json:"message"`
	Updated   micros  `json:"updated_at" since:"2.58"`
}

type oneInstanceAction struct {
	Action shownAction `json:"instanceAction"`
}

// shownAction is an action with its events. Before 2.51 the reply has the events only if the client may see errors, too. Since 2.51 each client gets the events.
type shownAction struct {
	instanceAction

	Events    []eventCore   `json:"events" until:"2.50" rule:"os_compute_api:os-instance-actions:events"`
	AllEvents []actionEvent `json:"all_events" name:"events" since:"2.51"`
}

// eventCore is an event of an action, see store.PastEvent.
type eventCore struct {
	Event     string  `json:"event"`
	Start     micros  `json:"start_time"`
	Finish    *micros `json:"finish_time"`
	Result    *string `json:"result"`
	Traceback *string `json:"traceback" rule:"os_compute_api:os-instance-actions:events"`
}

// actionEvent is an event with its host and details.
type actionEvent struct {
	eventCore

	Host    *string `json:"host" since:"2.62" rule:"os_compute_api:os-instance-actions:events"`
	HostID  string  `json:"hostId" since:"2.62"`
	Details *string `json:"details" since:"2.84" rule:"os_compute_api:os-instance-actions:events:details"`
}

func viewAction(a *store.PastAction) instanceAction {
	v := instanceAction{
		Action: a.Name, ServerID: a.ServerID, RequestID: a.RequestID, UserID: orNull(a.UserID), ProjectID: orNull(a.ProjectID),
		Start: *formatMicros(&a.Start), Updated: *formatMicros(&a.Updated),
	}
	if a.Failed {
		v.Message = new("Error")
	}
	return v
}

// orNull returns nil for an empty text.
func orNull(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// listActions lists the actions on a server without pages, as Nova did until 2.57.
func (s *server) listActions(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (instanceActions, error) {
	return s.actionsOf(ctx, srv, store.PastQuery{Limit: MaxLimit})
}

func (s *server) actionsOf(ctx context.Context, srv *store.Server, q store.PastQuery) (instanceActions, error) {
	list, err := s.cfg.Store.PastActions(ctx, srv.ID, q)
	out := instanceActions{Actions: []instanceAction{}}
	for i := range list {
		out.Actions = append(out.Actions, viewAction(&list[i]))
	}
	return out, err
}

func (s *server) pageActions(ctx context.Context, r *api.Request[api.None], srv *store.Server) (out instanceActions, err error) {
	q := store.PastQuery{Marker: r.List.Marker, Limit: r.List.Limit}
	for name, to := range map[string]*time.Time{"changes-since": &q.Since, "changes-before": &q.Until} {
		for _, c := range r.List.Take(name) {
			*to, _ = c.Values[0].(time.Time)
		}
	}
	if !q.Since.IsZero() && !q.Until.IsZero() && q.Until.Before(q.Since) {
		return out, fault.New(fault.Invalid, "The value of changes-since must be less than or equal to changes-before.")
	}
	out, err = s.actionsOf(ctx, srv, q)
	if n := len(out.Actions); n > 0 {
		out.Links = r.NextPage(n, out.Actions[n-1].RequestID)
	}
	return out, err
}

func (s *server) showAction(ctx context.Context, r *api.Request[api.None], srv *store.Server) (out oneInstanceAction, err error) {
	a, err := s.cfg.Store.PastAction(ctx, srv.ID, r.PathValue("request_id"))
	if err != nil {
		return out, err
	}
	out.Action = shownAction{instanceAction: viewAction(a), Events: []eventCore{}, AllEvents: []actionEvent{}}
	for _, e := range a.Events {
		core := eventCore{Event: e.Name, Start: *formatMicros(&e.Start), Finish: formatMicros(e.Finish), Traceback: orNull(e.Error)}
		switch {
		case e.Error != "":
			core.Result = new("Error")
		case e.Finish != nil:
			core.Result = new("Success")
		}
		v := actionEvent{eventCore: core, Host: orNull(e.Host), Details: orNull(e.Details)}
		if e.Host != "" {
			v.HostID = hostID(&store.Server{ProjectID: srv.ProjectID, Host: &e.Host})
		}
		out.Action.Events, out.Action.AllEvents = append(out.Action.Events, core), append(out.Action.AllEvents, v)
	}
	return out, nil
}
