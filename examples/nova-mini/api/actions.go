package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
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

// actionHandler registers the handler of an action.
type actionHandler func(s *server, g *api.Group, def api.Route, info compute.ActionInfo)

// handlers registers the actions that have a body, or that the API service does itself. Each other action of compute.Actions only begins an
// operation.
var handlers = map[compute.Action]actionHandler{
	compute.SoftReboot:  actionOf((*server).reboot),
	compute.Resize:      actionOf((*server).resize),
	compute.Rescue:      actionOf((*server).rescue),
	compute.Lock:        actionOf((*server).lock),
	compute.Unlock:      actionOf((*server).unlock),
	compute.ResetState:  actionOf((*server).resetState),
	compute.ForceDelete: actionOf((*server).deleteServer),
	compute.Restore:     actionOf((*server).restore),

	compute.Rebuild:        actionOf((*server).rebuild),
	compute.CreateImage:    actionOf((*server).createImage),
	compute.Shelve:         actionOf((*server).shelve),
	compute.ChangePassword: actionOf((*server).changePassword),
	compute.CreateBackup:   actionOf((*server).createBackup),
	compute.InjectNetwork:  actionOf((*server).injectNetwork),
}

// gone are actions that Nova had and has removed.
var gone = []string{"resetNetwork"}

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
			add = consoleHandlers[info.Action]
		}
		if add == nil {
			add = actionOf(func(s *server, ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
				return api.None{}, s.beginAction(ctx, srv, info.Action, store.ActData{})
			})
		}
		add(s, g, api.Route{Pattern: "POST", Action: info.Request, Max: info.Until, Rule: info.Rule, Summary: info.Summary, Status: cmp.Or(info.Status, http.StatusAccepted)}, info)
	}
	for _, name := range gone {
		def := api.Route{Pattern: "POST", Action: name, Summary: "Removed from Nova", Errors: []int{http.StatusGone}}
		api.HandleRoute(g, def, func(context.Context, *api.Request[api.None]) (api.None, error) {
			return api.None{}, api.WithStatus(http.StatusGone, fault.New(fault.NotFound, "This resource is no longer available. No forwarding address is given."))
		})
	}
}

// actionOf returns the function that registers an action with its handler. A locked server refuses the action, unless the action is allowed then.
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

type rebuild struct {
	Rebuild struct {
		ImageRef          string      `json:"imageRef" format:"uuid"`
		Name              *name       `json:"name,omitempty"`
		AdminPass         string      `json:"adminPass,omitempty"`
		Metadata          metadata    `json:"metadata,omitzero"`
		DiskConfig        string      `json:"OS-DCF:diskConfig,omitempty" enum:"MANUAL"`
		PreserveEphemeral alwaysFalse `json:"preserve_ephemeral,omitzero"`
	} `json:"rebuild"`
}

type rebuiltServer struct {
	Server rebuiltView `json:"server"`
}

// rebuiltView has the attributes that the reply of a rebuild shows.
type rebuiltView struct {
	ID         string      `json:"id" format:"uuid"`
	Name       string      `json:"name"`
	Status     string      `json:"status"`
	TenantID   string      `json:"tenant_id"`
	UserID     string      `json:"user_id"`
	Metadata   metadata    `json:"metadata"`
	HostID     string      `json:"hostId"`
	Image      imageView   `json:"image"`
	Flavor     bookmark    `json:"flavor"`
	Created    string      `json:"created" format:"date-time"`
	Updated    string      `json:"updated" format:"date-time"`
	Addresses  struct{}    `json:"addresses"`
	AccessIPv4 alwaysEmpty `json:"accessIPv4"`
	AccessIPv6 alwaysEmpty `json:"accessIPv6"`
	Links      []api.Link  `json:"links"`
	DiskConfig string      `json:"OS-DCF:diskConfig"`
	Progress   *int        `json:"progress,omitempty"`
	AdminPass  string      `json:"adminPass"`
}

func (s *server) rebuild(ctx context.Context, r *api.Request[rebuild], srv *store.Server) (out rebuiltServer, err error) {
	in := r.Body.Rebuild
	if len(in.Metadata) > maxMetadata {
		return out, fault.New(fault.Denied, "Maximum number of metadata items exceeds %d", maxMetadata)
	}
	if err := s.beginAction(ctx, srv, compute.Rebuild, store.ActData{Rebuild: &store.Rebuild{ImageRef: in.ImageRef, Name: (*string)(in.Name), Metadata: in.Metadata}}); err != nil {
		return out, err
	}
	if srv, err = s.cfg.Store.Server(ctx, srv.ID); err != nil {
		return out, err
	}
	v := s.viewServer(r.Request, srv)
	r.ReplyHeader.Set("Location", v.Links[0].Href)
	out.Server = rebuiltView{
		ID: v.ID, Name: v.Name, Status: v.Status, TenantID: v.TenantID, UserID: v.UserID, Metadata: v.Metadata, HostID: v.HostID, Image: v.Image, Flavor: v.Flavor,
		Created: v.Created, Updated: v.Updated, Links: v.Links, DiskConfig: v.DiskConfig, Progress: v.Progress, AdminPass: cmp.Or(in.AdminPass, newPassword()),
	}
	return out, nil
}

// shelve begins to shelve a server. The image of the server's disk has a new ID each time.
func (s *server) shelve(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, s.beginAction(ctx, srv, compute.Shelve, store.ActData{ImageRef: uuid.NewString()})
}

type createImage struct {
	Image struct {
		Name     name     `json:"name"`
		Metadata metadata `json:"metadata,omitempty"`
	} `json:"createImage"`
}

func (s *server) createImage(ctx context.Context, r *api.Request[createImage], srv *store.Server) (api.None, error) {
	in, id := r.Body.Image, uuid.NewString()
	err := s.beginAction(ctx, srv, compute.CreateImage, store.ActData{ImageRef: id, Image: &store.Image{Name: string(in.Name), Metadata: in.Metadata}})
	if err == nil {
		r.ReplyHeader.Set("Location", linksTo(r.Request, "images", id)[1].Href)
	}
	return api.None{}, err
}

type createBackup struct {
	Backup struct {
		Name     name     `json:"name"`
		Type     string   `json:"backup_type"`
		Rotation natural  `json:"rotation"`
		Metadata metadata `json:"metadata,omitempty"`
	} `json:"createBackup"`
}

// createBackup refuses every backup: nova-mini does not delete the older images of a rotation.
func (s *server) createBackup(ctx context.Context, _ *api.Request[createBackup], srv *store.Server) (api.None, error) {
	return api.None{}, s.unsupported(srv, compute.CreateBackup, "")
}

type changePassword struct {
	Password struct {
		AdminPass string `json:"adminPass"`
	} `json:"changePassword"`
}

// changePassword refuses every password: no driver can set the password of a guest that is built.
func (s *server) changePassword(ctx context.Context, _ *api.Request[changePassword], srv *store.Server) (api.None, error) {
	return api.None{}, s.unsupported(srv, compute.ChangePassword, "Unable to set password on instance")
}

// injectNetwork refuses every server: servers have no addresses that a guest would need.
func (s *server) injectNetwork(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, s.unsupported(srv, compute.InjectNetwork, "")
}

// unsupported returns the error for an action that nova-mini does not have. As in Nova, the state of the server is checked before.
func (s *server) unsupported(srv *store.Server, a compute.Action, text string) error {
	if err := store.CheckAction(srv, a); err != nil {
		return err
	}
	return notImplemented(fault.WithUser(store.ErrNotSupported, cmp.Or(text, store.ErrNotSupported.Error())))
}
