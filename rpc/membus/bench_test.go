package membus_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// BenchmarkCall measures the round trip of a call in one process, with 1 KiB each way.
func BenchmarkCall(b *testing.B) {
	echo := rpc.Method[string, string]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	client := rpctest.Serve(b, iface, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, s *string) (*string, error) { return s, nil })
	})
	req := strings.Repeat("x", 1024)
	call := func() {
		if _, err := rpc.Call(b.Context(), client, echo, rpc.Any, &req); err != nil {
			b.Error(err)
		}
	}
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		times := make([]time.Duration, 0, b.N)
		for b.Loop() {
			start := time.Now()
			call()
			times = append(times, time.Since(start))
		}
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1e3, "p50-us")
	})
	b.Run("many", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				call()
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	})
}

// BenchmarkCompare measures calls from several goroutines, with 1 KiB each way, as the benchmarks of other buses do. The benchmark
// ignores -benchtime. Set the duration with -args -rounds and -slice.
func BenchmarkCompare(b *testing.B) {
	echo := rpc.Method[string, string]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
	client := rpctest.Serve(b, iface, func(s *rpc.Server) {
		rpc.Handle(s, echo, func(_ context.Context, s *string) (*string, error) { return s, nil })
	})
	req := strings.Repeat("x", 1024)
	table := compare.New()
	for _, callers := range []int{1, 16, 64} {
		table.Row("call with JSON", callers, compare.Contender{Name: "rpc on membus", Op: func() {
			if _, err := rpc.Call(b.Context(), client, echo, rpc.Any, &req); err != nil {
				b.Error(err)
			}
		}})
	}
}
