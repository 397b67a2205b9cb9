package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/service"
)

// TestReportAtStop: a heartbeat that the stop of the process cancels, or that fails because a part of the process has
// drained, is not a failure: the log has no warning.
func TestReportAtStop(t *testing.T) { //nolint:paralleltest // other tests of the package set the default logger
	for name, heartbeat := range map[string]func(ctx context.Context, n *node) error{
		"canceled": func(ctx context.Context, _ *node) error { <-ctx.Done(); return ctx.Err() },
		"drained": func(_ context.Context, n *node) error {
			if n.draining.Load() {
				return errors.New("the conductor is stopped")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
				n := &node{options: &options{settings: settings{ReportInterval: 2 * time.Second}}, log: log}
				n.app = service.New(service.Config{Name: "x", NoSignals: true, Logger: log})
				slow := func(context.Context) error { <-time.After(20 * time.Second); return nil } // running work
				n.app.Add("work", service.Funcs{OnDrain: slow})
				n.app.Add("drain", service.Funcs{OnDrain: n.noteDrain})
				n.app.Add("report", service.Loop(time.Second, n.heartbeat("compute", func(ctx context.Context) error { return heartbeat(ctx, n) })))
				ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
				defer cancel()
				if name == "canceled" {
					n.ReportInterval = time.Hour // so that the stop, and not the timeout, cancels the heartbeat
				}
				if err := n.app.Run(ctx); err != nil {
					t.Error(err)
				}
				if s := out.String(); strings.Contains(s, "level=WARN") || !strings.Contains(s, "heartbeat failed while the process stops") {
					t.Errorf("the log:\n%s", s)
				}
			})
		})
	}
}

// TestReport: heartbeats that fail are retried with back-off, up to report_interval. The log has a line for the first
// failure and a line for the next success.
func TestReport(t *testing.T) { //nolint:paralleltest // other tests of the package set the default logger
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		n := &node{options: &options{settings: settings{ReportInterval: 10 * time.Second}}, log: log}
		n.app = service.New(service.Config{Name: "x", NoSignals: true, Logger: log})
		var mu sync.Mutex // of at and bad
		begin, bad := time.Now(), true
		var at []time.Duration
		beat := n.heartbeat("compute", func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
			if bad {
				return errors.New("the driver does not answer")
			}
			return nil
		})
		n.app.Add("first report", service.Funcs{OnStart: beat})
		n.app.Add("report", service.Loop(time.Second, beat))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.app.Run(ctx) }()
		<-time.After(2 * time.Minute)
		synctest.Wait()
		mu.Lock()
		failed := len(at)
		bad = false
		mu.Unlock()
		<-time.After(time.Minute)
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if failed < 12 || failed > 18 || len(at)-failed < 5 || len(at)-failed > 8 {
			t.Errorf("%d attempts failed within 2 min, and %d worked within 1 min: %v", failed, len(at)-failed, at)
		}
		if s := out.String(); strings.Count(s, "the driver does not answer") != 1 || strings.Count(s, "level=WARN") != 1 || !strings.Contains(s, "heartbeat succeeded after failures") {
			t.Errorf("the log:\n%s", s)
		}
	})
}
