package compute

import (
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

var (
	v1  = rpc.Version{Major: 1}
	v11 = rpc.Version{Major: 1, Minor: 1}
	v12 = rpc.Version{Major: 1, Minor: 2}
	v13 = rpc.Version{Major: 1, Minor: 3}
	v14 = rpc.Version{Major: 1, Minor: 4}
	v15 = rpc.Version{Major: 1, Minor: 5}
	v16 = rpc.Version{Major: 1, Minor: 6}
	v17 = rpc.Version{Major: 1, Minor: 7}
)

// Worker is the interface of a compute service on its host.
var Worker = &rpc.Interface{Name: "compute", Version: v16}

var (
	// Build makes the worker build a server. The request is a step of the server's operation. The worker first asks whether
	// the step is still current ([BeginStep]), and later reports the end of the step ([EndStep]). Both calls have the
	// request's token, so the request is idempotent. Requests of Build, Destroy and Act have tokens since 1.4. A Spec has
	// data for the guest since 1.5.
	Build = rpc.Define(rpc.Method[BuildRequest, rpc.None]{Interface: Worker, Name: "build", Since: v1, Delivery: rpc.AtLeastOnce})
	// Destroy makes the worker remove a server, with BeginStep and EndStep as for Build.
	Destroy = rpc.Define(rpc.Method[DestroyRequest, rpc.None]{Interface: Worker, Name: "destroy", Since: v1, Delivery: rpc.AtLeastOnce})
	// Act makes the worker carry out an action on a server, with BeginStep and EndStep as for Build. An action may need
	// a later version, see [ActionInfo].Since.
	Act = rpc.Define(rpc.Method[ActRequest, rpc.None]{Interface: Worker, Name: "act", Since: v11, Delivery: rpc.AtLeastOnce})
	// RemoveImage makes the worker remove the image of a shelve that its driver stores, with BeginStep and EndStep as for Build. It is the step of an operation on the image, and gives way to
	// other work on the server: the worker drops the request, and the conductor repeats it later. The reported error is Unimplemented if the driver does not have CapRemoveImage.
	RemoveImage = rpc.Define(rpc.Method[RemoveImageRequest, rpc.None]{Interface: Worker, Name: "remove_image", Since: v15, Delivery: rpc.AtLeastOnce})
	// ReadConsole returns the end of a server's console log, at most 100 KiB, as in Nova. Errors: NotFound if the server is
	// not on the host; Unimplemented if the driver has no console logs.
	ReadConsole = rpc.Define(rpc.Method[ConsoleRequest, ConsoleReply]{Interface: Worker, Name: "read_console", Since: v11})
	// Diagnose returns the state of a server as its driver reports it. Errors: NotFound if the server is not on the host; Unimplemented if
	// the driver has no diagnostics.
	Diagnose = rpc.Define(rpc.Method[DiagnoseRequest, DiagnoseReply]{Interface: Worker, Name: "diagnose", Since: v15})
	// OpenConsole returns the address at which the console proxy reaches the console of a server. Errors: NotFound if the server is not on the host;
	// Precondition if the server does not run; Unimplemented if the driver does not have this type of console, or the console has no TCP port.
	OpenConsole = rpc.Define(rpc.Method[OpenConsoleRequest, OpenConsoleReply]{Interface: Worker, Name: "open_console", Since: v15})
	// ChangeInterface is Act with AttachInterface and DetachInterface for services before version 1.6. It attaches a network interface to a server, or detaches it. It is idempotent. Errors: NotFound if the server is not on the
	// host; Unimplemented if the driver cannot attach interfaces.
	ChangeInterface = rpc.Define(rpc.Method[InterfaceRequest, rpc.None]{Interface: Worker, Name: "change_interface", Since: v15})
)

// ActRequest asks for an action.
type ActRequest struct {
	ServerID string `json:"server_id"`
	Action   Action `json:"action"`
	// Resources are the server's resources after a Resize, or after an action with Settle. A ConfirmResize and a RevertResize also have the new size here, without an effect. Conductors before
	// version 1.5 send the new size with any action on a server whose resize was interrupted. Other requests have zero Resources.
	Resources Resources `json:"resources,omitzero"`
	// Settle means that the action, which has ActionInfo.Settles, ends an interrupted resize, and gives the server the Resources. Since 1.5.
	Settle bool `json:"settle,omitempty"`
	// Running reports whether the server runs after a Resize, a RevertResize or a Rebuild; otherwise the server is shut off. For a Shelve, Running
	// reports whether the server ran before.
	Running bool `json:"running,omitempty"`
	// ImageRef is the image that a Rescue boots from (empty: the server's own image), or the image that a CreateImage, a CreateBackup or a Shelve makes.
	ImageRef string `json:"image_ref,omitempty"`
	// Upload reports whether the worker uploads the new image to the image service. A worker without an image service refuses such a request.
	Upload bool `json:"upload,omitempty"`
	// Spec is the server to build, if the action has ActionInfo.Builds. Placed reports whether the host was chosen for this action. If such an
	// action fails, the worker removes the server before it reports.
	Spec   *Spec `json:"spec,omitempty"`
	Placed bool  `json:"placed,omitempty"`
	// Rotation is set in the second request of a CreateBackup. This request makes no image; it removes older backups.
	Rotation *Rotation `json:"rotation,omitempty"`
	// AdminPass is the password of a ChangePassword or a Rescue.
	AdminPass string `json:"admin_pass,omitempty"`
	// Interface is the network interface of an AttachInterface or a DetachInterface. IfPossible means that such an action succeeds also if the host does not have the server, or if the driver
	// cannot change interfaces. Since 1.6.
	Interface  *Interface `json:"interface,omitempty"`
	IfPossible bool       `json:"if_possible,omitempty"`
	// Token identifies the step of the server's operation, see operation.Op.
	Token string `json:"token,omitempty"`
	// Task and Generation are for workers that use [BeginBuild], see [AttemptRequest].
	Task       string `json:"task"`
	Generation int64  `json:"generation"`
}

// Rotation says which backups of a server are removed.
type Rotation struct {
	// With an image service, the worker removes the server's backups of this Type in this project, except the newest Keep.
	Type      string `json:"type"`
	Keep      int    `json:"keep"`
	ProjectID string `json:"project_id"`
	// Images are the images that the driver removes if nova-mini has no image service.
	Images []string `json:"images,omitempty"`
}

// RemoveImageRequest asks for the removal of an image that the driver of the host stores.
type RemoveImageRequest struct {
	// ServerID is the server from whose disk the image was made. It may have been deleted, or be on another host.
	ServerID string `json:"server_id"`
	ImageRef string `json:"image_ref"`
	Token    string `json:"token"`
}

// ConsoleRequest asks for a server's console log.
type ConsoleRequest struct {
	ServerID string `json:"server_id"`
	// Lines is the number of lines from the end; 0: all lines.
	Lines int `json:"lines,omitempty"`
}

// ConsoleReply is a console log.
type ConsoleReply struct {
	Output string `json:"output"`
}

// OpenConsoleRequest asks for the address of a console.
type OpenConsoleRequest struct {
	ServerID string      `json:"server_id"`
	Type     ConsoleType `json:"type"`
}

// OpenConsoleReply is the address of a console.
type OpenConsoleReply struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// DiagnoseRequest asks for the state of a server.
type DiagnoseRequest struct {
	ServerID string `json:"server_id"`
}

// InterfaceRequest asks for a change of the network interfaces of a server.
type InterfaceRequest struct {
	ServerID  string    `json:"server_id"`
	Interface Interface `json:"interface"`
	// Detach reports whether the interface is detached. Otherwise it is attached.
	Detach bool `json:"detach,omitempty"`
}

// DiagnoseReply is the state of a server. Metrics is nil if the driver has none, or the server does not run.
type DiagnoseReply struct {
	Driver      string            `json:"driver"`
	Instance    Instance          `json:"instance"`
	Metrics     *Metrics          `json:"metrics,omitempty"`
	Diagnostics map[string]string `json:"diagnostics,omitempty"`
}

// BuildRequest asks for one build attempt of a server.
type BuildRequest struct {
	Spec Spec `json:"spec"`
	// Token and Generation are as in [ActRequest].
	Token      string `json:"token,omitempty"`
	Generation int64  `json:"generation"`
}

// DestroyRequest asks for the removal of a server.
type DestroyRequest struct {
	ServerID string `json:"server_id"`
	// Token and Generation are as in [ActRequest].
	Token      string `json:"token,omitempty"`
	Generation int64  `json:"generation,omitempty"`
}

// Unreported has, by interface, the version that a process serves if its release does not store versions in the database. See rpccaps.Config.
var Unreported = rpc.Versions{Worker.Name: {v14}, Conductor.Name: {v13}, Scheduler.Name: {v1}}

// Conductor is the interface of the conductor. Since 1.4 the conductor stores the interface versions that workers serve.
var Conductor = &rpc.Interface{Name: "conductor", Version: v17}

var (
	// Notify tells the conductor that a server has work. The work is in the database, so without the notification the conductor
	// finds it later, at its next poll.
	Notify = rpc.Define(rpc.Method[NotifyRequest, rpc.None]{Interface: Conductor, Name: "wake", Since: v1})
	// BeginStep asks whether the step of a token is still the current one. ErrStale: the step is not current, so the worker
	// drops the request.
	BeginStep = rpc.Define(rpc.Method[StepRequest, rpc.None]{Interface: Conductor, Name: "begin_step", Since: v13})
	// EndStep reports the end of a step. Errors: ErrOtherRelease; ErrStale if the step is no longer the current step. It is not an error if the
	// same end was reported before.
	EndStep = rpc.Define(rpc.Method[EndStepRequest, rpc.None]{Interface: Conductor, Name: "end_step", Since: v13})
	// BeginBuild is BeginStep for workers whose version of the interface compute is below 1.4. Such workers identify an attempt by
	// server, host, task and generation.
	BeginBuild = rpc.Define(rpc.Method[AttemptRequest, rpc.None]{Interface: Conductor, Name: "begin_build", Since: v1})
	// EndBuild is EndStep for a build by a worker that uses BeginBuild.
	EndBuild = rpc.Define(rpc.Method[EndBuildRequest, rpc.None]{Interface: Conductor, Name: "end_build", Since: v1})
	// EndAct is EndStep for an action by a worker that uses BeginBuild.
	EndAct = rpc.Define(rpc.Method[EndBuildRequest, rpc.None]{Interface: Conductor, Name: "end_act", Since: v11})
	// EndDestroy is EndStep for a deletion by a worker that uses BeginBuild.
	EndDestroy = rpc.Define(rpc.Method[AttemptRequest, rpc.None]{Interface: Conductor, Name: "end_destroy", Since: v1})
	// ReportHost is a worker's heartbeat, with the resources of its host.
	ReportHost = rpc.Define(rpc.Method[HostReport, rpc.None]{Interface: Conductor, Name: "report_host", Since: v1})
	// ClaimHost makes a process the worker of a host. Errors: Unavailable, with the reason MemberHeld, if the host belongs to
	// another process that is up (the text names that process); ErrVersionsNotKnown. Since 1.2 every request of a worker has
	// the ID of its process, and fails with the reason MemberHeld if the host belongs to another process.
	ClaimHost = rpc.Define(rpc.Method[ClaimHostRequest, rpc.None]{Interface: Conductor, Name: "claim_host", Since: v12})
	// LeaveHost tells the conductor that the process stops. The host is down at once, and another process may claim it.
	LeaveHost = rpc.Define(rpc.Method[LeaveHostRequest, rpc.None]{Interface: Conductor, Name: "leave_host", Since: v12})
	// VersionCaps returns the versions that every server of an interface accepts. Processes without a database call it.
	VersionCaps = rpccaps.Define(Conductor)
	// Orphans returns the orphans among the servers on a host: servers that the database does not place there. The worker
	// destroys them.
	Orphans = rpc.Define(rpc.Method[OrphansRequest, OrphansReply]{Interface: Conductor, Name: "strangers", Since: v1})
	// ReportPower tells the conductor the power states of guests. It is idempotent. A worker calls it twice. The first call asks which of the guests differ from what the database has, and
	// changes nothing. Then the worker asks the driver about these guests again, and reports them with the versions in the reply. The conductor stores a power state, and stops the server if
	// that follows from the power state, only if the server still has this version and no task. So a late report never has an effect. The error with the reason MemberHeld is as for the other methods.
	// A power state that is not one of [PowerState] counts as [NoState].
	ReportPower = rpc.Define(rpc.Method[PowerReport, PowerReply]{Interface: Conductor, Name: "report_power", Since: v15})
)

// PowerReport has power states of guests on a host.
type PowerReport struct {
	Host string `json:"host"`
	// Instance is the ID of the [Process] that reports.
	Instance string       `json:"instance,omitempty"`
	Guests   []GuestPower `json:"guests"`
	// All means that the host has no other guests.
	All bool `json:"all,omitempty"`
}

// GuestPower is the power state of a guest.
type GuestPower struct {
	ServerID string `json:"server_id"`
	// Power is NoState if the host does not have the guest.
	Power PowerState `json:"power"`
	// Version is the version of the server that the worker had got before it asked the driver. Empty: the worker asks whether the guest differs.
	Version string `json:"version,omitempty"`
}

// PowerReply is the reply to a [PowerReport].
type PowerReply struct {
	// Differ are the guests that differ from what the database has.
	Differ []GuestVersion `json:"differ,omitempty"`
	// Later are servers of the report that have a task, or that have changed since the worker had got their version. The worker may report them again later.
	Later []string `json:"later,omitempty"`
}

// GuestVersion is the version of a server. The text has a meaning only for conductors.
type GuestVersion struct {
	ServerID string `json:"server_id"`
	Version  string `json:"version"`
}

// NotifyRequest names a server with work.
type NotifyRequest struct {
	ServerID string `json:"server_id"`
}

// StepRequest identifies a step that a worker carries out.
type StepRequest struct {
	// Token is the token of the request for the step.
	Token string `json:"token"`
	// Host is the worker's host, and Instance is the ID of its [Process].
	Host     string `json:"host"`
	Instance string `json:"instance,omitempty"`
}

// EndStepRequest reports the end of a step.
type EndStepRequest struct {
	StepRequest

	// Error is the text of the step's error; empty if the step succeeded.
	Error string `json:"error,omitempty"`
	// Refused means that the worker has refused the action, and has not changed the server.
	Refused bool `json:"refused,omitempty"`
	// Missing means that a soft deletion failed because the host does not have the server. Other steps do not set it.
	Missing bool `json:"missing,omitempty"`
	// Unsupported means that the change of an interface failed because the driver cannot change interfaces. A conductor before 1.7 treats the error as any other.
	Unsupported bool `json:"unsupported,omitempty"`
}

// AttemptRequest identifies one attempt on one host, as workers that use [BeginBuild] do.
type AttemptRequest struct {
	ServerID string `json:"server_id"`
	Host     string `json:"host"`
	// Generation is the Generation of the request with which the attempt began. The conductor derives it from the token of the step.
	Generation int64 `json:"generation,omitempty"`
	// Task is the task_state to which the attempt belongs; empty: a build.
	Task string `json:"task,omitempty"`
	// Instance is the ID of the [Process] that sends the request.
	Instance string `json:"instance,omitempty"`
}

// Process is one start of a worker. The fields are those of membership.Instance.
type Process struct {
	ID      string `json:"id"`
	Lock    string `json:"lock,omitempty"`
	Start   int64  `json:"start,omitempty"`
	Process string `json:"process,omitempty"`
}

// ClaimHostRequest claims a host for a worker that starts.
type ClaimHostRequest struct {
	Host     string  `json:"host"`
	Instance Process `json:"instance"`
	// Interfaces are the versions of the interfaces that the worker serves, as in membership.Self.
	Interfaces map[string][]string `json:"interfaces,omitempty"`
}

// LeaveHostRequest releases the host of a worker that stops.
type LeaveHostRequest struct {
	Host     string `json:"host"`
	Instance string `json:"instance"`
}

// EndBuildRequest reports the end of an attempt, as workers that use [BeginBuild] do.
type EndBuildRequest struct {
	AttemptRequest

	// Error is the text of the attempt's error; empty if the attempt succeeded.
	Error string `json:"error,omitempty"`
}

// HostReport is a worker's report about its host.
type HostReport struct {
	Host          string    `json:"host"`
	Driver        string    `json:"driver"`
	DriverVersion string    `json:"driver_version"`
	Resources     Resources `json:"resources"`
	// Capabilities are those of the driver. Nil: not known, because a worker below version 1.5 of [Worker] does not report them.
	Capabilities []driver.Capability `json:"capabilities,omitzero"`
	// Instance is the ID of the [Process] that reports.
	Instance string `json:"instance,omitempty"`
	// Platforms are the kinds of guests that the host can run. Empty: not known, because the driver does not have CapPlatforms, or the worker is below version 1.5 of [Worker].
	Platforms []Platform `json:"platforms,omitempty"`
	// Zone is the availability zone of the host. Empty: the default zone. A worker below version 1.5 of [Worker] always reports an empty Zone.
	Zone string `json:"zone,omitempty"`
	// IP is the IPv4 address of the host. Empty: not known, because the worker is of an earlier release.
	IP string `json:"ip,omitempty"`
	// Claim describes the [Process] that reports. If an operator has removed the host, the report claims the host again for this process.
	Claim *Process `json:"claim,omitempty"`
	// Interfaces are as in [ClaimHostRequest]. They are repeated, because a conductor of an earlier release may have handled the claim.
	Interfaces map[string][]string `json:"interfaces,omitempty"`
}

// OrphansRequest lists the servers that a host's driver has.
type OrphansRequest struct {
	Host    string   `json:"host"`
	Servers []string `json:"servers"`
	// Instance is the ID of the [Process] that asks.
	Instance string `json:"instance,omitempty"`
}

// OrphansReply lists the orphans.
type OrphansReply struct {
	Servers []string `json:"servers"`
}

// Scheduler is the interface of the scheduler.
var Scheduler = &rpc.Interface{Name: "scheduler", Version: v12}

// A service of an earlier version ignores the newer fields of a request. A service knows such fields since the following versions: GuestDataSince of [Worker] for the data for the guest in
// a [Spec]; SettlesSince of [Worker] for the Settle of an [ActRequest]; ChosenHostSince of [Scheduler] for Host, Group, Zone, Guest and Specs of a [SelectRequest].
var (
	GuestDataSince  = v15
	SettlesSince    = v15
	ChosenHostSince = v11
)

// Select chooses a host for a server and claims its resources there. If the server
// already has a claim, Select returns the host of that claim. Errors:
// ErrNoValidHost, whose text counts the rejection reasons; Unavailable if no host is up, or
// if no ranked host accepted the claim in 20 decisions; Conflict if the server does not need
// a host now.
var Select = rpc.Define(rpc.Method[SelectRequest, SelectReply]{Interface: Scheduler, Name: "select", Since: v1})

// SelectRequest asks for a host.
type SelectRequest struct {
	ServerID string    `json:"server_id"`
	Need     Resources `json:"need"`
	// Exclude are the hosts of earlier build attempts, which failed.
	Exclude []string `json:"exclude,omitempty"`
	// Host is the only host that may be chosen, since 1.1. Empty: any host.
	Host string `json:"host,omitempty"`
	// Group is the server group, since 1.1. The scheduler applies the policy of the group. Nil: none.
	Group *string `json:"group,omitempty"`
	// Zone is the availability zone of the host, since 1.1. Empty: any zone.
	Zone string `json:"zone,omitempty"`
	// Guest is what the image needs of the host, since 1.1.
	Guest GuestNeeds `json:"guest,omitzero"`
	// Specs are the extra specs of the flavor, since 1.1.
	Specs map[string]string `json:"specs,omitempty"`
	// Driver are the capabilities that the driver of the host must have, since 1.2. A host that reports no capabilities may be chosen. An earlier scheduler
	// ignores them: then the host refuses the build, and the next host is chosen.
	Driver []driver.Capability `json:"driver,omitempty"`
}

// SelectReply is the chosen host.
type SelectReply struct {
	Host string `json:"host"`
}

// ErrVersionsNotKnown refuses the claim of a process whose release is older than that of another process that has run. The older process must not
// serve before the RPC clients know its lower versions. The claim has announced these versions. The process repeats the claim, or leaves the host.
var ErrVersionsNotKnown = fault.Sentinel(fault.Unavailable, "VersionsNotKnown", "the process is older than another one that has run, and waits until the RPC clients know its versions")

// ErrOtherRelease means that this conductor cannot handle the report of a step: a conductor of another release has begun the operation, and this release does
// not know the operation's kind or steps. The worker repeats the report, so that a conductor of the other release gets it.
var ErrOtherRelease = fault.Sentinel(fault.Unavailable, "UnknownOperation", "another conductor must handle the report")

// ErrStale means that a step is not, or is no longer, the current step of the server's operation. For example, the server
// was deleted, or is being built on another host.
var ErrStale = fault.Sentinel(fault.Conflict, "StaleAttempt", "the attempt is not the server's current one")
