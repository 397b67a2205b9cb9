package compute

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/armature-go/armature/driver"
	pb "github.com/armature-go/armature/examples/nova-mini/compute/computepb"
	"github.com/armature-go/armature/fault"
)

// Kind runs compute drivers as programs, such as armature-compute-fake.
var Kind = driver.Kind[Driver]{
	Name:     "compute",
	Protocol: 1,
	Register: func(s grpc.ServiceRegistrar, d Driver) { pb.RegisterComputeServer(s, &server{d: d}) },
	Client: func(c grpc.ClientConnInterface, _ int) Driver {
		return &client{driver.Remote(c), pb.NewComputeClient(c)}
	},
}

// server serves a Driver as the service of compute.proto.
type server struct {
	pb.UnimplementedComputeServer

	d Driver
}

func (s *server) Spawn(ctx context.Context, r *pb.SpawnRequest) (*pb.SpawnResponse, error) {
	return &pb.SpawnResponse{}, s.d.Spawn(ctx, specFrom(r))
}

func (s *server) Destroy(ctx context.Context, r *pb.DestroyRequest) (*pb.DestroyResponse, error) {
	return &pb.DestroyResponse{}, s.d.Destroy(ctx, r.GetId())
}

func (s *server) PowerOn(ctx context.Context, r *pb.PowerOnRequest) (*pb.PowerOnResponse, error) {
	return &pb.PowerOnResponse{}, s.d.PowerOn(ctx, r.GetId())
}

func (s *server) PowerOff(ctx context.Context, r *pb.PowerOffRequest) (*pb.PowerOffResponse, error) {
	return &pb.PowerOffResponse{}, s.d.PowerOff(ctx, r.GetId(), fromMillis(r.GetGraceMs()))
}

func (s *server) Reboot(ctx context.Context, r *pb.RebootRequest) (*pb.RebootResponse, error) {
	return &pb.RebootResponse{}, s.d.Reboot(ctx, r.GetId(), r.GetHard())
}

func (s *server) Pause(ctx context.Context, r *pb.PauseRequest) (*pb.PauseResponse, error) {
	return &pb.PauseResponse{}, s.d.Pause(ctx, r.GetId())
}

func (s *server) Unpause(ctx context.Context, r *pb.UnpauseRequest) (*pb.UnpauseResponse, error) {
	return &pb.UnpauseResponse{}, s.d.Unpause(ctx, r.GetId())
}

func (s *server) Suspend(ctx context.Context, r *pb.SuspendRequest) (*pb.SuspendResponse, error) {
	return &pb.SuspendResponse{}, s.d.Suspend(ctx, r.GetId())
}

func (s *server) Resume(ctx context.Context, r *pb.ResumeRequest) (*pb.ResumeResponse, error) {
	return &pb.ResumeResponse{}, s.d.Resume(ctx, r.GetId())
}

func (s *server) Resize(ctx context.Context, r *pb.ResizeRequest) (*pb.ResizeResponse, error) {
	return &pb.ResizeResponse{}, s.d.Resize(ctx, r.GetId(), fromResources(r.GetResources()))
}

func (s *server) ConfirmResize(ctx context.Context, r *pb.ConfirmResizeRequest) (*pb.ConfirmResizeResponse, error) {
	return &pb.ConfirmResizeResponse{}, s.d.ConfirmResize(ctx, r.GetId())
}

func (s *server) RevertResize(ctx context.Context, r *pb.RevertResizeRequest) (*pb.RevertResizeResponse, error) {
	return &pb.RevertResizeResponse{}, s.d.RevertResize(ctx, r.GetId())
}

func (s *server) Rescue(ctx context.Context, r *pb.RescueRequest) (*pb.RescueResponse, error) {
	return &pb.RescueResponse{}, s.d.Rescue(ctx, r.GetId(), r.GetImageRef())
}

func (s *server) Unrescue(ctx context.Context, r *pb.UnrescueRequest) (*pb.UnrescueResponse, error) {
	return &pb.UnrescueResponse{}, s.d.Unrescue(ctx, r.GetId())
}

func (s *server) Snapshot(ctx context.Context, r *pb.SnapshotRequest) (*pb.SnapshotResponse, error) {
	return &pb.SnapshotResponse{}, s.d.Snapshot(ctx, r.GetId(), r.GetImageRef())
}

func (s *server) RemoveImage(ctx context.Context, r *pb.RemoveImageRequest) (*pb.RemoveImageResponse, error) {
	return &pb.RemoveImageResponse{}, s.d.RemoveImage(ctx, r.GetImageRef())
}

func (s *server) SetPassword(ctx context.Context, r *pb.SetPasswordRequest) (*pb.SetPasswordResponse, error) {
	return &pb.SetPasswordResponse{}, s.d.SetPassword(ctx, r.GetId(), r.GetPassword())
}

func (s *server) LiveMigrate(ctx context.Context, r *pb.LiveMigrateRequest) (*pb.LiveMigrateResponse, error) {
	return &pb.LiveMigrateResponse{}, s.d.LiveMigrate(ctx, r.GetId(), r.GetHost())
}

func (s *server) AttachVolume(ctx context.Context, r *pb.AttachVolumeRequest) (*pb.AttachVolumeResponse, error) {
	return &pb.AttachVolumeResponse{}, s.d.AttachVolume(ctx, r.GetId(), Volume{r.GetVolume().GetId(), r.GetVolume().GetPath(), r.GetVolume().GetReadOnly()})
}

func (s *server) DetachVolume(ctx context.Context, r *pb.DetachVolumeRequest) (*pb.DetachVolumeResponse, error) {
	return &pb.DetachVolumeResponse{}, s.d.DetachVolume(ctx, r.GetId(), r.GetVolumeId())
}

func (s *server) AttachInterface(ctx context.Context, r *pb.AttachInterfaceRequest) (*pb.AttachInterfaceResponse, error) {
	return &pb.AttachInterfaceResponse{}, s.d.AttachInterface(ctx, r.GetId(), Interface{r.GetInterface().GetId(), r.GetInterface().GetMac(), r.GetInterface().GetNetwork()})
}

func (s *server) DetachInterface(ctx context.Context, r *pb.DetachInterfaceRequest) (*pb.DetachInterfaceResponse, error) {
	return &pb.DetachInterfaceResponse{}, s.d.DetachInterface(ctx, r.GetId(), r.GetInterfaceId())
}

func (s *server) List(ctx context.Context, _ *pb.ListRequest) (*pb.ListResponse, error) {
	list, err := s.d.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ListResponse{Instances: make([]*pb.Instance, len(list))}
	for i := range list {
		resp.Instances[i] = toInstance(&list[i])
	}
	return resp, nil
}

func (s *server) Get(ctx context.Context, r *pb.GetRequest) (*pb.GetResponse, error) {
	inst, err := s.d.Get(ctx, r.GetId())
	return &pb.GetResponse{Instance: toInstance(&inst)}, err
}

func (s *server) Resources(ctx context.Context, _ *pb.ResourcesRequest) (*pb.ResourcesResponse, error) {
	have, err := s.d.Resources(ctx)
	return &pb.ResourcesResponse{Resources: toResources(have)}, err
}

func (s *server) ConsoleLog(r *pb.ConsoleLogRequest, stream grpc.ServerStreamingServer[pb.ConsoleLogResponse]) error {
	return s.d.ConsoleLog(stream.Context(), r.GetId(), int(r.GetLines()), writer(func(part []byte) error {
		return stream.Send(&pb.ConsoleLogResponse{Data: part})
	}))
}

// writer is an io.Writer that sends its data in parts of at most 64 KiB.
type writer func(part []byte) error

func (w writer) Write(b []byte) (int, error) {
	sent := 0
	for part := range slices.Chunk(b, 64<<10) {
		if err := w(part); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return sent, nil
}

func (s *server) Console(ctx context.Context, r *pb.ConsoleRequest) (*pb.ConsoleResponse, error) {
	t, ok := map[pb.ConsoleType]ConsoleType{pb.ConsoleType_CONSOLE_TYPE_VNC: VNC, pb.ConsoleType_CONSOLE_TYPE_SERIAL: Serial}[r.GetType()]
	if !ok {
		return nil, fault.New(fault.Invalid, "console type %v does not exist: use vnc or serial", r.GetType())
	}
	c, err := s.d.Console(ctx, r.GetId(), t)
	return &pb.ConsoleResponse{Host: c.Host, Port: int64(c.Port), Path: c.Path}, err
}

func (s *server) Metrics(ctx context.Context, r *pb.MetricsRequest) (*pb.MetricsResponse, error) {
	m, err := s.d.Metrics(ctx, r.GetId())
	return &pb.MetricsResponse{
		CpuTimeNs: m.CPUTime.Nanoseconds(), MemoryMib: int64(m.MemoryMiB), DiskReadBytes: m.DiskReadBytes,
		DiskWriteBytes: m.DiskWriteBytes, NetReceivedBytes: m.NetReceivedBytes, NetSentBytes: m.NetSentBytes,
	}, err
}

func (s *server) Diagnostics(ctx context.Context, r *pb.DiagnosticsRequest) (*pb.DiagnosticsResponse, error) {
	d, err := s.d.Diagnostics(ctx, r.GetId())
	return &pb.DiagnosticsResponse{Diagnostics: d}, err
}

func (s *server) Events(_ *pb.EventsRequest, stream grpc.ServerStreamingServer[pb.EventsResponse]) error {
	return s.d.Events(stream.Context(), func(e Event) error {
		return stream.Send(&pb.EventsResponse{ServerId: e.ServerID, Type: toEvent[e.Type], TimeUnixNs: toUnixNano(e.Time)})
	})
}

// client is a Driver that calls the service of compute.proto.
type client struct {
	driver.Driver

	rpc pb.ComputeClient
}

func (c *client) Spawn(ctx context.Context, spec Spec) error {
	_, err := c.rpc.Spawn(ctx, &pb.SpawnRequest{
		Id: spec.ID, Name: spec.Name, ProjectId: spec.ProjectID, ImageRef: spec.ImageRef, Resources: toResources(spec.Resources), Metadata: spec.Metadata,
		Hostname: spec.Hostname, ConfigDrive: spec.ConfigDrive, UserData: spec.UserData, AdminPass: spec.AdminPass, PublicKey: spec.PublicKey, Files: toFiles(spec.Files),
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

func (c *client) Rescue(ctx context.Context, id, imageRef string) error {
	_, err := c.rpc.Rescue(ctx, &pb.RescueRequest{Id: id, ImageRef: imageRef})
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
	_, err := c.rpc.AttachInterface(ctx, &pb.AttachInterfaceRequest{Id: id, Interface: &pb.Interface{Id: i.ID, Mac: i.MAC, Network: i.Network}})
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
			continue // a type of a newer driver
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

func specFrom(r *pb.SpawnRequest) Spec {
	return Spec{
		ID: r.GetId(), Name: r.GetName(), ProjectID: r.GetProjectId(), ImageRef: r.GetImageRef(),
		Resources: fromResources(r.GetResources()), Metadata: r.GetMetadata(),
		Hostname: r.GetHostname(), ConfigDrive: r.GetConfigDrive(), UserData: r.GetUserData(), AdminPass: r.GetAdminPass(), PublicKey: r.GetPublicKey(), Files: fromFiles(r.GetFiles()),
	}
}

func toFiles(list []File) (out []*pb.GuestFile) {
	for _, f := range list {
		out = append(out, &pb.GuestFile{Path: f.Path, Content: f.Content})
	}
	return out
}

func fromFiles(list []*pb.GuestFile) (out []File) {
	for _, f := range list {
		out = append(out, File{f.GetPath(), f.GetContent()})
	}
	return out
}

func toResources(r Resources) *pb.Resources {
	return &pb.Resources{Vcpus: int64(r.VCPUs), MemoryMib: int64(r.MemoryMiB), DiskGib: int64(r.DiskGiB)}
}

func fromResources(r *pb.Resources) Resources {
	return Resources{VCPUs: int(r.GetVcpus()), MemoryMiB: int(r.GetMemoryMib()), DiskGiB: int(r.GetDiskGib())}
}

func toInstance(i *Instance) *pb.Instance {
	return &pb.Instance{
		Id: i.ID, Name: i.Name, Power: pb.PowerState(i.Power), Resources: toResources(i.Resources),
		Rescued: i.Rescued, Volumes: i.Volumes, Interfaces: i.Interfaces,
	}
}

func fromInstance(i *pb.Instance) Instance {
	return Instance{
		ID: i.GetId(), Name: i.GetName(), Power: PowerState(i.GetPower()), Resources: fromResources(i.GetResources()),
		Rescued: i.GetRescued(), Volumes: i.GetVolumes(), Interfaces: i.GetInterfaces(),
	}
}

// toMillis returns d in milliseconds, rounded up.
func toMillis(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		ms++
	}
	return ms
}

// fromMillis returns a duration of ms milliseconds. A duration that is too long for the type becomes the longest one of its sign.
func fromMillis(ms int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Millisecond)
	switch {
	case ms > most:
		return math.MaxInt64
	case ms < -most:
		return math.MinInt64
	}
	return time.Duration(ms) * time.Millisecond
}

// toUnixNano returns a time in nanoseconds since 1970; 0 for the zero time.
func toUnixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// fromUnixNano is the inverse of toUnixNano.
func fromUnixNano(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

var toEvent = map[EventType]pb.EventType{
	EventBegan:     pb.EventType_EVENT_TYPE_BEGAN,
	EventStarted:   pb.EventType_EVENT_TYPE_STARTED,
	EventStopped:   pb.EventType_EVENT_TYPE_STOPPED,
	EventPaused:    pb.EventType_EVENT_TYPE_PAUSED,
	EventSuspended: pb.EventType_EVENT_TYPE_SUSPENDED,
	EventCrashed:   pb.EventType_EVENT_TYPE_CRASHED,
	EventDestroyed: pb.EventType_EVENT_TYPE_DESTROYED,
}
