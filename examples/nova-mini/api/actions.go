package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
)

// actionRules are the policy rules of the actions. A rule that several actions have is in the list once.
var actionRules = func() []rule {
	out := []rule{
		{ruleUnlockAny, "rule:context_is_admin", "Unlock a server that a client of another project has locked", "POST", "/servers/{server_id}/action (unlock)"},
		{ruleUnshelveHost, "rule:context_is_admin", "Unshelve a server to a chosen host", "POST", "/servers/{server_id}/action (unshelve)"},
	}
	for _, info := range compute.Actions {
		if info.Request == "" || slices.ContainsFunc(out, func(r rule) bool { return r.name == info.Rule }) {
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

// ruleUnlockAny is the rule for unlocking a server that a client of another project has locked. It is checked for a member of the server's
// project if an administrator has locked the server, and for any other client if the server's project has locked the server.
const ruleUnlockAny = "os_compute_api:os-lock-server:unlock:unlock_override"

// actionHandler registers the handler of an action.
type actionHandler func(s *server, g *api.Group, def api.Route, info compute.ActionInfo)

// handlers has the handlers of actions whose requests have content, or that the API service does itself. Further handlers are in
// consoleHandlers, rebuildHandlers, groupHandlers, addressHandlers and snapshotHandlers. An action without a handler only begins an operation.
var handlers = map[compute.Action]actionHandler{
	compute.SoftReboot:  actionOf((*server).reboot),
	compute.Resize:      actionOf((*server).resize),
	compute.Rescue:      actionOf((*server).rescue),
	compute.Lock:        inTwoForms("2.72", actionOf((*server).lockPlain), "2.73", actionOf((*server).lock)),
	compute.Unlock:      actionOf((*server).unlock),
	compute.ResetState:  actionOf((*server).resetState),
	compute.ForceDelete: actionOf((*server).forceDelete),

	compute.Shelve:         actionOf((*server).shelve),
	compute.Unshelve:       inTwoForms("2.76", actionOf((*server).unshelvePlain), "2.77", inTwoForms("2.90", actionOf((*server).unshelveInZone), "2.91", actionOf((*server).unshelve))),
	compute.ChangePassword: actionOf((*server).changePassword),
	compute.InjectNetwork:  actionOf((*server).injectNetwork),
	compute.CrashDump:      actionOf((*server).crashDump),
}

// gone are the names of actions that Nova has removed.
var gone = []string{"resetNetwork"}

func (s *server) actionRoutes(_, withBody *api.Group) {
	g := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}/action", Errors: []int{notFound, conflict, http.StatusNotImplemented, unavailable}})
	seen := map[string]bool{}
	for _, info := range compute.Actions {
		if info.Request == "" || seen[info.Request] {
			continue
		}
		seen[info.Request] = true
		var add actionHandler
		for _, of := range []map[compute.Action]actionHandler{handlers, consoleHandlers, rebuildHandlers, groupHandlers, addressHandlers, snapshotHandlers} {
			if h := of[info.Action]; h != nil {
				add = h
			}
		}
		if add == nil {
			add = actionOf(func(s *server, ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
				return api.None{}, s.beginAction(ctx, srv, info.Action, store.ActData{})
			})
		}
		add(s, g, api.Route{Pattern: "POST", Action: info.Request, Min: info.Added, Max: info.Until, Rule: info.Rule, Summary: info.Summary, Status: cmp.Or(info.Status, http.StatusAccepted)}, info)
	}
	for _, name := range gone {
		registerRefusal(g, api.Route{Pattern: "POST", Action: name, Summary: removed, Errors: []int{http.StatusGone}}, errGone)
	}
	refuseOtherVersions(g)
}

// errNoResource is the error for a route or an action that the version of the request does not have.
var errNoResource = fault.New(fault.NotFound, "The resource could not be found.")

// refuseOtherVersions registers handlers that refuse an action in those microversions that do not have the action.
func refuseOtherVersions(g *api.Group) {
	for _, info := range compute.Actions {
		if added, err := api.ParseVersion(info.Added); err == nil {
			added.Minor--
			registerRefusal(g, api.Route{Pattern: "POST", Action: info.Request, Max: added.String(), Summary: "Added later", Errors: []int{http.StatusNotFound}}, errNoResource)
		}
		if until, err := api.ParseVersion(info.Until); err == nil { // the last version that has the action
			until.Minor++
			registerRefusal(g, api.Route{Pattern: "POST", Action: info.Request, Min: until.String(), Summary: "Removed", Errors: []int{http.StatusNotFound}}, errNoResource)
		}
	}
}

// registerRefusal registers an action or a route that some or all microversions do not have. The handler always returns err. The first status of
// def.Errors must be the status of err.
func registerRefusal(g *api.Group, def api.Route, err error) {
	def.Status = def.Errors[0]
	api.HandleRoute(g, def, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, err })
}

// actionOf returns the function that registers an action with the handler h. On a locked server the action is refused, unless
// ActionInfo.WhenLocked is set.
func actionOf[B, R any](h func(*server, context.Context, *api.Request[B], *store.Server) (R, error)) actionHandler {
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

// inTwoForms returns the handler of an action whose request or reply has changed with a microversion. The handler in the parameter named
// before serves the microversions up to the one in the parameter until. The handler in the parameter named from serves the later
// microversions. The parameter since is the first of these.
func inTwoForms(until string, before actionHandler, since string, from actionHandler) actionHandler {
	return func(s *server, g *api.Group, def api.Route, info compute.ActionInfo) {
		one, two := def, def
		one.Max, two.Min = until, since
		before(s, g, one, info)
		from(s, g, two, info)
	}
}

// checkLock returns Conflict if a server is locked and the client is not an administrator.
func (s *server) checkLock(ctx context.Context, srv *store.Server) error {
	if srv.LockedBy == "" || s.administrator(ctx) {
		return nil
	}
	return fault.New(fault.Conflict, "Instance %s is locked", srv.ID)
}

// beginAction begins the operation of an action, and notifies a conductor. It does not wait for the end of the action.
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

// notImplemented returns err, with the status 501 if its code is Unimplemented, as in Nova's API.
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
		DiskConfig string    `json:"OS-DCF:diskConfig,omitempty" enum:"AUTO,MANUAL"`
	} `json:"resize"`
}

func (s *server) resize(ctx context.Context, r *api.Request[resize], srv *store.Server) (api.None, error) {
	if err := store.CheckAction(srv, compute.Resize); err != nil { // as in Nova, the state of the server is the first reason to refuse
		return api.None{}, err
	}
	f, err := s.flavor(ctx, r.Body.Resize.FlavorRef)
	if err != nil {
		return api.None{}, err
	}
	if err := s.checkFlavorDisks(ctx, f); err != nil {
		return api.None{}, err
	}
	if err := checkSameDisks(srv, f); err != nil {
		return api.None{}, err
	}
	if err := s.checkResizeHost(ctx, srv, f); err != nil {
		return api.None{}, err
	}
	if err := checkDiskConfig(r.Body.Resize.DiskConfig, srv.ImageRef, srv.ImageProperties.V); err != nil {
		return api.None{}, err
	}
	data := store.ActData{Resize: store.SizeOf(f)}
	data.Resize.Boot.OwnDisks = srv.Flavor().OwnDisks
	if disk := r.Body.Resize.DiskConfig; disk != "" {
		data.AutoDisk = new(disk == "AUTO")
	}
	err = s.beginAction(ctx, srv, compute.Resize, data)
	if errors.Is(err, placement.ErrNoRoom) {
		s.logNoResizeHost(ctx, srv, f, err.Error())
		err = errNoResizeHost
	}
	return api.None{}, err
}

var errNoResizeHost = fault.New(fault.Invalid, "No valid host was found. No valid host found for resize")

// checkResizeHost returns Invalid, with Nova's text, if the host of a server does not pass the filters for a flavor. The server stays on its host during a resize.
func (s *server) checkResizeHost(ctx context.Context, srv *store.Server, f *store.Flavor) error {
	if srv.Host == nil {
		return nil
	}
	req := compute.SelectRequest{ServerID: srv.ID, Need: f.Resources(), Guest: srv.GuestNeeds(), Specs: f.Specs()}
	if srv.PinnedZone != nil {
		req.Zone = *srv.PinnedZone
	}
	refusal, err := s.refusalOf(ctx, *srv.Host, &req)
	if err == nil && refusal != "" {
		s.logNoResizeHost(ctx, srv, f, refusal)
		err = errNoResizeHost
	}
	return err
}

// logNoResizeHost says for administrators why a server cannot be resized on its host. The client gets Nova's text, which has no reason.
func (s *server) logNoResizeHost(ctx context.Context, srv *store.Server, f *store.Flavor, reason string) {
	s.cfg.Logger.InfoContext(ctx, "no valid host for a resize, which stays on its host", "server", srv.ID, "host", *srv.Host, "flavor", f.ID, "reason", reason)
}

// refusalOf returns why a host does not exist, or does not pass those filters that also apply to a server that stays on its host. It returns "" if the host passes.
func (s *server) refusalOf(ctx context.Context, host string, req *compute.SelectRequest) (string, error) {
	hosts, err := s.hosts(ctx)
	if err != nil {
		return "", err
	}
	return scheduler.Config{Filters: s.cfg.Filters}.Refusal(ctx, hosts, host, req)
}

type rescue struct {
	Rescue *struct {
		AdminPass givenText `json:"adminPass,omitzero"` // as in Nova, an empty password is one
		ImageRef  string    `json:"rescue_image_ref,omitempty" min:"1" max:"255"`
	} `json:"rescue"`
}

// rescued is the reply to a rescue. It has the password of the guest's administrator.
type rescued struct {
	AdminPass string `json:"adminPass"`
}

func (s *server) rescue(ctx context.Context, r *api.Request[rescue], srv *store.Server) (out rescued, err error) {
	if err := store.CheckAction(srv, compute.Rescue); err != nil {
		return out, err
	}
	var data store.ActData
	if in := r.Body.Rescue; in != nil {
		if data.ImageRef = in.ImageRef; in.AdminPass.RawMessage != nil {
			data.AdminPass = new(plainText(in.AdminPass.RawMessage))
		}
	}
	if data.AdminPass == nil {
		data.AdminPass = new(newPassword())
	}
	if data.ImageRef == "" && s.keeper() != nil { // the compute service downloads the server's image if the host no longer has it
		data.ImageRef = srv.ImageRef
	} else if _, err := s.checkImage(ctx, r.Request, data.ImageRef, "Requested rescue image '"+data.ImageRef+"' is not supported", "", srv.MemoryMiB, 0); err != nil {
		return out, err
	}
	return rescued{*data.AdminPass}, s.beginAction(ctx, srv, compute.Rescue, data)
}

type lock struct {
	Lock *struct {
		Reason string `json:"locked_reason,omitempty" min:"1" max:"255"`
	} `json:"lock"`
}

func (s *server) lock(ctx context.Context, r *api.Request[lock], srv *store.Server) (api.None, error) {
	if r.Body.Lock == nil {
		return api.None{}, s.lockServer(ctx, srv, "")
	}
	return api.None{}, s.lockServer(ctx, srv, r.Body.Lock.Reason)
}

// lockPlain is lock without a reason.
func (s *server) lockPlain(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, s.lockServer(ctx, srv, "")
}

// lockServer locks a server. A client of the server's project locks the server as the owner, any other client as an administrator. If the
// server is locked already, a lock by the owner has no effect.
func (s *server) lockServer(ctx context.Context, srv *store.Server, reason string) error {
	by := lockOwner(ctx, srv)
	if srv.LockedBy != "" && by == store.LockedByOwner { // not recorded
		return nil
	}
	return s.cfg.Store.LockServer(ctx, srv.ID, by, reason)
}

// lockOwner returns LockedByOwner for a client of the server's project, and LockedByAdmin for any other client.
func lockOwner(ctx context.Context, srv *store.Server) string {
	if reqctx.From(ctx).ProjectID == srv.ProjectID {
		return store.LockedByOwner
	}
	return store.LockedByAdmin
}

func (s *server) unlock(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	if srv.LockedBy != "" && srv.LockedBy != lockOwner(ctx, srv) {
		if err := s.mux.Enforce(ctx, ruleUnlockAny, map[string]any{"project_id": srv.ProjectID}); err != nil {
			return api.None{}, err
		}
	}
	return api.None{}, s.cfg.Store.UnlockServer(ctx, srv.ID, srv.LockedBy)
}

type resetState struct {
	Reset struct {
		State string `json:"state" enum:"active,error"`
	} `json:"os-resetState"`
}

func (s *server) resetState(ctx context.Context, r *api.Request[resetState], srv *store.Server) (api.None, error) {
	return api.None{}, s.cfg.Store.ResetState(ctx, srv.ID, r.Body.Reset.State)
}

// shelve begins to shelve a server. The image of the server's disk has a new ID each time.
func (s *server) shelve(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	id, undo, err := s.newSnapshot(ctx, r.Request, srv, compute.Shelve, store.Image{Name: srv.Name + "-shelved"})
	if err == nil {
		err = undo(s.beginAction(ctx, srv, compute.Shelve, store.ActData{ImageRef: id, Upload: s.keeper() != nil}))
	}
	return api.None{}, err
}

type unshelveInZone struct {
	Unshelve *struct {
		Zone name `json:"availability_zone"`
	} `json:"unshelve"`
}

type unshelve struct {
	Unshelve *struct {
		Zone nullableText `json:"availability_zone,omitzero"`
		Host string       `json:"host,omitempty"`
	} `json:"unshelve"`
}

// nullableText is a text, or null.
type nullableText struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (nullableText) JSONSchema() string { return `{"type": ["string", "null"]}` }

func (s *server) unshelvePlain(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, s.beginAction(ctx, srv, compute.Unshelve, store.ActData{})
}

func (s *server) unshelveInZone(ctx context.Context, r *api.Request[unshelveInZone], srv *store.Server) (api.None, error) {
	var data store.ActData
	if r.Body.Unshelve != nil {
		data.Pin = &store.Pin{Zone: new(string(r.Body.Unshelve.Zone))}
	}
	return api.None{}, s.beginUnshelve(ctx, srv, data)
}

func (s *server) unshelve(ctx context.Context, r *api.Request[unshelve], srv *store.Server) (api.None, error) {
	var data store.ActData
	in := r.Body.Unshelve
	if in != nil && in.Zone.RawMessage != nil {
		data.Pin = new(store.Pin)
		if text := plainText(in.Zone.RawMessage); text != "" {
			data.Pin.Zone = &text
		}
	}
	if in != nil {
		data.OnlyHost = in.Host
	}
	return api.None{}, s.beginUnshelve(ctx, srv, data)
}

// ruleUnshelveHost is the rule for choosing the host when a server is unshelved.
const ruleUnshelveHost = "os_compute_api:os-shelve:unshelve_to_host"

// beginUnshelve begins to unshelve a server. The data may have a new availability zone to which the server is pinned, and a host. Both need a server that is offloaded.
func (s *server) beginUnshelve(ctx context.Context, srv *store.Server, data store.ActData) error {
	if data.Pin == nil && data.OnlyHost == "" {
		return s.beginAction(ctx, srv, compute.Unshelve, data)
	}
	if err := store.CheckAction(srv, compute.Unshelve); err != nil {
		return err
	}
	switch {
	case srv.VMState != compute.VMOffloaded:
		return fault.New(fault.Conflict, `Specifying an availability zone or a host when unshelving server "%s" with status "%s" is not supported. The server status must be SHELVED_OFFLOADED.`, srv.ID, srv.VMState)
	case data.Pin != nil && data.Pin.Zone != nil:
		if err := s.checkZone(ctx, *data.Pin.Zone); err != nil {
			return err
		}
	}
	if data.OnlyHost != "" {
		if err := s.checkUnshelveHost(ctx, srv, data); err != nil {
			return err
		}
	}
	return s.beginAction(ctx, srv, compute.Unshelve, data)
}

// checkUnshelveHost checks that the client may choose the host, and that the host is in the availability zone to which the server will be pinned.
func (s *server) checkUnshelveHost(ctx context.Context, srv *store.Server, data store.ActData) error {
	if err := s.mux.Enforce(ctx, ruleUnshelveHost, map[string]any{"project_id": srv.ProjectID, "user_id": srv.UserID}); err != nil {
		return err
	}
	zones, err := s.cfg.Store.Zones(ctx)
	if err != nil {
		return err
	}
	pinned := srv.PinnedZone
	if data.Pin != nil {
		pinned = data.Pin.Zone
	}
	switch zone, ok := zones[data.OnlyHost]; {
	case !ok:
		return fault.New(fault.Invalid, "Compute host %s could not be found.", data.OnlyHost)
	case pinned != nil && *pinned != zone:
		return fault.New(fault.Conflict, `Host "%s" is not in the availability zone "%s".`, data.OnlyHost, *pinned)
	}
	return nil
}

type changePassword struct {
	Password struct {
		AdminPass string `json:"adminPass"`
	} `json:"changePassword"`
}

func (s *server) changePassword(ctx context.Context, r *api.Request[changePassword], srv *store.Server) (api.None, error) {
	err := s.beginAction(ctx, srv, compute.ChangePassword, store.ActData{AdminPass: &r.Body.Password.AdminPass})
	if errors.Is(err, fault.Unimplemented) {
		err = notImplemented(fault.WithUser(store.ErrNotSupported, "Unable to set password on instance"))
	}
	return api.None{}, err
}

type crashDump struct {
	Dump alwaysNull `json:"trigger_crash_dump"` // unlike for other actions, Nova accepts nothing else
}

func (s *server) crashDump(ctx context.Context, _ *api.Request[crashDump], srv *store.Server) (api.None, error) {
	return api.None{}, s.beginAction(ctx, srv, compute.CrashDump, store.ActData{})
}

// injectNetwork refuses the action for every server, because no driver can inject networks into a guest.
func (s *server) injectNetwork(_ context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, s.unsupported(srv, compute.InjectNetwork)
}

// unsupported returns the error for an action that nova-mini does not support. As in Nova, an error about the server's state comes first.
func (s *server) unsupported(srv *store.Server, a compute.Action) error {
	if err := store.CheckAction(srv, a); err != nil {
		return err
	}
	return notImplemented(store.ErrNotSupported)
}
