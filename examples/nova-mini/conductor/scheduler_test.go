package conductor_test

import (
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
)

// TestNoScheduler: while no scheduler answers, the log has one WARN in a minute, although the call is repeated. When a scheduler answers, it has one INFO.
func TestNoScheduler(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		var refused atomic.Int32
		fail := func(info rpc.Info) error {
			if info.Interface != compute.Scheduler.Name {
				return nil
			}
			refused.Add(1)
			return fault.New(fault.Unavailable, "no server")
		}
		b.start()
		b.refuse.Store(&fail)
		id := uuid.NewString()
		if err := b.store.CreateServer(b.Context(), &store.Server{ID: id, Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, Hostname: "s"}); err != nil {
			b.Fatal(err)
		}
		waittest.Until(b, "the third call", func() bool { return refused.Load() >= 3 })
		if n := b.lines.Count(slog.LevelWarn, "call of a scheduler failed"); n != 1 {
			b.Errorf("%d warnings, want 1", n)
		}
		b.refuse.Store(nil)
		get(b, b.builds)
		if n := b.lines.Count(slog.LevelInfo, "call of a scheduler works again"); n != 1 {
			b.Errorf("%d lines about the end, want 1", n)
		}
	})
}
