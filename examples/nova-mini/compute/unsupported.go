package compute

import (
	"context"
	"io"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// Unsupported implements all optional methods of [Driver]; each returns Unimplemented. A driver embeds Unsupported, and
// overrides the methods of the capabilities that it has.
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
func (Unsupported) Rescue(context.Context, string, string, string) error {
	return unsupportedError(CapRescue)
}

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

// InjectNMI implements Driver.
func (Unsupported) InjectNMI(context.Context, string) error { return unsupportedError(CapInjectNMI) }

// Platforms implements Driver.
func (Unsupported) Platforms(context.Context) ([]Platform, error) {
	return nil, unsupportedError(CapPlatforms)
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
