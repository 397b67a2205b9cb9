package compute

import (
	"context"
	"io"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// Driver is the interface that a vendor implements. The compute service uses the software that runs the servers of its host only through
// a Driver. computepb/compute.proto is the same contract for drivers in other languages.
//
// A server is identified by its id, a UUID. Its life is
//
//	(nothing) --Spawn--> Running <--PowerOn/PowerOff--> Shutdown --Destroy--> (nothing)
//
// and Destroy works in every state. Servers outlive the driver's process: a driver that is started again has the same
// servers, in their real states.
//
// Every call except Reboot and InjectNMI is idempotent by the server's id. If a compute service was killed, or lost the driver in the middle of
// a call, it repeats the call. It is not an error if the server is already in the state that the call leads to.
//
// All methods must be safe for concurrent use on different servers. For one server, the compute service makes only one changing
// call at a time; List, Get, Resources and other calls that only read may run at the same time. A call must return soon after
// its context has ended. The same call, or Destroy, must still succeed later.
//
// Errors: NotFound if the server does not exist; Invalid if the id or another argument is not valid in any state;
// Precondition if the server's state does not allow the call.
//
// The methods after Resources are optional. The comment of an optional method ends with the name of its capability; Console has one
// capability for each type of console. A driver lists its capabilities in its Info, and embeds [Unsupported] for the methods that it
// lacks.
type Driver interface {
	driver.Driver

	// Spawn builds the server and starts it. If a server with this id exists already, Spawn only starts it. Errors:
	// Exhausted if the host has no room, although the scheduler has chosen it; Invalid if no host could build the
	// server. After an error the host may have parts of the server; the same Spawn, or Destroy, must still succeed. With
	// CapGuestData, Spawn also gives the guest the data that the Spec has for the guest, and returns Invalid if UserData
	// is not base64.
	Spawn(ctx context.Context, spec Spec) error
	// Destroy stops the server and removes all of it, including its disks. It is not an error if the server does not
	// exist.
	Destroy(ctx context.Context, id string) error
	// List returns the servers on the host, in any order. It includes servers that are half built or half destroyed.
	List(ctx context.Context) ([]Instance, error)
	// Get returns one server. NotFound: the server does not exist.
	Get(ctx context.Context, id string) (Instance, error)
	// PowerOn starts a server that is Shutdown or Crashed. It has no effect on a server that is Running.
	PowerOn(ctx context.Context, id string) error
	// PowerOff asks the guest to shut down, and cuts the power if the guest has not done so after the time grace. It works
	// in every state, and ends in Shutdown. If grace is 0 or less, the power is cut at once.
	PowerOff(ctx context.Context, id string, grace time.Duration) error
	// Reboot restarts the guest. A soft reboot asks the guest, and works only in Running; if the guest does not answer
	// within a time that the driver chooses, the reboot becomes a hard one. A hard reboot cuts the power, and works in
	// every state. Both end in Running. A repeated call may restart the guest again.
	Reboot(ctx context.Context, id string, hard bool) error
	// Resources returns the total amounts that the host has for servers, used or free.
	Resources(ctx context.Context) (Resources, error)

	// Pause stops the processors of a Running server and keeps its memory. CapPause.
	Pause(ctx context.Context, id string) error
	// Unpause continues a Paused server. CapPause.
	Unpause(ctx context.Context, id string) error
	// Suspend saves the memory of a Running server to disk and stops the server. CapSuspend.
	Suspend(ctx context.Context, id string) error
	// Resume continues a Suspended server where it was suspended. CapSuspend.
	Resume(ctx context.Context, id string) error
	// Resize changes the resources of a Shutdown server. Until ConfirmResize, RevertResize can undo it. Errors: Invalid
	// if the disk would shrink; Exhausted if the host has no room; Precondition also if an earlier resize to
	// other resources is neither confirmed nor reverted. CapResize.
	Resize(ctx context.Context, id string, to Resources) error
	// ConfirmResize removes the data that RevertResize would need. It is not an error if the server has no resize to
	// confirm. CapResize.
	ConfirmResize(ctx context.Context, id string) error
	// RevertResize gives a Shutdown server the resources that it had before Resize. If Resize made the disk larger, the data
	// written since then is lost. It is not an error if the server has no resize to revert. CapResize.
	RevertResize(ctx context.Context, id string) error
	// Rescue starts the server from the image imageRef (empty: the server's own image), with the server's disk as the
	// second disk. It works in every state, and ends in Running with Instance.Rescued set. If the server has data for the guest, its guest finds
	// adminPass there as the password of its administrator until Unrescue. Empty: the data do not change. CapRescue.
	Rescue(ctx context.Context, id, imageRef, adminPass string) error
	// Unrescue starts a rescued server from its own disk again, and ends in Running. It is not an error if the server is
	// not rescued. CapRescue.
	Unrescue(ctx context.Context, id string) error
	// Snapshot copies the present content of the server's disk into an image with the name imageRef. A Spec.ImageRef may
	// name this image afterwards. The server keeps its state. If the image exists already, an earlier call has made it, and
	// Snapshot does not change it. Invalid: the name is not valid, such as ../x. CapSnapshot.
	Snapshot(ctx context.Context, id, imageRef string) error
	// RemoveImage removes an image that Snapshot has made on this host. Servers that were built from the image keep their disks. It is not an error if the image does not exist.
	// Invalid: the name is not valid, or is a path. A driver with this capability also has CapSnapshot. CapRemoveImage.
	RemoveImage(ctx context.Context, imageRef string) error
	// SetPassword sets the administrator's password in the guest of a Running server. Errors: Precondition also if the guest does not answer.
	// CapSetPassword.
	SetPassword(ctx context.Context, id, password string) error
	// InjectNMI sends a non-maskable interrupt to the guest of a Running server, whose kernel may then write a crash dump. A repeated call may send another
	// one. CapInjectNMI.
	InjectNMI(ctx context.Context, id string) error
	// Platforms returns the kinds of guests that the host can run, at least one. A host whose driver lacks the method gets no servers whose image asks for a
	// kind of guest. CapPlatforms.
	Platforms(ctx context.Context) ([]Platform, error)
	// ConsoleLog writes to w what the guest has written on its console since the server was started. The parameter lines is the number of lines
	// from the end; 0: all lines. CapConsoleLog.
	ConsoleLog(ctx context.Context, id string, lines int, w io.Writer) error
	// Console returns the address of a console of a Running server. The address is valid until the server stops. Invalid:
	// the driver does not support the type. CapVNCConsole (VNC), CapSerialConsole (Serial).
	Console(ctx context.Context, id string, t ConsoleType) (Console, error)
	// LiveMigrate moves a Running server to another host without stopping the server. After LiveMigrate has succeeded, the server is on
	// the other host and no longer on this one. It is not an error if the server is on the other host already. CapLiveMigrate.
	LiveMigrate(ctx context.Context, id, host string) error
	// AttachVolume gives a Running or Shutdown server another disk. The server keeps the disk when it is stopped and
	// started. It is not an error if the server has the volume already. CapAttachVolume.
	AttachVolume(ctx context.Context, id string, v Volume) error
	// DetachVolume removes the disk from the server. It is not an error if the server does not have the volume.
	// CapAttachVolume.
	DetachVolume(ctx context.Context, id, volumeID string) error
	// AttachInterface gives a Running or Shutdown server another network interface. The server keeps the interface when it
	// is stopped and started. It is not an error if the server has the interface already. CapAttachInterface.
	AttachInterface(ctx context.Context, id string, i Interface) error
	// DetachInterface removes the network interface from the server. It is not an error if the server does not have the
	// interface. CapAttachInterface.
	DetachInterface(ctx context.Context, id, interfaceID string) error
	// Metrics returns the resource usage of a Running server since its start. CapMetrics.
	Metrics(ctx context.Context, id string) (Metrics, error)
	// Diagnostics returns facts that help an operator to find a fault, under names that the driver chooses.
	// CapDiagnostics.
	Diagnostics(ctx context.Context, id string) (map[string]string, error)
	// Events calls f for each change of a server, whatever caused the change. Only one call of f runs at a time. Events blocks until ctx ends
	// or f returns an error, and returns the error of ctx or of f. If the driver is a program and the program ends, Events returns
	// Unavailable or Unknown: events may have been lost, so call Events and List again. The first event is EventBegan, which is sent
	// at once. Events reports every change after EventBegan; for the states before, call List after EventBegan. An event may be late, so its receiver reads the state of the server with
	// Get. The compute service stops a server whose guest has stopped by itself. CapEvents.
	Events(ctx context.Context, f func(Event) error) error
}

// The capabilities of compute drivers. The comment of each optional method of [Driver] names its capability.
const (
	CapPause           driver.Capability = "pause"
	CapSuspend         driver.Capability = "suspend"
	CapResize          driver.Capability = "resize"
	CapRescue          driver.Capability = "rescue"
	CapSnapshot        driver.Capability = "snapshot"
	CapConsoleLog      driver.Capability = "console-log"
	CapVNCConsole      driver.Capability = "vnc-console"
	CapSerialConsole   driver.Capability = "serial-console"
	CapLiveMigrate     driver.Capability = "live-migrate"
	CapAttachVolume    driver.Capability = "attach-volume"
	CapAttachInterface driver.Capability = "attach-interface"
	CapMetrics         driver.Capability = "metrics"
	CapDiagnostics     driver.Capability = "diagnostics"
	CapEvents          driver.Capability = "events"
	CapGuestData       driver.Capability = "guest-data"
	CapImageFiles      driver.Capability = "image-files"
	CapRemoveImage     driver.Capability = "remove-image"
	CapSetPassword     driver.Capability = "set-password"
	CapInjectNMI       driver.Capability = "inject-nmi"
	CapPlatforms       driver.Capability = "platforms"
	CapExtraDisks      driver.Capability = "extra-disks"
)

// Spec describes a server that a driver builds.
type Spec struct {
	// ID is the server's UUID. Every call identifies the server by it.
	ID        string `json:"id"`
	Name      string `json:"name"`
	ProjectID string `json:"project_id"`
	// ImageRef is the image that the server boots from, in a form that the driver understands. For a driver with CapImageFiles it may be the absolute path
	// of a file on the host, NAME.qcow2 or NAME.raw; the suffix gives the format. The file may be removed after Spawn. The same holds
	// for the image of Rescue. Such a path may also be the image that Snapshot makes: the driver writes a file NAME.qcow2, and gives
	// the file this name only when it is complete.
	ImageRef  string            `json:"image_ref"`
	Resources Resources         `json:"resources"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	// InstanceName is the name that an operator sees for the server on the host, such as instance-ID. It is unique. It is empty for a server that an earlier release has created.
	InstanceName string `json:"instance_name,omitempty"`

	// EphemeralGiB and SwapMiB are the sizes of two more disks. 0: the server does not have the disk. A driver with CapExtraDisks gives the guest an empty disk with an ext4 file system, and then a
	// swap disk. They stay when the server is stopped, started or resized, but are not in a snapshot. Resources.DiskGiB is the size of all disks of the server, and a resize changes only
	// the size of the root disk. Other drivers do not get such servers.
	EphemeralGiB int `json:"ephemeral_gib,omitempty"`
	SwapMiB      int `json:"swap_mib,omitempty"`

	// Interfaces are the network interfaces of the server. The compute service attaches them after [Driver.Spawn], with
	// [Driver.AttachInterface].
	Interfaces []Interface `json:"interfaces,omitempty"`

	// The following fields are the data for the guest. If NeedsGuestData returns true, a driver with CapGuestData gives the guest a disk. The disk has these data, the Metadata, and the fields
	// of the Interfaces that are for the guest. Other drivers do not get such servers, and ignore these fields.

	// Hostname is the name of the guest. It is empty for a server that an earlier release has created.
	Hostname    string `json:"hostname,omitempty"`
	ConfigDrive bool   `json:"config_drive,omitempty"`
	// UserData is base64, with at most 65,535 characters.
	UserData string `json:"user_data,omitempty"`
	// PublicKey is the public key with which the user logs in, in OpenSSH's format, or a certificate in PEM.
	PublicKey string `json:"public_key,omitempty"`
	// KeyName is the name of the key pair. Empty: the server has no key pair, or an earlier release has created the server.
	KeyName string `json:"key_name,omitempty"`
	// LaunchIndex is the number, from 0, of the server among the servers that one request creates.
	LaunchIndex int    `json:"launch_index,omitempty"`
	Zone        string `json:"availability_zone,omitempty"`
	// AdminPass is the password of the guest's administrator. Only the first build of a server has it.
	AdminPass string `json:"admin_pass,omitempty"`
	// Files are files that the guest is to write when it boots for the first time.
	Files []File `json:"files,omitempty"`
}

// File is a file for a guest. Path has at most 255 bytes.
type File struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
}

// HasExtraDisks reports whether the server needs a driver with CapExtraDisks.
func (s *Spec) HasExtraDisks() bool { return s.EphemeralGiB != 0 || s.SwapMiB != 0 }

// Need is a capability that a driver must have to build a server, and the part of the server that needs it.
type Need struct {
	Capability driver.Capability
	Part       string
}

// Needs returns what the server needs of its driver. A driver without one of these capabilities would ignore a part of the server.
func (s *Spec) Needs() (out []Need) {
	for _, n := range []struct {
		needed bool
		Need
	}{
		{s.NeedsGuestData(), Need{CapGuestData, "user data, a key pair or a config drive"}},
		{s.HasExtraDisks(), Need{CapExtraDisks, "an ephemeral or a swap disk"}},
		{len(s.Interfaces) > 0, Need{CapAttachInterface, "network interfaces"}},
	} {
		if n.needed {
			out = append(out, n.Need)
		}
	}
	return out
}

// CheckDisks returns Invalid if the sizes of the disks are not valid: an amount is negative, or the extra disks are larger than all disks.
func (s *Spec) CheckDisks() error {
	if s.EphemeralGiB < 0 || s.SwapMiB < 0 || s.RootGiB() < 0 {
		return fault.New(fault.Invalid, "the disks of server %s are not valid: %d GiB of ephemeral disk, %d MiB of swap disk, %d GiB of all disks", s.ID, s.EphemeralGiB, s.SwapMiB, s.Resources.DiskGiB)
	}
	return nil
}

// RootGiB returns the size of the root disk. 0: the size of the image.
func (s *Spec) RootGiB() int { return s.Resources.DiskGiB - ExtraGiB(s.EphemeralGiB, s.SwapMiB) }

// ExtraGiB returns the part of Resources.DiskGiB that an ephemeral disk and a swap disk have. The size of the swap disk is rounded up to a GiB, as in Nova.
func ExtraGiB(ephemeralGiB, swapMiB int) int { return ephemeralGiB + (swapMiB+1023)/1024 }

// NeedsGuestData reports whether the server needs a driver with CapGuestData.
func (s *Spec) NeedsGuestData() bool {
	return s.ConfigDrive || s.UserData != "" || s.PublicKey != "" || len(s.Files) > 0
}

// PowerState is a server's state as the driver reports it. The numbers are Nova's.
type PowerState int

// The power states.
const (
	NoState   PowerState = 0 // unknown, or half built
	Running   PowerState = 1
	Paused    PowerState = 3
	Shutdown  PowerState = 4
	Crashed   PowerState = 6
	Suspended PowerState = 7
)

// String returns the state's name in Nova, such as "RUNNING".
func (s PowerState) String() string {
	switch s {
	case Running:
		return "RUNNING"
	case Paused:
		return "PAUSED"
	case Shutdown:
		return "SHUTDOWN"
	case Crashed:
		return "CRASHED"
	case Suspended:
		return "SUSPENDED"
	default:
		return "NOSTATE"
	}
}

// Instance is a server that a driver has.
type Instance struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Power PowerState `json:"power"`
	// Resources are the resources that the server was built with, or was last resized to.
	Resources Resources `json:"resources"`
	// Rescued reports whether the server runs from a rescue image, see Driver.Rescue.
	Rescued bool `json:"rescued,omitempty"`
	// Volumes and Interfaces are the ids of the attached volumes and interfaces, in any order.
	Volumes    []string `json:"volumes,omitempty"`
	Interfaces []string `json:"interfaces,omitempty"`
}

// Platform is a kind of guest. The names are Nova's.
type Platform struct {
	Arch string `json:"arch"` // the architecture of the processor, such as x86_64
	Type string `json:"type"` // the type of the hypervisor, such as kvm
	Mode string `json:"mode"` // the mode in which the guest runs, such as hvm
}

// GuestNeeds is what the image of a server needs of its host.
type GuestNeeds struct {
	// Platform is the kind of guest. An empty field means any.
	Platform Platform `json:"platform,omitzero"`
	// Traits are the traits that the host must have.
	Traits []string `json:"traits,omitempty"`
}

// IsZero reports whether any host will do.
func (n GuestNeeds) IsZero() bool { return n.Platform == (Platform{}) && len(n.Traits) == 0 }

// ConsoleType is a kind of console.
type ConsoleType string

// The types of consoles.
const (
	VNC    ConsoleType = "vnc"
	Serial ConsoleType = "serial"
)

// Console is the address of a console: either Host and Port, or Path. Path is a Unix socket or a terminal on the host.
type Console struct {
	Host string `json:"host,omitempty"`
	Port int    `json:"port,omitempty"`
	Path string `json:"path,omitempty"`
}

// Volume is a disk that can be attached to a server.
type Volume struct {
	ID string `json:"id"`
	// Path is the file or block device on the host.
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Interface is a network interface that can be attached to a server.
type Interface struct {
	ID string `json:"id"`
	// MAC is the interface's hardware address, such as "52:54:00:12:34:56".
	MAC string `json:"mac"`
	// Network is the network, in a form that the driver understands.
	Network string `json:"network"`

	// The following fields are for the guest, see [Spec]. A field is empty if its value is not known.

	// NetworkID is the UUID of the network.
	NetworkID string `json:"network_id,omitempty"`
	// MTU is the maximum size of a packet, in bytes; 0: not known.
	MTU int `json:"mtu,omitempty"`
	// Tag is the name that the user has given the interface. Empty: none.
	Tag       string         `json:"tag,omitempty"`
	Addresses []GuestAddress `json:"addresses,omitempty"`
}

// GuestAddress is an address of an interface, and the subnet in which it is.
type GuestAddress struct {
	// Prefix is the address with the length of the subnet's prefix, such as "10.0.0.5/24".
	Prefix string `json:"prefix"`
	// DHCP reports whether a DHCP server of the subnet tells the guest the address.
	DHCP bool `json:"dhcp,omitempty"`
	// IPv6Mode is how the guest gets an IPv6 address: "slaac", "dhcpv6-stateful" or "dhcpv6-stateless". Empty: the field DHCP applies.
	IPv6Mode string `json:"ipv6_mode,omitempty"`
	// Gateway is the address of the default gateway. Empty: none.
	Gateway string `json:"gateway,omitempty"`
	// DNS are the addresses of name servers.
	DNS    []string `json:"dns,omitempty"`
	Routes []Route  `json:"routes,omitempty"`
}

// Route says that a network, such as "10.1.0.0/16", is behind a gateway.
type Route struct {
	Destination string `json:"destination"`
	Gateway     string `json:"gateway"`
}

// Metrics are the resource usage of a server since its start. The counters do not decrease while the server runs.
type Metrics struct {
	// CPUTime is the time that the server's processors have worked, summed over all processors.
	CPUTime time.Duration `json:"cpu_time_ns"`
	// MemoryMiB is the amount of the host's memory that the server uses now.
	MemoryMiB        int   `json:"memory_mib"`
	DiskReadBytes    int64 `json:"disk_read_bytes"`
	DiskWriteBytes   int64 `json:"disk_write_bytes"`
	NetReceivedBytes int64 `json:"net_received_bytes"`
	NetSentBytes     int64 `json:"net_sent_bytes"`
}

// EventType says what happened to a server.
type EventType string

// The types of events.
const (
	EventBegan     EventType = "began"   // Events has begun to report; ServerID is empty
	EventStarted   EventType = "started" // the server is Running: started, resumed or unpaused
	EventStopped   EventType = "stopped" // the server is Shutdown
	EventPaused    EventType = "paused"
	EventSuspended EventType = "suspended"
	EventCrashed   EventType = "crashed"
	EventDestroyed EventType = "destroyed" // the server no longer exists
)

// Event is a change of a server. Time is the time of the change.
type Event struct {
	ServerID string    `json:"server_id"`
	Type     EventType `json:"type"`
	Time     time.Time `json:"time"`
}
