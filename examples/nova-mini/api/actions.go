package api

import (
	"cmp"
	"context"
	"crypto/rand"
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
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
)

// actionRules are the rules of the actions, one for each name of a rule.
var actionRules = func() []rule {
	out := []rule{{ruleUnlockAny, "rule:context_is_admin", "Unlock a server that another has locked", "POST", "/servers/{server_id}/action (unlock)"}}
	for _, info := range compute.Actions {
		if slices.ContainsFunc(out, func(r rule) bool { return r.name == info.Rule }) {
			continue
		}
		check := "rule:project_member_or_admin"
		if info.Admin {
			check = "rule:context_is_admin"
		}
		out = append(out, rule{info.Rule, check, info.Summary, "POST", "/servers/{server_id}/action (" + info.Request + ")"})
	}
	return out
}()

// ruleUnlockAny is the rule of those who may unlock a server that an administrator has locked, or, as an administrator, one that its project has
// locked.
const ruleUnlockAny = "os_compute_api:os-lock-server:unlock:unlock_override"

// handlers registers the actions that have a body, or that the API service does itself. Each other action of compute.Actions only begins an
// operation.
var handlers = map[compute.Action]func(s *server, g *api.Group, def api.Route, info compute.ActionInfo){
	compute.SoftReboot:    actionOf((*server).reboot),
	compute.Resize:        actionOf((*server).resize),
	compute.Rescue:        actionOf((*server).rescue),
	compute.Lock:          actionOf((*server).lock),
	compute.Unlock:        actionOf((*server).unlock),
	compute.ResetState:    actionOf((*server).resetState),
	compute.ForceDelete:   actionOf((*server).deleteServer),
	compute.Restore:       actionOf((*server).restore),
	compute.ConsoleOutput: actionOf((*server).console),
}

func (s *server) actionRoutes(_, withBody *api.Group) {
	g := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}/action", Errors: []int{notFound, conflict, http.StatusNotImplemented, unavailable}})
	seen := map[string]bool{}
	for _, info := range compute.Actions {
		if seen[info.Request] {
			continue
		}
		seen[info.Request] = true
		add := handlers[info.Action]
		if add == nil {
			add = actionOf(func(s *server, ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
				return api.None{}, s.beginAction(ctx, srv, info.Action, store.ActData{})
			})
		}
		add(s, g, api.Route{Pattern: "POST", Action: info.Request, Rule: info.Rule, Summary: info.Summary, Status: cmp.Or(info.Status, http.StatusAccepted)}, info)
	}
}

// actionOf returns the function that registers an action with its handler. A locked server refuses the action, unless the action is allowed then.
func actionOf[B, R any](h func(*server, context.Context, *api.Request[B], *store.Server) (R, error)) func(*server, *api.Group, api.Route, compute.ActionInfo) {
	return func(s *server, g *api.Group, def api.Route, info compute.ActionInfo) {
		api.HandleTarget(g, def, s.target(), func(ctx context.Context, r *api.Request[B], srv *store.Server) (out R, err error) {
			if !info.WhenLocked {
				err = s.checkLock(ctx, srv)
			}
			if err == nil {
				out, err = h(s, ctx, r, srv)
			}
			return out, err
		})
	}
}

// checkLock returns Conflict if a server is locked and the client is not an administrator.
func (s *server) checkLock(ctx context.Context, srv *store.Server) error {
	if srv.LockedBy == "" || s.administrator(ctx) {
		return nil
	}
	return fault.New(fault.Conflict, "Instance %s is locked", srv.ID)
}

// beginAction begins the operation of an action. It does not wait for the action.
func (s *server) beginAction(ctx context.Context, srv *store.Server, a compute.Action, data store.ActData) error {
	if err := s.checkBus(ctx); err != nil {
		return err
	}
	err := s.cfg.Store.BeginAction(ctx, srv.ID, a, data)
	if err == nil {
		s.notifyConductor(ctx, srv.ID)
	}
	return notImplemented(err)
}

// notImplemented gives the error Unimplemented the status that Nova's API has for it.
func notImplemented(err error) error {
	if err != nil && fault.CodeOf(err) == fault.Unimplemented {
		return api.WithStatus(http.StatusNotImplemented, err)
	}
	return err
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
	return api.None{}, s.beginAction(ctx, srv, a, store.ActData{})
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
	err = s.beginAction(ctx, srv, compute.Resize, store.ActData{Resize: store.SizeOf(f)})
	if errors.Is(err, placement.ErrNoRoom) {
		s.cfg.Logger.InfoContext(ctx, "resize refused", "server", srv.ID, "flavor", f.ID, "error", err)
		err = fault.New(fault.Invalid, "No valid host was found. No valid host found for resize")
	}
	return api.None{}, err
}

type rescue struct {
	Rescue *struct {
		AdminPass string `json:"adminPass,omitempty"`
		ImageRef  string `json:"rescue_image_ref,omitempty" format:"uuid"`
	} `json:"rescue"`
}

// password is the reply that names the password of a guest's administrator.
type password struct {
	AdminPass string `json:"adminPass"`
}

// newPassword returns a random password.
func newPassword() string { return rand.Text()[:12] }

func (s *server) rescue(ctx context.Context, r *api.Request[rescue], srv *store.Server) (out password, err error) {
	out.AdminPass = newPassword()
	var data store.ActData
	if in := r.Body.Rescue; in != nil {
		out.AdminPass, data.ImageRef = cmp.Or(in.AdminPass, out.AdminPass), in.ImageRef
	}
	return out, s.beginAction(ctx, srv, compute.Rescue, data)
}

// lock locks a server for its project, or, if the client is of another project, for administrators. A member of the project cannot lock a
// server once more.
func (s *server) lock(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	by := owner(ctx, srv)
	if srv.LockedBy != "" && by == store.LockedByOwner {
		return api.None{}, nil
	}
	return api.None{}, s.cfg.Store.LockServer(ctx, srv.ID, by, "")
}

// owner returns as whom a client locks a server.
func owner(ctx context.Context, srv *store.Server) string {
	if reqctx.From(ctx).ProjectID == srv.ProjectID {
		return store.LockedByOwner
	}
	return store.LockedByAdmin
}

func (s *server) unlock(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	if srv.LockedBy != "" && srv.LockedBy != owner(ctx, srv) {
		if err := s.mux.Enforce(ctx, ruleUnlockAny, map[string]any{"project_id": srv.ProjectID}); err != nil {
			return api.None{}, err
		}
	}
	return api.None{}, s.cfg.Store.UnlockServer(ctx, srv.ID)
}

type resetState struct {
	Reset struct {
		State string `json:"state" enum:"active,error"`
	} `json:"os-resetState"`
}

func (s *server) resetState(ctx context.Context, r *api.Request[resetState], srv *store.Server) (api.None, error) {
	return api.None{}, s.cfg.Store.ResetState(ctx, srv.ID, r.Body.Reset.State)
}

// restore refuses every server: nova-mini deletes servers at once.
func (s *server) restore(_ context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, fault.New(fault.Conflict, "Cannot 'restore' instance %s while it is in vm_state %s", srv.ID, srv.VMState)
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
		return out, store.NotReady(srv.ID)
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
