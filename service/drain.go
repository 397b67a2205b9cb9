package service

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// drain drains and then stops the first n parts, the last one first.
func (a *App) drain(life context.Context, n int) error {
	wasReady := a.phase.Swap(draining) == running
	close(a.drains)
	begin := time.Now()
	logger := a.cfg.Logger.With("service", a.cfg.Name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(life), a.cfg.DrainTimeout)
	defer cancel()
	if life.Err() != nil {
		logger.InfoContext(ctx, "draining", "reason", context.Cause(life), "timeout", a.cfg.DrainTimeout)
	}
	if wasReady && a.cfg.DrainDelay > 0 {
		<-time.After(a.cfg.DrainDelay)
	}
	// The work is logged just before the deadline, because work that is cut off leaves the list.
	defer time.AfterFunc(a.cfg.DrainTimeout-min(a.cfg.DrainTimeout/10, 20*time.Millisecond), func() { a.logInflight(ctx, logger) }).Stop()
	var errs []error
	var late []string
	callPart := func(p namedPart, doing string, f func(context.Context) error) {
		switch err := callWithin(ctx, f); {
		case err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()):
			if !slices.Contains(late, p.name) {
				late = append(late, p.name)
			}
		case err != nil:
			errs = append(errs, p.failed(doing, err))
		}
	}
	for _, p := range slices.Backward(a.parts[:n]) {
		if d, ok := p.Part.(Drainer); ok {
			callPart(p, "drain", d.Drain)
		}
	}
	for _, p := range slices.Backward(a.parts[:n]) {
		callPart(p, "stop", p.Stop)
	}
	if late != nil {
		errs = append(errs, fault.New(fault.Timeout, "%s: cut off after %s: %s",
			a.cfg.Name, a.cfg.DrainTimeout, strings.Join(late, ", ")))
	}
	level := slog.LevelInfo
	if life.Err() == nil { // after a failed start, the last line should be the start's error, which main logs
		level = slog.LevelDebug
	}
	logger.Log(ctx, level, "stopped", "took", time.Since(begin), "cut_off", late)
	return errors.Join(errs...)
}

// logInflight logs the work that the drain's deadline cuts off.
func (a *App) logInflight(ctx context.Context, logger *slog.Logger) {
	for _, w := range a.inflight.List() {
		logger.WarnContext(ctx, "work cut off", "kind", w.Kind, "name", w.Name, "resource", w.Resource,
			"request_id", w.RequestID, "running", time.Since(w.Since).Round(time.Millisecond))
	}
}

// hardStop is how long a part may take to return after the drain's deadline, a reload after the drain has begun, and a report
// after the drain has ended.
const hardStop = time.Second

// callWithin calls f and returns at most hardStop after ctx has ended. An f that does not return by then is
// abandoned, because the process is about to exit.
func callWithin(ctx context.Context, f func(context.Context) error) error {
	result := make(chan error, 1)
	go func() { result <- f(ctx) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	timer := time.NewTimer(hardStop)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return ctx.Err()
	}
}
