package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
)

// actionRules are the rules of the actions, one for each name of a rule.
var actionRules = func() (out []rule) {
	for _, info := range compute.Actions {
		if !slices.ContainsFunc(out, func(r rule) bool { return r.name == info.Rule }) {
			out = append(out, rule{info.Rule, "rule:project_member_or_admin", info.Summary, "POST", "/servers/{server_id}/action (" + info.Request + ")"})
		}
	}
	return out
}()

// handlers registers the actions whose requests or replies have a body. Each other action of compute.Actions begins an operation.
var handlers = map[compute.Action]func(s *server, g *api.Group, def api.Route){
	compute.SoftReboot: func(s *server, g *api.Group, def api.Route) { api.HandleTarget(g, def, s.target(), s.reboot) },
	compute.Resize:     func(s *server, g *api.Group, def api.Route) { api.HandleTarget(g, def, s.target(), s.resize) },
	compute.ConsoleOutput: func(s *server, g *api.Group, def api.Route) {
		def.Errors = []int{http.StatusNotImplemented}
		api.HandleTarget(g, def, s.target(), s.console)
	},
}

func (s *server) actionRoutes(_, withBody *api.Group) {
	g := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}/action", Errors: []int{notFound, conflict, unavailable}})
	seen := map[string]bool{}
	for _, info := range compute.Actions {
		if seen[info.Request] {
			continue
		}
		seen[info.Request] = true
		def := api.Route{Pattern: "POST", Action: info.Request, Rule: info.Rule, Summary: info.Summary, Status: cmp.Or(info.Status, http.StatusAccepted)}
		if add := handlers[info.Action]; add != nil {
			add(s, g, def)
			continue
		}
		api.HandleTarget(g, def, s.target(), s.actionHandler(info.Action))
	}
}

// beginAction begins the operation of an action. It does not wait for the action.
func (s *server) beginAction(ctx context.Context, srv *store.Server, a compute.Action) (api.None, error) {
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	if err := s.cfg.Store.BeginAction(ctx, srv.ID, a); err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, srv.ID)
	return api.None{}, nil
}

// actionHandler returns the handler of an action without parameters.
func (s *server) actionHandler(a compute.Action) func(context.Context, *api.Request[api.None], *store.Server) (api.None, error) {
	return func(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
		return s.beginAction(ctx, srv, a)
	}
}

type reboot struct {
	Reboot struct {
		Type string `json:"type" enum:"HARD,Hard,hard,SOFT,Soft,soft"`
	} `json:"reboot"`
}

func (s *server) reboot(ctx context.Context, r *api.Request[reboot], srv *store.Server) (api.None, error) {
	a := compute.HardReboot
	if strings.EqualFold(r.Body.Reboot.Type, "soft") {
		a = compute.SoftReboot
	}
	return s.beginAction(ctx, srv, a)
}

type resize struct {
	Resize struct {
		FlavorRef  reference `json:"flavorRef"`
		DiskConfig string    `json:"OS-DCF:diskConfig,omitempty" enum:"MANUAL"`
	} `json:"resize"`
}

func (s *server) resize(ctx context.Context, r *api.Request[resize], srv *store.Server) (api.None, error) {
	f, err := s.flavor(ctx, r.Body.Resize.FlavorRef)
	if err != nil {
		return api.None{}, err
	}
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	err = s.cfg.Store.BeginResize(ctx, srv.ID, f)
	if errors.Is(err, placement.ErrNoRoom) {
		s.cfg.Logger.InfoContext(ctx, "resize refused", "server", srv.ID, "flavor", f.ID, "error", err)
		err = fault.New(fault.Invalid, "No valid host was found. No valid host found for resize")
	}
	if err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, srv.ID)
	return api.None{}, nil
}

type console struct {
	Console struct {
		Length lineCount `json:"length,omitzero"`
	} `json:"os-getConsoleOutput"`
}

// lineCount is a number of lines, or a number as a text. -1 and null are all lines.
type lineCount struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (lineCount) JSONSchema() string {
	return `{"type": ["integer", "string", "null"], "pattern": "^-?[0-9]+$", "minimum": -1}`
}

type consoleOutput struct {
	Output string `json:"output"`
}

// lines returns the number of lines that the client asks for. 0: all lines.
func (c *console) lines() int {
	n, err := strconv.Atoi(plainText(c.Console.Length.RawMessage))
	if err != nil { // the request has no number of lines, or a number above the largest int
		return 0
	}
	return max(n, 0) // -1 means all lines
}

// hideDetails adds to an error of another service the text that clients read, because the text of the error itself names
// hosts and topics. A code that would blame the client's request, such as Invalid or Denied, becomes Internal.
func hideDetails(err error, text string) error {
	code := fault.CodeOf(err)
	switch code {
	case fault.NotFound, fault.Conflict, fault.Precondition, fault.Unavailable, fault.Timeout, fault.Unknown, fault.Canceled:
	default:
		code = fault.Internal
	}
	return fault.WithUser(fault.New(code, "%w", err), text)
}

// console reads the server's console log from the compute service of the server's host.
func (s *server) console(ctx context.Context, r *api.Request[console], srv *store.Server) (out consoleOutput, err error) {
	if srv.Host == nil {
		return out, fault.New(fault.Conflict, "Instance %s is not ready", srv.ID)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.ReadConsole, *srv.Host, &compute.ConsoleRequest{ServerID: srv.ID, Lines: r.Body.lines()})
	switch {
	case errors.Is(err, fault.Unimplemented):
		return out, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "Unable to get console log, functionality not implemented"))
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "console log not read", "server", srv.ID, "host", *srv.Host, "error", err)
		return out, hideDetails(err, fmt.Sprintf("Unable to get console log of instance %s.", srv.ID))
	}
	return consoleOutput{got.Output}, nil
}
