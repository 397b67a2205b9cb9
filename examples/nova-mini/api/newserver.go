package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// This file has the request to create servers.

// maxServers is the highest number of servers of one request. Nova has only the quota.
const maxServers = 100

type createServer struct {
	Server newServer `json:"server"`
	// OldHints are the hints under an older name. They have an effect only if Hints is missing.
	Hints    hints `json:"os:scheduler_hints,omitempty"`
	OldHints hints `json:"OS-SCH-HNT:scheduler_hints,omitempty"`
}

// newServer is a request to create servers.
type newServer struct {
	Name                name                   `json:"name"`
	FlavorRef           reference              `json:"flavorRef"`
	ImageRef            string                 `json:"imageRef,omitempty" max:"255"` // see checkImage
	AdminPass           givenText              `json:"adminPass,omitzero"`
	Metadata            metadata               `json:"metadata,omitempty"`
	KeyName             name                   `json:"key_name,omitempty"`
	Zone                name                   `json:"availability_zone,omitempty"`
	DiskConfig          string                 `json:"OS-DCF:diskConfig,omitempty" enum:"AUTO,MANUAL"`
	AccessIPv4          string                 `json:"accessIPv4,omitempty" format:"ipv4"`
	AccessIPv6          string                 `json:"accessIPv6,omitempty" format:"ipv6"`
	ConfigDrive         boolean                `json:"config_drive,omitzero"`
	UserData            string                 `json:"user_data,omitempty" max:"65535"`
	MinCount            count                  `json:"min_count,omitzero"`
	MaxCount            count                  `json:"max_count,omitzero"`
	ReturnReservationID boolean                `json:"return_reservation_id,omitzero"`
	SecurityGroups      []securityGroupRequest `json:"security_groups,omitempty"`
	OldDisks            []oldDiskRequest       `json:"block_device_mapping,omitempty"`
	Disks               []diskRequest          `json:"block_device_mapping_v2,omitempty"`
	Networks            []networkRequest       `json:"networks,omitempty" until:"2.36"`
	Networks37          networks37             `json:"networks37" name:"networks" since:"2.37" until:"2.41"`
	Networks42          networks42             `json:"networks42" name:"networks" since:"2.42"`
	Files               []fileRequest          `json:"personality,omitempty" until:"2.56"`
	Description         *description           `json:"description,omitempty" since:"2.19"`
	Tags                tags                   `json:"tags,omitempty" since:"2.52"`
	Certificates        certificates           `json:"trusted_image_certificates,omitempty" since:"2.63"`
	Host                string                 `json:"host,omitempty" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$" since:"2.74" rule:"compute:servers:create:requested_destination"`
	Node                string                 `json:"hypervisor_hostname,omitempty" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$" since:"2.74" rule:"compute:servers:create:requested_destination"`
	Hostname            string                 `json:"hostname,omitempty" min:"2" max:"63" pattern:"^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$" since:"2.90" until:"2.93"`
	FQDN                string                 `json:"fqdn,omitempty" name:"hostname" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$" since:"2.94"`
}

// count is a positive integer, given as a number or as a text.
type count struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (count) JSONSchema() string {
	return `{"type": ["integer", "string"], "pattern": "^[0-9]*$", "minimum": 1, "minLength": 1}`
}

// hints are hints for the scheduler: values, or lists of values. As in Nova, a hint has an effect only if the filter that uses it is enabled;
// other hints are only stored.
type hints map[string]json.RawMessage

// JSONSchema implements api.JSONSchemer.
func (hints) JSONSchema() string {
	const one, id = `{"type": "string"}`, `{"type": "string", "format": "uuid"}`
	ids := func(types string) string { return `{"type": ` + types + `, "items": ` + id + `}` }
	return `{"type": "object", "additionalProperties": true, "properties": {
		"group": {"oneOf": [` + ids(`"array"`) + `, ` + id + `]}, "different_host": {"oneOf": [` + ids(`"array"`) + `, ` + id + `]},
		"same_host": ` + ids(`["string", "array"]`) + `, "query": {"type": ["string", "object"]}, "target_cell": ` + name("").JSONSchema() + `,
		"different_cell": {"type": ["string", "array"], "items": ` + one + `}, "build_near_host_ip": ` + ipAddress("").JSONSchema() + `,
		"cidr": {"type": "string", "pattern": "^/[0-9a-f.:]+$"}}}`
}

// lists returns the hints with a list of values for each.
func (h hints) lists() (map[string][]any, error) {
	out := map[string][]any{}
	for name, raw := range h {
		var one any
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, err
		}
		list, ok := one.([]any)
		if !ok {
			list = []any{one}
		}
		out[name] = list
	}
	return out, nil
}

// place is the availability zone and the host that a client asks for. An empty zone or host means any.
type place struct{ zone, host string }

// place returns the zone and the host that the client asks for. Errors: Denied if the policy does not allow the client to choose a host; Invalid, with Nova's text.
func (s *server) place(ctx context.Context, n *newServer) (p place, err error) {
	parts := strings.Split(string(n.Zone), ":")
	p.zone = cmp.Or(parts[0], s.cfg.ScheduleZone)
	// A host and its hypervisor have the same name. If the client gives two different names, no host has both, so the new server
	// becomes ERROR, as in Nova.
	hosts := slices.DeleteFunc(slices.Clone(parts[1:]), func(name string) bool { return name == "" })
	p.host = strings.Join(slices.Compact(hosts), ":")
	if len(parts) > 3 {
		return p, fault.New(fault.Invalid, "Invalid input received: Unable to parse availability_zone")
	}
	if err := s.checkPlace(ctx, &p); err != nil {
		return p, err
	}
	wanted := cmp.Or(n.Host, n.Node)
	switch {
	case wanted == "":
		return p, nil
	case p.host != "":
		return p, fault.New(fault.Invalid, "One mechanism with host and/or hypervisor_hostname and another mechanism with zone:host:node are mutually exclusive.")
	}
	p.host = wanted
	zones, err := s.cfg.Store.Zones(ctx)
	if _, ok := zones[wanted]; err == nil && (!ok || n.Node != "" && n.Node != wanted) {
		err = fault.New(fault.Invalid, "Compute host %s could not be found.", wanted)
	}
	return p, err
}

// checkPlace checks that the client may choose the host. Without a host, it checks that the zone is available. If the host is in another
// zone, the zone of the request has no effect, as in Nova.
func (s *server) checkPlace(ctx context.Context, p *place) error {
	switch {
	case p.host != "":
		if err := s.mux.Enforce(ctx, ruleForcedHost, nil); err != nil {
			return err
		}
		zones, err := s.cfg.Store.Zones(ctx)
		if p.zone != zones[p.host] {
			p.zone = ""
		}
		return err
	case p.zone != "":
		return s.checkZone(ctx, p.zone)
	}
	return nil
}

// maxName is the maximum length of the name of a server, in characters.
const maxName = 255

// counts returns the least and the highest number of servers that the client asks for. Errors: Invalid, also if the name of a server would be too long with its number; Denied if the highest number is above maxServers.
func (n *newServer) counts() (least, most int, err error) {
	if least, err = parseWhole("min_count", n.MinCount.RawMessage, 1); err != nil {
		return 0, 0, err
	}
	most = least
	if len(n.MaxCount.RawMessage) > 0 {
		if most, err = parseWhole("max_count", n.MaxCount.RawMessage, 1); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case least > most:
		return 0, 0, fault.New(fault.Invalid, "min_count must be <= max_count")
	case most > 1 && n.Hostname+n.FQDN != "":
		return 0, 0, fault.New(fault.Invalid, "Unable to allocate a single hostname to multiple instances")
	case most > maxServers:
		return 0, 0, fault.New(fault.Denied, "A request creates at most %d servers: min_count and max_count must not be higher.", maxServers)
	}
	if chars := utf8.RuneCountInString(string(n.Name) + numberOf(most-1, most)); chars > maxName {
		return 0, 0, fault.New(fault.Invalid, "An invalid 'name' value was provided. With the number of its server it has %d characters, more than %d.", chars, maxName)
	}
	return least, most, nil
}

type createdServer struct {
	Server        *createdView `json:"server,omitempty"`
	ReservationID string       `json:"reservation_id,omitempty"`
}

type createdView struct {
	ID             string          `json:"id" format:"uuid"`
	Links          []api.Link      `json:"links"`
	DiskConfig     string          `json:"OS-DCF:diskConfig" enum:"AUTO,MANUAL"`
	SecurityGroups []securityGroup `json:"security_groups"`
	AdminPass      string          `json:"adminPass"`
}

type securityGroup struct {
	Name string `json:"name,omitempty"`
}

// template returns a server with the values that all servers of a request have in common. If the image is not known, the caller passes nil for it.
func (n *newServer) template(who reqctx.Request, f *store.Flavor, is *image.Image, at place) *store.Server {
	need := f.Resources()
	srv := &store.Server{
		Name: string(n.Name), ProjectID: who.ProjectID, UserID: who.UserID, RequestID: who.ID,
		FlavorID: f.ID, VCPUs: need.VCPUs, MemoryMiB: need.MemoryMiB, DiskGiB: need.DiskGiB, BootFlavor: db.JSONOf(f.Boot()),
		Metadata: db.JSONOf(map[string]string(n.Metadata)), Tags: db.JSONOf(n.Tags.sorted()), ReservationID: newReservation(), Hostname: n.Hostname + n.FQDN,
		Description: (*string)(n.Description), AccessIPv4: n.AccessIPv4, AccessIPv6: normalIP(n.AccessIPv6),
		ConfigDrive: isTrue(plainText(n.ConfigDrive.RawMessage)), OnlyHost: at.host,
	}
	bootFrom(srv, n.ImageRef, is, n.DiskConfig)
	if at.zone != "" {
		srv.PinnedZone = &at.zone
	}
	if n.UserData != "" {
		srv.UserData = &n.UserData
	}
	srv.AdminPass = new(newPassword())
	if given := n.AdminPass.RawMessage; given != nil {
		srv.AdminPass = new(plainText(given))
	}
	return srv
}

// copies returns the n servers of a request. The server in the parameter named of has the values that all n servers have. If n
// is more than 1, their names end with numbers, as in Nova.
func (s *server) copies(of *store.Server, n int) []*store.Server {
	out := make([]*store.Server, n)
	for i := range out {
		srv := *of
		srv.ID, srv.LaunchIndex = uuid.NewString(), i
		srv.Name += numberOf(i, n)
		if srv.Hostname == "" {
			srv.Hostname = hostnameFor(of.Name, srv.ID)
			if !strings.HasPrefix(srv.Hostname, "Server-") { // something is left of the name
				srv.Hostname = hostnameFor(srv.Name, srv.ID)
			}
		}
		srv.InstanceName = new(s.cfg.InstanceNames.of(&srv))
		out[i] = &srv
	}
	return out
}

// numberOf returns the suffix for the name of server i of n servers. A single server has no suffix.
func numberOf(i, n int) string {
	if n == 1 {
		return ""
	}
	return "-" + strconv.Itoa(i+1)
}

// newReservation returns a new reservation id in Nova's form. The servers of one request share the id.
func newReservation() string { return "r-" + strings.ToLower(rand.Text()[:8]) }

// newPassword returns a random password of Nova's length.
func newPassword() string { return rand.Text()[:12] }

// normalIP returns an address in its shortest form.
func normalIP(text string) string {
	if ip, err := netip.ParseAddr(text); err == nil {
		return ip.String()
	}
	return text
}

// createPlain is createServer before 2.19: the description of a server is its name.
func (s *server) createPlain(ctx context.Context, r *api.Request[createServer]) (out createdServer, err error) {
	r.Body.Server.Description = new(description(r.Body.Server.Name))
	return s.createServer(ctx, r)
}

func (s *server) createServer(ctx context.Context, r *api.Request[createServer]) (out createdServer, err error) { //nolint:gocognit // see CONTRIBUTING.md
	in := &r.Body.Server
	least, most, err := in.counts()
	if err != nil {
		return out, err
	}
	at, err := s.place(ctx, in)
	if err != nil {
		return out, err
	}
	if err := s.checkParts(ctx, in); err != nil {
		return out, err
	}
	f, err := s.flavor(ctx, in.FlavorRef)
	if err != nil {
		return out, err
	}
	if err := s.checkFlavorDisks(ctx, f); err != nil {
		return out, err
	}
	own, err := in.ownDisks(f)
	if err != nil {
		return out, err
	}
	if err := s.checkExtraDisks(ctx, f); err != nil {
		return out, err
	}
	is, err := s.checkImage(ctx, r.Request, in.ImageRef, "Can not find requested image", in.DiskConfig, f.MemoryMiB, f.DiskGiB)
	if err != nil {
		return out, err
	}
	of := in.template(reqctx.From(ctx), f, is, at)
	of.BootFlavor.V.OwnDisks = own
	wanted, err := s.networksOf(r.Request, in, most)
	if err != nil {
		return out, err
	}
	of.Networks = db.JSONOf(wanted)
	files, err := guestFiles(in.Files, s.cfg.Store.Limits())
	if err != nil {
		return out, err
	}
	of.Files = db.JSONOf(files)
	if err := s.addKey(ctx, of, string(in.KeyName)); err != nil {
		return out, err
	}
	if err := s.addHints(ctx, &r.Body, of); err != nil {
		return out, err
	}
	if err := s.checkBus(ctx); err != nil {
		return out, err
	}
	var made []*store.Server
	err = s.cfg.Store.CreateServers(ctx, store.NewServers{
		Least: least, Most: most, Make: func(n int) []*store.Server { return s.copies(of, n) },
		Also: func(ctx context.Context, list []*store.Server) error {
			made, out = list, createdReply(r, list[0])
			return r.Keep(ctx, out)
		},
	})
	if err == nil {
		for _, srv := range made {
			s.notifyConductor(ctx, srv.ID)
		}
	}
	return out, err
}

// createdReply returns the reply to a request that creates servers. The reply shows the first server.
func createdReply(r *api.Request[createServer], first *store.Server) createdServer {
	in := &r.Body.Server
	if isTrue(plainText(in.ReturnReservationID.RawMessage)) {
		return createdServer{ReservationID: first.ReservationID}
	}
	l := linksTo(r.Request, "servers", first.ID)
	r.ReplyHeader.Set("Location", l[0].Href)
	return createdServer{Server: &createdView{ID: first.ID, Links: l, DiskConfig: diskConfig(first.AutoDisk), SecurityGroups: in.shownGroups(), AdminPass: *first.AdminPass}}
}

// addKey sets the key pair of a server: the key pair of the server's user with this name, or none if name is empty. Errors: Invalid, with Nova's text, if the key pair does not exist.
func (s *server) addKey(ctx context.Context, srv *store.Server, name string) error {
	if name == "" {
		return nil
	}
	k, err := s.cfg.Store.KeyPair(ctx, srv.UserID, name)
	if errors.Is(err, fault.NotFound) {
		return fault.New(fault.Invalid, "Invalid key_name provided.")
	}
	if err == nil {
		srv.KeyName, srv.PublicKey = &k.Name, &k.PublicKey
	}
	return err
}

// maxHints is the maximum length of the hints of a server as JSON, in bytes. Nova has no maximum. nova-mini has one because lists of servers read the hints of every server.
const maxHints = 8 << 10

// addHints sets the hints of a server, and the server group that they name. Errors: Invalid if the hints are too long; those of hintedGroup.
func (s *server) addHints(ctx context.Context, b *createServer, srv *store.Server) error {
	given := b.Hints
	if given == nil {
		given = b.OldHints
	}
	lists, err := given.lists()
	if err != nil {
		return err
	}
	if len(lists) > 0 {
		raw, err := json.Marshal(lists)
		if err != nil {
			return err
		}
		if len(raw) > maxHints {
			return fault.New(fault.Invalid, "Invalid input for field/attribute os:scheduler_hints. The hints have %d bytes as JSON, more than %d.", len(raw), maxHints)
		}
		srv.Hints = new(string(raw))
	}
	srv.GroupID, err = s.hintedGroup(ctx, lists["group"])
	return err
}

// shownGroups returns the security groups for the reply: those of the request, or the default group.
func (n *newServer) shownGroups() []securityGroup {
	if n.SecurityGroups == nil {
		return []securityGroup{{"default"}}
	}
	out := []securityGroup{}
	for _, g := range n.SecurityGroups {
		out = append(out, securityGroup{string(g.Name)})
	}
	return out
}

// tag is a word by which clients find servers.
type tag string

// JSONSchema implements api.JSONSchemer.
func (tag) JSONSchema() string {
	return `{"type": "string", "pattern": "^[^,/]*$", "minLength": 1, "maxLength": 60}`
}

// tags are the tags of a server.
type tags []string

// JSONSchema implements api.JSONSchemer.
func (tags) JSONSchema() string {
	return `{"type": "array", "maxItems": 50, "items": ` + tag("").JSONSchema() + `}`
}

// sorted returns the tags in order, each once.
func (t tags) sorted() []string {
	out := slices.Clone(t)
	slices.Sort(out)
	return slices.Compact(out)
}
