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
	ConsoleOutput  Action = "console_output"
	VNCConsole     Action = "vnc_console"
	SPICEConsole   Action = "spice_console"
	RDPConsole     Action = "rdp_console"
	SerialConsole  Action = "serial_console"
	InjectNetwork  Action = "inject_network_info"
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
	VMShelved     = "shelved" // its host still has it
	VMOffloaded   = "shelved_offloaded"
	VMSoftDeleted = "soft-delete"
	VMError       = "error"
)

// ActionInfo has the facts about an action. Only the body of its request and what a compute service does are elsewhere: in package api and
// in package worker, by the Action.
type ActionInfo struct {
	Action Action
	// Request is the name of the action in the body of a request. Two actions may have the same: the body says which is meant. Empty: another request begins
	// the action.
	Request string
	// Name is Nova's name of the action in errors and in the list of a server's actions.
	Name string
	// Event is Nova's name of what is done, in the list of a server's actions. Empty: the list has no events of the action.
	Event string
	// Rule is the policy rule, for members of the project or, if Admin is set, for administrators. Summary says what the action does.
	Rule    string
	Admin   bool
	Summary string
	// Status is the status of the reply. Default 202.
	Status int
	// Until is the last microversion of the action. Empty: all versions have it.
	Until string
	// WhenLocked means that the action is not refused on a locked server.
	WhenLocked bool
	// From are the values of vm_state in which Nova allows the action.
	From []string
	// Task is the task_state while the action runs. Empty: the API service does the action itself, without an operation.
	Task string
	// Shown are the statuses of a server while the action runs, by vm_state. In another vm_state the status stays.
	Shown map[string]string
	// To is the vm_state after the action. Empty: it depends, or stays. With KeepsOff a server that is stopped stays so.
	To       string
	KeepsOff bool
	// Launches means that the action starts the server anew, so that launched_at is the end of the action.
	Launches bool
	// Builds means that the compute service gets what it needs to build the server.
	Builds bool
	// Preempts means that the action ends another operation of the server, and waits as long as the host is down, as a deletion does.
	Preempts bool
	// Rotates means that the compute service removes older images after the action.
	Rotates bool
	// Schedules means that a host is chosen first if the server has none.
	Schedules bool
	// Fails is the vm_state after the action has failed. Empty: it stays.
	Fails string
	// Since is the version of [Worker] from which on a compute service knows the action.
	Since rpc.Version
	// Capability is what the driver of the host must have. Empty: each driver can do it.
	Capability driver.Capability
}

// Actions are all actions. To add an action, add its row here, and in package worker what the compute service does.
var Actions = []ActionInfo{
	{
		Action: Start, Request: "os-start", Name: "start", Event: "compute_start_instance", Rule: "os_compute_api:servers:start", Summary: "Start a server",
		From: []string{VMStopped}, Task: "powering-on", To: VMActive, Since: v11,
	},
	{
		Action: Stop, Request: "os-stop", Name: "stop", Event: "compute_stop_instance", Rule: "os_compute_api:servers:stop", Summary: "Stop a server",
		From: []string{VMActive, VMError}, Task: "powering-off", To: VMStopped, Since: v11,
	},
	{
		Action: SoftReboot, Request: "reboot", Name: "reboot", Event: "compute_reboot_instance", Rule: "os_compute_api:servers:reboot", Summary: "Reboot a server",
		From: []string{VMActive}, Task: "rebooting", Shown: map[string]string{VMActive: "REBOOT"}, To: VMActive, Since: v11,
	},
	{
		Action: HardReboot, Request: "reboot", Name: "reboot", Event: "compute_reboot_instance", Rule: "os_compute_api:servers:reboot", Summary: "Reboot a server",
		From: []string{VMActive, VMStopped, VMPaused, VMSuspended, VMError}, Task: "rebooting_hard", Shown: map[string]string{VMActive: "HARD_REBOOT"}, To: VMActive, Since: v11,
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
		To: VMActive, KeepsOff: true, Launches: true, Builds: true, Fails: VMError, Since: v15,
	},
	{
		Action: CreateImage, Request: "createImage", Name: "createImage", Event: "compute_snapshot_instance", Rule: "os_compute_api:servers:create_image", Summary: "Make an image of a server's disk",
		WhenLocked: true, From: []string{VMActive, VMStopped, VMPaused, VMSuspended}, Task: "image_snapshot", Since: v15, Capability: CapSnapshot,
	},
	{
		Action: Shelve, Request: "shelve", Name: "shelve", Event: "compute_shelve_instance", Rule: "os_compute_api:os-shelve:shelve", Summary: "Stop a server and keep an image of its disk",
		From: []string{VMActive, VMStopped, VMPaused, VMSuspended}, Task: "shelving", To: VMShelved, Fails: VMError, Since: v15, Capability: CapSnapshot,
	},
	{
		Action: ShelveOffload, Request: "shelveOffload", Name: "shelveOffload", Event: "compute_shelve_offload_instance", Rule: "os_compute_api:os-shelve:shelve_offload", Admin: true,
		Summary: "Remove a shelved server from its host", From: []string{VMShelved}, Task: "shelving_offloading", To: VMOffloaded, Since: v15,
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
		From: []string{VMActive, VMStopped, VMPaused, VMSuspended, VMRescued, VMResized, VMShelved, VMError, VMSoftDeleted}, Task: "soft-deleting", To: VMSoftDeleted, Preempts: true, Since: v15,
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
