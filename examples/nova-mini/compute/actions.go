package compute

import (
	"slices"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/rpc"
)

// Action is an action of a user on a server. The value is the action's name on the wire and in the kind of the server's operation.
type Action string

// The actions. Each has a row in [Actions].
const (
	Start      Action = "start"
	Stop       Action = "stop"
	SoftReboot Action = "reboot"
	HardReboot Action = "hard_reboot"
	Pause      Action = "pause"
	Unpause    Action = "unpause"
	Suspend    Action = "suspend"
	Resume     Action = "resume"
	Rescue     Action = "rescue"
	Unrescue   Action = "unrescue"

	Rebuild       Action = "rebuild"
	CreateImage   Action = "create_image"
	Shelve        Action = "shelve"
	ShelveOffload Action = "shelve_offload"
	Unshelve      Action = "unshelve"

	Resize        Action = "resize"
	ConfirmResize Action = "confirm_resize"
	RevertResize  Action = "revert_resize"

	Lock           Action = "lock"
	Unlock         Action = "unlock"
	ResetState     Action = "reset_state"
	ForceDelete    Action = "force_delete"
	Restore        Action = "restore"
	SoftDelete     Action = "soft_delete"
	ChangePassword Action = "change_password"
	CreateBackup   Action = "create_backup"
	CrashDump      Action = "crash_dump"
	ConsoleOutput  Action = "console_output"
	VNCConsole     Action = "vnc_console"
	SPICEConsole   Action = "spice_console"
	RDPConsole     Action = "rdp_console"
	SerialConsole  Action = "serial_console"
	InjectNetwork  Action = "inject_network_info"

	AddSecurityGroup    Action = "add_security_group"
	RemoveSecurityGroup Action = "remove_security_group"

	AddFixedIP    Action = "add_fixed_ip"
	RemoveFixedIP Action = "remove_fixed_ip"

	AttachInterface Action = "attach_interface"
	DetachInterface Action = "detach_interface"
)

// Values of vm_state, as in Nova.
const (
	VMBuilding    = "building"
	VMActive      = "active"
	VMPaused      = "paused"
	VMSuspended   = "suspended"
	VMStopped     = "stopped"
	VMRescued     = "rescued"
	VMResized     = "resized" // neither confirmed nor reverted
	VMShelved     = "shelved" // still on its host
	VMOffloaded   = "shelved_offloaded"
	VMSoftDeleted = "soft-delete"
	VMError       = "error"
)

// ActionInfo describes an action. Two parts of an action are elsewhere, under the same Action: package api has the body of the request, and
// package worker has the work of the compute service.
type ActionInfo struct {
	Action Action
	// Request is the name of the action in the body of the request for an action on a server. If two actions have the same name, the rest of the body tells them
	// apart. Empty: a request of another kind begins or does the action.
	Request string
	// Name is Nova's name of the action in errors and in the list of a server's actions.
	Name string
	// Event is the name of the action's event in the list of a server's actions, as in Nova. Empty: the list has no events of the action.
	Event string
	// Rule is the name of the policy rule. By default the rule allows members of the project or, if Admin is set, only administrators. Summary says
	// what the action does.
	Rule    string
	Admin   bool
	Summary string
	// Status is the HTTP status of the reply. Default 202.
	Status int
	// Added and Until are the first and the last microversion that has the action. An empty Added means from the first microversion on, and an empty
	// Until means up to the newest one.
	Added, Until string
	// WhenLocked means that the action is not refused on a locked server.
	WhenLocked bool
	// From are the values of vm_state in which Nova allows the action.
	From []string
	// Task is the task_state while the action runs. Empty: the API service does the action itself, without an operation. The changes of interfaces are operations without a task_state.
	Task string
	// Shown is the status of the server while the action runs, by vm_state. In any other vm_state the status does not change.
	Shown map[string]string
	// To is the vm_state after the action. Empty: vm_state does not change, or the end of a resize sets it. With KeepsOff a stopped server stays stopped.
	To       string
	KeepsOff bool
	// Launches means that the action starts the server anew: launched_at becomes the time at which the action ends.
	Launches bool
	// Builds means that the request to the compute service has the Spec, with which it can build the server.
	Builds bool
	// Preempts means that the action ends any other operation of the server, as a deletion does. Like a deletion, it waits while the host is down.
	Preempts bool
	// Interrupts are the actions that this action ends if they run on the server. Nova allows this action in their task states.
	Interrupts []Action
	// Settles means that the server has a known size after the action, even if a resize of the server was interrupted. The compute service then removes the server, or confirms or undoes the
	// resize while the server is off.
	Settles bool
	// Rotates means that the compute service removes older backups of the server after the action.
	Rotates bool
	// Schedules means that the scheduler first chooses a host if the server has none.
	Schedules bool
	// Fails is the vm_state after the action has failed. vm_state does not change if Fails is empty, or if the error is a Precondition error.
	Fails string
	// Since is the first version of [Worker] that has the action.
	Since rpc.Version
	// Capability is the capability that the driver of the host must have. Empty: every driver supports the action.
	Capability driver.Capability
}

// Actions has one row for each action. To add an action, add its row here, and its two parts in the packages api and worker, see [ActionInfo].
var Actions = []ActionInfo{
	{
		Action: Start, Request: "os-start", Name: "start", Event: "compute_start_instance", Rule: "os_compute_api:servers:start", Summary: "Start a server",
		From: []string{VMStopped}, Task: "powering-on", To: VMActive, Since: v11,
	},
	{
		Action: Stop, Request: "os-stop", Name: "stop", Event: "compute_stop_instance", Rule: "os_compute_api:servers:stop", Summary: "Stop a server",
		From: []string{VMActive, VMError}, Task: "powering-off", To: VMStopped, Settles: true, Since: v11,
	},
	{
		Action: SoftReboot, Request: "reboot", Name: "reboot", Event: "compute_reboot_instance", Rule: "os_compute_api:servers:reboot", Summary: "Reboot a server",
		From: []string{VMActive}, Task: "rebooting", Shown: map[string]string{VMActive: "REBOOT"}, To: VMActive, Since: v11,
	},
	{
		Action: HardReboot, Request: "reboot", Name: "reboot", Event: "compute_reboot_instance", Rule: "os_compute_api:servers:reboot", Summary: "Reboot a server",
		From: []string{VMActive, VMStopped, VMPaused, VMSuspended, VMError}, Task: "rebooting_hard", Shown: map[string]string{VMActive: "HARD_REBOOT"}, To: VMActive, Settles: true,
		Interrupts: []Action{SoftReboot, HardReboot, Pause, Unpause, Suspend, Resume}, Since: v11,
	},
	{
		Action: Resize, Request: "resize", Name: "resize", Event: "compute_resize_instance", Rule: "os_compute_api:servers:resize", Summary: "Resize a server to another flavor",
		From: []string{VMActive, VMStopped}, Task: "resize_prep", Shown: map[string]string{VMActive: "RESIZE", VMStopped: "RESIZE"}, To: VMResized, Since: v12, Capability: CapResize,
	},
	{
		Action: ConfirmResize, Request: "confirmResize", Name: "confirmResize", Event: "compute_confirm_resize", Rule: "os_compute_api:servers:confirm_resize", Summary: "Confirm a resize",
		Status: 204, From: []string{VMResized}, Task: "resize_confirming", Since: v12,
	},
	{
		Action: RevertResize, Request: "revertResize", Name: "revertResize", Event: "compute_revert_resize", Rule: "os_compute_api:servers:revert_resize", Summary: "Revert a resize",
		From: []string{VMResized}, Task: "resize_reverting", Shown: map[string]string{VMResized: "REVERT_RESIZE"}, Since: v12,
	},
	{
		Action: Pause, Request: "pause", Name: "pause", Event: "compute_pause_instance", Rule: "os_compute_api:os-pause-server:pause", Summary: "Pause a server",
		From: []string{VMActive}, Task: "pausing", To: VMPaused, Since: v15, Capability: CapPause,
	},
	{
		Action: Unpause, Request: "unpause", Name: "unpause", Event: "compute_unpause_instance", Rule: "os_compute_api:os-pause-server:unpause", Summary: "Continue a paused server",
		From: []string{VMPaused}, Task: "unpausing", To: VMActive, Since: v15, Capability: CapPause,
	},
	{
		Action: Suspend, Request: "suspend", Name: "suspend", Event: "compute_suspend_instance", Rule: "os_compute_api:os-suspend-server:suspend", Summary: "Suspend a server",
		From: []string{VMActive}, Task: "suspending", To: VMSuspended, Since: v15, Capability: CapSuspend,
	},
	{
		Action: Resume, Request: "resume", Name: "resume", Event: "compute_resume_instance", Rule: "os_compute_api:os-suspend-server:resume", Summary: "Continue a suspended server",
		From: []string{VMSuspended}, Task: "resuming", To: VMActive, Since: v15, Capability: CapSuspend,
	},
	{
		Action: Rescue, Request: "rescue", Name: "rescue", Event: "compute_rescue_instance", Rule: "os_compute_api:os-rescue", Summary: "Start a server from another image, with its disk as the second disk",
		Status: 200, From: []string{VMActive, VMStopped, VMError}, Task: "rescuing", To: VMRescued, Launches: true, Fails: VMError, Since: v15, Capability: CapRescue,
	},
	{
		Action: Unrescue, Request: "unrescue", Name: "unrescue", Event: "compute_unrescue_instance", Rule: "os_compute_api:os-unrescue", Summary: "Start a rescued server from its own disk again",
		From: []string{VMRescued}, Task: "unrescuing", To: VMActive, Launches: true, Fails: VMError, Since: v15, Capability: CapRescue,
	},
	{
		Action: Rebuild, Request: "rebuild", Name: "rebuild", Event: "compute_rebuild_instance", Rule: "os_compute_api:servers:rebuild", Summary: "Build a server anew from an image, on its host",
		From: []string{VMActive, VMStopped, VMError}, Task: "rebuilding", Shown: map[string]string{VMActive: "REBUILD", VMStopped: "REBUILD", VMError: "REBUILD"},
		To: VMActive, KeepsOff: true, Launches: true, Builds: true, Settles: true, Fails: VMError, Since: v15,
	},
	{
		Action: CreateImage, Request: "createImage", Name: "createImage", Event: "compute_snapshot_instance", Rule: "os_compute_api:servers:create_image", Summary: "Make an image of a server's disk",
		WhenLocked: true, From: []string{VMActive, VMStopped, VMPaused, VMSuspended}, Task: "image_snapshot", Since: v15, Capability: CapSnapshot,
	},
	{
		Action: Shelve, Request: "shelve", Name: "shelve", Event: "compute_shelve_instance", Rule: "os_compute_api:os-shelve:shelve", Summary: "Stop a server and keep an image of its disk",
		From: []string{VMActive, VMStopped, VMPaused, VMSuspended}, Task: "shelving", To: VMShelved, Settles: true, Fails: VMError, Since: v15, Capability: CapSnapshot,
	},
	{
		Action: ShelveOffload, Request: "shelveOffload", Name: "shelveOffload", Event: "compute_shelve_offload_instance", Rule: "os_compute_api:os-shelve:shelve_offload", Admin: true,
		Summary: "Remove a shelved server from its host", From: []string{VMShelved}, Task: "shelving_offloading", To: VMOffloaded, Settles: true, Since: v15,
	},
	{
		Action: Unshelve, Request: "unshelve", Name: "unshelve", Event: "compute_unshelve_instance", Rule: "os_compute_api:os-shelve:unshelve", Summary: "Start a shelved server again",
		From: []string{VMShelved, VMOffloaded}, Task: "unshelving", To: VMActive, Launches: true, Builds: true, Schedules: true, Since: v15,
	},
	{
		Action: Lock, Request: "lock", Name: "lock", Event: "api_lock", Rule: "os_compute_api:os-lock-server:lock", Summary: "Lock a server against actions of its project", WhenLocked: true,
	},
	{
		Action: Unlock, Request: "unlock", Name: "unlock", Event: "api_unlock", Rule: "os_compute_api:os-lock-server:unlock", Summary: "Unlock a server", WhenLocked: true,
	},
	{
		Action: ResetState, Request: "os-resetState", Name: "resetState", Rule: "os_compute_api:os-admin-actions:reset_state", Admin: true,
		Summary: "Set the state of a server, and end its task", WhenLocked: true,
	},
	{
		Action: ForceDelete, Request: "forceDelete", Name: "forceDelete", Rule: "os_compute_api:os-deferred-delete:force", Summary: "Delete a server at once, in every state",
	},
	{
		Action: Restore, Request: "restore", Name: "restore", Rule: "os_compute_api:os-deferred-delete:restore", Summary: "Restore a server that is soft-deleted",
		Event: "compute_restore_instance", From: []string{VMSoftDeleted}, Task: "restoring", To: VMActive, Since: v15,
	},
	{
		Action: SoftDelete, Name: "delete", Event: "compute_soft_delete_instance", Rule: "os_compute_api:servers:delete", Summary: "Stop a server, and delete it after a time",
		From: []string{VMActive, VMStopped, VMPaused, VMSuspended, VMRescued, VMResized, VMShelved, VMError, VMSoftDeleted}, Task: "soft-deleting", To: VMSoftDeleted, Preempts: true, Settles: true, Since: v15,
	},
	{
		Action: ChangePassword, Request: "changePassword", Name: "changePassword", Event: "compute_set_admin_password", Rule: "os_compute_api:os-admin-password",
		Summary: "Set the password of a guest's administrator", From: []string{VMActive}, Task: "updating_password", Shown: map[string]string{VMActive: "PASSWORD"}, Since: v15, Capability: CapSetPassword,
	},
	{
		Action: CreateBackup, Request: "createBackup", Name: "createBackup", Event: "compute_backup_instance", Rule: "os_compute_api:os-create-backup", Summary: "Make an image of a server's disk, and delete older ones",
		WhenLocked: true, From: []string{VMActive, VMStopped, VMPaused, VMSuspended}, Task: "image_backup", Rotates: true, Since: v15, Capability: CapSnapshot,
	},
	{
		Action: CrashDump, Request: "trigger_crash_dump", Name: "trigger_crash_dump", Event: "compute_trigger_crash_dump", Rule: "os_compute_api:servers:trigger_crash_dump",
		Summary: "Send an NMI to a guest, whose kernel may then write a crash dump", Added: "2.17",
		From: []string{VMActive, VMPaused, VMRescued, VMResized, VMError}, Task: "triggering_crash_dump", Since: v15, Capability: CapInjectNMI,
	},
	{
		Action: ConsoleOutput, Request: "os-getConsoleOutput", Rule: "os_compute_api:os-console-output", Summary: "Read the end of a server's console log", Status: 200, WhenLocked: true,
	},
	{
		Action: VNCConsole, Request: "os-getVNCConsole", Rule: "os_compute_api:os-remote-consoles", Summary: "Get the address of a server's VNC console", Status: 200, Until: "2.5", WhenLocked: true,
	},
	{
		Action: SPICEConsole, Request: "os-getSPICEConsole", Rule: "os_compute_api:os-remote-consoles", Summary: "Get the address of a server's SPICE console", Status: 200, Until: "2.5", WhenLocked: true,
	},
	{
		Action: RDPConsole, Request: "os-getRDPConsole", Rule: "os_compute_api:os-remote-consoles", Summary: "Get the address of a server's RDP console", Status: 200, Until: "2.5", WhenLocked: true,
	},
	{
		Action: SerialConsole, Request: "os-getSerialConsole", Rule: "os_compute_api:os-remote-consoles", Summary: "Get the address of a server's serial console", Status: 200, Until: "2.5", WhenLocked: true,
	},
	{
		Action: InjectNetwork, Request: "injectNetworkInfo", Rule: "os_compute_api:os-admin-actions:inject_network_info", Admin: true, Summary: "Write the addresses of a server into its guest",
	},
	{
		Action: AddSecurityGroup, Request: "addSecurityGroup", Rule: "os_compute_api:os-security-groups:add", Summary: "Add a security group to the ports of a server", WhenLocked: true,
	},
	{
		Action: RemoveSecurityGroup, Request: "removeSecurityGroup", Rule: "os_compute_api:os-security-groups:remove", Summary: "Remove a security group from the ports of a server",
		WhenLocked: true,
	},
	{
		Action: AddFixedIP, Request: "addFixedIp", Rule: "os_compute_api:os-multinic:add", Summary: "Add an address to a port of a server", Until: "2.43",
	},
	{
		Action: RemoveFixedIP, Request: "removeFixedIp", Rule: "os_compute_api:os-multinic:remove", Summary: "Remove an address from a port of a server", Until: "2.43",
	},
	{
		Action: AttachInterface, Name: "attach_interface", Event: "compute_attach_interface", Rule: "os_compute_api:os-attach-interfaces:create", Summary: "Attach an interface to a server",
		From: []string{VMActive, VMPaused, VMStopped}, Since: v16,
	},
	{
		Action: DetachInterface, Name: "detach_interface", Event: "compute_detach_interface", Rule: "os_compute_api:os-attach-interfaces:delete", Summary: "Detach an interface from a server",
		From: []string{VMActive, VMPaused, VMStopped}, Since: v16,
	},
}

// PowerAfter returns the power state of the guest after the action of a request has succeeded, as the contract of [Driver] has it. The result is false if the action does not change the
// power state.
func (r *ActRequest) PowerAfter() (PowerState, bool) {
	switch info := r.Action.Info(); info.To {
	case VMResized:
	case VMActive, VMRescued:
		if !info.KeepsOff {
			return Running, true
		}
	case VMStopped, VMShelved, VMOffloaded, VMSoftDeleted:
		return Shutdown, true
	case VMPaused:
		return Paused, true
	case VMSuspended:
		return Suspended, true
	default:
		if r.Action != RevertResize {
			return NoState, false
		}
	}
	if r.Running {
		return Running, true
	}
	return Shutdown, true
}

// Info returns the action's row in [Actions], or a zero ActionInfo if the action does not exist.
func (a Action) Info() ActionInfo {
	if i := slices.IndexFunc(Actions, func(info ActionInfo) bool { return info.Action == a }); i >= 0 {
		return Actions[i]
	}
	return ActionInfo{}
}

// Method returns [Act] with the action's Since, so that compute services of older versions refuse the action.
func (i ActionInfo) Method() rpc.Method[ActRequest, rpc.None] {
	m := Act
	m.Since = i.Since
	return m
}
