package compute

import (
	"context"
	"errors"
	"log/slog"

	"github.com/armature-go/armature/rpc"
)

// NextRequest is the request of the methods that only the next release has.
type NextRequest struct {
	From string `json:"from"`
}

// The methods that only the next release has, one of each interface.
var (
	NextWorker    = rpc.Define(rpc.Method[NextRequest, rpc.None]{Interface: Worker, Name: "next", Since: v17})
	NextConductor = rpc.Define(rpc.Method[NextRequest, rpc.None]{Interface: Conductor, Name: "next", Since: v18})
	NextScheduler = rpc.Define(rpc.Method[NextRequest, rpc.None]{Interface: Scheduler, Name: "next", Since: v13})
)

// SendNext sends a method of the next release if all servers have it. It logs a line if that was not so.
func SendNext(ctx context.Context, c *rpc.Client, m rpc.Method[NextRequest, rpc.None], host string) {
	if !c.Allows(m.Interface, m.Since) {
		return
	}
	if _, err := rpc.Call(ctx, c, m, host, &NextRequest{From: host}); errors.Is(err, rpc.ErrUnsupportedVersion) || errors.Is(err, rpc.ErrNoSuchMethod) {
		slog.Error("next: sent too early", "interface", m.Interface.Name, "host", host, "error", err)
	}
}

// ServeNext handles these methods.
func ServeNext(context.Context, *NextRequest) (*rpc.None, error) {
	slog.Info("next: served")
	return &rpc.None{}, nil
}
