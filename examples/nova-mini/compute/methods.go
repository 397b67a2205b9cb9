package compute

import (
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

var (
	v1  = rpc.Version{Major: 1}
	v11 = rpc.Version{Major: 1, Minor: 1}
	v12 = rpc.Version{Major: 1, Minor: 2}
	v13 = rpc.Version{Major: 1, Minor: 3}
)

// Worker is what a compute service answers on its host.
var Worker = &rpc.Interface{Name: "compute", Version: v13}

var (
	// Build makes the worker build a server and report how it ended. It is
	// idempotent by server and generation.
	Build = rpc.Method[BuildRequest, rpc.None]{Interface: Worker, Name: "build", Since: v1, Delivery: rpc.AtLeastOnce}
	// Destroy makes the worker remove a server and report it.
	Destroy = rpc.Method[DestroyRequest, rpc.None]{Interface: Worker, Name: "destroy", Since: v1, Delivery: rpc.AtLeastOnce}
	// Act makes the worker do an action to a server and report how it ended. It is
	// idempotent by server and generation. Since 1.2 it resizes.
	Act = rpc.Method[ActRequest, rpc.None]{Interface: Worker, Name: "act", Since: v11, Delivery: rpc.AtLeastOnce}
	// ReadConsole returns the end of a server's console log, at most 100 KiB, as
	// in Nova. Errors: NotFound; Unimplemented if the driver has none.
	ReadConsole = rpc.Method[ConsoleRequest, ConsoleReply]{Interface: Worker, Name: "read_console", Since: v11}
)

// Action is what a user wants done to a server that has been built.
type Action string

// The actions.
const (
	Stop       Action = "stop"
	Start      Action = "start"
	SoftReboot Action = "reboot"
	HardReboot Action = "hard_reboot"

	Resize        Action = "resize"
	ConfirmResize Action = "confirm_resize"
	RevertResize  Action = "revert_resize"
)

// ActRequest asks for an action.
type ActRequest struct {
	ServerID string `json:"server_id"`
	Action   Action `json:"action"`
	// Task is the server's task while the action is wanted, and Generation its
	// generation.
	Task       string `json:"task"`
	Generation int64  `json:"generation"`
	// Resources are what the server is to have after a Resize. It, and RevertResize,
	// end with the server Running, or off.
	Resources Resources `json:"resources,omitzero"`
	Running   bool      `json:"running,omitempty"`
}

// ConsoleRequest asks for a server's console log.
type ConsoleRequest struct {
	ServerID string `json:"server_id"`
	// Lines is how many from the end; 0: all.
	Lines int `json:"lines,omitempty"`
}

// ConsoleReply is a console log.
type ConsoleReply struct {
	Output string `json:"output"`
}

// BuildRequest asks for one attempt to build a server.
type BuildRequest struct {
	Spec Spec `json:"spec"`
	// Generation is the attempt's. An attempt that is no longer the server's
	// current one is not run.
	Generation int64 `json:"generation"`
}

// DestroyRequest asks for a server's removal.
type DestroyRequest struct {
	ServerID string `json:"server_id"`
	// Generation is that of the deletion: a request that is not of the server's current one is
	// not run. 0: the server has to be deleted on this host in whatever generation.
	Generation int64 `json:"generation,omitempty"`
}

// Conductor is what the conductor answers.
var Conductor = &rpc.Interface{Name: "conductor", Version: v12}

var (
	// Wake tells that a server has work waiting. It is a hint: the work is in
	// the database, and found without it, only later.
	Wake = rpc.Method[WakeRequest, rpc.None]{Interface: Conductor, Name: "wake", Since: v1}
	// BeginBuild asks whether an attempt, of a build, an action or a deletion by its Task, is
	// still wanted. A worker that was answered Conflict drops it.
	BeginBuild = rpc.Method[AttemptRequest, rpc.None]{Interface: Conductor, Name: "begin_build", Since: v1}
	// EndBuild reports how an attempt ended. Conflict: it was no longer wanted.
	EndBuild = rpc.Method[EndBuildRequest, rpc.None]{Interface: Conductor, Name: "end_build", Since: v1}
	// EndAct reports how an action ended. Conflict: it was no longer wanted.
	EndAct = rpc.Method[EndBuildRequest, rpc.None]{Interface: Conductor, Name: "end_act", Since: v11}
	// EndDestroy reports that nothing is left of a server on the host. Conflict: it is not
	// deleted on that host.
	EndDestroy = rpc.Method[AttemptRequest, rpc.None]{Interface: Conductor, Name: "end_destroy", Since: v1}
	// ReportHost is a worker's heartbeat, with what its host has.
	ReportHost = rpc.Method[HostReport, rpc.None]{Interface: Conductor, Name: "report_host", Since: v1}
	// ClaimHost makes a process the one that does a host's work. Unavailable, with the reason
	// MemberHeld and a text that names the process: another one does, and is up. Since 1.2 every
	// request of a worker carries its instance, and is refused with the same error when the host is
	// another instance's.
	ClaimHost = rpc.Method[ClaimHostRequest, rpc.None]{Interface: Conductor, Name: "claim_host", Since: v12}
	// LeaveHost says that the process stops: its host is down at once, and free for another process.
	LeaveHost = rpc.Method[LeaveHostRequest, rpc.None]{Interface: Conductor, Name: "leave_host", Since: v12}
	// Strangers returns those of the servers on a host that do not belong
	// there.
	Strangers = rpc.Method[StrangersRequest, StrangersReply]{Interface: Conductor, Name: "strangers", Since: v1}
)

// WakeRequest names a server with work.
type WakeRequest struct {
	ServerID string `json:"server_id"`
}

// AttemptRequest names one attempt on one host.
type AttemptRequest struct {
	ServerID   string `json:"server_id"`
	Host       string `json:"host"`
	Generation int64  `json:"generation,omitempty"`
	// Task is what the attempt is part of; empty: a build.
	Task string `json:"task,omitempty"`
	// Instance is the process that asks or reports.
	Instance string `json:"instance,omitempty"`
}

// Process is one start of a worker. The fields are those of membership.Instance.
type Process struct {
	ID      string `json:"id"`
	Lock    string `json:"lock,omitempty"`
	Start   int64  `json:"start,omitempty"`
	Process string `json:"process,omitempty"`
}

// ClaimHostRequest is a worker that starts.
type ClaimHostRequest struct {
	Host     string  `json:"host"`
	Instance Process `json:"instance"`
}

// LeaveHostRequest is a worker that stops.
type LeaveHostRequest struct {
	Host     string `json:"host"`
	Instance string `json:"instance"`
}

// EndBuildRequest is the end of an attempt.
type EndBuildRequest struct {
	AttemptRequest

	// Error is why it failed; empty if it did not.
	Error string `json:"error,omitempty"`
}

// HostReport is what a worker knows of its host.
type HostReport struct {
	Host          string    `json:"host"`
	Driver        string    `json:"driver"`
	DriverVersion string    `json:"driver_version"`
	Resources     Resources `json:"resources"`
	// Instance is the process that reports.
	Instance string `json:"instance,omitempty"`
	// Claim describes that process. With it the host is claimed again if an operator has removed it.
	Claim *Process `json:"claim,omitempty"`
}

// StrangersRequest lists servers that a host's driver has.
type StrangersRequest struct {
	Host    string   `json:"host"`
	Servers []string `json:"servers"`
	// Instance is the process that asks.
	Instance string `json:"instance,omitempty"`
}

// StrangersReply lists those that do not belong there.
type StrangersReply struct {
	Servers []string `json:"servers"`
}

// Scheduler is what the scheduler answers.
var Scheduler = &rpc.Interface{Name: "scheduler", Version: v1}

// Select chooses a host for a server and claims its resources there. If the
// server has a claim already, that is the answer. Errors: ErrNoValidHost, whose
// text counts the reasons; Unavailable while no host is up at all, or others
// were faster too often; Conflict if the server waits for no host.
var Select = rpc.Method[SelectRequest, SelectReply]{Interface: Scheduler, Name: "select", Since: v1}

// SelectRequest asks for a host.
type SelectRequest struct {
	ServerID string    `json:"server_id"`
	Need     Resources `json:"need"`
	// Exclude are hosts that have been tried in vain.
	Exclude []string `json:"exclude,omitempty"`
}

// SelectReply is the host that was chosen.
type SelectReply struct {
	Host string `json:"host"`
}

// ErrStale means that an attempt is not, or no longer, what the server is to
// have: it was deleted, or is built elsewhere.
var ErrStale = fault.Sentinel(fault.Conflict, "StaleAttempt", "the attempt is not the server's current one")
