package api

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/api"
)

// ruleDiagnostics is the name of the rule, as in Nova.
const ruleDiagnostics = "os_compute_api:os-server-diagnostics"

var diagnosticsRules = []rule{
	{ruleDiagnostics, "rule:context_is_admin", "Show what the driver reports about a server", "GET", "/servers/{server_id}/diagnostics"},
}

func (s *server) diagnosticsRoutes(all, _ *api.Group) {
	def := api.Route{Pattern: "GET /servers/{id}/diagnostics", Rule: ruleDiagnostics, Summary: "Show what the driver reports about a server", Errors: []int{notFound, conflict, unavailable}}
	before, since := def, def
	before.Max, since.Min, since.Query = "2.47", "2.48", noQuery
	api.HandleTarget(all, before, s.target(), s.diagnostics)
	api.HandleTarget(all, since, s.target(), s.diagnosis)
}

// diagnose asks the compute service of a server's host for the state of the server.
func (s *server) diagnose(ctx context.Context, srv *store.Server) (*compute.DiagnoseReply, error) {
	if srv.Host == nil {
		return nil, store.NotReady(srv.ID)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.Diagnose, *srv.Host, &compute.DiagnoseRequest{ServerID: srv.ID})
	switch {
	case errors.Is(err, rpc.ErrVersionCap), errors.Is(err, rpc.ErrUnsupportedVersion): // a compute service of an earlier release
		return nil, notImplemented(store.ErrNotSupported)
	case err != nil && fault.CodeOf(err) == fault.Unimplemented:
		return nil, notImplemented(store.ErrNotSupported)
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "diagnostics not read", "server", srv.ID, "host", *srv.Host, "error", err)
		return nil, hideDetails(err, "Unable to get diagnostics of instance "+srv.ID+".")
	}
	return got, nil
}

// diagnostics returns the driver's diagnostics, under the names that the driver chooses. The metrics have the names that Nova uses with libvirt.
func (s *server) diagnostics(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (map[string]any, error) {
	got, err := s.diagnose(ctx, srv)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"memory": got.Instance.Resources.MemoryMiB << 10}
	for name, text := range got.Diagnostics {
		out[name] = text
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			out[name] = n
		}
	}
	if m := got.Metrics; m != nil {
		out["cpu0_time"], out["vda_read"], out["vda_write"] = m.CPUTime.Nanoseconds(), m.DiskReadBytes, m.DiskWriteBytes
		out["vnet1_rx"], out["vnet1_tx"] = m.NetReceivedBytes, m.NetSentBytes
	}
	return out, nil
}

// diagnosisView is the reply since microversion 2.48. A value that no driver reports is null.
type diagnosisView struct {
	State        string    `json:"state" enum:"pending,running,paused,shutdown,crashed,suspended"`
	Driver       string    `json:"driver" enum:"ironic,libvirt,vmwareapi,xenapi"`
	Hypervisor   *string   `json:"hypervisor"`
	HypervisorOS *string   `json:"hypervisor_os"`
	Uptime       *int      `json:"uptime"`
	ConfigDrive  bool      `json:"config_drive"`
	CPUs         int       `json:"num_cpus"`
	NICs         int       `json:"num_nics"`
	Disks        int       `json:"num_disks"`
	DiskDetails  []diskUse `json:"disk_details"`
	CPUDetails   []cpuUse  `json:"cpu_details"`
	NICDetails   []nicUse  `json:"nic_details"`
	Memory       memoryUse `json:"memory_details"`
}

type diskUse struct {
	ReadBytes     *int64 `json:"read_bytes"`
	ReadRequests  *int64 `json:"read_requests"`
	WriteBytes    *int64 `json:"write_bytes"`
	WriteRequests *int64 `json:"write_requests"`
	Errors        *int64 `json:"errors_count"`
}

type cpuUse struct {
	ID          *int64 `json:"id"`
	Time        *int64 `json:"time"`
	Utilisation *int64 `json:"utilisation"`
}

type nicUse struct {
	MAC       *string `json:"mac_address"`
	RxOctets  *int64  `json:"rx_octets"`
	RxErrors  *int64  `json:"rx_errors"`
	RxDrop    *int64  `json:"rx_drop"`
	RxPackets *int64  `json:"rx_packets"`
	RxRate    *int64  `json:"rx_rate"`
	TxOctets  *int64  `json:"tx_octets"`
	TxErrors  *int64  `json:"tx_errors"`
	TxDrop    *int64  `json:"tx_drop"`
	TxPackets *int64  `json:"tx_packets"`
	TxRate    *int64  `json:"tx_rate"`
}

type memoryUse struct {
	Maximum *int64 `json:"maximum"`
	Used    *int64 `json:"used"`
}

// diagnosis returns the diagnostics in the form of microversion 2.48. The driver is always shown as libvirt: Nova has a closed list of drivers, and shows
// other drivers, such as its own fake driver, as libvirt. As in Nova's libvirt driver, the uptime is the number of seconds since the server was launched.
func (s *server) diagnosis(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (out diagnosisView, err error) {
	got, err := s.diagnose(ctx, srv)
	if err != nil {
		return out, err
	}
	is := &got.Instance
	out = diagnosisView{
		State: strings.ToLower(is.Power.String()), Driver: "libvirt", Hypervisor: &got.Driver, ConfigDrive: srv.ConfigDrive, CPUs: is.Resources.VCPUs, NICs: len(is.Interfaces), Disks: 1 + len(is.Volumes),
		DiskDetails: []diskUse{}, CPUDetails: []cpuUse{}, NICDetails: []nicUse{}, Memory: memoryUse{Maximum: new(int64(is.Resources.MemoryMiB))},
	}
	if srv.LaunchedAt != nil {
		out.Uptime = new(int(time.Since(*srv.LaunchedAt).Seconds()))
	}
	if is.Power == compute.NoState {
		out.State = "pending"
	}
	if m := got.Metrics; m != nil {
		out.DiskDetails = append(out.DiskDetails, diskUse{ReadBytes: &m.DiskReadBytes, WriteBytes: &m.DiskWriteBytes})
		for i := range is.Resources.VCPUs {
			out.CPUDetails = append(out.CPUDetails, cpuUse{ID: new(int64(i)), Time: new(m.CPUTime.Nanoseconds() / int64(is.Resources.VCPUs))})
		}
		out.Memory.Used = new(int64(m.MemoryMiB))
		if out.NICs == 1 {
			out.NICDetails = append(out.NICDetails, nicUse{RxOctets: &m.NetReceivedBytes, TxOctets: &m.NetSentBytes})
		}
	}
	return out, nil
}
