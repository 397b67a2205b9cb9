package component

import (
	"context"
	"log/slog"
	"time"

	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/internal/outage"
)

// Heartbeat returns a function for a loop that runs every second or more often, such as service.Loop. The function calls f when a heartbeat of the
// member is due: every report_interval, and after failures with a back-off that begins with a second and doubles up to report_interval. Of several
// failures in a row, the log has a WARN for the first failure and then at most one in a minute, and an INFO for the next success. While the process stops, failures are
// expected, because the call is canceled, or the process that writes the heartbeats has drained. These failures are logged at DEBUG.
//
// Heartbeat is for members that the component reports through an RPC interface of its own, see [ServerConfig]. The result is for one goroutine
// at a time. A call blocks as long as f does. The context of f ends after report_interval, or after 1 s if report_interval is shorter.
func (p *Process[O]) Heartbeat(member string, f func(ctx context.Context) error) func(ctx context.Context) error {
	var next time.Time
	var log outage.Log
	failed, every := 0, p.base.ReportInterval
	return func(life context.Context) error {
		if time.Now().Before(next) {
			return nil
		}
		ctx, cancel := context.WithTimeout(life, max(every, time.Second))
		defer cancel()
		err := f(ctx)
		switch {
		case err != nil && (life.Err() != nil || p.draining.Load()):
			p.Log.DebugContext(ctx, "heartbeat failed while the process stops", "member", member, "error", err)
		case err == nil:
			log.Note(ctx, p.Log, slog.LevelWarn, "heartbeat", nil, false, "member", member)
			failed, next = 0, time.Now().Add(every)
			return nil
		default:
			log.Note(ctx, p.Log, slog.LevelWarn, "heartbeat", err, false, "member", member)
		}
		failed++
		next = time.Now().Add(backoff.Exponential(failed, time.Second, every))
		return nil
	}
}
