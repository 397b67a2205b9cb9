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
	v14 = rpc.Version{Major: 1, Minor: 4}
)

// Worker is what a compute service answers on its host.
var Worker = &rpc.Interface{Name: "compute", Version: v14}

var (
	// Build makes the worker build a server. The worker asks first whether the step is still wanted ([BeginStep]) and
	// reports its end ([EndStep]), with the request's token, so the request is idempotent. Requests of Build, Destroy and Act
	// have tokens since 1.4.
	Build = rpc.Define(rpc.Method[BuildRequest, rpc.None]{Interface: Worker, Name: "build", Since: v1, Delivery: rpc.AtLeastOnce})
	// Destroy makes the worker remove a server, as Build does its work.
	Destroy = rpc.Define(rpc.Method[DestroyRequest, rpc.None]{Interface: Worker, Name: "destroy", Since: v1, Delivery: rpc.AtLeastOnce})
	// Act makes the worker do an action to a server, as Build does its work. Since 1.2 it resizes.
	Act = rpc.Define(rpc.Method[ActRequest, rpc.None]{Interface: Worker, Name: "act", Since: v11, Delivery: rpc.AtLeastOnce})
	// ReadConsole returns the end of a server's console log, at most 100 KiB, as
	// in Nova. Errors: NotFound; Unimplemented if the driver has none.
	ReadConsole = rpc.Define(rpc.Method[ConsoleRequest, ConsoleReply]{Interface: Worker, Name: "read_console", Since: v11})
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
	// Resources are what the server has after a Resize. It, and RevertResize,
	// end with the server Running, or off.
	Resources Resources `json:"resources,omitzero"`
	Running   bool      `json:"running,omitempty"`
	// Token names the step of the server's operation, see operation.Op.
	Token string `json:"token,omitempty"`
	// Generation, and Task, are for workers of releases before 1.4, as in [AttemptRequest].
	Task       string `json:"task"`
	Generation int64  `json:"generation"`
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
	// Token and Generation are as in [ActRequest].
	Token      string `json:"token,omitempty"`
	Generation int64  `json:"generation"`
}

// DestroyRequest asks for a server's removal.
type DestroyRequest struct {
	ServerID string `json:"server_id"`
	// Token and Generation are as in [ActRequest].
	Token      string `json:"token,omitempty"`
	Generation int64  `json:"generation,omitempty"`
}

// Conductor is what the conductor answers.
var Conductor = &rpc.Interface{Name: "conductor", Version: v13}

var (
	// Wake tells that a server has work waiting. It is a hint: the work is in
	// the database, and found without it, only later.
	Wake = rpc.Define(rpc.Method[WakeRequest, rpc.None]{Interface: Conductor, Name: "wake", Since: v1})
	// BeginStep asks whether the step that a token names is still wanted. ErrStale: it is not, so the worker drops it.
	BeginStep = rpc.Define(rpc.Method[StepRequest, rpc.None]{Interface: Conductor, Name: "begin_step", Since: v13})
	// EndStep reports how a step has ended. ErrStale: it was not wanted any more. A report that was made before is not an error.
	EndStep = rpc.Define(rpc.Method[EndStepRequest, rpc.None]{Interface: Conductor, Name: "end_step", Since: v13})
	// BeginBuild is BeginStep for workers of releases before 1.4 of the interface compute, which name an attempt by server,
	// host, task and generation.
	BeginBuild = rpc.Define(rpc.Method[AttemptRequest, rpc.None]{Interface: Conductor, Name: "begin_build", Since: v1})
	// EndBuild is EndStep for a build by such a worker.
	EndBuild = rpc.Define(rpc.Method[EndBuildRequest, rpc.None]{Interface: Conductor, Name: "end_build", Since: v1})
	// EndAct is EndStep for an action by such a worker.
	EndAct = rpc.Define(rpc.Method[EndBuildRequest, rpc.None]{Interface: Conductor, Name: "end_act", Since: v11})
	// EndDestroy is EndStep for a deletion by such a worker.
	EndDestroy = rpc.Define(rpc.Method[AttemptRequest, rpc.None]{Interface: Conductor, Name: "end_destroy", Since: v1})
	// ReportHost is a worker's heartbeat, with what its host has.
	ReportHost = rpc.Define(rpc.Method[HostReport, rpc.None]{Interface: Conductor, Name: "report_host", Since: v1})
	// ClaimHost makes a process the one that does a host's work. Unavailable, with the reason
	// MemberHeld and a text that names the process: another one does, and is up. Since 1.2 every
	// request of a worker carries its instance, and is refused with the same error when the host is
	// another instance's.
	ClaimHost = rpc.Define(rpc.Method[ClaimHostRequest, rpc.None]{Interface: Conductor, Name: "claim_host", Since: v12})
	// LeaveHost says that the process stops: its host is down at once, and free for another process.
	LeaveHost = rpc.Define(rpc.Method[LeaveHostRequest, rpc.None]{Interface: Conductor, Name: "leave_host", Since: v12})
	// Strangers returns the ids whose servers do not belong on the host.
	Strangers = rpc.Define(rpc.Method[StrangersRequest, StrangersReply]{Interface: Conductor, Name: "strangers", Since: v1})
)

// WakeRequest names a server with work.
type WakeRequest struct {
	ServerID string `json:"server_id"`
}

// StepRequest is about the step that a worker does.
type StepRequest struct {
	// Token is that of the request for the step.
	Token string `json:"token"`
	// Host is the worker's, and Instance its process.
	Host     string `json:"host"`
	Instance string `json:"instance,omitempty"`
}

// EndStepRequest is the end of a step.
type EndStepRequest struct {
	StepRequest

	// Error is why the step failed; empty if it did not.
	Error string `json:"error,omitempty"`
}

// AttemptRequest names one attempt on one host, as workers of releases before 1.4 do.
type AttemptRequest struct {
	ServerID string `json:"server_id"`
	Host     string `json:"host"`
	// Generation is that of the request for the attempt. It is made of the token.
	Generation int64 `json:"generation,omitempty"`
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

// EndBuildRequest is the end of an attempt, as workers of releases before 1.4 report it.
type EndBuildRequest struct {
	AttemptRequest

	// Error is why the attempt failed; empty if it did not.
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
var Select = rpc.Define(rpc.Method[SelectRequest, SelectReply]{Interface: Scheduler, Name: "select", Since: v1})

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

// ErrStale means that a step is not, or not any more, the current one of the server's operation: the server was deleted, for
// example, or is built elsewhere.
var ErrStale = fault.Sentinel(fault.Conflict, "StaleAttempt", "the attempt is not the server's current one")
