package compute

import (
	"math"
	"time"

	pb "github.com/armature-go/armature/examples/nova-mini/compute/computepb"
)

func specFrom(r *pb.SpawnRequest) Spec {
	return Spec{
		ID: r.GetId(), Name: r.GetName(), ProjectID: r.GetProjectId(), ImageRef: r.GetImageRef(),
		Resources: fromResources(r.GetResources()), Metadata: r.GetMetadata(),
		Hostname: r.GetHostname(), ConfigDrive: r.GetConfigDrive(), UserData: r.GetUserData(), AdminPass: r.GetAdminPass(), PublicKey: r.GetPublicKey(), Files: fromFiles(r.GetFiles()), InstanceName: r.GetInstanceName(),
		Interfaces: fromInterfaces(r.GetInterfaces()), KeyName: r.GetKeyName(), LaunchIndex: int(r.GetLaunchIndex()), Zone: r.GetAvailabilityZone(),
		EphemeralGiB: int(r.GetEphemeralGib()), SwapMiB: int(r.GetSwapMib()),
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

func toInterfaces(list []Interface) (out []*pb.Interface) {
	for i := range list {
		out = append(out, toInterface(&list[i]))
	}
	return out
}

func toInterface(i *Interface) *pb.Interface {
	out := &pb.Interface{Id: i.ID, Mac: i.MAC, Network: i.Network, NetworkId: i.NetworkID, Mtu: int64(i.MTU), Tag: i.Tag}
	for _, a := range i.Addresses {
		one := &pb.GuestAddress{Prefix: a.Prefix, Dhcp: a.DHCP, Ipv6Mode: a.IPv6Mode, Gateway: a.Gateway, Dns: a.DNS}
		for _, r := range a.Routes {
			one.Routes = append(one.Routes, &pb.Route{Destination: r.Destination, Gateway: r.Gateway})
		}
		out.Addresses = append(out.Addresses, one)
	}
	return out
}

func fromInterfaces(list []*pb.Interface) (out []Interface) {
	for _, i := range list {
		out = append(out, fromInterface(i))
	}
	return out
}

func fromInterface(i *pb.Interface) Interface {
	out := Interface{ID: i.GetId(), MAC: i.GetMac(), Network: i.GetNetwork(), NetworkID: i.GetNetworkId(), MTU: int(i.GetMtu()), Tag: i.GetTag()}
	for _, a := range i.GetAddresses() {
		one := GuestAddress{Prefix: a.GetPrefix(), DHCP: a.GetDhcp(), IPv6Mode: a.GetIpv6Mode(), Gateway: a.GetGateway(), DNS: a.GetDns()}
		for _, r := range a.GetRoutes() {
			one.Routes = append(one.Routes, Route{r.GetDestination(), r.GetGateway()})
		}
		out.Addresses = append(out.Addresses, one)
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

// fromMillis returns a duration of ms milliseconds. A duration that is too long for the type becomes the longest duration with the same sign.
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

// toUnixNano returns the nanoseconds since 1970 (UTC), or 0 for the zero time.
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
