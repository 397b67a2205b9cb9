package membus_test

import (
	"context"
	"strings"
	"testing"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// BenchmarkCall is the round trip of a call in one process.
func BenchmarkCall(b *testing.B) {
	echo := rpc.Method[string, string]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	client := rpctest.Serve(b, iface, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, s *string) (*string, error) { return s, nil })
	})
	req := strings.Repeat("x", 1024)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := rpc.Call(b.Context(), client, echo, rpc.Any, &req); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
