package compute

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/armature-go/armature/driver"
	pb "github.com/armature-go/armature/examples/nova-mini/compute/computepb"
	"github.com/armature-go/armature/fault"
)

// client is a Driver that calls the service of compute.proto.
type client struct {
	driver.Driver

	rpc pb.ComputeClient
}

func (c *client) Spawn(ctx context.Context, spec Spec) error {
	_, err := c.rpc.Spawn(ctx, &pb.SpawnRequest{
		Id: spec.ID, Name: spec.Name, ProjectId: spec.ProjectID, ImageRef: spec.ImageRef, Resources: toResources(spec.Resources), Metadata: spec.Metadata,
		Hostname: spec.Hostname, ConfigDrive: spec.ConfigDrive, UserData: spec.UserData, AdminPass: spec.AdminPass, PublicKey: spec.PublicKey, Files: toFiles(spec.Files), InstanceName: spec.InstanceName,
		Interfaces: toInterfaces(spec.Interfaces), KeyName: spec.KeyName, LaunchIndex: int64(spec.LaunchIndex), AvailabilityZone: spec.Zone,
		EphemeralGib: int64(spec.EphemeralGiB), SwapMib: int64(spec.SwapMiB),
	})
	return err
}

func (c *client) Destroy(ctx context.Context, id string) error {
	_, err := c.rpc.Destroy(ctx, &pb.DestroyRequest{Id: id})
	return err
}

func (c *client) PowerOn(ctx context.Context, id string) error {
	_, err := c.rpc.PowerOn(ctx, &pb.PowerOnRequest{Id: id})
	return err
}

func (c *client) PowerOff(ctx context.Context, id string, grace time.Duration) error {
	_, err := c.rpc.PowerOff(ctx, &pb.PowerOffRequest{Id: id, GraceMs: toMillis(grace)})
	return err
}

func (c *client) Reboot(ctx context.Context, id string, hard bool) error {
	_, err := c.rpc.Reboot(ctx, &pb.RebootRequest{Id: id, Hard: hard})
	return err
}

func (c *client) Pause(ctx context.Context, id string) error {
	_, err := c.rpc.Pause(ctx, &pb.PauseRequest{Id: id})
	return err
}

func (c *client) Unpause(ctx context.Context, id string) error {
	_, err := c.rpc.Unpause(ctx, &pb.UnpauseRequest{Id: id})
	return err
}

func (c *client) Suspend(ctx context.Context, id string) error {
	_, err := c.rpc.Suspend(ctx, &pb.SuspendRequest{Id: id})
	return err
}

func (c *client) Resume(ctx context.Context, id string) error {
	_, err := c.rpc.Resume(ctx, &pb.ResumeRequest{Id: id})
	return err
}

func (c *client) Resize(ctx context.Context, id string, to Resources) error {
	_, err := c.rpc.Resize(ctx, &pb.ResizeRequest{Id: id, Resources: toResources(to)})
	return err
}

func (c *client) ConfirmResize(ctx context.Context, id string) error {
	_, err := c.rpc.ConfirmResize(ctx, &pb.ConfirmResizeRequest{Id: id})
	return err
}

func (c *client) RevertResize(ctx context.Context, id string) error {
	_, err := c.rpc.RevertResize(ctx, &pb.RevertResizeRequest{Id: id})
	return err
}

func (c *client) Rescue(ctx context.Context, id, imageRef, adminPass string) error {
	_, err := c.rpc.Rescue(ctx, &pb.RescueRequest{Id: id, ImageRef: imageRef, AdminPass: adminPass})
	return err
}

func (c *client) Unrescue(ctx context.Context, id string) error {
	_, err := c.rpc.Unrescue(ctx, &pb.UnrescueRequest{Id: id})
	return err
}

func (c *client) Snapshot(ctx context.Context, id, imageRef string) error {
	_, err := c.rpc.Snapshot(ctx, &pb.SnapshotRequest{Id: id, ImageRef: imageRef})
	return err
}

func (c *client) RemoveImage(ctx context.Context, imageRef string) error {
	_, err := c.rpc.RemoveImage(ctx, &pb.RemoveImageRequest{ImageRef: imageRef})
	return err
}

func (c *client) SetPassword(ctx context.Context, id, password string) error {
	_, err := c.rpc.SetPassword(ctx, &pb.SetPasswordRequest{Id: id, Password: password})
	return err
}

func (c *client) InjectNMI(ctx context.Context, id string) error {
	_, err := c.rpc.InjectNMI(ctx, &pb.InjectNMIRequest{Id: id})
	return err
}

func (c *client) Platforms(ctx context.Context) (out []Platform, err error) {
	resp, err := c.rpc.Platforms(ctx, &pb.PlatformsRequest{})
	for _, p := range resp.GetPlatforms() {
		out = append(out, Platform{p.GetArch(), p.GetType(), p.GetMode()})
	}
	return out, err
}

func (c *client) LiveMigrate(ctx context.Context, id, host string) error {
	_, err := c.rpc.LiveMigrate(ctx, &pb.LiveMigrateRequest{Id: id, Host: host})
	return err
}

func (c *client) AttachVolume(ctx context.Context, id string, v Volume) error {
	_, err := c.rpc.AttachVolume(ctx, &pb.AttachVolumeRequest{Id: id, Volume: &pb.Volume{Id: v.ID, Path: v.Path, ReadOnly: v.ReadOnly}})
	return err
}

func (c *client) DetachVolume(ctx context.Context, id, volumeID string) error {
	_, err := c.rpc.DetachVolume(ctx, &pb.DetachVolumeRequest{Id: id, VolumeId: volumeID})
	return err
}

func (c *client) AttachInterface(ctx context.Context, id string, i Interface) error {
	_, err := c.rpc.AttachInterface(ctx, &pb.AttachInterfaceRequest{Id: id, Interface: toInterface(&i)})
	return err
}

func (c *client) DetachInterface(ctx context.Context, id, interfaceID string) error {
	_, err := c.rpc.DetachInterface(ctx, &pb.DetachInterfaceRequest{Id: id, InterfaceId: interfaceID})
	return err
}

func (c *client) List(ctx context.Context) ([]Instance, error) {
	resp, err := c.rpc.List(ctx, &pb.ListRequest{})
	if err != nil {
		return nil, err
	}
	out := make([]Instance, len(resp.GetInstances()))
	for i, in := range resp.GetInstances() {
		out[i] = fromInstance(in)
	}
	return out, nil
}

func (c *client) Get(ctx context.Context, id string) (Instance, error) {
	resp, err := c.rpc.Get(ctx, &pb.GetRequest{Id: id})
	if err != nil {
		return Instance{}, err
	}
	return fromInstance(resp.GetInstance()), nil
}

func (c *client) Resources(ctx context.Context) (Resources, error) {
	resp, err := c.rpc.Resources(ctx, &pb.ResourcesRequest{})
	return fromResources(resp.GetResources()), err
}

func (c *client) ConsoleLog(ctx context.Context, id string, lines int, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx) // frees the stream if w fails
	defer cancel()
	stream, err := c.rpc.ConsoleLog(ctx, &pb.ConsoleLogRequest{Id: id, Lines: int64(lines)})
	if err != nil {
		return err
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(part.GetData()); err != nil {
			return err
		}
	}
}

func (c *client) Console(ctx context.Context, id string, t ConsoleType) (Console, error) {
	to := map[ConsoleType]pb.ConsoleType{VNC: pb.ConsoleType_CONSOLE_TYPE_VNC, Serial: pb.ConsoleType_CONSOLE_TYPE_SERIAL}
	resp, err := c.rpc.Console(ctx, &pb.ConsoleRequest{Id: id, Type: to[t]})
	return Console{Host: resp.GetHost(), Port: int(resp.GetPort()), Path: resp.GetPath()}, err
}

func (c *client) Metrics(ctx context.Context, id string) (Metrics, error) {
	r, err := c.rpc.Metrics(ctx, &pb.MetricsRequest{Id: id})
	return Metrics{
		CPUTime: time.Duration(r.GetCpuTimeNs()), MemoryMiB: int(r.GetMemoryMib()), DiskReadBytes: r.GetDiskReadBytes(),
		DiskWriteBytes: r.GetDiskWriteBytes(), NetReceivedBytes: r.GetNetReceivedBytes(), NetSentBytes: r.GetNetSentBytes(),
	}, err
}

func (c *client) Diagnostics(ctx context.Context, id string) (map[string]string, error) {
	r, err := c.rpc.Diagnostics(ctx, &pb.DiagnosticsRequest{Id: id})
	return r.GetDiagnostics(), err
}

func (c *client) Events(ctx context.Context, f func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx) // frees the stream if f fails
	defer cancel()
	stream, err := c.rpc.Events(ctx, &pb.EventsRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Unavailable, "read events: the driver ended the stream")
		}
		if err != nil {
			return err
		}
		e := Event{ServerID: r.GetServerId(), Time: fromUnixNano(r.GetTimeUnixNs())}
		for t, n := range toEvent {
			if n == r.GetType() {
				e.Type = t
			}
		}
		if e.Type == "" {
			continue // only newer drivers have this type of event
		}
		if err := f(e); err != nil {
			return err
		}
	}
}
