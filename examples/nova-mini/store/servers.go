package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/fault"
)

// The values of vm_state, as in Nova. The others are in package compute.
const (
	Building = compute.VMBuilding
	Active   = compute.VMActive
	Stopped  = compute.VMStopped
	Error    = compute.VMError
	Resized  = compute.VMResized
	Deleted  = "deleted" // only in lists, see ServerQuery.Deleted
)

// The values of task_state, as in Nova, for operations that are not actions. The others are in [compute.Actions].
const (
	Scheduling = "scheduling" // the scheduler chooses a host
	Spawning   = "spawning"   // the compute service builds the server
	Deleting   = "deleting"   // the compute service removes the server; without a host, the conductor removes it
)

// Server is one row of the table of servers, with its task. A server has a task while it has an operation that has not
// ended.
type Server struct {
	ID        string                     `db:"id"`
	Name      string                     `db:"name"`
	ProjectID string                     `db:"project_id"`
	UserID    string                     `db:"user_id"`
	RequestID string                     `db:"request_id"`
	ImageRef  string                     `db:"image_ref"`
	FlavorID  string                     `db:"flavor_id"`
	VCPUs     int                        `db:"vcpus"`
	MemoryMiB int                        `db:"memory_mib"`
	DiskGiB   int                        `db:"disk_gib"`
	Metadata  db.JSON[map[string]string] `db:"metadata"`
	VMState   string                     `db:"vm_state"`
	// Power is the power state that was last stored, see PowerState. Nil: none was stored.
	Power *compute.PowerState `db:"power_state"`
	// TaskState is read only. It is computed from the server's operation, see Task.
	TaskState *string `db:"task_state"`
	// Host is the host on which the server is placed. It is nil until a host is chosen, and after a build has failed.
	Host      *string `db:"host"`
	FaultCode int     `db:"fault_code"`
	// FaultMessage is the text of the fault for the server's project. It names no hosts and no amounts of resources. The
	// names of the columns are older than the fields: the column fault_message has FaultDetails.
	FaultMessage string `db:"fault_for_users"`
	// FaultDetails is the text of the fault for administrators.
	FaultDetails string     `db:"fault_message"`
	FaultAt      *time.Time `db:"fault_at"`
	CreatedAt    time.Time  `db:"created_at"`
	UpdatedAt    time.Time  `db:"updated_at"`
	LaunchedAt   *time.Time `db:"launched_at"`
	// TerminatedAt is read only. Only a server in the state Deleted has it.
	TerminatedAt *time.Time       `db:"terminated_at"`
	Resize       db.JSON[*Resize] `db:"resize"`
	// LockedBy says who has locked the server: LockedByOwner, LockedByAdmin or "" if it is not locked.
	LockedBy     string `db:"locked_by"`
	LockedReason string `db:"locked_reason"`
	// ShelvedImage is the image of a shelved server's disk. ShelvedAt is the time at which the server was shelved. It is nil if the
	// server is not shelved, or has left its host since.
	ShelvedImage string     `db:"shelved_image"`
	ShelvedAt    *time.Time `db:"shelved_at"`
	// ShelvedUpload reports whether ShelvedImage is in the image service. Nil: the server is not shelved, or an earlier release has shelved it.
	ShelvedUpload *bool `db:"shelved_upload"`
	// ShelvedHost is the host whose driver stores ShelvedImage, and on which the server is unshelved. Nil: ShelvedImage is in the image service, the server is not shelved, or an earlier release has shelved it.
	ShelvedHost *string `db:"shelved_host"`
	// SoftDeletedAt is the time at which the server was last soft-deleted. It stays after the server has been restored.
	SoftDeletedAt *time.Time `db:"soft_deleted_at"`

	// Description is nil if the client has given none.
	Description *string `db:"description"`
	// Hostname is the host name for the guest. The servers of one request have the same ReservationID. LaunchIndex is the
	// number of the server within the request, from 0.
	Hostname      string `db:"hostname"`
	ReservationID string `db:"reservation_id"`
	// InstanceName is the name on the host. It is nil for a server that an earlier release has created, see NameOnHost.
	InstanceName *string `db:"instance_name"`
	LaunchIndex  int     `db:"launch_index"`
	AccessIPv4   string  `db:"access_ip_v4"`
	AccessIPv6   string  `db:"access_ip_v6"`
	// AutoDisk reports whether the guest may change the partitions of its disk.
	AutoDisk bool `db:"auto_disk_config"`
	// ConfigDrive reports whether the server has a disk with its metadata and user data, because the client or the image asks for it.
	ConfigDrive bool    `db:"config_drive"`
	KeyName     *string `db:"key_name"`
	// Zone is the availability zone of the server. It is read only, and is empty if the server was built and has no host now. See zoneOf.
	Zone string `db:"availability_zone"`
	// PinnedZone is the availability zone that the client asks for.
	PinnedZone *string `db:"pinned_zone"`
	// Tags are sorted.
	Tags db.JSON[[]string] `db:"tags"`
	// Hints are the client's scheduler hints: lists of values by name, as JSON. Nil: none.
	Hints *string `db:"scheduler_hints"`
	// GroupID is the server group, which may have been deleted. Nil: none.
	GroupID *string `db:"group_id"`
	// BootFlavor is nil for a server that an earlier release has created, see Flavor.
	BootFlavor db.JSON[*BootFlavor] `db:"boot_flavor"`

	// ImageProperties are those properties of the image that Nova defines, with the values at the last boot.
	ImageProperties db.JSON[map[string]string] `db:"image_properties"`

	// Networks are the network interfaces of the server: the requested ones, with their ports. Nil: no interface was requested or attached.
	Networks db.JSON[*network.Wanted] `db:"networks"`

	// Most queries of servers leave out UserData, PublicKey, AdminPass and Files, because these are large or secret.
	// [Store.ServerToBuild] reads them. UserData is base64, as the client has sent it. PublicKey is the key of the key pair.
	// AdminPass is removed when the server has been built, and at the end of an action that sets a password.
	UserData  *string `db:"user_data"`
	PublicKey *string `db:"public_key"`
	AdminPass *string `db:"admin_pass"`
	// Files are files for the guest.
	Files db.JSON[*[]compute.File] `db:"files"`
	// HasUserData reports whether the server has user data. It is read only. Lists of servers have it, too.
	HasUserData bool `db:"has_user_data"`

	// OnlyHost is for CreateServer: the only host on which the server may be built. Empty: any host.
	OnlyHost string `db:"-"`
}

// derivedColumns are the columns of a Server that its table does not have. unreadColumns are the columns of the table that most queries do not read.
// unlistedColumns are further ones that a list does not read, because no view of a server needs them, and a list may have 1,000 rows.
var (
	derivedColumns  = []string{`"availability_zone"`, `"task_state"`, `"terminated_at"`, `"has_user_data"`}
	unreadColumns   = []string{`"user_data"`, `"public_key"`, `"admin_pass"`, `"files"`}
	unlistedColumns = []string{`"request_id"`, `"resize"`, `"shelved_image"`, `"shelved_at"`, `"shelved_upload"`, `"shelved_host"`, `"soft_deleted_at"`}
)

// deriveOf returns SQL for the derived columns that do not need the operation of a server. The parameter is the name of the table of servers.
func deriveOf(table string) string {
	return ", " + zoneOf(table) + " AS availability_zone, user_data IS NOT NULL AS has_user_data"
}

// tableColumns returns the columns of a server that its table has.
func tableColumns() []string {
	return slices.DeleteFunc(strings.Split(db.Columns[Server](), ", "), func(name string) bool { return slices.Contains(derivedColumns, name) })
}

// shownColumns returns the columns of the table of servers that most queries read.
func shownColumns() []string {
	return slices.DeleteFunc(tableColumns(), func(name string) bool { return slices.Contains(unreadColumns, name) })
}

// listColumns are the columns that lists of [serversWithTasks], [deletedServers] and [anyServers] read.
var listColumns = strings.Join(append(slices.DeleteFunc(shownColumns(), func(name string) bool { return slices.Contains(unlistedColumns, name) }), derivedColumns...), ", ")

// Task returns the task_state, or "" if the server has no task.
func (s *Server) Task() string {
	if s.TaskState == nil {
		return ""
	}
	return *s.TaskState
}

// PowerState returns the stored power state of the server's guest. If none is stored, as for a server whose last action an earlier release has done, PowerState
// returns the power state that belongs to the server's vm_state.
func (s *Server) PowerState() compute.PowerState {
	if s.Power != nil {
		return *s.Power
	}
	return s.impliedPower()
}

// impliedPower returns the power state that belongs to the server's vm_state. A guest has this power state after a successful action.
func (s *Server) impliedPower() compute.PowerState {
	switch {
	case s.VMState == Active, s.VMState == compute.VMRescued, s.VMState == Resized && s.Resize.V != nil && s.Resize.V.Running:
		return compute.Running
	case s.VMState == compute.VMPaused:
		return compute.Paused
	case s.VMState == compute.VMSuspended:
		return compute.Suspended
	case slices.Contains([]string{Stopped, Resized, compute.VMShelved, compute.VMOffloaded, compute.VMSoftDeleted}, s.VMState):
		return compute.Shutdown
	}
	return compute.NoState
}

// Need returns the resources that the claim of the server covers.
func (s *Server) Need() compute.Resources {
	return compute.Resources{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, DiskGiB: s.DiskGiB}
}

// Spec returns the Spec with which a driver builds the server. The server must come from [Store.ServerToBuild]. A shelved server
// is built from the image of its disk.
func (s *Server) Spec() compute.Spec {
	var files []compute.File
	if s.Files.V != nil {
		files = *s.Files.V
	}
	flavor := s.Flavor()
	extra := flavor.Extra()
	return compute.Spec{
		EphemeralGiB: extra.EphemeralGiB, SwapMiB: extra.SwapMiB, Files: files, ID: s.ID, Name: s.Name, InstanceName: orEmpty(s.InstanceName), ProjectID: s.ProjectID, ImageRef: cmp.Or(s.ShelvedImage, s.ImageRef),
		Resources: flavor.OnHost(s.Need()), Metadata: s.Metadata.V, Hostname: s.Hostname, ConfigDrive: s.ConfigDrive,
		Interfaces: s.interfaces(), UserData: orEmpty(s.UserData), AdminPass: orEmpty(s.AdminPass), PublicKey: orEmpty(s.PublicKey),
		KeyName: orEmpty(s.KeyName), LaunchIndex: s.LaunchIndex, Zone: s.Zone,
	}
}

// GuestNeeds returns what the image of the server needs of the server's host. It ignores the error of
// image.Needs, because the API service has checked the properties.
func (s *Server) GuestNeeds() compute.GuestNeeds {
	needs, _ := image.Needs(s.ImageProperties.V)
	return needs
}

// DriverNeeds returns the capabilities that the driver of the server's host must have. The interfaces of the server may not exist yet.
func (s *Server) DriverNeeds() (out []driver.Capability) {
	spec := s.Spec()
	if w := s.Networks.V; w != nil && len(w.Interfaces) > 0 {
		spec.Interfaces = make([]compute.Interface, len(w.Interfaces))
	}
	for _, n := range spec.Needs() {
		out = append(out, n.Capability)
	}
	return out
}

// NameOnHost returns the name that an operator sees for the server on its host.
func (s *Server) NameOnHost() string {
	if s.InstanceName == nil {
		return "instance-" + s.ID
	}
	return *s.InstanceName
}

// orEmpty returns the text, or "" for nil.
func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// NoServer returns the error NotFound for a server that does not exist.
func NoServer(id string) error {
	return fault.New(fault.NotFound, "Instance %s could not be found.", id)
}

// The maximum lengths of texts in the table of servers, in bytes. Longer texts of a fault are cut; longer metadata are refused.
const (
	maxMessage  = 255       // FaultMessage
	maxFault    = 8 << 10   // FaultDetails
	maxMetadata = 1<<16 - 1 // Metadata as JSON
)

// checkMetadata returns Invalid if the metadata of a server are too long.
func checkMetadata(m db.JSON[map[string]string]) error {
	raw, err := m.Value()
	if err != nil {
		return fault.New(fault.Invalid, "Invalid metadata: %w", err)
	}
	if len(fmt.Sprint(raw)) > maxMetadata {
		return fault.New(fault.Invalid, "Invalid metadata: as JSON they must have at most %d bytes", maxMetadata)
	}
	return nil
}

// Server returns one server. Errors: NotFound.
func (s *Store) Server(ctx context.Context, id string) (*Server, error) {
	srv := new(Server)
	return srv, s.get(ctx, s.db, srv, NoServer(id), oneServer, id)
}

// ServerToBuild returns one server with all values that a driver needs to build it, but without TaskState. Errors: NotFound.
func (s *Store) ServerToBuild(ctx context.Context, id string) (*Server, error) {
	srv := new(Server)
	err := s.get(ctx, s.db, srv, NoServer(id), `SELECT `+strings.Join(tableColumns(), ", ")+deriveOf("servers")+` FROM servers WHERE id = ?`, id)
	return srv, err
}

// UserData returns the user data of servers, by server id.
func (s *Store) UserData(ctx context.Context, ids ...string) (map[string]*string, error) {
	out := map[string]*string{}
	if len(ids) == 0 {
		return out, nil
	}
	query, args, err := sqlx.In(`SELECT id, user_data FROM servers WHERE id IN (?)`, ids)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		ID   string  `db:"id"`
		Data *string `db:"user_data"`
	}
	if err := s.db.SelectContext(ctx, &rows, query, args...); err != nil {
		return nil, db.Error(err)
	}
	for _, r := range rows {
		out[r.ID] = r.Data
	}
	return out, nil
}

// lockServer returns one server with the shown columns, so without TaskState, and locks the row until the end of the transaction. Errors: NotFound.
func (s *Store) lockServer(ctx context.Context, tx *sqlx.Tx, id string) (*Server, error) {
	srv := new(Server)
	err := s.get(ctx, tx, srv, NoServer(id), `SELECT `+strings.Join(shownColumns(), ", ")+deriveOf("servers")+` FROM servers WHERE id = ? FOR UPDATE`, id)
	return srv, err
}

// ChangeServer changes the attributes of a server that clients set: Name, Description, Hostname, the access addresses, AutoDisk,
// PinnedZone, Metadata and Tags. It calls the function change with the server, which has no TaskState, and writes these attributes. If
// the function returns an error, ChangeServer writes nothing and returns that error. Other errors: NotFound; Invalid if the metadata
// have more than 65,535 bytes as JSON.
func (s *Store) ChangeServer(ctx context.Context, id string, change func(*Server) error) (*Server, error) {
	var srv *Server
	err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) (err error) {
		if srv, err = s.lockServer(ctx, tx, id); err != nil {
			return err
		}
		if err := change(srv); err != nil {
			return err
		}
		if err := checkMetadata(srv.Metadata); err != nil {
			return err
		}
		srv.UpdatedAt = now
		_, err = tx.NamedExecContext(ctx, `UPDATE servers SET name = :name, description = :description, hostname = :hostname, access_ip_v4 = :access_ip_v4,
			access_ip_v6 = :access_ip_v6, auto_disk_config = :auto_disk_config, pinned_zone = :pinned_zone, metadata = :metadata, tags = :tags,
			updated_at = :updated_at WHERE id = :id`, srv)
		return db.Error(err)
	})
	return srv, err
}

// fail sets a server to ERROR with a fault. The text message is for the server's project, and details is for administrators.
// fail returns the number of changed rows: 0 if the server does not exist.
func (s *Store) fail(ctx context.Context, tx *sqlx.Tx, id, message, details string) (int64, error) {
	return db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, fault_code = 500, fault_for_users = ?, fault_message = ?, fault_at = UTC_TIMESTAMP(6),
		updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, Error, db.Cut(message, maxMessage), db.Cut(details, maxFault), id)
}
