package compute

import (
	"context"
	"io"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// Driver is what a vendor implements: the compute service's only interface to the software that runs the servers of its host.
// computepb/compute.proto is the same contract for drivers in other languages.
//
// A server is named by its id, a UUID. Its life is
//
//	(nothing) --Spawn--> Running <--PowerOn/PowerOff--> Shutdown --Destroy--> (nothing)
//
// and Destroy works in every state. Servers outlive the driver's process: a driver that is started again has the same
// servers, in their real states.
//
// Every call except Reboot is idempotent by the server's id. If a compute service was killed, or lost the driver in the middle of
// a call, it repeats the call. It is not an error if the server is already in the state that the call leads to.
//
// All methods must be safe for concurrent use on different servers. On one server a compute service makes only one
// call at a time that changes it; List, Get, Resources and other calls that only read may run at the same time. A call ends soon after
// its context ends. Then the same call, or Destroy, must still succeed later.
//
// Errors: NotFound if the server does not exist; Invalid if the id or another argument is not valid in any state;
// Precondition if the server's state does not allow the call.
//
// The methods after Resources are optional. The last sentence of a method's comment names the capability that a driver with this
// method has; Console has one for each type of console. A driver lists its capabilities in its Info, and embeds [Unsupported] for
// the methods that it lacks.
type Driver interface {
	driver.Driver

	// Spawn builds the server and starts it. If a server of this id exists already, Spawn starts that one. Errors:
	// Exhausted if the host has no room, although the scheduler has chosen it; Invalid if no host could build the
	// server. After an error the host may have parts of the server; the same Spawn, or Destroy, must still succeed. With
	// CapGuestData the guest also gets the last values of the Spec; Invalid: its UserData is not base64.
	Spawn(ctx context.Context, spec Spec) error
	// Destroy stops the server and removes all of it, including its disks. It is not an error if the server does not
	// exist.
	Destroy(ctx context.Context, id string) error
	// List returns the servers on the host, in any order. It includes servers that are half built or half destroyed.
	List(ctx context.Context) ([]Instance, error)
	// Get returns one server. NotFound: it does not exist.
	Get(ctx context.Context, id string) (Instance, error)
	// PowerOn starts a server that is Shutdown or Crashed. It has no effect on a server that is Running.
	PowerOn(ctx context.Context, id string) error
	// PowerOff asks the guest to shut down, waits at most grace for it, and then cuts the power. It works in every state,
	// and ends in Shutdown. With a grace of 0 or less the power is cut at once.
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
	// ConfirmResize removes what RevertResize would need. It is not an error if the server has no resize to confirm.
	// CapResize.
	ConfirmResize(ctx context.Context, id string) error
	// RevertResize gives a Shutdown server the resources that it had before Resize. If the disk had grown, data that was
	// written since is lost. It is not an error if the server has no resize to revert. CapResize.
	RevertResize(ctx context.Context, id string) error
	// Rescue starts the server from another image, or from its own image if the given one is empty, with the server's
	// disk as the second disk. It works in every state, and ends in Running with Instance.Rescued set. CapRescue.
	Rescue(ctx context.Context, id, imageRef string) error
	// Unrescue starts a rescued server from its own disk again, and ends in Running. It is not an error if the server is
	// not rescued. CapRescue.
	Unrescue(ctx context.Context, id string) error
	// Snapshot copies the present content of the server's disk into an image of the given name, which Spec.ImageRef may
	// name afterwards. The server continues. If the image exists already, an earlier call has taken the snapshot, and
	// the image is not changed. Invalid: the name is not valid, such as ../x. CapSnapshot.
	Snapshot(ctx context.Context, id, imageRef string) error
	// RemoveImage removes an image that Snapshot has made on this host. Servers that were built from it keep their disks. It is not an error if the image does not exist.
	// Invalid: the name is not valid, or is that of a file at a path. CapRemoveImage, which only a driver with CapSnapshot has.
	RemoveImage(ctx context.Context, imageRef string) error
	// SetPassword sets the password of the administrator of the guest of a Running server. Errors: Precondition also if the guest does not answer.
	// CapSetPassword.
	SetPassword(ctx context.Context, id, password string) error
	// ConsoleLog writes to w what the guest has written on its console since the server was started. lines is the number of lines
	// from the end; 0: all lines. CapConsoleLog.
	ConsoleLog(ctx context.Context, id string, lines int, w io.Writer) error
	// Console returns where the console of a Running server can be reached, until the server stops. Invalid: the driver
	// does not support the type. CapVNCConsole (VNC), CapSerialConsole (Serial).
	Console(ctx context.Context, id string, t ConsoleType) (Console, error)
	// LiveMigrate moves a Running server to the host with this name while it runs. When it returns, the server is on the other host
	// and no longer on this one. It is not an error if the server is there already. CapLiveMigrate.
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
	// Metrics returns what a Running server has used since it was started. CapMetrics.
	Metrics(ctx context.Context, id string) (Metrics, error)
	// Diagnostics returns facts that help an operator to find a fault, under names that the driver chooses.
	// CapDiagnostics.
	Diagnostics(ctx context.Context, id string) (map[string]string, error)
	// Events calls f for each change of a server, whatever caused it, one call after the other. It blocks until ctx ends
	// or f returns an error, and returns the error of ctx or of f. If the driver is a program that ends, Events returns Unavailable or
	// Unknown: changes may be missing, so call Events and List again. The first event is EventBegan, which is sent at once.
	// Every change after it is reported. To learn the state before, call List after EventBegan. CapEvents.
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
)

// Spec describes a server that a driver builds.
type Spec struct {
	// ID is the server's UUID, by which every call names the server.
	ID        string `json:"id"`
	Name      string `json:"name"`
	ProjectID string `json:"project_id"`
	// ImageRef is the image that the server boots from, in a form that the driver understands. For a driver with CapImageFiles it may be the absolute path
	// of a file on the host, NAME.qcow2 or NAME.raw, whose format is that of its name. The file may be removed after Spawn. The same
	// holds for the image of Rescue. Snapshot writes a file NAME.qcow2 then, which has its name only when it is complete.
	ImageRef  string            `json:"image_ref"`
	Resources Resources         `json:"resources"`
	Metadata  map[string]string `json:"metadata,omitempty"`

	// Interfaces are the network interfaces of the server. The compute service gives them to the server after [Driver.Spawn], with
	// [Driver.AttachInterface].
	Interfaces []Interface `json:"interfaces,omitempty"`

	// A driver with CapGuestData gives the guest a disk with the following values and the Metadata if UserData, PublicKey or Files is not empty or
	// ConfigDrive is set. Other drivers are not asked for such servers, and ignore the values.

	// Hostname is the name of the guest. It is empty for a server of an earlier release.
	Hostname    string `json:"hostname,omitempty"`
	ConfigDrive bool   `json:"config_drive,omitempty"`
	// UserData is base64, with at most 65,535 characters.
	UserData string `json:"user_data,omitempty"`
	// PublicKey is the public key with which the user logs in, in the form of OpenSSH, or a certificate in the form PEM.
	PublicKey string `json:"public_key,omitempty"`
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
	// Resources are what the server was built with, or last resized to.
	Resources Resources `json:"resources"`
	// Rescued reports whether the server runs from a rescue image, see Driver.Rescue.
	Rescued bool `json:"rescued,omitempty"`
	// Volumes and Interfaces are the ids of the attached volumes and interfaces, in any order.
	Volumes    []string `json:"volumes,omitempty"`
	Interfaces []string `json:"interfaces,omitempty"`
}

// ConsoleType is a kind of console.
type ConsoleType string

// The types of consoles.
const (
	VNC    ConsoleType = "vnc"
	Serial ConsoleType = "serial"
)

// Console is the address of a console: either Host and Port, or Path, which is a Unix socket or a terminal on the
// host.
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
}

// Metrics are what a server has used since it was started. The counters do not decrease while the server runs.
type Metrics struct {
	// CPUTime is the sum of the times that the server's processors worked.
	CPUTime time.Duration `json:"cpu_time_ns"`
	// MemoryMiB is how much of the host's memory the server uses now.
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

// Event is a change of a server. Time is when it happened.
type Event struct {
	ServerID string    `json:"server_id"`
	Type     EventType `json:"type"`
	Time     time.Time `json:"time"`
}

// Unsupported has the methods of all capabilities; each returns Unimplemented. A driver embeds it, and overrides the
// methods of the capabilities that it has.
type Unsupported struct{}

func unsupportedError(c driver.Capability) error {
	return fault.New(fault.Unimplemented, "the driver does not have the capability %s", c)
}

// Pause implements Driver.
func (Unsupported) Pause(context.Context, string) error { return unsupportedError(CapPause) }

// Unpause implements Driver.
func (Unsupported) Unpause(context.Context, string) error { return unsupportedError(CapPause) }

// Suspend implements Driver.
func (Unsupported) Suspend(context.Context, string) error { return unsupportedError(CapSuspend) }

// Resume implements Driver.
func (Unsupported) Resume(context.Context, string) error { return unsupportedError(CapSuspend) }

// Resize implements Driver.
func (Unsupported) Resize(context.Context, string, Resources) error {
	return unsupportedError(CapResize)
}

// ConfirmResize implements Driver.
func (Unsupported) ConfirmResize(context.Context, string) error { return unsupportedError(CapResize) }

// RevertResize implements Driver.
func (Unsupported) RevertResize(context.Context, string) error { return unsupportedError(CapResize) }

// Rescue implements Driver.
func (Unsupported) Rescue(context.Context, string, string) error { return unsupportedError(CapRescue) }

// Unrescue implements Driver.
func (Unsupported) Unrescue(context.Context, string) error { return unsupportedError(CapRescue) }

// Snapshot implements Driver.
func (Unsupported) Snapshot(context.Context, string, string) error {
	return unsupportedError(CapSnapshot)
}

// RemoveImage implements Driver.
func (Unsupported) RemoveImage(context.Context, string) error {
	return unsupportedError(CapRemoveImage)
}

// SetPassword implements Driver.
func (Unsupported) SetPassword(context.Context, string, string) error {
	return unsupportedError(CapSetPassword)
}

// ConsoleLog implements Driver.
func (Unsupported) ConsoleLog(context.Context, string, int, io.Writer) error {
	return unsupportedError(CapConsoleLog)
}

// Console implements Driver.
func (Unsupported) Console(_ context.Context, _ string, t ConsoleType) (Console, error) {
	return Console{}, unsupportedError(driver.Capability(t + "-console"))
}

// LiveMigrate implements Driver.
func (Unsupported) LiveMigrate(context.Context, string, string) error {
	return unsupportedError(CapLiveMigrate)
}

// AttachVolume implements Driver.
func (Unsupported) AttachVolume(context.Context, string, Volume) error {
	return unsupportedError(CapAttachVolume)
}

// DetachVolume implements Driver.
func (Unsupported) DetachVolume(context.Context, string, string) error {
	return unsupportedError(CapAttachVolume)
}

// AttachInterface implements Driver.
func (Unsupported) AttachInterface(context.Context, string, Interface) error {
	return unsupportedError(CapAttachInterface)
}

// DetachInterface implements Driver.
func (Unsupported) DetachInterface(context.Context, string, string) error {
	return unsupportedError(CapAttachInterface)
}

// Metrics implements Driver.
func (Unsupported) Metrics(context.Context, string) (Metrics, error) {
	return Metrics{}, unsupportedError(CapMetrics)
}

// Diagnostics implements Driver.
func (Unsupported) Diagnostics(context.Context, string) (map[string]string, error) {
	return nil, unsupportedError(CapDiagnostics)
}

// Events implements Driver.
func (Unsupported) Events(context.Context, func(Event) error) error {
	return unsupportedError(CapEvents)
}
