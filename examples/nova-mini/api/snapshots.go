package api

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// snapshotHandlers are the handlers of the actions that make an image of a server's disk, besides shelve.
var snapshotHandlers = map[compute.Action]actionHandler{
	compute.CreateImage: inTwoForms("2.38", actionOf((*server).createImageLimited), "2.39",
		inTwoForms("2.44", actionOf((*server).createImagePlain), "2.45", actionOf((*server).createImage))),
	compute.CreateBackup: inTwoForms("2.38", actionOf((*server).createBackupLimited), "2.39",
		inTwoForms("2.44", actionOf((*server).createBackupPlain), "2.45", actionOf((*server).createBackup))),
}

type createImage struct {
	Image struct {
		Name     name     `json:"name"`
		Metadata metadata `json:"metadata,omitempty"`
	} `json:"createImage"`
}

// newImage is the reply with the id of a new image, whose content does not exist yet.
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

// createImagePlain is createImage until 2.44: the reply has the image's URL in the header Location.
func (s *server) createImagePlain(ctx context.Context, r *api.Request[createImage], srv *store.Server) (api.None, error) {
	out, err := s.createImage(ctx, r, srv)
	if err == nil {
		r.ReplyHeader.Set("Location", linksTo(r.Request, "images", out.ID)[1].Href)
	}
	return api.None{}, err
}

// createImageLimited is createImagePlain until 2.38: it also checks the limit of metadata items.
func (s *server) createImageLimited(ctx context.Context, r *api.Request[createImage], srv *store.Server) (api.None, error) {
	if err := s.tooManyItems(len(r.Body.Image.Metadata)); err != nil {
		return api.None{}, err
	}
	return s.createImagePlain(ctx, r, srv)
}

type createBackup struct {
	Backup struct {
		Name     name     `json:"name"`
		Type     string   `json:"backup_type"`
		Rotation natural  `json:"rotation"`
		Metadata metadata `json:"metadata,omitempty"`
	} `json:"createBackup"`
}

// createBackup begins to make a backup. Without an image service the driver keeps the image.
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

// createBackupPlain is createBackup until 2.44: the reply has the image's URL in the header Location, unless the rotation keeps no backup.
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

// createBackupLimited is createBackupPlain until 2.38: it also checks the limit of metadata items.
func (s *server) createBackupLimited(ctx context.Context, r *api.Request[createBackup], srv *store.Server) (api.None, error) {
	if err := s.tooManyItems(len(r.Body.Backup.Metadata)); err != nil {
		return api.None{}, err
	}
	return s.createBackupPlain(ctx, r, srv)
}

// newSnapshot makes an image in the image service, and returns its id. The compute service of the server uploads the content later. Without an image service, newSnapshot only returns
// a new id, under which the driver keeps the image. The caller begins the action, and calls undo with the resulting error, or nil. The
// function undo returns this error unchanged. If the action has not begun, undo also removes the image. After the code Unknown the action
// may have begun, so the image stays.
func (s *server) newSnapshot(ctx context.Context, r *http.Request, srv *store.Server, a compute.Action, as store.Image) (id string, undo func(error) error, err error) {
	undo = func(err error) error { return err }
	k := s.keeper()
	if k == nil {
		return uuid.NewString(), undo, nil
	}
	if err := store.CheckAction(srv, a); err != nil {
		return "", nil, err
	}
	if err := s.checkBus(ctx); err != nil {
		return "", nil, err
	}
	token := tokenOf(r)
	made := image.Image{Name: as.Name, Format: "qcow2", MinDiskGiB: srv.Flavor().DiskGiB, Properties: map[string]string{}}
	switch base, err := k.Get(ctx, token, srv.ImageRef); {
	case err == nil:
		made.MinRAMMiB = base.MinRAMMiB
		maps.Copy(made.Properties, base.Properties)
		maps.DeleteFunc(made.Properties, func(key, _ string) bool { return strings.HasPrefix(key, "img_signature") }) // the signature is for other content
	case !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Denied): // otherwise the server's image was deleted, or is no longer shared
		return "", nil, err
	}
	maps.Copy(made.Properties, as.Metadata)
	maps.Copy(made.Properties, map[string]string{
		image.TypeProperty: "snapshot", image.ServerProperty: srv.ID, "user_id": reqctx.From(ctx).UserID, "base_image_ref": srv.ImageRef,
		"owner_id": reqctx.From(ctx).ProjectID,
	})
	if a.Info().Rotates {
		made.Properties[image.TypeProperty], made.Properties[image.BackupTypeProperty] = image.BackupType, as.BackupType
	}
	id, err = k.Create(ctx, token, made)
	if err != nil {
		return "", nil, err
	}
	undo = func(err error) error {
		if err == nil || fault.CodeOf(err) == fault.Unknown { // the action runs, or may run, and uploads the content
			return err
		}
		if e := s.cfg.Store.DiscardImage(context.WithoutCancel(ctx), id, store.DiscardData{Server: srv.ID}); e != nil {
			s.cfg.Logger.ErrorContext(ctx, "image not removed, no server needs it", "image", id, "error", e)
		}
		return err
	}
	return id, undo, nil
}
