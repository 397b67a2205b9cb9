package api

import (
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

// This file has what replies show of a server. A field has its microversions and its rule in its tags.

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

// serverUserData is not in the reply to a rebuild, which has the user data under a name of their own.
type serverUserData struct {
	UserData userData `json:"OS-EXT-SRV-ATTR:user_data" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
}

// serverGroups is in replies with one server, but not in lists.
type serverGroups struct {
	Groups groupsView `json:"server_groups" since:"2.71"`
}

// serverCore is what each reply with a server shows.
type serverCore struct {
	ID           string              `json:"id" format:"uuid"`
	Name         string              `json:"name" min:"1" max:"255"`
	Status       string              `json:"status" enum:"BUILD,ACTIVE,REBOOT,HARD_REBOOT,RESIZE,VERIFY_RESIZE,REVERT_RESIZE,SHUTOFF,PAUSED,SUSPENDED,RESCUE,REBUILD,SHELVED,SHELVED_OFFLOADED,SOFT_DELETED,ERROR,DELETED"`
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

// serverDetails is what GET shows besides, and the reply to PUT since 2.75.
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
	SecurityGroups  []securityGroup    `json:"security_groups,omitempty"`

	Host           *string     `json:"OS-EXT-SRV-ATTR:host" rule:"os_compute_api:os-extended-server-attributes"`
	InstanceName   string      `json:"OS-EXT-SRV-ATTR:instance_name" rule:"os_compute_api:os-extended-server-attributes"`
	HypervisorHost *string     `json:"OS-EXT-SRV-ATTR:hypervisor_hostname" rule:"os_compute_api:os-extended-server-attributes"`
	ReservationID  string      `json:"OS-EXT-SRV-ATTR:reservation_id" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	LaunchIndex    int         `json:"OS-EXT-SRV-ATTR:launch_index" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	Hostname       string      `json:"OS-EXT-SRV-ATTR:hostname" since:"2.3" until:"2.89" rule:"os_compute_api:os-extended-server-attributes"`
	KernelID       alwaysEmpty `json:"OS-EXT-SRV-ATTR:kernel_id" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	RamdiskID      alwaysEmpty `json:"OS-EXT-SRV-ATTR:ramdisk_id" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	RootDevice     *string     `json:"OS-EXT-SRV-ATTR:root_device_name" since:"2.3" rule:"os_compute_api:os-extended-server-attributes"`
	HostStatus     hostStatus  `json:"host_status" since:"2.16" rule:"os_compute_api:servers:show:host_status"`
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

// lookups reads what only some replies with servers show, once for all servers of a reply: it is read when the first server is encoded whose
// version and caller show it.
type lookups struct {
	links    linker
	userData func() (map[string]*string, error)
	states   func() (map[string]string, error) // of the compute services, by host
}

// newLookups returns the lookups of a reply. When the reply is encoded, ids are those of its servers.
func (s *server) newLookups(r *http.Request, ids *[]string) *lookups {
	ctx := r.Context()
	return &lookups{
		links:    newLinker(r),
		userData: sync.OnceValues(func() (map[string]*string, error) { return s.cfg.Store.UserData(ctx, *ids...) }),
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
}

// hostState returns Nova's status of the host of a server, by its compute service.
func hostState(v *store.Service) string {
	switch {
	case v.ForcedDown:
		return "DOWN"
	case v.Disabled:
		return "MAINTENANCE"
	case !v.Up:
		return "UNKNOWN"
	}
	return "UP"
}

// userData is the user data of a server, which is read when it is encoded.
type userData struct {
	*lookups

	id string
}

// MarshalJSON reads the user data.
func (u userData) MarshalJSON() ([]byte, error) {
	all, err := u.userData()
	if err != nil {
		return nil, err
	}
	return json.Marshal(all[u.id])
}

// JSONSchema implements api.JSONSchemer.
func (userData) JSONSchema() string { return `{"type": ["string", "null"]}` }

// hostStatus is the status of the compute service of a server, which is read when it is encoded.
type hostStatus struct {
	*lookups

	host *string
}

// MarshalJSON reads the status.
func (h hostStatus) MarshalJSON() ([]byte, error) {
	if h.host == nil {
		return []byte(`""`), nil
	}
	all, err := h.states()
	if err != nil {
		return nil, err
	}
	if state := all[*h.host]; state != "" {
		return json.Marshal(state)
	}
	return []byte(`"UNKNOWN"`), nil
}

// JSONSchema implements api.JSONSchemer.
func (hostStatus) JSONSchema() string {
	return `{"enum": ["", "UP", "UNKNOWN", "DOWN", "MAINTENANCE"]}`
}

// zone is the only availability zone. The name is Nova's default.
const zone = "nova"

// zoneOf returns the availability zone of a server, or "" while the server has no host.
func zoneOf(s *store.Server) string {
	if s.Host == nil {
		return ""
	}
	return zone
}

// rootDeviceOf returns the name of the disk from which the guest has booted, or nil before that.
func rootDeviceOf(s *store.Server) *string {
	if s.LaunchedAt == nil {
		return nil
	}
	return new(store.RootDevice)
}

// instanceName returns the name of a server on its host.
func instanceName(s *store.Server) string { return "instance-" + s.ID }

// configDrive returns Nova's word for whether the client asks for a config drive.
func configDrive(s *store.Server) string {
	if s.ConfigDrive {
		return "True"
	}
	return ""
}

// diskConfig returns Nova's word for who changes the partitions of a disk.
func diskConfig(auto bool) string {
	if auto {
		return "AUTO"
	}
	return "MANUAL"
}

// progressing are the statuses of servers that are shown with a progress, as in Nova.
var progressing = []string{"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE"}

// hostID identifies the host of a server without its name. It differs between projects, as in Nova.
func hostID(srv *store.Server) string {
	if srv.Host == nil {
		return ""
	}
	sum := sha256.Sum224([]byte(srv.ProjectID + *srv.Host))
	return hex.EncodeToString(sum[:])
}

// coreOf returns what each reply shows of a server.
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
	if srv.Hints != nil {
		v.Hints.RawMessage = json.RawMessage(*srv.Hints)
	}
	if srv.ImageRef != "" {
		image := l.bookmarked("images", srv.ImageRef)
		v.Image, v.ImageOf = imageView{&image}, imagePropertiesView{&imageProperties{image, map[string]string{}}}
	}
	if slices.Contains(progressing, v.Status) {
		v.Progress = new(int)
	}
	if (v.Status == store.StatusError || v.Status == store.StatusDeleted) && srv.FaultAt != nil {
		v.Fault = &faultView{Code: srv.FaultCode, Created: formatSeconds(*srv.FaultAt), Message: srv.FaultMessage}
		if srv.FaultCode != http.StatusInternalServerError || s.administrator(ctx) { // as Nova
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

// detailsOf returns what GET shows of a server besides.
func detailsOf(srv *store.Server, read *lookups) serverDetails {
	return serverDetails{
		Zone: zoneOf(srv), PinnedZone: srv.PinnedZone, KeyName: srv.KeyName, LaunchedAt: formatMicros(srv.LaunchedAt), TerminatedAt: formatMicros(srv.TerminatedAt),
		TaskState: srv.TaskState, VMState: srv.VMState, PowerState: srv.PowerState(), VolumesAttached: alwaysEmptyList{}, SecurityGroups: securityGroupsOf(srv),
		Host: srv.Host, InstanceName: instanceName(srv), HypervisorHost: srv.Host, ReservationID: srv.ReservationID, LaunchIndex: srv.LaunchIndex,
		ConfigDrive: configDrive(srv), Hostname: hostnameOf(srv), RootDevice: rootDeviceOf(srv), HostStatus: hostStatus{read, srv.Host},
	}
}

// viewServer returns a server as lists with details show it.
func (s *server) viewServer(ctx context.Context, srv *store.Server, read *lookups) serverView {
	return serverView{s.coreOf(ctx, srv, read.links), detailsOf(srv, read), serverUserData{userData{read, srv.ID}}}
}

// viewOne returns a server as GET shows it.
func (s *server) viewOne(r *http.Request, srv *store.Server) shownServer {
	return shownServer{s.viewServer(r.Context(), srv, s.newLookups(r, &[]string{srv.ID})), serverGroups{s.groupsOf(r.Context(), srv)}}
}
