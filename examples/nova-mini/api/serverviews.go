package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sync"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/api"
)

// This file has the types of servers in replies. The tags of a field give the microversions and the policy rule of the attribute.

type serverBrief struct {
	ID    string     `json:"id" format:"uuid"`
	Name  string     `json:"name" min:"1" max:"255"`
	Links []api.Link `json:"links"`
}

type oneServer struct {
	Server shownServer `json:"server"`
}

// shownServer is a server in the reply to GET /servers/{id}.
type shownServer struct {
	serverView
	serverGroups
}

// serverView is a server in a list with details.
type serverView struct {
	serverCore
	serverDetails
	serverUserData
}

// serverUserData has the user data in all replies except that to a rebuild, which has the user data under another name.
type serverUserData struct {
	UserData userData `json:"OS-EXT-SRV-ATTR:user_data" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
}

// serverGroups has the server groups, in replies with one server but not in lists.
type serverGroups struct {
	Groups groupsView `json:"server_groups" since:"2.71"`
}

// serverCore has the attributes that each reply with a server shows.
type serverCore struct {
	ID           string              `json:"id" format:"uuid"`
	Name         string              `json:"name" min:"1" max:"255"`
	Status       string              `json:"status" enum:"BUILD,ACTIVE,REBOOT,HARD_REBOOT,PASSWORD,RESIZE,VERIFY_RESIZE,REVERT_RESIZE,SHUTOFF,PAUSED,SUSPENDED,RESCUE,REBUILD,SHELVED,SHELVED_OFFLOADED,SOFT_DELETED,ERROR,DELETED"`
	TenantID     string              `json:"tenant_id"`
	UserID       string              `json:"user_id"`
	Metadata     metadata            `json:"metadata"`
	HostID       string              `json:"hostId" pattern:"^([0-9a-f]{56})?$"`
	Image        imageView           `json:"image" until:"2.97"`
	ImageOf      imagePropertiesView `json:"image_with_properties" name:"image" since:"2.98"`
	Flavor       bookmark            `json:"flavor" until:"2.46"`
	BootFlavor   bootFlavorView      `json:"boot_flavor" name:"flavor" since:"2.47"`
	Created      string              `json:"created" format:"date-time" pattern:"Z$"`
	Updated      string              `json:"updated" format:"date-time" pattern:"Z$"`
	Addresses    addresses           `json:"addresses"`
	AccessIPv4   string              `json:"accessIPv4"`
	AccessIPv6   string              `json:"accessIPv6"`
	Links        []api.Link          `json:"links"`
	DiskConfig   string              `json:"OS-DCF:diskConfig" enum:"AUTO,MANUAL"`
	Progress     *int                `json:"progress,omitempty" min:"0"`
	Fault        *faultView          `json:"fault,omitempty"`
	Locked       bool                `json:"locked" since:"2.9"`
	Description  *string             `json:"description" since:"2.19"`
	Tags         []string            `json:"tags" since:"2.26"`
	Certificates alwaysNull          `json:"trusted_image_certificates" since:"2.63"`
	LockedReason *string             `json:"locked_reason" since:"2.73"`
	AnyHostname  string              `json:"any_hostname" name:"OS-EXT-SRV-ATTR:hostname" since:"2.90"`
	Hints        hintsView           `json:"scheduler_hints" since:"2.100"`
}

// serverDetails has the other attributes of GET. Since 2.75 the replies to PUT and to a rebuild have them, too.
type serverDetails struct {
	Zone            string             `json:"OS-EXT-AZ:availability_zone"`
	PinnedZone      *string            `json:"pinned_availability_zone" since:"2.96"`
	ConfigDrive     string             `json:"config_drive" enum:",True"`
	KeyName         *string            `json:"key_name"`
	LaunchedAt      *micros            `json:"OS-SRV-USG:launched_at"`
	TerminatedAt    *micros            `json:"OS-SRV-USG:terminated_at"`
	TaskState       *string            `json:"OS-EXT-STS:task_state"`
	VMState         string             `json:"OS-EXT-STS:vm_state" enum:"building,active,stopped,resized,paused,suspended,rescued,shelved,shelved_offloaded,soft-delete,error,deleted"`
	PowerState      compute.PowerState `json:"OS-EXT-STS:power_state" enum:"0,1,3,4,6,7"`
	VolumesAttached alwaysEmptyList    `json:"os-extended-volumes:volumes_attached"`
	SecurityGroups  portGroups         `json:"security_groups,omitzero"`

	Host           *string     `json:"OS-EXT-SRV-ATTR:host" rule:"os_compute_api:os-extended-server-attributes"`
	InstanceName   string      `json:"OS-EXT-SRV-ATTR:instance_name" rule:"os_compute_api:os-extended-server-attributes"`
	HypervisorHost *string     `json:"OS-EXT-SRV-ATTR:hypervisor_hostname" rule:"os_compute_api:os-extended-server-attributes"`
	ReservationID  string      `json:"OS-EXT-SRV-ATTR:reservation_id" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	LaunchIndex    int         `json:"OS-EXT-SRV-ATTR:launch_index" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	Hostname       string      `json:"OS-EXT-SRV-ATTR:hostname" since:"2.3" until:"2.89" rule:"os_compute_api:os-extended-server-attributes"`
	KernelID       alwaysEmpty `json:"OS-EXT-SRV-ATTR:kernel_id" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	RamdiskID      alwaysEmpty `json:"OS-EXT-SRV-ATTR:ramdisk_id" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	RootDevice     *string     `json:"OS-EXT-SRV-ATTR:root_device_name" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	HostStatus     hostStatus  `json:"host_status,omitzero" since:"2.16"`
}

type bookmark struct {
	ID    string     `json:"id"`
	Links []api.Link `json:"links"`
}

type bootFlavorView struct {
	VCPUs        int               `json:"vcpus"`
	RAM          int               `json:"ram"`
	Disk         int               `json:"disk"`
	Ephemeral    int               `json:"ephemeral"`
	Swap         int               `json:"swap"`
	OriginalName string            `json:"original_name"`
	ExtraSpecs   map[string]string `json:"extra_specs" rule:"os_compute_api:servers:show:flavor-extra-specs"`
}

// hintsView are the hints of a server, as JSON.
type hintsView struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (hintsView) JSONSchema() string {
	return `{"type": "object", "additionalProperties": {"type": "array"}}`
}

type faultView struct {
	Code    int    `json:"code"`
	Created string `json:"created" format:"date-time" pattern:"Z$"`
	Message string `json:"message"`
	Details string `json:"details,omitempty"`
}

// lookups reads values that a reply shows only in some microversions, or only to some clients. A value is read when the encoder needs it for the first time, and then once for all
// servers of the reply.
type lookups struct {
	links    linker
	servers  []*store.Server // the servers of the reply, which are known before it is encoded
	userData func() (map[string]*string, error)
	states   func() (map[string]string, error) // returns the states of the compute services; the key is the host
	hosts    func() (all, unknown bool)        // reports whether the client may see every status of a host, and whether it may see UNKNOWN
	groups   func() map[string][]string        // returns the names of the security groups of the ports, by the id of the port, or nil if they are not known
}

// newLookups returns the lookups of a reply.
func (s *server) newLookups(r *http.Request) *lookups {
	ctx := r.Context()
	read := &lookups{
		links: newLinker(r),
		states: sync.OnceValues(func() (map[string]string, error) {
			list, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
			out := map[string]string{}
			for _, v := range list {
				if v.Kind == store.ComputeBinary {
					out[v.Host] = hostState(&v)
				}
			}
			return out, err
		}),
	}
	read.userData = sync.OnceValues(func() (map[string]*string, error) {
		var ids []string
		for _, srv := range read.servers {
			if srv.HasUserData {
				ids = append(ids, srv.ID)
			}
		}
		return s.cfg.Store.UserData(ctx, ids...)
	})
	read.hosts = sync.OnceValues(func() (all, unknown bool) {
		all = s.mux.Enforce(ctx, ruleHostStatus, nil) == nil
		return all, all || s.mux.Enforce(ctx, ruleHostUnknown, nil) == nil
	})
	read.groups = sync.OnceValue(func() map[string][]string { return s.groupNames(r, read.servers) })
	return read
}

// hostUnknown is Nova's host_status of a host whose compute service is down.
const hostUnknown = "UNKNOWN"

// hostState returns Nova's host_status of a host with this compute service.
func hostState(v *store.Service) string {
	switch {
	case v.ForcedDown:
		return "DOWN"
	case v.Disabled:
		return "MAINTENANCE"
	case !v.Up:
		return hostUnknown
	}
	return "UP"
}

// userData is the user data of a server. The database is read only when a reply that shows the user data is encoded.
type userData struct {
	*lookups

	id     string
	exists bool
}

// MarshalJSON reads the user data, unless there are none.
func (u userData) MarshalJSON() ([]byte, error) {
	if !u.exists {
		return []byte("null"), nil
	}
	all, err := u.userData()
	if err != nil {
		return nil, err
	}
	return json.Marshal(all[u.id])
}

// JSONSchema implements api.JSONSchemer.
func (userData) JSONSchema() string { return `{"type": ["string", "null"]}` }

// hostStatus is the status of a server's host. The database is read only when a reply that shows the status is encoded.
type hostStatus struct {
	*lookups

	host *string
}

func (h hostStatus) text() (string, error) {
	if h.host == nil {
		return "", nil
	}
	all, err := h.states()
	return cmp.Or(all[*h.host], hostUnknown), err
}

// IsZero reports whether the client may not see the status, so that the reply leaves the field out.
func (h hostStatus) IsZero() bool {
	all, unknown := h.hosts()
	if all || !unknown {
		return !all
	}
	text, err := h.text()
	return err == nil && text != hostUnknown
}

// MarshalJSON reads the status.
func (h hostStatus) MarshalJSON() ([]byte, error) {
	text, err := h.text()
	if err != nil {
		return nil, err
	}
	return json.Marshal(text)
}

// JSONSchema implements api.JSONSchemer.
func (hostStatus) JSONSchema() string {
	return `{"enum": ["", "UP", "UNKNOWN", "DOWN", "MAINTENANCE"]}`
}

// rootDeviceOf returns the name of the disk from which the guest boots, or nil before the first boot.
func rootDeviceOf(s *store.Server) *string {
	if s.LaunchedAt == nil {
		return nil
	}
	return new(store.RootDevice)
}

// configDrive returns Nova's text that says whether the server has a config drive.
func configDrive(s *store.Server) string {
	if s.ConfigDrive {
		return "True"
	}
	return ""
}

// diskConfig returns Nova's value of OS-DCF:diskConfig.
func diskConfig(auto bool) string {
	if auto {
		return "AUTO"
	}
	return "MANUAL"
}

// progressing are the statuses in which a server has the attribute progress, as in Nova.
var progressing = []string{"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE"}

// hostID returns an id of the server's host that does not reveal the host's name. As in Nova, each project has its own id of a host.
func hostID(srv *store.Server) string {
	if srv.Host == nil {
		return ""
	}
	sum := sha256.Sum224([]byte(srv.ProjectID + *srv.Host))
	return hex.EncodeToString(sum[:])
}

// coreOf returns the attributes of a server that each reply shows.
func (s *server) coreOf(ctx context.Context, srv *store.Server, l linker) serverCore {
	v := serverCore{
		ID: srv.ID, Name: srv.Name, Status: srv.Status(), TenantID: srv.ProjectID, UserID: srv.UserID, Metadata: srv.Metadata.V, HostID: hostID(srv),
		Flavor: l.bookmarked("flavors", srv.FlavorID), BootFlavor: viewBootFlavor(srv), Created: formatSeconds(srv.CreatedAt), Updated: formatSeconds(srv.UpdatedAt),
		AccessIPv4: srv.AccessIPv4, AccessIPv6: srv.AccessIPv6, Links: l.to("servers", srv.ID), Addresses: addressesOf(srv), DiskConfig: diskConfig(srv.AutoDisk),
		Description: srv.Description, Tags: shownTags(srv), AnyHostname: hostnameOf(srv), Hints: hintsView{json.RawMessage("{}")},
	}
	if v.Locked = srv.LockedBy != ""; srv.LockedReason != "" {
		v.LockedReason = &srv.LockedReason
	}
	if srv.VMState == compute.VMBuilding {
		v.Addresses = addresses{}
	}
	if srv.Hints != nil {
		v.Hints.RawMessage = json.RawMessage(*srv.Hints)
	}
	if srv.ImageRef != "" {
		image := l.bookmarked("images", srv.ImageRef)
		v.Image, v.ImageOf = imageView{&image}, imagePropertiesView{&imageProperties{image, srv.ImageProperties.V}}
	}
	if slices.Contains(progressing, v.Status) {
		v.Progress = new(int)
	}
	if v.Status == store.StatusError && srv.FaultAt != nil { // Nova forgets the fault of a server that is deleted
		v.Fault = &faultView{Code: srv.FaultCode, Created: formatSeconds(*srv.FaultAt), Message: srv.FaultMessage}
		if srv.FaultCode != http.StatusInternalServerError || s.administrator(ctx) { // as in Nova
			v.Fault.Details = srv.FaultDetails
		}
	}
	return v
}

func viewBootFlavor(srv *store.Server) bootFlavorView {
	f := srv.Flavor()
	v := bootFlavorView{VCPUs: srv.VCPUs, RAM: srv.MemoryMiB, Disk: f.DiskGiB, Ephemeral: f.EphemeralGiB, Swap: f.SwapMiB, OriginalName: f.Name, ExtraSpecs: f.ExtraSpecs}
	if v.ExtraSpecs == nil {
		v.ExtraSpecs = map[string]string{}
	}
	return v
}

// detailsOf returns the other attributes of a server that GET shows.
func detailsOf(srv *store.Server, read *lookups) serverDetails {
	return serverDetails{
		Zone: srv.Zone, PinnedZone: srv.PinnedZone, KeyName: srv.KeyName, LaunchedAt: formatMicros(srv.LaunchedAt), TerminatedAt: formatMicros(srv.TerminatedAt),
		TaskState: srv.TaskState, VMState: srv.VMState, PowerState: srv.PowerState(), VolumesAttached: alwaysEmptyList{}, SecurityGroups: portGroups{read, srv},
		Host: srv.Host, InstanceName: srv.NameOnHost(), HypervisorHost: srv.Host, ReservationID: srv.ReservationID, LaunchIndex: srv.LaunchIndex,
		ConfigDrive: configDrive(srv), Hostname: hostnameOf(srv), RootDevice: rootDeviceOf(srv), HostStatus: hostStatus{read, srv.Host},
	}
}

// viewServer returns a server of the reply of read, in the form for lists with details.
func (s *server) viewServer(ctx context.Context, srv *store.Server, read *lookups) serverView {
	read.servers = append(read.servers, srv)
	return serverView{s.coreOf(ctx, srv, read.links), detailsOf(srv, read), serverUserData{userData{read, srv.ID, srv.HasUserData}}}
}

// viewOne returns a server in the form for GET.
func (s *server) viewOne(r *http.Request, srv *store.Server) shownServer {
	return shownServer{s.viewServer(r.Context(), srv, s.newLookups(r)), serverGroups{s.groupsOf(r.Context(), srv)}}
}
