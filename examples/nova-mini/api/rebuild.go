package api

import (
	"context"
	"encoding/json"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

var rebuildHandlers = map[compute.Action]actionHandler{compute.Rebuild: actionOf((*server).rebuild)}

type rebuild struct {
	Rebuild rebuildRequest `json:"rebuild"`
}

// rebuildRequest is a request to rebuild a server. An attribute that the request leaves out stays; null removes an attribute.
type rebuildRequest struct {
	ImageRef          string              `json:"imageRef" min:"1" max:"255"`
	Name              name                `json:"name,omitzero"`
	AdminPass         givenText           `json:"adminPass,omitzero"`
	Metadata          metadata            `json:"metadata,omitzero"`
	DiskConfig        string              `json:"OS-DCF:diskConfig,omitempty" enum:"AUTO,MANUAL"`
	PreserveEphemeral boolean             `json:"preserve_ephemeral,omitzero"`
	AccessIPv4        string              `json:"accessIPv4,omitempty" format:"ipv4"`
	AccessIPv6        string              `json:"accessIPv6,omitempty" format:"ipv6"`
	Files             []fileRequest       `json:"personality,omitempty" until:"2.56"`
	Description       nullableDescription `json:"description,omitzero" since:"2.19"`
	KeyName           nullableName        `json:"key_name,omitzero" since:"2.54"`
	UserData          nullableUserData    `json:"user_data,omitzero" since:"2.57"`
	Certificates      certificates        `json:"trusted_image_certificates,omitempty" since:"2.63"`
	Hostname          string              `json:"hostname,omitempty" min:"2" max:"63" pattern:"^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$" since:"2.90" until:"2.93"`
	FQDN              string              `json:"fqdn,omitempty" name:"hostname" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$" since:"2.94"`
}

// The value of a nullable field is missing (nil), null, or a text.
type (
	nullableDescription struct{ json.RawMessage }
	nullableName        struct{ json.RawMessage }
	nullableUserData    struct{ json.RawMessage }
)

func nullableSchema(schema string) string { return `{"anyOf": [` + schema + `, {"type": "null"}]}` }

// JSONSchema implements api.JSONSchemer.
func (nullableDescription) JSONSchema() string { return nullableSchema(description("").JSONSchema()) }

// JSONSchema implements api.JSONSchemer.
func (nullableName) JSONSchema() string { return nullableSchema(name("").JSONSchema()) }

// JSONSchema implements api.JSONSchemer.
func (nullableUserData) JSONSchema() string {
	return nullableSchema(`{"type": "string", "maxLength": 65535}`)
}

// setNullable sets *to to the value of a nullable field, or to nil for null. It changes nothing if the client has left the field out.
func setNullable(to **string, raw json.RawMessage) {
	if raw == nil {
		return
	}
	*to = nil
	if text := plainText(raw); string(raw) != "null" {
		*to = &text
	}
}

type rebuiltServer struct {
	Server rebuiltView `json:"server"`
}

// rebuiltView is the server in the reply to a rebuild. Since 2.75 it has the attributes of GET.
type rebuiltView struct {
	serverCore
	serverDetails `since:"2.75"`
	serverGroups

	KeyName   *string `json:"key_name_before" name:"key_name" since:"2.54" until:"2.74"`
	UserData  *string `json:"user_data" since:"2.57"`
	AdminPass string  `json:"adminPass"`
}

// check returns an error if the cloud does not support a part of the request, or if the request exceeds a limit.
func (in *rebuildRequest) check(limits store.Limits) error {
	if isTrue(plainText(in.PreserveEphemeral.RawMessage)) {
		return notSupported("Ephemeral disks cannot be preserved: a rebuild removes all disks of the server.")
	}
	userData := plainText(in.UserData.RawMessage)
	n := newServer{ImageRef: in.ImageRef, UserData: userData, Files: in.Files, Certificates: in.Certificates}
	return n.check(limits)
}

// apply changes the server srv as the request asks. The server in the parameter named of has the new key pair, password and
// files. The image is nil if the image is not known.
func (in *rebuildRequest) apply(srv, of *store.Server, is *image.Image) {
	bootFrom(srv, in.ImageRef, is, in.DiskConfig)
	srv.AdminPass, srv.Files = of.AdminPass, of.Files
	if in.Name != "" {
		srv.Name = string(in.Name)
	}
	if in.Metadata != nil {
		srv.Metadata = db.JSONOf(map[string]string(in.Metadata))
	}
	if in.AccessIPv4 != "" {
		srv.AccessIPv4 = in.AccessIPv4
	}
	if in.AccessIPv6 != "" {
		srv.AccessIPv6 = normalIP(in.AccessIPv6)
	}
	if host := in.Hostname + in.FQDN; host != "" {
		srv.Hostname = host
	}
	if in.KeyName.RawMessage != nil {
		srv.KeyName, srv.PublicKey = of.KeyName, of.PublicKey
	}
	setNullable(&srv.Description, in.Description.RawMessage)
	setNullable(&srv.UserData, in.UserData.RawMessage)
}

// checkRebuildHost returns Invalid, with Nova's text, if the host of a server cannot run guests of an image. The image is nil if the image
// is not known. The server stays on its host during a rebuild.
func (s *server) checkRebuildHost(ctx context.Context, srv *store.Server, is *image.Image) error {
	if is == nil {
		return nil
	}
	needs, err := image.Needs(is.Properties)
	if err != nil || needs.IsZero() {
		return err
	}
	var host string // a server that was offloaded has none
	if srv.Host != nil {
		host = *srv.Host
	}
	refusal, err := s.refusalOf(ctx, host, &compute.SelectRequest{ServerID: srv.ID, Guest: needs})
	if err != nil || refusal == "" {
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "no valid host for a rebuild, which stays on its host", "server", srv.ID, "host", host, "image", is.ID, "reason", refusal)
	return fault.New(fault.Invalid, "No valid host was found. The host of the server does not have what the properties of the image ask for.")
}

func (s *server) rebuild(ctx context.Context, r *api.Request[rebuild], srv *store.Server) (out rebuiltServer, err error) {
	in := &r.Body.Rebuild
	if len(in.Certificates) > 0 {
		if err := s.mux.Enforce(ctx, ruleTrustedRebuild, map[string]any{"project_id": srv.ProjectID, "user_id": srv.UserID}); err != nil {
			return out, err
		}
	}
	if err := store.CheckAction(srv, compute.Rebuild); err != nil {
		return out, err
	}
	if err := s.tooManyItems(len(in.Metadata)); err != nil {
		return out, err
	}
	if err := in.check(s.cfg.Store.Limits()); err != nil {
		return out, err
	}
	is, err := s.checkImage(ctx, r.Request, in.ImageRef, "Cannot find image for rebuild", in.DiskConfig, srv.MemoryMiB, srv.Flavor().DiskGiB)
	if err != nil {
		return out, err
	}
	if err := s.checkRebuildHost(ctx, srv, is); err != nil {
		return out, err
	}
	of := store.Server{UserID: reqctx.From(ctx).UserID} // the key pair is that of the client
	if err := s.addKey(ctx, &of, plainText(in.KeyName.RawMessage)); err != nil {
		return out, err
	}
	files, err := guestFiles(in.Files, s.cfg.Store.Limits())
	if err != nil {
		return out, err
	}
	of.Files, of.AdminPass = db.JSONOf(files), new(newPassword())
	if given := in.AdminPass.RawMessage; given != nil {
		of.AdminPass = new(plainText(given))
	}
	var built *store.Server // has the user data, which most queries do not read
	err = s.beginAction(ctx, srv, compute.Rebuild, store.ActData{Rebuild: func(to *store.Server) {
		in.apply(to, &of, is)
		built = to
	}})
	if err != nil {
		return out, err
	}
	if srv, err = s.cfg.Store.Server(ctx, srv.ID); err != nil {
		return out, err
	}
	one := s.viewOne(r.Request, srv)
	r.ReplyHeader.Set("Location", one.Links[0].Href)
	out.Server = rebuiltView{one.serverCore, one.serverDetails, one.serverGroups, built.KeyName, built.UserData, *of.AdminPass}
	return out, nil
}
