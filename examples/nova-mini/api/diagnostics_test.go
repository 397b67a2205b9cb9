package api_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// undiagnosed has the places of diagnostics that no driver of nova-mini reports, with this reason.
func undiagnosed() map[string]string {
	const none = "no driver reports it"
	out := map[string]string{"hypervisor_os": none}
	for name := range strings.FieldsSeq("vda_errors vda_read_req vda_write_req vnet1_rx_drop vnet1_rx_errors vnet1_rx_packets vnet1_tx_drop vnet1_tx_errors vnet1_tx_packets") { // before 2.48
		out["-"+name] = none
	}
	for name := range strings.FieldsSeq("disk_details[].read_requests disk_details[].write_requests disk_details[].errors_count cpu_details[].utilisation") {
		out[name] = none
	}
	for name := range strings.FieldsSeq("mac_address rx_errors rx_drop rx_packets rx_rate tx_errors tx_drop tx_packets tx_rate") {
		out["nic_details[]."+name] = none
	}
	return out
}

// TestDiagnosticsSamples: the console log and the diagnostics of a server have the names and types of Nova's samples, as far as drivers report them.
func TestDiagnosticsSamples(t *testing.T) {
	t.Parallel()
	samplesOf(t, "os-server-diagnostics")
	eachCloud(t, func(c *cloud) {
		srv := rpc.NewServer(c.bus, rpc.ServerConfig{Interface: compute.Worker, Host: "n1", Logger: slog.New(slog.DiscardHandler)})
		rpc.Handle(srv, compute.Diagnose, func(context.Context, *compute.DiagnoseRequest) (*compute.DiagnoseReply, error) {
			return &compute.DiagnoseReply{
				Driver: "kvm", Instance: compute.Instance{Power: compute.Running, Resources: compute.Resources{VCPUs: 1, MemoryMiB: 512}, Interfaces: []string{"p"}},
				Metrics: &compute.Metrics{CPUTime: time.Second, MemoryMiB: 100, DiskReadBytes: 1, DiskWriteBytes: 2, NetReceivedBytes: 3, NetSentBytes: 4},
			}, nil
		})
		rpc.Handle(srv, compute.ReadConsole, func(context.Context, *compute.ConsoleRequest) (*compute.ConsoleReply, error) {
			return &compute.ConsoleReply{Output: "a\nb"}, nil
		})
		if err := srv.Start(rpctest.Partial(c.Context())); err != nil {
			t.Fatal(err)
		}
		c.Cleanup(func() { _ = srv.Stop(context.Background()) })
		id := c.addActive("a")
		c.exec(`UPDATE servers SET config_drive = TRUE, launched_at = ? WHERE id = ?`, time.Now().UTC().Add(-time.Hour), id)
		c.compareWith(nil, "2.1", "member", "POST", "/servers/"+id+"/action", "os-console-output/console-output-post-req", "os-console-output/console-output-post-resp", 200)
		at := "/servers/" + id + "/diagnostics"
		c.compareWith(undiagnosed(), "2.1", "admin", "GET", at, "", "os-server-diagnostics/server-diagnostics-get-resp", 200)
		reply := c.compareWith(undiagnosed(), "2.48", "admin", "GET", at, "", "os-server-diagnostics/v2.48/server-diagnostics-get-resp", 200)
		// As in Nova, the config drive is that of the server, and the uptime is the number of seconds since its start.
		if !strings.Contains(reply, `"config_drive":true`) || !strings.Contains(reply, `"uptime":36`) {
			t.Error(reply)
		}
	})
}
