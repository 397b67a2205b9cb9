package compute_test

import (
	"context"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

func promise[Req, Resp any](s *rpc.Server, m rpc.Method[Req, Resp]) {
	rpc.Handle(s, m, func(context.Context, *Req) (*Resp, error) { return new(Resp), nil })
}

// TestContracts: processes of different releases talk to each other, so what was
// promised is kept within a major version.
func TestContracts(t *testing.T) {
	t.Parallel()
	rpctest.Contract(t, "testdata/compute.json", compute.Worker, func(s *rpc.Server) {
		promise(s, compute.Build)
		promise(s, compute.Destroy)
		promise(s, compute.Act)
		promise(s, compute.ReadConsole)
	})
	rpctest.Contract(t, "testdata/conductor.json", compute.Conductor, func(s *rpc.Server) {
		promise(s, compute.Wake)
		promise(s, compute.BeginBuild)
		promise(s, compute.EndBuild)
		promise(s, compute.EndAct)
		promise(s, compute.EndDestroy)
		promise(s, compute.ReportHost)
		promise(s, compute.Strangers)
		promise(s, compute.ClaimHost)
		promise(s, compute.LeaveHost)
	})
	rpctest.Contract(t, "testdata/scheduler.json", compute.Scheduler, func(s *rpc.Server) {
		promise(s, compute.Select)
	})
}
