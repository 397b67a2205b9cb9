package conductor_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
)

// TestNoScheduler: while no scheduler answers, the log has one WARN in a minute, although the call is repeated. When a scheduler answers, it has one INFO.
func TestNoScheduler(t *testing.T) {
	t.Parallel()
	log, lines := logtest.New()
	var down atomic.Bool
	var refused atomic.Int32
	fail := func(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
		if info.Interface == compute.Scheduler.Name && down.Load() {
			refused.Add(1)
			return nil, fault.New(fault.Unavailable, "no server")
		}
		return next(ctx, req)
	}
	var warnings, ends int
	eachWith(t, conductor.Config{Logger: log}, rpc.ClientConfig{Interceptors: []rpc.Interceptor{fail}}, func(b *bench) {
		b.start()
		down.Store(true)
		refused.Store(0)
		id := uuid.NewString()
		if err := b.store.CreateServer(b.Context(), &store.Server{ID: id, Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, Hostname: "s"}); err != nil {
			b.Fatal(err)
		}
		waittest.Until(b, "the third call", func() bool { return refused.Load() >= 3 })
		warnings++
		if n := lines.Count(slog.LevelWarn, "call of a scheduler failed"); n != warnings {
			b.Errorf("%d warnings, want %d", n, warnings)
		}
		down.Store(false)
		get(b, b.builds)
		ends++
		if n := lines.Count(slog.LevelInfo, "call of a scheduler works again"); n != ends {
			b.Errorf("%d lines about the end, want %d", n, ends)
		}
	})
}
