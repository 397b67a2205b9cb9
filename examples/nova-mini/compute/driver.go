package compute

import (
	"context"
	"io"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// Driver is what a vendor implements: the worker's one interface to what really
// runs servers on its host. It says the same as computepb/compute.proto, which is
// the contract of a driver in another language.
//
// A server is named by its id, a UUID. Its life is
//
//	(nothing) --Spawn--> Running <--PowerOn/PowerOff--> Shutdown --Destroy--> (nothing)
//
// and Destroy works in every state. Servers outlive the driver's process: one that
// is started again has the same servers, in the states that they really have.
//
// Every call is idempotent by the server's id. A worker that was killed, or lost
// the driver in the middle of a call, makes the call again; that a server is
// already as the call would make it is no error.
//
// All methods are safe for concurrent use on different servers. A worker makes one
// call at a time that changes a server; List, Get, Resources and what else only
// reads run beside them. A call gives up when its context ends, and leaves the
// server such that the same call, or Destroy, succeeds later.
//
// A server that there is not has the error NotFound. An id, or another argument,
// that can never be right is Invalid, a state that does not allow the call
// Precondition.
//
// Methods past Resources are optional. A driver lists the capabilities that it has
// in its Info, and embeds [Unsupported] for the rest.
type Driver interface {
	driver.Driver

	// Spawn builds the server and starts it. If there is one of this id already it
	// is made to run. Exhausted: the host has no room after all; Invalid: it can be
	// built nowhere. After an error nothing is left that the same Spawn, or
	// Destroy, could not deal with.
	Spawn(ctx context.Context, spec Spec) error
	// Destroy stops the server and removes all of it, its disks included. That
	// there is none is no error.
	Destroy(ctx context.Context, id string) error
	// List returns the servers that are on the host, also those that are half built
	// or half destroyed, in any order.
	List(ctx context.Context) ([]Instance, error)
	// Get returns one server.
	Get(ctx context.Context, id string) (Instance, error)
	// PowerOn starts a server that is Shutdown or Crashed. One that is Running is
	// left alone.
	PowerOn(ctx context.Context, id string) error
	// PowerOff asks the guest to shut down, waits for grace, and then cuts its
	// power, whatever its state was. It ends in Shutdown. A grace of 0 cuts the
	// power at once.
	PowerOff(ctx context.Context, id string, grace time.Duration) error
	// Reboot restarts the guest. A soft reboot asks the guest, and is allowed in
	// Running only; if the guest does not answer within the driver's time it is a
	// hard one. A hard reboot cuts the power, in every state. Both end in Running.
	// One that is asked for again may restart the guest again.
	Reboot(ctx context.Context, id string, hard bool) error
	// Resources returns what the host has for servers in all, used or not.
	Resources(ctx context.Context) (Resources, error)

	// Pause stops a Running server's processors, and keeps its memory.
	// CapPause.
	Pause(ctx context.Context, id string) error
	// Unpause lets a Paused server go on. CapPause.
	Unpause(ctx context.Context, id string) error
	// Suspend saves a Running server's memory to disk and stops it. CapSuspend.
	Suspend(ctx context.Context, id string) error
	// Resume makes a Suspended server go on where it was. CapSuspend.
	Resume(ctx context.Context, id string) error
	// Resize changes what a Shutdown server has, such that RevertResize can undo
	// it until ConfirmResize. Invalid: its disk would shrink; Exhausted: no room;
	// Precondition, too: another resize is not confirmed yet. CapResize.
	Resize(ctx context.Context, id string, to Resources) error
	// ConfirmResize gives up what RevertResize would need. That there is nothing to
	// confirm is no error. CapResize.
	ConfirmResize(ctx context.Context, id string) error
	// RevertResize gives a Shutdown server what it had before Resize. If its disk
	// had grown, what was written since is lost. That there is nothing to revert is
	// no error. CapResize.
	RevertResize(ctx context.Context, id string) error
	// Rescue starts the server from another image, or its own if that is empty,
	// with its own disk as the second, from every state. It ends in Running, with
	// Instance.Rescued. CapRescue.
	Rescue(ctx context.Context, id, imageRef string) error
	// Unrescue starts a rescued server from its own disk again. CapRescue.
	Unrescue(ctx context.Context, id string) error
	// Snapshot copies the server's disk as it is into an image of the given name,
	// which Spec.ImageRef may have afterwards. The server goes on. If there is such
	// an image already it is left alone: the snapshot was taken. CapSnapshot.
	Snapshot(ctx context.Context, id, imageRef string) error
	// ConsoleLog writes to w what the guest wrote on its console since it was
	// started: the last lines of it, or all if lines is 0. CapConsoleLog.
	ConsoleLog(ctx context.Context, id string, lines int, w io.Writer) error
	// Console returns where a Running server's console can be reached.
	// CapVNCConsole, CapSerialConsole.
	Console(ctx context.Context, id string, t ConsoleType) (Console, error)
	// LiveMigrate moves a Running server to another host while it runs. When it
	// returns the server is there, and no longer here; if it is there already that
	// is no error. CapLiveMigrate.
	LiveMigrate(ctx context.Context, id, host string) error
	// AttachVolume gives the server another disk, which it keeps over its stops and
	// starts. CapAttachVolume.
	AttachVolume(ctx context.Context, id string, v Volume) error
	// DetachVolume takes it away. That it has no such volume is no error.
	// CapAttachVolume.
	DetachVolume(ctx context.Context, id, volumeID string) error
	// AttachInterface gives the server another network interface, which it keeps
	// over its stops and starts. CapAttachInterface.
	AttachInterface(ctx context.Context, id string, i Interface) error
	// DetachInterface takes it away. That it has no such interface is no error.
	// CapAttachInterface.
	DetachInterface(ctx context.Context, id, interfaceID string) error
	// Metrics returns what a Running server has used since it was started.
	// CapMetrics.
	Metrics(ctx context.Context, id string) (Metrics, error)
	// Diagnostics returns what helps a person who looks for a fault, by names of
	// the driver's own. CapDiagnostics.
	Diagnostics(ctx context.Context, id string) (map[string]string, error)
	// Events calls f for each change as it happens, whoever made it, one after
	// another, until ctx ends or f returns an error, which it then returns. The
	// first is EventBegan, at once: what happens from then on is told, and what was
	// before is in List. CapEvents.
	Events(ctx context.Context, f func(Event) error) error
}

// The capabilities of compute drivers.
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
)

// Spec is what a driver needs to know to build a server.
type Spec struct {
	// ID is the server's UUID, by which every call names it.
	ID        string `json:"id"`
	Name      string `json:"name"`
	ProjectID string `json:"project_id"`
	// ImageRef is the image that it boots from, as the driver finds it.
	ImageRef  string            `json:"image_ref"`
	Resources Resources         `json:"resources"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

// PowerState is a server's state as its driver sees it. The numbers are Nova's.
type PowerState int

// The power states.
const (
	NoState   PowerState = 0 // not known, or half built
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
	// Resources are what it was built or resized with.
	Resources Resources `json:"resources"`
	Rescued   bool      `json:"rescued,omitempty"`
	// Volumes and Interfaces are the ids of what is attached to it, in any order.
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

// Console is where a console can be reached: a network address, or the path of a
// Unix socket or terminal on the host.
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
	// MAC is its hardware address, such as "52:54:00:12:34:56".
	MAC string `json:"mac"`
	// Network is the network, as the driver finds it.
	Network string `json:"network"`
}

// Metrics are what a server has used since it was started.
type Metrics struct {
	// CPUTime is the time that its processors worked, of all together.
	CPUTime time.Duration `json:"cpu_time_ns"`
	// MemoryMiB is what it has of the host's memory now.
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
	EventBegan     EventType = "began"   // of no server
	EventStarted   EventType = "started" // or resumed, or unpaused: it is Running
	EventStopped   EventType = "stopped" // Shutdown
	EventPaused    EventType = "paused"
	EventSuspended EventType = "suspended"
	EventCrashed   EventType = "crashed"
	EventDestroyed EventType = "destroyed" // it is gone
)

// Event is a change of a server.
type Event struct {
	ServerID string    `json:"server_id"`
	Type     EventType `json:"type"`
	Time     time.Time `json:"time"`
}

// Unsupported has the methods of all capabilities, as a driver without them
// answers. A driver embeds it, and overrides those of the capabilities that it has.
type Unsupported struct{}

func lacks(c driver.Capability) error {
	return fault.New(fault.Unimplemented, "the driver does not have the capability %s", c)
}

// Pause implements Driver.
func (Unsupported) Pause(context.Context, string) error { return lacks(CapPause) }

// Unpause implements Driver.
func (Unsupported) Unpause(context.Context, string) error { return lacks(CapPause) }

// Suspend implements Driver.
func (Unsupported) Suspend(context.Context, string) error { return lacks(CapSuspend) }

// Resume implements Driver.
func (Unsupported) Resume(context.Context, string) error { return lacks(CapSuspend) }

// Resize implements Driver.
func (Unsupported) Resize(context.Context, string, Resources) error { return lacks(CapResize) }

// ConfirmResize implements Driver.
func (Unsupported) ConfirmResize(context.Context, string) error { return lacks(CapResize) }

// RevertResize implements Driver.
func (Unsupported) RevertResize(context.Context, string) error { return lacks(CapResize) }

// Rescue implements Driver.
func (Unsupported) Rescue(context.Context, string, string) error { return lacks(CapRescue) }

// Unrescue implements Driver.
func (Unsupported) Unrescue(context.Context, string) error { return lacks(CapRescue) }

// Snapshot implements Driver.
func (Unsupported) Snapshot(context.Context, string, string) error { return lacks(CapSnapshot) }

// ConsoleLog implements Driver.
func (Unsupported) ConsoleLog(context.Context, string, int, io.Writer) error {
	return lacks(CapConsoleLog)
}

// Console implements Driver.
func (Unsupported) Console(_ context.Context, _ string, t ConsoleType) (Console, error) {
	return Console{}, lacks(driver.Capability(t + "-console"))
}

// LiveMigrate implements Driver.
func (Unsupported) LiveMigrate(context.Context, string, string) error { return lacks(CapLiveMigrate) }

// AttachVolume implements Driver.
func (Unsupported) AttachVolume(context.Context, string, Volume) error {
	return lacks(CapAttachVolume)
}

// DetachVolume implements Driver.
func (Unsupported) DetachVolume(context.Context, string, string) error {
	return lacks(CapAttachVolume)
}

// AttachInterface implements Driver.
func (Unsupported) AttachInterface(context.Context, string, Interface) error {
	return lacks(CapAttachInterface)
}

// DetachInterface implements Driver.
func (Unsupported) DetachInterface(context.Context, string, string) error {
	return lacks(CapAttachInterface)
}

// Metrics implements Driver.
func (Unsupported) Metrics(context.Context, string) (Metrics, error) {
	return Metrics{}, lacks(CapMetrics)
}

// Diagnostics implements Driver.
func (Unsupported) Diagnostics(context.Context, string) (map[string]string, error) {
	return nil, lacks(CapDiagnostics)
}

// Events implements Driver.
func (Unsupported) Events(context.Context, func(Event) error) error { return lacks(CapEvents) }
