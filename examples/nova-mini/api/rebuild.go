package api

import (
	"context"
	"encoding/json"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

var rebuildHandlers = map[compute.Action]actionHandler{compute.Rebuild: actionOf((*server).rebuild)}

type rebuild struct {
	Rebuild rebuildRequest `json:"rebuild"`
}

// rebuildRequest is what a client wants of a server that is built anew. What it leaves out stays; null removes.
type rebuildRequest struct {
	ImageRef          string              `json:"imageRef" min:"1" max:"255"`
	Name              *name               `json:"name,omitempty"`
	AdminPass         password            `json:"adminPass,omitzero"`
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

// A nullable value is left out, null, or a value.
type (
	nullableDescription struct{ json.RawMessage }
	nullableName        struct{ json.RawMessage }
	nullableUserData    struct{ json.RawMessage }
)

func nullable(schema string) string { return `{"anyOf": [` + schema + `, {"type": "null"}]}` }

// JSONSchema implements api.JSONSchemer.
func (nullableDescription) JSONSchema() string { return nullable(description("").JSONSchema()) }

// JSONSchema implements api.JSONSchemer.
func (nullableName) JSONSchema() string { return nullable(name("").JSONSchema()) }

// JSONSchema implements api.JSONSchemer.
func (nullableUserData) JSONSchema() string {
	return nullable(`{"type": "string", "maxLength": 65535}`)
}

// setNullable sets a value unless the client has left it out.
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

// rebuiltView has the attributes that the reply of a rebuild shows: since 2.75 those of GET.
type rebuiltView struct {
	serverCore
	serverDetails `since:"2.75"`
	serverGroups

	KeyName   *string `json:"key_name_before" name:"key_name" since:"2.54" until:"2.74"`
	UserData  *string `json:"user_data" since:"2.57"`
	AdminPass string  `json:"adminPass"`
}

// check returns an error for what the cloud does not have, or limits.
func (in *rebuildRequest) check(limits store.Limits) error {
	if isTrue(plainText(in.PreserveEphemeral.RawMessage)) {
		return notSupported("Ephemeral disks cannot be preserved: a rebuild removes all disks of the server.")
	}
	userData := plainText(in.UserData.RawMessage)
	n := newServer{ImageRef: in.ImageRef, UserData: userData, Files: in.Files, Certificates: in.Certificates}
	return n.check(limits)
}

// apply changes a server as the client says. The key pair and the password are those of of.
func (in *rebuildRequest) apply(srv, of *store.Server) {
	srv.ImageRef, srv.AdminPass, srv.Files = in.ImageRef, of.AdminPass, of.Files
	if in.Name != nil {
		srv.Name = string(*in.Name)
	}
	if in.Metadata != nil {
		srv.Metadata = db.JSONOf(map[string]string(in.Metadata))
	}
	if in.DiskConfig != "" {
		srv.AutoDisk = in.DiskConfig == "AUTO"
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

func (s *server) rebuild(ctx context.Context, r *api.Request[rebuild], srv *store.Server) (out rebuiltServer, err error) {
	in := &r.Body.Rebuild
	if err := store.CheckAction(srv, compute.Rebuild); err != nil {
		return out, err
	}
	if err := s.tooManyItems(len(in.Metadata)); err != nil {
		return out, err
	}
	if err := in.check(s.cfg.Store.Limits()); err != nil {
		return out, err
	}
	if _, err := s.checkImage(ctx, r.Request, in.ImageRef, "Cannot find image for rebuild", srv.MemoryMiB, srv.Flavor().DiskGiB); err != nil {
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
	var built *store.Server // with the values that most queries do not read
	err = s.beginAction(ctx, srv, compute.Rebuild, store.ActData{Rebuild: func(to *store.Server) {
		in.apply(to, &of)
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
