package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// This file has the parts of a request to create servers that describe networks, files and certificates, and the checks of these parts.

type securityGroupRequest struct {
	Name name `json:"name,omitempty"`
}

type networkRequest struct {
	FixedIP ipAddress `json:"fixed_ip,omitempty"`
	Port    *string   `json:"port,omitempty" format:"uuid"`
	UUID    string    `json:"uuid,omitempty"`
	Tag     tag       `json:"tag,omitempty" since:"2.32"`
}

// networks37 is the field networks in microversions 2.37 to 2.41, and networks42 is the field since 2.42. Each is a list of networks,
// or the word auto or none. Only networks42 has tags.
type (
	networks37 struct{ json.RawMessage }
	networks42 struct{ json.RawMessage }
)

func networksSchema(more string) string {
	return `{"oneOf": [{"type": "array", "items": {"type": "object", "additionalProperties": false, "properties": {"fixed_ip": ` + ipAddress("").JSONSchema() + `,
		"port": {"type": ["string", "null"], "format": "uuid"}, "uuid": {"type": "string", "format": "uuid"}` + more + `}}}, {"type": "string", "enum": ["none", "auto"]}]}`
}

// JSONSchema implements api.JSONSchemer.
func (networks37) JSONSchema() string { return networksSchema("") }

// JSONSchema implements api.JSONSchemer.
func (networks42) JSONSchema() string { return networksSchema(`, "tag": ` + tag("").JSONSchema()) }

// networks returns the networks that the client names, or the word auto or none.
func (n *newServer) networks() (list []networkRequest, word string, err error) {
	raw := n.Networks37.RawMessage
	if raw == nil {
		raw = n.Networks42.RawMessage
	}
	switch {
	case len(raw) == 0:
		return n.Networks, "", nil
	case raw[0] != '[':
		return nil, plainText(raw), nil
	}
	return list, "", json.Unmarshal(raw, &list)
}

type fileRequest struct {
	Path    string `json:"path,omitempty"`
	Content string `json:"contents,omitempty"`
}

// certificates are ids of certificates, or null.
type certificates []string

// JSONSchema implements api.JSONSchemer.
func (certificates) JSONSchema() string {
	return `{"type": ["array", "null"], "minItems": 1, "maxItems": 50, "uniqueItems": true, "items": {"type": "string", "minLength": 1}}`
}

// notSupported returns an error with status 501, for a part of Nova that nova-mini does not have.
func notSupported(text string) error {
	return api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "%s", text))
}

// request returns the request in the form for package network. Errors: Invalid, with Nova's text.
func (n *networkRequest) request() (network.Request, error) {
	out := network.Request{Network: n.UUID, FixedIP: string(n.FixedIP), Tag: string(n.Tag)}
	if n.Port != nil {
		out.Port = *n.Port
	}
	switch {
	case out.Port != "" && n.FixedIP != "":
		return out, fault.New(fault.Invalid, "Specified Fixed IP '%s' cannot be used with port '%s': the two cannot be specified together.", string(n.FixedIP), out.Port)
	case out.Port != "":
		out.Network = ""
	case n.UUID == "":
		return out, fault.New(fault.Invalid, "Bad network format: missing 'uuid'")
	case uuid.Validate(n.UUID) != nil:
		return out, fault.New(fault.Invalid, "Bad networks format: network uuid is not in proper format (%s)", n.UUID)
	}
	return out, nil
}

// networkRequests returns the networks and the security groups that the client names, or the word auto or none. Errors: Invalid, with Nova's
// text.
func (n *newServer) networkRequests() (requests []network.Request, groups []string, word string, err error) {
	list, word, err := n.networks()
	if err != nil {
		return nil, nil, "", err
	}
	requests = make([]network.Request, len(list))
	for i := range list {
		if requests[i], err = list[i].request(); err != nil {
			return nil, nil, "", err
		}
		if slices.Contains(requests[:i], requests[i]) && requests[i].Port != "" {
			return nil, nil, "", fault.New(fault.Invalid, "Port ID already specified: %s", requests[i].Port)
		}
	}
	for _, g := range n.SecurityGroups {
		if g.Name != "" && g.Name != "default" {
			groups = append(groups, string(g.Name))
		}
	}
	if len(groups) > 0 && len(groups) < len(n.SecurityGroups) {
		groups = append(groups, "default")
	}
	return requests, groups, word, nil
}

// networksOf returns the networks and security groups of new servers. The parameter count is the number of servers. Without a network service no network
// and no port exists. The texts are Nova's. Errors: those of [network.Neutron.Check].
func (s *server) networksOf(r *http.Request, n *newServer, count int) (*network.Wanted, error) {
	requests, names, word, err := n.networkRequests()
	if err != nil {
		return nil, err
	}
	if s.cfg.Network == nil {
		return nil, notFoundAsInvalid(refuseNetworks(requests, names))
	}
	if word == "none" {
		return nil, nil
	}
	ctx, project := r.Context(), reqctx.From(r.Context()).ProjectID
	out := new(network.Wanted)
	if out.Groups, err = s.cfg.Network.Groups(ctx, tokenOf(r), project, names); err != nil {
		return nil, notFoundAsInvalid(err)
	}
	requests, err = s.cfg.Network.Check(ctx, s.networkClient(r), requests, word == "auto", count)
	if err != nil || len(requests) == 0 {
		return nil, notFoundAsInvalid(err)
	}
	for _, one := range requests {
		out.Interfaces = append(out.Interfaces, network.Interface{Request: one})
	}
	return out, nil
}

// notFoundAsInvalid turns NotFound and ErrAddressInUse into Invalid, as Nova does when it creates servers. Other errors stay as they are.
func notFoundAsInvalid(err error) error {
	if errors.Is(err, fault.NotFound) || errors.Is(err, network.ErrAddressInUse) {
		return fault.New(fault.Invalid, "%s", fault.UserMessage(err))
	}
	return err
}

// refuseNetworks returns Nova's error in a cloud without a network service: the first network, port or security group that the request names does
// not exist. It returns nil if the request names none of these.
func refuseNetworks(requests []network.Request, groups []string) error {
	switch {
	case len(requests) > 0 && requests[0].Port != "":
		return network.NoPort(requests[0].Port)
	case len(requests) > 0:
		return fault.New(fault.NotFound, "Network %s could not be found.", requests[0].Network)
	case len(groups) > 0:
		return fault.New(fault.NotFound, "Security group %s not found.", groups[0])
	}
	return nil
}

// guestFiles returns the files for the guest, or nil if the list is empty. Errors: Invalid if the content of a file is not base64; Denied if the files are too many, or a file or its
// path exceeds a limit.
func guestFiles(list []fileRequest, limits store.Limits) (*[]compute.File, error) {
	above := func(n int, name string) bool { most := limits.Of(name); return most >= 0 && int64(n) > most }
	if above(len(list), store.InjectedFiles) {
		return nil, fault.New(fault.Denied, "Personality file limit exceeded")
	}
	var out []compute.File
	for _, f := range list {
		content, err := decodeBase64(f.Content)
		switch {
		case err != nil:
			return nil, wrongBase64("contents", f.Content)
		case above(len(f.Path), store.FilePathLength):
			return nil, fault.New(fault.Denied, "Personality file path exceeds maximum %d", limits.Of(store.FilePathLength))
		case above(len(content), store.FileContentBytes):
			return nil, fault.New(fault.Denied, "Personality file content exceeds maximum %d", limits.Of(store.FileContentBytes))
		}
		out = append(out, compute.File{Path: f.Path, Content: content})
	}
	if out == nil {
		return nil, nil
	}
	return &out, nil
}

// checkParts returns an error if the policy denies a part of the request, if the cloud does not support a part, or if the request
// exceeds a limit.
func (s *server) checkParts(ctx context.Context, n *newServer) error {
	list, word, err := n.networks()
	if err != nil {
		return err
	}
	for _, part := range []struct {
		rule  string
		given bool
	}{{ruleTrusted, len(n.Certificates) > 0}, {ruleVolumes, len(n.OldDisks)+len(n.Disks) > 0}, {ruleNetworks, len(list) > 0 || word == "auto"}} {
		if part.given {
			if err := s.mux.Enforce(ctx, part.rule, nil); err != nil {
				return err
			}
		}
	}
	if err := s.tooManyItems(len(n.Metadata)); err != nil {
		return err
	}
	return n.check(s.cfg.Store.Limits())
}

// check returns an error if the cloud does not support a part of the request, or if the request exceeds a limit.
func (n *newServer) check(limits store.Limits) error {
	switch {
	case len(n.Certificates) > 0:
		return notSupported("Trusted image certificates are not supported: the cloud does not check signatures of images.")
	}
	if _, err := decodeBase64(n.UserData); err != nil {
		return wrongBase64("user_data", n.UserData)
	}
	_, _, _, networks := n.networkRequests()
	_, files := guestFiles(n.Files, limits)
	for _, err := range []error{n.checkDisks(), networks, files} {
		if err != nil {
			return err
		}
	}
	return nil
}

// decodeBase64 decodes base64. As in Nova, the text may have line breaks and spaces.
func decodeBase64(text string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.NewReplacer("\n", "", "\r", "", " ", "").Replace(text))
}

func wrongBase64(field, value string) error {
	if len(value) > 100 {
		value = strings.ToValidUTF8(value[:100], "") + "..."
	}
	return fault.New(fault.Invalid, "Invalid input for field/attribute %s. Value: %s. '%s' is not a 'base64'", field, value, value)
}
