package compute

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	pb "github.com/armature-go/armature/examples/nova-mini/compute/computepb"
	"github.com/armature-go/armature/fault"
)

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
	return &pb.RescueResponse{}, s.d.Rescue(ctx, r.GetId(), r.GetImageRef(), r.GetAdminPass())
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

func (s *server) InjectNMI(ctx context.Context, r *pb.InjectNMIRequest) (*pb.InjectNMIResponse, error) {
	return &pb.InjectNMIResponse{}, s.d.InjectNMI(ctx, r.GetId())
}

func (s *server) Platforms(ctx context.Context, _ *pb.PlatformsRequest) (*pb.PlatformsResponse, error) {
	list, err := s.d.Platforms(ctx)
	resp := &pb.PlatformsResponse{}
	for _, p := range list {
		resp.Platforms = append(resp.Platforms, &pb.Platform{Arch: p.Arch, Type: p.Type, Mode: p.Mode})
	}
	return resp, err
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
	return &pb.AttachInterfaceResponse{}, s.d.AttachInterface(ctx, r.GetId(), fromInterface(r.GetInterface()))
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
