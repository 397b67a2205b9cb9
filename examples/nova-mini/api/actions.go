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
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
)

// actionRules are the rules of the actions, one for each name of a rule.
var actionRules = func() []rule {
	out := []rule{
		{ruleUnlockAny, "rule:context_is_admin", "Unlock a server that another has locked", "POST", "/servers/{server_id}/action (unlock)"},
		{ruleUnshelveHost, "rule:context_is_admin", "Choose the host of a server that is unshelved", "POST", "/servers/{server_id}/action (unshelve)"},
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
	compute.Lock:        inTwoForms("2.72", actionOf((*server).lockPlain), "2.73", actionOf((*server).lock)),
	compute.Unlock:      actionOf((*server).unlock),
	compute.ResetState:  actionOf((*server).resetState),
	compute.ForceDelete: actionOf((*server).forceDelete),

	compute.CreateImage: inTwoForms("2.38", actionOf((*server).createImageLimited), "2.39",
		inTwoForms("2.44", actionOf((*server).createImagePlain), "2.45", actionOf((*server).createImage))),
	compute.Shelve:         actionOf((*server).shelve),
	compute.Unshelve:       inTwoForms("2.76", actionOf((*server).unshelvePlain), "2.77", inTwoForms("2.90", actionOf((*server).unshelveInZone), "2.91", actionOf((*server).unshelve))),
	compute.ChangePassword: actionOf((*server).changePassword),
	compute.CreateBackup: inTwoForms("2.38", actionOf((*server).createBackupLimited), "2.39",
		inTwoForms("2.44", actionOf((*server).createBackupPlain), "2.45", actionOf((*server).createBackup))),
	compute.InjectNetwork: actionOf((*server).injectNetwork),
}

// gone are actions that Nova had and has removed.
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
		for _, of := range []map[compute.Action]actionHandler{handlers, consoleHandlers, rebuildHandlers} {
			if h := of[info.Action]; h != nil {
				add = h
			}
		}
		if add == nil {
			add = actionOf(func(s *server, ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
				return api.None{}, s.beginAction(ctx, srv, info.Action, store.ActData{})
			})
		}
		add(s, g, api.Route{Pattern: "POST", Action: info.Request, Max: info.Until, Rule: info.Rule, Summary: info.Summary, Status: cmp.Or(info.Status, http.StatusAccepted)}, info)
	}
	for _, name := range gone {
		err := api.WithStatus(http.StatusGone, fault.New(fault.NotFound, "This resource is no longer available. No forwarding address is given."))
		removeAction(g, api.Route{Pattern: "POST", Action: name, Summary: "Removed from Nova", Errors: []int{http.StatusGone}}, err)
	}
	for _, info := range compute.Actions {
		if until, err := api.ParseVersion(info.Until); err == nil { // the last version that has the action
			until.Minor++
			removeAction(g, api.Route{Pattern: "POST", Action: info.Request, Min: until.String(), Summary: "Removed"}, fault.New(fault.NotFound, "The resource could not be found."))
		}
	}
}

// removeAction registers an action that is refused with an error, because it does not exist any more.
func removeAction(g *api.Group, def api.Route, err error) {
	api.HandleRoute(g, def, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, err })
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

// inTwoForms returns the handler of an action whose request or reply has another form in later versions. The version since follows until.
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
		DiskConfig string    `json:"OS-DCF:diskConfig,omitempty" enum:"AUTO,MANUAL"`
	} `json:"resize"`
}

func (s *server) resize(ctx context.Context, r *api.Request[resize], srv *store.Server) (api.None, error) {
	f, err := s.flavor(ctx, r.Body.Resize.FlavorRef)
	if err != nil {
		return api.None{}, err
	}
	if err := s.checkZeroDisk(ctx, f); err != nil {
		return api.None{}, err
	}
	data := store.ActData{Resize: store.SizeOf(f)}
	if disk := r.Body.Resize.DiskConfig; disk != "" {
		data.AutoDisk = new(disk == "AUTO")
	}
	err = s.beginAction(ctx, srv, compute.Resize, data)
	if errors.Is(err, placement.ErrNoRoom) {
		s.cfg.Logger.InfoContext(ctx, "resize refused", "server", srv.ID, "flavor", f.ID, "error", err)
		err = fault.New(fault.Invalid, "No valid host was found. No valid host found for resize")
	}
	return api.None{}, err
}

type rescue struct {
	Rescue *struct {
		AdminPass string `json:"adminPass,omitempty"`
		ImageRef  string `json:"rescue_image_ref,omitempty" min:"1" max:"255"`
	} `json:"rescue"`
}

// rescued is the reply that names the password of a guest's administrator.
type rescued struct {
	AdminPass string `json:"adminPass"`
}

func (s *server) rescue(ctx context.Context, r *api.Request[rescue], srv *store.Server) (out rescued, err error) {
	out.AdminPass = newPassword()
	var data store.ActData
	if in := r.Body.Rescue; in != nil {
		out.AdminPass, data.ImageRef = cmp.Or(in.AdminPass, out.AdminPass), in.ImageRef
	}
	if data.ImageRef == "" && s.keeper() != nil { // the compute service downloads it if the host does not have it any more
		data.ImageRef = srv.ImageRef
	} else if _, err := s.checkImage(ctx, r.Request, data.ImageRef, "Requested rescue image '"+data.ImageRef+"' is not supported", srv.MemoryMiB, 0); err != nil {
		return out, err
	}
	return out, s.beginAction(ctx, srv, compute.Rescue, data)
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

// lockServer locks a server for its project, or, if the client is of another project, for administrators. A member of the project cannot lock
// a server once more.
func (s *server) lockServer(ctx context.Context, srv *store.Server, reason string) error {
	by := owner(ctx, srv)
	if srv.LockedBy != "" && by == store.LockedByOwner {
		return nil
	}
	return s.cfg.Store.LockServer(ctx, srv.ID, by, reason)
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

// shelve begins to shelve a server. The image of the server's disk has a new ID each time.
func (s *server) shelve(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	id, undo, err := s.newSnapshot(ctx, r.Request, srv, compute.Shelve, store.Image{Name: srv.Name + "-shelved"})
	if err == nil {
		err = undo(s.beginAction(ctx, srv, compute.Shelve, store.ActData{ImageRef: id, Upload: s.keeper() != nil}))
	}
	return api.None{}, err
}

type createImage struct {
	Image struct {
		Name     name     `json:"name"`
		Metadata metadata `json:"metadata,omitempty"`
	} `json:"createImage"`
}

// newImage is the reply that names an image that is being made.
type newImage struct {
	ID string `json:"image_id" format:"uuid"`
}

func (s *server) createImage(ctx context.Context, r *api.Request[createImage], srv *store.Server) (out newImage, err error) {
	as := store.Image{Name: string(r.Body.Image.Name), Metadata: r.Body.Image.Metadata}
	id, undo, err := s.newSnapshot(ctx, r.Request, srv, compute.CreateImage, as)
	if err != nil {
		return out, err
	}
	out.ID = id
	return out, undo(s.beginAction(ctx, srv, compute.CreateImage, store.ActData{ImageRef: out.ID, Upload: s.keeper() != nil, Image: &as}))
}

// createImagePlain is createImage with a reply that names the image in a header.
func (s *server) createImagePlain(ctx context.Context, r *api.Request[createImage], srv *store.Server) (api.None, error) {
	out, err := s.createImage(ctx, r, srv)
	if err == nil {
		r.ReplyHeader.Set("Location", linksTo(r.Request, "images", out.ID)[1].Href)
	}
	return api.None{}, err
}

// createImageLimited is createImagePlain with the limit of metadata items, which Nova had until 2.38.
func (s *server) createImageLimited(ctx context.Context, r *api.Request[createImage], srv *store.Server) (api.None, error) {
	if err := s.tooManyItems(len(r.Body.Image.Metadata)); err != nil {
		return api.None{}, err
	}
	return s.createImagePlain(ctx, r, srv)
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

// ruleUnshelveHost is the rule of those who choose the host of a server that is unshelved.
const ruleUnshelveHost = "os_compute_api:os-shelve:unshelve_to_host"

// beginUnshelve begins to unshelve a server, which may change the availability zone that the server is pinned to, and choose a host.
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
	case data.Pin != nil && data.Pin.Zone != nil && *data.Pin.Zone != zone:
		return fault.New(fault.Invalid, "The requested availability zone is not available")
	}
	if data.OnlyHost != "" {
		if err := s.mux.Enforce(ctx, ruleUnshelveHost, map[string]any{"project_id": srv.ProjectID, "user_id": srv.UserID}); err != nil {
			return err
		}
		hosts, err := s.hosts(ctx)
		if err == nil && !slices.ContainsFunc(hosts, func(h *store.Host) bool { return h.Hostname == data.OnlyHost }) {
			err = fault.New(fault.Invalid, "Compute host %s could not be found.", data.OnlyHost)
		}
		if err != nil {
			return err
		}
	}
	return s.beginAction(ctx, srv, compute.Unshelve, data)
}

type createBackup struct {
	Backup struct {
		Name     name     `json:"name"`
		Type     string   `json:"backup_type"`
		Rotation natural  `json:"rotation"`
		Metadata metadata `json:"metadata,omitempty"`
	} `json:"createBackup"`
}

// createBackup begins to make a backup. Without an image service the driver keeps it.
func (s *server) createBackup(ctx context.Context, r *api.Request[createBackup], srv *store.Server) (out newImage, err error) {
	in := r.Body.Backup
	keep, err := parseWhole("rotation", in.Rotation.RawMessage, 0)
	if err != nil {
		return out, err
	}
	as := store.Image{Name: string(in.Name), Metadata: in.Metadata, BackupType: in.Type}
	id, undo, err := s.newSnapshot(ctx, r.Request, srv, compute.CreateBackup, as)
	if err != nil {
		return out, err
	}
	out.ID = id
	b := store.Backup{Type: in.Type, Keep: keep, ProjectID: reqctx.From(ctx).ProjectID, ByDriver: s.keeper() == nil}
	return out, undo(s.beginAction(ctx, srv, compute.CreateBackup, store.ActData{ImageRef: out.ID, Upload: s.keeper() != nil, Image: &as, Backup: &b}))
}

// createBackupPlain is createBackup with a reply that names the image in a header, unless no backup is kept.
func (s *server) createBackupPlain(ctx context.Context, r *api.Request[createBackup], srv *store.Server) (api.None, error) {
	out, err := s.createBackup(ctx, r, srv)
	if err != nil {
		return api.None{}, err
	}
	keep, err := parseWhole("rotation", r.Body.Backup.Rotation.RawMessage, 0)
	if keep > 0 {
		r.ReplyHeader.Set("Location", linksTo(r.Request, "images", out.ID)[1].Href)
	}
	return api.None{}, err
}

// createBackupLimited is createBackupPlain with the limit of metadata items, which Nova had until 2.38.
func (s *server) createBackupLimited(ctx context.Context, r *api.Request[createBackup], srv *store.Server) (api.None, error) {
	if err := s.tooManyItems(len(r.Body.Backup.Metadata)); err != nil {
		return api.None{}, err
	}
	return s.createBackupPlain(ctx, r, srv)
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

// injectNetwork refuses every server: servers have no addresses that a guest would need.
func (s *server) injectNetwork(_ context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return api.None{}, s.unsupported(srv, compute.InjectNetwork)
}

// unsupported returns the error for an action that nova-mini does not have. As in Nova, the state of the server is checked before.
func (s *server) unsupported(srv *store.Server, a compute.Action) error {
	if err := store.CheckAction(srv, a); err != nil {
		return err
	}
	return notImplemented(store.ErrNotSupported)
}
