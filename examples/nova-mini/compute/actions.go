package compute

import (
	"slices"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/rpc"
)

// Action is an action of a user on a server. It is the name on the wire, and of the kind of the server's operation.
type Action string

// The actions. Each has a row in [Actions].
const (
	Stop          Action = "stop"
	Start         Action = "start"
	SoftReboot    Action = "reboot"
	HardReboot    Action = "hard_reboot"
	Resize        Action = "resize"
	ConfirmResize Action = "confirm_resize"
	RevertResize  Action = "revert_resize"
	ConsoleOutput Action = "console_output"
)

// Values of vm_state, as in Nova.
const (
	Building = "building"
	Active   = "active"
	Stopped  = "stopped"
	Error    = "error"
	Resized  = "resized" // neither confirmed nor reverted
)

// ActionInfo has the facts about an action. Only the body of its request and what a compute service does are elsewhere: in package api and
// in package worker, by the Action.
type ActionInfo struct {
	Action Action
	// Request is the name of the action in the body of a request. Two actions may have the same: the body says which is meant.
	Request string
	// Name is Nova's name of the action in errors and in the list of a server's actions.
	Name string
	// Rule is the policy rule, and Summary says what the action does.
	Rule, Summary string
	// Status is the status of the reply. Default 202.
	Status int
	// From are the values of vm_state in which Nova allows the action.
	From []string
	// Task is the task_state while the action runs. Empty: the API service does the action itself, without an operation.
	Task string
	// Shown are the statuses of a server while the action runs, by vm_state. In another vm_state the status stays.
	Shown map[string]string
	// To is the vm_state after the action. Empty: it depends, or stays.
	To string
	// Since is the version of [Worker] from which on a compute service knows the action.
	Since rpc.Version
	// Capability is what the driver of the host must have. Empty: each driver can do it.
	Capability driver.Capability
}

// Actions are all actions. To add an action, add its row here, and in package worker what the compute service does.
var Actions = []ActionInfo{
	{
		Action: Start, Request: "os-start", Name: "start", Rule: "os_compute_api:servers:start", Summary: "Start a server",
		From: []string{Stopped}, Task: "powering-on", To: Active, Since: v11,
	},
	{
		Action: Stop, Request: "os-stop", Name: "stop", Rule: "os_compute_api:servers:stop", Summary: "Stop a server",
		From: []string{Active, Error}, Task: "powering-off", To: Stopped, Since: v11,
	},
	{
		Action: SoftReboot, Request: "reboot", Name: "reboot", Rule: "os_compute_api:servers:reboot", Summary: "Reboot a server",
		From: []string{Active}, Task: "rebooting", Shown: map[string]string{Active: "REBOOT"}, To: Active, Since: v11,
	},
	{
		Action: HardReboot, Request: "reboot", Name: "reboot", Rule: "os_compute_api:servers:reboot", Summary: "Reboot a server",
		From: []string{Active, Stopped, Error}, Task: "rebooting_hard", Shown: map[string]string{Active: "HARD_REBOOT"}, To: Active, Since: v11,
	},
	{
		Action: Resize, Request: "resize", Name: "resize", Rule: "os_compute_api:servers:resize", Summary: "Resize a server to another flavor",
		From: []string{Active, Stopped}, Task: "resize_prep", Shown: map[string]string{Active: "RESIZE", Stopped: "RESIZE"}, To: Resized, Since: v12,
	},
	{
		Action: ConfirmResize, Request: "confirmResize", Name: "confirmResize", Rule: "os_compute_api:servers:confirm_resize", Summary: "Confirm a resize", Status: 204,
		From: []string{Resized}, Task: "resize_confirming", Since: v12,
	},
	{
		Action: RevertResize, Request: "revertResize", Name: "revertResize", Rule: "os_compute_api:servers:revert_resize", Summary: "Revert a resize",
		From: []string{Resized}, Task: "resize_reverting", Shown: map[string]string{Resized: "REVERT_RESIZE"}, Since: v12,
	},
	{
		Action: ConsoleOutput, Request: "os-getConsoleOutput", Rule: "os_compute_api:os-console-output", Summary: "Read the end of a server's console log", Status: 200,
	},
}

// Info returns the facts about an action. They are empty if the action does not exist.
func (a Action) Info() ActionInfo {
	if i := slices.IndexFunc(Actions, func(info ActionInfo) bool { return info.Action == a }); i >= 0 {
		return Actions[i]
	}
	return ActionInfo{}
}

// Method returns [Act] as the method of the version that knows the action. A compute service of an older version refuses it.
func (i ActionInfo) Method() rpc.Method[ActRequest, rpc.None] {
	m := Act
	m.Since = i.Since
	return m
}
